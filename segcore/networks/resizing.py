"""Pictures resized by products with matrices: what a graph can hold for any size, and the same on every runtime.

OpenCV's area averages, and torch's interpolation with `antialias`, have no counterpart in ONNX that gives the same
numbers. Both are linear and go along one axis after the other, so each axis is a product with a matrix, which is made
of the lengths of the axis alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor

FIXED_POINT = 2048
"""Steps of 1 that OpenCV rounds the weights of 8-bit bilinear interpolation to."""


def antialiased(length: int, cells: int, like: Tensor) -> Float[Tensor, "cells length"]:
    """Weights of `F.interpolate(mode="bilinear", align_corners=True, antialias=True)` along an axis.

    Args:
        length: what the axis has; `cells`, what it is to have, at least 2 and no more than `length`.
        like: of whose type and device the weights are to be.
    """
    scale = _number(length - 1, like) / _number(cells - 1, like)
    centres = (_places(cells, like) + 0.5)[:, None] * scale
    weights = (1 - ((_places(length, like) + 0.5)[None] - centres).abs() / scale).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def area(side: Float[Tensor, ""], length: int, cells: int, like: Tensor) -> Float[Tensor, "cells length"]:
    """Weights of OpenCV's `INTER_AREA` along an axis of `side` pixels, of which those from `length` on are black.

    `side` is a number of at least `cells`, in double precision, as what OpenCV computes with: where a cell begins right
    at a pixel, a last digit decides to which of two it belongs.
    """
    scale = 1 / (cells / side)
    first, pixels = _places(cells, side)[:, None] * scale, _places(length, side)[None]
    weights = (torch.minimum(first + scale, pixels + 1) - torch.maximum(first, pixels)).clamp(min=0) / scale
    return weights.to(like.dtype)


def opencv(
    pixels: Float[Tensor, "3 H W"], sides: tuple[Float[Tensor, ""], Float[Tensor, ""]], cells: int
) -> Float[Tensor, "3 S S"]:
    """What `cv2.resize` makes of 8-bit pixels, as `data.geometry.resized` calls it: areas where the width shrinks.

    Args:
        sides: height and width of the picture, in double precision; below and to the right of `pixels` it is black.
        cells: height and width of what it becomes.
    """
    lengths = pixels.shape[1], pixels.shape[2]
    rows, columns = (area(side, length, cells, pixels) for side, length in zip(sides, lengths, strict=True))
    averages = (rows @ pixels @ columns.T).round()
    shrinks = sides[1] > cells
    between = _bilinear(pixels, sides, cells, shrinks)
    return torch.where(shrinks & (sides[0] >= cells), averages, between).clamp(0, 255)


def _bilinear(
    pixels: Float[Tensor, "3 H W"], sides: tuple[Float[Tensor, ""], Float[Tensor, ""]], cells: int, by_areas: Tensor
) -> Float[Tensor, "3 S S"]:
    """OpenCV's interpolation of 8-bit pixels, the digits that it cuts off included.

    Args:
        by_areas: whether places follow the areas, as they do for `INTER_AREA` where one axis grows.
    """
    (upper, below, down), (left, right, along) = (
        _pair(*of, cells, by_areas) for of in zip(sides, pixels.shape[1:], strict=True)
    )
    exact = pixels.to(torch.float64)
    mixed = exact @ left.T * (FIXED_POINT - along) + exact @ right.T * along
    mixed = (mixed / 16).floor()
    down = down[:, None]
    parts = ((upper @ mixed) * (FIXED_POINT - down) / 2**16).floor() + ((below @ mixed) * down / 2**16).floor()
    return ((parts + 2) / 4).floor().to(pixels.dtype)


def _pair(
    side: Float[Tensor, ""], length: int, cells: int, by_areas: Tensor
) -> tuple[Float[Tensor, "cells length"], Float[Tensor, "cells length"], Float[Tensor, " cells"]]:
    """The two pixels along an axis that each cell lies between, as ones in rows of zeros, and the weight of the second.

    The weight is a whole number of `FIXED_POINT`; a row of a pixel beyond `length`, which is black, has no one.
    """
    per_pixel, cell = torch.div(cells, side), _places(cells, side)
    scale = 1 / per_pixel
    centre = (cell + 0.5) * scale - 0.5
    start = (cell * scale).floor()
    beyond = (cell + 1) - (start + 1) * per_pixel
    first = torch.where(by_areas, start, centre.floor())
    share = torch.where(by_areas, torch.where(beyond > 0, beyond - beyond.floor(), 0.0), centre - centre.floor())
    share = torch.where((first < 0) | (first >= side - 1), 0.0, share)
    first = torch.minimum(first.clamp(min=0), side - 1)[:, None]
    pixels = _places(length, side)[None]
    weight = (share.float() * FIXED_POINT).round().to(side.dtype)
    return (pixels == first).to(side.dtype), (pixels == first + 1).to(side.dtype), weight


def _places(count: int, like: Tensor) -> Float[Tensor, " count"]:
    return torch.arange(count, device=like.device).to(like.dtype)


def _number(value: int, like: Tensor) -> Float[Tensor, ""]:
    """A length as a tensor, which stays a function of the size in a graph that was traced for any."""
    return torch.scalar_tensor(value, dtype=like.dtype, device=like.device)
