"""Pictures and labels taken from their files: every byte read once, every pixel decoded.

What is wrong with a file goes to the finding of its entry.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from segcore.config.data import SixteenBit
from segcore.data.addresses import Address, Member, read_bytes
from segcore.data.pictures import (
    BROKEN,
    IGNORE,
    has_sixteen_bits,
    opened,
    to_rgb,
    voc_palette,
    why_broken,
    write_labels,
    write_png,
)
from segcore.errors import About
from segcore.importers import Finding, Fingerprint, colours, duplicates, sbd, sixteen_bit

_VOC_PALETTE = voc_palette()


@dataclass(frozen=True)
class Picture:
    """What is remembered of a picture that was decoded without fault."""

    path: Address
    """Of the converted file if there is one."""
    sha256: str
    """Of the bytes of that file."""
    fingerprint: Fingerprint
    size: tuple[int, int]
    """Width and height as a person sees it."""
    orientation: int


@dataclass(frozen=True)
class Labels:
    """What is remembered of labels whose every value is a class; `path` is the converted file if there is one."""

    path: Address
    sha256: str
    size: tuple[int, int]
    classes: tuple[int, ...]


def _read(path: Address, finding: Finding) -> bytes | None:
    try:
        # A pipe or a device would be waited for without end.
        if isinstance(path, Path) and path.exists() and not path.is_file():
            finding.problems.append(About(path, "is no file but a folder, a pipe or a device; put the file there"))
            return None
        return read_bytes(path)
    except FileNotFoundError:
        wanted = f"this file is missing; a {finding.entry.split} image needs it: add it, or unlist the image"
        finding.problems.append(About(path, wanted))
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the file, and the permissions of its folders"
        finding.problems.append(About(path, reason))
    return None


@dataclass(frozen=True)
class _Decoded:
    image: Image.Image
    sixteen_bit: bool
    orientation: int
    """Of EXIF: 1 as stored, 2 to 8 mirrored or turned."""


def _decode(path: Address, content: bytes, finding: Finding) -> _Decoded | None:
    """The picture with every pixel decoded, so that a truncated file shows."""
    try:
        with opened(BytesIO(content)) as image:
            wide = has_sixteen_bits(image)
            image.load()
            orientation = image.getexif().get(Base.Orientation, 1)
    except BROKEN as error:
        advice = "replace it by an intact picture, or unlist the image"
        finding.problems.append(About(path, f"{why_broken(error, content)}; {advice}"))
        return None
    return _Decoded(image, wide, orientation if orientation in range(2, 9) else 1)


def open_picture(path: Address, how: SixteenBit, converted: Path, finding: Finding) -> Picture | None:
    """The size and hashes of the picture at `path`; how `pictures.read_image` will convert it goes to the finding.

    One of 16 bits is brought into 8 bits in the folder `converted`, unless `how` says that its range is the full one.

    Raises:
        OSError: it could not be written there.
    """
    content = _read(path, finding)
    decoded = _decode(path, content, finding) if content is not None else None
    if content is None or decoded is None:
        return None
    image, orientation = decoded.image, decoded.orientation
    reasons = {
        "grey": image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"),
        "cmyk": image.mode == "CMYK",
        "sixteen_bit": decoded.sixteen_bit,
        "palette": image.mode in ("P", "PA"),
        "transparent": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        "turned": orientation != 1,
    }
    finding.conversions += [name for name, holds in reasons.items() if holds]
    try:
        if "sixteen_bit" in finding.conversions:
            finding.values = sixteen_bit.range_of(content)
        if finding.values is not None and how != "full":
            assert how != "measured", "the range has been measured"
            image, lost = sixteen_bit.narrowed(content, how, image.getexif())
            finding.warnings += sixteen_bit.told(path, lost, how)
        seen = np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except BROKEN as error:
        reason = f"cannot be converted to RGB ({error}); save it anew as a JPEG or an RGB PNG"
        finding.problems.append(About(path, reason))
        return None
    fingerprint, size = _fingerprint(content, seen), (seen.shape[1], seen.shape[0])
    if finding.values is None or how == "full":
        return Picture(_summed(path, fingerprint.sha256), fingerprint.sha256, fingerprint, size, orientation)
    path = converted / f"{finding.entry.image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, Image.fromarray(seen))
    return Picture(path, hashlib.sha256(path.read_bytes()).hexdigest(), fingerprint, size, 1)


def _fingerprint(content: bytes, picture: UInt8[np.ndarray, "H W 3"]) -> Fingerprint:
    pixels = hashlib.sha256(str(picture.shape).encode())
    pixels.update(np.ascontiguousarray(picture).data)
    return Fingerprint(hashlib.sha256(content).hexdigest(), pixels.hexdigest(), duplicates.looks_of(picture))


def open_labels(
    path: Address, classes: Sequence[str], convert_palette: bool, converted: Path, finding: Finding
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
    counts = np.bincount(labels.ravel(), minlength=256)
    finding.unknown = bool(counts[IGNORE])
    present = np.flatnonzero(counts[1:IGNORE]) + 1
    size = (labels.shape[1], labels.shape[0])
    sha256 = hashlib.sha256(content).hexdigest()
    return Labels(_summed(path, sha256), sha256, size, tuple(present.tolist()))


def _summed(address: Address, sha256: str) -> Address:
    """The address with the sum of its bytes, by which those of a shard are checked when they come over a network."""
    return replace(address, sha256=sha256) if isinstance(address, Member) else address


def _from_mat(path: Address, content: bytes, finding: Finding) -> UInt8[np.ndarray, "H W"] | None:
    try:
        labels = sbd.read_mask(content)
    except ValueError as error:
        finding.problems.append(f"{path}: {error}; replace it by an intact copy of SBD's file")
        return None
    finding.conversions.append("labels_from_mat")
    return labels


def _from_picture(
    path: Address, content: bytes, highest: int, convert_palette: bool, finding: Finding
) -> UInt8[np.ndarray, "H W"] | None:
    decoded = _decode(path, content, finding)
    if decoded is None:
        return None
    image = decoded.image
    if (wrong := _wrong_kind(image, content)) is not None:
        finding.problems.append(About(path, f"labels must be an indexed or grey 8-bit PNG, found {wrong}"))
        return None
    if decoded.orientation != 1:
        reason = (
            f"labels carry an EXIF orientation, {decoded.orientation}, by which some programs turn them and others "
        )
        finding.problems.append(About(path, f"{reason}do not; save them as they are to be seen, without it"))
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
    if image.format in ("JPEG", "MPO"):
        return "a JPEG, whose compression makes other classes of them; export them anew"
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


def _values_are_classes(path: Address, labels: UInt8[np.ndarray, "H W"], highest: int, finding: Finding) -> bool:
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
