"""Which samples a step sees, as a function of (seed, step)."""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from segcore.errors import Problem
from segcore.seeds import derived_seed


@runtime_checkable
class InParts(Protocol):
    """Several sets of samples that lie one after the other, as `batches.Mixed` holds them."""

    parts: tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """Which samples a step sees: epochs are shuffled by (seed, epoch), one after the other without a gap.

    With several `parts` (the sizes of sets that lie one after the other) every batch takes turns between them: place p
    of all places goes to part p modulo their number, and each part is shuffled by epochs of its own.
    """

    n_samples: int
    batch_size: int
    accumulate: int
    seed: int
    rank: int = 0
    world: int = 1
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        micro = self.batch_size // self.accumulate
        if self.n_samples < 1 or 0 in self.parts:
            raise Problem("there are no training samples; check the split and the list files it came from")
        if self.parts and sum(self.parts) != self.n_samples:
            raise ValueError(f"parts of {self.parts} samples are not {self.n_samples} together")
        if micro % self.world:
            raise Problem(
                f"{micro} samples cannot be shared by {self.world} processes; make batch_size / accumulate and "
                f"norm_batch_size multiples of {self.world}"
            )
        if self.parts and micro % len(self.parts):
            raise Problem(
                f"{micro} samples cannot be as many strong as weak ones; "
                f"make batch_size / accumulate a multiple of {len(self.parts)}"
            )

    @classmethod
    def of(cls, samples: Sized, batch_size: int, accumulate: int, seed: int, rank: int = 0, world: int = 1) -> "Order":
        """The order of these samples, dealt by their `parts` if they have some."""
        parts = samples.parts if isinstance(samples, InParts) else ()
        return cls(len(samples), batch_size, accumulate, seed, rank, world, parts)

    def micro_batches(self, step: int) -> Iterator[list[tuple[int, int]]]:
        """This process's (sample index, augmentation seed) pairs for each micro-batch of a step."""
        size = self.batch_size // self.accumulate
        for first in range(step * self.batch_size, (step + 1) * self.batch_size, size):
            places = range(first + self.rank, first + size, self.world)
            yield [(self._index(place), derived_seed(self.seed, "augment", place)) for place in places]

    def _index(self, place: int) -> int:
        parts = self.parts or (self.n_samples,)
        turn, part = divmod(place, len(parts))
        epoch, offset = divmod(turn, parts[part])
        # A set alone keeps the shuffle that it has always had.
        own = ("part", part) if len(parts) > 1 else ()
        shuffled = _permutation(parts[part], derived_seed(self.seed, "epoch", epoch, *own))
        return sum(parts[:part]) + int(shuffled[offset])


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)
