"""What a class-conditioned segmenter sees of an image and a tag: the top map, as the tag's linear classifier reads it.

With x the map on top of a trunk and w_c, b_c the linear classifier of tag c, the decoder gets side by side

    x,   x * w_c,   m_c = w_c . x + b_c,   m_c - max over all tags k of m_k

each normalised over the batch, and made fewer channels by a 1x1 convolution. The convolution is a sum of one over each
part, so that of x, which is the same for every tag, is computed once an image.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.networks.pooled_head import PooledHead
from segcore.networks.stochastic_head import StochasticHead


class Conditioned(nn.Module):
    """The class-conditioned top map of pairs of an image and a tag.

    Args:
        channels: C of the top map.
        width: D, of what comes out.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        parts = {"image": channels, "product": channels, "maps": 2}
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(size, affine=False) for name, size in parts.items()})
        self.mixes = nn.ModuleDict({name: nn.Conv2d(size, width, 1, bias=False) for name, size in parts.items()})
        self.norm = nn.BatchNorm2d(width)
        for mix in self.mixes.values():
            assert isinstance(mix, nn.Conv2d)
            nn.init.kaiming_normal_(mix.weight, nonlinearity="relu")

    def image(self, top: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """What no tag changes: once for each image."""
        return self.mixes["image"](self.norms["image"](top))

    def forward(
        self,
        top: Float[Tensor, "B C h w"],
        images: Float[Tensor, "B D h w"],
        maps: Float[Tensor, "B L h w"],
        vectors: Float[Tensor, "L C"],
        image: Int64[Tensor, " P"],
        tag: Int64[Tensor, " P"],
    ) -> Float[Tensor, "P D h w"]:
        """The maps of some pairs.

        Args:
            top: x of each image.
            images: what `image` makes of it.
            maps: m of each image and tag.
            vectors: w of each tag.
            image, tag: of the pairs, as indices from 0 on.
        """
        product = top[image] * vectors[tag][:, :, None, None]
        own = maps[image, tag][:, None]
        both = torch.cat([own, own - maps.amax(1, keepdim=True)[image]], dim=1)
        mixed = images[image] + self._part("product", product) + self._part("maps", both)
        return F.relu(self.norm(mixed))

    def _part(self, name: str, x: Tensor) -> Tensor:
        return self.mixes[name](self.norms[name](x))


def linear_of(head: nn.Module) -> tuple[Float[Tensor, "L C"], Float[Tensor, " L"]] | None:
    """The vectors w and numbers b by which a linear head reads the top map; None if the head is another.

    A pooled head has a regression of its own for this; the windows of a stochastic one are added up, as every unit of a
    map is seen by all places of a window.
    """
    if isinstance(head, PooledHead):
        return head.class_vectors, head.class_bias
    if isinstance(head, StochasticHead) and head.score.bias is not None:
        return head.weight("deterministic", 0.0).sum((2, 3)), head.score.bias
    return None
