"""The network of DIS: a trunk, and three subnets that explain an image twice, by its classes and by its colours.

Luo, Wang, Lin and Wang, "Deep Dual Learning for Semantic Image Segmentation", ICCV 2017, section 2.1. With u1 the
trunk's top map and v1 a vector of the whole image,

    subnet 1:  u2 = u1 + up(v1),         u3 = 3x3 convolution of u2 to the classes          the labelmap
    subnet 2:  z1, z2, z3 = 5x5, 3x3 and 3x3 convolutions of u3 to classes, 16, 3 channels  the image
    subnet 3:  v2 = avgpool(u1) + v1,    v3 = linear layer of v2 to the classes             the tags
    at last:   scores = convolution of u3 and up(v3), side by side

Where the text is silent: v1 is a linear layer and a ReLU over the mean of u1 (were it the mean itself, v2 would be
twice that); subnet 2 has ReLUs between its layers and sees u3 before the softmax; the last convolution starts as
[identity, 0], so that the scores start as u3; classes are those of the labelmap, background among them, whose tag every
image has.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.networks.trunk import Trunk

HIDDEN = 16
"""Channels of z2, as published."""


class Responses(NamedTuple):
    """What subnets 1 and 3 say, before a softmax or a sigmoid."""

    labelmap: Float[Tensor, "B K h w"]
    """u3."""
    tags: Float[Tensor, "B K"]
    """v3, background first."""


class Dual(nn.Module):
    """The trunk and the subnets.

    Args:
        trunk: any; its stride is that of the labelmap.
        n_classes: K, background included.
        fusion_kernel: side of the last convolution, odd.
    """

    def __init__(self, trunk: Trunk, n_classes: int, fusion_kernel: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.stride = trunk.stride
        self.vector = nn.Linear(trunk.channels, trunk.channels)
        self.labelmap = nn.Conv2d(trunk.channels, n_classes, 3, padding=1)
        self.image = nn.Sequential(
            nn.Conv2d(n_classes, n_classes, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(n_classes, HIDDEN, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, 3, 3, padding=1),
        )
        self.tags = nn.Linear(trunk.channels, n_classes)
        self.fusion = nn.Conv2d(2 * n_classes, n_classes, fusion_kernel, padding=fusion_kernel // 2)
        for layer in (self.vector, *self.image):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for layer in (self.labelmap, self.tags):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.fusion.weight)
        nn.init.zeros_(self.fusion.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            middle = fusion_kernel // 2
            self.fusion.weight[:, :n_classes, middle, middle] = torch.eye(n_classes)

    def vector_of(self, u1: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C"]:
        """v1, what the whole image says."""
        return F.relu(self.vector(u1.mean((2, 3))))

    def respond(self, u1: Float[Tensor, "B C h w"], v1: Float[Tensor, "B C"]) -> Responses:
        """Subnets 1 and 3."""
        return Responses(self.labelmap(u1 + v1[:, :, None, None]), self.tags(u1.mean((2, 3)) + v1))

    def reconstructed(self, labelmap: Float[Tensor, "B K h w"]) -> Float[Tensor, "B 3 h w"]:
        """Subnet 2: z3, an image in the numbers that `seen` has."""
        return self.image(labelmap)

    def fused(self, responses: Responses) -> Float[Tensor, "B K h w"]:
        """The scores of each class, background first."""
        tags = responses.tags[:, :, None, None].expand(-1, -1, *responses.labelmap.shape[2:])
        return self.fusion(torch.cat([responses.labelmap, tags], 1))

    def seen(self, images: Float[Tensor, "B 3 H W"], size: tuple[int, int]) -> Float[Tensor, "B 3 h w"]:
        """Images in 0..255 at the size of the grid: what subnet 2 is to give, of a mean near 0 and a variance near 1.

        Each cell has the mean colour around its place, as a label describes more than the one pixel in the middle.
        """
        normal = self.trunk.normalise(images)
        return F.interpolate(normal, size, mode="bilinear", align_corners=True, antialias=True)
