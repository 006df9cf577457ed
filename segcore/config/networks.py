"""The sections of `params.yaml` that make networks: trunks, heads, classifiers."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from segcore.config.sections import Count, Name, Positive, Rate, Section, Selection

BACKBONES = ("vgg16", "vgg16_bn", "resnet18", "resnet50", "resnet101", "timm/<model>")


def _known_backbone(name: str) -> str:
    if name not in BACKBONES[:-1] and not (name.startswith("timm/") and name.removeprefix("timm/")):
        raise ValueError(f"must be one of {', '.join(BACKBONES)}")
    return name


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
    stride: Literal[8, 16, 32]
    """Pixels of the image to one cell of the top map; below 32 the last levels are dilated instead of reduced."""

    @model_validator(mode="after")
    def _only_vgg_has_small_versions(self) -> "BackboneParams":
        if self.width != 1 and not self.name.startswith("vgg16"):
            raise ValueError(
                f"width {self.width} must be 1.0 for {self.name}; only vgg16 and vgg16_bn have small versions"
            )
        return self


class FullyConnectedParams(Section):
    """The non-linear convolutional head of DecoupledNet's classifier: fc6, fc7, score."""

    kind: Literal["fully_connected"]
    width: Count
    kernel: Count
    """Side of fc6, and of the bridging layers of a segmenter around the classifier."""
    padding: Annotated[int, Field(ge=0)]
    """Zeros around the top map for fc6; the published network has none."""
    batch_norm: bool
    """Batch normalisation behind fc6 and fc7, without which they hardly learn from random weights."""
    dropout: Rate


class StochasticParams(Section):
    """FickleNet's head: an s x s kernel from the top map straight to the classes, behind random selections of its units
    (Lee et al. 2019, section 3.1)."""

    kind: Literal["stochastic"]
    kernel: Annotated[int, Field(ge=1)]
    """Side s of the windows; odd, so that they have a centre."""
    selection: Selection
    """How units are selected in training."""
    rate: Rate
    """Share p of the units that are dropped; the centre of a window never is, if the selection is stochastic."""
    rescale: bool
    """Divide units that are kept by 1 - p, as dropout does; not the centre, which is always kept."""
    form: Literal["factorised", "expanded", "naive"]
    """How it is computed: all three give the same."""

    @model_validator(mode="after")
    def _has_a_centre(self) -> "StochasticParams":
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, as a window needs a centre")
        return self


HeadParams = Annotated[FullyConnectedParams | StochasticParams, Field(discriminator="kind")]


class ClassifierParams(Section):
    """One `train_classifier@<name>`."""

    images: Literal["weak", "strong"]
    backbone: BackboneParams
    head: HeadParams
    input_size: Annotated[int, Field(ge=32)]
    resize: Count
    """Images are scaled so that their short side is this long, then randomly cut to `input_size`."""
    test_size: Annotated[int, Field(ge=32)]
    """Side of the padded squares on which its tags are measured: the size that its segmenter predicts at."""
    recipe: Name

    @model_validator(mode="after")
    def _crop_fits(self) -> "ClassifierParams":
        if self.resize < self.input_size:
            raise ValueError(f"resize {self.resize} must be at least input_size {self.input_size}")
        if isinstance(self.head, StochasticParams):
            return self
        if self.backbone.stride != 32:
            raise ValueError(f"backbone.stride {self.backbone.stride} must be 32 under a fully connected head")
        for name, size in (("input_size", self.input_size), ("test_size", self.test_size)):
            if size % 32:
                raise ValueError(f"{name} {size} must be a multiple of 32, as five poolings halve it")
        if self.head.kernel > self.input_size // 32 + 2 * self.head.padding:
            raise ValueError(f"head.kernel {self.head.kernel} exceeds the {self.input_size // 32} cells of the top map")
        return self
