"""The tags of training images as training sees them, in `TAGS_FILE` of the split's folder.

They may be made worse on purpose (Luo et al. 2017 learn from tags that are missing or wrong): training reads them from
that table, measuring from the manifest.
"""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pyarrow.csv import ConvertOptions, read_csv

from segcore.config.data import TagNoise
from segcore.data.arrow_memory import give_back
from segcore.data.ids import column_of
from segcore.data.manifest import Record
from segcore.data.records import Records, of
from segcore.data.splits import Splits
from segcore.errors import Problem
from segcore.made_of import TAGS_FILE
from segcore.seeds import derived_seed

pc: Any = pyarrow.compute  # makes its functions as it is loaded, where no type checker sees them


def tags_seen(
    splits: Splits, records: Mapping[str, Record], n_tags: int, noise: TagNoise | None, seed: int
) -> dict[str, tuple[int, ...]]:
    """The tags of every training image as training sees them: indices 1..L, sorted.

    Strong images keep theirs. Of every other image one number is drawn for each class, by the seed and the id alone: a
    tag goes missing if its number is below `drop`, a class that is none becomes one if its number is below `add`. An
    image never loses all of its tags: if no tag is left or added, the one with the greatest number stays.
    """
    strong = {*splits.strong}
    return {
        image_id: record.tags
        if noise is None or image_id in strong
        else _with_mistakes(record.tags, n_tags, noise, derived_seed(seed, "tag noise", image_id))
        for image_id, record in records.items()
        if record.split == "train"
    }


def _with_mistakes(tags: tuple[int, ...], n_tags: int, noise: TagNoise, seed: int) -> tuple[int, ...]:
    drawn = dict(enumerate(np.random.default_rng(seed).random(n_tags).tolist(), start=1))
    left = [tag for tag, number in drawn.items() if (number >= noise.drop if tag in tags else number < noise.add)]
    if not left and tags:
        left = [max(tags, key=drawn.__getitem__)]
    return tuple(left)


def tags_table(seen: Mapping[str, tuple[int, ...]], classes: Sequence[str]) -> bytes:
    """The content of `TAGS_FILE`: image_id,tags, names of classes with `|` between them."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("image_id", "tags"))
    lines.writerows((image_id, "|".join(classes[tag] for tag in tags)) for image_id, tags in seen.items())
    return text.getvalue().encode()


def as_training_sees(
    records: Mapping[str, Record], ids: Collection[str], split: Path, classes: Sequence[str]
) -> Records:
    """The records, those of the images `ids` with the tags that the folder of the split has for them.

    Raises:
        Problem: the table lacks some of these images, or is of other classes.
        FileNotFoundError: there is none.
    """
    file, known = split / TAGS_FILE, Records.of_all(records)
    text = {"image_id": pa.large_string(), "tags": pa.large_string()}
    try:
        with file.open("rb") as lines:
            table = read_csv(lines, convert_options=ConvertOptions(column_types=text, include_columns=[*text]))
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise Problem(f"{file} is no table of tags ({error})", made_by="split") from None
    places = pc.index_in(column_of(ids), value_set=table.column("image_id")).combine_chunks()
    if places.null_count:
        missing = [image_id for image_id, place in zip(ids, places.to_pylist(), strict=True) if place is None]
        raise Problem(f"{file} lacks {len(missing)} images of the split, {missing[0]} first", made_by="split")
    tags = _as_indices(table.column("tags"), classes, file)
    del table
    seen = known.with_tags(known.rows(ids), tags.take(places))
    del places, tags
    give_back()
    return seen


def _as_indices(cells: pa.ChunkedArray, classes: Sequence[str], file: Path) -> pa.ListArray:
    """Of cells with names of classes and `|` between them, the indices."""
    parts, strange = [], set[str]()
    for chunk in cells.chunks:
        names = pc.split_pattern(chunk, "|")
        each, of_line = pc.list_flatten(names), pc.list_parent_indices(names).to_numpy()
        is_name = pc.not_equal(each, "").to_numpy(zero_copy_only=False)
        each, of_line = each.filter(pa.array(is_name)), of_line[is_name]
        places = pc.index_in(each, value_set=pa.array(classes[1:], each.type))
        strange |= {*each.filter(pc.is_null(places)).to_pylist()}
        ends = np.bincount(of_line, minlength=len(chunk)).cumsum()
        parts.append(pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), pc.add(places, 1).cast(pa.int16())))
    if strange:
        first = min(strange)
        raise Problem(f"{file} has tags that are no classes of the data set, {first} first", made_by="split")
    return pa.chunked_array(parts, pa.list_(pa.int16())).combine_chunks()


def mistakes(seen: Mapping[str, tuple[int, ...]], records: Mapping[str, Record]) -> dict[str, int]:
    """How many tags training images have, and how many of them training does not see, or sees beside them."""
    counted = {"tags": 0, "dropped": 0, "added": 0}
    for record, tags in zip(of(records, seen), seen.values(), strict=True):
        true, found = {*record.tags}, {*tags}
        counted["tags"] += len(true)
        counted["dropped"] += len(true - found)
        counted["added"] += len(found - true)
    return counted
