"""The files of a folder of predictions that tell of all its pictures, whoever predicted them."""

import os
from collections.abc import Sequence
from pathlib import Path

from segcore.files import write_atomically
from segcore.prediction import polygons
from segcore.prediction.journal import done_in, state, table_of
from segcore.prediction.listing import Photo
from segcore.prediction.polygons import Polygons

TABLE = "predictions.csv"


def write_tables(
    classes: Sequence[str], photos: Sequence[Photo], out: Path, outlines: Polygons | None, shard: int, shards: int
) -> None:
    """Write the table, and the outlines of all pictures, of what all shards have done.

    Whoever ends last writes of all: if other shards have gone on meanwhile, it is written again.
    """
    seen = None
    while seen != (now := state(out)):
        seen, done = now, done_in(out)
        write_shared(out / TABLE, table_of(photos, done, classes).encode(), shard, shards)
        if outlines is not None and outlines.format == "coco":
            rows = [done[photo.name] for photo in photos if "polygons" in done.get(photo.name, ())]
            write_shared(out / polygons.WHOLE, polygons.coco_file(rows, classes, out).encode(), shard, shards)


def write_shared(path: Path, content: bytes, shard: int, shards: int) -> None:
    """Write a file that other shards may be writing at the same moment."""
    own = path.with_name(f".{path.name}.{shard}-of-{shards}")
    write_atomically(own, content)
    os.replace(own, path)
