"""FickleNet's localisation maps and training: `python -m benchmarks.localisation`.

VGG-16 of stride 8 at 321 pixels with the published 9x9 head, random weights. N = 200 maps of two tags of one picture,
against map expansion and automatic differentiation (a few maps timed, the rest scaled) and against the plain forward
pass of the trunk; a training step against the same network with an ordinary 9x9 convolution in the place of the head.
Memory is how far a process of its own grows beyond its size with the network loaded.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.classifiers import StochasticParams
from segcore.config.networks import BackboneParams
from segcore.localisation import background
from segcore.localisation.maps import View, localise, maps_of
from segcore.localisation.mask_bank import MaskBank
from segcore.networks import classifiers, dropout
from segcore.networks.classifiers import Classifier
from segcore.networks.stochastic_head import StochasticHead

BAR_SPEED, BAR_DIFFERENCE = 1000.0, 1e-5
BAR_EXTRACTION_TIME, BAR_TRAINING, BAR_MEMORY = 1.3, 1.1, 1.1
SIDE, TAGS, KERNEL, RATE = 321, 20, 9, 0.9
PASSES, TIMED_PASSES = 200, 2
BATCH, TURNS = 2, 3
STATUS = Path("/proc/self/status")


class OrdinaryHead(nn.Module):
    """A 9x9 convolution and average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, TAGS, KERNEL, padding=KERNEL // 2)

    def forward(self, top: Tensor) -> Tensor:
        return self.score(top).mean((2, 3))


class Bench:
    """One picture, one batch, the network and what is done with them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        trunk = BackboneParams(name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=8, finer="dilated")
        params = StochasticParams(
            kind="stochastic",
            kernel=KERNEL,
            selection="stochastic",
            rate=RATE,
            rescale=True,
            form="factorised",
        )
        self.classifier: Classifier = classifiers.build(trunk, params, TAGS).eval()
        self.classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert isinstance(self.classifier.head, StochasticHead)
        self.head = self.classifier.head
        self.ordinary = OrdinaryHead(self.classifier.trunk.channels)
        self.image = picture(1)
        self.batch, self.tags = picture(BATCH), torch.eye(BATCH, TAGS)
        self.pairs = torch.tensor([0, 0]), torch.tensor([3, 11])
        self.bank = MaskBank(0, PASSES, (41, 41), KERNEL**2, RATE, KERNEL**2 // 2)

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.classifier.trunk(self.image).top

    @torch.no_grad()
    def merge(self, top: Tensor) -> None:
        localise(self.head, [View(top, self.bank)], *self.pairs, "stochastic", RATE, "factorised", "map")

    def extract(self) -> None:
        self.merge(self.forward())

    def extract_with_background(self) -> None:
        values, features = background.importance(self.classifier, self.image)
        background.lowest(values, 0.1)
        self.merge(features.top)

    @torch.no_grad()
    def maps(self, top: Tensor, form: str, passes: int) -> Tensor:
        bank = MaskBank(0, passes, (41, 41), KERNEL**2, RATE, KERNEL**2 // 2)
        made = maps_of(self.head, top, *self.pairs, bank, "stochastic", RATE, form)
        return torch.cat(list(made), dim=1)

    def train_stochastic(self) -> None:
        dropout.set_key(self.head, 0, rank=0, world=1)
        self._train(self.head.train())

    def train_ordinary(self) -> None:
        self._train(self.ordinary)

    def _train(self, head: nn.Module) -> None:
        scores = head(self.classifier.trunk(self.batch).top)
        F.binary_cross_entropy_with_logits(scores, self.tags, reduction="sum").backward()
        self.classifier.zero_grad(set_to_none=True)
        self.ordinary.zero_grad(set_to_none=True)


def picture(count: int) -> Tensor:
    return (torch.rand(count, 3, SIDE, SIDE) * 255).contiguous(memory_format=torch.channels_last)


def main() -> int:
    if len(sys.argv) > 1:
        print(grown(sys.argv[1]))
        return 0
    bench = Bench()
    print(f"FickleNet, VGG-16 of stride 8, {SIDE}x{SIDE} pixels, CPU, {torch.get_num_threads()} threads:")
    met = [speed(bench), extraction(bench), training(bench)]
    if torch.cuda.is_available():
        gpu(bench)
    return 0 if all(met) else 1


def speed(bench: Bench) -> bool:
    """The maps alone, against the published way."""
    top = bench.forward()
    (ours,) = best_seconds(lambda: bench.merge(top))
    begin = time.perf_counter()
    published = bench.maps(top, "expanded", TIMED_PASSES)
    theirs = (time.perf_counter() - begin) * PASSES / TIMED_PASSES
    difference = ((bench.maps(top, "factorised", TIMED_PASSES) - published).abs().max() / published.max()).item()
    print(
        f"  N = {PASSES} maps of 2 tags: factorised and merged {ours:.3f} s, expanded with autograd {theirs:.0f} s "
        f"({TIMED_PASSES} passes timed, scaled), {theirs / ours:.0f}x (bar: >= {BAR_SPEED:g}x); maps differ by "
        f"{difference:.0e} of the greatest value (bar: <= {BAR_DIFFERENCE:g})"
    )
    return theirs / ours >= BAR_SPEED and difference <= BAR_DIFFERENCE


def extraction(bench: Bench) -> bool:
    """Trunk and maps, against the trunk."""
    plain, ours, both = best_seconds(bench.forward, bench.extract, bench.extract_with_background)
    memory = [subprocess_growth(name) for name in ("forward", "extract", "extract_with_background")]
    print(
        f"  extraction of {PASSES} maps: {ours:.2f} s, the trunk alone {plain:.2f} s, {ours / plain:.2f}x its time "
        f"(bar: <= {BAR_EXTRACTION_TIME:g}x), {memory[1] / memory[0]:.2f}x its memory of {memory[0]:.0f} MB "
        f"(bar: <= {BAR_MEMORY:g}x); with the gradient cue of the background {both / plain:.2f}x, "
        f"{memory[2] / memory[0]:.2f}x"
    )
    return ours / plain <= BAR_EXTRACTION_TIME and memory[1] / memory[0] <= BAR_MEMORY


def training(bench: Bench) -> bool:
    """A step of the stochastic classifier, against an ordinary head."""
    ours, plain = best_seconds(bench.train_stochastic, bench.train_ordinary)
    memory = [subprocess_growth(name) for name in ("train_stochastic", "train_ordinary")]
    print(
        f"  a training step, batch {BATCH}: {ours:.2f} s, with an ordinary {KERNEL}x{KERNEL} head {plain:.2f} s, "
        f"{ours / plain:.2f}x its time, {memory[0] / memory[1]:.2f}x its memory of {memory[1]:.0f} MB "
        f"(bars: <= {BAR_TRAINING:g}x)"
    )
    return ours / plain <= BAR_TRAINING and memory[0] / memory[1] <= BAR_TRAINING


def gpu(bench: Bench, batch: int = 32) -> None:
    """Images a second on a GPU in bf16, two tags an image; no bar."""
    device = torch.device("cuda")
    classifier, bank = bench.classifier.to(device).eval(), bench.bank.to(device)
    images = picture(batch).to(device)
    image, tag = torch.arange(2 * batch, device=device) // 2, torch.arange(2 * batch, device=device) % TAGS

    @torch.no_grad()
    def trunk() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            top = classifier.trunk(images).top
        torch.cuda.synchronize()
        return top

    def extract() -> None:
        localise(bench.head, [View(trunk().float(), bank)], image, tag, "stochastic", RATE, "factorised", "map")
        torch.cuda.synchronize()

    plain, ours = best_seconds(trunk, extract, turns=10)
    print(f"  on a GPU, bf16, batch {batch}: {batch / ours:.0f} images/s, the trunk alone {batch / plain:.0f}")


def best_seconds(*ways: Callable[[], object], turns: int = TURNS) -> list[float]:
    """The least time of each way, their turns alternating so that a busy machine slows all of them alike."""
    least = [float("inf")] * len(ways)
    for _ in range(turns):
        for number, way in enumerate(ways):
            begin = time.perf_counter()
            way()
            least[number] = min(least[number], time.perf_counter() - begin)
    return least


def subprocess_growth(name: str) -> float:
    """`grown` in a process that has done nothing else; nan where there is no /proc."""
    command = [sys.executable, "-m", "benchmarks.localisation", name]
    # What is freed goes back to the system at once, or the size would depend on the allocator's moods.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def grown(name: str) -> float:
    """MB by which this process grows at most while it does `name` of `Bench`, having done it once to load its code."""
    if not STATUS.is_file():
        return float("nan")
    bench = Bench()
    getattr(bench, name)()
    before = megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the greatest size so far
    getattr(bench, name)()
    return megabytes("VmHWM") - before


def megabytes(what: str) -> float:
    """The size of this process, now (VmRSS) or at most so far (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
