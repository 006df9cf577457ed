"""Pictures and labels taken from their files: every byte read once, every pixel decoded.

What is wrong with a file goes to the finding of its entry.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from segcore.data.pictures import BROKEN, IGNORE, to_rgb, voc_palette, write_labels
from segcore.importers import Finding, Fingerprint, colours, duplicates, sbd

_VOC_PALETTE = voc_palette()


@dataclass(frozen=True)
class Picture:
    """What is remembered of a picture that was decoded without fault."""

    fingerprint: Fingerprint
    size: tuple[int, int]
    """Width and height as a person sees it."""
    orientation: int


@dataclass(frozen=True)
class Labels:
    """What is remembered of labels whose every value is a class; `path` is the converted file if there is one."""

    path: Path
    sha256: str
    size: tuple[int, int]
    classes: tuple[int, ...]


def _read(path: Path, finding: Finding) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        finding.problems.append(
            f"{path}: this file is missing; a {finding.entry.split} image needs it: "
            f"add it, or unlist {finding.entry.image_id}"
        )
    except OSError as error:
        finding.problems.append(f"{path}: cannot be read ({error.strerror}); check the file and its permissions")
    return None


@dataclass(frozen=True)
class _Decoded:
    image: Image.Image
    sixteen_bit: bool
    orientation: int
    """Of EXIF: 1 as stored, 2 to 8 mirrored or turned."""


def _decode(path: Path, content: bytes, finding: Finding) -> _Decoded | None:
    """The picture with every pixel decoded, so that a truncated file shows."""
    try:
        image = Image.open(BytesIO(content))
        # Pillow tells before it decodes only: it keeps the upper 8 bits of 16-bit colour and forgets about it.
        sixteen_bit = any(";16" in str(tile.args) for tile in image.tile)
        image.load()
        orientation = image.getexif().get(Base.Orientation, 1)
    except BROKEN as error:
        what = f"cannot be decoded whole ({error})" if content else "is empty"
        finding.problems.append(f"{path}: {what}; replace it by an intact copy, or unlist {finding.entry.image_id}")
        return None
    return _Decoded(image, sixteen_bit, orientation if orientation in range(2, 9) else 1)


def open_picture(path: Path, finding: Finding) -> Picture | None:
    """The size and hashes of the picture at `path`; how `pictures.read_image` will convert it goes to the finding."""
    content = _read(path, finding)
    decoded = _decode(path, content, finding) if content is not None else None
    if content is None or decoded is None:
        return None
    image, orientation = decoded.image, decoded.orientation
    reasons = {
        "grey": image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"),
        "cmyk": image.mode == "CMYK",
        "sixteen_bit": decoded.sixteen_bit or image.mode.startswith("I"),
        "palette": image.mode in ("P", "PA"),
        "transparent": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        "turned": orientation != 1,
    }
    finding.conversions += [name for name, holds in reasons.items() if holds]
    try:
        seen = np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except BROKEN as error:
        finding.problems.append(f"{path}: cannot be converted to RGB ({error}); save it anew as a JPEG or an RGB PNG")
        return None
    return Picture(_fingerprint(content, seen), (seen.shape[1], seen.shape[0]), orientation)


def _fingerprint(content: bytes, picture: UInt8[np.ndarray, "H W 3"]) -> Fingerprint:
    pixels = hashlib.sha256(str(picture.shape).encode())
    pixels.update(np.ascontiguousarray(picture).data)
    return Fingerprint(hashlib.sha256(content).hexdigest(), pixels.hexdigest(), duplicates.looks_of(picture))


def open_labels(
    path: Path, classes: Sequence[str], convert_palette: bool, converted: Path, finding: Finding
) -> Labels | None:
    """The labels at `path`, brought into an indexed PNG in the folder `converted` if they are none.

    Raises:
        OSError: converted labels could not be written.
    """
    content = _read(path, finding)
    if content is None:
        return None
    if path.suffix == ".mat":
        labels = _from_mat(path, content, finding)
    else:
        labels = _from_picture(path, content, len(classes) - 1, convert_palette, finding)
    if labels is None or not _values_are_classes(path, labels, len(classes) - 1, finding):
        return None
    if {"labels_from_mat", "labels_from_colours"} & set(finding.conversions):
        path = converted / f"{finding.entry.image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_labels(path, labels)
        content = path.read_bytes()
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:IGNORE]) + 1
    size = (labels.shape[1], labels.shape[0])
    return Labels(path, hashlib.sha256(content).hexdigest(), size, tuple(present.tolist()))


def _from_mat(path: Path, content: bytes, finding: Finding) -> UInt8[np.ndarray, "H W"] | None:
    try:
        labels = sbd.read_mask(content)
    except ValueError as error:
        finding.problems.append(f"{path}: {error}; replace it by an intact copy of SBD's file")
        return None
    finding.conversions.append("labels_from_mat")
    return labels


def _from_picture(
    path: Path, content: bytes, highest: int, convert_palette: bool, finding: Finding
) -> UInt8[np.ndarray, "H W"] | None:
    decoded = _decode(path, content, finding)
    if decoded is None:
        return None
    image = decoded.image
    if (wrong := _wrong_kind(image, content)) is not None:
        finding.problems.append(f"{path}: labels must be an indexed or grey 8-bit PNG, found {wrong}")
        return None
    if image.mode == "L" or (image.mode == "P" and not _is_painted(image, highest)):
        return np.asarray(image)
    labels, stray = colours.to_indices(np.asarray(image.convert("RGB")))
    if stray is not None:
        finding.problems.append(f"{path}: labels hold colours instead of class indices, and {stray}")
    elif convert_palette:
        finding.conversions.append("labels_from_colours")
        return labels
    elif image.mode == "P":
        finding.problems.append(
            f"{path}: labels hold VOC's colours at other indices than VOC's, as if painted and indexed anew; "
            "dataset.convert_palette: true takes the classes from the colours; "
            "if the indices are the classes, save them as a grey 8-bit PNG"
        )
    else:
        finding.problems.append(
            f"{path}: labels hold colours instead of class indices; all are of VOC's palette, "
            "so dataset.convert_palette: true converts them"
        )
    return None


def _wrong_kind(image: Image.Image, content: bytes) -> str | None:
    """What keeps a picture from being labels, and what to do; None if its values can be taken as they are."""
    # Pillow stretches the values of such greys to 0..255 and forgets about it; the PNG header has the bits at byte 24.
    bits = content[24] if image.format == "PNG" else 8
    if image.mode in ("1", "L") and bits < 8:
        return (
            f"a grey PNG of {bits} bit{'s' * (bits > 1)}, whose class 1 would be read as {255 // (2**bits - 1)}; "
            "save it anew with 8 bits, or indexed"
        )
    return None if image.mode in ("P", "L", "RGB", "RGBA") else f"Pillow mode {image.mode}; save it anew as such"


def _is_painted(image: Image.Image, highest: int) -> bool:
    """Whether the colours of an indexed picture tell the classes, and not its indices.

    So it is where the colours in use are those of VOC for 0 to `highest` and 255, at other indices: labels that were
    painted, then indexed anew (Pillow's `quantize`). A palette with any other colour, or one colour for two indices,
    or a grey ramp is a person's own.
    """
    used = np.flatnonzero(image.histogram())
    palette = np.array(image.getpalette("RGB") or (), dtype=np.uint8).reshape(-1, 3)
    if used[-1] >= len(palette):
        return False
    shown = palette[used]
    if (shown == _VOC_PALETTE[used]).all():
        return False
    classes, stray = colours.to_indices(shown[None])
    is_coded = stray is None and ((classes <= highest) | (classes == IGNORE)).all()
    is_ramp = (shown == used[:, None]).all()
    return bool(is_coded and not is_ramp and len(np.unique(classes)) == len(used))


def _values_are_classes(path: Path, labels: UInt8[np.ndarray, "H W"], highest: int, finding: Finding) -> bool:
    counts = np.bincount(labels.ravel(), minlength=256)
    wrong = [value for value in range(highest + 1, IGNORE) if counts[value]]
    if wrong:
        y, x = np.argwhere(labels == wrong[0])[0]
        values = ", ".join(str(value) for value in wrong)
        finding.problems.append(
            f"{path}: found the label values {values} ({wrong[0]} first at x={x}, y={y}); "
            f"allowed are 0 to {highest}, and {IGNORE} for unknown: relabel them, or name their classes in classes.txt"
        )
    return not wrong
