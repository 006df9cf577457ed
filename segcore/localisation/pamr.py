"""Pixel-adaptive refinement of maps: each pixel takes over what pixels of its colour around it have.

Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels (CVPR 2020), section 3.3, in the form of the
published code: eight neighbours at several distances, weighted by
softmax_j(mean over the colours of -|I_i - I_j| / (0.1 sigma_i)), where sigma_i is the standard deviation of the colour
over the pixel and all these neighbours. Nothing is learned.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SHARPNESS = 0.1
"""The published code's factor before sigma, and the least denominator beside it."""
LEAST = 1e-8


@torch.no_grad()
def pamr(
    maps: Float[Tensor, "T h w"], image: Float[Tensor, "3 h w"], dilations: tuple[int, ...], iterations: int
) -> Float[Tensor, "T h w"]:
    """Maps of one picture refined; `image` is RGB of any range. Beyond the border lies the border itself."""
    around = _around(image, dilations)  # 3 x D x 8 x h x w
    both = torch.cat([around, image[:, None, None].expand(-1, len(dilations), 1, -1, -1)], dim=2)
    deviation = both.flatten(1, 2).std(1)[:, None, None]
    unlike = (around - image[:, None, None]).abs() / (LEAST + SHARPNESS * deviation)
    weights = (-unlike.mean(0)).flatten(0, 1).softmax(0)
    for _ in range(iterations):
        maps = torch.stack([(_around(one[None], dilations)[0].flatten(0, 1) * weights).sum(0) for one in maps])
    return maps


def _around(planes: Float[Tensor, "C h w"], dilations: tuple[int, ...]) -> Float[Tensor, "C D 8 h w"]:
    """The eight neighbours of each pixel at each distance."""
    height, width = planes.shape[1:]
    found = []
    for d in dilations:
        padded = F.pad(planes[None], (d, d, d, d), mode="replicate")[0]
        steps = [(d + d * y, d + d * x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        found.append(torch.stack([padded[:, y : y + height, x : x + width] for y, x in steps], dim=1))
    return torch.stack(found, dim=1)
