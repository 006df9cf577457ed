"""What every part of `benchmarks.gpu` is made of: where and how long it runs, clocks, FLOPs, bars."""

import gc
import hashlib
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

PROJECT = Path(__file__).parents[2]
MATRIX, TOY_MATRIX = 8192, 256
WARM_UP = 3


@dataclass(frozen=True)
class Context:
    """What a part is told.

    Attributes:
        toy: everything as small as can be, to see on a CPU that it runs.
        deadline: on `time.monotonic`; a part that works piece by piece begins none that would not fit.
        voc: a folder VOCdevkit/VOC2012, and
        weights: a folder with ImageNet weights, both for `rows` alone.
        data: where `rows` keeps what it trains.
        keep: is told the figures of a part that takes long, as far as they are known: it may be ended at any moment.
    """

    toy: bool
    deadline: float
    voc: Path | None
    weights: Path | None
    data: Path
    keep: Callable[["Figures"], None] = lambda figures: None
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.is_gpu:
            torch.cuda.synchronize()


Figures = dict[str, Any]


def bar(value: float, at_least: float | None = None, at_most: float | None = None) -> Figures:
    """A figure that a part is judged by; exactly one of the bounds is given."""
    kind, bound = ("at_least", at_least) if at_least is not None else ("at_most", at_most)
    assert bound is not None
    return {"value": value, kind: bound, "met": value >= bound if kind == "at_least" else value <= bound}


def machine() -> Figures:
    """What the figures were measured on, and in which arithmetic."""
    gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if gpu else None
    return {
        "device": properties.name if properties else platform.processor() or platform.machine(),
        "memory_gb": round(properties.total_memory / 2**30, 1) if properties else None,
        "multiprocessors": properties.multi_processor_count if properties else None,
        "cores": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        # torch's defaults, which the project leaves as they are: convolutions of float32 in TF32, products not.
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32,
        "commit": _commit(),
    }


def _commit() -> str | None:
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    return told.stdout.strip() or None


def seconds(work: Callable[[], object], context: Context, repeats: int, turns: int = 3) -> float:
    """Of one call: the median of several turns of `repeats` calls, after some that warm up.

    The device is waited for at the ends of a turn alone, so that it may lag behind the CPU as it does in real work.
    """
    for _ in range(WARM_UP):
        work()
    times = []
    for _ in range(turns):
        context.wait()
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        context.wait()
        times.append((time.perf_counter() - begin) / repeats)
    return statistics.median(times)


@torch.no_grad()
def matrix_rate(context: Context) -> float:
    """FLOP a second of a square bf16 product of random numbers: what shares are shares of.

    Each part that tells a share measures it right beside, as clocks fall when a card gets warm.
    """
    side = TOY_MATRIX if context.toy else MATRIX
    one, other = (torch.randn(side, side, device=context.device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(one)
    return (
        2 * side**3 / seconds(lambda: torch.matmul(one, other, out=product), context, repeats=2 if context.toy else 20)
    )


def flops(work: Callable[[], object]) -> float:
    """Of what torch can count: convolutions and products, of the backward pass too."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def peak_mb(context: Context, work: Callable[[], object]) -> Figures:
    """Memory while `work` runs: of tensors, and what torch took from the card for them; on a CPU of the process."""
    gc.collect()
    if not context.is_gpu:
        work()
        return {"process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    context.wait()
    peaks = {"tensors": torch.cuda.max_memory_allocated(), "taken": torch.cuda.max_memory_reserved()}
    return {name: round(size / 2**20) for name, size in peaks.items()}


def fingerprint(values: Iterable[Tensor]) -> str:
    """Of some tensors, bit by bit."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
