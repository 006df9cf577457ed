"""Which samples a step sees, as a function of (seed, step)."""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from segcore.data.by_class import Blocks, blocks
from segcore.errors import Problem
from segcore.seeds import derived_seed


@runtime_checkable
class InParts(Protocol):
    """Samples that are several sets, one after the other, such as `batches.Mixed`."""

    parts: tuple[int, ...]
    """The size of each set."""


@runtime_checkable
class WithTags(Protocol):
    """Samples that say their tags without reading a picture."""

    def tags_of(self, index: int) -> Sequence[int]:
        """The class indices, 1..L, of a sample's tags."""
        ...


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
    by_class: tuple[Blocks, ...] = ()
    """One for every part: an epoch is then a block in which samples of classes seldom seen come more often."""

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
    def of(
        cls,
        samples: Sized,
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        power: float | None = None,
    ) -> "Order":
        """The order of these samples, dealt by their `parts` if they are `InParts`.

        With a `power`, classes seldom seen come more often: see `by_class`.

        Raises:
            Problem: there are none, processes or parts cannot share a batch, or samples do not say their tags.
        """
        parts = samples.parts if isinstance(samples, InParts) else ()
        by_class = () if power is None else _by_class(samples, parts or (len(samples),), power)
        return cls(len(samples), batch_size, accumulate, seed, rank, world, parts, by_class)

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
        seed = derived_seed(self.seed, "epoch", epoch, *own)
        shuffled = _block(self.by_class[part], seed) if self.by_class else _permutation(parts[part], seed)
        return sum(parts[:part]) + int(shuffled[offset])


def _by_class(samples: Sized, parts: tuple[int, ...], power: float) -> tuple[Blocks, ...]:
    if not isinstance(samples, WithTags):
        raise Problem("sampling: by_class needs samples that say their tags, and these do not; set kind: uniform")
    first, found = 0, []
    for size in parts:
        found.append(blocks([samples.tags_of(index) for index in range(first, first + size)], power))
        first += size
    return tuple(found)


@lru_cache(maxsize=8)
def _block(of: Blocks, seed: int) -> np.ndarray:
    return of.block(seed)


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int) -> np.ndarray:
    """As `Generator.permutation` of a number gives it, in half of the memory: a run keeps those of some epochs."""
    shuffled = np.arange(n, dtype=np.int32)
    np.random.default_rng(seed).shuffle(shuffled)
    return shuffled
