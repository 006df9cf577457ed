"""A large picture in windows that overlap: each predicted as a picture of its own, blended into one.

A window of the network's own size is seen at the picture's own scale, small objects with it; a whole picture is scaled
down to that size. Windows are blended linearly in the middle half of what they share: the outer quarter of it counts
for nothing, as a network knows least at the edge of what it sees. Scores of a band of rows are held at a time, so the
memory does not grow with the height of the picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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


@torch.no_grad()
def bands(
    system: System, picture: Pixels, tiles: Tiles, input_size: int, views: Views, batch_size: int
) -> Iterator[Float[Tensor, "K _ W"]]:
    """The scores of all classes at each pixel, some rows at a time, from the top down.

    Windows are predicted `batch_size` at a time, those of one row of windows together.
    """
    height, width = picture.shape[:2]
    tops, lefts = tiles.starts(height), tiles.starts(width)
    across = [tiles.weights(left, width) for left in lefts]
    total: Tensor | None = None  # of the rows from `top` on, with the sum of the weights as one class more
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        down = tiles.weights(top, height)
        rows = len(down)
        for first in range(0, len(lefts), batch_size):
            some = range(first, min(first + batch_size, len(lefts)))
            windows = [picture[top : top + tiles.size, lefts[i] : lefts[i] + tiles.size] for i in some]
            for i, scores in zip(some, _scores(system, windows, tiles.size, input_size, views), strict=True):
                if total is None:
                    total = scores.new_zeros(len(scores) + 1, rows, width)
                weights = torch.from_numpy(np.outer(down, across[i])).to(scores)
                there = total[:, :, lefts[i] : lefts[i] + scores.shape[2]]
                there[:-1] += scores * weights
                there[-1] += weights
        assert total is not None
        done = following - top
        for first in range(0, done, ROWS):
            some = slice(first, min(first + ROWS, done))
            yield total[:-1, some] / total[-1, some]
        for first in range(0, rows - done, done):  # so much at once lies in nobody's way, and needs no copy
            last = min(first + done, rows - done)
            total[:, first:last] = total[:, first + done : last + done]
        total[:, rows - done :] = 0


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
