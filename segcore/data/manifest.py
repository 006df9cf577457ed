"""The files of a data set as `prepare` and `split` write them: the manifest, class names, lists of ids."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from segcore.data.record import LONGEST_ID as LONGEST_ID
from segcore.data.record import PLAIN, Record, Split, wrong_ids
from segcore.data.record import wrong_id as wrong_id
from segcore.data.records import IN_SHARDS, SCHEMA, Records, splits_of, table_of
from segcore.errors import Problem, Problems, some
from segcore.files import regular, write_atomically

pc: Any = pyarrow.compute  # makes its functions as it is loaded, where no type checker sees them


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
    columns = table_of(list(records))
    # By way of pandas, which tells of itself in the file: the bytes of manifests that there are stay what they are.
    frame = pd.DataFrame({name: columns.column(name).to_pylist() for name in SCHEMA.names}, columns=SCHEMA.names)
    table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False)
    for name in columns.column_names[len(SCHEMA) :]:
        table = table.append_column(columns.field(name), columns.column(name))
    buffer = BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    write_atomically(path, buffer.getvalue())


def read_manifest(path: Path) -> Records:
    """All records of a manifest, by image id and in its order.

    Raises:
        Problem: the file is damaged, or was written by something else.
        FileNotFoundError: there is no such file.
    """
    try:
        with pq.ParquetFile(regular(path), page_checksum_verification=True) as file:
            found = file.schema_arrow.names
            if missing := {*SCHEMA.names} - {*found}:
                raise Problem(f"{path} is no manifest: it lacks the columns {sorted(missing)}", made_by="prepare")
            further = [field for field in IN_SHARDS if field.name in found]
            if further and len(further) < len(IN_SHARDS):
                raise Problem(f"{path} is no manifest: it lacks columns of shards", made_by="prepare")
            schema = pa.schema([*SCHEMA, *further])
            # Batch by batch: the whole as it is read and the whole as it is kept would be in memory at once.
            batches = file.iter_batches(_ROWS, columns=schema.names)
            tables = [_compact(pa.Table.from_batches([one]).select(schema.names).cast(schema), path) for one in batches]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # what Arrow raises is one of them
        raise Problem(f"{path} is no manifest: {error}", made_by="prepare") from error
    table = (pa.concat_tables(tables) if tables else schema.empty_table()).unify_dictionaries()
    del tables
    ids = table.column("image_id")
    wrong = wrong_ids(_not_plain(ids))
    if pc.count_distinct(ids).as_py() < len(ids):
        wrong.append(f"found {some(_repeated(ids.to_pylist()))} more than once")
    wrong += [f"{line['image_id']}: {odd}" for line in _suspicious(table) if (odd := _odd(line)) is not None]
    if wrong:
        raise Problems(f"{path} is no manifest:", wrong, made_by="prepare")
    columns: dict[str, pa.Array] = {}
    for name in schema.names:  # one after the other, or everything would be in memory twice
        columns[name] = table.column(name).combine_chunks()
        table = table.drop_columns(name)
    return Records(pa.table(columns))


_ROWS = 65_536
NARROW = {side: pa.int32() for side in ("width", "height")}
NARROW |= {classes: pa.list_(pa.int16()) for classes in ("tags", "label_classes")}


def _compact(table: pa.Table, path: Path) -> pa.Table:
    """The same with repeated texts held once, and numbers no wider than they have to be."""
    splits = pc.unique(table.column("split")).to_pylist()
    if strange := {*splits} - {*get_args(Split)}:
        allowed = ", ".join(get_args(Split))
        raise Problem(
            f"{path} is no manifest: it has the split {sorted(strange, key=str)[0]!r}; allowed are {allowed}",
            made_by="prepare",
        )
    for place, name in enumerate(table.column_names):
        column = table.column(name).combine_chunks()
        if name in ("split", "image_shard", "labels_shard"):
            column = column.dictionary_encode()
        elif name in NARROW:
            column = column.cast(NARROW[name])
        table = table.set_column(place, name, column)
    return table


def _not_plain(ids: pa.ChunkedArray) -> list[str | None]:
    """The ids that have to be looked at one by one."""
    plain = pc.fill_null(pc.match_substring_regex(ids, rf"^(?:{PLAIN})$"), False)
    return ids.filter(pc.invert(plain)).to_pylist()


def _repeated(ids: Sequence[str]) -> list[str]:
    return [image_id for image_id, count in Counter(ids).items() if count > 1]


def _suspicious(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The lines that `_odd` has to look at: all of those that it finds odd, and hardly any others."""

    def column(name: str) -> pa.ChunkedArray:
        return table.column(name)

    def less(name: str, bound: int) -> pa.ChunkedArray:
        return pc.fill_null(pc.less(column(name), bound), True)

    odd = [
        pc.fill_null(pc.equal(pc.utf8_length(column("image")), 0), True),
        pc.is_null(column("image_sha256")),
        *(less(side, 1) for side in ("width", "height")),
        pc.xor(pc.is_null(column("labels")), pc.is_null(column("label_classes"))),
        pc.is_null(column("tags")),
    ]
    for name in ("tags", "label_classes"):
        values = pc.list_flatten(column(name))
        beyond = pc.fill_null(pc.or_(pc.less(values, 1), pc.greater(values, 254)), True)
        lines = np.zeros(table.num_rows, dtype=bool)
        lines[pc.list_parent_indices(column(name)).to_numpy()[beyond.to_numpy()]] = True
        odd.append(pa.chunked_array([lines]))
    for what in ("image", "labels") if "image_shard" in table.column_names else ():
        offset, size, shard = (f"{what}_{part}" for part in ("offset", "size", "shard"))
        strange = pc.or_(less(offset, 1), less(size, 0))
        odd.append(pc.and_(pc.is_valid(column(shard)), strange))
    some_odd = reduce(pc.or_, (one.combine_chunks() for one in odd))
    yield from table.filter(some_odd).to_pylist()


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
    for what in ("image", "labels"):
        offset, size = (line.get(f"{what}_{part}") for part in ("offset", "size"))
        if line.get(f"{what}_shard") is not None and not (offset and size is not None and offset > 0 <= size):
            return f"its {what} is at byte {offset} of a shard, and {size} bytes long"
    return None


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
    # As `files.fingerprint` of all lines in one list, which for a million images is a text of half a gigabyte.
    encode = json.JSONEncoder(sort_keys=True, default=str).encode
    digest = hashlib.sha256(b"[[")
    for number, record in enumerate(records):
        line = encode({**vars(record), "image": None, "labels": None})
        digest.update(f"{', ' if number else ''}{line}".encode())
    digest.update(f"], {encode(list(names))}]".encode())
    return digest.hexdigest()[:16]


def listed(path: Path, records: Mapping[str, Record]) -> list[str]:
    """The image ids of a list of training images of the split, one a line.

    Raises:
        Problem: it is no list; an id is not in the manifest, or that of an image which measures what was learned.
    """
    ids = read_ids(path, made_by="split")
    splits = splits_of(records, ids)
    if unknown := [image_id for image_id, split in zip(ids, splits, strict=True) if split is None]:
        raise Problem(f"{path}: {len(unknown)} ids are not in the manifest, {unknown[0]} first", made_by="split")
    if measuring := [image_id for image_id, split in zip(ids, splits, strict=True) if split != "train"]:
        raise Problem(
            f"{path}: {len(measuring)} ids are validation images, {measuring[0]} first, and those are never trained on",
            made_by="split",
        )
    return ids
