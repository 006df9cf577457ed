"""The pictures of a data set on disk: manifest rows, images, indexed label PNGs.

The conventions of PASCAL VOC hold everywhere: labels are class indices, 0 is background, 255 is unknown.
"""

import io
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image, ImageOps

from segcore.errors import Problem

IGNORE = 255
"""The label of pixels that count neither in training nor in evaluation."""

BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError)
BROKEN += (struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for broken files, by format and place."""

MANIFEST_COLUMNS = (
    "image_id",
    "image",
    "labels",
    "width",
    "height",
    "tags",
    "split",
    "image_sha256",
    "labels_sha256",
)


@dataclass(frozen=True)
class Record:
    """One image of the data set.

    `tags` are the indices (1..L) of the classes that the image-level annotation names; `labels` is the indexed
    PNG with a class per pixel, or None where nobody outlined the image; `width` and `height` are those of the
    picture as a person sees it, after its EXIF rotation.
    """

    image_id: str
    image: Path
    labels: Path | None
    width: int
    height: int
    tags: tuple[int, ...]
    split: str


def read_manifest(path: Path) -> dict[str, Record]:
    """All rows of a manifest written by the `prepare` stage, by image id and in its order."""
    try:
        table = pd.read_parquet(path)
    except ValueError as error:  # what Arrow raises is one
        raise Problem(f"{path} is no manifest: {error}; run `dvc repro prepare`") from error
    if missing := set(MANIFEST_COLUMNS) - set(table.columns):
        raise Problem(f"{path} is no manifest: it lacks the columns {sorted(missing)}; run `dvc repro prepare`")
    rows: Iterable[Any] = table.itertuples()  # named tuples of these columns
    return {
        row.image_id: Record(
            image_id=row.image_id,
            image=Path(row.image),
            labels=Path(row.labels) if isinstance(row.labels, str) else None,
            width=int(row.width),
            height=int(row.height),
            tags=tuple(int(tag) for tag in row.tags),
            split=row.split,
        )
        for row in rows
    }


def read_class_names(path: Path) -> list[str]:
    """The names of the classes, background first, as the `prepare` stage wrote them.

    Raises:
        Problem: the file does not hold a list of names.
    """
    try:
        names = json.loads(path.read_bytes())
    except ValueError as error:
        raise Problem(f"{path} is damaged ({error}); run `dvc repro prepare`") from error
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
        raise Problem(f"{path} holds no list of class names; run `dvc repro prepare`")
    return names


def listed(path: Path, records: Mapping[str, Record]) -> list[str]:
    """The image ids of a list of training images of the split, one a line.

    Raises:
        Problem: an id is not in the manifest, or that of an image which measures what was learned.
    """
    ids = path.read_text().split()
    if unknown := [image_id for image_id in ids if image_id not in records]:
        raise Problem(f"{path}: {len(unknown)} ids are not in the manifest, {unknown[0]} first; run `dvc repro split`")
    if measuring := [image_id for image_id in ids if records[image_id].split != "train"]:
        raise Problem(
            f"{path}: {len(measuring)} ids are validation images, {measuring[0]} first, "
            "and those are never trained on; run `dvc repro split`"
        )
    return ids


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
    return Problem(
        f"{path} cannot be read ({reason}); mend it, then run `dvc repro -f prepare`, which checks all files"
    )


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
