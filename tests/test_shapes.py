"""The embedded data set: a devkit folder whose bytes follow from the parameters and the seed."""

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segcore.config import reading
from segcore.config.data import ShapesParams
from segcore.data import pictures
from segcore.errors import Problem, Problems
from segcore.importers import shapes

SECTION: dict[str, Any] = {"layout": "shapes", "name": "shapes", "root": "data/embedded"}


def _params(**changes: int) -> ShapesParams:
    values = SECTION | {"classes": 10, "train_images": 60, "val_images": 10, "size": 96, "max_objects": 4}
    return ShapesParams.model_validate(values | changes)


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _all_labels(root: Path) -> list[np.ndarray]:
    return [pictures.read_labels(path) for path in sorted((root / "SegmentationClass").glob("*.png"))]


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "not" / "yet" / "there"
    shapes.generate(out, _params(), seed=0)
    return out


def test_layout_is_that_of_the_devkit(devkit: Path) -> None:
    train = (devkit / "ImageSets/Segmentation/train.txt").read_text().split()
    val = (devkit / "ImageSets/Segmentation/val.txt").read_text().split()
    assert (train[0], train[-1], len(train)) == ("train_00001", "train_00060", 60)
    assert (val[0], val[-1], len(val)) == ("val_00001", "val_00010", 10)
    names = (devkit / "classes.txt").read_text().splitlines()
    assert names == ["background", *shapes.class_names(10)]
    for folder in ("JPEGImages", "SegmentationClass"):
        assert sorted(path.stem for path in (devkit / folder).iterdir()) == sorted([*train, *val])
    with Image.open(devkit / "JPEGImages/train_00001.png") as image:
        assert (image.mode, image.size) == ("RGB", (96, 96))
    with Image.open(devkit / "SegmentationClass/train_00001.png") as labels:
        assert (labels.mode, labels.size) == ("P", (96, 96))
    assert sorted(path.name for path in devkit.parent.iterdir()) == [devkit.name], "a temporary folder was left"


def test_same_seed_gives_the_same_bytes_and_another_seed_others(devkit: Path, tmp_path: Path) -> None:
    shapes.generate(tmp_path / "again", _params(), seed=0)
    shapes.generate(tmp_path / "other", _params(), seed=1)
    again, other = _files(tmp_path / "again"), _files(tmp_path / "other")
    assert again == _files(devkit)
    images = [name for name in again if name.endswith(".png")]
    assert all(again[name] != other[name] for name in images)


def test_an_image_does_not_depend_on_how_many_there_are(devkit: Path, tmp_path: Path) -> None:
    shapes.generate(tmp_path / "few", _params(train_images=3, val_images=1), seed=0)
    few, many = _files(tmp_path / "few"), _files(devkit)
    assert all(many[name] == content for name, content in few.items() if name.endswith(".png"))


def test_no_two_images_are_the_same(devkit: Path) -> None:
    images = [path.read_bytes() for path in (devkit / "JPEGImages").iterdir()]
    assert len(set(images)) == len(images)


def test_labels_are_classes_or_ignored_and_every_class_is_frequent(devkit: Path) -> None:
    labels = [pictures.read_labels(devkit / f"SegmentationClass/train_{n:05d}.png") for n in range(1, 61)]
    tags = Counter(int(value) for one in labels for value in np.unique(one))
    assert set(tags) == {*range(11), pictures.IGNORE}
    assert all(tags[label] >= 6 for label in range(1, 11))


def test_objects_are_labelled_by_enough_pixels(devkit: Path) -> None:
    for labels in _all_labels(devkit):
        values, counts = np.unique(labels, return_counts=True)
        objects = counts[(values != 0) & (values != pictures.IGNORE)]
        assert len(objects) >= 1
        assert objects.min() >= shapes.MIN_PIXELS


def test_a_border_lies_between_any_two_regions(devkit: Path) -> None:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for labels in _all_labels(devkit):
        known = labels != pictures.IGNORE
        greatest = cv2.dilate(np.where(known, labels, 0).astype(np.uint8), cross)
        assert (greatest[known] == labels[known]).all(), "two labels touch without a border"
        assert 0.01 < 1 - known.mean() < 0.35


@pytest.mark.parametrize("n_classes", [4, *range(6, 21)])
def test_neither_shape_nor_texture_alone_names_a_class(n_classes: int) -> None:
    names = shapes.class_names(n_classes)
    assert len(set(names)) == n_classes
    textures, forms = zip(*(name.split("-") for name in names), strict=True)
    assert min(Counter(textures).values()) >= 2
    assert min(Counter(forms).values()) >= 2


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_few_classes_are_still_distinct(n_classes: int) -> None:
    assert len(set(shapes.class_names(n_classes))) == n_classes


@pytest.mark.parametrize(("n_classes", "size", "max_objects"), [(2, 32, 1), (20, 64, 8), (20, 128, 4)])
def test_other_sizes_hold_every_class(tmp_path: Path, n_classes: int, size: int, max_objects: int) -> None:
    params = _params(classes=n_classes, train_images=2 * n_classes, val_images=1, size=size, max_objects=max_objects)
    shapes.generate(tmp_path / "set", params, seed=3)
    tags = Counter(int(value) for labels in _all_labels(tmp_path / "set") for value in np.unique(labels))
    assert all(tags[label] >= 2 for label in range(1, n_classes + 1))


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(Problem, match="not empty"):
        shapes.generate(tmp_path, _params(), seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    shapes.generate(tmp_path / "set", _params(train_images=1, val_images=1), seed=0)
    assert (tmp_path / "set/classes.txt").is_file()


def test_unknown_and_impossible_settings_are_rejected() -> None:
    numbers = {"classes": 21, "train_images": 0, "val_images": 1, "size": 97, "max_objects": 9, "colour": 1}
    with pytest.raises(Problems) as caught:
        reading.section({"dataset": SECTION | numbers}, "dataset", ShapesParams)
    text = str(caught.value)
    assert all(f"dataset.{key}: " in text for key in ("classes", "train_images", "size", "max_objects", "colour"))
    assert "dataset.val_images" not in text
