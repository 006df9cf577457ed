"""A record as a line of columns, and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.compute

from segcore.data.addresses import Address, Member
from segcore.data.ids import TEXT
from segcore.data.record import Record, Split

pc: Any = pyarrow.compute  # makes its functions as it is loaded, where no type checker sees them

_WHOLE, _CLASSES = pa.int64(), pa.list_(pa.int64())
_TYPES: dict[Any, pa.DataType] = {str: TEXT, str | None: TEXT, Split: TEXT, int: _WHOLE}
_TYPES |= {Address: TEXT, Address | None: TEXT, tuple[int, ...]: _CLASSES, tuple[int, ...] | None: _CLASSES}

SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in get_type_hints(Record).items()])
"""The columns of `manifest.parquet`: the fields of a record; paths are text with slashes, or names in a shard."""

IN_SHARDS = pa.schema([
    (f"{what}_{part}", kind)
    for what in ("image", "labels")
    for part, kind in (("shard", TEXT), ("offset", _WHOLE), ("size", _WHOLE))
])  # fmt: skip
"""Further columns of a manifest whose pictures or labels lie in shards; null where they are files of their own."""

OF_MASKS = ("labels", "labels_sha256", "label_classes", "labels_shard", "labels_offset", "labels_size")
"""The columns that say something of images with a mask alone, mostly few of all."""

NARROW = {number: pa.int32() for number in ("width", "height", "image_size", "labels_size")}
NARROW |= {classes: pa.list_(pa.int16()) for classes in ("tags", "label_classes")}
"""Numbers that need less room in memory than in the file, which says nothing of their bounds."""

REPEATED = {"split": pa.int8(), "image_shard": pa.int32(), "labels_shard": pa.int32()}
"""Columns of few different texts, and the kind of numbers that stand for these in memory."""


def table_of(records: Sequence[Record]) -> pa.Table:
    """The columns of records; those of `IN_SHARDS` only if anything lies in a shard."""
    columns = {name: [_plain(getattr(record, name)) for record in records] for name in SCHEMA.names}
    table = pa.Table.from_pydict(columns, SCHEMA)
    for what in ("image", "labels"):
        places = [address if isinstance(address := getattr(record, what), Member) else None for record in records]
        for name, part in ((f"{what}_{part}", part) for part in ("shard", "offset", "size")):
            values = [getattr(place, part, None) for place in places]
            table = table.append_column(IN_SHARDS.field(name), pa.array(values, IN_SHARDS.field(name).type))
    in_shards = any(table.column(f"{what}_shard").null_count < len(records) for what in ("image", "labels"))
    return table if in_shards else table.select(SCHEMA.names)


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Member) else value.as_posix() if isinstance(value, Path) else value


def as_bytes(hashes: list[pa.Array]) -> list[pa.Array]:
    """Columns of SHA-256 as their bytes, half of the memory; as they are, if anything else is among them."""
    found: list[pa.Array] = []
    for part in hashes:
        text = "".join(part.drop_null().to_pylist())
        try:
            content = bytes.fromhex(text)
        except ValueError:
            return hashes
        if content.hex() != text or not pc.all(pc.equal(pc.utf8_length(part), 64), skip_nulls=False).as_py():
            return hashes
        found.append(pa.Array.from_buffers(pa.binary(32), len(part), [None, pa.py_buffer(content)]))
    return found


def record_of(line: dict[str, Any]) -> Record:
    """The record of a line."""
    if isinstance(image_sha256 := line["image_sha256"], bytes):
        line["image_sha256"] = image_sha256.hex()
    label_classes = line["label_classes"]
    return Record(
        image_id=line["image_id"],
        image=_address(line, "image"),
        labels=None if line["labels"] is None else _address(line, "labels"),
        width=line["width"],
        height=line["height"],
        tags=tuple(line["tags"]),
        split=line["split"],
        image_sha256=line["image_sha256"],
        labels_sha256=line["labels_sha256"],
        label_classes=None if label_classes is None else tuple(label_classes),
    )


def _address(line: Mapping[str, Any], what: str) -> Address:
    shard = line.get(f"{what}_shard")
    if shard is None:
        return Path(line[what])
    return Member(shard, line[what], line[f"{what}_offset"], line[f"{what}_size"], line[f"{what}_sha256"] or "")
