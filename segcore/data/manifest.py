"""The files of a data set as `prepare` and `split` write them: the manifest, class names, lists of ids."""

import hashlib
import json
import re
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

from segcore.data.arrow_memory import give_back
from segcore.data.columns import IN_SHARDS, NARROW, REPEATED, SCHEMA, as_bytes, table_of
from segcore.data.ids import Ids
from segcore.data.record import LONGEST_ID as LONGEST_ID
from segcore.data.record import PLAIN, Record, Split, wrong_ids
from segcore.data.record import wrong_id as wrong_id
from segcore.data.records import Records
from segcore.errors import Problem, Problems, some
from segcore.files import regular, write_atomically

pc: Any = pyarrow.compute  # makes its functions as it is loaded, where no type checker sees them


def read_ids(path: Path, *, made_by: str | None = None) -> list[str]:
    """The ids in a text file with one a line; a byte order mark and blank lines are dropped.

    Raises:
        Problem: it is no UTF-8 text, or a line is no id.
        FileNotFoundError: there is no such file.
    """
    return [*_read_ids(path, made_by)]


def _read_ids(path: Path, made_by: str | None) -> Ids:
    """The same as a column."""
    try:
        text = regular(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is no list of image ids: it is not UTF-8 text ({error})", made_by=made_by) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise Problem(f"{path} cannot be read ({error.strerror})", made_by=made_by) from None
    ids = Ids.of(line for found in re.finditer(r"[^\r\n]+", text) if (line := found.group().strip()))
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
        with pq.ParquetFile(regular(path), page_checksum_verification=True, buffer_size=_BUFFER) as file:
            found = file.schema_arrow.names
            if missing := {*SCHEMA.names} - {*found}:
                raise Problem(f"{path} is no manifest: it lacks the columns {sorted(missing)}", made_by="prepare")
            further = [field for field in IN_SHARDS if field.name in found]
            if further and len(further) < len(IN_SHARDS):
                raise Problem(f"{path} is no manifest: it lacks columns of shards", made_by="prepare")
            # Column by column: only one of them is in memory twice, as it is read and as it is kept.
            table = pa.table({field.name: _column(file, field, path) for field in [*SCHEMA, *further]})
    except FileNotFoundError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # what Arrow raises is one of them
        raise Problem(f"{path} is no manifest: {error}", made_by="prepare") from error
    ids = table.column("image_id")
    wrong = wrong_ids(_not_plain(ids))
    if _repeat(ids):
        wrong.append(f"found {some(_repeated(ids.to_pylist()))} more than once")
    wrong += [f"{line['image_id']}: {odd}" for line in _suspicious(table) if (odd := _odd(line)) is not None]
    if wrong:
        raise Problems(f"{path} is no manifest:", wrong, made_by="prepare")
    records = Records(table)
    del ids, table
    give_back()
    return records


_ROWS = 65_536
_BUFFER = 2**20
"""Bytes of the file that are read at once."""


def _column(file: pq.ParquetFile, field: pa.Field, path: Path) -> pa.Array:
    """A column with repeated texts held once, hashes as bytes, and numbers no wider than they have to be."""
    kind = NARROW.get(field.name, field.type)
    parts = [batch.column(0).cast(field.type).cast(kind) for batch in file.iter_batches(_ROWS, columns=[field.name])]
    if field.name == "split":
        _check_splits(parts, path)
    if field.name in REPEATED:
        parts = [part.dictionary_encode().cast(pa.dictionary(REPEATED[field.name], kind)) for part in parts]
    if field.name == "image_sha256":
        parts = as_bytes(parts)
    return pa.chunked_array(parts).unify_dictionaries().combine_chunks() if parts else pa.array([], kind)


def _check_splits(parts: Iterable[pa.Array], path: Path) -> None:
    for part in parts:
        if strange := {*pc.unique(part).to_pylist()} - {*get_args(Split)}:
            allowed = ", ".join(get_args(Split))
            raise Problem(
                f"{path} is no manifest: it has the split {sorted(strange, key=str)[0]!r}; allowed are {allowed}",
                made_by="prepare",
            )


def _not_plain(ids: pa.ChunkedArray) -> list[str | None]:
    """The ids that have to be looked at one by one."""
    plain = pc.fill_null(pc.match_substring_regex(ids, rf"^(?:{PLAIN})$"), False)
    return ids.filter(pc.invert(plain)).to_pylist()


def _repeat(ids: pa.ChunkedArray) -> bool:
    """Whether any id is there twice: by their order, which takes a third of the memory of a set of them."""
    ordered = ids.take(pc.sort_indices(ids))
    return pc.any(pc.equal(ordered[1:], ordered[:-1])).as_py() is True


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


def listed(path: Path, records: Mapping[str, Record]) -> Ids:
    """The image ids of a list of training images of the split, one a line.

    Raises:
        Problem: it is no list; an id is not in the manifest, or that of an image which measures what was learned.
    """
    ids = _read_ids(path, made_by="split")
    known = Records.of_all(records)
    rows, trained_on = known.rows(ids), known.is_of("train")
    if (unknown := np.flatnonzero(rows < 0)).size:
        first = ids[int(unknown[0])]
        raise Problem(f"{path}: {len(unknown)} ids are not in the manifest, {first} first", made_by="split")
    if (measuring := np.flatnonzero(~trained_on[rows])).size:
        raise Problem(
            f"{path}: {len(measuring)} ids are validation images, {ids[int(measuring[0])]} first, and those are never "
            "trained on",
            made_by="split",
        )
    give_back()
    return known.ids_at(rows)
