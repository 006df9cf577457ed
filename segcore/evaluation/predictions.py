"""What a system predicted of every image it was scored on, as palette PNGs in one file.

One ZIP and no folder: a data set of thousands of images would give every system as many files for DVC to look at. Its
members are compressed pictures already and are stored as they are; the same predictions give the same bytes.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segcore.data.pictures import BROKEN, opened
from segcore.errors import Problem
from segcore.files import replacing

FILE = "predictions.zip"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The first date that a ZIP can tell: when a prediction was made is no part of it."""

DAMAGED = (*BROKEN, zipfile.BadZipFile, RuntimeError)
"""What reading one may raise; RuntimeError where damage looks like a password or an unknown compression."""


def write(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """`predictions.zip`: `<image id>.png` of each image, in the order of the ids."""
    with replacing(folder / FILE) as file, zipfile.ZipFile(file, "w") as archive:
        for image_id in sorted(pictures):
            archive.writestr(zipfile.ZipInfo(f"{image_id}.png", LONG_AGO), pictures[image_id])


class Predictions:
    """The predictions in the folder of a result, read one by one; `ids` are their images.

    Raises:
        Problem: the file is damaged, at once or when one is read.
        FileNotFoundError: there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        try:
            self._archive = zipfile.ZipFile(self.file)
        except FileNotFoundError:
            raise
        except DAMAGED as error:
            raise self._damaged(error) from None
        self.ids = {name.removesuffix(".png") for name in self._archive.namelist()}

    def labels(self, image_id: str) -> UInt8[np.ndarray, "H W"]:
        """The class of each pixel of an image, at its own size."""
        try:
            with opened(io.BytesIO(self._archive.read(f"{image_id}.png"))) as picture:
                return np.asarray(picture)
        except DAMAGED as error:
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> Problem:
        return Problem(f"{self.file} is damaged ({error}); evaluate the system again", made_by="evaluate")
