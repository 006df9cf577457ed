"""A large picture in windows that overlap: each predicted as a picture of its own, blended into one.

A window of the network's own size is seen at the picture's own scale, small objects with it; a whole picture is scaled
down to that size. Windows are blended linearly in the middle half of what they share: the outer quarter of it counts
for nothing, as a network knows least at the edge of what it sees. Scores are handed out a block at a time, and those of
one window and of the rows that two rows of windows share are held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segcore.config.section import Views
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.systems.contract import System

ROWS = 64
"""That are handed out at once: what is made of them takes several times the memory of their scores."""

Pixels = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class Tiles:
    """Windows of `size` pixels a side, of which neighbours share at least `overlap` pixels.

    Raises:
        Problem: an overlap of more than half of the windows.
    """

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not (self.size >= 1 and 0 <= 2 * self.overlap <= self.size):
            raise Problem(f"--overlap: found {self.overlap} for windows of {self.size}; allowed are 0 to half of that")

    def fits(self, height: int, width: int) -> bool:
        """Whether one window holds such a picture, which is then predicted whole."""
        return max(height, width) <= self.size

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side of so many pixels: as few as there can be, evenly spread."""
        if length <= self.size:
            return [0]
        step = self.size - self.overlap
        number = -(-(length - self.overlap) // step)
        return [round(place * (length - self.size) / (number - 1)) for place in range(number)]

    def weights(self, start: int, length: int) -> Float[np.ndarray, " n"]:
        """What each pixel of a window counts, along a side; the edges of the picture are no edges to be wary of."""
        n = min(self.size, length)
        place = np.arange(n) + 0.5
        weights = np.ones(n)
        for is_inner, distance in ((start > 0, place), (start + n < length, n - place)):
            if is_inner and self.overlap:
                weights = np.minimum(weights, (distance - self.overlap / 4) / (self.overlap / 2))
        return np.clip(weights, 0, 1)


class Block(NamedTuple):
    """Final scores of all classes at some pixels of the picture."""

    rows: slice
    columns: slice
    scores: Float[Tensor, "K _ _"]


@torch.no_grad()
def blocks(
    system: System, picture: Pixels, tiles: Tiles, input_size: int, views: Views, batch_size: int
) -> Iterator[Block]:
    """The scores of all classes at each pixel, a block at a time: from the top down, and from the left.

    Windows are predicted `batch_size` at a time, those of one row of windows together. Held are the scores of one
    window, and of the rows that two rows of windows share; sums have the weights' own as one class more.
    """
    height, width = picture.shape[:2]
    tops, lefts = tiles.starts(height), tiles.starts(width)
    across = [tiles.weights(left, width) for left in lefts]
    n = len(across[0])
    shared: Tensor | None = None  # sums so far in the rows that the row of windows before shares with this one
    kept = 0
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        down = tiles.weights(top, height)
        done = following - top
        scores = _of_a_row(system, picture[top : top + tiles.size], lefts, tiles.size, input_size, views, batch_size)
        total: Tensor | None = None  # sums in the columns of the window
        for left, next_left, weights, window in zip(lefts, [*lefts[1:], width], across, scores, strict=True):
            if shared is None:
                most = max((a + len(down) - b for a, b in pairwise(tops)), default=0)
                shared = window.new_zeros(len(window) + 1, most, width)
            fresh = window.new_zeros(len(window) + 1, len(down), n)
            before = 0 if total is None else total.shape[2]  # columns that the windows on the left were seen at, too
            if total is not None:
                fresh[:, :, :before] = total
            fresh[:, :kept, before:] = shared[:, :kept, left + before : left + n]
            total = fresh
            _add(total, window, torch.from_numpy(np.outer(down, weights)).to(window))
            columns = next_left - left
            for first in range(0, done, ROWS):
                some = slice(first, min(first + ROWS, done))
                means = total[:-1, some, :columns] / total[-1, some, :columns]
                yield Block(slice(top + some.start, top + some.stop), slice(left, next_left), means)
            shared[:, : len(down) - done, left:next_left] = total[:, done:, :columns]
            total = total[:, :, columns:]
        kept = len(down) - done


def _add(total: Float[Tensor, "K1 h w"], scores: Float[Tensor, "K h w"], weights: Float[Tensor, "h w"]) -> None:
    """Add a window's weighted scores, which are used up, and its weights as the class more."""
    total[:-1] += scores.mul_(weights)
    total[-1] += weights


def _of_a_row(
    system: System, strip: Pixels, lefts: list[int], size: int, input_size: int, views: Views, batch_size: int
) -> Iterator[Float[Tensor, "K _ _"]]:
    """The scores of the windows of a row, from the left, each in memory of its own."""
    for first in range(0, len(lefts), batch_size):
        windows = [strip[:, left : left + size] for left in lefts[first : first + batch_size]]
        yield from _scores(system, windows, size, input_size, views)


def _scores(
    system: System, windows: list[Pixels], size: int, input_size: int, views: Views
) -> Iterator[Float[Tensor, "K _ _"]]:
    """The scores of windows at their own pixels; where the picture is narrower than a window, its edge goes on."""
    shapes = [window.shape[:2] for window in windows]
    if system.square == "stretch":  # of what is no square the aspect would be given up
        windows = [
            np.asarray(cv2.copyMakeBorder(w, 0, size - h, 0, size - v, cv2.BORDER_REPLICATE))
            for w, (h, v) in zip(windows, shapes, strict=True)
        ]
    squares = [inference.squares_of(system, window, input_size, views.scales) for window in windows]
    maps = inference.maps_of(system, squares, views.flip)
    return (some.whole()[:, :h, :v] for some, (h, v) in zip(maps, shapes, strict=True))
