"""Maps that are read between cells: from the cells of one grid to those of another, or to pixels, linearly.

Where cells lie is `data.geometry.Grid`'s one rule: cell i at pixel `stride` * i of the picture stretched to a square.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from segcore.data.geometry import Grid


@lru_cache(maxsize=64)
def cells_of(grid: Grid, other: Grid, mirrored: bool = False) -> Float[Tensor, "n m"] | None:
    """What reads, along a side, the map of `other` at the cells of `grid`; None where the cells are the same.

    `mirrored` turns the direction round: the other grid lies over the mirrored picture.
    """
    if grid == other and not mirrored:
        return None
    pixels = torch.arange(grid.cells, dtype=torch.float64) * grid.stride
    places = (pixels + 0.5) * other.size / grid.size - 0.5
    if mirrored:
        places = other.size - 1 - places
    return _linear(places / other.stride, other.cells)


@lru_cache(maxsize=1024)
def pixels_of(length: int, grid: Grid) -> Float[Tensor, "length m"]:
    """What reads the map of `grid` at the pixels along a side of a picture."""
    places = (torch.arange(length, dtype=torch.float64) + 0.5) * grid.size / length - 0.5
    return _linear(places / grid.stride, grid.cells)


def enlarged(maps: Float[Tensor, "T h w"], grid: Grid, height: int, width: int) -> Float[Tensor, "T H W"]:
    """Maps at the cells of a grid, read at the pixels of a picture of any size."""
    rows, columns = (pixels_of(side, grid).to(maps) for side in (height, width))
    return rows @ maps @ columns.mT


def moved(maps: Float[Tensor, "*B h w"], grid: Grid, other: Grid) -> Float[Tensor, "*B y x"]:
    """Maps at the cells of `other`, read at those of `grid`."""
    reader = cells_of(grid, other)
    if reader is None:
        return maps
    reader = reader.to(maps)
    return reader @ maps @ reader.mT


def _linear(places: Float[Tensor, " n"], cells: int) -> Float[Tensor, "n m"]:
    """Each place between two cells takes of both by its distance; beyond the first and the last, these alone."""
    distance = (places.clamp(0, cells - 1)[:, None] - torch.arange(cells, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0).float()
