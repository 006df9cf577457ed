"""What lies beside a model in its project: the pictures it is measured on, its scores, what it learned from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from segcore import made_of, systems
from segcore.config.reading import section
from segcore.config.systems import PSEUDO_LABELS
from segcore.data.addresses import Address, is_there, seen_from
from segcore.data.manifest import read_ids, read_manifest
from segcore.data.pictures import IGNORE, read_image, read_labels
from segcore.errors import Problem
from segcore.exporting.agreement import Pixels
from segcore.prediction import listing

CHECKED, MEASURED = 8, 200
"""Pictures at most by which agreement is checked, and mIoU measured."""

Pair = tuple[Pixels, UInt8[np.ndarray, "_ _"]]
One = TypeVar("One")


@dataclass(frozen=True)
class Picture:
    """One to check with, and its mask, if there is one."""

    image: Address
    mask: Address | None

    def pair(self, n_classes: int) -> Pair:
        """The picture and its mask.

        Raises:
            Problem: one cannot be read; the mask is of another size or of classes that the model lacks.
        """
        assert self.mask is not None
        pixels, truth = read_image(self.image), read_labels(self.mask)
        if truth.shape != pixels.shape[:2]:
            raise Problem(f"{self.mask} has {truth.shape[1]}x{truth.shape[0]} pixels, but {self.image} has others")
        if (beyond := truth[(truth >= n_classes) & (truth != IGNORE)]).size:
            raise Problem(
                f"{self.mask}: found label {beyond[0]}; the model has 0..{n_classes - 1}, and {IGNORE} is unknown"
            )
        return pixels, truth


def pictures(folder: Path, images: Sequence[str], masks: Path | None) -> list[Picture]:
    """The pictures that were named, or else the validation images of the data set that the model lies in.

    Raises:
        Problem: there are none; a mask is missing.
    """
    if images:
        photos = listing.photos(images)
        found = [Picture(photo.path, None if masks is None else masks / f"{photo.out}.png") for photo in photos]
        if missing := [picture.mask for picture in found if picture.mask is not None and not is_there(picture.mask)]:
            raise Problem(f"--masks: {missing[0]} is missing, as are {len(missing) - 1} others; name masks as pictures")
        return found
    data = data_folder(folder)
    manifest, listed = data / "prepared/manifest.parquet", data / "split/val.txt"
    if not (manifest.is_file() and listed.is_file()):
        raise Problem(
            f"{folder} lies in no project ({manifest} or {listed.name} is missing), and an export is checked on real "
            "pictures before it is kept; name some by --images"
        )
    records = read_manifest(manifest)
    root = data.parents[1]
    chosen = [records[image_id] for image_id in read_ids(listed) if image_id in records]
    return [Picture(seen_from(root, one.image), one.labels and seen_from(root, one.labels)) for one in chosen]


def data_folder(model: Path) -> Path:
    """`data/<data set>` of a model that lies in a project."""
    return model.absolute().parents[2]


def spread(many: Sequence[One], most: int) -> list[One]:
    """At most so many, evenly out of all."""
    return [many[i * len(many) // most] for i in range(most)] if len(many) > most else list(many)


def scores(folder: Path, card: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """What `evaluate` measured of this very model, or why nothing is known."""
    results = data_folder(folder) / "results" / card["name"]
    content = _json(results / "metrics.json")
    if content is None:
        return None, "there are no results beside the model"
    made, mine = made_of.read(results), card.get("made_of", {})
    if any(made.get(key) != mine.get(key) for key in ("training", "images", "tags")):
        return None, "the results beside the model are of another training of it"
    return content, None


def data_set(folder: Path) -> dict[str, Any] | None:
    """Name, layout and number of images of the data set."""
    data = data_folder(folder)
    content = _json(data / "prepared/dataset.json")
    if content is None:
        return None
    return {"name": data.name, "layout": content["layout"], "images": sum(content["images"].values())}


def learned_from(folder: Path, name: str) -> dict[str, Any] | None:
    """What the model learned from, followed back through all that it was made of; None where that is not known.

    Gives `masks` (of how many images; 0 is none), `tags` (of how many weak images), and `models`, those that it started
    from or took pseudo-labels of.
    """
    data = data_folder(folder)
    behind, masks, tags = [("train_segmenter", name)], False, False
    for stage, maker in behind:  # grows on the way
        content = _json(data / "params" / stage / f"{maker}.json")
        if content is None:
            return None
        entry = content["entry"]
        if stage == "train_segmenter":
            module = systems.load(entry["module"])
            given = {"systems": {maker: {"training": entry["training"]}}}
            learns = module.supervision(section(given, f"systems.{maker}.training", module.Training), entry["labels"])
            masks |= learns.masks
            tags |= learns.tags
            sources = [entry["start"], entry["labels"]]
        else:
            tags |= entry.get("images") == "weak"
            sources = [entry.get("input", "")]
        for source in sources:
            kind, _, other = source.partition("/")
            stages = {"classifiers": "train_classifier", "segmenters": "train_segmenter"}
            stages[PSEUDO_LABELS.rstrip("/")] = "extract_pseudo_labels"
            if kind in stages and (stages[kind], other) not in behind:
                behind.append((stages[kind], other))
    counted = [
        _lines(data / f"split/{which}.txt") if used else 0 for which, used in (("strong", masks), ("weak", tags))
    ]
    return {"masks": counted[0], "tags": counted[1], "models": [f"{stage}/{maker}" for stage, maker in behind[1:]]}


def _lines(path: Path) -> int:
    return len(read_ids(path)) if path.is_file() else 0


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
