"""Pictures that a devkit folder cannot hold as they are: TIFFs of any bands and depth, and other kinds, into PNGs."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image

from segcore.data.pictures import BROKEN, read_image
from segcore.errors import Problem
from segcore.files import regular

AS_THEY_ARE = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")
TIFFS = (".tif", ".tiff")


@dataclass(frozen=True)
class Reading:
    """How pictures with more than colours are read.

    `bands` are places from 1, one or three, or None for the first three (or the only one); `limits` are the values
    that become black and white, or None for all that the type of the numbers holds.
    """

    bands: tuple[int, ...] | None
    limits: tuple[float, float] | None


def pixels_of(path: Path, reading: Reading) -> UInt8[np.ndarray, "H W 3"]:
    """A picture as a person sees it.

    Raises:
        Problem: it cannot be read, or has not the bands that were asked for.
    """
    if path.suffix.lower() not in TIFFS or (reading == Reading(None, None) and _is_plain(path)):
        return read_image(path)
    try:
        raw = _bands_last(tifffile.imread(path))
    except (*BROKEN, tifffile.TiffFileError, RuntimeError) as error:
        raise Problem(f"{path} cannot be read ({error}); save it without compression, or as a PNG") from error
    chosen = reading.bands or ((1, 2, 3) if raw.shape[2] >= 3 else (1,))
    if max(chosen) > raw.shape[2]:
        raise Problem(f"{path} has {raw.shape[2]} bands; --bands asks for {max(chosen)}")
    picture = raw[:, :, [band - 1 for band in chosen]]
    return np.ascontiguousarray(np.repeat(_bytes(picture, reading.limits, path), 3 // len(chosen), axis=2))


def _is_plain(path: Path) -> bool:
    """Whether Pillow reads it as it is meant: 8 bits, grey or colours; it knows more ways of compression."""
    try:
        with Image.open(regular(path)) as image:
            return image.mode in ("1", "L", "P", "RGB", "RGBA", "CMYK")
    except BROKEN:
        return False


def _bands_last(raw: np.ndarray) -> np.ndarray:
    """Height, width, bands; scientific files have the bands first."""
    if raw.ndim == 2:
        return raw[:, :, None]
    if raw.ndim != 3:
        raise ValueError(f"it holds {raw.ndim} dimensions; a picture has two, and bands")
    return raw.transpose(1, 2, 0) if raw.shape[0] < min(raw.shape[1:]) else raw


def _bytes(picture: np.ndarray, limits: tuple[float, float] | None, path: Path) -> UInt8[np.ndarray, "H W C"]:
    if limits is None:
        if picture.dtype == np.uint8:
            return picture
        if picture.dtype == np.uint16:
            limits = (0.0, 65535.0)
        else:
            raise Problem(
                f"{path} holds numbers of type {picture.dtype}; say what is black and white: --range LOW,HIGH"
            )
    low, high = limits
    return np.clip((picture.astype(np.float64) - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)


def png(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The picture as a file; the same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=3)
    return file.getvalue()
