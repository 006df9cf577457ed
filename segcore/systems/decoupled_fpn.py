"""DecoupledNet's idea with a decoder over all levels: a linear classifier finds the tags, a pyramid cuts each out.

A classifier with a linear head says for every tag c how it reads the map on top of the trunk; what it reads there goes
into a decoder that no class has a part in (`networks/conditioned.py`, `networks/pyramid.py`), which gives one logit at
every cell: whether the tag's object lies there. The decoder learns from the masks of all classes together, so that few
masks of each suffice. Hong, Noh and Han, "Decoupled Deep Neural Network for Semi-supervised Semantic Segmentation",
NIPS 2015, have the idea; layers, loss and inference are ours.

With pseudo-labels beside the masks it is a second round: half of every batch shows strong images with their masks, half
tagged ones with labels that the first round made of them by their known tags (`source: decoupled`).
"""

import math
from typing import Annotated, Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config import systems
from segcore.config.section import NotNegative, Rate, Threshold
from segcore.config.systems import MASKS
from segcore.data.batches import Batch, Mixed
from segcore.data.pictures import IGNORE
from segcore.data.zoomed import Pairs
from segcore.errors import Problem
from segcore.losses import Term, dice_costs, over_images
from segcore.networks.classifiers import Classifier
from segcore.networks.conditioned import Conditioned, linear_of
from segcore.networks.deeplab import enlarged
from segcore.networks.origin import Origin
from segcore.networks.pooled_head import PooledHead
from segcore.networks.pyramid import Pyramid, labels_at
from segcore.networks.trunk import Features, Trunk
from segcore.systems._grid import SMALLEST_PREDICTION
from segcore.systems._pyramid import (
    SMALLEST_TRAINING,
    OverFixedViews,
    PyramidTraining,
    sources,
    zoom_of,
)
from segcore.systems.contract import Inputs, Supervision

TAKES_TAGS = True
"""It segments by given tags, too."""

OWN = "classifier"
"""The threshold that stands for those of the classifier itself."""

NOT_FOUND = -10.0
"""Score of a tag that was not found. A mean over views shows a tag that only some of them
found where these are certain: a logit of more than 10 in one of two views."""

PAIRS_AT_ONCE = 32
"""Pairs of image and tag that inference runs through the decoder together: bounds its memory."""


class Training(PyramidTraining):
    """What training a system with `module: decoupled_fpn` depends on."""

    absent: Rate
    """Share of the pairs whose tag the image lacks: all of their pixels are background."""
    dice_weight: NotNegative


def _probability_or_own(threshold: float | str) -> float | str:
    if threshold == OWN or (not isinstance(threshold, str) and 0 <= threshold <= 1):
        return threshold
    raise ValueError(f"must be a probability from 0 to 1, or {OWN}")


class Prediction(systems.Prediction):
    """How a system with `module: decoupled_fpn` predicts."""

    threshold: Annotated[float | str, AfterValidator(_probability_or_own)]
    """Probability above which a tag counts as found, or those that the classifier has for each; the likeliest tag of an
    image always does."""
    background: Threshold
    """Probability that a pixel of a found tag must exceed, or it is background. A decoder that few masks taught is less
    sure of objects that it has not seen: below 0.5."""


class DecoupledFPN(OverFixedViews):
    """The whole network. The head of the classifier is frozen and always in eval mode, and so are the statistics of the
    trunk; its weights may learn along."""

    prediction: Prediction
    pretrained = ("classifier.trunk.",)

    def __init__(self, classifier: Classifier, params: Training) -> None:
        super().__init__()
        self.classifier = classifier.eval()
        self.classifier.head.requires_grad_(False)
        self.params = params
        trunk, network = classifier.trunk, params.network
        self.conditioned = Conditioned(trunk.channels, network.top_width)
        self.pyramid = Pyramid(trunk, network.top_width, network.width, 1, network.output_stride)

    def train(self, mode: bool = True) -> "DecoupledFPN":
        super().train(mode)
        self.classifier.eval()
        return self

    @property
    def trunk(self) -> Trunk:
        return self.classifier.trunk

    @property
    def joined(self) -> list[int]:
        return self.pyramid.levels

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Binary cross-entropy over the known cells, and Dice of each pair of an image and one of its `tags`."""
        return self.terms(self.seen(batch.images), batch.labels, *batch.tags.nonzero(as_tuple=True))

    def terms(
        self, features: Features, labels: Int64[Tensor, "B H W"], image: Int64[Tensor, " P"], tag: Int64[Tensor, " P"]
    ) -> dict[str, Term]:
        """The terms of pairs of an image and a tag, from 0 on; `labels` are those of the images."""
        logits = self.logits(features, image, tag).squeeze(1).float()
        labels = labels_at(labels, self.pyramid.stride, (logits.shape[1], logits.shape[2]))[image]
        known = (labels != IGNORE).to(logits.dtype)
        wanted = (labels == tag[:, None, None] + 1).to(logits.dtype)
        costs = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * known
        dice = over_images(dice_costs(logits.sigmoid(), wanted, known))
        dice = Term(dice.total * self.params.dice_weight, dice.weight)
        return {"segmentation": Term(costs.sum(), known.sum()), "dice": dice}

    def logits(
        self, features: Features, image: Int64[Tensor, " P"], tag: Int64[Tensor, " P"], all_at_once: bool = False
    ) -> Float[Tensor, "P 1 h w"]:
        """Whether the object of a tag lies at the cells of an image, for pairs of indices from 0 on.

        What is the same for every tag of an image is computed once.
        """
        vectors, bias = self.linear
        top = features.top
        maps = torch.einsum("lc,bchw->blhw", vectors, top) + bias[:, None, None]
        images, sides = self.conditioned.image(top), self.pyramid.sides(features.levels)

        def some(image: Int64[Tensor, " Q"], tag: Int64[Tensor, " Q"], one_each: bool = False) -> Tensor:
            pairs = self.conditioned(top, images, maps, vectors, image, tag)
            return self.pyramid.decode(pairs, sides, None if one_each else image)

        if self.training:  # batch normalisation sees the batch
            # One of one pair an image, as they mostly are, has its fine maps in place: none is copied.
            return some(image, tag, one_each=torch.equal(image, torch.arange(len(top), device=image.device)))
        if all_at_once:  # a graph holds no loop over pairs
            return some(image, tag)
        parts = zip(image.split(PAIRS_AT_ONCE), tag.split(PAIRS_AT_ONCE), strict=True)
        return torch.cat([some(*part) for part in parts])

    @property
    def linear(self) -> tuple[Float[Tensor, "L C"], Float[Tensor, " L"]]:
        """How the classifier reads the top map: a vector and a number of each tag."""
        linear = linear_of(self.classifier.head)
        assert linear is not None  # as `build` sees to
        return linear

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """The logit of each found tag at each pixel; that of `background` is the background's, which wins where no tag
        is likelier.

        One pass for the images, then one batch for all of their found tags.
        """
        features = self.classifier.trunk(images)
        return self._scores(images, features, self.found(self._decision(images, features)))

    @torch.no_grad()
    def predict_given(self, images: Float[Tensor, "B 3 H W"], tags: Float[Tensor, "B L"]) -> Float[Tensor, "B K H W"]:
        return self._scores(images, self.classifier.trunk(images), tags > 0)

    def exportable(self, tags_at_once: int | None) -> "FixedTags":
        n_tags = self.classifier.n_tags
        if tags_at_once is not None and not 1 <= tags_at_once <= n_tags:
            raise Problem(f"--tags-at-once: found {tags_at_once}; allowed are 1..{n_tags}, the tags of this model")
        head, side = self.classifier.head, self.params.network.input_size
        if isinstance(head, PooledHead) and head.sizes != (side,):
            raise Problem(
                f"this system finds its tags on squares of {', '.join(map(str, head.sizes))} pixels and cuts them out "
                f"of squares of {side}, which no graph of one input holds; train it with head.input_size of its "
                "classifier and network.input_size alike"
            )
        return FixedTags(self, tags_at_once or n_tags)

    def found(self, decision: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """The tags whose probability exceeds their threshold, and the likeliest one of each image."""
        return (decision.sigmoid() > self._thresholds(decision)) | (decision == decision.amax(1, keepdim=True))

    def _decision(self, images: Float[Tensor, "B 3 H W"], features: Features) -> Float[Tensor, "B L"]:
        """Scores of the tags. A pooled head that was fitted to other squares or to several views sees these instead, at
        the cost of further passes of the trunk: an entry that spares them has the head's input_size and one view."""
        head = self.classifier.head
        if not isinstance(head, PooledHead):
            return cast(Tensor, head(features.top))
        height, width = images.shape[2:]
        side = max(height, width)
        if head.sizes == (height,) == (width,) and not head.flip:
            return cast(Tensor, head(features))
        return self.classifier.tags(F.pad(images, (0, side - width, 0, side - height)))

    def _thresholds(self, decision: Float[Tensor, "B L"]) -> Float[Tensor, " L"]:
        wanted, own = self.prediction.threshold, getattr(self.classifier.head, "thresholds", None)
        if not isinstance(wanted, str):
            return decision.new_full(decision.shape[1:], wanted)
        if own is None:
            raise Problem(
                f"prediction.threshold: found '{OWN}', but this system's classifier has no thresholds of its own; "
                "set a number, or start from a classifier with head.kind: pooled"
            )
        return own

    @property
    def background_score(self) -> float:
        """The logit of `background`."""
        return math.log(self.prediction.background / (1 - self.prediction.background))

    def _scores(
        self, images: Float[Tensor, "B 3 H W"], features: Features, found: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B K H W"]:
        size = (images.shape[2], images.shape[3])
        scores = images.new_full((len(images), found.shape[1] + 1, *size), NOT_FOUND, dtype=torch.float32)
        scores[:, 0] = self.background_score
        image, tag = found.nonzero(as_tuple=True)
        if len(image):
            logits = enlarged(self.logits(features, image, tag).float(), size, self.pyramid.stride)
            scores[image, tag + 1] = logits.squeeze(1).clamp(min=NOT_FOUND)
        return scores


class FixedTags(nn.Module):
    """`DecoupledFPN.predict` with as many pairs for every image: one for each of its likeliest tags.

    A tag is found as always, if it is one of these; the pairs of others are run and count for nothing.
    """

    def __init__(self, system: DecoupledFPN, tags_at_once: int) -> None:
        super().__init__()
        self.system = system
        self.tags_at_once = tags_at_once

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        system, size = self.system, (images.shape[2], images.shape[3])
        features = system.classifier.trunk(images)
        decision = self._decision(images, features)
        likeliest = decision.topk(self.tags_at_once).indices
        image = torch.arange(images.shape[0], device=images.device)[:, None].expand(likeliest.shape).flatten()
        logits = system.logits(features, image, likeliest.flatten(), all_at_once=True).float()
        logits = enlarged(logits, size, system.pyramid.stride).squeeze(1).clamp(min=NOT_FOUND)
        logits = logits.unflatten(0, (images.shape[0], self.tags_at_once))
        each = F.one_hot(likeliest, decision.shape[1]).to(logits.dtype)  # B n L
        counts = each * system.found(decision)[:, None]
        # One of the n logits, or none, for each tag: a product takes it as it is.
        tags = torch.einsum("bnl,bnhw->blhw", counts, logits) + NOT_FOUND * (1 - counts.sum(1))[:, :, None, None]
        return torch.cat([torch.full_like(tags[:, :1], system.background_score), tags], dim=1)

    def _decision(self, images: Float[Tensor, "B 3 H W"], features: Features) -> Float[Tensor, "B L"]:
        head = self.system.classifier.head
        if not isinstance(head, PooledHead):
            return cast(Tensor, head(features.top))
        if (images.shape[2], images.shape[3]) != (head.sizes[0], head.sizes[0]):
            raise ValueError(f"its tags are found on squares of {head.sizes[0]} pixels")
        views = [features, self.system.classifier.trunk(images.flip(3))] if head.flip else [features]
        return torch.stack([cast(Tensor, head(view)) for view in views]).mean(0)


def build(params: Training, origin: Origin) -> DecoupledFPN:
    """The system around a trained classifier, whose head must be linear."""
    if origin.classifier is None or linear_of(origin.classifier.head) is None:
        found = "starts from a backbone" if origin.classifier is None else "its classifier's head is not linear"
        raise Problem(
            f"this system reads the trunk as the linear head of a classifier does, but {found}; "
            "set its `start` to a classifier with head.kind: pooled or stochastic"
        )
    return DecoupledFPN(origin.classifier, params)


def samples(params: Training, inputs: Inputs) -> Pairs | Mixed:
    """Pairs of the strong images, of the tagged ones with pseudo-labels, or as many of each."""
    weak, strong = (
        None if of is None else Pairs(*of, inputs.n_tags, zoom_of(params, inputs), is_strong, params.absent)
        for of, is_strong in zip(sources(params, inputs), (False, True), strict=True)
    )
    both = [one for one in (weak, strong) if one is not None]
    return Mixed(*both) if len(both) > 1 else both[0]


def supervision(params: Training, labels: str) -> Supervision:
    """Masks, pseudo-labels with the tags that they were made by, or both; what its classifier knows comes with it."""
    return Supervision(masks=params.masks, tags=labels != MASKS)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    training = SMALLEST_TRAINING | {"absent": 0.15, "dice_weight": 0.5}
    sources = {"start": "classifiers/linear", "images": "strong", "labels": MASKS}
    prediction = SMALLEST_PREDICTION | {"threshold": 0.5, "background": 0.5}
    return {"module": "decoupled_fpn", **sources, "training": training, "prediction": prediction}
