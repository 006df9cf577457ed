"""Label Studio: its JSON export (brush strokes, polygons, boxes, ellipses; choices as tags), and tasks to import there.

Places and sizes are per cent of the picture (labelstud.io, "Export annotations"). Of several annotations of a task the
last one counts that nobody cancelled; predictions are not read, as nobody has seen them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from segcore.data.pictures import IGNORE
from segcore.errors import Problem
from segcore.exchange import BACKGROUND, Annotated, Collection, brush, clean, is_unknown
from segcore.exchange.collection import Item
from segcore.exchange.drawing import Shape, ellipse, labels_of, rectangle
from segcore.exchange.pictures import Pictures, beside
from segcore.exchange.reading import listed, read_json

LABELS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "labels")


def read(source: Path, images: Path | None) -> Collection:
    """The data set of a file that was exported as JSON (not JSON-MIN).

    Raises:
        Problem: no such file, or another one.
    """
    tasks = listed(read_json(source), str(source))
    found = Pictures(beside(source, images, "images", "upload"))
    made, skipped = [], list[str]()
    for task in tasks:
        if "data" not in task:
            raise Problem(f"{source}: a task has no `data`; export as JSON, not as JSON-MIN")
        name = _picture(task["data"])
        if name is None:
            skipped.append(f"{source}: task {task.get('id')}: its data names no picture")
            continue
        kept = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
        made.append(_annotated(name, found.find(name), kept, f"{source}: {name}", skipped))
    used = {tag for one in made for tag in one.tags}
    return Collection(tuple(sorted(used)), tuple(made), tuple(skipped))


def _picture(data: dict[str, Any]) -> str | None:
    """What names the picture: the key `image`, as usual, or else the only text with a picture's ending."""
    given = data.get("image")
    endings = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
    names = [value for value in data.values() if isinstance(value, str) and value.lower().endswith(endings)]
    return given if isinstance(given, str) else names[0] if len(names) == 1 else None


def _annotated(
    name: str, picture: Path | None, kept: Sequence[dict[str, Any]], where: str, skipped: list[str]
) -> Annotated:
    tags: set[str] = set()
    shapes: list[Shape] = []
    size: tuple[int, int] | None = None
    results = kept[-1].get("result", []) if kept else []
    for one in listed(results, f"{where}: result"):
        value, kind = one.get("value", {}), str(one.get("type", "")).lower()
        if kind == "choices":
            tags |= {clean(choice) for choice in value.get("choices", ())}
            continue
        labels = next((value[key] for key in LABELS if value.get(key)), None)
        if labels is None:
            continue  # a rating, a text, or the outline of something that another result names
        name_of = clean(labels[0])
        try:
            size = int(one["original_width"]), int(one["original_height"])
            shapes.append(_shape(name_of, kind, value, *size))
        except (KeyError, TypeError, ValueError) as error:
            skipped.append(f"{where}: a {kind or 'result'} cannot be drawn ({error!r})")
            continue
        tags.add(name_of)
    tags = {tag for tag in tags if tag != BACKGROUND and not is_unknown(tag)}
    paint = None
    if size is not None and any(shape.certain for shape in shapes):
        width, height = size
        paint = lambda index: labels_of(shapes, width, height, index)  # noqa: E731
    return Annotated(name, picture, frozenset(tags), paint, bool(kept))


def _shape(name: str, kind: str, value: dict[str, Any], width: int, height: int) -> Shape:
    if value.get("format") == "rle" or "rle" in value:
        return Shape(name, brush.decode(value["rle"], width, height))
    across, down = width / 100, height / 100
    if "points" in value:
        return Shape(name, [[[x * across, y * down] for x, y in value["points"]]])
    x, y, turn = value["x"] * across, value["y"] * down, float(value.get("rotation") or 0)
    if "radiusX" in value:
        return Shape(name, [ellipse(x, y, value["radiusX"] * across, value["radiusY"] * down, turn)])
    return Shape(name, [rectangle(x, y, value["width"] * across, value["height"] * down, turn)], certain=False)


def write(items: Iterable[Item], classes: Sequence[str], prefix: str, model: str | None) -> list[dict[str, Any]]:
    """Tasks to import: a brush for a class in a picture, choices for tags.

    `prefix` comes before the picture's name: where Label Studio finds it. What a model predicted are predictions, with
    which an annotation begins there; what people drew are annotations.
    """
    tasks = []
    for number, item in enumerate(items, start=1):
        results = [_choices(number, item)] if item.tags is not None else []
        labels = item.labels()
        for value in [] if labels is None else np.flatnonzero(np.bincount(labels.ravel())).tolist():
            if value:
                name = "unknown" if value == IGNORE else classes[value - 1]
                results.append(_brush(number, item, name, labels == value))
        task: dict[str, Any] = {"id": number, "data": {"image": prefix + item.name}}
        if model is None:
            task["annotations"] = [{"result": results}] if results else []
        else:
            task["predictions"] = [{"model_version": model, "score": item.score, "result": results}]
        tasks.append(task)
    return tasks


def _choices(number: int, item: Item) -> dict[str, Any]:
    value = {"choices": sorted(item.tags or ())}
    return {"id": f"tags{number}", "type": "choices", "from_name": "tags", "to_name": "image", "value": value}


def _brush(number: int, item: Item, name: str, mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    return {
        "id": f"{name}{number}",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": item.width,
        "original_height": item.height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush.encode(mask), "brushlabels": [name]},
    }


def config(classes: Sequence[str]) -> str:
    """The labelling interface that the tasks of `write` belong to."""
    from xml.sax.saxutils import quoteattr

    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in [*classes, "unknown"])
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="brush" toName="image">\n{labels}\n  </BrushLabels>\n'
        f'  <Choices name="tags" toName="image" choice="multiple">\n{choices}\n  </Choices>\n</View>\n'
    )
