"""What is exported: a devkit folder, or a folder of predictions."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segcore.data.pictures import BROKEN, read_labels
from segcore.errors import Problem
from segcore.exchange import BACKGROUND, clean
from segcore.exchange.pictures import Pictures
from segcore.files import regular

CARD = "predictions.json"


@dataclass(frozen=True)
class Item:
    """A picture with what is known of it."""

    name: str
    width: int
    height: int
    tags: frozenset[str] | None
    """None where nobody tagged it."""
    labels: Callable[[], UInt8[np.ndarray, "H W"] | None]
    """None where nobody outlined anything."""
    score: float | None
    """Of a prediction, between 0 and 1."""


@dataclass(frozen=True)
class Exported:
    """What a folder holds; `model` is None for a data set that people annotated."""

    classes: tuple[str, ...]
    items: list[Item]
    model: str | None


def of(folder: Path) -> Exported:
    """What lies in a devkit folder or in the folder of `segcore predict`.

    Raises:
        Problem: it is neither.
    """
    if (folder / CARD).is_file():
        return _predictions(folder)
    if (folder / "JPEGImages").is_dir() and (folder / "classes.txt").is_file():
        return _devkit(folder)
    raise Problem(
        f"{folder}: is neither a data set of `segcore import` (JPEGImages/, classes.txt) nor a folder of "
        f"`segcore predict` ({CARD})"
    )


def _devkit(folder: Path) -> Exported:
    classes = [line.strip() for line in (folder / "classes.txt").read_text("utf-8-sig").splitlines() if line.strip()]
    if classes[:1] != [BACKGROUND]:
        raise Problem(f"{folder / 'classes.txt'}: the first line must be '{BACKGROUND}'")
    tags: dict[str, frozenset[str]] = {}
    table = folder / "tags.csv"
    if table.is_file():
        with table.open(encoding="utf-8-sig", newline="") as lines:
            tags = {row["image_id"]: frozenset((row["tags"] or "").split()) for row in csv.DictReader(lines)}
    items = []
    for path in sorted(Pictures(folder / "JPEGImages").by_path.values()):
        mask = folder / "SegmentationClass" / f"{path.stem}.png"
        width, height = _size(path)
        labels = (lambda file=mask: read_labels(file)) if mask.is_file() else lambda: None
        items.append(Item(path.name, width, height, tags.get(path.stem), labels, None))
    return Exported(tuple(classes[1:]), items, None)


def _predictions(folder: Path) -> Exported:
    card = json.loads((folder / CARD).read_text())
    classes = [clean(name) for name in card["classes"]]
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        items = [_predicted(folder, row, classes) for row in csv.DictReader(lines)]
    return Exported(tuple(classes[1:]), items, card["model"])


def _predicted(folder: Path, row: dict[str, str], classes: list[str]) -> Item:
    mask = folder / row["mask"]
    tags = frozenset(row["tags"].split())
    sure = [float(row[f"probability:{name}"]) for name in classes[1:] if name in tags]
    score = min(sure) if sure else None
    return Item(row["image"], int(row["width"]), int(row["height"]), tags, lambda: read_labels(mask), score)


def _size(path: Path) -> tuple[int, int]:
    """Width and height as a person sees the picture."""
    try:
        with Image.open(regular(path)) as image:
            turned = image.getexif().get(274, 1) > 4
            return (image.height, image.width) if turned else (image.width, image.height)
    except BROKEN as error:
        raise Problem(f"{path} cannot be read ({error})") from error
