"""Outlines into pixels, and pixels into outlines: polygons, boxes, ellipses, run lengths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from pycocotools import mask as untyped

from segcore.data.pictures import IGNORE
from segcore.exchange import BACKGROUND, is_unknown

coco_masks: Any = untyped  # its types know less than it does

Mask = Bool[np.ndarray, "H W"]


@dataclass(frozen=True)
class Shape:
    """Something that was outlined in a picture of a known size.

    `content` is a mask in full, polygons [[x, y], ...], or COCO's `segmentation`; `certain` is False for a box, in
    which it is not known what is object and what is background.
    """

    name: str
    content: Any
    certain: bool = True


def labels_of(shapes: Sequence[Shape], width: int, height: int, index: Mapping[str, int]) -> UInt8[np.ndarray, "H W"]:
    """The labels of a picture, later shapes over earlier ones; boxes make unknown what no shape covers.

    Raises:
        ValueError: a shape cannot be drawn.
    """
    labels = np.zeros((height, width), dtype=np.uint8)
    covered = np.zeros((height, width), dtype=bool)
    for shape in (shape for shape in shapes if shape.certain):
        mask = drawn(shape.content, width, height)
        labels[mask] = 0 if shape.name == BACKGROUND else IGNORE if is_unknown(shape.name) else index[shape.name]
        covered |= mask
    for shape in (shape for shape in shapes if not shape.certain):
        labels[drawn(shape.content, width, height) & ~covered] = IGNORE
    return labels


def drawn(content: Any, width: int, height: int) -> Mask:
    """The pixels of a mask, of polygons, or of COCO's run lengths.

    Raises:
        ValueError: they are none, or of another size.
    """
    if isinstance(content, np.ndarray):
        if content.shape != (height, width):
            raise ValueError(f"a mask is {content.shape[1]}x{content.shape[0]}, its picture {width}x{height}")
        return content
    try:
        if isinstance(content, Mapping):
            return _from_runs(content, width, height)
        flat = [_inside(polygon, width, height) for polygon in content]
        flat = [polygon for polygon in flat if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not flat:
            return np.zeros((height, width), dtype=bool)
        return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(flat, height, width))).astype(bool)
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"a shape cannot be drawn ({error})") from error


def _inside(polygon: Any, width: int, height: int) -> list[float]:
    """x, y, x, y, ...; what lies far outside of the picture is brought near, as it would be drawn pixel by pixel."""
    points = np.asarray(polygon, dtype=np.float64).ravel()
    if not np.isfinite(points).all():
        raise ValueError("a polygon has corners that are no numbers")
    return np.clip(points, -max(width, height), 2 * max(width, height)).tolist()


def _from_runs(runs: Mapping[str, Any], width: int, height: int) -> Mask:
    size, counts = [int(part) for part in runs["size"]], runs["counts"]
    if size != [height, width]:
        raise ValueError(f"run lengths are of {size[1]}x{size[0]} pixels, their picture is {width}x{height}")
    if isinstance(counts, list):
        if sum(counts) != width * height or min(counts, default=0) < 0:
            raise ValueError(f"run lengths add up to {sum(counts)}, not to {width * height} pixels")
        return coco_masks.decode(coco_masks.frPyObjects({"size": size, "counts": counts}, *size)).astype(bool)
    packed = counts.encode() if isinstance(counts, str) else bytes(counts)
    # The library trusts compressed counts and writes beyond the picture where they are damaged: they are summed first.
    if _total(packed) != width * height:
        raise ValueError("compressed run lengths do not add up to the picture's pixels")
    return coco_masks.decode({"size": size, "counts": packed}).astype(bool)


def _total(packed: bytes) -> int:
    """The sum of compressed counts: five bits a character, the sixth says that more follow; from the third count on
    differences to the one before the last."""
    counts: list[int] = []
    place = 0
    while place < len(packed):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(packed):
                return -1
            part = packed[place] - 48
            if not 0 <= part < 64:
                return -1
            value |= (part & 31) << shift
            more = bool(part & 32)
            place, shift = place + 1, shift + 5
            if not more and part & 16:
                value |= -1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if value < 0:
            return -1
        counts.append(value)
    return sum(counts)


def runs_of(mask: Mask) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, as JSON holds them."""
    runs = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(part) for part in runs["size"]], "counts": runs["counts"].decode()}


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Left, top, width and height of what a mask shows; it must show something."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def rectangle(x: float, y: float, width: float, height: float, rotation: float = 0.0) -> list[list[float]]:
    """The corners of a box; degrees of a turn clockwise around its first one."""
    turn = math.radians(rotation)
    along = (math.cos(turn), math.sin(turn))
    corners = ((0, 0), (width, 0), (width, height), (0, height))
    return [[x + a * along[0] - b * along[1], y + a * along[1] + b * along[0]] for a, b in corners]


def ellipse(x: float, y: float, across: float, down: float, rotation: float = 0.0) -> list[list[float]]:
    """Points of an ellipse of these half-axes; degrees of a turn clockwise around its centre."""
    turn, points = math.radians(rotation), []
    for step in range(72):
        a, b = across * math.cos(step * math.pi / 36), down * math.sin(step * math.pi / 36)
        points.append([x + a * math.cos(turn) - b * math.sin(turn), y + a * math.sin(turn) + b * math.cos(turn)])
    return points


def turned(points: Sequence[Sequence[float]], degrees: float) -> Float[np.ndarray, "N 2"]:
    """Points turned clockwise around the middle of their box."""
    corners = np.asarray(points, dtype=np.float64)
    middle = (corners.min(0) + corners.max(0)) / 2
    turn = math.radians(degrees)
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return (corners - middle) @ matrix + middle
