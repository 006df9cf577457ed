"""Lists of ids: numbers of lines in a column of texts, few of which are Python's at once."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int

TEXT = pa.large_string()
"""What a column of texts is of: its texts may have more than 2 GB together."""

AT_ONCE = 4096
"""Ids, or records, that are made together when all are wanted."""


class Ids(Sequence[str]):
    """Ids in some lines of a column, of which the numbers are kept: a list of a million texts would take 90 MB."""

    def __init__(self, column: pa.ChunkedArray, rows: Int[np.ndarray, " n"]) -> None:
        self.column = column
        self.rows = rows

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Ids":
        """These ids, of which few are in memory as Python's texts at once."""
        ids, parts = iter(ids), []
        while some := [*islice(ids, AT_ONCE)]:
            parts.append(pa.array(some, TEXT))
        column = pa.chunked_array([pa.chunked_array(parts, TEXT).combine_chunks()])
        return cls(column, np.arange(len(column)))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Ids": ...
    def __getitem__(self, index: int | slice) -> "str | Ids":
        if isinstance(index, slice):
            return Ids(self.column, self.rows[index])
        return self.column[int(self.rows[index])].as_py()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), AT_ONCE):
            yield from self[first : first + AT_ONCE].texts().to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    def and_also(self, others: "Ids") -> "Ids":
        """These and then others of the same column."""
        return Ids(self.column, np.concatenate([self.rows, others.rows]))

    def texts(self) -> pa.ChunkedArray:
        """All of them as a column of their own."""
        return self.column.take(pa.array(self.rows))


def column_of(image_ids: Collection[str]) -> pa.ChunkedArray:
    """The ids as a column."""
    return image_ids.texts() if isinstance(image_ids, Ids) else pa.chunked_array([pa.array(image_ids, TEXT)])
