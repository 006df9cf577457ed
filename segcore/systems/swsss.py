"""SWSSS: two networks that label the tagged images for each other, each class trusted as much as it is known.

Wang et al., "Learning Pseudo Labels for Semi-and-Weakly Supervised Semantic Segmentation", Pattern Recognition 2022.
Of H and P, two networks of one shape, H alone learns from masks. On a tagged image w both may find its tags and the
background only (`losses.limited_to_tags`), and

    L = CE(p^H_s, mask_s) + CE(p^P_w, argmax p^H_w) + v_w CE(p^H_w, argmax p^P_w) + multi-label loss of max-pooled f^H,

where v_w = (min over the image's tags of IoU_c)^8: P, which has seen no mask, is trusted by its running IoU on the
masked images. H is what predicts, without tags; a plain network (`fpn`) is then trained again on its labels of the
tagged images, limited to their tags (`source: segmenter`, `restrict_to_tags`).

Where the source is silent: v_w of an image without tags is that of the background; the running IoU is the ratio of
running intersections and unions; the multi-label loss is of all images of a batch, its mean over the classes. The
decoder is a pyramid's. `trunks: one` lets both networks stand on one trunk: the same, at half the cost, where the trunk
does not learn.
"""

import copy
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from segcore.config.classifiers import Alike, Balanced
from segcore.config.section import NotNegative, Positive, Rate
from segcore.config.systems import MASKS, Prediction
from segcore.data.batches import Batch, Mixed, SizedSamples
from segcore.data.frequencies import tag_table, tag_weights
from segcore.data.pictures import IGNORE
from segcore.losses import Term, limited_to_tags, pixel_cross_entropy, tag_cross_entropy
from segcore.networks.deeplab import enlarged
from segcore.networks.origin import Origin
from segcore.networks.pyramid import PyramidNetwork, labels_at, shown
from segcore.networks.steps import RunningIoU
from segcore.networks.trunk import Trunk
from segcore.systems._grid import SMALLEST_PREDICTION
from segcore.systems._pixel_loss import PixelLoss, PixelLossParams
from segcore.systems._pyramid import (
    SMALLEST_ZOOMED,
    OverFixedViews,
    ZoomedTraining,
    network_of,
    tagged_and_masked,
)
from segcore.systems.contract import Inputs, Supervision


class Training(ZoomedTraining):
    """What training a system with `module: swsss` depends on."""

    pixel_loss: PixelLossParams | None = None
    """Of the masks. A key that does not apply does not exist: absent, it is the cross-entropy."""
    tag_weight: NotNegative
    """Of the multi-label loss (published: 1)."""
    tag_class_weights: Annotated[Alike | Balanced, Field(discriminator="kind")]
    """How much tags seldom seen count in it."""
    momentum: Rate
    """Of the running IoU (published: 0.99)."""
    trust_power: Positive
    """To which the least IoU is raised (published: 8)."""
    trunks: Literal["one", "two"]
    """Whether P has a trunk of its own (published: two)."""

    @model_validator(mode="after")
    def _one_trunk_is_looked_up(self) -> "Training":
        if self.zoom.bank is not None and self.trunks == "two":
            raise ValueError("zoom.bank needs trunks: one; trunks that stand still may as well be one")
        return self


__all__ = ["Prediction", "Training"]


class SWSSS(OverFixedViews):
    """H (`network`), P (`peer`), and what P's IoU on the masks was."""

    pretrained = ("network.trunk.",)
    may_be_missing = ("peer.", "iou.")
    positive: Tensor | None

    def __init__(self, network: PyramidNetwork, peer: PyramidNetwork, n_classes: int, params: Training) -> None:
        super().__init__()
        self.params = params
        self.network = network
        self.peer = peer
        self.iou = RunningIoU(n_classes, params.momentum)
        self.pixel_loss = PixelLoss(params.pixel_loss, n_classes)
        self.n_tags = n_classes - 1
        # How often an image counts for a tag that it has; known before every training, and no part of the model.
        self.register_buffer("positive", None, persistent=False)
        if params.trunks == "one":
            del peer.trunk  # a module that two hold would be saved twice
        else:
            self.pretrained = ("network.trunk.", "peer.trunk.")

    @property
    def trunk(self) -> Trunk:
        return self.network.trunk

    @property
    def joined(self) -> list[int]:
        return self.network.pyramid.levels

    def begin(self, samples: SizedSamples) -> None:
        self.pixel_loss.begin(samples)
        weights = self.params.tag_class_weights
        if isinstance(weights, Balanced):
            self.positive = torch.from_numpy(tag_weights(tag_table(samples, self.n_tags), weights.cap)).float()

    def losses(self, batch: Batch) -> dict[str, Term]:
        """The four terms; watched are the trust in P, `trust`, and the share of cells where both find the same."""
        self.iou.begin(batch.moment.step)
        features = self.seen(batch.images)
        h = self.network.scores(features).float()
        p = self.peer.scores(features if self.params.trunks == "one" else self.peer.trunk(batch.images)).float()
        size = (h.shape[2], h.shape[3])
        masks = labels_at(batch.labels, self.network.stride, size).masked_fill(~batch.strong[:, None, None], IGNORE)
        self.iou.count(p.argmax(1), masks)
        inside = labels_at(shown(batch.images).long(), self.network.stride, size) == 1
        weak = inside & ~batch.strong[:, None, None]
        from_h, from_p = (self._labels(scores, batch.tags, weak) for scores in (h, p))
        trust = self.trust(batch.tags)
        tags = tag_cross_entropy(
            h[:, 1:].masked_fill(~inside[:, None], -torch.inf).amax((2, 3)), batch.tags, self.positive
        )
        terms = self.pixel_loss(h, masks)
        return terms | {
            "peer": pixel_cross_entropy(_limited(p, batch.tags), from_h),
            "trusted": trusted_cross_entropy(_limited(h, batch.tags), from_p, trust),
            "tags": tags.times(self.params.tag_weight),
            "trust": Term(trust[~batch.strong].sum(), (~batch.strong).sum().float()),
            "agreement": Term(((from_h == from_p) & weak).sum().float(), weak.sum().float()),
        }

    @torch.no_grad()
    def trust(self, tags: Float[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """v_w of images with these tags."""
        present = F.pad(tags > 0, (1, 0))
        present[:, 0] = ~present.any(1)
        least = torch.where(present, self.iou.value, torch.inf).amin(1)
        return least**self.params.trust_power

    @torch.no_grad()
    def _labels(
        self, scores: Float[Tensor, "B K h w"], tags: Float[Tensor, "B L"], weak: Tensor
    ) -> Int64[Tensor, "B h w"]:
        return limited_to_tags(scores, tags).argmax(1).masked_fill(~weak, IGNORE)

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        return enlarged(self.network(images).float(), (images.shape[2], images.shape[3]), self.network.stride)


ABSENT = -1e4
"""Score of a class that an image lacks: its softmax is 0, and its gradient too."""


def _limited(scores: Float[Tensor, "B K h w"], tags: Float[Tensor, "B L"]) -> Float[Tensor, "B K h w"]:
    absent = F.pad(tags <= 0, (1, 0), value=False)
    return scores.masked_fill(absent[:, :, None, None], ABSENT)


def trusted_cross_entropy(
    scores: Float[Tensor, "B K h w"], labels: Int64[Tensor, "B h w"], trust: Float[Tensor, " B"]
) -> Term:
    """Cross-entropy over the known cells, that of each image times its trust; the weight is the number of known cells.

    So an image that is trusted less teaches less, and takes nothing from the others.
    """
    costs = F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="none").sum((1, 2))
    return Term((costs * trust).sum(), torch.count_nonzero(labels != IGNORE).to(costs.dtype))


def build(params: Training, origin: Origin) -> SWSSS:
    """Both networks with the trunk of a trained classifier, whatever its head, or with fresh ones."""
    network = network_of(params, origin)
    peer = network_of(params, origin)
    if params.trunks == "two" and peer.trunk is network.trunk:
        peer.trunk = copy.deepcopy(network.trunk)
    return SWSSS(network, peer, origin.n_tags + 1, params)


def samples(params: Training, inputs: Inputs) -> Mixed:
    """As many weak images, by their tags, as strong ones with their masks."""
    return tagged_and_masked(params, inputs)


def supervision(params: Training, labels: str) -> Supervision:
    """Masks and tags."""
    return Supervision(masks=True, tags=True)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    own = {"tag_weight": 1.0, "tag_class_weights": {"kind": "none"}, "momentum": 0.99, "trust_power": 8.0}
    training = SMALLEST_ZOOMED | own | {"trunks": "two"}
    sources = {"start": "classifiers/any", "images": "strong", "labels": MASKS}
    return {"module": "swsss", **sources, "training": training, "prediction": SMALLEST_PREDICTION}
