"""The images of a data set as `prepare` lists them: records, class names, lists of the split."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from segcore.errors import Problem

MANIFEST_COLUMNS = (
    "image_id",
    "image",
    "labels",
    "width",
    "height",
    "tags",
    "split",
    "image_sha256",
    "labels_sha256",
)


@dataclass(frozen=True)
class Record:
    """One image of the data set.

    `tags` are the indices (1..L) of the classes that the image-level annotation names; `labels` is the indexed
    PNG with a class per pixel, or None where nobody outlined the image; `width` and `height` are those of the
    picture as a person sees it, after its EXIF rotation.
    """

    image_id: str
    image: Path
    labels: Path | None
    width: int
    height: int
    tags: tuple[int, ...]
    split: str


def read_manifest(path: Path) -> dict[str, Record]:
    """All rows of a manifest written by the `prepare` stage, by image id and in its order."""
    try:
        table = pd.read_parquet(path)
    except ValueError as error:  # what Arrow raises is one
        raise Problem(f"{path} is no manifest: {error}; run `dvc repro prepare`") from error
    if missing := set(MANIFEST_COLUMNS) - set(table.columns):
        raise Problem(f"{path} is no manifest: it lacks the columns {sorted(missing)}; run `dvc repro prepare`")
    rows: Iterable[Any] = table.itertuples()  # named tuples of these columns
    return {
        row.image_id: Record(
            image_id=row.image_id,
            image=Path(row.image),
            labels=Path(row.labels) if isinstance(row.labels, str) else None,
            width=int(row.width),
            height=int(row.height),
            tags=tuple(int(tag) for tag in row.tags),
            split=row.split,
        )
        for row in rows
    }


def read_class_names(path: Path) -> list[str]:
    """The names of the classes, background first, as the `prepare` stage wrote them.

    Raises:
        Problem: the file does not hold a list of names.
    """
    try:
        names = json.loads(path.read_bytes())
    except ValueError as error:
        raise Problem(f"{path} is damaged ({error}); run `dvc repro prepare`") from error
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
        raise Problem(f"{path} holds no list of class names; run `dvc repro prepare`")
    return names


def listed(path: Path, records: Mapping[str, Record]) -> list[str]:
    """The image ids of a list of training images of the split, one a line.

    Raises:
        Problem: an id is not in the manifest, or that of an image which measures what was learned.
    """
    ids = path.read_text().split()
    if unknown := [image_id for image_id in ids if image_id not in records]:
        raise Problem(f"{path}: {len(unknown)} ids are not in the manifest, {unknown[0]} first; run `dvc repro split`")
    if measuring := [image_id for image_id in ids if records[image_id].split != "train"]:
        raise Problem(
            f"{path}: {len(measuring)} ids are validation images, {measuring[0]} first, "
            "and those are never trained on; run `dvc repro split`"
        )
    return ids
