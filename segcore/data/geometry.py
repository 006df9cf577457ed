"""Where pixels go: scaled, cut, padded, warped, read at the cells of a grid; image and labels alike.

Pixels have their centres at whole numbers, and a picture of L pixels a side that becomes one of S has its pixel x at
(x + 1/2) S / L - 1/2, as OpenCV and torch (without aligned corners) resize.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Int, Int64, Shaped, UInt8
from torch import Tensor

from segcore.data import pictures
from segcore.data.pictures import IGNORE

Box = Sequence[int] | Int[np.ndarray, " 4"]
"""x1, y1, x2, y2 in pixels, half-open."""


@dataclass(frozen=True)
class Grid:
    """The cells of a network over a picture that was stretched to a square: cell i lies at pixel `stride` * i of it.

    So the networks compute: every reduction on the way up is centred on the first pixel. A cell is a place, no area:
    the first lies on the border of the picture, and of a side of `stride` * k + 1 pixels the last one, too. Whatever
    goes from pixels to cells or back follows this one rule, for pictures of any shape.

    Args:
        size: side of the square in pixels.
        stride: pixels of the square to a cell.
    """

    size: int
    stride: int

    @property
    def cells(self) -> int:
        """Cells a side: 41 of 321 pixels at stride 8."""
        return -(-self.size // self.stride)

    def pixels(self, length: int) -> Int64[np.ndarray, " cells"]:
        """The pixel nearest to each cell, along a side of the picture that has `length` of them."""
        # By the stretching itself, so that what lies halfway between two pixels falls to the same side as in training.
        row = np.arange(length, dtype=np.int32)[None]
        stretched = cv2.resize(row, (self.size, 1), interpolation=cv2.INTER_NEAREST_EXACT)
        return stretched[0, :: self.stride].astype(np.int64)

    def nearest(self, length: int) -> Int64[np.ndarray, " length"]:
        """The cell nearest to each pixel along a side of the picture; halfway between two, the later one."""
        doubled = (2 * np.arange(length) + 1) * self.size - length  # 2 * length times the place in the square
        found = (doubled + length * self.stride) // (2 * length * self.stride)
        return np.clip(found, 0, self.cells - 1)

    def at_cells(self, picture: Shaped[np.ndarray, "H W ..."]) -> Shaped[np.ndarray, "h w ..."]:
        """What a picture of any size, or its labels, has at the cells."""
        return picture[np.ix_(self.pixels(picture.shape[0]), self.pixels(picture.shape[1]))]

    def at_pixels(self, cells: Shaped[np.ndarray, "h w ..."], height: int, width: int) -> Shaped[np.ndarray, "H W ..."]:
        """Each pixel of a picture of that size with what the nearest cell has.

        Raises:
            ValueError: `cells` are not those of this grid.
        """
        if cells.shape[:2] != (self.cells, self.cells):
            raise ValueError(f"found {cells.shape[:2]} cells, but {self} has {self.cells} a side")
        return cells[np.ix_(self.nearest(height), self.nearest(width))]


def stretched_square(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[Tensor, "3 S S"]:
    """Scaled to `size` each way; the aspect is not kept."""
    return planes(resized(image, size, size))


def padded_square(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[Tensor, "3 S S"]:
    """Black to the right and below until square, then scaled to `size`, as the authors' inference does."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[:height, :width] = image
    return planes(resized(square, size, size))


def scaled(image: UInt8[np.ndarray, "H W 3"], short: int) -> UInt8[np.ndarray, "h w 3"]:
    height, width = image.shape[:2]
    scale = short / min(height, width)
    return resized(image, max(short, round(width * scale)), max(short, round(height * scale)))


def resized(image: UInt8[np.ndarray, "H W 3"], width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resized_labels(labels: UInt8[np.ndarray, "H W"], width: int, height: int) -> UInt8[np.ndarray, "h w"]:
    # INTER_NEAREST would shift labels against the image by up to a pixel; the exact one shares its pixel centres.
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def random_window(
    image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"], size: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "S S"]]:
    """A square of both, after filling up what is smaller than it below and to the right."""
    height, width = labels.shape
    below, right = max(0, size - height), max(0, size - width)
    image = np.pad(image, ((0, below), (0, right), (0, 0)))
    labels = np.pad(labels, ((0, below), (0, right)), constant_values=IGNORE)
    top = rng.integers(0, labels.shape[0] - size + 1)
    left = rng.integers(0, labels.shape[1] - size + 1)
    window = np.s_[top : top + size, left : left + size]
    return image[window], labels[window]


def random_square(image: UInt8[np.ndarray, "H W 3"], size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    top = rng.integers(0, image.shape[0] - size + 1)
    left = rng.integers(0, image.shape[1] - size + 1)
    return image[top : top + size, left : left + size]


def planes(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def cut(
    image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"] | None, box: Box, size: int
) -> tuple[UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "S S"]]:
    """The box of image and labels, warped to `size` x `size`; the aspect is not kept.

    Beyond the image lie 0 (black) and 255 (unknown). The image is bilinear, or averaged where both axes shrink; labels
    take the nearest pixel. Without labels all are 255.
    """
    x1, y1, x2, y2 = (int(value) for value in box)
    height, width = image.shape[:2]
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if left >= right or top >= bottom:
        return np.zeros((size, size, 3), dtype=np.uint8), np.full((size, size), pictures.IGNORE, dtype=np.uint8)

    def warped(picture: np.ndarray, beyond: int, interpolation: int) -> np.ndarray:
        part = picture[top:bottom, left:right]
        margins = (top - y1, y2 - bottom, left - x1, x2 - right)
        if any(margins):
            part = cv2.copyMakeBorder(part, *margins, cv2.BORDER_CONSTANT, value=(beyond,) * 3)
        return cv2.resize(part, (size, size), interpolation=interpolation)

    shrinks = min(x2 - x1, y2 - y1) > size
    pixels = warped(image, 0, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if labels is None:
        return pixels, np.full((size, size), pictures.IGNORE, dtype=np.uint8)
    # INTER_NEAREST would shift labels against the image by up to a pixel; the exact one shares its pixel centres.
    return pixels, warped(labels, pictures.IGNORE, cv2.INTER_NEAREST_EXACT)
