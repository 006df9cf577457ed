"""Whether bf16 would train an entry faster on this machine: three steps in either precision, and what to set.

`python -m segcore.commands.precision --classifier decoupled`, or `--system deeplab`. The entry's own network is trained
at its own size and batch, on noise and from random weights, as speed depends on neither; nothing is written. A CPU with
units for bf16 may take a third of the time, or, of a network with depthwise convolutions, twice as long; so it is
measured. Nothing is chosen by itself, as the precision changes results. No stage of the pipeline.
"""

import statistics
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from segcore import systems
from segcore.cli import command, console
from segcore.config import plan as plans
from segcore.config.classifiers import TrainedParams
from segcore.config.networks import BackboneParams
from segcore.config.reading import section
from segcore.config.settings import Settings
from segcore.config.systems import BACKBONES, CROPS
from segcore.config.training import RecipeParams
from segcore.data.batches import Sample
from segcore.data.geometry import Grid
from segcore.data.manifest import read_class_names
from segcore.data.pictures import IGNORE
from segcore.errors import Problem
from segcore.networks import classifiers
from segcore.networks.origin import Origin
from segcore.processes import Runtime
from segcore.regularisers.contract import regularised
from segcore.training.fit import Fit

Precision = Literal["fp32", "bf16"]
WARM_UP, STEPS = 1, 3
WORTH = 0.9
"""The share of the time below which another precision is proposed: three steps on a busy machine tell no less."""


def main(*, classifier: str = "", system: str = "", params: Path = Path("params.yaml")) -> None:
    """Name one entry, of `classifiers` or of `systems`."""
    settings = command.settings(params)
    if bool(classifier) == bool(system):
        raise Problem("name one entry: --classifier NAME or --system NAME")
    names = read_class_names(params.parent / "data" / settings.dataset.name / "prepared/classes.json")
    if classifier:
        entry = plans.train_classifier(settings, classifier).entry
        if not isinstance(entry, TrainedParams):
            raise Problem(f"classifiers.{classifier}: its head is fitted and takes no steps; name one that is trained")
        place, recipe_name = f"classifiers.{classifier}", entry.recipe
    else:
        plan = plans.train_segmenter(settings, system)
        place, recipe_name = f"systems.{system}", plan.entry.training["recipe"]
    recipe = settings.recipes[recipe_name]
    both: tuple[Precision, ...] = ("fp32", "bf16")
    seconds: dict[Precision, float] = {one: _seconds(settings, place, names[1:], recipe, one) for one in both}
    for one, each in seconds.items():
        console.say(f"{place}: {each:.2f} s a step of {recipe.batch_size} in {one}")
    others = [name for name in _users(settings, recipe_name) if name != place]
    console.say(proposal(recipe_name, Runtime(recipe.precision).precision, seconds, others))


def proposal(recipe: str, now: str, seconds: dict[Precision, float], others: list[str]) -> str:
    """What to set, if the other precision than that of `now` is worth it; `others` are trained by the recipe, too."""
    other: Precision = "bf16" if now == "fp32" else "fp32"
    mine: Precision = "fp32" if now == "fp32" else "bf16"
    if seconds[other] >= WORTH * seconds[mine]:
        return f"recipes.{recipe}.precision may stay: {now} is not slower here"
    shared = f", which {', '.join(others)} would be trained in, too" if others else ""
    return (
        f"{other} would take {seconds[other]:.2f} s a step instead of {seconds[mine]:.2f} here: "
        f"set recipes.{recipe}.precision: {other}{shared}; results change by rounding"
    )


class Noise:
    """As many pictures as a step takes, which cost nothing to load; every other one is strong."""

    def __init__(self, count: int, size: int, cells: int, n_tags: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, n_tags + 1, (count, cells, cells), generator=generator, dtype=torch.uint8)
        self.labels[:, ::3] = IGNORE
        self.tags = torch.ones(n_tags)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, seed: int) -> Sample:
        return Sample(str(index), self.images[index], self.tags, self.labels[index], index % 2 == 0)


def _seconds(settings: Settings, place: str, tags: list[str], recipe: RecipeParams, precision: Precision) -> float:
    """The median of a few steps, after one that warms up."""
    model, size, cells = _model(settings, place, tags)
    recipe = recipe.model_copy(update={"steps": WARM_UP + STEPS, "workers": 0})
    noise = Noise(recipe.batch_size, size, cells, len(tags))
    return statistics.median(
        [step.seconds for step in Fit(model, noise, recipe, 0, Runtime(precision), None)][WARM_UP:]
    )


def _model(settings: Settings, place: str, tags: list[str]) -> tuple[nn.Module, int, int]:
    """An entry's network with random weights, the side of its pictures, and of their labels."""
    torch.manual_seed(0)
    kind, _, name = place.partition(".")
    if kind == "classifiers":
        entry = settings.classifiers[name]
        assert isinstance(entry, TrainedParams)  # as `main` sees to
        return classifiers.build(_random(entry.backbone), entry.head, len(tags)), entry.input_size, entry.input_size
    system = settings.systems[name]
    module = systems.load(system.module)
    training = section({"systems": {name: system.model_dump()}}, f"systems.{name}.training", module.Training)
    model = module.build(training, _origin(settings, name, tags))
    network = system.training.get("network", {})
    size = settings.crops.input_size if system.labels == CROPS else network["input_size"]
    return regularised(model, training.regularisers, len(tags)), size, Grid(size, model.label_stride).cells


def _origin(settings: Settings, system: str, tags: list[str]) -> Origin:
    """What the system starts from, with random weights."""
    kind, name = settings.origin_of(system)
    if kind == BACKBONES:
        return Origin(tags, _random(settings.backbones[name]), None)
    entry = settings.classifiers[name]
    backbone = _random(entry.backbone)
    return Origin(tags, backbone, classifiers.build(backbone, entry.head, len(tags)))


def _random(backbone: BackboneParams) -> BackboneParams:
    return backbone.model_copy(update={"weights": "random"})


def _users(settings: Settings, recipe: str) -> list[str]:
    """The entries that are trained by a recipe."""
    trained = {name: entry for name, entry in settings.classifiers.items() if isinstance(entry, TrainedParams)}
    found = [f"classifiers.{name}" for name, entry in trained.items() if entry.recipe == recipe]
    return found + [f"systems.{n}" for n, entry in settings.systems.items() if entry.training["recipe"] == recipe]


if __name__ == "__main__":
    command.start(main)
