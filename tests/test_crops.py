"""Combinatorial crops: subsets, targets, boxes, cutting, and the stage with any number of workers."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from segcore.data.crops import box_iou, crop_boxes, enclosing_boxes, label_subsets, tight_box
from segcore.data.geometry import cut, padded_square
from segcore.data.manifest import read_manifest, write_manifest
from segcore.data.pictures import read_image, read_labels, write_labels
from segcore.data.samples import CropSamples, binary_labels
from segcore.errors import Problem
from stages import make_crops
from tests.devkit import make_record, write_params
from tests.test_proposals import PARAMS

NAMES = ["background", "circle", "square", "star", "cross", "ring", "moon"]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_all_subsets_are_made_the_small_ones_first() -> None:
    subsets = label_subsets([7, 2, 5], 7, rng())
    assert subsets == [(2,), (5,), (7,), (2, 5), (2, 7), (5, 7), (2, 5, 7)]
    assert label_subsets([], 7, rng()) == []


@pytest.mark.parametrize("maximum", [1, 3, 4, 5, 6, 10, 30])
def test_too_many_subsets_are_sampled_single_classes_and_the_full_set_first(maximum: int) -> None:
    subsets = label_subsets([1, 2, 3, 4, 5], maximum, rng())
    assert len(subsets) == len(set(subsets)) == maximum
    assert subsets == label_subsets([5, 4, 3, 2, 1], maximum, rng())
    if maximum >= 6:
        assert subsets[:5] == [(1,), (2,), (3,), (4,), (5,)]
        assert subsets[-1] == (1, 2, 3, 4, 5)
    else:
        assert {len(subset) for subset in subsets} == {1}


def test_thirty_classes_are_no_explosion() -> None:
    assert len(label_subsets(range(1, 31), 64, rng())) == 64


def test_the_target_is_one_in_the_subset_and_zero_in_other_classes() -> None:
    labels = torch.tensor([[[0, 1, 2], [3, 255, 1]], [[0, 1, 2], [3, 255, 1]]])
    subsets = torch.tensor([[1, 0, 1], [0, 1, 0]])
    expected = torch.tensor([[[0, 1, 0], [1, 255, 1]], [[0, 0, 1], [0, 255, 0]]])
    assert torch.equal(binary_labels(labels, subsets.bool()), expected)
    assert torch.equal(binary_labels(labels, subsets.float()), expected)


def test_a_subset_gets_exactly_its_number_of_boxes_good_proposals_first() -> None:
    foreground = np.zeros((100, 120), dtype=bool)
    foreground[30:60, 40:80] = True
    found = np.array([[0, 0, 120, 100], [38, 28, 84, 62], [40, 30, 60, 60], [30, 20, 90, 70], [90, 70, 110, 90]])
    boxes, proposed = crop_boxes(foreground, PARAMS, found, rng())
    assert boxes.shape == (200, 4)
    assert proposed == 2, "the whole image fits badly, one box holds half, one misses"
    np.testing.assert_array_equal(boxes[:2], found[[1, 3]])
    many = np.tile(found[1], (500, 1))
    assert crop_boxes(foreground, PARAMS, many, rng())[1] == 100, "half of the boxes stay random"
    boxes, proposed = crop_boxes(foreground, PARAMS, found[:0], rng())
    assert (len(boxes), proposed) == (200, 0)


def test_with_an_overlap_of_one_every_box_encloses_the_foreground() -> None:
    """As the paper has it; below one, proposals may cut a part of the foreground off."""
    foreground = np.zeros((100, 120), dtype=bool)
    foreground[30:60, 40:80] = True
    found = np.array([[38, 28, 84, 62], [42, 30, 80, 60], [40, 30, 80, 60], [40, 31, 80, 60], [30, 20, 90, 70]])
    for min_overlap, kept in ((1.0, [2, 0, 4]), (0.7, [2, 3, 1, 0, 4])):
        params = PARAMS.model_copy(update={"min_overlap": min_overlap})
        boxes, proposed = crop_boxes(foreground, params, found, rng())
        assert proposed == len(kept)
        np.testing.assert_array_equal(boxes[:proposed], found[kept])
        encloses = (boxes[:, :2] <= (40, 30)).all(axis=1) & (boxes[:, 2:] >= (80, 60)).all(axis=1)
        assert encloses.all() == (min_overlap == 1)


@pytest.mark.parametrize(
    "tight", [(40, 30, 80, 60), (0, 0, 120, 100), (0, 0, 1, 1), (119, 99, 120, 100), (0, 40, 120, 42)]
)
def test_random_boxes_enclose_the_foreground_at_many_scales(tight: tuple[int, int, int, int]) -> None:
    boxes = enclosing_boxes(tight, 120, 100, 400, rng())
    assert (boxes[:, :2] <= tight[:2]).all()
    assert (boxes[:, 2:] >= tight[2:]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 7).all(), "a speck is not blown up"
    assert (boxes[:, 2:] - boxes[:, :2]).max() <= 133
    iou = box_iou(boxes, (0, 0, 120, 120))
    assert iou.max() > 0.8, "some show the whole picture, as inference does"
    assert len(np.unique(boxes, axis=0)) > 100


def test_boxes_may_lie_beyond_the_image_but_show_mostly_image() -> None:
    boxes = enclosing_boxes((0, 30, 40, 60), 120, 100, 400, rng())
    assert (boxes[:, 0] < 0).any()
    seen = np.minimum(boxes[:, 2], 120) - np.maximum(boxes[:, 0], 0)
    assert (seen / (boxes[:, 2] - boxes[:, 0]) > 0.8).all()


def test_cutting_pads_with_black_and_unknown() -> None:
    image = np.full((20, 30, 3), 200, dtype=np.uint8)
    labels = np.full((20, 30), 3, dtype=np.uint8)
    pixels, target = cut(image, labels, (-10, 10, 10, 30), 20)
    expected = np.full((20, 20), 255)
    expected[:10, 10:] = 3
    np.testing.assert_array_equal(target, expected)
    np.testing.assert_array_equal(pixels[..., 0], np.where(expected == 3, 200, 0))


def test_cutting_without_labels_or_outside_of_the_image_is_all_unknown() -> None:
    image = np.full((20, 30, 3), 200, dtype=np.uint8)
    pixels, target = cut(image, None, (0, 0, 30, 20), 16)
    assert (pixels == 200).all()
    assert (target == 255).all()
    pixels, target = cut(image, np.zeros((20, 30), dtype=np.uint8), np.array([40, 40, 50, 50]), 16)
    assert (pixels == 0).all()
    assert (target == 255).all()


@pytest.mark.parametrize("size", [24, 48, 96, 200])
def test_image_and_labels_stay_aligned_under_the_warp(size: int) -> None:
    y, x = np.mgrid[:60, :90]
    labels = ((x // 15 + y // 15) % 2).astype(np.uint8)
    image = np.repeat(labels[..., None] * np.uint8(255), 3, axis=2)
    pixels, target = cut(image, labels, (15, 0, 75, 60), size)
    agree = (pixels[..., 0] > 127) == (target == 1)
    inner = cv2.erode((target == 1).astype(np.uint8), np.ones((3, 3))) + cv2.erode(
        (target == 0).astype(np.uint8), np.ones((3, 3))
    )
    assert agree[inner > 0].all()
    np.testing.assert_array_equal(target, target[::-1, ::-1])  # no shift to one side


def make_project(folder: Path, count: int, most_classes: int = 2) -> dict[str, Path]:
    """Strong images of coloured rectangles, with manifest, classes and split."""
    (folder / "images").mkdir(parents=True)
    records = []
    for number in range(count):
        draw = np.random.default_rng(number)
        image = draw.integers(0, 90, (60, 80, 3), dtype=np.uint8)
        labels = np.zeros((60, 80), dtype=np.uint8)
        for place in range(number % most_classes + 1):
            left, top = 3 + 13 * place, int(draw.integers(3, 25))
            image[top : top + 30, left : left + 11] = draw.integers(150, 256, 3)
            labels[top : top + 30, left : left + 11] = place + 1
        image_id = f"image_{number:03d}"
        Image.fromarray(image).save(folder / f"images/{image_id}.png")
        write_labels(folder / f"images/{image_id}_labels.png", labels)
        image_path, labels_path = (folder / f"images/{image_id}{end}.png" for end in ("", "_labels"))
        records.append(make_record(image_id, image_path, labels_path, 80, 60, (1, 6), "train"))
    write_manifest(folder / "manifest.parquet", records)
    (folder / "classes.json").write_text(json.dumps(NAMES))
    (folder / "strong.txt").write_text("".join(f"{record.image_id}\n" for record in reversed(records)))
    small = {"crops.per_subset": 8, "crops.max_subsets": 31}
    write_params(folder / "params.yaml", small)
    paths = {"manifest": folder / "manifest.parquet", "classes": folder / "classes.json", "split": folder}
    return paths | {"params": folder / "params.yaml"}


def test_the_stage_writes_index_counts_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_crops.main(**make_project(tmp_path, 6), out=tmp_path / "data/crops")
    table = pq.read_table(tmp_path / "data/crops/crops.parquet").to_pandas()
    assert list(table.columns) == ["image_id", "labels", "x1", "y1", "x2", "y2"]
    assert len(table) == 6 + (3 * 1 + 3 * 3) * 8, "N_s whole images and N_p boxes a subset"
    assert table["image_id"].is_monotonic_increasing
    by_subset = table[table["image_id"] == "image_001"]["labels"].map(tuple).value_counts()
    assert by_subset.to_dict() == {(1,): 8, (2,): 8, (1, 2): 1 + 8}, "classes of the mask, not of the tags"
    assert (table["x2"] > table["x1"]).all()
    counts = json.loads((tmp_path / "data/crops/crops.json").read_text())
    assert (counts["strong_images"], counts["subsets"], counts["crops"], counts["capped_images"]) == (6, 12, 96, {})
    assert counts["whole_images"] == 6
    assert counts["by_class"]["square"] == {"images": 3, "subsets": 6, "crops": 48}
    assert counts["by_class"]["moon"] == {"images": 0, "subsets": 0, "crops": 0}
    with Image.open(tmp_path / "data/crops/figure.png") as figure:
        assert min(figure.size) > 600


def test_every_strong_image_is_a_sample_as_inference_frames_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row each, with all labels of the mask, also where subsets are capped or there is no object."""
    monkeypatch.chdir(tmp_path)
    paths = make_project(tmp_path, 6, most_classes=6)
    write_labels(tmp_path / "images/image_003_labels.png", np.zeros((60, 80), dtype=np.uint8))
    write_params(paths["params"], {"crops.per_subset": 8, "crops.max_subsets": 4})
    make_crops.main(**paths, out=tmp_path / "crops")
    counts = json.loads((tmp_path / "crops/crops.json").read_text())
    assert (counts["whole_images"], counts["images_without_objects"], counts["crops"]) == (6, 1, 8 * (1 + 3 + 4 * 3))
    table = pd.read_parquet(tmp_path / "crops/crops.parquet")
    whole = table.groupby("image_id").first()
    assert whole["labels"].map(list).tolist() == [[1], [1, 2], [1, 2, 3], [], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]
    assert (whole[["x1", "y1", "x2", "y2"]].to_numpy() == [0, 0, 80, 80]).all(), "80 x 60 pixels, black below"
    records = read_manifest(paths["manifest"])
    samples = CropSamples(table, records, len(NAMES) - 1, warp=64, input_size=64)
    for row in table.groupby("image_id").head(1).index:
        sample = samples.sample(int(row), 0)
        framed = padded_square(read_image(records[sample.image_id].image), 64)
        assert torch.equal(sample.image, framed) or torch.equal(sample.image, framed.flip(2))
        labels = read_labels(tmp_path / f"images/{sample.image_id}_labels.png")
        assert (sample.tags.nonzero().flatten() + 1).tolist() == [int(c) for c in np.unique(labels) if c]
        assert (sample.labels[48:] == 255).all(), "what lies beyond the image is unknown"
        assert set(sample.labels[:48].unique().tolist()) == {0, *np.unique(labels).tolist()}


def test_the_result_is_the_same_with_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = make_project(tmp_path, 5)
    make_crops.main(**paths, out=tmp_path / "alone")
    monkeypatch.setattr(make_crops, "FEW", 1)
    monkeypatch.setattr(make_crops.os, "cpu_count", lambda: 2)
    make_crops.main(**paths, out=tmp_path / "together")
    for name in ("crops.parquet", "crops.json", "figure.png"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes(), name


def test_an_explosion_of_subsets_is_capped_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = make_project(tmp_path, 6, most_classes=6)
    make_crops.main(**paths, out=tmp_path / "crops")
    counts = json.loads((tmp_path / "crops/crops.json").read_text())
    assert counts["capped_images"] == {"image_005": 63}
    assert counts["subsets"] == 1 + 3 + 7 + 15 + 31 + 31
    assert "max_subsets keeps 31 of the label subsets of image_005 (63)" in capsys.readouterr().out.replace("\n", " ")


def test_images_that_cannot_be_used_are_all_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = make_project(tmp_path, 4)
    table = pd.read_parquet(paths["manifest"])
    table.loc[0, "split"] = "val"
    table.loc[1, ["labels", "label_classes", "labels_sha256"]] = None
    table.to_parquet(paths["manifest"])
    (tmp_path / "images/image_002.png").unlink()
    (tmp_path / "strong.txt").write_text("image_000\nimage_001\nimage_002\nimage_003\nimage_999\n")
    with pytest.raises(Problem) as caught:
        make_crops.main(**paths, out=tmp_path / "crops")
    text = str(caught.value)
    for found in (
        "image_000: is a validation image",
        "image_001: has no labels",
        "image_002.png is gone",
        "image_999: not in",
    ):
        assert found in text
    assert not (tmp_path / "crops").exists()


def test_masks_without_any_object_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = make_project(tmp_path, 1)
    write_labels(tmp_path / "images/image_000_labels.png", np.zeros((60, 80), dtype=np.uint8))
    with pytest.raises(Problem, match="no mask of .*strong.txt holds an object"):
        make_crops.main(**paths, out=tmp_path / "crops")


def test_the_tight_box_is_half_open() -> None:
    foreground = np.zeros((10, 12), dtype=bool)
    foreground[2:5, 7:9] = True
    assert tight_box(foreground) == (7, 2, 9, 5)


def test_a_number_of_crops_that_no_machine_holds_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = make_project(tmp_path, 6, most_classes=6)
    monkeypatch.setattr(make_crops, "MOST_CROPS", 3 * 18 - 1)
    paths["params"] = write_params(tmp_path / "few.yaml", {"crops.per_subset": 3, "crops.max_subsets": 31})
    with pytest.raises(Problem, match=r"crops.per_subset 3 for 18 label subsets of 6 strong images makes 54 crops;"):
        make_crops.main(**paths, out=tmp_path / "crops")
