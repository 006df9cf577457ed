"""What the classifier that a trunk was pre-trained under says of an image: features that tags can be told by.

A thousand classes that a million pictures taught weigh the channels better than a few thousand tagged pictures can: to
a linear head on the channels of a ResNet-18 they add two and a half points of mean average precision.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.errors import Problem

CLASSES = 1000
"""Of ImageNet."""
WINDOW, STEP = 7, 3
"""Cells of a window, a side, and from one to the next: such classifiers saw 224 pixels, seven cells at stride 32."""
ROOT = 0.25
"""Power of a probability: nearly all are tiny, and are told apart all the same."""


class OwnClasses(nn.Module):
    """Softmax of the classes in every window of the top map: the mean over the windows, and the maximum.

    Attributes:
        weight: (K, C) of the linear layer over the mean-pooled top map.
        bias: (K,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(CLASSES, channels))
        self.register_buffer("bias", torch.zeros(CLASSES))

    def fill(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take over the last layer of a torchvision ResNet.

        Raises:
            Problem: these weights have none that fits.
        """
        found = [weights.get(name) for name in ("fc.weight", "fc.bias")]
        shapes = [tuple(one.shape) if one is not None else None for one in found]
        if shapes != [tuple(self.weight.shape), tuple(self.bias.shape)]:
            raise Problem(
                f"head.pools: classes wants the last layer of ImageNet's classifier, fc.weight "
                f"{tuple(self.weight.shape)} and fc.bias {tuple(self.bias.shape)}, but {source} has {shapes[0]} and "
                f"{shapes[1]}; leave classes out of the pools, or name weights that hold it"
            )
        self.load_state_dict(dict(zip(("weight", "bias"), found, strict=True)))  # type: ignore[arg-type]

    def forward(self, top: Float[Tensor, "B C h w"]) -> Float[Tensor, "B P"]:
        """Roots of probabilities, K means and K maxima; a map that is smaller than a window is one."""
        window = (min(WINDOW, top.shape[2]), min(WINDOW, top.shape[3]))
        means = F.avg_pool2d(top.float(), window, STEP).flatten(2).transpose(1, 2)
        probabilities = F.linear(means, self.weight, self.bias).softmax(2)
        return torch.cat([probabilities.mean(1), probabilities.amax(1)], dim=1).pow(ROOT)
