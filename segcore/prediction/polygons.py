"""Outlines of what masks show, along the edges of pixels: GeoJSON and COCO.

Corners are whole numbers, x to the right and y down from the picture's upper left corner, so that an outline encloses
exactly the pixels of its object and two neighbours share an edge. A connected component hangs together by edges of
pixels, not by their corners alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Format = Literal["coco", "geojson"]
Per = Literal["component", "class"]
Ring = list[list[int]]

ENDINGS: dict[Format, str] = {"coco": ".json", "geojson": ".geojson"}
WHOLE = "polygons.json"
"""COCO's one file of all pictures."""


@dataclass(frozen=True)
class Polygons:
    """Which outlines are written: an object for each connected component, or one for each class of a picture."""

    format: Format
    per: Per


@dataclass(frozen=True)
class Outline:
    """A connected component: its outer ring and those of its holes, not closed; outer ones run the other way round."""

    outer: Ring
    holes: list[Ring]
    area: int
    """In pixels."""


def outlines(mask: Bool[np.ndarray, "H W"]) -> Iterator[Outline]:
    """The connected components of a mask, from the top down."""
    number, found, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    for index in range(1, number):
        left, top, width, height, area = (int(value) for value in boxes[index])
        alone = found[top : top + height, left : left + width] == index
        yield _outline(alone, left, top, area)


def _outline(alone: Bool[np.ndarray, "h w"], left: int, top: int, area: int) -> Outline:
    # OpenCV's contours run through centres of pixels. In a picture of twice the size each centre lies a quarter of a
    # pixel within an edge, and (i + 1) // 2 is that edge.
    double = cv2.resize(alone.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_corners((contour[:, 0, :] + 1) // 2 + (left, top)) for contour in contours]
    outer = next(ring for ring, (*_, parent) in zip(rings, tree[0], strict=True) if parent < 0)
    holes = [ring for ring, (*_, parent) in zip(rings, tree[0], strict=True) if parent >= 0]
    return Outline(outer, holes, area)


def _corners(points: Int[np.ndarray, "n 2"]) -> Ring:
    """Without points that repeat the one before, or lie between their neighbours on a straight line."""
    points = points[(points != np.roll(points, 1, axis=0)).any(1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0] != 0
    return points[turns].tolist()


def geojson(
    labels: UInt8[np.ndarray, "H W"], names: Sequence[str], probabilities: Float[np.ndarray, " K"], per: Per
) -> str:
    """A FeatureCollection: polygons with their holes, or a class's as one multi-polygon."""
    features = []
    for index in _shown(labels):
        found = list(outlines(labels == index))
        told = {"class": names[index], "index": index, "probability": round(float(probabilities[index]), 4)}
        shapes = [[_closed(one.outer), *map(_closed, one.holes)] for one in found]
        if per == "class":
            whole = {"type": "MultiPolygon", "coordinates": shapes}
            features.append(_feature(whole, told | {"area": sum(one.area for one in found)}))
            continue
        for one, shape in zip(found, shapes, strict=True):
            features.append(_feature({"type": "Polygon", "coordinates": shape}, told | {"area": one.area}))
    return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"


def _feature(geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def _closed(ring: Ring) -> Ring:
    return [*ring, ring[0]]


def coco(
    labels: UInt8[np.ndarray, "H W"], names: Sequence[str], probabilities: Float[np.ndarray, " K"], per: Per
) -> str:
    """COCO's annotations of one picture, without ids.

    COCO's polygons have no holes: an object with holes is cut through them into several polygons, which together are
    the object.
    """
    made = []
    for index in _shown(labels):
        mask = labels == index
        pieces = [(list(_pieces(mask, one)), one.area) for one in outlines(mask)]
        if per == "class":
            pieces = [([ring for rings, _ in pieces for ring in rings], sum(area for _, area in pieces))]
        for rings, area in pieces:
            corners = np.concatenate([np.asarray(ring) for ring in rings])
            (x, y), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
            made.append(
                {
                    "category_id": index, "iscrowd": 0, "area": area, "bbox": [x, y, right - x, bottom - y],
                    "score": round(float(probabilities[index]), 4),
                    "segmentation": [[value for corner in ring for value in corner] for ring in rings],
                }
            )  # fmt: skip
    return json.dumps({"annotations": made}) + "\n"


def _pieces(mask: Bool[np.ndarray, "H W"], one: Outline) -> Iterator[Ring]:
    """Rings without holes that make up a component: cut across at its first hole as long as there is one."""
    if not one.holes:
        yield one.outer
        return
    points = np.asarray(one.outer)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    _, found = cv2.connectedComponents(mask[top:bottom, left:right].astype(np.uint8), connectivity=4)
    x, y = min(one.outer, key=lambda corner: (corner[1], corner[0]))  # its highest, leftmost pixel is its own
    alone = found == found[y - top, x - left]
    rows = np.asarray(one.holes[0])[:, 1]
    cut = int(rows.min() + rows.max() + 1) // 2
    for first, last in ((top, cut), (cut, bottom)):
        part = np.zeros_like(mask)
        part[first:last, left:right] = alone[first - top : last - top]
        for smaller in outlines(part):
            yield from _pieces(part, smaller)


def _shown(labels: UInt8[np.ndarray, "H W"]) -> list[int]:
    return [index for index in np.unique(labels).tolist() if index > 0]


def coco_file(rows: Sequence[Mapping[str, Any]], names: Sequence[str], out: Path) -> str:
    """One instances file of the pictures that are done, out of their own files."""
    images, annotations = [], []
    for number, row in enumerate(rows, start=1):
        size = {"width": row["width"], "height": row["height"]}
        images.append({"id": number, "file_name": row["image"]} | size)
        own = json.loads((out / row["polygons"]).read_bytes())["annotations"]
        annotations += [{"id": len(annotations) + i, "image_id": number} | one for i, one in enumerate(own, start=1)]
    categories = [{"id": index, "name": name} for index, name in enumerate(names) if index > 0]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}) + "\n"
