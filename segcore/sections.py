"""The sections of `params.yaml` as frozen, strict models without defaults: what may stand there and in which range.

A default in code would be a parameter that DVC cannot see.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

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
