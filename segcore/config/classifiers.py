"""The sections that make classifiers: their heads, and how each is trained or fitted."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from segcore.config.labels import Selection
from segcore.config.networks import AnyBackbone
from segcore.config.section import Cells, Count, InputSize, Name, Padding, Positive, Rate, Section, Side, Views


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


class PooledParams(Section):
    """A linear head on pooled features, fitted to features of fixed views that are computed once."""

    kind: Literal["pooled"]
    input_size: InputSize
    """Side of the padded squares that it sees at scale 1."""
    levels: Annotated[int, Field(ge=1, le=5)]
    """How many levels of the trunk are pooled, from the top."""
    pools: Annotated[tuple[Literal["mean", "max", "classes"], ...], Field(min_length=1, max_length=3)]
    """What is taken of the cells of a channel; `classes` are those that the backbone was pre-trained for."""
    views: Views
    """At which sizes, and mirrored or not, images are seen when it is fitted, and when many views find the tags."""

    @model_validator(mode="after")
    def _each_once(self) -> "PooledParams":
        if len({*self.pools}) < len(self.pools):
            raise ValueError(f"pools {list(self.pools)} must name mean, max or classes once each")
        return self


HeadParams = Annotated[
    FullyConnectedParams | StochasticParams | HiddenStochasticParams | PooledParams, Field(discriminator="kind")
]


class Alike(Section):
    """Every image counts the same for every tag."""

    kind: Literal["none"]


class Balanced(Section):
    """For each tag, the images that have it count together as much as those that lack it."""

    kind: Literal["balanced"]
    cap: Annotated[float, Field(ge=1)]
    """An image counts at most so many times, however seldom its tag is."""


class TrainedParams(Section):
    """One `train_classifier@<name>` that learns step by step, by one of `recipes`."""

    images: Literal["weak", "strong"]
    backbone: AnyBackbone
    head: HeadParams
    input_size: Annotated[int, Field(ge=32, le=4096)]
    resize: Side
    """Images are scaled so that their short side is this long, then randomly cut to `input_size`."""
    test_size: Annotated[int, Field(ge=32, le=4096)]
    """Side of the padded squares on which its tags are measured: the size that its segmenter predicts at."""
    recipe: Name
    class_weights: Balanced | None = None
    """How much tags seldom seen count. A key that does not apply does not exist: absent, all count alike."""

    @model_validator(mode="after")
    def _crop_fits(self) -> "TrainedParams":
        if self.resize < self.input_size:
            raise ValueError(f"resize {self.resize} must be at least input_size {self.input_size}")
        if not isinstance(self.head, FullyConnectedParams):
            return self
        stride = self.backbone.stride
        if stride in (8, 14):
            raise ValueError(f"backbone.stride {stride} must be 16 or 32 under a fully connected head")
        for name, size in (("input_size", self.input_size), ("test_size", self.test_size)):
            if size % 32:
                raise ValueError(f"{name} {size} must be a multiple of 32, as five poolings halve it")
        if self.head.kernel > self.input_size // stride + 2 * self.head.padding:
            cells = self.input_size // stride
            raise ValueError(f"head.kernel {self.head.kernel} exceeds the {cells} cells of the top map")
        return self


class FitParams(Section):
    """How a linear head is fitted: by what cross-validation on its own training images finds best."""

    strengths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=50)]
    """Strengths of the L2 penalty to choose among, by what each says of images that are left out; near 1."""
    class_weights: Annotated[Alike | Balanced, Field(discriminator="kind")]


class FittedParams(Section):
    """One `train_classifier@<name>` whose trunk stays as it is and whose head is fitted at once."""

    images: Literal["weak", "strong"]
    backbone: AnyBackbone
    head: PooledParams
    fit: FitParams

    @model_validator(mode="after")
    def _has_its_own_classes(self) -> "FittedParams":
        named = self.backbone.name.startswith("resnet") and self.backbone.weights != "random"
        if "classes" in self.head.pools and not named:
            raise ValueError(
                f"head.pools {list(self.head.pools)} must be without classes for {self.backbone.name} with weights "
                f"{self.backbone.weights}; only a ResNet with the weights of its pre-training has them"
            )
        return self


def _by_head(given: object) -> str:
    head = given.get("head") if isinstance(given, dict) else getattr(given, "head", None)
    kind = head.get("kind") if isinstance(head, dict) else getattr(head, "kind", None)
    return (FittedParams if kind == "pooled" else TrainedParams).__name__


ClassifierParams = Annotated[
    Annotated[TrainedParams, Tag("TrainedParams")] | Annotated[FittedParams, Tag("FittedParams")],
    Discriminator(_by_head),
]
"""One of `classifiers`; `backbone` is one of `backbones`. Its head says whether it is trained or fitted."""
