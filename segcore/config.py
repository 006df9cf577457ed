"""`params.yaml` as frozen, strictly checked models: the only reader of YAML.

No model has a default: a default in code would be a parameter that DVC cannot see. A typo, a wrong type or a value
out of range becomes one `Problems` that names every key, what was found and what is allowed.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from segcore.problems import Problem, Problems

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _multiple_of_32(size: int) -> int:
    if size % 32:
        raise ValueError("must be a multiple of 32, as five poolings halve it")
    return size


InputSize = Annotated[int, Field(ge=32), AfterValidator(_multiple_of_32)]


class Section(BaseModel):
    """A section of `params.yaml`: frozen, no unknown key, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShapesParams(Section):
    """The embedded data set; see `segcore.datasets.shapes`."""

    classes: Annotated[int, Field(ge=2, le=20)]
    train_images: Count
    val_images: Count
    size: InputSize
    max_objects: Annotated[int, Field(ge=1, le=8)]


class DatasetParams(Section):
    """Where the images, labels and tags come from."""

    layout: Literal["shapes", "voc"]
    root: str
    train_list: str
    val_list: str
    tags: Literal["masks", "annotations", "csv"]
    tags_file: str | None
    sbd_root: str | None
    convert_palette: bool
    shapes: ShapesParams

    @model_validator(mode="after")
    def _csv_needs_a_file(self) -> "DatasetParams":
        if self.tags == "csv" and self.tags_file is None:
            raise ValueError("tags: csv needs tags_file, a CSV with the columns image_id,tags")
        return self


class SplitParams(Section):
    """Which training images keep their masks (S) and which are used by their tags (W)."""

    strong: Literal["per_class", "list", "all"]
    strong_per_class: Count
    strong_list: str | None
    weak_includes_strong: bool

    @model_validator(mode="after")
    def _list_needs_a_file(self) -> "SplitParams":
        if self.strong == "list" and self.strong_list is None:
            raise ValueError("strong: list needs strong_list, a text file with one image id a line")
        return self


class RecipeParams(Section):
    """How a network is trained; one recipe may serve several classifiers or systems."""

    steps: Count
    batch_size: Count
    """Samples of one optimiser step, over all processes and accumulated micro-batches."""
    accumulate: Count
    """Micro-batches that a step is cut into; batch normalisation sees one at a time."""
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Positive
    momentum: Fraction
    weight_decay: NotNegative
    bias_multiplier: Positive
    """Learning rate of biases over that of weights; biases and normalisation never decay."""
    trunk_multiplier: NotNegative
    """Learning rate of a pre-trained trunk over that of new layers; 0 freezes it."""
    schedule: Literal["constant", "poly", "step"]
    poly_power: Positive
    step_every: Count
    step_factor: Fraction
    warmup_steps: Annotated[int, Field(ge=0)]
    clip_norm: Positive | None
    precision: Literal["auto", "fp32", "bf16"]
    channels_last: bool
    compile: bool
    checkpoint_every: Count
    workers: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _batch_divides(self) -> "RecipeParams":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        return self


class BackboneParams(Section):
    """The network below the heads."""

    name: str
    """`vgg16`, `vgg16_bn`, `resnet18`, `resnet50`, `resnet101`, or `timm/<model>`."""
    weights: str
    """`random`, `imagenet` (downloaded), or a local `.safetensors` or `.pth` file."""
    width: Positive
    """Channels over the published number; only VGG has small versions."""
    frozen_norm: bool
    """Batch normalisation keeps the statistics of the pre-training."""


class HeadParams(Section):
    """The non-linear convolutional head of DecoupledNet's classifier: fc6, fc7, score."""

    width: Count
    kernel: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]


class ClassifierParams(Section):
    """One `train_classifier@<name>`."""

    images: Literal["weak", "strong"]
    backbone: BackboneParams
    head: HeadParams
    input_size: InputSize
    resize: Count
    """Images are scaled so that their short side is this long, then randomly cut to `input_size`."""
    recipe: Name

    @model_validator(mode="after")
    def _crop_fits(self) -> "ClassifierParams":
        if self.resize < self.input_size:
            raise ValueError(f"resize {self.resize} must be at least input_size {self.input_size}")
        if self.head.kernel > self.input_size // 32:
            raise ValueError(f"head.kernel {self.head.kernel} exceeds the {self.input_size // 32} cells of the top map")
        return self


class CropsParams(Section):
    """Combinatorial crops (Hong et al. 2015, section 5)."""

    per_subset: Count
    max_subsets: Count
    edges: Literal["gradient", "structured"]
    edge_model: str | None
    max_edge_fraction: Fraction
    min_overlap: Fraction
    warp: Count
    """Side of the square that a box is warped to."""
    input_size: InputSize
    """Side of the random square cut from the warped box."""

    @model_validator(mode="after")
    def _fits(self) -> "CropsParams":
        if self.warp < self.input_size:
            raise ValueError(f"warp {self.warp} must be at least input_size {self.input_size}")
        if self.edges == "structured" and self.edge_model is None:
            raise ValueError("edges: structured needs edge_model, the path of a structured-forest model file")
        return self


class EvaluationParams(Section):
    """How predictions are made and scored."""

    batch_size: Count
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)]
    flip: bool
    boundary_tolerance: Annotated[float, Field(gt=0, le=1)]
    """Distance within which boundaries match, as a fraction of the image diagonal."""
    panels: Count


class SystemEntry(BaseModel):
    """What every system's entry has; the rest is checked by the `Params` of its module."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    module: Name
    classifier: Name
    recipe: Name


SectionType = TypeVar("SectionType", bound=BaseModel)


def read(path: Path) -> dict[str, Any]:
    """The plain content of a parameters file, as DVC reads it (YAML 1.2)."""
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise Problem(f"there is no parameters file {path}; start from one of profiles/*.yaml") from None
    except YAMLError as error:
        raise Problem(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise Problem(f"{path} must hold sections, found {type(content).__name__}")
    return content


def section(params: Mapping[str, Any], name: str, into: type[SectionType]) -> SectionType:
    """The section at the dotted `name`, checked.

    Raises:
        Problems: a key is missing, unknown, of another type or out of range; all of them are listed.
    """
    value: Any = params
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            have = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise Problem(f"params.yaml has no section '{name}': '{key}' is missing; here are {have}")
        value = value[key]
    try:
        # By way of JSON, so that a YAML list is taken for a tuple while types stay strict otherwise.
        return into.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise Problems("params.yaml has a mistake:", [_sentence(name, into, e) for e in error.errors()]) from None


def _sentence(name: str, into: type[BaseModel], error: Any) -> str:
    where = ".".join([name, *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(into, error["loc"][:-1]))
        close = difflib.get_close_matches(str(error["loc"][-1]), allowed, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{where}: unknown key; allowed here are {', '.join(allowed)}{hint}"
    if error["type"] == "missing":
        return f"{where}: this key is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: found {error['input']!r}; {message}" if error["loc"] else f"{where}: {message}"


def _fields_at(into: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    for part in loc:
        inner = into.model_fields[part].annotation if part in into.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        into = inner
    return list(into.model_fields)


class Settings:
    """Every section of a parameters file, checked when it is read.

    `systems` holds the entries every system shares; the part of a system's own module is checked by
    `segcore.systems.check`, which a stage calls before any work.
    """

    KEYS = ("seed", "dataset", "split", "recipes", "classifiers", "crops", "systems", "evaluation")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._reject_unknown_sections(params)
        self.raw = dict(params)
        seed = params["seed"]
        if type(seed) is not int or seed < 0:
            raise Problem(f"params.yaml: seed: found {seed!r}; it must be a whole number, 0 or more")
        self.seed: int = seed
        self.dataset = section(params, "dataset", DatasetParams)
        self.split = section(params, "split", SplitParams)
        self.crops = section(params, "crops", CropsParams)
        self.evaluation = section(params, "evaluation", EvaluationParams)
        self.recipes = {key: section(params, f"recipes.{key}", RecipeParams) for key in params["recipes"]}
        self.classifiers = {
            key: section(params, f"classifiers.{key}", ClassifierParams) for key in params["classifiers"]
        }
        self.systems = {key: section(params, f"systems.{key}", SystemEntry) for key in params["systems"]}
        self._check_references()

    def _reject_unknown_sections(self, params: Mapping[str, Any]) -> None:
        problems = [f"{key}: unknown section; allowed are {', '.join(self.KEYS)}" for key in params if key not in self.KEYS]
        problems += [f"{key}: this section is missing" for key in self.KEYS if key not in params]
        problems += [
            f"{key}: found {params[key]!r}; it must hold at least one named entry"
            for key in ("recipes", "classifiers", "systems")
            if key in params and not (isinstance(params[key], Mapping) and params[key])
        ]
        if problems:
            raise Problems("params.yaml has a mistake:", problems)

    def _check_references(self) -> None:
        wants = [(f"classifiers.{k}.recipe", c.recipe, self.recipes) for k, c in self.classifiers.items()]
        wants += [(f"systems.{k}.recipe", s.recipe, self.recipes) for k, s in self.systems.items()]
        wants += [(f"systems.{k}.classifier", s.classifier, self.classifiers) for k, s in self.systems.items()]
        problems = [
            f"{where}: found '{name}'; allowed are {', '.join(sorted(have))}" for where, name, have in wants if name not in have
        ]
        if problems:
            raise Problems("params.yaml has a mistake:", problems)


def load(path: Path) -> Settings:
    """Read and check a parameters file."""
    return Settings(read(path))
