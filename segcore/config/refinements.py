"""The sections of what draws labels to the borders of pictures: CRFs, PAMR, the walk that boundaries stop."""

from typing import Annotated, Literal

from pydantic import Field

from segcore.config.section import Count, NotNegative, Positive, Section, Threshold

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


class NetParams(Section):
    """A small net over the levels of the trunk that learns from the masks of S: where boundaries are, or objects."""

    width: Annotated[int, Field(ge=1, le=256)]
    """Channels that each level is reduced to."""
    steps: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=1, le=256)]
    learning_rate: Positive
    examples: Annotated[int, Field(ge=2, le=10_000)]
    """At most so many images of S, chosen at random: their levels are held in memory, some 3 MB each at 241 pixels."""


class _Affinity(Section):
    """A random walk that boundaries stop: m <- T^n m, T = D^-1 A^beta (IRN, Ahn et al. 2019)."""

    kind: Literal["affinity", "joint_affinity"]
    """affinity: of the maps alone, each then divided by its greatest value, as published; joint_affinity: of the maps
    and of what the net of the background `objects` finds, none divided, so that each value is an average of those
    around it."""
    radius: Annotated[int, Field(ge=2, le=12)]
    """Cells that one step of the walk reaches (published: 5), of the trunk's first level of stride 4 or more."""
    boundary: NetParams


class AffinityParams(_Affinity):
    """One setting of it."""

    beta: Positive
    """The greater, the less passes where there may be a boundary (published: 10)."""
    steps: WalkSteps
    """Steps n of the walk (published: 256)."""


RefinementParams = Annotated[NoRefinement | PAMRParams | LabelCRFParams | AffinityParams, Field(discriminator="kind")]


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
