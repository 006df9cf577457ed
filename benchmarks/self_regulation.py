"""What Self-Regulation costs: `python -m benchmarks.self_regulation`.

A training step of `deeplab` with and without it (bar: 1.25 times), on the embedded set's entry and on ResNet-18 at
stride 8 with 241 pixels, the network of `voc-mini`; parameters and operations of both in training, and of the network
that is saved, which must be equal. The two take turns, a step each; the ratio is that of their median steps.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segcore import systems
from segcore.config.networks import BackboneParams
from segcore.config.reading import section
from segcore.config.settings import Settings, load
from segcore.config.training import RecipeParams
from segcore.data.batches import Batch, Moment, Sample
from segcore.networks.origin import Origin
from segcore.processes import Runtime
from segcore.regularisers.contract import regularised
from segcore.systems.contract import System
from segcore.training.fit import Fit

BAR = 1.25
ENTRY = "deeplab_sr"
TAGS, IMAGES = 10, 64
WARM_UP = 2
FINE: dict[str, Any] = {
    "backbone": {
        "name": "resnet18", "weights": "random", "width": 1.0, "frozen_norm": True, "stride": 8, "finer": "dilated",
    },
    "network": {"kind": "grid", "stride": 8, "branches": [2], "width": 1024, "dropout": 0.5, "input_size": 241},
    "batch_size": 4,
}  # fmt: skip


class InMemory:
    """Pictures with labels that cost nothing to load."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.input_size = size
        self.images = torch.randint(0, 256, (IMAGES, 3, size, size), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, TAGS + 1, (IMAGES, size, size), generator=generator, dtype=torch.uint8)
        self.tags = torch.ones(TAGS)

    def __len__(self) -> int:
        return IMAGES

    def sample(self, index: int, seed: int) -> Sample:
        return Sample(str(index), self.images[index], self.tags, self.labels[index])


class Case:
    """A network, its recipe and its regularisers."""

    def __init__(
        self, name: str, training: dict[str, Any], backbone: BackboneParams, recipe: RecipeParams, steps: int
    ) -> None:
        self.name = name
        self.module = systems.load("deeplab")
        self.params = section({ENTRY: training}, ENTRY, self.module.Training)
        self.backbone = backbone
        self.recipe = recipe.model_copy(update={"steps": WARM_UP + steps, "workers": 0})

    def system(self) -> System:
        torch.manual_seed(0)
        tags = [f"tag_{number}" for number in range(1, TAGS + 1)]
        return self.module.build(self.params, Origin(tags, self.backbone, None))

    def trainee(self, system: System, regulated: bool) -> nn.Module:
        """What is trained; Self-Regulation counts from the first step on."""
        entries = {name: dict(values) | {"warmup": 0.0} for name, values in self.params.regularisers.items()}
        return regularised(system, entries if regulated else {}, TAGS)

    def seconds(self, runtime: Runtime) -> dict[bool, float]:
        """Of a step, without and with Self-Regulation."""
        samples = InMemory(self.params.network.input_size)
        runs = {
            on: iter(Fit(self.trainee(self.system(), on), samples, self.recipe, 0, runtime, None))
            for on in (False, True)
        }
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(self.recipe.steps):
            for on, run in runs.items():
                begin = time.perf_counter()
                next(run)
                times[on].append(time.perf_counter() - begin)
        return {on: statistics.median(values[WARM_UP:]) for on, values in times.items()}

    def operations(self, regulated: bool) -> tuple[int, int, int, int]:
        """Parameters and operations of one image, forwards, in training; then the same of what is saved.

        Not backwards: torch's counter takes depthwise convolutions for full ones there.
        """
        system = self.system()
        trainee = self.trainee(system, regulated).train()
        size = self.params.network.input_size
        images = torch.zeros(2, 3, size, size)
        batch = Batch(("a", "b"), images, torch.ones(2, TAGS), torch.zeros(2, size, size).long(), when=Moment(0, 1))
        with FlopCounterMode(display=False) as training:
            trainee.losses(batch)  # type: ignore[operator]
        system.eval()
        with FlopCounterMode(display=False) as prediction:
            system.predict(images)
        counts = [sum(p.numel() for p in model.parameters()) for model in (trainee, system)]
        return counts[0], training.get_total_flops() // 2, counts[1], prediction.get_total_flops() // 2


def cases(settings: Settings) -> list[Case]:
    training = settings.systems[ENTRY].training
    recipe, backbone = settings.recipes[training["recipe"]], settings.backbones[settings.systems[ENTRY].start_name]
    fine = recipe.model_copy(update={"batch_size": FINE["batch_size"]})
    return [
        Case("EfficientNet-Lite0, stride 16, 129 pixels", training, backbone, recipe, steps=30),
        Case(
            "ResNet-18, stride 8, 241 pixels",
            {**training, "network": FINE["network"]},
            BackboneParams.model_validate(FINE["backbone"]),
            fine,
            steps=10,
        ),
    ]


def main() -> int:
    settings, runtime, met = load(Path("params.yaml")), Runtime("fp32"), True
    for case in cases(settings):
        plain, regulated = case.operations(False), case.operations(True)
        seconds = case.seconds(runtime)
        ratio, same = seconds[True] / seconds[False], plain[2:] == regulated[2:]
        print(f"{case.name}, batches of {case.recipe.batch_size}, {runtime.device}, {torch.get_num_threads()} threads:")
        print(f"  a step: {seconds[False]:.3f} s without, {seconds[True]:.3f} s with: {ratio:.2f} times (bar: {BAR})")
        for name, (params, flops, *_) in (("without", plain), ("with", regulated)):
            print(f"  in training, {name}: {params / 1e6:.2f} M parameters, {flops / 1e9:.2f} GFLOP an image")
        said = "with or without" if same else f"without; with, it is another: {regulated[2:]}"
        print(f"  saved: {plain[2] / 1e6:.2f} M parameters, {plain[3] / 1e9:.2f} GFLOP an image, {said}")
        met &= same and ratio <= BAR
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
