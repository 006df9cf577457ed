"""Tiny data sets in the devkit layout for tests: coloured rectangles on noise, masks with 255 borders."""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from segcore.data.manifest import Record, Split
from segcore.data.pictures import IGNORE, write_labels

PROJECT = Path(__file__).parents[1]
PARAMS = PROJECT / "tests/params.yaml"
"""What params.yaml is unless another profile was put in its place; it has every kind of entry."""


def make_devkit(
    root: Path,
    n_train: int = 6,
    n_val: int = 3,
    size: tuple[int, int] = (48, 40),
    classes: Sequence[str] = ("circle", "square", "star"),
    seed: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Write a data set of `size` (width, height) and return the classes 1..L of each image id.

    Image i shows class i % L + 1, and every third image the next class besides.
    """
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(["background", *classes]) + "\n")
    tags: dict[str, tuple[int, ...]] = {}
    for split, count in (("train", n_train), ("val", n_val)):
        ids = [f"{split}_{index:03d}" for index in range(count)]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
        for index, image_id in enumerate(ids):
            shown = [index % len(classes) + 1]
            shown += [(index + 1) % len(classes) + 1] if index % 3 == 2 else []
            rng = np.random.default_rng([seed, split == "val", index])
            image, labels = draw(size, shown, rng)
            Image.fromarray(image).save(root / f"JPEGImages/{image_id}.jpg", quality=95)
            write_labels(root / f"SegmentationClass/{image_id}.png", labels)
            tags[image_id] = tuple(sorted(set(shown)))
    return tags


def draw(size: tuple[int, int], shown: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its labels, with one rectangle a class side by side, each with a border of 255."""
    width, height = size
    image = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), dtype=np.uint8)
    share = width // len(shown)
    for place, index in enumerate(shown):
        left = place * share + int(rng.integers(1, 4))
        right = (place + 1) * share - int(rng.integers(2, 5))
        top, bottom = int(rng.integers(2, height // 4)), int(rng.integers(3 * height // 4, height - 2))
        image[top:bottom, left:right] = np.random.default_rng(index).integers(100, 256, 3)
        labels[top:bottom, left:right] = IGNORE
        labels[top + 1 : bottom - 1, left + 1 : right - 1] = index
    return image, labels


def make_record(
    image_id: str,
    image: Path,
    labels: Path | None,
    width: int,
    height: int,
    tags: tuple[int, ...],
    split: Split,
    label_classes: tuple[int, ...] | None = None,
) -> Record:
    """A record without hashes, which nothing but DVC looks at; labels show the classes of the tags, if not told."""
    shown = (tags if label_classes is None else label_classes) if labels is not None else None
    return Record(image_id, image, labels, width, height, tags, split, "", "" if labels is not None else None, shown)


GONE = object()
"""Stands for a key that is taken away."""


def voc_section(root: str | Path) -> dict[str, Any]:
    """The section `dataset` for a folder that `make_devkit` wrote."""
    return {
        "layout": "voc", "name": "tiny", "root": str(root), "train_list": "train", "val_list": "val",
        "tags": {"kind": "masks"}, "sbd_root": None, "convert_palette": False,
        "sixteen_bit": "full", "duplicates": "refuse",
    }  # fmt: skip


@cache
def _parsed(text: str) -> dict[str, Any]:
    """Many tests change the same file, and parsing it takes a tenth of a second."""
    return YAML(typ="safe", pure=True).load(text)


def changed(changes: Mapping[str, Any], params: Path = PARAMS) -> dict[str, Any]:
    """The content of a parameters file with other values at dotted keys, without those that are `GONE`."""
    content = copy.deepcopy(_parsed(params.read_text("utf-8")))
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = content
        for name in sections:
            place = place[name]
        if value is GONE:
            del place[last]
        else:
            place[last] = copy.deepcopy(value)
    return content


def write_params(path: Path, changes: Mapping[str, Any]) -> Path:
    """A parameters file like that of the embedded set, with other values at dotted keys."""
    content = changed(changes)
    text = json.dumps(content, indent=1, default=str)
    if json.loads(text) == content:  # JSON is YAML, too, and written in a hundredth of the time
        path.write_text(text)
    else:
        YAML(typ="safe", pure=True).dump(content, path)
    return path


def real_voc() -> Path:
    """A devkit with VOC's photographs, or the test is skipped."""
    root = Path(os.environ.get("SEGCORE_VOC_ROOT", PROJECT / "../shared/data/VOCdevkit/VOC2012"))
    if not (root / "JPEGImages").is_dir():
        pytest.skip(f"no VOC photographs in {root}; set SEGCORE_VOC_ROOT to a folder VOCdevkit/VOC2012")
    return root
