"""The sections that make networks: backbones, and the networks of segmenters."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from segcore.config.section import (
    Count,
    GridSize,
    InputSize,
    Rate,
    Section,
    Width,
)

NAMED_WEIGHTS = ("random", "imagenet", "package")
"""Weights that are no file of the user's."""

TIMM = "timm/"
"""What the names of timm's models begin with."""

BACKBONES = ("vgg16", "vgg16_bn", "resnet18", "resnet50", "resnet101", f"{TIMM}<model>")


def _known_backbone(name: str) -> str:
    if name not in BACKBONES[:-1] and not (name.startswith(TIMM) and name.removeprefix(TIMM)):
        raise ValueError(f"must be one of {', '.join(BACKBONES)}")
    return name


class BackboneParams(Section):
    """The network below the heads."""

    name: Annotated[str, AfterValidator(_known_backbone)]
    """One of `BACKBONES`."""
    weights: str
    """`random`, `imagenet` (downloaded), `package` (out of an installed one), or a `.safetensors` or `.pth` file."""
    width: Width
    """Channels over the published number; only VGG has small versions."""
    frozen_norm: bool
    """Batch normalisation keeps the statistics of the pre-training."""
    stride: Literal[8, 14, 16, 32]
    """Pixels of the image to one cell of the top map; of a vision transformer, the side of its patches."""
    finer: Literal["dilated", "cut"]
    """How a stride below 32 is had: the last levels are dilated instead of reduced, or left out (timm's only)."""

    @model_validator(mode="after")
    def _only_vgg_has_small_versions(self) -> "BackboneParams":
        if self.width != 1 and not self.name.startswith("vgg16"):
            raise ValueError(
                f"width {self.width} must be 1.0 for {self.name}; only vgg16 and vgg16_bn have small versions"
            )
        if self.finer == "cut" and not self.name.startswith(TIMM):
            raise ValueError(f"finer: cut must be dilated for {self.name}; only timm's trunks are cut")
        if self.stride == 14 and not self.name.startswith(TIMM):
            raise ValueError(f"stride 14 must be 8, 16 or 32 for {self.name}; only vision transformers of timm have it")
        if self.name.startswith(TIMM) and not isinstance(self, TimmParams):
            raise ValueError(f"normalisation: this key is missing for {self.name}; make it of TimmParams")
        return self


class TimmParams(BackboneParams):
    """One of timm's networks."""

    normalisation: Literal["torchvision", "timm"]
    """The mean and the deviation of colours that its weights want: torchvision's of ImageNet, or those that timm keeps
    for the model, which differ from one to the next, and between the weights of one model (`vit_small_patch16_224`:
    0.5 and 0.5, `vit_small_patch16_224.dino`: ImageNet's). A file does not say which, and with the wrong ones a network
    is a few points worse and nothing else shows it; so they are named here. They stay when the weights have learned."""

    @model_validator(mode="after")
    def _constants_are_those_of_the_weights(self) -> "TimmParams":
        wanted = {"package": "torchvision", "imagenet": "timm"}.get(self.weights, self.normalisation)
        if self.normalisation != wanted:
            raise ValueError(
                f"normalisation: {self.normalisation} must be {wanted} under weights: {self.weights}, as "
                + ("timm's own want" if wanted == "timm" else "what a package holds is turned to want")
            )
        return self


def _backbone_tag(value: Any) -> str:
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    return (TimmParams if isinstance(name, str) and name.startswith(TIMM) else BackboneParams).__name__


AnyBackbone = Annotated[
    Annotated[BackboneParams, Tag(BackboneParams.__name__)] | Annotated[TimmParams, Tag(TimmParams.__name__)],
    Discriminator(_backbone_tag),
]
"""One of `backbones`: its name says which keys it has."""


class DeconvolutionParams(Section):
    """One of `networks`: the mirror image of a trunk (Hong et al. 2015, section 4.3; Noh et al. 2015)."""

    kind: Literal["deconvolution"]
    width: Width
    """Channels of the bridging layers and of the levels without switches, over the published numbers."""
    output_stride: Literal[1, 2, 4]
    """Stride of the finest level; the published one has 1."""
    norm_batches: Count
    """Batches from which the statistics of batch normalisation are re-estimated after training."""
    norm_batch_size: Count


class GridParams(Section):
    """One of `networks`: DeepLab's, which scores classes on a fine grid."""

    kind: Literal["grid"]
    stride: Literal[8, 14, 16]
    """Pixels of the image to a cell of the grid of scores; 14 over vision transformers with such patches alone."""
    branches: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Dilations, in cells, of the branches whose scores are summed: (12,) or (6, 12, 18, 24)."""
    kernel: Count
    """Side of a branch's dilated convolution: 3 for a large field of view, 4 with the branch 4 for the small one."""
    width: Count
    """Channels of fc6 and fc7 over VGG-16 (published: 1024, small field of view 4096); other trunks have none."""
    dropout: Rate
    """Behind fc6 and fc7."""
    input_size: GridSize
    """Side of the training images."""

    @model_validator(mode="after")
    def _cells_fit(self) -> "GridParams":
        _check_cells(self.input_size, self.stride)
        return self

    @model_validator(mode="after")
    def _branches_have_a_centre(self) -> "GridParams":
        if self.kernel % 2 == 0 and any(branch % 2 for branch in self.branches):
            raise ValueError(
                f"branches {list(self.branches)} must be even under kernel {self.kernel}, or windows have no centre"
            )
        return self


class DualParams(Section):
    """One of `networks`: that of DIS, which explains an image by its classes and by its colours."""

    kind: Literal["dual"]
    stride: Literal[8, 14, 16]
    """Pixels of the image to a cell of the labelmap; 14 over vision transformers with such patches alone."""
    fusion_kernel: Count
    """Side of the last convolution, over labelmap and tags; odd. Not published."""
    input_size: GridSize
    """Side of the training images."""

    @model_validator(mode="after")
    def _fits(self) -> "DualParams":
        if self.fusion_kernel % 2 == 0:
            raise ValueError(f"fusion_kernel {self.fusion_kernel} must be odd, as it has a centre")
        _check_cells(self.input_size, self.stride)
        return self


class PyramidParams(Section):
    """One of `networks`: a decoder over all levels of a trunk (Lin et al. 2017)."""

    kind: Literal["pyramid"]
    top_width: Count
    """Channels that the top map is made before the decoder."""
    width: Count
    """Channels of every step of the decoder and of every level's projection."""
    output_stride: Literal[2, 4, 8, 16]
    """Pixels of the image to a cell of what comes out, where the trunk has a level so fine."""
    input_size: InputSize
    """Side of the training images."""


def _check_cells(input_size: int, stride: int) -> None:
    if (input_size - 1) % stride:
        below = input_size - (input_size - 1) % stride
        raise ValueError(
            f"input_size {input_size} must be a multiple of stride {stride} and one more, such as "
            f"{below} or {below + stride}"
        )


NetworkParams = Annotated[DeconvolutionParams | GridParams | DualParams | PyramidParams, Field(discriminator="kind")]
