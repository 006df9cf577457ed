"""Self-Regulation: shallow features teach deep ones, deep tags teach shallow ones, all learn the labels.

Zhang, Zhang, Tang, Hua and Sun, "Self-Regulation for Semantic Segmentation", ICCV 2021. Exits 1 to N stand on the
levels of the trunk; the last is the system itself, by its own scores. The loss is

    lambda_1 L_MEA + lambda_2 L_SR-F + lambda_3 L_SR-L

* L_MEA (`exits`): every exit learns the tags of the image and the labels of its pixels;
* L_SR-F (`features`): sum over i = 2..N of L_ce^tau(T^[1], S^[i]), T and S being features: exit 1 keeps small parts;
* L_SR-L (`logits`): sum over k = 1..N-1 of L_ce^tau(T^[N], S^[k]), of the scores of tags: exit N knows the whole.

L_ce^tau is `losses.distillation_loss`. No teacher receives a gradient. The source prints S^[1] for S^[i] in L_SR-F,
whose sum runs over i: a misprint. After `warmup` all count; before, L_MEA alone.

Where the source is silent, or its authors' demo (which `kind: hard`, `first_exit: 2` and `kind: sigmoid` repeat) does
otherwise:

* heads are the demo's, but read levels that were brought to the grid of the top map (`networks.exits`);
* the last exit has no head, so its features are the top map behind a 1x1 convolution that only training has;
* the last exit's loss on pixels is the system's own, whatever that is, and is not added again;
* the last exit's tags may be read from its features (`exits.last`): tags of images without masks, read from scores,
  pull at the scores of every place;
* pixels of label 255 are left out, where the demo takes them for background; weak samples have tags, and cues if any;
* the presence of the background is not asked for, as no tag tells it;
* heads normalise by the batch, where the demo trains with statistics that are never estimated.
"""

from typing import Annotated, Any, Literal

from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.section import Count, NotNegative, Positive, Rate, Section
from segcore.data.batches import Batch
from segcore.errors import Problem
from segcore.losses import (
    Term,
    added,
    binary_distillation_loss,
    distillation_loss,
    pixel_cross_entropy,
    tag_cross_entropy,
)
from segcore.networks.exits import Exit, tag_scorer
from segcore.regularisers.contract import Regulariser, weighted
from segcore.systems.contract import OpenSystem, Outputs


class Exits(Section):
    """L_MEA, of all exits."""

    weight: NotNegative
    """lambda_1."""
    tags: NotNegative
    """Weight within it of the binary cross-entropy of tags (the demo: 0.2)."""
    pixels: NotNegative
    """Weight within it of the softmax cross-entropy of known pixels (the demo: 0.8)."""
    last: Literal["scores", "features"] = "scores"
    """What the last exit reads its tags from: the mean of the system's scores (the demo), or that of its top map, where
    tags teach the trunk and pull at no score. A key that may be absent: it is as in the demo then."""


class Distilled(Section):
    """L_SR-F as published, between feature maps: a softmax over their channels at each place."""

    kind: Literal["distilled"]
    weight: NotNegative
    """lambda_2."""
    temperature: Positive
    """tau; not published."""


class Hard(Section):
    """L_SR-F as in the demo: the class that exit 1 scores highest is the label of the others, at every place."""

    kind: Literal["hard"]
    weight: NotNegative
    """lambda_2."""


class Logits(Section):
    """L_SR-L, between scores of tags."""

    kind: Literal["softmax", "sigmoid"]
    """One distribution over the tags, as published, or one for each tag, as an image shows several."""
    weight: NotNegative
    """lambda_3."""
    temperature: Positive
    """tau; not published."""


class Params(Section):
    """What an entry says under `regularisers.self_regulation`. Weights of 0 leave the plain system, bit for bit."""

    first_exit: Literal[2, 4, 8]
    """Pixels to a cell of the finest level that has an exit: 4 is layer1 of a ResNet, 2 its conv1 (the demo)."""
    width: Count
    """Channels of the exits' features (the demo: 256)."""
    warmup: Rate
    """The share of the steps before `features` and `logits` count (the demo: 10,000 of 40,000)."""
    exits: Exits
    features: Annotated[Distilled | Hard, Field(discriminator="kind")] | None
    logits: Logits | None


class SelfRegulation(Regulariser):
    """Exits on the inner levels of a trunk, and their losses.

    Args:
        levels: the index of each level that has an exit, finest first, without the top one.
        channels: of all levels.
        strides: of all levels, in pixels to a cell.
        label_stride: pixels to a label of the batch.
    """

    def __init__(
        self,
        params: Params,
        levels: list[int],
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        label_stride: int,
        n_tags: int,
    ) -> None:
        super().__init__()
        self.params = params
        self.levels = levels
        self.every = max(1, strides[-1] // label_stride)
        self.heads = nn.ModuleList(
            Exit(channels[level], params.width, n_tags + 1, strides[-1] // strides[level]) for level in levels
        )
        self.tags = nn.ModuleList(tag_scorer(n_tags) for _ in range(len(levels) + 1))
        if params.exits.last == "features":
            self.tags[-1] = nn.Linear(channels[-1], n_tags)
        distilled = isinstance(params.features, Distilled)
        self.projection = nn.Conv2d(channels[-1], params.width, 1) if distilled else None

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """`pixels` and `tags` of L_MEA, `features`, `logits`; summed over exits, averaged over pixels and images."""
        params, size = self.params, (outputs.levels[-1].shape[2], outputs.levels[-1].shape[3])
        exits = [head(outputs.levels[level], size) for head, level in zip(self.heads, self.levels, strict=True)]
        features, scores = [feature for feature, _ in exits], [score for _, score in exits]
        last = outputs.scores if params.exits.last == "scores" else outputs.levels[-1]
        logits = [scorer(read.mean((2, 3))) for scorer, read in zip(self.tags, [*scores, last], strict=True)]
        labels = self._at_grid(batch.labels, size)
        pixels = added([pixel_cross_entropy(score, labels) for score in scores])
        tags = added([tag_cross_entropy(logit, batch.tags) for logit in logits])
        terms = {
            "pixels": weighted(pixels, params.exits.weight * params.exits.pixels),
            "tags": weighted(tags, params.exits.weight * params.exits.tags),
        }
        counts = 1.0 if batch.moment.elapsed >= params.warmup else 0.0
        if params.features is not None:
            shallow = self._shallow_to_deep(features, [*scores, outputs.scores], outputs.levels[-1])
            terms["features"] = weighted(shallow, params.features.weight * counts)
        if params.logits is not None:
            terms["logits"] = weighted(self._deep_to_shallow(logits, params.logits), params.logits.weight * counts)
        return terms

    def _at_grid(self, labels: Int64[Tensor, "B H W"], size: tuple[int, int]) -> Int64[Tensor, "B h w"]:
        """The label that each cell of the grid lies at."""
        return labels[:, :: self.every, :: self.every][:, : size[0], : size[1]]

    def _shallow_to_deep(
        self,
        features: list[Float[Tensor, "B W h w"]],
        scores: list[Float[Tensor, "B K _ _"]],
        top: Float[Tensor, "B C h w"],
    ) -> Term:
        """L_SR-F: of features, to which that of the last exit is added here, or of the scores of all exits."""
        if isinstance(self.params.features, Distilled):
            assert self.projection is not None
            teacher, *students = [*features, self.projection(top)]
            temperature = self.params.features.temperature
            return added([distillation_loss(teacher, student, temperature) for student in students])
        teacher, *students = scores
        labels = teacher.detach().argmax(1)
        # A system may score on another grid than that of its trunk.
        last = F.interpolate(students.pop(), labels.shape[1:], mode="bilinear")
        return added([pixel_cross_entropy(student, labels) for student in [*students, last]])

    def _deep_to_shallow(self, logits: list[Float[Tensor, "B L"]], params: Logits) -> Term:
        """L_SR-L."""
        *students, teacher = logits
        loss = distillation_loss if params.kind == "softmax" else binary_distillation_loss
        return added([loss(teacher, student, params.temperature) for student in students])


def build(params: Params, system: OpenSystem, n_tags: int) -> SelfRegulation:
    """Exits for the trunk of a system.

    Raises:
        Problem: no level below the top one is as coarse as `first_exit` says.
    """
    strides = system.trunk.level_strides
    levels = [level for level, stride in enumerate(strides[:-1]) if stride >= params.first_exit]
    if not levels:
        raise Problem(
            f"self_regulation.first_exit: found {params.first_exit}; this trunk has levels of strides "
            f"{', '.join(map(str, strides))}, and an exit needs one below the top: at most {strides[-2]} is allowed"
        )
    return SelfRegulation(params, levels, system.trunk.level_channels, strides, system.label_stride, n_tags)


def smallest() -> dict[str, Any]:
    """Parameters for tests."""
    return {
        "first_exit": 4,
        "width": 8,
        "warmup": 0.5,
        "exits": {"weight": 1.0, "tags": 0.2, "pixels": 0.8},
        "features": {"kind": "distilled", "weight": 1.0, "temperature": 2.0},
        "logits": {"kind": "sigmoid", "weight": 1.0, "temperature": 2.0},
    }
