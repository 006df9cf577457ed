"""Pictures and labels on disk.

The conventions of PASCAL VOC hold everywhere: labels are class indices, 0 is background, 255 is unknown.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from segcore.errors import Problem

IGNORE = 255
"""The label of pixels that count neither in training nor in evaluation."""

BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError)
BROKEN += (struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for broken files, by format and place."""


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as a person sees it: RGB, 8 bits, turned by its EXIF orientation.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is laid over black.

    Raises:
        Problem: there is no such file, or it is damaged.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except BROKEN as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> Problem:
    reason = (isinstance(error, OSError) and error.strerror) or error or type(error).__name__
    return Problem(f"{path} cannot be read ({reason}); mend it, then prepare the data set anew: that checks all files")


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB copy; 16-bit grey is scaled by its full range (Pillow alone would clip it to white)."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def read_labels(path: Path) -> UInt8[np.ndarray, "H W"]:
    """Class indices of an indexed or grey 8-bit PNG; 255 where unknown.

    Raises:
        Problem: there is no such file, it is damaged, or it holds colours.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("P", "L"):
                return np.asarray(image)
            mode = image.mode
    except BROKEN as error:
        raise _unreadable(path, error) from error
    raise Problem(
        f"{path}: labels must be an indexed or grey 8-bit PNG, found mode {mode}; "
        "colour-coded labels are converted by `dataset.convert_palette: true`"
    )


def write_labels(path: Path, labels: UInt8[np.ndarray, "H W"]) -> None:
    """An indexed PNG in the colours of VOC."""
    path.write_bytes(labels_png(labels))


def labels_png(labels: UInt8[np.ndarray, "H W"]) -> bytes:
    """The file of `write_labels`."""
    image = Image.fromarray(labels)
    image.putpalette(_VOC_PALETTE)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """The colours of the VOC devkit: bit k of a label's three-bit groups goes to bit 7 - k of red, green, blue."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


_VOC_PALETTE = voc_palette().tobytes()
