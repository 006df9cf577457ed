"""COCO: `instances_*.json` (polygons, run lengths, boxes) and `panoptic_*.json` with its PNGs; and back.

Objects that are only boxed give tags; where a picture has outlines as well, the inside of such a box is unknown.
Smaller objects are drawn over larger ones, as COCO says nothing of which lies in front.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segcore.data.pictures import BROKEN, IGNORE
from segcore.errors import Problem
from segcore.exchange import BACKGROUND, Annotated, Collection, Paint, clean, is_unknown
from segcore.exchange.collection import Item
from segcore.exchange.drawing import Shape, box_of, labels_of, runs_of
from segcore.exchange.pictures import Pictures, beside
from segcore.exchange.reading import listed, read_json
from segcore.files import regular

TAGS = "tags"
"""A key of ours in `images`: COCO has no place for tags of pictures that nobody outlined."""


def read(source: Path, images: Path | None, masks: Path | None) -> Collection:
    """The data set of an annotation file; `masks` is the folder of a panoptic one's PNGs, if it is not beside it.

    Raises:
        Problem: no such file, or not one of COCO's.
    """
    content = read_json(source)
    if not (isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()):
        raise Problem(f"{source}: is no file of COCO's; it must hold images, annotations and categories")
    names = {one["id"]: clean(one["name"]) for one in listed(content["categories"], f"{source}: categories")}
    found = Pictures(beside(source, images, "images", source.stem))
    by_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    skipped: list[str] = []
    for one in listed(content["annotations"], f"{source}: annotations"):
        by_image[one.get("image_id")].append(one)
    panoptic = any("segments_info" in one for one in content["annotations"])
    folder = masks or source.with_suffix("")
    made, used = [], set[str]()
    for entry in listed(content["images"], f"{source}: images"):
        name, size = str(entry["file_name"]), (int(entry["width"]), int(entry["height"]))
        own = by_image.pop(entry["id"], [])
        if panoptic:
            tags, paint = _panoptic(own, names, folder, f"{source}: {name}", skipped)
        else:
            tags, paint = _instances(own, names, size, f"{source}: {name}", skipped)
        tags |= {clean(tag) for tag in entry.get(TAGS, ())}
        used |= tags
        made.append(Annotated(name, found.find(name), frozenset(tags), paint, bool(own) or TAGS in entry))
    skipped += [
        f"{source}: {len(of)} annotations of the image {i}, which it does not list" for i, of in by_image.items()
    ]
    classes = [name for name in dict.fromkeys(names.values()) if name in used]
    classes += sorted(used - {*classes})
    return Collection(tuple(classes), tuple(made), tuple(skipped))


def _instances(
    own: Sequence[dict[str, Any]], names: Mapping[Any, str], size: tuple[int, int], where: str, skipped: list[str]
) -> tuple[set[str], Paint | None]:
    shapes: list[tuple[float, Shape]] = []
    tags: set[str] = set()
    for one in own:
        name = names.get(one.get("category_id"))
        if name is None:
            skipped.append(f"{where}: an annotation of the category {one.get('category_id')}, which is not listed")
            continue
        if name != BACKGROUND and not is_unknown(name):
            tags.add(name)
        outline, box = one.get("segmentation"), one.get("bbox")
        if outline:
            shapes.append((float(one.get("area") or 0), Shape(name, outline)))
        elif isinstance(box, list) and len(box) == 4:
            x, y, width, height = map(float, box)
            corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
            shapes.append((width * height, Shape(name, [corners], certain=False)))
    if not any(shape.certain for _, shape in shapes):
        return tags, None
    ordered = [shape for _, shape in sorted(shapes, key=lambda pair: -pair[0])]
    return tags, lambda index: labels_of(ordered, *size, index)


def _panoptic(
    own: Sequence[dict[str, Any]], names: Mapping[Any, str], folder: Path, where: str, skipped: list[str]
) -> tuple[set[str], Paint | None]:
    if not own:
        return set(), None
    segments = {int(one["id"]): names.get(one["category_id"]) for one in own[0]["segments_info"]}
    skipped += [f"{where}: the segment {i} is of a category that is not listed" for i, n in segments.items() if not n]
    tags = {name for name in segments.values() if name and name != BACKGROUND and not is_unknown(name)}
    file = folder / own[0]["file_name"]

    def paint(index: Mapping[str, int]) -> np.ndarray:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"its PNG, {file}, lies outside of {folder}")
        try:
            with Image.open(regular(file)) as image:
                colours = np.asarray(image.convert("RGB")).astype(np.int64)
        except BROKEN as error:
            raise ValueError(f"{file} cannot be read ({error})") from error
        values, places = np.unique(colours @ [1, 256, 65536], return_inverse=True)
        # A segment of 0 is unlabelled: nobody says that it is background.
        indices = [
            0 if segments.get(value) == BACKGROUND else index.get(segments.get(value) or "", IGNORE)
            for value in values.tolist()
        ]
        return np.asarray(indices, dtype=np.uint8)[places].reshape(colours.shape[:2])

    return tags, paint


def write(items: Iterable[Item], classes: Sequence[str]) -> dict[str, Any]:
    """A data set or predictions as an instances file: one annotation, in run lengths, for a class in a picture.

    Unknown pixels become objects of the category `unknown`; tags of pictures without outlines stand in `images`.
    """
    names = [*classes, "unknown"]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(items, start=1):
        entry: dict[str, Any] = {"id": number, "file_name": item.name, "width": item.width, "height": item.height}
        if item.tags is not None:
            entry[TAGS] = sorted(item.tags)
        images.append(entry)
        labels = item.labels()
        if labels is None:
            continue
        for value in np.unique(labels).tolist():
            if value == 0:
                continue
            mask = labels == value
            category = len(names) if value == IGNORE else value
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
            annotation |= {"area": int(mask.sum()), "bbox": list(box_of(mask)), "segmentation": runs_of(mask)}
            annotations.append(annotation)
    used = {annotation["category_id"] for annotation in annotations}
    categories = [
        {"id": place, "name": name, "supercategory": ""}
        for place, name in enumerate(names, start=1)
        if name != "unknown" or place in used
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
