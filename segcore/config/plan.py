"""What each stage is handed of the parameters: nothing else of them can change its results.

`check_params` writes these as files, one a stage, which are the stages' dependencies in `dvc.yaml`. So a stage depends
on the very values that it uses, wherever in `params.yaml` they stand, and on no others.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from segcore.config.classifiers import FittedParams, TrainedParams
from segcore.config.data import CropsParams, EdgeParams, OnDisk, ShapesParams, SplitParams
from segcore.config.labels import (
    EvaluationParams,
    LabelsFromKnownTags,
    LabelsFromPredictions,
    LabelsParams,
)
from segcore.config.networks import BackboneParams
from segcore.config.settings import Settings
from segcore.config.systems import CROPS, SEGMENTERS, SystemEntry
from segcore.config.training import RecipeParams
from segcore.errors import Problem

WITHOUT_EFFECT = ("checkpoint_every", "workers")
"""Keys of a recipe that change no result, so that no stage depends on them."""


CUT = ("warp", "input_size")
"""What training uses of `crops`: how boxes are cut."""


@dataclass(frozen=True)
class Prepare:
    """Of `prepare`; only pictures that are generated need a seed."""

    seed: int | None
    dataset: OnDisk


@dataclass(frozen=True)
class Split:
    """Of `split`."""

    seed: int
    split: SplitParams


@dataclass(frozen=True)
class TrainClassifier:
    """Of `train_classifier@<name>` that learns step by step."""

    seed: int
    entry: TrainedParams
    recipe: RecipeParams


@dataclass(frozen=True)
class FitClassifier:
    """Of `train_classifier@<name>` whose head is fitted; weights that are random follow the seed."""

    seed: int
    entry: FittedParams


@dataclass(frozen=True)
class MakeCrops:
    """Of `make_crops`."""

    seed: int
    crops: CropsParams


@dataclass(frozen=True)
class ExtractPseudoLabels:
    """Of `extract_pseudo_labels@<name>`; a segmenter predicts by its own `prediction`, but at the entry's views."""

    seed: int
    entry: LabelsParams
    prediction: dict[str, Any] | None
    edges: EdgeParams | None


@dataclass(frozen=True)
class TrainSegmenter:
    """Of `train_segmenter@<system>`; crops are cut and warped as samples are drawn."""

    seed: int
    entry: SystemEntry
    recipe: RecipeParams
    crops: CropsParams | None


@dataclass(frozen=True)
class Evaluate:
    """Of `evaluate@<system>`; `edges` are those of a system that predicts by proposals."""

    prediction: dict[str, Any]
    evaluation: EvaluationParams
    edges: EdgeParams | None


@dataclass(frozen=True)
class Report:
    """Of `report`, which tells all parameters."""

    given: dict[str, Any]


def prepare(settings: Settings) -> Prepare:
    generated = isinstance(settings.dataset, ShapesParams)
    return Prepare(settings.seed if generated else None, settings.dataset)


def split(settings: Settings) -> Split:
    return Split(settings.seed, settings.split)


def train_classifier(settings: Settings, name: str) -> TrainClassifier | FitClassifier:
    entry = _chosen(name, settings.classifiers, "classifier")
    if isinstance(entry, FittedParams):
        return FitClassifier(settings.seed, entry)
    return TrainClassifier(settings.seed, entry, settings.recipes[entry.recipe])


def make_crops(settings: Settings) -> MakeCrops:
    return MakeCrops(settings.seed, settings.crops)


def extract_pseudo_labels(settings: Settings, name: str) -> ExtractPseudoLabels:
    entry = _chosen(name, settings.pseudo_labels, "pseudo-label set")
    if not isinstance(entry, LabelsFromPredictions | LabelsFromKnownTags):
        return ExtractPseudoLabels(settings.seed, entry, None, None)
    own = settings.systems[entry.input.removeprefix(f"{SEGMENTERS}/")].prediction
    own = own | {"views": entry.views.model_dump(mode="json"), "crf": None}
    return ExtractPseudoLabels(settings.seed, entry, own, _edges(settings, own))


def train_segmenter(settings: Settings, system: str) -> TrainSegmenter:
    entry = _chosen(system, settings.systems, "system")
    crops = settings.crops if entry.labels == CROPS else None
    return TrainSegmenter(settings.seed, entry, settings.recipes[entry.training["recipe"]], crops)


def evaluate(settings: Settings, system: str) -> Evaluate:
    prediction = _chosen(system, settings.systems, "system").prediction
    return Evaluate(prediction, settings.evaluation, _edges(settings, prediction))


def report(settings: Settings) -> Report:
    return Report(settings.given)


def _edges(settings: Settings, prediction: Mapping[str, Any]) -> EdgeParams | None:
    return settings.crops.edges if prediction.get("proposals") else None


def _chosen(name: str, entries: Mapping[str, Any], kind: str) -> Any:
    if name not in entries:
        raise Problem(f"there is no {kind} '{name}' in params.yaml; it has {', '.join(sorted(entries))}")
    return entries[name]


def files(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `check_params` writes: for each stage a path, relative and without ending, and its content."""
    for stage in (prepare, split, make_crops, report):
        yield stage.__name__, plain(stage(settings))
    for stage, names in (
        (train_classifier, settings.classifiers),
        (extract_pseudo_labels, settings.pseudo_labels),
        (train_segmenter, settings.systems),
        (evaluate, settings.systems),
    ):
        yield from ((f"{stage.__name__}/{name}", plain(stage(settings, name))) for name in names)


def backbones(settings: Settings) -> Iterator[tuple[str, BackboneParams]]:
    """The backbones, each of which a system may start from."""
    yield from settings.backbones.items()


def plain(plan: Any) -> dict[str, Any]:
    """A plan as JSON can hold it, of what changes a result: a system's `prediction` is no part of its training."""
    content: dict[str, Any] = {}
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        content[field.name] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if "recipe" in content:
        content["recipe"] = {key: value for key, value in content["recipe"].items() if key not in WITHOUT_EFFECT}
    if isinstance(plan, TrainSegmenter):
        del content["entry"]["prediction"]
        if plan.crops is not None:  # what boxes there are, the index of crops tells
            content["crops"] = {key: getattr(plan.crops, key) for key in CUT}
    return content
