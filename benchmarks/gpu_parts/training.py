"""Training: rates and shares of the matrix rate, with and without `torch.compile`, and memory."""

import time
from typing import Any

import torch

from benchmarks.gpu_parts.measuring import Context, Figures, bar, flops, matrix_rate, peak_mb, seconds
from benchmarks.gpu_parts.steps import Pictures, Steps, built, recipe, settings, steps_of
from segcore.processes import Runtime
from segcore.systems.contract import System

BAR_SHARE = 0.45
IMAGES, TOY_IMAGES = 60, 6
SECONDS_TO_COMPILE = 120.0
"""What the second network is given room for before it is compiled."""


class Training:
    """A system of the profile `voc2012`, and pictures for it."""

    def __init__(self, context: Context, system: str) -> None:
        self.context = context
        self.system = system
        self.settings = settings(context.toy)
        network: Any = self.settings.systems[system].training["network"]
        self.side = network["input_size"]
        self.samples = Pictures(TOY_IMAGES if context.toy else IMAGES, self.side, self.side)

    def steps(self, precision: Any = "bf16", held: bool = True, **changes: Any) -> Steps:
        """Steps of a network made anew."""
        return self.made(precision, held, **changes)[1]

    def made(self, precision: Any = "bf16", held: bool = True, **changes: Any) -> tuple[System, Steps]:
        """The network made anew, and its steps."""
        wanted, system = recipe(self.settings, self.system, **changes), built(self.settings, self.system)
        return system, steps_of(system, self.samples, wanted, Runtime(precision), held)

    @property
    def batch_size(self) -> int:
        return recipe(self.settings, self.system).batch_size


def matrix(context: Context) -> Figures:
    """What the card can do: a bf16 product, a float32 one, and a copy of memory."""
    rate = matrix_rate(context)
    side = 256 if context.toy else 8192
    one = torch.randn(side, side, device=context.device)
    wide = 2 * side**3 / seconds(lambda: one @ one, context, repeats=2 if context.toy else 5)
    source = torch.empty(2**20 if context.toy else 2**31, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    copied = 2 * len(source) / seconds(lambda: target.copy_(source), context, repeats=2 if context.toy else 20)
    figures = {"bf16_tflops": rate / 1e12, "fp32_tflops": wide / 1e12, "copy_gb_a_second": copied / 1e9}
    return {"figures": figures, "bars": {}}


def train_vgg(context: Context) -> Figures:
    """VGG-16 DeepLab-LargeFOV at 321 pixels in bf16, batches on the card; and loaded by worker processes."""
    training = Training(context, "deeplab")
    result = _rates(training)
    steps = training.steps(held=False, workers=1 if context.toy else 8)
    result["figures"]["images_a_second_loaded"] = training.batch_size / _step(training, steps)
    steps.close()
    return result


def train_resnet101(context: Context) -> Figures:
    """ResNet-101 DeepLab version 2, stride 8, at 321 pixels in bf16, batches on the card."""
    return _rates(Training(context, "deeplab_resnet101"))


def _rates(training: Training) -> Figures:
    """As the profile trains it; and with cuDNN trying out its algorithms, which the project does not ask for."""
    context = training.context
    figures: Figures = {"batch_size": training.batch_size, "side": training.side}
    steps = training.steps()
    figures["flop_an_image"] = flops(lambda: next(steps)) / training.batch_size
    for name, tries in (("plain", False), ("cudnn_benchmark", True)):
        torch.backends.cudnn.benchmark = tries
        spent = _step(training, steps)
        rate = matrix_rate(context)
        figures[name] = {
            "ms_a_step": 1000 * spent,
            "images_a_second": training.batch_size / spent,
            "tflops": figures["flop_an_image"] * training.batch_size / spent / 1e12,
            "matrix_tflops": rate / 1e12,
            "share": figures["flop_an_image"] * training.batch_size / spent / rate,
        }
    torch.backends.cudnn.benchmark = False
    steps.close()
    return {
        "figures": figures,
        "bars": {"share of the matrix rate": bar(figures["plain"]["share"], at_least=BAR_SHARE)},
    }


def _step(training: Training, steps: Steps) -> float:
    return seconds(lambda: next(steps), training.context, repeats=1 if training.context.toy else 10)


def compiled(context: Context) -> Figures:
    """The same steps with `compile: true` and without; the first step pays for compiling."""
    # For CPUs torch 2.12 writes C++ of overlapping poolings over channels_last that does not compile.
    how: Any = {} if context.is_gpu else {"channels_last": False}
    figures: Figures = {}
    for name in ("deeplab", "deeplab_resnet101"):
        if figures and context.left < SECONDS_TO_COMPILE:
            figures[name] = "left out: no time"
            continue
        training = Training(context, name)
        plain = training.steps(**how)
        off = _step(training, plain)
        plain.close()
        fast = training.steps(compile=True, **how)
        context.wait()
        begin = time.perf_counter()
        next(fast)
        context.wait()
        first = time.perf_counter() - begin
        on = _step(training, fast)
        fast.close()
        both = {"ms_a_step_off": 1000 * off, "ms_a_step_on": 1000 * on, "times_as_fast": off / on}
        images = {"images_a_second_off": training.batch_size / off, "images_a_second_on": training.batch_size / on}
        figures[name] = both | images | {"first_step_seconds": first}
        context.keep(figures)
    return {"figures": figures, "bars": {}}


def memory(context: Context) -> Figures:
    """Of training steps, by network, batch and precision, in MB."""
    batches = (1, 2) if context.toy else (10, 20, 40)
    figures: Figures = {}
    for name in ("deeplab", "deeplab_resnet101"):
        training = Training(context, name)
        for precision in ("bf16", "fp32"):
            for batch in batches:
                figures[f"{name}, {precision}, batch {batch}"] = _memory(training, precision, batch)
        context.keep(figures)
    return {"figures": figures, "bars": {}}


def _memory(training: Training, precision: str, batch: int) -> Figures | str:
    def work() -> None:
        steps = training.steps(precision, batch_size=batch)
        for _ in range(2):
            next(steps)
        steps.close()

    try:
        return peak_mb(training.context, work)
    except torch.OutOfMemoryError:
        return "more than there is"
