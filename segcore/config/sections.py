"""The sections of `params.yaml` as frozen, strict models without defaults: what may stand there and in which range.

A default in code would be a parameter that DVC cannot see.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Threshold = Annotated[float, Field(gt=0, lt=1)]
ModelPath = Annotated[str, Field(pattern=r"^data/(classifiers|segmenters)/[a-z][a-z0-9_]*/model$")]
"""The folder of a finished model."""


def _multiple_of_32(size: int) -> int:
    if size % 32:
        raise ValueError("must be a multiple of 32, as five poolings halve it")
    return size


InputSize = Annotated[int, Field(ge=32), AfterValidator(_multiple_of_32)]
GridSize = Annotated[int, Field(ge=33)]
"""Side of the input of a network that keeps a fine grid: 8 k + 1 pixels become k + 1 cells at stride 8."""


class Section(BaseModel):
    """A section of `params.yaml`: frozen, no unknown key, no conversion between types, no infinite number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ShapesParams(Section):
    """The embedded data set; see `segcore.importers.shapes`."""

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
    momentum: Rate
    weight_decay: NotNegative
    bias_multiplier: Positive
    """Learning rate of biases over that of weights and of normalisation; biases and normalisation never decay."""
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


class CropsParams(Section):
    """Combinatorial crops (Hong et al. 2015, section 5)."""

    per_subset: Count
    max_subsets: Count
    edges: Literal["gradient", "structured"]
    edge_model: str | None
    max_edge_fraction: Fraction
    min_overlap: Fraction
    """Share of a subset's foreground that a proposal must hold. The paper's sub-images enclose the foreground (section
    5): 1. Anything less is a departure, by which proposals may cut objects; there are more of them then."""
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


Selection = Literal["stochastic", "general", "deterministic"]
"""Which hidden units a localisation map is made from: a random subset per window (FickleNet), ordinary dropout of
single units, or all of them."""


class CRFParams(Section):
    """A fully connected CRF with two Gaussian kernels (Kraehenbuehl and Koltun 2011)."""

    iterations: Count
    """Steps of mean field."""
    appearance_weight: NotNegative
    appearance_xy: Positive
    """Standard deviation in pixels of the image at its own size."""
    appearance_rgb: Positive
    smoothness_weight: NotNegative
    smoothness_xy: Positive
    stride: Count
    """Every how many pixels it is computed, each way; what comes out is scaled up."""


class PseudoLabelParams(Section):
    """One `extract_pseudo_labels@<name>`: what the tags of images, or somebody's cues, say of their pixels."""

    images: Literal["weak", "strong"]
    source: Literal["classifier", "segmenter", "cues_file"]
    """Localisation maps of a classifier, predictions of a segmenter (for retraining), or published cues."""
    input: str
    """The folder of that model, or the .npz file with `image_ids` and `labels`."""
    input_size: GridSize
    """Side of the square that images are stretched to."""
    batch_size: Count
    selection: Selection
    rate: Rate
    passes: Annotated[int, Field(ge=1)]
    """Localisation maps N of an image and a tag."""
    form: Literal["factorised", "expanded", "naive"]
    theta: Threshold
    """A pixel belongs to a class if a map of it exceeds this, every map divided by its greatest value."""
    normalise: Literal["map", "image"]
    """Divide a map by its own greatest value, or by the greatest of all maps of its image and class."""
    background: Literal["gradient", "saliency", "none"]
    """SEC's gradient cue, saliency maps from a folder, or no background."""
    background_fraction: Threshold
    """gradient: the share of the pixels, those that matter least to the classes, that is background."""
    saliency_root: str | None
    """saliency: a folder with <image id>.png, grey, bright where something stands out."""
    saliency_threshold: Threshold
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """segmenter: sizes that it predicts at, as parts of `input_size`."""
    flip: bool
    """segmenter: predict the mirrored image too."""
    restrict_to_tags: bool
    """segmenter: only classes among the image's tags, and the background, may win."""
    crf: CRFParams | None
    """segmenter: refines its predictions before the greatest wins."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "PseudoLabelParams":
        if self.background == "saliency" and self.source == "classifier" and self.saliency_root is None:
            raise ValueError("background: saliency needs saliency_root, a folder with a grey PNG for each image")
        kinds = {"classifier": "classifiers", "segmenter": "segmenters"}
        if self.source in kinds and not re.match(rf"^data/{kinds[self.source]}/[a-z][a-z0-9_]*/model$", self.input):
            raise ValueError(
                f"source: {self.source} needs input data/{kinds[self.source]}/<name>/model, found {self.input!r}"
            )
        return self


class EvaluationParams(Section):
    """How predictions are made and scored."""

    batch_size: Count
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)]
    flip: bool
    crf: CRFParams | None
    """Also score the predictions that it refined: metrics with and without."""
    boundary_tolerance: Annotated[float, Field(gt=0, le=1)]
    """Distance within which boundaries match, as a fraction of the image diagonal."""
    panels: Count


class SystemEntry(BaseModel):
    """What every system's entry has; the rest is checked by the `Params` of its module."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    module: Name
    start: ModelPath
    """The model that it is built around, or goes on from."""
    images: Literal["strong", "weak"]
    """The list of the split that it learns from; a semi-supervised system names the strong images here."""
    labels: str
    """Where its labels come from: the crop index, the manifest (the masks themselves), or a folder of pseudo-labels."""
    recipe: Name

    @property
    def start_kind(self) -> str:
        """`classifiers` or `segmenters`."""
        return self.start.split("/")[1]

    @property
    def start_name(self) -> str:
        """The name of that classifier or system."""
        return self.start.split("/")[2]
