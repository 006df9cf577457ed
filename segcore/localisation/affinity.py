"""A random walk that boundaries stop (Ahn, Cho and Kwak, IRN, CVPR 2019, section 4).

Two cells are akin if no boundary lies on the line between them: a_ij = 1 - max over the path of the probability of a
boundary. The walk is m <- T^n m with T = D^-1 A^beta, D the row sums of A^beta; A has the pairs within a radius, both
ways round, and a diagonal of ones. T is sparse: a step costs some 70 products a cell and a map at radius 5.

IRN divides every walked map by its greatest value, which a background of a fixed score cannot stand: how sure a map was
is lost, and a peak that has spread over the whole picture is as great as one that stayed. But the rows of T sum to one,
so that a step makes of each value an average of those around it; `averaged` leaves them so.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy import sparse
from torch import Tensor

Offset = tuple[int, int]


@lru_cache(maxsize=16)
def offsets(radius: int) -> tuple[Offset, ...]:
    """One of each two opposite steps (rows down, columns right) shorter than `radius`, in a fixed order."""
    reach = range(1 - radius, radius)
    half = [(y, x) for y in range(radius) for x in reach if y > 0 or x > 0]
    return tuple((y, x) for y, x in half if y * y + x * x < radius * radius)


@lru_cache(maxsize=256)
def path(offset: Offset) -> tuple[Offset, ...]:
    """The cells of a straight line from a cell to another, both ends included."""
    n = max(abs(offset[0]), abs(offset[1]))
    return tuple((round(offset[0] * k / n), round(offset[1] * k / n)) for k in range(n + 1))


def greatest_on_paths(values: Float[Tensor, "B h w"], radius: int) -> list[Float[Tensor, "B _ _"]]:
    """For each of `offsets`, the greatest value on the path from each cell whose partner lies on the grid."""
    height, width = values.shape[1:]
    found = []
    for dy, dx in offsets(radius):
        first, rows, columns = max(0, -dx), height - dy, width - abs(dx)
        steps = [values[:, y : y + max(0, rows), first + x : first + x + max(0, columns)] for y, x in path((dy, dx))]
        found.append(torch.stack(steps).amax(0))
    return found


@dataclass(frozen=True)
class _Pattern:
    """Where the numbers of A lie in a sparse matrix, for one size of grid and one radius."""

    order: Int64[np.ndarray, " nnz"]
    columns: Int64[np.ndarray, " nnz"]
    starts: Int64[np.ndarray, " rows"]


@lru_cache(maxsize=8)
def _pattern(height: int, width: int, radius: int) -> _Pattern:
    cells = np.arange(height * width).reshape(height, width)
    one, other = [cells.ravel()], [cells.ravel()]  # the diagonal
    for dy, dx in offsets(radius):
        first, rows, columns = max(0, -dx), max(0, height - dy), max(0, width - abs(dx))
        here = cells[:rows, first : first + columns].ravel()
        there = cells[dy : dy + rows, first + dx : first + dx + columns].ravel()
        one += [here, there]
        other += [there, here]
    row, column = np.concatenate(one), np.concatenate(other)
    order = np.lexsort((column, row))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=height * width))])
    return _Pattern(order, column[order], starts)


def transitions(boundary: Float[np.ndarray, "h w"], radius: int, beta: float) -> sparse.csr_matrix:
    """T, whose rows sum to one, from the probability of a boundary at each cell."""
    height, width = boundary.shape
    pattern = _pattern(height, width, radius)
    akin = [np.ones(height * width, dtype=np.float32)]
    for greatest in greatest_on_paths(torch.from_numpy(boundary)[None], radius):
        pair = (1 - greatest.numpy().ravel()) ** beta
        akin += [pair, pair]
    values = np.concatenate(akin)[pattern.order]
    sums = np.add.reduceat(values, pattern.starts[:-1])
    values = values / np.repeat(sums, np.diff(pattern.starts))
    return sparse.csr_matrix((values, pattern.columns, pattern.starts), shape=(height * width,) * 2)


def averaged(
    maps: Float[np.ndarray, "T h w"], boundary: Float[np.ndarray, "h w"], radius: int, beta: float, steps: int
) -> Float[np.ndarray, "T h w"]:
    """T^n m: each value an average of those within reach of `steps` steps, so within the bounds of its map."""
    if not len(maps):
        return maps
    matrix = transitions(boundary.astype(np.float32), radius, beta)
    state = np.ascontiguousarray(maps.reshape(len(maps), -1).T, dtype=np.float32)
    for _ in range(steps):
        state = matrix @ state
    return np.ascontiguousarray(state.T).reshape(maps.shape)


def walk(
    maps: Float[np.ndarray, "T h w"], boundary: Float[np.ndarray, "h w"], radius: int, beta: float, steps: int
) -> Float[np.ndarray, "T h w"]:
    """As published: what lies on boundaries does not set out, and each map is divided by its greatest value."""
    if not len(maps):
        return maps
    walked = averaged(maps * (1 - boundary), boundary, radius, beta, steps)
    return walked / np.maximum(walked.max((1, 2), keepdims=True), np.finfo(np.float32).tiny)
