"""A linear head on pooled features, which is fitted to stored features instead of trained step by step.

The image is told by the mean and the maximum of each channel, of one level of the trunk or several. A frozen trunk
gives these once, so that fitting takes seconds (`segcore/features`), and the score of the mean-pooled top level is the
mean of a map: where a tag is, the fitted vectors say for nothing.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.classifiers import PooledParams
from segcore.networks.own_classes import OwnClasses
from segcore.networks.trunk import Features

POOLS = {"mean": lambda level: level.mean((2, 3)), "max": lambda level: level.amax((2, 3))}
"""What is made of the cells of a level."""
CLASSES = "classes"
"""The pool that is of the top level alone: see `OwnClasses`."""


def sizes_of(params: PooledParams) -> tuple[int, ...]:
    """The sides of the squares that a head sees, each once: multiples of 32, which every trunk takes."""
    return tuple(dict.fromkeys(max(32, 32 * round(params.input_size * scale / 32)) for scale in params.views.scales))


class PooledHead(nn.Module):
    """Logits of the tags, w_c . (z - shift) / scale + b_c, of the pooled features z of an image.

    All numbers are buffers: `fit_head` of `segcore/fitting/tags.py` sets them, and no optimiser moves them. `weight`
    and `bias` hold the calibration too, so the sigmoid of a logit is the probability of the tag.

    Attributes:
        sizes: sides of the squares that it was fitted to.
        flip: whether it was fitted to mirrored squares, too.
        shift: (D,) mean of each pooled feature over the training images.
        scale: (D,) their standard deviation.
        weight: (L, D) of the standardised features.
        bias: (L,).
        class_vectors: (L, C) of a logistic regression of its own on the mean of the top map alone, in the space of that
            map: the standardisation is folded in.
        class_bias: (L,) of the same.
        thresholds: (L,) probabilities above which a tag counts as found.
    """

    shift: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    class_vectors: Tensor
    class_bias: Tensor
    thresholds: Tensor

    def __init__(self, level_channels: Sequence[int], n_tags: int, params: PooledParams) -> None:
        super().__init__()
        self.levels = params.levels
        self.pools = params.pools
        self.sizes = sizes_of(params)
        self.flip = params.views.flip
        self.n_tags = n_tags
        self.classes = OwnClasses(level_channels[-1]) if CLASSES in params.pools else None
        width = (len(params.pools) - (self.classes is not None)) * sum(level_channels[-params.levels :])
        width += 0 if self.classes is None else 2 * len(self.classes.bias)
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("weight", torch.zeros(n_tags, width))
        self.register_buffer("bias", torch.zeros(n_tags))
        self.register_buffer("class_vectors", torch.zeros(n_tags, level_channels[-1]))
        self.register_buffer("class_bias", torch.zeros(n_tags))
        self.register_buffer("thresholds", torch.full((n_tags,), 0.5))

    def pooled(self, features: Features) -> Float[Tensor, "B D"]:
        """What the head sees of a view, level by level, the classes last: float32, whatever the trunk computes in."""
        levels = features.levels[-self.levels :]
        parts = [POOLS[pool](level.float()) for level in levels for pool in self.pools if pool != CLASSES]
        return torch.cat(parts if self.classes is None else [*parts, self.classes(features.top)], dim=1)

    def of_pooled(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B L"]:
        """Logits of the tags."""
        return F.linear((pooled - self.shift) / self.scale, self.weight, self.bias)

    def forward(self, features: Features) -> Float[Tensor, "B L"]:
        """Logits of the tags by one view."""
        return self.of_pooled(self.pooled(features))

    def maps(self, top: Float[Tensor, "B C h w"]) -> Float[Tensor, "B L h w"]:
        """Where the tags are, by the regression on the mean of the top map; the mean of a map is its logit."""
        return torch.einsum("lc,bchw->blhw", self.class_vectors, top) + self.class_bias[:, None, None]
