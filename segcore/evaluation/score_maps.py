"""The scores of one image at each of its pixels, never held all at once where the image is large.

A picture of 24 megapixels and 21 classes has scores of 2 GB. What a network gave is far smaller, and is enlarged when
it is asked for, some classes at a time. Each class is enlarged by itself, so the scores are the same bit for bit,
however they are asked for. Classes that can be the greatest nowhere in a large image are found before any is enlarged.

On a CPU, OpenCV enlarges a plane in a fifth of the time that torch takes; they differ by the rounding of where a pixel
lies, 1e-5 of the difference between two cells.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from math import ceil

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from segcore.data.geometry import Box

AT_ONCE = 128 * 2**20
"""Bytes of scores up to which an image's are handled as one tensor, as those of any photograph of VOC's size are."""

CLOSE = 1e-5
"""Of the greatest absolute score: far more than enlarging rounds by. Classes so close to the winner are looked at."""

MOST_MIXED = 0.5
"""Share of a grid's cells with several winners at their corners, beyond which looking at those takes too long."""


class ScoreMaps(ABC):
    """Scores of K classes at each pixel of an image."""

    def __init__(self, classes: int, height: int, width: int) -> None:
        self.classes = classes
        self.height = height
        self.width = width

    @abstractmethod
    def of(self, classes: slice) -> Float[Tensor, "_ H W"]:
        """The scores of some classes at each pixel."""

    @property
    def small(self) -> bool:
        return 4 * self.classes * self.height * self.width <= AT_ONCE

    def whole(self) -> Float[Tensor, "K H W"]:
        """The scores of all classes."""
        return self.of(slice(0, self.classes))

    def ranked(self, classes: slice) -> Float[Tensor, "_ H W"]:
        """The scores of some classes times what keeps their order at each pixel, bit for bit."""
        return self.of(classes)

    def sampled(self, step: int) -> Float[Tensor, "K _ _"]:
        """The scores of all classes on a grid of places, about every so many pixels each way."""
        if self.small:
            return self.whole()[:, ::step, ::step]
        return torch.cat([self.of(slice(k, k + 1))[:, ::step, ::step] for k in range(self.classes)])

    def winners(self, among: Sequence[int] | None = None) -> UInt8[np.ndarray, "H W"]:
        """The class with the greatest score at each pixel, the first one of equal ones; of all, or `among` some."""
        every = list(range(self.classes) if among is None else among)
        if self.small and not self.in_planes:
            places = winners(self.ranked(slice(0, self.classes))[every])
        else:
            some = every if self.small else self.contenders(every)
            places = _winners_in_turn(self.ranked(slice(k, k + 1))[0] for k in some)
            every = some
        return places if every == list(range(self.classes)) else np.asarray(every, dtype=np.uint8)[places]

    @property
    def in_planes(self) -> bool:
        """Whether classes that are asked for one by one cost no more than all at once."""
        return False

    def contenders(self, among: list[int]) -> list[int]:
        """Of some classes, those that may have the greatest score at some pixel: at least all that have."""
        return among


class Enlarged(ScoreMaps):
    """Scores that are held at each pixel."""

    def __init__(self, scores: Float[Tensor, "K H W"]) -> None:
        super().__init__(*scores.shape)
        self.scores = scores

    def of(self, classes: slice) -> Float[Tensor, "_ H W"]:
        return self.scores[classes]


class Mean(ScoreMaps):
    """The mean over passes, each of which gave scores of a square that the image became.

    Passes of one size are added up before they are enlarged: enlarging is linear, and costs more than the sum.

    Args:
        height, width: of the image.
        square: height and width of what the square was made of: of the image, or of the image padded with black.
        passes: how many there will be.
    """

    def __init__(self, height: int, width: int, square: tuple[int, int], classes: int, passes: int) -> None:
        super().__init__(classes, height, width)
        self.square = square
        self.passes = passes
        self.sums: dict[tuple[int, ...], Float[Tensor, "1 K _ _"]] = {}

    def add(self, scores: Float[Tensor, "1 K S S"]) -> None:
        """One more pass, or the sum of several of one size."""
        former = self.sums.get(scores.shape)
        self.sums[scores.shape] = scores if former is None else former + scores

    def of(self, classes: slice) -> Float[Tensor, "_ H W"]:
        return self._enlarged([some[:, classes] for some in self.sums.values()])

    def ranked(self, classes: slice) -> Float[Tensor, "_ H W"]:
        if self.passes & (self.passes - 1):
            return self.of(classes)  # by anything but a power of two, two scores may be rounded to one
        return self._total([some[:, classes] for some in self.sums.values()])

    @property
    def in_planes(self) -> bool:
        return next(iter(self.sums.values())).device.type == "cpu"

    def sampled(self, step: int) -> Float[Tensor, "K _ _"]:
        if len(self.sums) > 1:
            return super().sampled(step)
        grid = next(iter(self.sums.values()))[0]  # the network's own places, which need no enlarging
        down, across = (grid.shape[1 + axis] / self.square[axis] for axis in (0, 1))
        rows, columns = ceil(self.height * down), ceil(self.width * across)
        some = grid[:, : rows : max(1, ceil(step * down)), : columns : max(1, ceil(step * across))]
        return some.contiguous() / self.passes

    def contenders(self, among: list[int]) -> list[int]:
        """What `among` may win at some pixel.

        Between the four corners of a cell, scores lie between those of the corners, and a class below another one at
        all four is below it everywhere between. So a class may win that is (close to) the greatest at a corner, or
        whose greatest corner in a cell with several winners is not below the least corner of every other class.
        """
        if len(self.sums) > 1 or len(among) == 1:
            return among
        grid = next(iter(self.sums.values()))[0]
        grid = grid if len(among) == self.classes else grid[among]
        best = grid.amax(0)
        if not best.isfinite().all():
            return among
        close = CLOSE * _greatest(grid)
        able = (grid >= best - close).flatten(1).any(1)
        mixed = _mixed(grid[able].max(0).indices)
        if mixed.numel() > MOST_MIXED * best.numel():
            return among
        if mixed.numel():
            values, width = grid.flatten(1), best.shape[1]
            corners = torch.stack([values.index_select(1, mixed + there) for there in (0, 1, width, width + 1)])
            able |= (corners.amax(0) >= corners.amin(0).amax(0) - close).any(1)
        return [k for k, may in zip(among, able.tolist(), strict=True) if may]

    def _enlarged(self, sums: Sequence[Float[Tensor, "1 _ _ _"]]) -> Float[Tensor, "_ H W"]:
        return self._total(sums).div_(self.passes)

    def _total(self, sums: Sequence[Float[Tensor, "1 _ _ _"]]) -> Float[Tensor, "_ H W"]:
        whole = [_scaled(some, self.square) for some in sums]
        total = whole[0] if len(whole) == 1 else torch.stack(whole).sum(0)
        return total[:, : self.height, : self.width]


class Greatest(ScoreMaps):
    """The greatest score of windows that overlap, from 0 up."""

    def __init__(
        self, height: int, width: int, boxes: Sequence[Box], scores: Sequence[Float[Tensor, "1 K S S"]]
    ) -> None:
        super().__init__(scores[0].shape[1], height, width)
        self.boxes = boxes
        self.scores = scores

    def of(self, classes: slice) -> Float[Tensor, "_ H W"]:
        some = self.scores[0][0, classes]
        best = some.new_zeros(len(some), self.height, self.width)
        for (x1, y1, x2, y2), scores in zip(self.boxes, self.scores, strict=True):
            window = F.interpolate(scores[:, classes], (int(y2 - y1), int(x2 - x1)), mode="bilinear")[0]
            best[:, y1:y2, x1:x2] = torch.maximum(best[:, y1:y2, x1:x2], window)
        return best


def _scaled(scores: Float[Tensor, "1 K _ _"], size: tuple[int, int]) -> Float[Tensor, "K H W"]:
    """Scores at another size, bilinear, with half a pixel around the outermost centres."""
    if scores.device.type != "cpu":
        return F.interpolate(scores, size, mode="bilinear")[0]
    planes = np.empty((scores.shape[1], *size), dtype=np.float32)
    for own, plane in zip(scores[0].float().numpy(), planes, strict=True):
        cv2.resize(np.ascontiguousarray(own), (size[1], size[0]), dst=plane, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(planes)


def _greatest(grid: Float[Tensor, "K h w"]) -> float:
    least, most = torch.aminmax(grid)
    return max(-float(least), float(most))


def _mixed(first: Tensor) -> Tensor:
    """The upper left places, in one row after the other, of cells whose corners have several winners."""
    corner = first[:-1, :-1]
    several = (corner != first[:-1, 1:]) | (corner != first[1:, :-1]) | (corner != first[1:, 1:])
    rows, columns = several.nonzero(as_tuple=True)
    return rows * first.shape[1] + columns


def _winners_in_turn(planes: Iterable[Float[Tensor, "H W"]]) -> UInt8[np.ndarray, "H W"]:
    """Which plane has the greatest score at each pixel, the first one of equal ones; one or two are held at a time."""
    turns = iter(planes)
    best = next(turns).clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for place, scores in enumerate(turns, 1):
        if best.device.type == "cpu":  # by numpy, in a third of the time
            above = np.greater(scores.numpy(), best.numpy()).view(np.uint8)
            np.maximum(labels.numpy(), np.multiply(above, place, dtype=np.uint8), out=labels.numpy())
            np.maximum(best.numpy(), scores.numpy(), out=best.numpy())
        else:
            labels.masked_fill_(scores > best, place)
            torch.maximum(best, scores, out=best)
    return labels.cpu().numpy()


def winners(scores: Float[Tensor, "K H W"]) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel."""
    # The same as argmax, the first class where two are equal, in a third of the time on a CPU.
    return scores.max(0).indices.to(torch.uint8).cpu().numpy()
