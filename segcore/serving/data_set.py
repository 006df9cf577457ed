"""The data set beside a model: which pictures, masks and tags it has now, as `prepare` would list them."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segcore.config.data import DatasetParams, TagsFromTable, VocParams
from segcore.config.reading import section
from segcore.data.manifest import wrong_id
from segcore.data.pictures import BROKEN, read_labels
from segcore.errors import Problem
from segcore.importers import Listing, colours, sbd, tags, voc
from segcore.importers.folders import PICTURE_ENDINGS, Folder
from segcore.prediction.model import model_folder

LISTS = "ImageSets/Segmentation"

Place = Literal["train", "val", "unlisted"]


@dataclass(frozen=True)
class Member:
    """A picture of the data set."""

    image_id: str
    picture: Path
    place: Place
    mask: Path | None
    tags: tuple[int, ...] | None
    """Classes 1..L that a table or an annotation names; None where there is neither."""


class DataSet:
    """A folder in the layout of VOC; safe for threads.

    Attributes:
        params: how it is read.
        strong: how its project chooses the masks that it learns from (`split.strong.kind`); None if nothing says so.
    """

    def __init__(self, root: Path, params: VocParams, strong: str | None) -> None:
        self.root, self.params, self.strong = root, params, strong
        self._lock = threading.Lock()
        self._read: tuple[object, Listing, dict[str, Member]] | None = None

    @property
    def listing(self) -> Listing:
        """The data set as `prepare` lists it now, with what is wrong with it."""
        return self._now()[0]

    @property
    def members(self) -> dict[str, Member]:
        """Every picture there is now, by its id: those of the lists first."""
        return self._now()[1]

    def member(self, image_id: str) -> Member:
        """The picture of an id.

        Raises:
            Problem: there is none.
        """
        if (found := self.members.get(image_id)) is None:
            raise Problem(f"The data set has no picture '{image_id[:80]}'.")
        return found

    def forget(self) -> None:
        """Read the folder anew when it is asked for next."""
        with self._lock:
            self._read = None

    def labels(self, member: Member) -> UInt8[np.ndarray, "H W"]:
        """The mask that a picture has.

        Raises:
            Problem: it has none, or it cannot be read.
        """
        if member.mask is None:
            raise Problem(f"{member.image_id} has no mask yet.")
        try:
            if member.mask.suffix == ".mat":
                return sbd.read_mask(member.mask.read_bytes())
            if self.params.convert_palette:
                with Image.open(member.mask) as image:
                    return colours.to_indices(np.asarray(image.convert("RGB")))[0]
        except BROKEN as error:
            raise Problem(f"{member.mask} cannot be read ({error}).") from error
        return read_labels(member.mask)

    def _now(self) -> tuple[Listing, dict[str, Member]]:
        with self._lock:
            stamp = self._stamp()
            if self._read is None or self._read[0] != stamp:
                listing = voc.read(self.root, self.params)
                self._read = stamp, listing, self._members(listing)
            return self._read[1], self._read[2]

    def _stamp(self) -> object:
        """By what lists and folders are known to be as they were."""
        lists = [f"{LISTS}/{name}.txt" for name in (self.params.train_list, self.params.val_list)]
        places = [self.root / name for name in (*lists, "JPEGImages", "SegmentationClass", "Annotations")]
        if isinstance(self.params.tags, TagsFromTable):
            places += [self.root / self.params.tags.file, Path(self.params.tags.file)]
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in places]

    def _members(self, listing: Listing) -> dict[str, Member]:
        found: dict[str, Member] = {}
        for entry in sorted(listing.entries, key=lambda entry: entry.image_id):
            assert isinstance(entry.image, Path), "a devkit is a folder of files"
            mask = entry.labels if isinstance(entry.labels, Path) and entry.labels.is_file() else None
            named = None if self.params.tags.kind == "masks" else entry.tags
            if entry.image.is_file():
                found[entry.image_id] = Member(entry.image_id, entry.image, entry.split, mask, named)
        masks = Folder(self.root / "SegmentationClass", [])
        tags_of = tags.reader(self.root, self.params, listing.classes, [])
        for path in sorted((self.root / "JPEGImages").iterdir()):
            able = path.suffix.lower() in PICTURE_ENDINGS and wrong_id(path.stem) is None and path.is_file()
            if able and path.stem not in found:
                named = tags_of(path.stem) if tags_of is not None else None
                mask = masks.mask(path.stem, [], wanted=False)
                found[path.stem] = Member(path.stem, path, "unlisted", mask, None if named is None else named.tags)
        return found


def open_data_set(root: Path, model: Path, train: str | None, val: str | None, classes: Sequence[str]) -> DataSet:
    """The data set in a folder, read as the project of the model reads it, or as `segcore import` writes it.

    Args:
        train, val: names of its lists, in the place of those of the project.
        classes: those of the model, background first.

    Raises:
        Problem: no devkit there, one that a stage makes, or one of other classes.
    """
    root = root.expanduser()
    if (root.parent / "manifest.parquet").is_file():
        raise Problem(f"{root} is what the stage prepare makes, and makes anew; name the folder that it reads")
    params, strong = _of_project(root, model) or (_imported(root), None)
    lists = {key: name for key, name in (("train_list", train), ("val_list", val)) if name is not None}
    data_set = DataSet(root, params.model_copy(update=lists), strong)
    found = data_set.listing.classes
    for name in (data_set.params.train_list, data_set.params.val_list):
        if not (root / LISTS / f"{name}.txt").is_file():
            there = ", ".join(sorted(path.stem for path in (root / LISTS).glob("*.txt"))) or "none"
            raise Problem(f"{root / LISTS} has no list {name}.txt; lists there: {there}; say --train-list, --val-list")
    if found != tuple(classes):
        raise Problem(
            f"{root} has the classes {', '.join(found[1:])}, the model {', '.join(classes[1:])}; a label is a place "
            "among them, so masks of one would mean other things to the other: take a model of this data set"
        )
    return data_set


def _of_project(root: Path, model: Path) -> tuple[VocParams, str | None] | None:
    """How the project that trained the model reads this very folder, and which masks it learns from."""
    data = model_folder(model).absolute().parents[2]
    try:
        content = json.loads((data / "params/prepare.json").read_bytes())
        split = json.loads((data / "params/split.json").read_bytes())
    except (OSError, ValueError):
        return None
    params = section({"dataset": content.get("dataset")}, "dataset", DatasetParams)
    if not isinstance(params, VocParams) or (data.parents[1] / params.root).resolve() != root.resolve():
        return None
    return params, split.get("split", {}).get("strong", {}).get("kind")


def _imported(root: Path) -> VocParams:
    tags = {"kind": "csv", "file": "tags.csv"} if (root / "tags.csv").is_file() else {"kind": "masks"}
    return VocParams.model_validate({
        "layout": "voc", "name": "served", "root": str(root), "train_list": "train", "val_list": "val",
        "tags": tags, "sbd_root": None, "convert_palette": False, "sixteen_bit": "full", "duplicates": "refuse",
    })  # fmt: skip
