"""`params.yaml` as frozen, strictly checked models: the only reader of YAML.

No model has a default: a default in code would be a parameter that DVC cannot see. A typo, a wrong type or a value
out of range becomes one `Problems` that names every key, what was found and what is allowed.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from segcore.problems import Problem, Problems

NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _multiple_of_32(size: int) -> int:
    if size % 32:
        raise ValueError("must be a multiple of 32, as five poolings halve it")
    return size


InputSize = Annotated[int, Field(ge=32), AfterValidator(_multiple_of_32)]

BACKBONES = ("vgg16", "vgg16_bn", "resnet18", "resnet50", "resnet101", "timm/<model>")


def _known_backbone(name: str) -> str:
    if name not in BACKBONES[:-1] and not (name.startswith("timm/") and name.removeprefix("timm/")):
        raise ValueError(f"must be one of {', '.join(BACKBONES)}")
    return name


class Section(BaseModel):
    """A section of `params.yaml`: frozen, no unknown key, no conversion between types, no infinite number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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
    """Micro-batches that a step is cut into, each weighing the same; batch normalisation sees one at a time."""
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
    """auto: bf16 on a GPU that has it, else fp32. A CPU uses bf16 only when told to, so that all give the same."""
    channels_last: bool
    compile: bool
    """Whether torch.compile makes the network faster; on a CPU that needs a C++ compiler."""
    checkpoint_every: Count
    """Steps after which a run that is killed can go on."""
    workers: Annotated[int, Field(ge=0)]
    """Processes that load images ahead; they change no result."""

    @model_validator(mode="after")
    def _batch_divides(self) -> "RecipeParams":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        return self


class BackboneParams(Section):
    """The network below the heads."""

    name: Annotated[str, AfterValidator(_known_backbone)]
    """One of `BACKBONES`."""
    weights: str
    """`random`, `imagenet` (downloaded), or a local `.safetensors` or `.pth` file."""
    width: Positive
    """Channels over the published number; only VGG has small versions."""
    frozen_norm: bool
    """Batch normalisation keeps the statistics of the pre-training."""

    @model_validator(mode="after")
    def _only_vgg_has_small_versions(self) -> "BackboneParams":
        if self.width != 1 and not self.name.startswith("vgg16"):
            raise ValueError(
                f"width {self.width} must be 1.0 for {self.name}; only vgg16 and vgg16_bn have small versions"
            )
        return self


class HeadParams(Section):
    """The non-linear convolutional head of DecoupledNet's classifier: fc6, fc7, score."""

    width: Count
    kernel: Count
    """Side of fc6, and of the bridging layers of a segmenter around the classifier."""
    padding: Annotated[int, Field(ge=0)]
    """Zeros around the top map for fc6; the published network has none."""
    batch_norm: bool
    """Batch normalisation behind fc6 and fc7, without which they hardly learn from random weights."""
    dropout: Annotated[float, Field(ge=0, lt=1)]


class ClassifierParams(Section):
    """One `train_classifier@<name>`."""

    images: Literal["weak", "strong"]
    backbone: BackboneParams
    head: HeadParams
    input_size: InputSize
    resize: Count
    """Images are scaled so that their short side is this long, then randomly cut to `input_size`."""
    test_size: InputSize
    """Side of the padded squares on which its tags are measured: the size that its segmenter predicts at."""
    recipe: Name

    @model_validator(mode="after")
    def _crop_fits(self) -> "ClassifierParams":
        if self.resize < self.input_size:
            raise ValueError(f"resize {self.resize} must be at least input_size {self.input_size}")
        if self.head.kernel > self.input_size // 32 + 2 * self.head.padding:
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

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

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
    except OSError as error:
        raise Problem(f"the parameters file {path} cannot be read ({error.strerror})") from None
    except (YAMLError, UnicodeDecodeError) as error:
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
        # What JSON lacks, a date for one, becomes text.
        return into.model_validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise Problems("params.yaml has a mistake:", [_sentence(name, into, e) for e in error.errors()]) from None


def _sentence(name: str, into: type[BaseModel], error: Any) -> str:
    where = ".".join([name, *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(into, error["loc"][:-1]))
        hint = _hint(str(error["loc"][-1]), allowed)
        return f"{where}: unknown key, found {error['input']!r}; allowed here are {', '.join(allowed)}{hint}"
    if error["type"] == "missing":
        return f"{where}: this key is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if isinstance(error["input"], Mapping) and error["type"] == "value_error":
        return f"{where}: {message}"  # the message of a rule over several keys names what it found
    return f"{where}: found {error['input']!r}; {message}"


def _hint(found: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(found), list(allowed), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


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
    NAMED = ("recipes", "classifiers", "systems")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._problems = list(self._unknown_or_missing(params))
        self._raise_problems()
        self.raw = dict(params)
        self.seed = self._checked_seed(params["seed"])
        self.dataset = self._checked("dataset", DatasetParams)
        self.split = self._checked("split", SplitParams)
        self.crops = self._checked("crops", CropsParams)
        self.evaluation = self._checked("evaluation", EvaluationParams)
        self.recipes = {key: self._checked(f"recipes.{key}", RecipeParams) for key in params["recipes"]}
        self.classifiers = {key: self._checked(f"classifiers.{key}", ClassifierParams) for key in params["classifiers"]}
        self.systems = {key: self._checked(f"systems.{key}", SystemEntry) for key in params["systems"]}
        self._raise_problems()
        self._problems += self._broken_references()
        self._raise_problems()

    def _raise_problems(self) -> None:
        if self._problems:
            raise Problems("params.yaml has a mistake:", self._problems)

    def _unknown_or_missing(self, params: Mapping[str, Any]) -> Iterator[str]:
        for key in params:
            if key not in self.KEYS:
                yield f"{key}: unknown section; allowed are {', '.join(self.KEYS)}{_hint(key, self.KEYS)}"
        for key in self.KEYS:
            if key not in params:
                yield f"{key}: this section is missing"
            elif key in self.NAMED and not (isinstance(params[key], Mapping) and params[key]):
                yield f"{key}: found {params[key]!r}; it must hold at least one named entry"
            elif key in self.NAMED:
                # A name becomes part of folders and of DVC's stages.
                odd = [name for name in params[key] if not re.fullmatch(NAME, str(name))]
                yield from (f"{key}: found the name {name!r}; allowed are names like 'my_name_2'" for name in odd)

    def _checked_seed(self, seed: Any) -> int:
        if type(seed) is int and seed >= 0:
            return seed
        self._problems.append(f"seed: found {seed!r}; must be a whole number, 0 or more")
        return 0

    def _checked(self, name: str, into: type[SectionType]) -> SectionType:
        try:
            return section(self.raw, name, into)
        except Problems as found:
            self._problems += found.problems
            return into.model_construct()  # seen by nobody: the problems are raised once all are known

    def _broken_references(self) -> Iterator[str]:
        wants = [(f"classifiers.{k}.recipe", c.recipe, self.recipes) for k, c in self.classifiers.items()]
        wants += [(f"systems.{k}.recipe", s.recipe, self.recipes) for k, s in self.systems.items()]
        wants += [(f"systems.{k}.classifier", s.classifier, self.classifiers) for k, s in self.systems.items()]
        for where, name, have in wants:
            if name not in have:
                yield f"{where}: found '{name}'; allowed are {', '.join(sorted(have))}{_hint(name, have)}"
        cells = self.crops.input_size // 32
        for key, system in self.systems.items():
            classifier = self.classifiers.get(system.classifier)
            if classifier is not None and classifier.head.kernel > cells + 2 * classifier.head.padding:
                yield (
                    f"systems.{key}: classifiers.{system.classifier}.head.kernel {classifier.head.kernel} exceeds "
                    f"the {cells} cells of the top map at crops.input_size {self.crops.input_size}"
                )


def load(path: Path) -> Settings:
    """Read and check a parameters file."""
    return Settings(read(path))
