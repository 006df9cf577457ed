"""What every part of `benchmarks.gpu` is made of: where and how long it runs, clocks, FLOPs, bars, the networks."""

import gc
import hashlib
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segcore import systems
from segcore.config import profiles, reading
from segcore.config.reading import section
from segcore.config.settings import Settings
from segcore.config.training import RecipeParams
from segcore.data.batches import Batch, Sample
from segcore.data.pictures import IGNORE
from segcore.networks.origin import Origin
from segcore.processes import Runtime
from segcore.systems.contract import System
from segcore.training.fit import Fit

PROJECT = Path(__file__).parents[2]
TAGS = tuple(f"tag_{number}" for number in range(1, 21))
MATRIX, TOY_MATRIX = 8192, 256
WARM_UP = 3
QUIET = 0.2
"""What a ResNet's blocks with random weights add, over what a normalisation would let them."""

SLOW = 1e-6
"""Learning rate of what is only timed: random weights must not diverge."""


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


Trunk = Literal["vgg_fine", "resnet101"]


def settings(toy: bool) -> Settings:
    """The profile `voc2012` with random weights; toy: a sixteenth of VGG's width and squares of 65 pixels."""
    given = reading.parsed(profiles.compose(PROJECT / "profiles", "voc2012"), "the profile voc2012")
    for backbone in given["backbones"].values():
        backbone["weights"] = "random"
    # LargeFOV at 321 pixels, as SEC has it: the row `deeplab` itself cuts squares of 513.
    given["systems"]["deeplab"]["training"] |= {
        "network": "largefov",
        "geometry": {"kind": "stretched"},
        "recipe": "dsrg",
    }
    given["systems"]["deeplab_resnet101"] = given["systems"]["deeplab"] | {
        "start": "backbones/resnet101",
        "training": given["systems"]["deeplab"]["training"] | {"network": "grid"},
    }
    if toy:
        _shrink(given)
    return Settings(given)


def _shrink(given: Figures) -> None:
    for name, backbone in given["backbones"].items():
        backbone["width"] = 0.0625 if name.startswith("vgg") else 1.0
    for network in given["networks"].values():
        if isinstance(network, dict) and "input_size" in network:
            network |= {"input_size": 65, "width": 16} if "branches" in network else {"input_size": 65}
    given["networks"]["mirror"] |= {"width": 0.0625}
    for recipe in given["recipes"].values():
        if isinstance(recipe, dict):
            recipe |= {"batch_size": 2, "accumulate": 1}
    for entry in given["pseudo_labels"].values():
        entry |= {"input_size": 65, "batch_size": 2}
    for entry in given["classifiers"].values():
        side = 65 if entry["backbone"] == "vgg_fine" else 64
        entry |= {"input_size": side, "test_size": side, "resize": 72}
        entry["head"] |= {"width": 16, "kernel": 2} if entry["head"]["kind"] == "fully_connected" else {}


def built(settings: Settings, name: str) -> System:
    """A system of `settings` that starts from a backbone, with random weights."""
    entry = settings.systems[name]
    module = systems.load(entry.module)
    training = section({"systems": {name: entry.model_dump(mode="json")}}, f"systems.{name}.training", module.Training)
    torch.manual_seed(0)
    backbone = settings.backbones[entry.start.removeprefix("backbones/")]
    system: System = module.build(training, Origin(list(TAGS), backbone, None))
    for layer, weight in system.named_parameters():
        if layer.endswith("bn3.weight"):
            # Statistics that are frozen do not hold random weights back: a hundred layers on, nothing would be finite.
            torch.nn.init.constant_(weight, QUIET)
    return system


def recipe(settings: Settings, name: str, **changes: Any) -> RecipeParams:
    """That of a system, for as many steps as anybody wants, of a learning rate at which nothing happens."""
    own = settings.recipes[settings.systems[name].training["recipe"]]
    return own.model_copy(update={"steps": 1_000_000, "workers": 0, "learning_rate": SLOW} | changes)


class Pictures:
    """Samples in memory: noise, labels in blocks of some classes, one or two tags."""

    def __init__(self, count: int, side: int, cells: int, strong: bool | None = False) -> None:
        """`cells` a side have the labels: as many as pixels, or those of a grid. `strong`: None is every second one."""
        generator = torch.Generator().manual_seed(0)
        self.strong = strong
        self.images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        blocks = torch.randint(0, 6, (count, 8, 8), generator=generator)
        place = torch.arange(cells) * 8 // cells
        tags = torch.randint(0, len(TAGS), (count, 4), generator=generator)
        classes = torch.cat([torch.zeros(count, 1, dtype=torch.int64), tags[:, :2] + 1, tags[:, :2] + 1], dim=1)
        classes = torch.cat([classes, torch.full((count, 1), IGNORE)], dim=1)
        self.labels = classes.gather(1, blocks.flatten(1)).view_as(blocks)[:, place][:, :, place].to(torch.uint8)
        self.tags = torch.zeros(count, len(TAGS)).scatter_(1, tags[:, :2], 1.0)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, seed: int) -> Sample:
        strong = index % 2 == 0 if self.strong is None else self.strong
        return Sample(str(index), self.images[index], self.tags[index], self.labels[index], strong)


class Held:
    """Batches that lie on the device already, in the place of a stream of samples."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        for step in range(first, last):
            yield [self.batches[step % len(self.batches)]]


def steps_of(model: System, samples: Any, recipe: RecipeParams, runtime: Runtime, held: bool = True) -> Iterator[Any]:
    """The steps of the project's own training, with its batches on the device beforehand or loaded as always."""
    fit = Fit(model, samples, recipe, 0, runtime, None)
    if held:
        batches = [next(iter(fit.stream.steps(number, number + 1)))[0] for number in range(2)]
        moved = [batch.to(runtime.device, recipe.channels_last) for batch in batches]
        fit.stream = Held(moved)  # type: ignore[assignment]
    return iter(fit)


def fingerprint(values: Iterable[Tensor]) -> str:
    """Of some tensors, bit by bit."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]
