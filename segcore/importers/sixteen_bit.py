"""Pictures of 16 bits a colour, which networks are shown in 8.

Cameras and microscopes store 10, 12 or 14 bits in files of 16: by the full range, 0..65535, such a picture is nearly
black. `dataset.sixteen_bit` says which values are black and white: `full`, `measured` over all such pictures of the
data set, or two numbers.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import UInt16
from PIL import Image
from PIL.ExifTags import Base

from segcore.config.data import SixteenBit
from segcore.data.addresses import Address, is_there, read_bytes
from segcore.data.pictures import BROKEN, has_sixteen_bits, opened
from segcore.importers import Entry, Finding

NARROW = 2**15
"""Where no value of any picture reaches this, the upper half of the range is unused: a warning says so."""


def range_of(content: bytes) -> tuple[int, int] | None:
    """The lowest and the highest value of a picture's colours; None for one that has 8 bits in truth.

    Raises:
        ValueError: it cannot be decoded.
    """
    values = _colours(content)
    return None if values is None else (int(values.min()), int(values.max()))


def _colours(content: bytes) -> UInt16[np.ndarray, "H W C"] | None:
    """RGB, or grey; where a picture is transparent, black lies below."""
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise ValueError("its 16-bit values cannot be read")
    if stored.dtype != np.uint16:
        return None
    stored = stored.reshape(*stored.shape[:2], -1)
    if stored.shape[2] < 4:
        return stored[..., ::-1]
    opaque = stored[..., 3:].astype(np.float64) / 65535
    return np.rint(stored[..., 2::-1] * opaque).astype(np.uint16)


def measured(entries: Sequence[Entry]) -> tuple[int, int] | None:
    """The range of all 16-bit pictures together; None where there are none.

    Whatever cannot be read is left out: it is told when its picture is checked.
    """
    found = [values for entry in entries if (values := _range_at(entry.image)) is not None]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def _range_at(path: Address) -> tuple[int, int] | None:
    try:
        if not is_there(path):
            return None
        with opened(path) as image:
            if not has_sixteen_bits(image):
                return None
        return range_of(read_bytes(path))
    except BROKEN:
        return None


def narrowed(content: bytes, bounds: tuple[int, int], exif: Image.Exif) -> tuple[Image.Image, float]:
    """The picture in 8 bits, 0 at the lower and 255 at the upper bound, and the share of values beyond them.

    Raises:
        ValueError: it cannot be decoded.
    """
    values = _colours(content)
    assert values is not None
    low, high = bounds
    lost = float(((values < low) | (values > high)).mean())
    scaled = np.clip((values.astype(np.float64) - low) / max(1, high - low), 0, 1) * 255
    image = Image.fromarray(np.repeat(np.rint(scaled).astype(np.uint8), 3 // values.shape[2], axis=2))
    image.getexif()[Base.Orientation] = exif.get(Base.Orientation, 1)
    return image, lost


def told(path: Address, lost: float, bounds: tuple[int, int]) -> list[tuple[str, str]]:
    """A warning where values lie beyond the bounds."""
    if not lost:
        return []
    low, high = bounds
    text = f"{path}: {100 * lost:.2g} % of its values lie outside of dataset.sixteen_bit: [{low}, {high}]"
    return [("clipped_sixteen_bit", f"{text} and become black or white")]


def judged(findings: Iterable[Finding], how: SixteenBit) -> list[tuple[str, str]]:
    """A warning where the full range is taken for pictures that use little of it."""
    found = [finding for finding in findings if finding.values is not None]
    values = [finding.values for finding in found if finding.values is not None]
    if how != "full" or not values or (highest := max(high for _, high in values)) >= NARROW:
        return []
    low = min(low for low, _ in values)
    return [
        (
            "narrow_sixteen_bit",
            f"{len(found)} pictures of 16 bits, {found[0].entry.image} first, hold the values {low} to {highest} of "
            f"65535 only and become {'nearly black' if highest < NARROW // 4 else 'dark'}; if that is their range, set "
            f"dataset.sixteen_bit: measured, or [0, {2 ** max(1, highest).bit_length() - 1}]",
        )
    ]
