"""Training batches as a function of (seed, step): nothing about the order of the data needs to be saved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segcore.problems import Problem
from segcore.runtime import derived_seed


@dataclass(frozen=True)
class Sample:
    """One training sample: an augmented image, its tags as 0/1, its labels (all 255 where there are none)."""

    image_id: str
    image: UInt8[Tensor, "3 H W"]
    tags: Float[Tensor, " L"]
    labels: UInt8[Tensor, "H W"]


@dataclass(frozen=True)
class Batch:
    """Samples side by side. Images are RGB in 0..255; labels are class indices, 255 where unknown."""

    ids: tuple[str, ...]
    images: Float[Tensor, "B 3 H W"]
    tags: Float[Tensor, "B L"]
    labels: Int64[Tensor, "B H W"]

    def to(self, device: torch.device, channels_last: bool = False) -> "Batch":
        """The batch on a device."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = self.images.to(device, non_blocking=True).to(memory_format=layout)
        labels, tags = self.labels.to(device, non_blocking=True), self.tags.to(device, non_blocking=True)
        return replace(self, images=images, tags=tags, labels=labels)


@runtime_checkable
class Samples(Protocol):
    """A finite set of training samples; augmentation is a function of the seed it is handed."""

    def __len__(self) -> int: ...

    def sample(self, index: int, seed: int) -> Sample: ...


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of equal size."""
    return Batch(
        ids=tuple(sample.image_id for sample in samples),
        images=torch.stack([sample.image for sample in samples]).float(),
        tags=torch.stack([sample.tags for sample in samples]),
        labels=torch.stack([sample.labels for sample in samples]).long(),
    )


@dataclass(frozen=True)
class Order:
    """Which samples a step sees: epochs are shuffled by (seed, epoch), one after the other without a gap."""

    n_samples: int
    batch_size: int
    accumulate: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        micro = self.batch_size // self.accumulate
        if self.n_samples < 1:
            raise Problem("there are no training samples; check the split and the list files it came from")
        if micro % self.world:
            raise Problem(
                f"{micro} samples cannot be shared by {self.world} processes; make batch_size / accumulate and "
                f"norm_batch_size multiples of {self.world}"
            )

    def micro_batches(self, step: int) -> Iterator[list[tuple[int, int]]]:
        """This process's (sample index, augmentation seed) pairs for each micro-batch of a step."""
        size = self.batch_size // self.accumulate
        for first in range(step * self.batch_size, (step + 1) * self.batch_size, size):
            places = range(first + self.rank, first + size, self.world)
            yield [(self._index(place), derived_seed(self.seed, "augment", place)) for place in places]

    def _index(self, place: int) -> int:
        epoch, offset = divmod(place, self.n_samples)
        return int(_permutation(self.n_samples, derived_seed(self.seed, "epoch", epoch))[offset])


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


class _Keyed(Dataset[Sample | str]):
    """Samples by their keys, or what is wrong with one: an exception would come out of a worker with its traceback."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, key: tuple[int, int]) -> Sample | str:  # type: ignore[override]
        try:
            return self.samples.sample(*key)
        except (Problem, OSError) as problem:
            return f"a training image cannot be read: {problem}; run `dvc repro prepare`, which checks all files"


def _collate(samples: Sequence[Sample | str]) -> Batch | str:
    good = [sample for sample in samples if isinstance(sample, Sample)]
    bad = [sample for sample in samples if isinstance(sample, str)]
    return bad[0] if bad else collate(good)


class Stream:
    """The micro-batches of a run from any step on, loaded ahead by worker processes if asked to."""

    def __init__(self, samples: Samples, order: Order, workers: int) -> None:
        self.samples = samples
        self.order = order
        self.workers = workers

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """For each step in `first`..`last` - 1, its micro-batches on the CPU."""
        # A generator: the keys of a whole run would take seconds to make and some hundred MB to hold.
        keys = (keys for step in range(first, last) for keys in self.order.micro_batches(step))
        loader = DataLoader(
            _Keyed(self.samples),
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            # Not fork: OpenCV and torch hold threads that a forked child would miss.
            multiprocessing_context="spawn" if self.workers else None,
        )
        batches = map(_whole, loader)
        for _ in range(first, last):
            yield [next(batches) for _ in range(self.order.accumulate)]


def _whole(batch: Batch | str) -> Batch:
    if isinstance(batch, str):
        raise Problem(batch)
    return batch
