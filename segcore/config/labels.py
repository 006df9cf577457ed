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

Iterations = Annotated[int, Field(ge=1, le=100)]
WalkSteps = Annotated[int, Field(ge=1, le=1024)]


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


class Union(Section):
    """A place has the greatest of all of its maps, so that it is a member if any of them exceeds `theta` (published).
    Among members of several tags the greatest mean decides."""

    kind: Literal["union"]


class Mean(Section):
    """A place has the mean of its maps."""

    kind: Literal["mean"]


class Quantile(Section):
    """A place has the value that a share `q` of its maps does not exceed: of 0.5 the median, of 1 nearly the union."""

    kind: Literal["quantile"]
    q: Threshold


AggregationParams = Annotated[Union | Mean | Quantile, Field(discriminator="kind")]
"""What many maps of one tag become: one map of scores in 0..1."""


class Gradient(Section):
    """Background is where the tags do not depend on the picture (SEC)."""

    kind: Literal["gradient"]
    fraction: Threshold
    """The share of the pixels, those that matter least to the classes, that is background."""


class Constant(Section):
    """Background is where no tag has a greater score; between it and `theta` nothing is known."""

    kind: Literal["constant"]
    score: Threshold


class Saliency(Section):
    """Background is where nothing stands out, by somebody's saliency maps."""

    kind: Literal["saliency"]
    root: str
    """A folder with <image id>.png, grey, bright where something stands out."""
    threshold: Threshold


class NoBackground(Section):
    """No cue of the background."""

    kind: Literal["none"]


BackgroundParams = Annotated[Gradient | Constant | Saliency | NoBackground, Field(discriminator="kind")]


class NoRefinement(Section):
    """Maps as they are."""

    kind: Literal["none"]


class _PAMR(Section):
    """Pixel-adaptive refinement of the maps: nothing is learned (Araslanov and Roth 2020)."""

    kind: Literal["pamr"]
    dilations: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=12)]
    """Distances of the 8 neighbours (published: 1, 2, 4, 8, 12, 24)."""
    long_side: Annotated[int, Field(ge=16, le=640)]
    """Pixels of the long side of the picture that it works on."""


class PAMRParams(_PAMR):
    """One setting of it."""

    iterations: Iterations
    """Published: 10."""


class _LabelCRF(Section):
    """A fully connected CRF that starts from labels, each of which it believes to `confidence`."""

    kind: Literal["crf"]
    crf: CRFParams
    long_side: Annotated[int, Field(ge=16, le=128)]
    """Pixels of the long side of the picture that it works on: its time grows with the fourth power."""


class LabelCRFParams(_LabelCRF):
    """One setting of it."""

    confidence: Threshold
    """Probability of the label of a pixel, all others of the image share the rest (published by IRN: 0.7)."""


class BoundaryParams(Section):
    """A small net that finds boundaries of objects in the levels of the trunk, learned from the masks of S."""

    width: Annotated[int, Field(ge=1, le=256)]
    """Channels that each level is reduced to."""
    steps: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=1, le=256)]
    learning_rate: Positive
    examples: Count
    """At most so many images of S, chosen at random: their levels are held in memory, some 3 MB each at 241 pixels."""


class _Affinity(Section):
    """A random walk of the maps that boundaries stop: m <- T^n m, T = D^-1 A^beta (IRN, Ahn et al. 2019)."""

    kind: Literal["affinity"]
    radius: Annotated[int, Field(ge=2, le=12)]
    """Cells that one step of the walk reaches (published: 5), of the trunk's first level of stride 4 or more."""
    boundary: BoundaryParams


class AffinityParams(_Affinity):
    """One setting of it."""

    beta: Positive
    """The greater, the less passes where there may be a boundary (published: 10)."""
    steps: WalkSteps
    """Steps n of the walk (published: 256)."""


RefinementParams = Annotated[NoRefinement | PAMRParams | LabelCRFParams | AffinityParams, Field(discriminator="kind")]


class LabelsEntry(Section):
    """What the entries of `pseudo_labels` have in common."""

    images: Literal["weak", "strong"]
    input_size: GridSize
    """Side of the square that images are stretched to."""
    batch_size: Count


class MapsEntry(LabelsEntry):
    """Localisation maps of a classifier with a stochastic head, merged (Lee et al. 2019, section 3.2)."""

    source: Literal["classifier"]
    input: Annotated[str, Field(pattern=r"^classifiers/[a-z][a-z0-9_]*$")]
    selection: Selection
    rate: Rate
    passes: Count
    """Localisation maps N of an image and a tag at each view."""
    form: Literal["factorised", "expanded", "naive"]
    normalise: Literal["map", "image"]
    """Divide a map by its own greatest value, or by the greatest of all maps of its image and class at its view."""
    views: Views
    """At which sizes, and mirrored or not, maps are made; all are merged on the grid of `input_size` (published:
    one view)."""


class LabelsFromMaps(MapsEntry):
    """What makes labels of the maps is given."""

    calibrate: None
    aggregation: AggregationParams
    theta: Threshold
    """A pixel belongs to a class if its score exceeds this, every map divided by its greatest value."""
    background: BackgroundParams
    refinement: RefinementParams


class PAMRCandidates(_PAMR):
    """Settings to choose among: every one of `iterations`."""

    iterations: Annotated[tuple[Iterations, ...], Field(min_length=1)]


class LabelCRFCandidates(_LabelCRF):
    """Settings to choose among: every one of `confidence`."""

    confidence: Annotated[tuple[Threshold, ...], Field(min_length=1)]


class AffinityCandidates(_Affinity):
    """Settings to choose among: every pair of `beta` and `steps`."""

    beta: Annotated[tuple[Positive, ...], Field(min_length=1)]
    steps: Annotated[tuple[WalkSteps, ...], Field(min_length=1)]


RefinementCandidates = Annotated[
    NoRefinement | PAMRCandidates | LabelCRFCandidates | AffinityCandidates, Field(discriminator="kind")
]


class Candidates(Section):
    """What calibration chooses from: every combination is tried on the masks of S, the first of equals is taken."""

    aggregations: Annotated[tuple[AggregationParams, ...], Field(min_length=1)]
    scores: Annotated[tuple[Threshold, ...], Field(min_length=1)]
    """Constant scores of the background, above which a tag has to be, so that every pixel is labelled."""
    refinements: Annotated[tuple[RefinementCandidates, ...], Field(min_length=1)]


class CalibratedLabels(MapsEntry):
    """What makes labels of the maps is chosen on the masks of S, and on nothing else."""

    calibrate: Literal["strong"]
    folds: Annotated[int, Field(ge=2, le=100)]
    """Parts of S for cross-validation: what is learned from masks is judged on those of another part."""
    candidates: Candidates


class LabelsFromPredictions(LabelsEntry):
    """Predictions of a segmenter, to train again on."""

    source: Literal["segmenter"]
    input: Annotated[str, Field(pattern=r"^segmenters/[a-z][a-z0-9_]*$")]
    views: Views
    restrict_to_tags: bool
    """Only classes among the image's tags, and the background, may win."""
    crf: CRFParams | None
    """Refines predictions before the greatest wins."""


class LabelsFromFile(LabelsEntry):
    """Somebody's cues, as they are."""

    source: Literal["cues_file"]
    input: Annotated[str, Field(pattern=r"^cues/[^/\\]+\.npz$")]
    """A file with `image_ids` and `labels`, in the data set's folder: `data/<name>/cues/<file>.npz`."""


LabelsParams = Annotated[
    Annotated[LabelsFromMaps | CalibratedLabels, Field(discriminator="calibrate")]
    | LabelsFromPredictions
    | LabelsFromFile,
    Field(discriminator="source"),
]


def learns_from_masks(entry: LabelsEntry) -> bool:
    """Whether labels of classifier's maps come from masks of S, too: by their settings or by a net of boundaries."""
    return isinstance(entry, CalibratedLabels) or (
        isinstance(entry, LabelsFromMaps) and isinstance(entry.refinement, AffinityParams)
    )


class EvaluationParams(Section):
    """How predictions are scored; how they are made is each system's `prediction`."""

    batch_size: Count
    boundary_tolerance: Annotated[float, Field(gt=0, le=1)]
    """Distance within which boundaries match, as a fraction of the image diagonal."""
    panels: Count
