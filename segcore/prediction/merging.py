"""A folder of predictions that shards have filled: nothing missing, and one table of all."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from segcore.errors import Problem
from segcore.prediction.journal import divisions, done_in
from segcore.prediction.listing import Photo
from segcore.prediction.model import Model
from segcore.prediction.run import CARD, Outcome, Wanted, claim, is_done
from segcore.prediction.tables import write_tables

TOLD = 10
"""Shards that a message names."""


def merge(model: Model, weights: Path, photos: Sequence[Photo], out: Path, wanted: Wanted) -> Iterator[Outcome]:
    """What all shards have done, with an outcome for each picture; then write the tables. Nothing is predicted.

    Raises:
        Problem: a picture is not done, or not by this model and with these options; its shard is told.
    """
    if not (out / CARD).is_file():
        raise Problem(f"{out} holds no predictions; run all shards, then this")
    claim(model, weights, out, wanted)
    done = done_in(out)
    left = [place for place, photo in enumerate(photos) if not is_done(photo, done, wanted)]
    if left:
        parts = divisions(out)
        numbers = (
            sorted({place // wanted.batch_size % n + 1 for place in left for n in parts}) if len(parts) == 1 else []
        )
        told = ", ".join(f"--shard {number}/{n}" for number in numbers[:TOLD] for n in parts)
        more = f" and {len(numbers) - TOLD} more shards" if len(numbers) > TOLD else ""
        how = f"run {told}{more}" if numbers else "the command without --merge does what is left"
        raise Problem(f"{out}: {len(left)} of {len(photos)} pictures are not done, {photos[left[0]].name} first; {how}")
    yield from (Outcome(photo, done[photo.name].get("problem"), True) for photo in photos)
    write_tables(model.classes, photos, out, wanted.polygons, wanted.shard, wanted.shards)
