"""The sections that make networks: backbones, heads, classifiers, the networks of segmenters."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from segcore.config.labels import Selection
from segcore.config.section import Cells, Count, GridSize, Name, Padding, Rate, Section, Side, Width

NAMED_WEIGHTS = ("random", "imagenet", "package")
"""Weights that are no file of the user's."""

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
    """`random`, `imagenet` (downloaded), `package` (out of an installed one), or a `.safetensors` or `.pth` file."""
    width: Width
    """Channels over the published number; only VGG has small versions."""
    frozen_norm: bool
    """Batch normalisation keeps the statistics of the pre-training."""
    stride: Literal[8, 16, 32]
    """Pixels of the image to one cell of the top map."""
    finer: Literal["dilated", "cut"]
    """How a stride below 32 is had: the last levels are dilated instead of reduced, or left out (timm's only)."""

    @model_validator(mode="after")
    def _only_vgg_has_small_versions(self) -> "BackboneParams":
        if self.width != 1 and not self.name.startswith("vgg16"):
            raise ValueError(
                f"width {self.width} must be 1.0 for {self.name}; only vgg16 and vgg16_bn have small versions"
            )
        if self.finer == "cut" and not self.name.startswith("timm/"):
            raise ValueError(f"finer: cut must be dilated for {self.name}; only timm's trunks are cut")
        return self


class FullyConnectedParams(Section):
    """The non-linear convolutional head of DecoupledNet's classifier: fc6, fc7, score."""

    kind: Literal["fully_connected"]
    width: Count
    kernel: Cells
    """Side of fc6, and of the bridging layers of a segmenter around the classifier."""
    padding: Padding
    """Zeros around the top map for fc6; the published network has none."""
    batch_norm: bool
    """Batch normalisation behind fc6 and fc7, without which they hardly learn from random weights."""
    dropout: Rate


class _Stochastic(Section):
    """FickleNet's head: an s x s kernel to the classes, behind random selections of its units (Lee et al. 2019,
    section 3.1)."""

    kernel: Cells
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
    def _has_a_centre(self) -> "_Stochastic":
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, as a window needs a centre")
        return self


class StochasticParams(_Stochastic):
    """As published: the kernel stands on the top map."""

    kind: Literal["stochastic"]


class HiddenStochasticParams(_Stochastic):
    """With a layer of 1 x 1 and ReLU between the top map and the kernel: over a trunk that does not learn, nothing else
    can learn under the selections."""

    kind: Literal["hidden_stochastic"]
    hidden: Count
    """Channels of that layer."""


HeadParams = Annotated[FullyConnectedParams | StochasticParams | HiddenStochasticParams, Field(discriminator="kind")]


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
    stride: Literal[8, 16]
    """Pixels of the image to a cell of the grid of scores."""
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
    stride: Literal[8, 16]
    """Pixels of the image to a cell of the labelmap."""
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


def _check_cells(input_size: int, stride: int) -> None:
    if (input_size - 1) % stride:
        below = input_size - (input_size - 1) % stride
        raise ValueError(
            f"input_size {input_size} must be a multiple of stride {stride} and one more, such as "
            f"{below} or {below + stride}"
        )


class ClassifierParams(Section):
    """One `train_classifier@<name>`; `backbone` is one of `backbones`, `recipe` one of `recipes`."""

    images: Literal["weak", "strong"]
    backbone: BackboneParams
    head: HeadParams
    input_size: Annotated[int, Field(ge=32, le=4096)]
    resize: Side
    """Images are scaled so that their short side is this long, then randomly cut to `input_size`."""
    test_size: Annotated[int, Field(ge=32, le=4096)]
    """Side of the padded squares on which its tags are measured: the size that its segmenter predicts at."""
    recipe: Name

    @model_validator(mode="after")
    def _crop_fits(self) -> "ClassifierParams":
        if self.resize < self.input_size:
            raise ValueError(f"resize {self.resize} must be at least input_size {self.input_size}")
        if not isinstance(self.head, FullyConnectedParams):
            return self
        stride = self.backbone.stride
        if stride == 8:
            raise ValueError(f"backbone.stride {stride} must be 16 or 32 under a fully connected head")
        for name, size in (("input_size", self.input_size), ("test_size", self.test_size)):
            if size % 32:
                raise ValueError(f"{name} {size} must be a multiple of 32, as five poolings halve it")
        if self.head.kernel > self.input_size // stride + 2 * self.head.padding:
            cells = self.input_size // stride
            raise ValueError(f"head.kernel {self.head.kernel} exceeds the {cells} cells of the top map")
        return self


NetworkParams = Annotated[DeconvolutionParams | GridParams | DualParams, Field(discriminator="kind")]
