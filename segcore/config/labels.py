"""The sections that make labels of pixels: CRFs, the losses of cues, pseudo-labels, evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segcore.config.refinements import (
    AffinityCandidates,
    AffinityParams,
    CRFParams,
    NetParams,
    RefinementCandidates,
    RefinementParams,
)
from segcore.config.section import (
    Count,
    Fraction,
    GridSize,
    Positive,
    Rate,
    Section,
    Threshold,
    Views,
)

Selection = Literal["stochastic", "general", "deterministic"]
"""Which hidden units a localisation map is made from: a random subset per window (FickleNet), ordinary dropout of
single units, or all of them."""


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


class _Objects(Section):
    """Background is where the tags' maps and a net that has learned from the masks of S what is any object at all, have
    no greater score together: m^(1 - share) p^share of the map m and the probability p."""

    kind: Literal["objects"]
    net: NetParams


class Objects(_Objects):
    """One setting of it."""

    score: Threshold
    share: Fraction
    """Of the net in the score; 0 is the constant alone."""


class Saliency(Section):
    """Background is where nothing stands out, by somebody's saliency maps."""

    kind: Literal["saliency"]
    root: str
    """A folder with <image id>.png, grey, bright where something stands out."""
    threshold: Threshold


class NoBackground(Section):
    """No cue of the background."""

    kind: Literal["none"]


BackgroundParams = Annotated[Gradient | Constant | Objects | Saliency | NoBackground, Field(discriminator="kind")]


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


class ConstantCandidates(Section):
    """Settings to choose among: every one of `score`, above which a tag has to be, so that every pixel is labelled."""

    kind: Literal["constant"]
    score: Annotated[tuple[Threshold, ...], Field(min_length=1)]


class ObjectsCandidates(_Objects):
    """Settings to choose among: every pair of `share` and `score`."""

    score: Annotated[tuple[Threshold, ...], Field(min_length=1)]
    share: Annotated[tuple[Fraction, ...], Field(min_length=1)]


BackgroundCandidates = Annotated[ConstantCandidates | ObjectsCandidates, Field(discriminator="kind")]


class Candidates(Section):
    """What calibration chooses from: every combination is tried on the masks of S, the first of equals is taken."""

    aggregations: Annotated[tuple[AggregationParams, ...], Field(min_length=1)]
    backgrounds: Annotated[tuple[BackgroundCandidates, ...], Field(min_length=1)]
    refinements: Annotated[tuple[RefinementCandidates, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_kind_once(self) -> "Candidates":
        for name, some in (("refinements", self.refinements), ("backgrounds", self.backgrounds)):
            kinds = [one.kind for one in some]
            if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
                raise ValueError(f"{name} must name each kind once, as it lists its settings; found {twice[0]} again")
        return self

    @model_validator(mode="after")
    def _walks_share_a_net(self) -> "Candidates":
        nets = [(one.radius, one.boundary) for one in self.refinements if isinstance(one, AffinityCandidates)]
        if any(net != nets[0] for net in nets):
            raise ValueError(
                "refinements: affinity and joint_affinity walk by one net of boundaries; give both the same radius and "
                "the same boundary"
            )
        return self


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
    Annotated[LabelsFromMaps | CalibratedLabels, Field(discriminator="calibrate")]
    | LabelsFromPredictions
    | LabelsFromKnownTags
    | LabelsFromFile,
    Field(discriminator="source"),
]


def learns_from_masks(entry: LabelsEntry) -> bool:
    """Whether labels of classifier's maps come from masks of S, too: by their settings or by a net."""
    return isinstance(entry, CalibratedLabels) or (
        isinstance(entry, LabelsFromMaps)
        and (isinstance(entry.refinement, AffinityParams) or isinstance(entry.background, Objects))
    )


class EvaluationParams(Section):
    """How predictions are scored; how they are made is each system's `prediction`."""

    batch_size: Count
    boundary_tolerance: Annotated[float, Field(gt=0, le=1)]
    """Distance within which boundaries match, as a fraction of the image diagonal."""
    panels: Count
