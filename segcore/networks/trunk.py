"""What every trunk is: the maps of all its levels, and the max-pool switches on the way where there are any."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from segcore.networks.package_weights import IMAGENET_MEAN, IMAGENET_STD

LEVELS = 5
"""Halvings from the image to the top map at stride 32."""


@dataclass(frozen=True)
class Features:
    """What a trunk hands on.

    `levels` has the last map of each level, finest first; their channels and strides are the trunk's `level_channels`
    and `level_strides`. n pixels give ceil(n / stride) cells (at stride 32 VGG rounds down).
    `switches` has one entry a level, finest (1/2) first: the flat position of each maximum within its plane, or None
    where the trunk reduces the map in another way, as every trunk of a smaller stride than 32 does.
    """

    levels: Sequence[Float[Tensor, "B _ _ _"]]
    switches: tuple[Int64[Tensor, "B _ _ _"] | None, ...]

    @property
    def top(self) -> Float[Tensor, "B C h w"]:
        """The map of the last level, at 1/stride of the input."""
        return self.levels[-1]

    def top_only(self) -> "Features":
        """The same without the other levels: what holds on to features does not hold on to maps that it never reads."""
        return Features((self.top,), self.switches)

    def pick(self, index: Int64[Tensor, " P"]) -> "Features":
        """The features of the images at `index`; an image may be picked several times.

        A level is copied when it is asked for, each time anew: fine maps that nobody reads cost nothing.
        """
        return Features(_Picked(self.levels, index), tuple(None if s is None else s[index] for s in self.switches))


class _Picked(Sequence[Tensor]):
    """The levels of the images at `places`."""

    def __init__(self, levels: Sequence[Tensor], places: Int64[Tensor, " P"]) -> None:
        self.levels = levels
        self.places = places

    def __len__(self) -> int:
        return len(self.levels)

    @overload
    def __getitem__(self, level: int) -> Tensor: ...

    @overload
    def __getitem__(self, level: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, level: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(level, slice):
            return _Picked(self.levels[level], self.places)
        return self.levels[level][self.places]


class Trunk(nn.Module):
    """A network without its head; takes RGB in 0..255 and normalises it itself.

    The weights have the same names and shapes at every stride: at 8 and 16 the last levels are dilated instead of
    reduced, so that each of their units sees what it saw in the pre-training, at more places.

    Attributes:
        channels: channels of the map on top.
        stride: pixels of the image to one cell of that map, 8, 14, 16 or 32.
        level_channels: channels of the maps of all levels, finest first.
        level_strides: pixels of the image to one cell of each of them; never falling, the last is `stride`.
        switch_channels: per level, finest first, the channels of its max-pool switches, or None.
    """

    channels: int
    level_channels: tuple[int, ...]
    level_strides: tuple[int, ...]
    switch_channels: tuple[int | None, ...]
    mean: Tensor
    std: Tensor

    def __init__(self, frozen_norm: bool, stride: int) -> None:
        super().__init__()
        self.frozen_norm = frozen_norm
        self.stride = stride
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def normalise_as(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take other constants than torchvision's: mean and deviation of red, green and blue, of the colours 0..1."""
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float64).mul(255).float().view(1, 3, 1, 1).to(self.mean.device)
            for values in (mean, std)
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Images in 0..255, of any type, as the pre-training saw them."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    @property
    def middle(self) -> nn.Module:
        """The layer halfway up whose output still shows places well: conv4_1 of VGG, else the last level but one."""
        raise NotImplementedError

    def as_map(self, inside: Tensor, top: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B _ _ _"]:
        """What the layer `middle` gives, or its gradient, as a map; `top` is the top map of the same images."""
        return inside

    def train(self, mode: bool = True) -> "Trunk":
        """As always, but statistics of a pre-training that are to stay are not touched."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def halved(stride: int) -> tuple[int, ...]:
    """The strides of five levels, each half as fine as the one before, down to `stride`."""
    return tuple(min(2 ** (level + 1), stride) for level in range(LEVELS))
