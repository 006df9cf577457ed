"""The images of a data set as `prepare` lists them: records, class names, lists of the split."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import Problem, Problems, some
from segcore.files import fingerprint, regular, write_atomically

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

LONGEST_ID = 200
"""Bytes of an image's id: with an ending and the marks of unfinished files it must stay a file name."""

SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in get_type_hints(Record).items()])
"""The columns of `manifest.parquet`: the fields of a record; paths are text with slashes."""


def wrong_id(image_id: object) -> str | None:
    """What keeps an id from naming an image: it becomes part of file names, and of lists with an id a line.

    Every list and table is checked by this where it is read, so that none leads out of the data set's folders.
    """
    if not isinstance(image_id, str) or not image_id:
        return "an image id is a text that is not empty"
    if any(part in image_id for part in ("/", "\\")) or image_id.startswith("."):
        return "an image id is a file name without its folder and ending, such as 2007_000032, and begins with no dot"
    if any(character.isspace() for character in image_id):
        return "an image id may not hold blanks, by which other files separate ids; rename its files, by _ say"
    if not image_id.isprintable():
        return "an image id may not hold characters that cannot be seen; rename its files"
    if len(image_id.encode("utf-8", "surrogatepass")) > LONGEST_ID:
        return f"an image id is at most {LONGEST_ID} bytes long, so that it can be part of file names"
    return None


def wrong_ids(image_ids: Iterable[object]) -> list[str]:
    """A sentence for each thing that is wrong with any of the ids, with a few of those."""
    found: dict[str, list[str]] = {}
    for image_id in image_ids:
        if (wrong := wrong_id(image_id)) is not None:
            shown = image_id if isinstance(image_id, str) and image_id.isprintable() else ascii(image_id)
            found.setdefault(wrong, []).append(str(shown))
    return [f"found {some(ids)}; {wrong}" for wrong, ids in found.items()]


def read_ids(path: Path, *, made_by: str | None = None) -> list[str]:
    """The ids in a text file with one a line; a byte order mark and blank lines are dropped.

    Raises:
        Problem: it is no UTF-8 text, or a line is no id.
        FileNotFoundError: there is no such file.
    """
    try:
        lines = regular(path).read_text("utf-8-sig").replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is no list of image ids: it is not UTF-8 text ({error})", made_by=made_by) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise Problem(f"{path} cannot be read ({error.strerror})", made_by=made_by) from None
    ids = [line.strip() for line in lines if line.strip()]
    if wrong := wrong_ids(ids):
        raise Problems(f"{path} is no list of image ids:", wrong, made_by=made_by)
    return ids


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
    pd.DataFrame(lines, columns=SCHEMA.names).to_parquet(buffer, index=False, schema=SCHEMA, write_page_checksum=True)
    write_atomically(path, buffer.getvalue())


def read_manifest(path: Path) -> dict[str, Record]:
    """All records of a manifest, by image id and in its order.

    Raises:
        Problem: the file is damaged, or was written by something else.
        FileNotFoundError: there is no such file.
    """
    try:
        table = pq.read_table(regular(path), page_checksum_verification=True)
        if missing := {*SCHEMA.names} - {*table.column_names}:
            raise Problem(f"{path} is no manifest: it lacks the columns {sorted(missing)}", made_by="prepare")
        lines = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except FileNotFoundError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # what Arrow raises is one of them
        raise Problem(f"{path} is no manifest: {error}", made_by="prepare") from error
    if strange := {line["split"] for line in lines} - {*get_args(Split)}:
        allowed = ", ".join(get_args(Split))
        raise Problem(
            f"{path} is no manifest: it has the split {sorted(strange, key=str)[0]!r}; allowed are {allowed}",
            made_by="prepare",
        )
    ids = [line["image_id"] for line in lines]
    wrong = wrong_ids(ids) + [f"found {some(twice)} more than once" for twice in [_repeated(ids)] if twice]
    wrong += [f"{line['image_id']}: {odd}" for line in lines if (odd := _odd(line)) is not None]
    if wrong:
        raise Problems(f"{path} is no manifest:", wrong, made_by="prepare")
    return {line["image_id"]: _record(line) for line in lines}


def _repeated(ids: Sequence[str]) -> list[str]:
    return [image_id for image_id, count in Counter(ids).items() if count > 1]


def _odd(line: Mapping[str, Any]) -> str | None:
    """What cannot be in a line that `prepare` wrote."""
    if not line["image"] or line["image_sha256"] is None:
        return "names no picture"
    if not all(isinstance(line[side], int) and line[side] > 0 for side in ("width", "height")):
        return f"its picture is {line['width']}x{line['height']}"
    if (line["labels"] is None) != (line["label_classes"] is None):
        return "has labels without their classes, or the reverse"
    for column in ("tags", "label_classes"):
        if line[column] is None and column == "label_classes":
            continue
        if not all(isinstance(one, int) and 0 < one < 255 for one in line[column] or ()) or line[column] is None:
            return f"its {column} are {line[column]}; allowed are 1 to 254"
    return None


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
        names = json.loads(regular(path).read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
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
        Problem: it is no list; an id is not in the manifest, or that of an image which measures what was learned.
    """
    ids = read_ids(path, made_by="split")
    if unknown := [image_id for image_id in ids if image_id not in records]:
        raise Problem(f"{path}: {len(unknown)} ids are not in the manifest, {unknown[0]} first", made_by="split")
    if measuring := [image_id for image_id in ids if records[image_id].split != "train"]:
        raise Problem(
            f"{path}: {len(measuring)} ids are validation images, {measuring[0]} first, and those are never trained on",
            made_by="split",
        )
    return ids
