"""labelme: a JSON file beside each picture, with polygons, boxes, circles and masks (github.com/wkentaro/labelme)."""

import base64
import binascii
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from segcore.data.pictures import BROKEN
from segcore.errors import Problem
from segcore.exchange import BACKGROUND, Annotated, Collection, clean, is_unknown
from segcore.exchange.drawing import Shape, ellipse, labels_of
from segcore.exchange.pictures import Pictures, beside
from segcore.exchange.reading import listed, read_json


def read(source: Path, images: Path | None) -> Collection:
    """The data set of a folder of such files; pictures without one are unlabelled.

    Raises:
        Problem: no such folder, or nothing of labelme's in it.
    """
    if not source.is_dir():
        raise Problem(f"{source}: must be the folder with labelme's JSON files")
    found = Pictures(beside(source, images))
    files = sorted(source.rglob("*.json"))
    made, skipped, seen = [], list[str](), set[Path]()
    for file in files:
        try:
            content = read_json(file)
            one = _annotated(content, file, found, skipped)
        except (Problem, KeyError, TypeError, ValueError) as error:
            skipped.append(f"{file}: is no file of labelme's ({error})")
            continue
        made.append(one)
        seen |= {one.picture} if one.picture is not None else set()
    if not made:
        raise Problem(f"{source}: no file of labelme's there (JSON with shapes, imageWidth and imageHeight)")
    rest = [(name, path) for name, path in found.by_path.items() if path not in seen]
    made += [Annotated(name, path, frozenset(), None, False) for name, path in rest]
    used = {tag for one in made for tag in one.tags}
    return Collection(tuple(sorted(used)), tuple(made), tuple(skipped))


def _annotated(content: dict[str, Any], file: Path, found: Pictures, skipped: list[str]) -> Annotated:
    width, height = int(content["imageWidth"]), int(content["imageHeight"])
    shapes: list[Shape] = []
    tags = {clean(name) for name, on in (content.get("flags") or {}).items() if on}
    for one in listed(content["shapes"], f"{file}: shapes"):
        name = clean(one["label"])
        shape = _shape(name, one, width, height)
        tags.add(name)
        if shape is None:
            skipped.append(f"{file}: a {one.get('shape_type')}, which has no inside; its label counts as a tag")
        else:
            shapes.append(shape)
    tags = {tag for tag in tags if tag != BACKGROUND and not is_unknown(tag)}
    # `imagePath` is meant from the JSON file, and may have been written by Windows.
    name = str(content.get("imagePath") or file.stem).replace("\\", "/")
    paint = None
    if any(shape.certain for shape in shapes):
        paint = lambda index: labels_of(shapes, width, height, index)  # noqa: E731
    beside_it = file.parent / name
    picture = beside_it if beside_it in found.by_path.values() else found.find(name) or found.of_stem(file.stem)
    return Annotated(name, picture, frozenset(tags), paint, bool(tags or shapes))


def _shape(name: str, one: dict[str, Any], width: int, height: int) -> Shape | None:
    kind, points = one.get("shape_type") or "polygon", one["points"]
    if kind == "polygon":
        return Shape(name, [points])
    if kind == "mask":
        return Shape(name, _mask(one["mask"], points, width, height))
    if kind == "circle":
        (x, y), edge = points
        return Shape(name, [ellipse(x, y, *[math.dist((x, y), edge)] * 2)])
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points[0], points[-1 if len(points) == 2 else 2]
        return Shape(name, [[[x1, y1], [x2, y1], [x2, y2], [x1, y2]]], certain=False)
    return None


def _mask(encoded: str, points: list[list[float]], width: int, height: int) -> Bool[np.ndarray, "H W"]:
    """A PNG of 0 and 1 (or 255) that lies within a box."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            inside = np.asarray(image.convert("L")) > 0
    except (*BROKEN, binascii.Error) as error:
        raise ValueError(f"a mask cannot be read ({error})") from error
    left, top = (round(value) for value in points[0])
    mask = np.zeros((height, width), dtype=bool)
    down, across = inside.shape
    if left < 0 or top < 0 or left >= width or top >= height:
        raise ValueError("a mask lies outside of its picture")
    mask[top : top + down, left : left + across] = inside[: height - top, : width - left]
    return mask
