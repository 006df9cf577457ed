"""The systems: one file each, found by its name. A system is a row of the result table."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor, nn

from segcore.config import reading
from segcore.config.sections import CropsParams
from segcore.data import crops
from segcore.data.batches import Batch
from segcore.data.manifest import Record
from segcore.data.samples import CropSamples
from segcore.errors import Problem, Problems
from segcore.losses import Term
from segcore.networks.classifiers import Classifier, FullyConnectedHead


@dataclass(frozen=True)
class Inputs:
    """What a system may make its training samples from.

    `images` are the ids of the entry's list of the split; `labels` is what its entry names: the crop index, the
    manifest (the masks themselves) or a folder of pseudo-labels.
    """

    records: dict[str, Record]
    images: list[str]
    labels: Path
    n_tags: int
    crops: CropsParams


class System(nn.Module, ABC):
    """What a method supplies; training and evaluation ask for nothing else.

    A module of this package has `Params` (its entry in `params.yaml`), a subclass of this class,
    `build(params, classifier) -> System` and `samples(params, inputs) -> SizedSamples`.
    """

    pretrained: tuple[str, ...] = ()
    """Prefixes of the parameters that start from a pre-training and learn `trunk_multiplier` times as fast."""

    proposals: int = 0
    """Object proposals an image is predicted by; 0 predicts it whole."""

    smallest_input: int = 32
    """Side of the smallest image it can predict, in pixels."""

    square: Literal["pad", "stretch"] = "pad"
    """How an image becomes the square that it predicts: black below and to the right, or its aspect given up."""

    input_step: int = 32
    input_offset: int = 0
    """Its squares have sides of `input_step` * k + `input_offset` pixels."""

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Term]:
        """The terms to sum and minimise, by the name they are logged under."""

    @abstractmethod
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """Scores of each class at each pixel, background first; the greatest wins. Images are RGB in 0..255."""

    def probabilities(self, scores: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
        """The probability of each class, from scores as `predict` gives them or means of such."""
        return scores.softmax(1)

    def finish(self, batches: Iterable[Batch]) -> None:
        """Called once after training with some training batches on the system's device."""

    def finishing_batches(self) -> tuple[int, int]:
        """How many batches of how many samples `finish` asks for."""
        return 0, 0


def fully_connected(classifier: Classifier) -> FullyConnectedHead:
    """The head of a classifier, for a system that goes on from its layers.

    Raises:
        Problem: it has no such layers.
    """
    if not isinstance(classifier.head, FullyConnectedHead):
        raise Problem(
            "this system goes on from the layers fc6 and fc7 of its classifier, which has none; "
            "set its `start` to a classifier with head.kind: fully_connected"
        )
    return classifier.head


def crop_samples(inputs: Inputs) -> CropSamples:
    """Training samples from the crop index.

    Raises:
        Problem: `labels` is no crop index, or one of other images.
    """
    advice = "this system learns from combinatorial crops; set its `labels` to the index that `make_crops` writes"
    if not inputs.labels.is_file():
        raise Problem(f"{inputs.labels} is no crop index; {advice}")
    try:
        index = pd.read_parquet(inputs.labels)
    except ValueError as error:  # what Arrow raises is one
        raise Problem(f"{inputs.labels} is no crop index ({error}); {advice}") from error
    if missing := {*crops.COLUMNS} - {*index.columns}:
        raise Problem(f"{inputs.labels} is no crop index, it lacks the columns {sorted(missing)}; {advice}")
    if strange := sorted({*index["image_id"]} - {*inputs.records}):
        raise Problem(f"{inputs.labels}: {strange[0]} is not in the manifest; run `dvc repro make_crops`")
    return CropSamples(index, inputs.records, inputs.n_tags, inputs.crops.warp, inputs.crops.input_size)


def names() -> list[str]:
    """The systems there are."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of a system.

    Raises:
        Problem: there is none of that name.
    """
    if name not in names():
        raise Problem(f"params.yaml: systems: unknown module '{name}'; segcore/systems has {', '.join(names())}")
    return import_module(f"{__name__}.{name}")


def check(entries: Mapping[str, Any]) -> None:
    """Check every entry of the section `systems` against its module's `Params`.

    Raises:
        Problems: all mistakes of all entries.
    """
    problems: list[str] = []
    for key, entry in entries.items():
        if entry["module"] not in names():
            problems.append(f"systems.{key}.module: found '{entry['module']}'; allowed are {', '.join(names())}")
            continue
        try:
            reading.section({"systems": entries}, f"systems.{key}", load(entry["module"]).Params)
        except Problems as found:
            problems += found.problems
    if problems:
        raise Problems("params.yaml has a mistake:", problems)
