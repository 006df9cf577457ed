"""Fixed views of a picture: what a frozen trunk sees of it is the same each time, so it has to look only once."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from segcore.data.geometry import padded_square
from segcore.networks.pooled_head import PooledHead


@dataclass(frozen=True)
class View:
    """A picture padded to a square with black below and to the right, of so many pixels a side, mirrored or not."""

    size: int
    mirrored: bool

    @property
    def name(self) -> str:
        return f"{self.size}{'m' if self.mirrored else ''}"

    def of(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 S S"]:
        """The square; a mirrored one has its padding on the left, as when predictions are mirrored."""
        square = padded_square(image, self.size)
        return square.flip(2) if self.mirrored else square


def views_of(head: PooledHead) -> tuple[View, ...]:
    """The views that a head is fitted to."""
    return tuple(View(size, mirrored) for size in head.sizes for mirrored in ((False, True) if head.flip else (False,)))
