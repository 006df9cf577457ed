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


def bilinear(side: Float[Tensor, ""], length: int, cells: int, like: Tensor) -> Float[Tensor, "cells length"]:
    """Weights of OpenCV's `INTER_LINEAR` along such an axis: between the centres of pixels, the outermost repeated."""
    place = (_places(cells, side) + 0.5) * (1 / (cells / side)) - 0.5
    return _between(place.floor(), place - place.floor(), side, length, like)


def bilinear_of_areas(side: Float[Tensor, ""], length: int, cells: int, like: Tensor) -> Float[Tensor, "cells length"]:
    """Weights of OpenCV's `INTER_AREA` along an axis where either of the two grows: it then interpolates, between
    places that follow the areas.
    """
    per_pixel, cell = torch.div(cells, side), _places(cells, side)
    first = (cell * (1 / per_pixel)).floor()
    beyond = (cell + 1) - (first + 1) * per_pixel
    return _between(first, torch.where(beyond > 0, beyond - beyond.floor(), 0.0), side, length, like)


def _between(
    first: Float[Tensor, " cells"], share: Float[Tensor, " cells"], side: Float[Tensor, ""], length: int, like: Tensor
) -> Float[Tensor, "cells length"]:
    """`share` of the pixel behind `first`, and the rest of that pixel itself."""
    share = (share.to(like.dtype) * FIXED_POINT).round() / FIXED_POINT
    share = torch.where((first < 0) | (first >= side - 1), 0.0, share)
    first = torch.minimum(first.clamp(min=0), side - 1)
    pixels = _places(length, side)[None]
    here, behind = (pixels == first[:, None]).to(like.dtype), (pixels == first[:, None] + 1).to(like.dtype)
    return here * (1 - share)[:, None] + behind * share[:, None]


def _places(count: int, like: Tensor) -> Float[Tensor, " count"]:
    return torch.arange(count, device=like.device).to(like.dtype)


def _number(value: int, like: Tensor) -> Float[Tensor, ""]:
    """A length as a tensor, which stays a function of the size in a graph that was traced for any."""
    return torch.scalar_tensor(value, dtype=like.dtype, device=like.device)
