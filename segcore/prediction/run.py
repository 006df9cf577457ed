"""Many pictures into a folder: masks, a table, and on demand overlays and maps of confidence.

Pictures are read, and what scores mean is found, by threads of one core each, while the network computes or in turns
with it; files are written all the while. A batch always holds the same pictures, whatever was done before and however
the work is shared out, as a network may round otherwise in another batch. It holds them as squares of the network's
size; large photographs are in memory one by one. Each result is a line of a journal once its files are there, so that a
run which was stopped goes on.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segcore.errors import Problem
from segcore.evaluation.score_maps import ScoreMaps
from segcore.prediction.journal import Journal
from segcore.prediction.listing import Photo
from segcore.prediction.model import Model, Predicted
from segcore.prediction.reading import Ready, ready, told
from segcore.prediction.tables import write_shared, write_tables
from segcore.prediction.threads import Helpers, helpers
from segcore.prediction.writing import Wanted, allowed_to, files_of, made, stamp_of, stored

CARD = "predictions.json"
AHEAD = 2
"""Batches that are read, or written, while another is computed."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one picture."""

    photo: Photo
    problem: str | None
    """Why it was left out; None where it is done."""
    repeated: bool
    """Done by a run before this one."""


def predict_folder(
    model: Model, weights: Path, photos: Sequence[Photo], out: Path, wanted: Wanted
) -> Iterator[Outcome]:
    """Predict this shard's pictures, with an outcome for each, in order of the batches; then write the tables of all.

    Raises:
        Problem: the folder holds predictions of another model, or of other options; views that the model cannot take.
    """
    yield from predict_shard(model, weights, photos, out, wanted)
    write_tables(model.classes, photos, out, wanted.polygons, wanted.shard, wanted.shards)


def predict_shard(model: Model, weights: Path, photos: Sequence[Photo], out: Path, wanted: Wanted) -> Iterator[Outcome]:
    """As `predict_folder`, without the tables."""
    model.check()
    claim(model, weights, out, wanted)
    batches = [photos[first : first + wanted.batch_size] for first in range(0, len(photos), wanted.batch_size)]
    mine = batches[wanted.shard :: wanted.shards]
    journal = Journal(out, wanted.shard, wanted.shards, {photo.name for batch in mine for photo in batch})
    keep = wanted.overlay or model.system.prediction.crf is not None or model.system.proposals > 0
    with helpers(model.device) as beside:
        ahead = 0 if beside.in_turns else AHEAD
        reading: deque[tuple[Sequence[Photo], list[Future[Ready | str]] | None]] = deque()
        writing: deque[list[tuple[Photo, Callable[[], Row] | str]]] = deque()
        for place in range(len(mine) + ahead):
            if place < len(mine):
                fresh = any(not is_done(photo, journal.done, wanted) for photo in mine[place])
                reads = [beside.compute(ready, model, photo, keep) for photo in mine[place]] if fresh else None
                reading.append((mine[place], reads))
            if place < ahead:
                continue
            batch, reads = reading.popleft()
            if reads is None:
                yield from (Outcome(photo, journal.done[photo.name].get("problem"), True) for photo in batch)
                continue
            beside.before_the_network()
            writing.append(_predicted(model, batch, [read.result() for read in reads], out, wanted, beside))
            if len(writing) > AHEAD:
                yield from _recorded(writing.popleft(), journal)
        while writing:
            yield from _recorded(writing.popleft(), journal)
    journal.file.close()


def claim(model: Model, weights: Path, out: Path, wanted: Wanted) -> None:
    """Say in the folder whose predictions it holds."""
    card = {
        "model": model.name,
        "classes": list(model.classes),
        "fingerprint": model.fingerprint(weights),
        "limited_to_tags": wanted.tags is not None,
        "batch_size": wanted.batch_size,
        "tiles": None if model.tiles is None else [model.tiles.size, model.tiles.overlap],
    }
    text = json.dumps(card, indent=2) + "\n"
    file = out / CARD
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_shared(file, text.encode(), wanted.shard, wanted.shards)
    elif file.read_text() != text:
        raise Problem(f"{out} holds predictions of another model or with other options ({file}); name another folder")


def is_done(photo: Photo, done: Mapping[str, Row], wanted: Wanted) -> bool:
    row = done.get(photo.name)
    if row is None or not ("problem" in row or {*files_of(photo, wanted).values()} <= {*row["files"]}):
        return False
    if wanted.polygons is not None and row.get("per", wanted.polygons.per) != wanted.polygons.per:
        return False
    return row["stamp"] == stamp_of(photo.path)


def _predicted(
    model: Model, batch: Sequence[Photo], read: Sequence[Ready | str], out: Path, wanted: Wanted, beside: Helpers
) -> list[tuple[Photo, Callable[[], Row] | str]]:
    """Each picture of the batch with what waits for its row, or with what is wrong with it."""
    rows: dict[Photo, Callable[[], Row] | str] = {}
    together: list[tuple[Photo, Ready]] = []
    for photo, one in zip(batch, read, strict=True):
        if isinstance(one, str):
            rows[photo] = one
        elif one.squares is None:
            rows[photo] = _alone(model, photo, one, out, wanted, beside)
        else:
            together.append((photo, one))
    maps = model.scores_of([one.squares for _, one in together if one.squares is not None]) if together else []
    for (photo, one), scores in zip(together, maps, strict=True):
        rows[photo] = _written(model, photo, one, scores, out, wanted, beside)
    return [(photo, rows[photo]) for photo in batch]


def _alone(
    model: Model, photo: Photo, one: Ready, out: Path, wanted: Wanted, beside: Helpers
) -> Callable[[], Row] | str:
    """A picture that is predicted in windows, or by proposals."""
    try:
        picture = one.pixels()
    except Problem as problem:
        return told(problem)
    if model.fits(one.height, one.width):
        (means,) = model.scores([picture])
    else:
        means = model.said_in_windows(picture, allowed_to(photo, wanted), wanted.confidence, wanted.batch_size)
    return _written(model, photo, replace(one, picture=picture), means, out, wanted, beside)


def _written(
    model: Model,
    photo: Photo,
    one: Ready,
    means: ScoreMaps | Predicted,
    out: Path,
    wanted: Wanted,
    beside: Helpers,
) -> Callable[[], Row]:
    """What waits for the row of a picture that is being written."""

    def work() -> Future[Row]:
        return beside.store(stored, made(model, photo, one, means, wanted), out)

    if one.is_large:
        return work().result  # what is made of many large pictures at once would fill the memory
    future = beside.compute(work)
    return lambda: future.result().result()


def _recorded(rows: Sequence[tuple[Photo, Callable[[], Row] | str]], journal: Journal) -> Iterator[Outcome]:
    for photo, row in rows:
        if isinstance(row, str):
            journal.add({"image": photo.name, "stamp": stamp_of(photo.path), "files": [], "problem": row})
            yield Outcome(photo, row, False)
        else:
            journal.add(row())
            yield Outcome(photo, None, False)
