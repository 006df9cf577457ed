"""Records of many images as columns.

A manifest of a million images would be a million of Python's objects, with paths and tuples in each, in every process.
So `Records` keeps columns, and makes a record when somebody asks for it.
"""

from bisect import bisect_left
from collections.abc import Collection, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from copy import copy
from functools import reduce
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Int

from segcore.data.columns import OF_MASKS, record_of, table_of
from segcore.data.ids import AT_ONCE, Ids, column_of
from segcore.data.record import Record, Split

pc: Any = pyarrow.compute  # makes its functions as it is loaded, where no type checker sees them


class Records(Mapping[str, Record]):
    """Records by image id, in an order; each is made when it is asked for, and holds what its line says."""

    def __init__(self, table: pa.Table) -> None:
        """Of a table with the columns of `SCHEMA`, and those of `IN_SHARDS` where there are shards."""
        of_masks = [name for name in table.column_names if name in OF_MASKS]
        masked = reduce(pc.or_, (pc.is_valid(table.column(name)) for name in of_masks))
        self._images = table.drop_columns(["image_id", *of_masks])
        self._masks = table.select(of_masks).filter(masked)
        """What there is beside: only of images with a mask, as empty cells take as much memory as full ones."""
        self._mask_of = np.full(table.num_rows, -1, dtype=np.int32)
        """By line of images: that of its mask, -1 where there is none."""
        self._mask_of[masked.to_numpy()] = np.arange(len(self._masks))
        self._ids: pa.ChunkedArray = table.column("image_id")
        """Beside the other columns, not among them too: pickled for a process that loads images it would be two."""
        self._order: np.ndarray | None = None

    @classmethod
    def of_all(cls, records: Iterable[Record] | Mapping[str, Record]) -> "Records":
        """The same records as columns."""
        if isinstance(records, Records):
            return records
        return cls(table_of(list(records.values() if isinstance(records, Mapping) else records)))

    def __len__(self) -> int:
        return self._images.num_rows

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), AT_ONCE):
            yield from self._ids[first : first + AT_ONCE].to_pylist()

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._row(image_id) is not None

    def __getitem__(self, image_id: str) -> Record:
        row = self._row(image_id)
        if row is None:
            raise KeyError(image_id)
        return self.record(row)

    def values(self) -> ValuesView[Record]:
        """All records, made some thousand at once."""
        return _Values(self)

    def items(self) -> ItemsView[str, Record]:
        """All ids and records, likewise."""
        return _Items(self)

    def record(self, row: int) -> Record:
        """The record of a line."""
        images, masks, place = self._images, self._masks, int(self._mask_of[row])
        image = {name: images.column(name)[row].as_py() for name in images.column_names}
        mask = {name: None if place < 0 else masks.column(name)[place].as_py() for name in masks.column_names}
        return record_of({"image_id": self._ids[row].as_py(), **image, **mask})

    def some(self, rows: Int[np.ndarray, " n"]) -> Iterator[Record]:
        """The records of a few lines, made together."""
        places = self._mask_of[rows]
        images = self._images.take(pa.array(rows)).to_pylist()
        masks = iter(self._masks.take(pa.array(places[places >= 0])).to_pylist())
        nothing = dict.fromkeys(self._masks.column_names)
        for image_id, image, masked in zip(self.ids_at(rows), images, places >= 0, strict=True):
            yield record_of({"image_id": image_id, **image, **(next(masks) if masked else nothing)})

    def tags(self, row: int) -> Sequence[int]:
        """The tags alone of a line."""
        return self._images.column("tags")[row].as_py()

    def all(self) -> Iterator[Record]:
        """Every record, in their order."""
        return iter(Rows(self, np.arange(len(self))))

    def _row(self, image_id: str) -> int | None:
        if self._order is None:
            self._order = pc.sort_indices(self._ids).to_numpy()
        order: Any = self._order
        # Arrow orders texts by their UTF-8, which is the order of Python's.
        place = bisect_left(order, image_id, key=lambda row: self._ids[int(row)].as_py())
        if place < len(self) and self._ids[int(order[place])].as_py() == image_id:
            return int(order[place])
        return None

    def rows(self, image_ids: Collection[str]) -> Int[np.ndarray, " n"]:
        """The line of each id; -1 where there is none."""
        if isinstance(image_ids, Ids) and image_ids.column is self._ids:
            return image_ids.rows
        found = pc.index_in(column_of(image_ids), value_set=self._ids)
        return pc.fill_null(found, -1).to_numpy()

    def ids_at(self, rows: Int[np.ndarray, " n"]) -> Ids:
        """The ids of these lines."""
        return Ids(self._ids, rows)

    def of(self, image_ids: Collection[str]) -> "Rows":
        """The records of these ids.

        Raises:
            KeyError: there is none of one of them.
        """
        rows = self.rows(image_ids)
        if (missing := np.flatnonzero(rows < 0)).size:
            raise KeyError([*image_ids][missing[0]])
        return Rows(self, rows)

    def of_split(self, split: Split) -> "Rows":
        """The records of one split, in their order."""
        return Rows(self, np.flatnonzero(self.is_of(split)))

    def is_of(self, split: Split) -> Bool[np.ndarray, " N"]:
        """Which lines are of a split."""
        column = self._images.column("split")
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        return pc.equal(column, split).combine_chunks().to_numpy(zero_copy_only=False)

    def with_tags(self, rows: Int[np.ndarray, " n"], tags: pa.Array) -> "Records":
        """The same, these lines with other tags, a list of class indices each."""
        column = self._images.column("tags").combine_chunks()
        places = np.arange(len(self))
        places[rows] = len(self) + np.arange(len(rows))
        both = pa.concat_arrays([column, tags.cast(column.type)])
        changed = both.take(pa.array(places))
        if changed.equals(column):  # mostly so, and then they are in memory once
            return self
        made = copy(self)
        made._images = _changed(self._images, "tags", changed)
        return made

    def with_masks_of(self, image_ids: Collection[str]) -> "Records":
        """The same, all other images without labels; what is known of these stays."""
        kept = np.zeros(len(self), dtype=bool)
        rows = self.rows(image_ids)
        kept[rows[rows >= 0]] = True
        column = self._masks.column("labels")
        labels = pc.if_else(pa.array(kept[self._mask_of >= 0]), column, pa.scalar(None, column.type))
        made = copy(self)
        made._masks = _changed(self._masks, "labels", labels)
        return made


def _changed(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


class _Values(ValuesView[Record]):
    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self._records = records

    def __iter__(self) -> Iterator[Record]:
        return self._records.all()


class _Items(ItemsView[str, Record]):
    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self._records = records

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        return ((record.image_id, record) for record in self._records.all())


class Rows(Sequence[Record]):
    """Some of the records, in an order: a list that holds numbers of lines."""

    def __init__(self, records: Records, rows: Int[np.ndarray, " n"]) -> None:
        self.records = records
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Record | Rows":
        if isinstance(index, slice):
            return Rows(self.records, self.rows[index])
        return self.records.record(int(self.rows[index]))

    def __iter__(self) -> Iterator[Record]:
        for first in range(0, len(self), AT_ONCE):
            yield from self.records.some(self.rows[first : first + AT_ONCE])

    @property
    def ids(self) -> Ids:
        """The ids alone."""
        return self.records.ids_at(self.rows)

    def tags_at(self, index: int) -> Sequence[int]:
        """The tags alone of one of them."""
        return self.records.tags(int(self.rows[index]))


def of(records: Mapping[str, Record], image_ids: Collection[str]) -> Sequence[Record]:
    """The records of these ids, not yet made where they are columns."""
    return records.of(image_ids) if isinstance(records, Records) else [records[one] for one in image_ids]


def splits_of(records: Mapping[str, Record], image_ids: Collection[str]) -> list[Split | None]:
    """The split of each id; None where there is no record of it."""
    if not isinstance(records, Records):
        return [records[one].split if one in records else None for one in image_ids]
    rows, trained_on = records.rows(image_ids), records.is_of("train")
    return [None if row < 0 else "train" if trained_on[row] else "val" for row in rows.tolist()]


def tags_at(records: Sequence[Record], index: int) -> Sequence[int]:
    """The tags of one of them."""
    return records.tags_at(index) if isinstance(records, Rows) else records[index].tags


def ids_of(records: Sequence[Record]) -> Sequence[str]:
    """The id of each."""
    return records.ids if isinstance(records, Rows) else [record.image_id for record in records]
