"""Pictures and labels on disk.

The conventions of PASCAL VOC hold everywhere: labels are class indices, 0 is background, 255 is unknown.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps

from segcore.data.addresses import Address, beginning, read_bytes
from segcore.errors import Problem
from segcore.files import regular, write_atomically

IGNORE = 255
"""The label of pixels that count neither in training nor in evaluation."""

BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError)
BROKEN += (struct.error, zlib.error)
"""What Pillow raises for broken files, by format and place."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is read, whatever a file's name says; Pillow would start Ghostscript for others."""

LONGEST_SIDE = 16_384
MOST_PIXELS = 2**27
GREATEST_RATIO = 32
"""Of the longer side to the shorter. Pictures are scaled by their shorter side, and padded to squares of their longer
one: beyond these bounds a picture of a few bytes takes gigabytes."""

Image.MAX_IMAGE_PIXELS = None  # as `opened` has bounds of its own, and words for them


@contextmanager
def opened(file: Address | io.BytesIO) -> Iterator[ImageFile.ImageFile]:
    """A picture of one of `FORMATS` whose size every stage can hold; its pixels are not yet decoded.

    Raises:
        ValueError: of another size.
        any of BROKEN: no picture.
        Problem: a store does not give it.
    """
    content = regular(file) if isinstance(file, Path) else file
    content = content if isinstance(content, Path | io.BytesIO) else io.BytesIO(read_bytes(content))
    with Image.open(content, formats=FORMATS) as image:
        if (wrong := wrong_size(*image.size)) is not None:
            raise ValueError(wrong)
        yield image


def has_sixteen_bits(image: ImageFile.ImageFile) -> bool:
    """Whether a picture that is not yet decoded stores 16 bits a colour.

    Pillow keeps the upper 8 bits of 16-bit colour as it decodes, and forgets about it.
    """
    return image.mode.startswith("I") or any(";16" in str(tile.args) for tile in image.tile)


def wrong_size(width: int, height: int) -> str | None:
    """What keeps every stage from holding a picture of so many pixels."""
    long, short = max(width, height), min(width, height)
    if short < 1 or long > LONGEST_SIDE or width * height > MOST_PIXELS:
        bounds = f"{LONGEST_SIDE:,} pixels a side and {MOST_PIXELS / 1e6:.0f} million in all"
        return f"its {width}x{height} pixels are too many; allowed are {bounds}: scale it down"
    if long > GREATEST_RATIO * short:
        return f"its {width}x{height} pixels are too long a strip; allowed is {GREATEST_RATIO} times as long as wide"
    return None


SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file; run `git lfs pull`",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"MATLAB": "a MATLAB file",
    b"<!doctype html": "a web page (HTML), as a failed download leaves it",
    b"<html": "a web page (HTML), as a failed download leaves it",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"8bps": "a Photoshop file",
}
"""By the bytes that files begin with, in lower case where they are letters: what they are."""


def kind_of(content: bytes) -> str:
    """In words, what a file is that was taken for something else, by its first bytes."""
    if not content:
        return "empty"
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("ascii", "replace")
        return f"{'an AVIF' if brand == 'avif' else 'a HEIC'} picture; save it as a JPEG or PNG" if brand in (
            "heic", "heix", "hevc", "mif1", "msf1", "avif",
        ) else "a film (MP4)"  # fmt: skip
    begin = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, words in SIGNATURES.items():
        if begin.lower().startswith(signature.lower()):
            return words
    if not content.strip(b"\0"):
        return "nothing but zeros, as a broken copy or download leaves it"
    try:
        text = content[:200].decode("utf-8", "strict" if len(content) <= 200 else "ignore")
    except UnicodeDecodeError:
        return "of no known kind"
    if sum(not (one.isprintable() or one.isspace()) for one in text) == 0 and len(text) > len(content[:200]) // 2:
        return f"a text that begins with {text[:20]!r}"
    return "of no known kind"


def why_broken(error: BaseException, content: bytes) -> str:
    """In words, what Pillow could not read in a file of this content (or its beginning)."""
    if isinstance(error, Image.UnidentifiedImageError):
        kind = kind_of(content)
        return f"is {kind}" if kind != "of no known kind" else "is no picture, or its beginning is damaged"
    text = str((isinstance(error, OSError) and error.strerror) or error or type(error).__name__)
    if "text chunk" in text.lower() or "MAX_TEXT" in text:
        return "holds texts (metadata) that are too long to be read; its pixels may be in order: save it without them"
    if text.startswith("its "):
        return f"cannot be used: {text}"
    return f"cannot be decoded whole ({text})"


def read_image(path: Address) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as a person sees it: RGB, 8 bits, turned by its EXIF orientation.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is laid over black.

    Raises:
        Problem: there is no such file, or it is damaged.
    """
    try:
        with opened(path) as image:
            ImageOps.exif_transpose(image, in_place=True)  # a copy of most pictures costs as much as to decode them
            return np.asarray(to_rgb(image))
    except BROKEN as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Address, error: BaseException) -> Problem:
    try:
        reason = why_broken(error, beginning(path))
    except OSError as closed:
        reason = closed.strerror or str(closed)
    return Problem(f"{path} cannot be read ({reason}); mend it, then prepare the data set anew: that checks all files")


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, itself where it is that; 16-bit grey is scaled by its full range (Pillow alone would
    clip it to white)."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_labels(path: Address) -> UInt8[np.ndarray, "H W"]:
    """Class indices of an indexed or grey 8-bit PNG; 255 where unknown.

    Raises:
        Problem: there is no such file, it is damaged, or it holds colours.
    """
    try:
        with opened(path) as image:
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
    """An indexed PNG in the colours of VOC; an `OSError` names the file."""
    path.write_bytes(labels_png(labels))


def write_png(path: Path, image: Image.Image) -> None:
    """A picture, whole or not at all.

    Raises:
        Problem: it could not be written.
    """
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    write_atomically(path, content.getvalue())


def labels_png(labels: UInt8[np.ndarray, "H W"], effort: int = -1) -> bytes:
    """The file of `write_labels`; zlib's `effort`, 1 to 9 (-1: its own 6), is a matter of bytes and time."""
    image = Image.fromarray(labels)
    image.putpalette(_VOC_PALETTE)
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=effort)
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
