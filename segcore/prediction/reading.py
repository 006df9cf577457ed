"""Pictures as a batch holds them: squares of the network's size, so that large photographs need not stay in memory."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segcore.data.pictures import BROKEN, opened, read_image
from segcore.errors import Problem
from segcore.evaluation.inference import Squares
from segcore.prediction.listing import Photo
from segcore.prediction.model import Model

LARGE = 2_000_000
"""Pixels beyond which pictures are decoded one after the other, and again where they are needed again."""

TURNED = 0x0112
"""EXIF's tag for the orientation; above 4 height and width change places."""

_one_large = threading.Lock()


@dataclass(frozen=True)
class Ready:
    """A picture, ready to be predicted.

    `squares` are what the network takes of it; None where it is predicted in windows, or by proposals. `picture` is
    the photograph itself, where it is small and will be needed again.
    """

    path: Path
    height: int
    width: int
    squares: Squares | None
    picture: UInt8[np.ndarray, "H W 3"] | None

    @property
    def is_large(self) -> bool:
        return self.height * self.width > LARGE

    def pixels(self) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph."""
        return read_image(self.path) if self.picture is None else self.picture


def ready(model: Model, photo: Photo, keep: bool) -> Ready | str:
    """Read a picture, or say what is wrong with it; `keep` its photograph if that will be needed again."""
    try:
        height, width = _size(photo.path)
        if height and not model.fits(height, width):
            return Ready(photo.path, height, width, None, None)  # it is read when it is its turn
        if height * width <= LARGE:
            return _decoded(model, photo, keep)
        with _one_large:
            return _decoded(model, photo, False)
    except Problem as problem:
        return told(problem)


def told(problem: Problem) -> str:
    """What is wrong with a picture of somebody's, which is of no data set."""
    return str(problem).split("; mend it")[0]


def _decoded(model: Model, photo: Photo, keep: bool) -> Ready:
    picture = read_image(photo.path)
    squares = model.squares(picture)
    return Ready(photo.path, picture.shape[0], picture.shape[1], squares, picture if keep else None)


def _size(path: Path) -> tuple[int, int]:
    """Height and width as a person sees the picture; of one that cannot be opened, nothing: reading it says why."""
    try:
        with opened(path) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(TURNED, 1) > 4 else (height, width)
    except BROKEN:
        return 0, 0
