"""Training over several processes: `python -m benchmarks.processes`, two minutes on two cores.

Steps a second of one and of two gloo processes at the same batch of the whole, and how much of a step goes into the
exchange of gradients (the all-reduce of as many bytes, alone: an upper bound, as torch overlaps it with the backward
pass). Then, on paper, the same training on up to 64 GPUs: a ring all-reduce of the gradients counted here against the
arithmetic counted here, at rates that are stated. The two numbers of processes take turns.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_loop import InMemory
from segcore.config.classifiers import FullyConnectedParams
from segcore.config.networks import BackboneParams
from segcore.config.settings import load
from segcore.networks import classifiers
from segcore.networks.deeplab import DeepLab
from segcore.processes import Runtime
from segcore.training.fit import Fit

TURNS, WARM_UP, STEPS = 2, 2, 8
BATCH, WIDTH, TAGS = 32, 0.25, 10
SIDE, CLASSES, A_GPU = 321, 21, 16
"""On paper: VGG-16 DeepLab-LargeFOV at the published size, so many images a GPU and step."""

PEAK, SHARE = 989e12, 0.30
"""H100 SXM in dense bf16, FLOP/s (NVIDIA's data sheet); the share of it that a training reaches, an assumption."""

WITHIN, BETWEEN, IN_A_NODE = 450e9, 50e9, 8
"""Bytes a second one way and GPU: NVLink 4 (900 GB/s both ways); one InfiniBand NDR port of 400 Gbit/s a GPU."""

GPUS = (1, 2, 8, 16, 64)


@dataclass(frozen=True)
class Cost:
    """What one image and one step of the training on paper take."""

    flops: int
    """Of forward and backward pass, an image."""
    gradient_bytes: int
    """That every process exchanges in a step, in fp32."""


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]))
        return 0
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            for processes in found:
                found[processes].append(measured(processes, Path(folder) / f"{turn}-{processes}.json"))
    best = {processes: min(runs, key=lambda run: run["step"]) for processes, runs in found.items()}
    megabytes = best[1]["bytes"] / 1e6
    print(f"VGG-16 at width {WIDTH}, 96 pixels, batches of {BATCH} in all, one thread a process, {megabytes:.1f} MB:")
    for processes, run in best.items():
        print(
            f"  {processes} process(es): {1 / run['step']:.2f} steps/s, {best[1]['step'] / run['step']:.2f}x of one; "
            f"exchange {1000 * run['exchange']:.1f} ms of {1000 * run['step']:.0f} ms "
            f"({100 * run['exchange'] / run['step']:.1f} %)"
        )
    on_paper(counted())
    return 0


def measured(processes: int, file: Path) -> dict[str, float]:
    """Seconds of a step and of its exchange, from processes of their own."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, "-m", "--", "benchmarks.processes", "--inside", str(file)]
    subprocess.run(command, check=True)
    return json.loads(file.read_text())


def inside(file: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    runtime = Runtime()
    torch.manual_seed(0)
    trunk = BackboneParams(name="vgg16_bn", weights="random", width=WIDTH, frozen_norm=True, stride=32, finer="dilated")
    model = classifiers.build(trunk, head(), TAGS)
    recipe = load(Path("params.yaml")).recipes["classifier"]
    recipe = recipe.model_copy(update={"steps": WARM_UP + STEPS, "batch_size": BATCH, "accumulate": 1, "workers": 0})
    seconds = [progress.seconds for progress in Fit(model, InMemory(), recipe, 0, runtime, None)][WARM_UP:]
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    exchange = exchanged(torch.zeros(size)) if runtime.world > 1 else 0.0
    if runtime.is_main:
        result = {"step": sorted(seconds)[len(seconds) // 2], "exchange": exchange, "bytes": 4 * size}
        file.write_text(json.dumps(result))


def head() -> FullyConnectedParams:
    """That of the embedded set's classifier, as `benchmarks.training_loop` has it."""
    entry = load(Path("params.yaml")).classifiers["decoupled"]
    assert isinstance(entry.head, FullyConnectedParams)
    return entry.head.model_copy(update={"width": 256, "kernel": 3})


def exchanged(gradients: Tensor) -> float:
    """Seconds, the median of some, of summing as many numbers over all processes, in torch's buckets of 25 MiB."""
    times = []
    for _ in range(2 + STEPS):
        distributed.barrier()
        begin = time.perf_counter()
        for bucket in gradients.split(25 * 2**20 // 4):
            distributed.all_reduce(bucket)
        times.append(time.perf_counter() - begin)
    return sorted(times[2:])[STEPS // 2]


def counted() -> Cost:
    """The training on paper, counted without computing anything."""
    with torch.device("meta"):
        trunk = classifiers.build(
            BackboneParams(name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=8, finer="dilated"),
            head(), CLASSES - 1,
        ).trunk  # fmt: skip
        network: nn.Module = DeepLab(trunk, CLASSES, (12,), 3, 1024, 0.0)
        image = torch.zeros(1, 3, SIDE, SIDE)
    with FlopCounterMode(display=False) as counter:
        network(image).sum().backward()
    return Cost(counter.get_total_flops(), 4 * sum(p.numel() for p in network.parameters()))


def on_paper(cost: Cost) -> None:
    """The table of up to 64 GPUs."""
    compute = A_GPU * cost.flops / (PEAK * SHARE)
    print(
        f"On paper: DeepLab-LargeFOV, {SIDE} pixels, {A_GPU} images a GPU: {cost.flops / 1e9:.0f} GFLOP an image, "
        f"{cost.gradient_bytes / 1e6:.0f} MB of gradients; {PEAK / 1e12:.0f} TFLOP/s x {SHARE:.0%}: "
        f"{1000 * compute:.1f} ms a step"
    )
    for gpus in GPUS:
        exchange = ring(gpus, cost.gradient_bytes)
        bare, hidden = compute / (compute + exchange), compute / max(compute, exchange)
        images = gpus * A_GPU / (compute + exchange)
        print(
            f"  {gpus:3} GPUs: exchange {1000 * exchange:5.2f} ms, efficiency {bare:.1%} without overlap, {hidden:.1%} "
            f"with all of it; {images:,.0f} images/s without"
        )


def ring(gpus: int, size: int) -> float:
    """Seconds of a ring all-reduce: 2 (n - 1) / n of the bytes go over the slowest link."""
    return 2 * (gpus - 1) / gpus * size / (WITHIN if gpus <= IN_A_NODE else BETWEEN)


if __name__ == "__main__":
    sys.exit(main())
