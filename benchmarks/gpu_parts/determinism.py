"""Whether two runs on one GPU are equal bit for bit, of every system, where torch is told to be deterministic.

torch then refuses what adds up in no fixed order; the project has other forms of what it needs of that: unpooling, the
cross-entropy of pixels, ordered values, counts (see docs/gpu.md). cuBLAS needs CUBLAS_WORKSPACE_CONFIG in its
environment before it starts, which `benchmarks.gpu` sets.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_parts.labels import extracted
from benchmarks.gpu_parts.measuring import Context, Figures, bar, fingerprint
from benchmarks.gpu_parts.steps import TAGS, Pictures, Steps, built, recipe, settings, steps_of
from benchmarks.gpu_parts.training import Training
from segcore import systems
from segcore.config import reading
from segcore.config.classifiers import FullyConnectedParams, PooledParams
from segcore.config.networks import BackboneParams
from segcore.config.section import Views
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier
from segcore.networks.origin import Origin
from segcore.networks.pooled_head import PooledHead
from segcore.processes import Runtime
from segcore.regularisers.contract import regularised
from segcore.systems.contract import System

CUBLAS = ":4096:8"
STEPS, TOY_STEPS = 10, 2
SIDE = 96
RATE = 1e-4
"""Learning rate: what differs must not drown in the rounding of weights that hardly move."""


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Whether torch refuses what it cannot repeat."""
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


def determinism(context: Context) -> Figures:
    """Every system at its smallest, two of them at the profile's size, and the extraction of maps, each made twice."""
    if context.is_gpu and os.environ.get("CUBLAS_WORKSPACE_CONFIG") != CUBLAS:
        raise RuntimeError(f"CUBLAS_WORKSPACE_CONFIG must be {CUBLAS} before the process starts")
    figures: Figures = {
        "every_system": {name: _told(partial(_twice, _Small(name), context)) for name in systems.names()}
    }
    figures["every_system"]["deeplab with self_regulation"] = _told(partial(_twice, _Regularised(), context))
    context.keep(figures)
    for name, run in (("deeplab", _Published(context)), ("decouplednet", _Decoupled(context))):
        with deterministic(False):
            plain = _twice(run, context)
        figures[name] = _told(partial(_twice, run, context)) | {
            "ms_a_step_otherwise": plain["ms_a_step"],
            "equal_otherwise": plain["equal"],
        }
    figures["extraction"] = _told(lambda: {"equal": extracted(context) == extracted(context)})
    checked = [
        *figures["every_system"].values(),
        *(figures[name] for name in ("deeplab", "decouplednet", "extraction")),
    ]
    unequal = sum(not one["equal"] for one in checked)
    return {"figures": figures, "bars": {"runs that differ or are refused": bar(unequal, at_most=0)}}


class _Small:
    """A system as small as its tests have it, on labels of its own grid."""

    def __init__(self, name: str) -> None:
        self.module: Any = systems.load(name)
        self.entry = self.module.smallest()

    def steps(self, context: Context) -> tuple[nn.Module, Steps]:
        content = {"systems": {"small": self.entry}}
        training = reading.section(content, "systems.small.training", self.module.Training)
        torch.manual_seed(0)
        classifier = _classifier(linear=self.entry["start"] == "classifiers/linear")
        system: System = self.module.build(training, Origin(list(TAGS), classifier.backbone, classifier))
        learns = self.module.supervision(system.params, self.entry["labels"])
        kinds = {(True, True): None, (True, False): True, (False, True): False}[learns.masks, learns.tags]
        side = SIDE + system.input_offset
        pictures = Pictures(8, side, (side - 1) // system.label_stride + 1, strong=kinds)
        wanted = recipe(settings(toy=True), "deeplab", batch_size=4, learning_rate=RATE)
        return system, steps_of(system, pictures, wanted, Runtime("bf16"))


class _Regularised:
    """DeepLab with Self-Regulation, small: a loss of scores that are enlarged."""

    def steps(self, context: Context) -> tuple[nn.Module, Steps]:
        chosen = settings(toy=True)
        system = built(chosen, "deeplab_sr")
        trainee: Any = regularised(system, system.params.regularisers, len(TAGS))
        side = system.params.network.input_size
        wanted = recipe(chosen, "deeplab_sr", batch_size=4, learning_rate=RATE)
        return trainee, steps_of(trainee, Pictures(8, side, side), wanted, Runtime("bf16"))


class _Published:
    """VGG-16 DeepLab-LargeFOV as the profile `voc2012` has it."""

    def __init__(self, context: Context) -> None:
        self.training = Training(context, "deeplab")

    def steps(self, context: Context) -> tuple[nn.Module, Steps]:
        return self.training.made(learning_rate=RATE)


class _Decoupled:
    """DecoupledNet on VGG-16, whose unpooling and pixel loss torch would refuse."""

    def __init__(self, context: Context) -> None:
        self.settings = settings(context.toy)

    def steps(self, context: Context) -> tuple[nn.Module, Steps]:
        entry: Any = self.settings.classifiers["decoupled"]
        module: Any = systems.load("decouplednet")
        training = reading.section(
            {"systems": {"own": self.settings.systems["decouplednet"].model_dump(mode="json")}},
            "systems.own.training",
            module.Training,
        )
        torch.manual_seed(0)
        classifier = classifiers.build(entry.backbone, entry.head, len(TAGS))
        system = module.build(training, Origin(list(TAGS), entry.backbone, classifier))
        wanted = recipe(self.settings, "decouplednet", learning_rate=RATE)
        size = wanted.batch_size // wanted.accumulate
        side = entry.input_size
        wanted = wanted.model_copy(update={"batch_size": size, "accumulate": 1})
        return system, steps_of(system, Pictures(2 * size, side, side), wanted, Runtime("bf16"))


def _classifier(linear: bool) -> Classifier:
    """A random one on a VGG-16 of a sixteenth of the width."""
    trunk = BackboneParams(name="vgg16", weights="random", width=1 / 16, frozen_norm=False, stride=32, finer="dilated")
    if not linear:
        head = FullyConnectedParams(
            kind="fully_connected", width=24, kernel=2, padding=0, batch_norm=False, dropout=0.3
        )
        return classifiers.build(trunk, head, len(TAGS)).eval()
    views = Views(scales=(1.0,), flip=False)
    pooled = PooledParams(kind="pooled", input_size=SIDE, levels=1, pools=("mean", "max"), views=views)
    classifier = classifiers.build(trunk, pooled, len(TAGS)).eval()
    assert isinstance(classifier.head, PooledHead)
    for numbers in (classifier.head.weight, classifier.head.class_vectors):
        nn.init.normal_(numbers, std=0.5)
    return classifier


def _told(twice: Callable[[], Figures]) -> Figures:
    """What two runs gave; one that torch refuses, or that breaks, is told with the reason: others are asked all the
    same."""
    try:
        with deterministic(True):
            return twice()
    except Exception as error:
        return {"equal": False, "refused": f"{type(error).__name__}: {error}"[:300]}


def _twice(run: Any, context: Context) -> Figures:
    steps = TOY_STEPS if context.toy else STEPS
    (one, spent), (other, _) = (_run(run, context, steps) for _ in range(2))
    return {"equal": one == other, "ms_a_step": 1000 * spent}


def _run(run: Any, context: Context, steps: int) -> tuple[str, float]:
    """What losses, weights, statistics and gradients are after some steps, and seconds a step without the first."""
    model, iterator = run.steps(context)
    losses = [next(iterator).losses]
    context.wait()
    begin = time.perf_counter()
    losses += [next(iterator).losses for _ in range(steps - 1)]
    context.wait()
    spent = (time.perf_counter() - begin) / (steps - 1)
    iterator.close()
    told = torch.tensor([value for one in losses for value in one.values()], dtype=torch.float64)
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return fingerprint([told, *model.state_dict().values(), *gradients]), spent
