"""The images of a data set as `prepare` lists them: records, class names, lists of the split."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import Problem
from segcore.files import fingerprint, write_atomically

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Record:
    """One image of the data set, whose files were opened and found good: a line of the manifest.

    `tags` are the indices (1..L) of the classes that the image-level annotation names; `labels` is the indexed
    PNG with a class per pixel, or None where nobody outlined the image; `label_classes` are the classes 1..L that the
    labels show, which the tags may exceed (None without labels), or fall short of where difficult objects do not count;
    `width` and `height` are those of the picture as a
    person sees it, after its EXIF rotation; the hashes are of the files' bytes, so that a stage that depends on the
    manifest depends on the pictures.
    """

    image_id: str
    image: Path
    labels: Path | None
    width: int
    height: int
    tags: tuple[int, ...]
    split: Split
    image_sha256: str
    labels_sha256: str | None
    label_classes: tuple[int, ...] | None


_TEXT, _WHOLE = pa.large_string(), pa.int64()
_TYPES = {str: _TEXT, str | None: _TEXT, Split: _TEXT, Path: _TEXT, Path | None: _TEXT, int: _WHOLE}
_TYPES |= {tuple[int, ...]: pa.list_(_WHOLE), tuple[int, ...] | None: pa.list_(_WHOLE)}

SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in get_type_hints(Record).items()])
"""The columns of `manifest.parquet`: the fields of a record; paths are text with slashes."""


def write_manifest(path: Path, records: Iterable[Record]) -> None:
    """Write `manifest.parquet`, whole or not at all; the same records give the same bytes.

    Raises:
        OSError: it could not be written.
    """
    lines = [
        {name: value.as_posix() if isinstance(value, Path) else value for name, value in asdict(record).items()}
        for record in records
    ]
    buffer = BytesIO()
    pd.DataFrame(lines, columns=SCHEMA.names).to_parquet(buffer, index=False, schema=SCHEMA)
    write_atomically(path, buffer.getvalue())


def read_manifest(path: Path) -> dict[str, Record]:
    """All records of a manifest, by image id and in its order.

    Raises:
        Problem: the file is damaged, or was written by something else.
        FileNotFoundError: there is no such file.
    """
    try:
        table = pq.read_table(path)
        if missing := {*SCHEMA.names} - {*table.column_names}:
            raise Problem(f"{path} is no manifest: it lacks the columns {sorted(missing)}", made_by="prepare")
        lines = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except (ValueError, NotImplementedError) as error:  # what Arrow raises is one of them
        raise Problem(f"{path} is no manifest: {error}", made_by="prepare") from error
    if strange := {line["split"] for line in lines} - {*get_args(Split)}:
        allowed = ", ".join(get_args(Split))
        raise Problem(
            f"{path} is no manifest: it has the split {sorted(strange, key=str)[0]!r}; allowed are {allowed}",
            made_by="prepare",
        )
    return {line["image_id"]: _record(line) for line in lines}


def _record(line: dict[str, Any]) -> Record:
    labels, label_classes = line["labels"], line["label_classes"]
    changes = {
        "image": Path(line["image"]),
        "labels": None if labels is None else Path(labels),
        "tags": tuple(line["tags"]),
        "label_classes": None if label_classes is None else tuple(label_classes),
    }
    return Record(**{**line, **changes})


def read_class_names(path: Path) -> list[str]:
    """The names of the classes, background first, as `prepare` wrote them.

    Raises:
        Problem: the file does not hold a list of names.
    """
    try:
        names = json.loads(path.read_bytes())
    except ValueError as error:
        raise Problem(f"{path} is damaged ({error})", made_by="prepare") from error
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
        raise Problem(f"{path} holds no list of class names", made_by="prepare")
    return names


def data_set_fingerprint(records: Iterable[Record], names: Sequence[str]) -> str:
    """A short name for what a data set holds, wherever its files lie: equal only for the same images and classes."""
    lines = [{**asdict(record), "image": None, "labels": None} for record in records]
    return fingerprint([lines, list(names)], ())


def listed(path: Path, records: Mapping[str, Record]) -> list[str]:
    """The image ids of a list of training images of the split, one a line.

    Raises:
        Problem: an id is not in the manifest, or that of an image which measures what was learned.
    """
    ids = path.read_text().split()
    if unknown := [image_id for image_id in ids if image_id not in records]:
        raise Problem(f"{path}: {len(unknown)} ids are not in the manifest, {unknown[0]} first", made_by="split")
    if measuring := [image_id for image_id in ids if records[image_id].split != "train"]:
        raise Problem(
            f"{path}: {len(measuring)} ids are validation images, {measuring[0]} first, and those are never trained on",
            made_by="split",
        )
    return ids
