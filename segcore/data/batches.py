"""Training batches as a function of (seed, step): nothing about the order of the data needs to be saved."""

import errno
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from segcore.data import kept_shards
from segcore.data.order import Order, WithTags
from segcore.errors import Problem


@dataclass(frozen=True)
class Sample:
    """One training sample: an augmented image, its tags as 0/1, its labels (all 255 where there are none).

    Labels have the size of the image, or that of the grid of cells that a network scores.
    """

    image_id: str
    image: UInt8[Tensor, "3 H W"]
    tags: Float[Tensor, " L"]
    labels: UInt8[Tensor, "h w"]
    strong: bool = True
    """Whether a person outlined the labels; those of a weak sample are cues, or unknown."""


@dataclass(frozen=True)
class Moment:
    """When in a training run a batch teaches: in which of its `steps`, 0 to steps - 1."""

    step: int
    steps: int

    @property
    def elapsed(self) -> float:
        """The share of the run that lies behind: 0 in the first step, just below 1 in the last."""
        return self.step / self.steps


@dataclass(frozen=True)
class Batch:
    """Samples side by side. Images are RGB in 0..255; labels are class indices, 255 where unknown.

    `strong` says which samples have labels that a person made; if it is not given, all have.
    `when` is set by `Fit`, for every micro-batch of a step alike; a batch of no training run has none.
    """

    ids: tuple[str, ...]
    images: Float[Tensor, "B 3 H W"]
    tags: Float[Tensor, "B L"]
    labels: Int64[Tensor, "B h w"]
    strong: Bool[Tensor, " B"] = field(default=None)  # type: ignore[assignment]
    when: Moment | None = None

    def __post_init__(self) -> None:
        if self.strong is None:
            everyone = torch.ones(len(self.ids), dtype=torch.bool, device=self.images.device)
            object.__setattr__(self, "strong", everyone)

    @property
    def moment(self) -> Moment:
        """When in its run the batch teaches, for losses with a warm-up or a schedule.

        Raises:
            RuntimeError: it is of no training run.
        """
        if self.when is None:
            raise RuntimeError("this batch is of no training run; `at` says when a batch teaches")
        return self.when

    def at(self, moment: Moment) -> "Batch":
        """The batch as one of that step."""
        return replace(self, when=moment)

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU copies from by itself; torch's loader pins nothing that lacks this method."""
        tensors = {name: getattr(self, name).pin_memory() for name in ("images", "tags", "labels", "strong")}
        return replace(self, **tensors)

    def to(self, device: torch.device, channels_last: bool = False) -> "Batch":
        """The batch on a device."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = self.images.to(device, non_blocking=True).to(memory_format=layout)
        tags, labels, strong = (x.to(device, non_blocking=True) for x in (self.tags, self.labels, self.strong))
        return replace(self, images=images, tags=tags, labels=labels, strong=strong)


@runtime_checkable
class Samples(Protocol):
    """A finite set of training samples; augmentation is a function of the seed it is handed."""

    def __len__(self) -> int: ...

    def sample(self, index: int, seed: int) -> Sample: ...


@runtime_checkable
class SizedSamples(Samples, Protocol):
    """Samples whose images are squares of `input_size` pixels: what a network trained on them is predicted at."""

    input_size: int


class Mixed:
    """Several sets of samples in one, of which every batch takes as many of each; see `Order`.

    An index counts through the sets one after the other.
    """

    def __init__(self, *sets: SizedSamples) -> None:
        self.sets = sets
        self.parts = tuple(len(one) for one in sets)
        """The size of each set."""
        self.input_size = sets[0].input_size

    def __len__(self) -> int:
        return sum(self.parts)

    def sample(self, index: int, seed: int) -> Sample:
        one, index = self._of(index)
        return one.sample(index, seed)

    def tags_of(self, index: int) -> Sequence[int]:
        """The tags of a sample, as its set says them.

        Raises:
            Problem: its set does not say them.
        """
        one, index = self._of(index)
        if not isinstance(one, WithTags):
            raise Problem(f"{type(one).__name__} does not say the tags of its samples")
        return one.tags_of(index)

    def _of(self, index: int) -> tuple[SizedSamples, int]:
        for one in self.sets:
            if index < len(one):
                return one, index
            index -= len(one)
        raise IndexError(f"{len(self)} samples have no index {index + len(self)}")


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of equal size."""
    return Batch(
        ids=tuple(sample.image_id for sample in samples),
        images=torch.stack([sample.image for sample in samples]).float(),
        tags=torch.stack([sample.tags for sample in samples]),
        labels=torch.stack([sample.labels for sample in samples]).long(),
        strong=torch.tensor([sample.strong for sample in samples]),
    )


_CURE = "set workers of the recipe lower or to 0, or give it more room (`docker run --shm-size=8g`, or `--ipc=host`)"
_NO_ROOM = f"workers: no room in the shared memory (/dev/shm) through which they send batches; {_CURE}"


class _Keyed(Dataset[Sample | str]):
    """Samples by their keys, or what is wrong with one: an exception would come out of a worker with its traceback."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, key: tuple[int, int]) -> Sample | str:  # type: ignore[override]
        try:
            return self.samples.sample(*key)
        except (Problem, OSError) as problem:
            return f"a training image: {problem}"


def _collate(samples: Sequence[Sample | str]) -> Batch | str:
    good = [sample for sample in samples if isinstance(sample, Sample)]
    bad = [sample for sample in samples if isinstance(sample, str)]
    if bad:
        return bad[0]
    batch = collate(good)
    if get_worker_info() is not None:
        try:
            # Left to the thread that sends it, a batch for which there is no room is lost, and waited for without end.
            for tensor in (batch.images, batch.tags, batch.labels, batch.strong):
                tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            return f"{_NO_ROOM} ({error})"
    return batch


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
            worker_init_fn=partial(kept_shards.use, kept_shards.in_use()),
        )
        batches = _loaded(loader)
        for _ in range(first, last):
            yield [_whole(next(batches)) for _ in range(self.order.accumulate)]


def _loaded(loader: "DataLoader[Any]") -> Iterator[Batch | str]:
    """What the workers send.

    Raises:
        Problem: a worker died, or could not be started.
    """
    others, workers = multiprocessing.active_children(), []
    batches: Iterator[Batch | str] | None = None
    try:
        batches = _begun(loader)
        workers = [child for child in multiprocessing.active_children() if child not in others]
        yield from batches
    except (OSError, EOFError, RuntimeError) as error:
        # What is wrong with a sample comes as a text; an error is one of the workers, or of the way to them.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise Problem(f"{_NO_ROOM} ({error})") from error
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise Problem(
            f"workers: a process that loads images died ({str(error).partition(chr(10))[0] or type(error).__name__}); "
            f"mostly memory is short, or the shared memory (/dev/shm) through which it sends batches: {_CURE}"
        ) from error
    finally:
        # However this ends, by Ctrl-C in the middle of a step, too: torch would wait seconds for each.
        for worker in workers:
            worker.kill()
        del batches  # not before


def _begun(loader: "DataLoader[Any]") -> Iterator[Batch | str]:
    """The loader at work, its workers deaf to Ctrl-C, which is for the one that started them.

    They are started by a thread, whose own signals they have, so that this one still hears Ctrl-C. And torch, which
    would raise an error at any place in the run when a worker dies, looks for dead ones when it waits for a batch.
    """
    if not loader.num_workers:
        return iter(loader)

    def begin() -> Iterator[Batch | str]:
        resource_tracker.ensure_running()  # which would open this thread's ears again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return iter(loader)

    started: Future[Iterator[Batch | str]] = Future()

    def start() -> None:
        try:
            started.set_result(begin())
        except BaseException as error:
            started.set_exception(error)

    # No executor, which would wait for the thread even after Ctrl-C.
    threading.Thread(target=start, daemon=True).start()
    return started.result()


def _whole(batch: Batch | str) -> Batch:
    if isinstance(batch, str):
        raise Problem(batch)
    return batch
