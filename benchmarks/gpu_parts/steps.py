"""The project's own training steps, at the sizes of the profile `voc2012`, of pictures in memory."""

from collections.abc import Generator, Iterator
from typing import Any, cast

import torch

from benchmarks.gpu_parts.measuring import PROJECT, Figures
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
from segcore.training.fit import Fit, Progress

TAGS = tuple(f"tag_{number}" for number in range(1, 21))
QUIET = 0.2
"""What a ResNet's blocks with random weights add, over what a normalisation would let them."""

SLOW = 1e-6
"""Learning rate of what is only timed: random weights must not diverge."""


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


Steps = Generator[Progress, None, None]
"""One training step whenever the next is asked for, until it is closed."""


class Held:
    """Batches that lie on the device already, in the place of a stream of samples."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        for step in range(first, last):
            yield [self.batches[step % len(self.batches)]]


def steps_of(model: System, samples: Any, recipe: RecipeParams, runtime: Runtime, held: bool = True) -> Steps:
    """The steps of the project's own training, with its batches on the device beforehand or loaded as always."""
    fit = Fit(model, samples, recipe, 0, runtime, None)
    if held:
        batches = [next(iter(fit.stream.steps(number, number + 1)))[0] for number in range(2)]
        moved = [batch.to(runtime.device, recipe.channels_last) for batch in batches]
        fit.stream = Held(moved)  # type: ignore[assignment]
    return cast(Steps, iter(fit))
