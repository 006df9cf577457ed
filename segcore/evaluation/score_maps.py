"""The scores of one image at each of its pixels, never held all at once where the image is large.

A picture of 24 megapixels and 21 classes has scores of 2 GB. What a network gave is far smaller, and is enlarged when
it is asked for, some classes at a time. Each class is enlarged by itself, so the scores are the same bit for bit,
however they are asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from segcore.data.geometry import Box

AT_ONCE = 128 * 2**20
"""Bytes of scores up to which an image's are handled as one tensor, as those of any photograph of VOC's size are."""


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

    def every(self, step: int) -> Float[Tensor, "K _ _"]:
        """The scores of all classes at every so many pixels, each way."""
        if self.small:
            return self.whole()[:, ::step, ::step]
        return torch.cat([self.of(slice(k, k + 1))[:, ::step, ::step] for k in range(self.classes)])

    def winners(self, among: Sequence[int] | None = None) -> UInt8[np.ndarray, "H W"]:
        """The class with the greatest score at each pixel, the first one of equal ones; of all, or `among` some."""
        some = range(self.classes) if among is None else among
        if self.small:
            scores = self.whole() if among is None else self.whole()[list(among)]
            return np.asarray(some, dtype=np.uint8)[winners(scores)]
        best = self.of(slice(some[0], some[0] + 1))[0].clone()
        labels = torch.full(best.shape, some[0], dtype=torch.uint8, device=best.device)
        for k in some[1:]:
            scores = self.of(slice(k, k + 1))[0]
            labels.masked_fill_(scores > best, k)
            torch.maximum(best, scores, out=best)
        return labels.cpu().numpy()


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
        """One more pass."""
        former = self.sums.get(scores.shape)
        self.sums[scores.shape] = scores.clone() if former is None else former + scores

    def of(self, classes: slice) -> Float[Tensor, "_ H W"]:
        whole = [F.interpolate(some[:, classes], self.square, mode="bilinear")[0] for some in self.sums.values()]
        total = whole[0] if len(whole) == 1 else torch.stack(whole).sum(0)
        return (total / self.passes)[:, : self.height, : self.width]


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


def winners(scores: Float[Tensor, "K H W"]) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel."""
    # The same as argmax, the first class where two are equal, in a third of the time on a CPU.
    return scores.max(0).indices.to(torch.uint8).cpu().numpy()
