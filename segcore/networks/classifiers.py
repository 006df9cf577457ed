"""Classifiers: a trunk and a head that scores every tag."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.classifiers import FullyConnectedParams, HeadParams, PooledParams
from segcore.config.networks import BackboneParams
from segcore.data.batches import Batch
from segcore.losses import Term
from segcore.networks import backbones, pretrained
from segcore.networks.dropout import KeyedDropout
from segcore.networks.pooled_head import PooledHead
from segcore.networks.stochastic_head import StochasticHead
from segcore.networks.trunk import Features, Trunk


@dataclass(frozen=True)
class Activations:
    """The forward pass of a fully connected head: all that the saliency maps and the segmentation network need.

    `fc6` and `fc7` are after their ReLU; `scores` is the score of every tag at every place of the head's grid.
    """

    features: Features
    fc6: Float[Tensor, "B D i j"]
    fc7: Float[Tensor, "B D i j"]
    scores: Float[Tensor, "B L i j"]

    @property
    def decision(self) -> Float[Tensor, "B L"]:
        """Average pooling: the scores by which tags are decided and by which the classifier is trained."""
        return self.scores.mean((2, 3))

    @property
    def strongest(self) -> Float[Tensor, "B L"]:
        """Max pooling: the scores that the saliency maps explain."""
        return self.scores.amax((2, 3))


@dataclass(frozen=True)
class TagScores:
    """The forward pass of a stochastic or a pooled head: `decision` is the score of every tag, before the sigmoid."""

    features: Features
    decision: Float[Tensor, "B L"]


class FullyConnectedHead(nn.Module):
    """fc6, fc7 and score as convolutions (Hong et al. 2015, section 4.1).

    fc6 and fc7 with their ReLUs make the head non-linear in the features. That matters for the saliency maps: the
    gradient of a linear head after global average pooling is the same weight vector at every place, so a map of it
    would be constant over space and tell nothing about where the object is.
    """

    def __init__(self, channels: int, n_tags: int, params: FullyConnectedParams) -> None:
        super().__init__()
        width = params.width
        self.kernel = params.kernel
        self.padding = params.padding
        self.fc6 = nn.Conv2d(channels, width, params.kernel, padding=params.padding)
        self.norm6 = nn.BatchNorm2d(width) if params.batch_norm else nn.Identity()
        self.fc7 = nn.Conv2d(width, width, 1)
        self.norm7 = nn.BatchNorm2d(width) if params.batch_norm else nn.Identity()
        self.score = nn.Conv2d(width, n_tags, 1)
        self.drop6 = KeyedDropout(params.dropout)
        self.drop7 = KeyedDropout(params.dropout)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.score.weight, std=0.01)
        for layer in (self.fc6, self.fc7, self.score):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @property
    def smallest_map(self) -> int:
        """Cells a side that a top map must have."""
        return max(1, self.kernel - 2 * self.padding)

    def forward(self, top: Float[Tensor, "B C h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """The activations of fc6 and fc7 and the score map."""
        fc6 = F.relu(self.norm6(self.fc6(top)))
        fc7 = F.relu(self.norm7(self.fc7(self.drop6(fc6))))
        return fc6, fc7, self.score(self.drop7(fc7))


class Classifier(nn.Module):
    """Finds the tags of an image (Hong et al. 2015, section 4.1, equation 1; Lee et al. 2019, section 3.1)."""

    positive: Tensor | None

    def __init__(
        self, trunk: Trunk, head: FullyConnectedHead | StochasticHead | PooledHead, backbone: BackboneParams
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.backbone = backbone
        """What the trunk was made from, for a system that wants a fresh one."""
        self.pretrained: tuple[str, ...] = ("trunk.",)
        """Prefixes of the parameters that start from a pre-training."""
        self.groups: dict[str, tuple[str, ...]] = {}
        """Further groups of parameters: none."""
        # How often an image counts for a tag that it has; known before every training, and no part of the model.
        self.register_buffer("positive", None, persistent=False)

    @property
    def n_tags(self) -> int:
        return self.head.n_tags if isinstance(self.head, PooledHead) else self.head.score.out_channels

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Activations | TagScores:
        """A fully connected head gives `Activations`, others `TagScores`: a stochastic one's expectation in eval mode,
        a pooled one's logits by this view."""
        features = self.trunk(images)
        if isinstance(self.head, PooledHead):
            return TagScores(features, self.head(features))
        if isinstance(self.head, StochasticHead):
            return TagScores(features, self.head(features.top))
        return Activations(features, *self.head(features.top))

    def weigh(self, positive: Float[np.ndarray, " L"]) -> None:
        """Say how often an image counts for each tag that it has, in training; once if it is not called."""
        self.positive = torch.from_numpy(positive).float().to(next(self.parameters()).device)

    @torch.no_grad()
    def tags(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B L"]:
        """Logits of the tags of squares in 0..255, of any size: the mean over all views that the head was fitted to.

        Only a pooled head has such views, and calibrated logits. Others see the squares as they are.
        """
        if not isinstance(self.head, PooledHead):
            return self(images).decision
        logits = []
        for size in self.head.sizes:
            squares = images.float()
            if size != images.shape[3]:
                squares = F.interpolate(squares, (size, size), mode="bilinear", antialias=True)
            logits += [self.head(self.trunk(x)) for x in ((squares, squares.flip(3)) if self.head.flip else (squares,))]
        return torch.stack(logits).mean(0)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Sigmoid cross-entropy, summed over the tags and averaged over the images (equation 1).

        Where the classifier was told by `weigh`, an image counts more for the tags that it has.
        """
        scores = self(batch.images).decision.float()
        total = F.binary_cross_entropy_with_logits(scores, batch.tags, pos_weight=self.positive, reduction="sum")
        return {"tags": Term(total, scores.new_tensor(len(batch.ids)))}


def build(backbone: BackboneParams, head: HeadParams, n_tags: int) -> Classifier:
    """A classifier with its initial weights; VGG-16's own fc6 and fc7 serve where their shapes fit."""
    trunk = backbones.build(backbone)
    if isinstance(head, PooledParams):
        pooled = PooledHead(trunk.level_channels, n_tags, head)
        if pooled.classes is not None and (weights := pretrained.weights_of(backbone)) is not None:
            pooled.classes.fill(weights, f"backbone.weights {backbone.weights}")
        return Classifier(trunk, pooled, backbone)
    if not isinstance(head, FullyConnectedParams):
        return Classifier(trunk, StochasticHead(trunk.channels, n_tags, head), backbone)
    top = FullyConnectedHead(trunk.channels, n_tags, head)
    classifier = Classifier(trunk, top, backbone)
    if fill_from_vgg16(backbone, top.fc6, top.fc7):
        classifier.pretrained = ("trunk.", "head.fc6.", "head.fc7.")
    return classifier


@torch.no_grad()
def fill_from_vgg16(backbone: BackboneParams, fc6: nn.Conv2d, fc7: nn.Conv2d) -> bool:
    """VGG-16's own fc6 and fc7, from the weights that `backbone` names, as convolutions; whether the shapes fit."""
    weights = pretrained.weights_of(backbone) if backbone.name in ("vgg16", "vgg16_bn") else None
    if not weights or "classifier.0.weight" not in weights:
        return False
    kernels = weights["classifier.0.weight"].unflatten(1, (-1, 7, 7)), weights["classifier.3.weight"][:, :, None, None]
    if (kernels[0].shape, kernels[1].shape) != (fc6.weight.shape, fc7.weight.shape):
        return False
    for layer, kernel, bias in zip((fc6, fc7), kernels, ("classifier.0.bias", "classifier.3.bias"), strict=True):
        assert layer.bias is not None
        layer.weight.copy_(kernel)
        layer.bias.copy_(weights[bias])
    return True
