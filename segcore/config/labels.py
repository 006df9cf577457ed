"""The sections that make labels of pixels: CRFs, the losses of cues, pseudo-labels, evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segcore.config.section import (
    Count,
    GridSize,
    NotNegative,
    Positive,
    Rate,
    Section,
    Threshold,
    Views,
)

Selection = Literal["stochastic", "general", "deterministic"]
"""Which hidden units a localisation map is made from: a random subset per window (FickleNet), ordinary dropout of
single units, or all of them."""


class CRFParams(Section):
    """One of `crfs`: a fully connected CRF with two Gaussian kernels (Kraehenbuehl and Koltun 2011)."""

    iterations: Count
    """Steps of mean field."""
    appearance_weight: NotNegative
    appearance_xy: Positive
    """Standard deviation in pixels of the image at its own size."""
    appearance_rgb: Positive
    smoothness_weight: NotNegative
    smoothness_xy: Positive
    stride: Count
    """Every how many pixels of a picture it is computed, each way; what comes out is scaled up. A training grid is
    computed whole."""


class GrowingParams(Section):
    """How cues grow (Huang et al. 2018, section 3.3)."""

    theta_foreground: Threshold
    """Probability above which a pixel may join a region of a tag (published: 0.85)."""
    theta_background: Threshold
    """Probability that the background must exceed as well (published: 0.99); below `theta_foreground` idle."""


class CueLossParams(Section):
    """One of `cue_losses`: what systems that learn from cues have beside them."""

    crf: CRFParams
    """Draws the probabilities of the grid to the borders of the image, in every training step."""
    crf_scale: Positive
    """Pixels of the image to a cell, for the distances of the CRF (published: 12 at 41 x 41 cells)."""
    unary: Literal["log", "probability"]
    """What the CRF takes for the energy of a class: -log of its probability, or minus the probability itself, a much
    weaker belief in the network, as DSRG's published code has it."""
    boundary_ratio: tuple[Positive, Positive] | None
    """Bounds of the ratio of refined to predicted probability, beyond which the boundary loss teaches nothing
    (published: 0.05 and 20 in DSRG; null, without bounds, in SEC)."""
    growing: GrowingParams | None
    """Without, the seed loss sees the cues as they are."""

    @model_validator(mode="after")
    def _bounds_hold_one(self) -> "CueLossParams":
        if self.boundary_ratio is not None and not self.boundary_ratio[0] < 1 < self.boundary_ratio[1]:
            raise ValueError(
                f"boundary_ratio {list(self.boundary_ratio)} must be a bound below 1, then one above it, or null"
            )
        return self


class Gradient(Section):
    """Background is where the tags do not depend on the picture (SEC)."""

    kind: Literal["gradient"]
    fraction: Threshold
    """The share of the pixels, those that matter least to the classes, that is background."""


class Saliency(Section):
    """Background is where nothing stands out, by somebody's saliency maps."""

    kind: Literal["saliency"]
    root: str
    """A folder with <image id>.png, grey, bright where something stands out."""
    threshold: Threshold


class NoBackground(Section):
    """No cue of the background."""

    kind: Literal["none"]


BackgroundParams = Annotated[Gradient | Saliency | NoBackground, Field(discriminator="kind")]


class LabelsEntry(Section):
    """What the entries of `pseudo_labels` have in common."""

    images: Literal["weak", "strong"]
    input_size: GridSize
    """Side of the square that images are stretched to."""
    batch_size: Count


class LabelsFromMaps(LabelsEntry):
    """Localisation maps of a classifier with a stochastic head, merged (Lee et al. 2019, section 3.2)."""

    source: Literal["classifier"]
    input: Annotated[str, Field(pattern=r"^classifiers/[a-z][a-z0-9_]*$")]
    selection: Selection
    rate: Rate
    passes: Count
    """Localisation maps N of an image and a tag."""
    form: Literal["factorised", "expanded", "naive"]
    theta: Threshold
    """A pixel belongs to a class if a map of it exceeds this, every map divided by its greatest value."""
    normalise: Literal["map", "image"]
    """Divide a map by its own greatest value, or by the greatest of all maps of its image and class."""
    background: BackgroundParams


class LabelsFromPredictions(LabelsEntry):
    """Predictions of a segmenter, to train again on."""

    source: Literal["segmenter"]
    input: Annotated[str, Field(pattern=r"^segmenters/[a-z][a-z0-9_]*$")]
    views: Views
    restrict_to_tags: bool
    """Only classes among the image's tags, and the background, may win."""
    crf: CRFParams | None
    """Refines predictions before the greatest wins."""


class LabelsFromKnownTags(LabelsEntry):
    """What a class-conditioned segmenter makes of an image whose tags it is given."""

    source: Literal["decoupled"]
    input: Annotated[str, Field(pattern=r"^segmenters/[a-z][a-z0-9_]*$")]
    """A system that segments given tags, such as `decouplednet` or `decoupled_fpn`."""
    views: Views
    crf: CRFParams | None
    """Refines the probabilities first."""
    unknown: tuple[Threshold, Threshold] | None
    """Below the first probability in every tag a pixel is background, above the second in one it is that tag's, and in
    between unknown; null leaves no pixel unknown, the likeliest wins."""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> "LabelsFromKnownTags":
        if self.unknown is not None and not self.unknown[0] <= 0.5 <= self.unknown[1]:
            raise ValueError(
                f"unknown {list(self.unknown)} must be a bound of at most 0.5, then one of at least 0.5, or null"
            )
        return self


class LabelsFromFile(LabelsEntry):
    """Somebody's cues, as they are."""

    source: Literal["cues_file"]
    input: Annotated[str, Field(pattern=r"^cues/[^/\\]+\.npz$")]
    """A file with `image_ids` and `labels`, in the data set's folder: `data/<name>/cues/<file>.npz`."""


LabelsParams = Annotated[
    LabelsFromMaps | LabelsFromPredictions | LabelsFromKnownTags | LabelsFromFile, Field(discriminator="source")
]


class EvaluationParams(Section):
    """How predictions are scored; how they are made is each system's `prediction`."""

    batch_size: Count
    boundary_tolerance: Annotated[float, Field(gt=0, le=1)]
    """Distance within which boundaries match, as a fraction of the image diagonal."""
    panels: Count
