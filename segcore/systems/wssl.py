"""WSSL: DeepLab from tags, or from tags and some masks, by expectation and maximisation.

Papandreou, Chen, Murphy and Yuille, "Weakly- and Semi-Supervised Learning of a Deep Convolutional Network for Semantic
Image Segmentation", ICCV 2015, section 3. In every step the scores of the weak images, pushed towards their tags, say
what their labels are taken for (E-step, `localisation.expectation`); then all scores learn, those of weak images from
these labels, those of strong ones from their masks (M-step). The biases are in the labels alone, never in the scores
that the loss sees.

Departures: images are stretched to the square, where the published ones are cut: a cut may lose the object that a tag
names, and the E-step would find it all the same. The weak term may begin late (`warm_up`): of random scores, the E-step
makes labels that teach nothing.
"""

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from segcore.config.section import Count, NotNegative, Positive, Rate, Section, Threshold
from segcore.config.systems import MASKS, Prediction
from segcore.data.batches import Batch, Mixed
from segcore.data.pictures import IGNORE
from segcore.data.samples import LabelledImages, TaggedImages
from segcore.errors import Problem
from segcore.localisation.expectation import adaptive_bias, fixed_bias, visiting_order
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks.deeplab import at_cells
from segcore.networks.origin import Origin
from segcore.systems._grid import SMALLEST_PREDICTION, SMALLEST_TRAINING, GridSystem, GridTraining, masks_of, network_of
from segcore.systems.contract import Inputs, Outputs, Supervision


class Fixed(Section):
    """EM-Fixed: the same biases for every image, added to scores before the softmax."""

    kind: Literal["fixed"]
    background: Positive
    foreground: Positive
    """Of each tag of the image; more than that of the background (published for tags: 5 over 3)."""
    exclude_absent: bool
    """Whether classes that the image has no tag of can never be a label (published: they can)."""

    @model_validator(mode="after")
    def _foreground_is_pushed_harder(self) -> "Fixed":
        if self.foreground <= self.background:
            raise ValueError(f"foreground {self.foreground} must be more than background {self.background}")
        return self


class Adapt(Section):
    """EM-Adapt: biases of each image by which its classes win shares of it."""

    kind: Literal["adapt"]
    background_share: Threshold
    """Share of the cells that the background wins at least, roughly (published: 0.4)."""
    foreground_share: Threshold
    """The same of each tag of the image (published: 0.2)."""
    rounds: Count
    """How often every class is visited."""
    suppress_margin: NotNegative | None
    """How far below present classes absent ones are put where they exceed them; null leaves them where they are."""


class Training(GridTraining):
    """What training a system with `module: wssl` depends on."""

    expectation: Annotated[Fixed | Adapt, Field(discriminator="kind")]
    strong_weight: NotNegative
    """Of the loss of the masks of `images` (published: 0.7); at 0 the system sees tags only."""
    weak_weight: Positive
    """Of the loss of the labels that the E-step finds (published: 0.3)."""
    warm_up: Rate
    """Share of the run in which the weak loss weighs nothing yet."""

    @model_validator(mode="after")
    def _something_teaches(self) -> "Training":
        if self.warm_up and not self.strong_weight:
            raise ValueError(f"warm_up {self.warm_up} must be 0.0 where strong_weight is 0.0: nothing else teaches")
        return self


__all__ = ["Prediction", "Training"]


class WSSL(GridSystem):
    """The network, the E-step and the two cross-entropies."""

    params: Training

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """The cross-entropies of weak and of strong samples, each averaged over the known cells of its own.

        A batch, or one process's share of it, may have samples of one kind only; the others' terms then weigh nothing.
        Watched are the share of background in the labels of the E-step, `background`, and in the masks beside them: a
        bias that is too large fills images with foreground.
        """
        params, scores = self.params, outputs.scores.float()
        labels = torch.full_like(scores[:, 0], IGNORE, dtype=torch.int64)
        labels[~batch.strong] = self.expected(batch, scores)
        began = batch.moment.elapsed >= params.warm_up
        terms = {
            "weak": _weighted(pixel_cross_entropy(scores, labels), params.weak_weight if began else 0.0),
            "background": _share_of_background(labels),
        }
        if params.strong_weight:
            masks = at_cells(batch.labels, self.network.stride).masked_fill(~batch.strong[:, None, None], IGNORE)
            terms["strong"] = _weighted(pixel_cross_entropy(scores, masks), params.strong_weight)
            terms["background_of_masks"] = _share_of_background(masks)
        return terms

    @torch.no_grad()
    def expected(self, batch: Batch, scores: Float[Tensor, "B K h w"]) -> Int64[Tensor, "W h w"]:
        """The E-step: labels of the weak samples of a batch by all its scores; they carry no gradient."""
        weak, step = ~batch.strong, self.params.expectation
        scores, tags = scores[weak].detach(), batch.tags[weak]
        if isinstance(step, Fixed):
            pushed = fixed_bias(scores, tags, step.background, step.foreground, step.exclude_absent)
        else:
            order = visiting_order("wssl", batch.ids, batch.moment.step, step.rounds, tags.shape[1])
            order = order.to(scores.device)[weak]
            shares = step.background_share, step.foreground_share
            pushed = adaptive_bias(scores, tags, order, *shares, step.suppress_margin)
        return pushed.argmax(1)


def _weighted(term: Term, factor: float) -> Term:
    return Term(term.total * factor, term.weight)


def _share_of_background(labels: Int64[Tensor, "B h w"]) -> Term:
    """Cells of class 0 among those whose label is known."""
    counts = [torch.count_nonzero(cells).float() for cells in (labels == 0, labels != IGNORE)]
    return Term(*counts)


def build(params: Training, origin: Origin) -> WSSL:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    return WSSL(*network_of(params.network, origin), params)


def samples(params: Training, inputs: Inputs) -> TaggedImages | Mixed:
    """The weak images with their tags; with masks in play, as many strong images with their masks beside them.

    An image may be both: it then teaches by its tags and by its mask.
    """
    size = params.network.input_size
    weak = TaggedImages(inputs.of(inputs.weak), inputs.n_tags, None, size)
    if not params.strong_weight:
        return weak
    records = inputs.chosen
    if not records:
        raise Problem("there are no strong images; strong_weight: 0.0 learns from tags alone")
    return Mixed(weak, LabelledImages(records, masks_of(records), inputs.n_tags, size))


def supervision(params: Training, labels: str) -> Supervision:
    """Tags; masks too, unless their loss weighs nothing."""
    return Supervision(masks=params.strong_weight > 0, tags=True)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    step = {"kind": "fixed", "background": 3.0, "foreground": 5.0, "exclude_absent": True}
    weights = {"strong_weight": 0.7, "weak_weight": 0.3, "warm_up": 0.0}
    training = SMALLEST_TRAINING | {"expectation": step} | weights
    sources = {"start": "classifiers/any", "images": "strong", "labels": MASKS}
    return {"module": "wssl", **sources, "training": training, "prediction": SMALLEST_PREDICTION}
