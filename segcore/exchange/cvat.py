"""CVAT: "CVAT for images 1.1" (XML) and back, and "Segmentation mask 1.1" (`labelmap.txt` and PNGs in its colours).

As documented on docs.cvat.ai (XML annotation format; Segmentation mask): points are "x,y;x,y", a mask's `rle` counts
background and object in turn, row by row within the box `left`, `top`, `width`, `height`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool

from segcore.data.pictures import IGNORE
from segcore.errors import Problem
from segcore.exchange import BACKGROUND, Annotated, Collection, Paint, clean, is_unknown
from segcore.exchange.collection import Item
from segcore.exchange.drawing import Shape, box_of, ellipse, labels_of, turned
from segcore.exchange.pictures import Pictures, beside
from segcore.exchange.reading import read_xml

XML = "annotations.xml"
LABELMAP = "labelmap.txt"


def read(source: Path, images: Path | None) -> Collection:
    """The data set of an XML file, or of the folder that an export was unpacked into.

    Raises:
        Problem: no such file, or not one of CVAT's for images.
    """
    file = source / XML if source.is_dir() else source
    root = read_xml(file)
    if root.tag != "annotations":
        raise Problem(f"{file}: found <{root.tag}>; it must be <annotations>, exported as 'CVAT for images 1.1'")
    if root.find("track") is not None:
        raise Problem(f"{file}: holds tracks of a video; export the task as 'CVAT for images 1.1', which cuts them up")
    found = Pictures(beside(file, images, "images"))
    listed = [clean(one.text or "") for one in root.findall("./meta//labels/label/name")]
    made, skipped, used = [], list[str](), set[str]()
    for image in root.findall("image"):
        name, size = image.get("name", ""), (int(image.get("width", 0)), int(image.get("height", 0)))
        tags = {clean(tag.get("label", "")) for tag in image.findall("tag")}
        shapes: list[tuple[int, Shape]] = []
        for element in image:
            if element.tag in ("polyline", "points", "cuboid", "skeleton"):
                skipped.append(f"{file}: {name}: a {element.tag}, which has no inside; its label counts as a tag")
                tags.add(clean(element.get("label", "")))
            elif element.tag in _DRAWN:
                try:
                    shape = _shape(element, *size)
                except (ValueError, TypeError) as error:
                    skipped.append(f"{file}: {name}: a {element.tag} cannot be drawn ({error})")
                    continue
                tags.add(shape.name)
                shapes.append((int(element.get("z_order", 0)), shape))
        tags = {tag for tag in tags if tag != BACKGROUND and not is_unknown(tag)}
        used |= tags
        drawn = [shape for _, shape in sorted(shapes, key=lambda pair: pair[0])]
        made.append(Annotated(name, found.find(name), frozenset(tags), _paint(drawn, size), len(image) > 0))
    classes = [name for name in dict.fromkeys(listed) if name in used]
    return Collection((*classes, *sorted(used - {*classes})), tuple(made), tuple(skipped))


def _paint(shapes: list[Shape], size: tuple[int, int]) -> Paint | None:
    if not any(shape.certain for shape in shapes):
        return None
    return lambda index: labels_of(shapes, *size, index)


_DRAWN = ("polygon", "mask", "box", "ellipse")


def _shape(element: ElementTree.Element, width: int, height: int) -> Shape:
    name = clean(element.get("label", ""))
    numbers = {
        key: float(element.get(key, 0)) for key in ("xtl", "ytl", "xbr", "ybr", "cx", "cy", "rx", "ry", "rotation")
    }
    if element.tag == "polygon":
        return Shape(
            name, [[[float(part) for part in point.split(",")] for point in element.get("points", "").split(";")]]
        )
    if element.tag == "mask":
        return Shape(name, _mask(element, width, height))
    if element.tag == "ellipse":
        parts = [numbers[key] for key in ("cx", "cy", "rx", "ry", "rotation")]
        return Shape(name, [ellipse(*parts)])
    x1, y1, x2, y2 = (numbers[key] for key in ("xtl", "ytl", "xbr", "ybr"))
    corners = turned([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], numbers["rotation"])
    return Shape(name, [corners], certain=False)


def _mask(element: ElementTree.Element, width: int, height: int) -> Bool[np.ndarray, "H W"]:
    left, top, across, down = (int(float(element.get(key, 0))) for key in ("left", "top", "width", "height"))
    counts = [int(part) for part in element.get("rle", "").split(",")]
    if sum(counts) != across * down or min(counts) < 0:
        raise ValueError(f"its run lengths add up to {sum(counts)}, its box has {across * down} pixels")
    if left < 0 or top < 0 or left + across > width or top + down > height:
        raise ValueError("its box leads out of the picture")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(down, across)
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + down, left : left + across] = inside
    return mask


def write(items: Iterable[Item], classes: Sequence[str]) -> str:
    """A data set or predictions as "CVAT for images 1.1": a mask for a class in a picture, tags beside them."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "job"), "labels")
    used_unknown = False
    for number, item in enumerate(items):
        image = ElementTree.SubElement(
            root, "image", id=str(number), name=item.name, width=str(item.width), height=str(item.height)
        )
        for tag in sorted(item.tags or ()):
            ElementTree.SubElement(image, "tag", label=tag, source="manual")
        found = item.labels()
        for value in [] if found is None else np.flatnonzero(np.bincount(found.ravel())).tolist():
            if value:
                used_unknown |= value == IGNORE
                name = "unknown" if value == IGNORE else classes[value - 1]
                image.append(_element(name, found == value))
    for name in [*classes, *(["unknown"] if used_unknown else [])]:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _element(name: str, mask: Bool[np.ndarray, "H W"]) -> ElementTree.Element:
    left, top, across, down = box_of(mask)
    flat = mask[top : top + down, left : left + across].ravel()
    changes = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    counts = np.diff([0, *changes.tolist(), flat.size]).tolist()
    runs = [0, *counts] if flat[0] else counts
    place = {"left": left, "top": top, "width": across, "height": down, "z_order": 0}
    attributes = {"label": name, "source": "manual", "occluded": "0", "rle": ", ".join(map(str, runs))}
    return ElementTree.Element("mask", attributes | {key: str(value) for key, value in place.items()})
