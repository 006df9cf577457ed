"""Data sets of other tools into devkit folders and back, from files as these tools write them.

The forms are those of their documentation: cocodataset.org (format-data), labelstud.io (export), docs.cvat.ai (XML
annotation format, Segmentation mask), labelme's examples. Pictures are drawn here.
"""

import base64
import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as untyped
from typer.testing import CliRunner

from segcore.commands.main import app
from segcore.data.pictures import read_labels
from segcore.errors import Problem
from segcore.exchange import Collection, brush, coco, collection, cvat, devkit, label_studio, labelme, masks, tables
from segcore.exchange.drawing import drawn
from segcore.exchange.halves import families, held_back
from segcore.exchange.rasters import Reading, pixels_of

coco_masks: Any = untyped
WIDTH, HEIGHT = 48, 40
DISC, BOX = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
DISC[8:20, 6:20] = True
BOX[10:34, 26:44] = True
DISC_AS_POLYGON = [6.0, 8.0, 20.0, 8.0, 20.0, 20.0, 6.0, 20.0]
TRUTH = DISC * 1 + BOX * 2


def photo(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A picture like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve of them: a.jpg to l.jpg."""
    for place, letter in enumerate("abcdefghijkl"):
        photo(tmp_path / f"photos/{letter}.jpg", place)
    return tmp_path / "photos"


def options(**changes: Any) -> devkit.Options:
    values = {"source": {"of": "a test"}, "val": 0.0, "val_names": None, "seed": 0, "copy": False}
    values |= {"empty_is_background": False, "reading": Reading(None, None)}
    return devkit.Options(**(values | changes))


def imported(found: Collection, out: Path, **changes: Any) -> devkit.Report:
    return devkit.write(found, out, options(**changes))


def tags_of(out: Path) -> dict[str, set[str]]:
    with (out / "tags.csv").open(newline="") as lines:
        return {row["image_id"]: {*row["tags"].split()} for row in csv.DictReader(lines)}


def labels_of(out: Path, image_id: str) -> np.ndarray:
    return read_labels(out / f"SegmentationClass/{image_id}.png")


def ids(out: Path, name: str) -> list[str]:
    return (out / f"ImageSets/Segmentation/{name}.txt").read_text().split()


def instances(annotations: list[dict[str, Any]], letters: str = "abc", **of_images: Any) -> dict[str, Any]:
    """A file of COCO's, categories with gaps between their ids as there."""
    return {
        "info": {"year": 2026}, "licenses": [],
        "images": [
            {"id": 100 + place, "file_name": f"{letter}.jpg", "width": WIDTH, "height": HEIGHT} | of_images
            for place, letter in enumerate(letters)
        ],
        "categories": [
            {"id": 3, "name": "traffic light", "supercategory": "outdoor"},
            {"id": 7, "name": "cup", "supercategory": "kitchen"},
            {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
        ],
        "annotations": [{"id": place, "iscrowd": 0, "area": 1.0} | one for place, one in enumerate(annotations)],
    }  # fmt: skip


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Compressed, as in files of results."""
    packed = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


def plain_runs(mask: np.ndarray) -> dict[str, Any]:
    """As the crowds of COCO's own files are."""
    flat = mask.ravel(order="F")
    ends = [*(np.flatnonzero(np.diff(flat.astype(int))) + 1).tolist(), flat.size]
    counts = np.diff([0, *ends]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


class TestCoco:
    def write(self, photos: Path, content: dict[str, Any]) -> Path:
        file = photos.parent / "instances.json"
        file.write_text(json.dumps(content))
        return file

    def test_polygons_and_both_forms_of_run_lengths(self, photos: Path, tmp_path: Path) -> None:
        annotations = [
            {"image_id": 100, "category_id": 3, "segmentation": [DISC_AS_POLYGON], "bbox": [6, 8, 14, 12]},
            {"image_id": 100, "category_id": 7, "segmentation": runs(BOX), "bbox": [26, 10, 18, 24]},
            {
                "image_id": 101,
                "category_id": 7,
                "segmentation": plain_runs(BOX),
                "iscrowd": 1,
                "bbox": [26, 10, 18, 24],
            },
        ]
        report = imported(coco.read(self.write(photos, instances(annotations)), photos, None), tmp_path / "out")
        assert (tmp_path / "out/classes.txt").read_text() == "background\ntraffic_light\ncup\n"
        assert np.array_equal(labels_of(tmp_path / "out", "a"), TRUTH)
        assert np.array_equal(labels_of(tmp_path / "out", "b"), BOX * 2)
        assert tags_of(tmp_path / "out") == {"a": {"traffic_light", "cup"}, "b": {"cup"}}
        assert ids(tmp_path / "out", "unlabelled") == ["c"], "nobody said that it shows nothing"
        assert (report.train, report.masks, report.skipped) == (2, 2, [])

    def test_boxes_alone_give_tags_and_beside_outlines_make_unknown(self, photos: Path, tmp_path: Path) -> None:
        annotations = [
            {"image_id": 100, "category_id": 3, "bbox": [6, 8, 14, 12]},
            {"image_id": 101, "category_id": 3, "bbox": [6.0, 8.0, 14.0, 12.0], "segmentation": []},
            {"image_id": 101, "category_id": 7, "segmentation": runs(BOX)},
        ]
        imported(coco.read(self.write(photos, instances(annotations)), photos, None), tmp_path / "out")
        assert not (tmp_path / "out/SegmentationClass/a.png").exists()
        assert tags_of(tmp_path / "out")["a"] == {"traffic_light"}
        assert np.array_equal(labels_of(tmp_path / "out", "b"), DISC * 255 + BOX * 2)

    def test_small_objects_lie_over_large_ones(self, photos: Path, tmp_path: Path) -> None:
        inner = np.zeros_like(BOX)
        inner[14:20, 30:36] = True
        annotations = [
            {"image_id": 100, "category_id": 3, "segmentation": runs(inner), "area": 36},
            {"image_id": 100, "category_id": 7, "segmentation": runs(BOX), "area": int(BOX.sum())},
        ]
        imported(coco.read(self.write(photos, instances(annotations)), photos, None), tmp_path / "out")
        assert np.array_equal(labels_of(tmp_path / "out", "a"), np.where(inner, 1, BOX * 2))

    def test_pictures_without_annotations_are_background_if_that_is_said(self, photos: Path, tmp_path: Path) -> None:
        annotations = [{"image_id": 100, "category_id": 7, "segmentation": runs(BOX)}]
        found = coco.read(self.write(photos, instances(annotations)), photos, None)
        imported(found, tmp_path / "out", empty_is_background=True)
        assert tags_of(tmp_path / "out") == {"a": {"cup"}, "b": set(), "c": set()}
        assert not labels_of(tmp_path / "out", "b").any()

    def test_what_is_wrong_is_told_and_left_out(self, photos: Path, tmp_path: Path) -> None:
        annotations = [
            {"image_id": 100, "category_id": 7, "segmentation": runs(BOX)},
            {"image_id": 101, "category_id": 55, "segmentation": runs(BOX)},
            {"image_id": 102, "category_id": 7, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "ZZZZ"}},
            {"image_id": 999, "category_id": 7, "segmentation": runs(BOX)},
        ]
        content = instances(annotations)
        content["images"].append({"id": 5, "file_name": "gone.jpg", "width": 9, "height": 9})
        (photos / "d.jpg").write_bytes(b"no picture")
        content["images"].append({"id": 6, "file_name": "d.jpg", "width": 9, "height": 9})
        report = imported(coco.read(self.write(photos, content), photos, None), tmp_path / "out")
        told = "\n".join(report.skipped)
        for part in ("category 55", "c.jpg: compressed run lengths", "image 999", "gone.jpg: its picture", "d.jpg"):
            assert part in told
        assert tags_of(tmp_path / "out").keys() == {"a", "b"}

    @pytest.mark.parametrize(
        "text", ["[]", "{", '{"images": []}', '{"images": 1, "annotations": [], "categories": []}']
    )
    def test_another_file_is_refused(self, photos: Path, text: str) -> None:
        file = photos / "x.json"
        file.write_text(text)
        with pytest.raises(Problem):
            coco.read(file, photos, None)

    def test_panoptic(self, photos: Path, tmp_path: Path) -> None:
        segments = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        segments[DISC], segments[BOX] = (1, 2, 0), (0, 0, 1)
        (tmp_path / "panoptic").mkdir()
        Image.fromarray(segments).save(tmp_path / "panoptic/a.png")
        content = instances([], "a")
        content["annotations"] = [
            {
                "image_id": 100, "file_name": "a.png",
                "segments_info": [
                    {"id": 1 + 2 * 256, "category_id": 3, "area": 9, "bbox": [0, 0, 1, 1], "iscrowd": 0},
                    {"id": 65536, "category_id": 7, "area": 9, "bbox": [0, 0, 1, 1], "iscrowd": 0},
                ],
            }
        ]  # fmt: skip
        file = tmp_path / "panoptic.json"
        file.write_text(json.dumps(content))
        imported(coco.read(file, photos, None), tmp_path / "out")
        assert np.array_equal(labels_of(tmp_path / "out", "a"), np.where(TRUTH, TRUTH, 255))


class TestLabelStudio:
    """An export as JSON of Label Studio 1.x; values are per cent."""

    def results(self) -> list[dict[str, Any]]:
        common = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "to_name": "image"}
        points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in np.reshape(DISC_AS_POLYGON, (4, 2))]
        return [
            common | {"id": "p", "from_name": "poly", "type": "polygonlabels", "origin": "manual",
                      "value": {"points": points, "closed": True, "polygonlabels": ["disc"]}},
            common | {"id": "b", "from_name": "brush", "type": "brushlabels", "origin": "manual",
                      "value": {"format": "rle", "rle": brush.encode(BOX), "brushlabels": ["box"]}},
            {"id": "c", "from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["night"]}},
        ]  # fmt: skip

    def task(self, number: int, name: str, results: list[dict[str, Any]] | None, **more: Any) -> dict[str, Any]:
        kept = [] if results is None else [{"id": number, "completed_by": 1, "was_cancelled": False, "result": results}]
        return {"id": number, "annotations": kept + more.pop("annotations", []), "predictions": [],
                "data": {"image": name}, "meta": {}, "project": 1} | more  # fmt: skip

    def test_an_export(self, photos: Path, tmp_path: Path) -> None:
        skipped = {"was_cancelled": True, "result": []}
        tasks = [
            self.task(1, "/data/upload/1/1f3870be-a.jpg", self.results(), annotations=[skipped]),
            self.task(2, "/data/local-files/?d=photos%2Fb.jpg", self.results()[2:]),
            self.task(3, "https://example.org/data/c.jpg?token=1", None),
        ]
        tasks[2]["data"]["image"] = "s3://bucket/photos/c.jpg"
        file = tmp_path / "export.json"
        file.write_text(json.dumps(tasks))
        report = imported(label_studio.read(file, photos), tmp_path / "out")
        assert (tmp_path / "out/classes.txt").read_text().split() == ["background", "box", "disc", "night"]
        assert np.array_equal(labels_of(tmp_path / "out", "a"), DISC * 2 + BOX * 1)
        assert tags_of(tmp_path / "out") == {"a": {"disc", "box", "night"}, "b": {"night"}}
        assert (ids(tmp_path / "out", "unlabelled"), report.skipped) == (["c"], [])

    def test_the_brush_reads_what_its_own_converter_writes(self) -> None:
        """Bytes of `label_studio_sdk.converter.brush.mask2rle` for [[0, 255], [255, 0]], worked out by hand."""
        header = f"{16:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
        blocks = f"100{3:03b}{0:08b}" + f"100{7:03b}{255:08b}" + f"100{3:03b}{0:08b}"
        text = header + blocks
        text += "0" * (8 - len(text) % 8)
        packed = [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]
        assert np.array_equal(brush.decode(packed, 2, 2), [[False, True], [True, False]])
        assert np.array_equal(brush.decode(brush.encode(BOX), WIDTH, HEIGHT), BOX)

    def test_damaged_strokes_are_told(self) -> None:
        packed = brush.encode(BOX)
        for wrong, size in ((packed[:-3], (WIDTH, HEIGHT)), (packed, (WIDTH, 9)), ([300], (WIDTH, HEIGHT))):
            with pytest.raises(ValueError, match="brush strokes"):
                brush.decode(wrong, *size)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><id>7</id><size>3</size><mode>annotation</mode><labels>
    <label><name>box</name><color>#33ddff</color><type>any</type><attributes></attributes></label>
    <label><name>disc</name><color>#fa3253</color><type>any</type><attributes></attributes></label>
    <label><name>unused</name><color>#fafafa</color><type>any</type><attributes></attributes></label>
  </labels></job><dumped>2026-11-01 10:00:00.000000+00:00</dumped></meta>
  <image id="0" name="a.jpg" width="48" height="40">
    <mask label="box" source="manual" occluded="0" rle="{rle}" left="26" top="10" width="18" height="24" z_order="0">
    </mask>
    <polygon label="disc" source="manual" occluded="0" points="6.00,8.00;20.00,8.00;20.00,20.00;6.00,20.00" z_order="1">
      <attribute name="sure">yes</attribute>
    </polygon>
  </image>
  <image id="1" name="b.jpg" width="48" height="40">
    <tag label="disc" source="manual"></tag>
    <polyline label="box" source="manual" occluded="0" points="1.0,1.0;5.0,5.0" z_order="0"></polyline>
  </image>
  <image id="2" name="c.jpg" width="48" height="40">
  </image>
</annotations>
"""


class TestCvat:
    def test_an_export_of_images(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "annotations.xml").write_text(CVAT.format(rle=f"0, {18 * 24}"))
        report = imported(cvat.read(tmp_path, photos), tmp_path / "out")
        assert (tmp_path / "out/classes.txt").read_text().split() == ["background", "box", "disc"]
        assert np.array_equal(labels_of(tmp_path / "out", "a"), DISC * 2 + BOX * 1)
        assert tags_of(tmp_path / "out") == {"a": {"box", "disc"}, "b": {"box", "disc"}}
        assert ids(tmp_path / "out", "unlabelled") == ["c"]
        assert ["polyline" in text for text in report.skipped] == [True]

    def test_a_dtd_is_refused(self, photos: Path, tmp_path: Path) -> None:
        file = tmp_path / "annotations.xml"
        file.write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + "<annotations>&a;</annotations>")
        with pytest.raises(Problem, match="DTD"):
            cvat.read(file, photos)

    def test_segmentation_mask(self, photos: Path, tmp_path: Path) -> None:
        root = tmp_path / "task"
        (root / "SegmentationClass").mkdir(parents=True)
        (root / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbox:250,50,83::\ndisc:51,221,255::\n"
        )
        painted = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        painted[DISC], painted[BOX] = (51, 221, 255), (250, 50, 83)
        Image.fromarray(painted).save(root / "SegmentationClass/a.png")
        painted[0, 0] = (1, 2, 3)
        Image.fromarray(painted).save(root / "SegmentationClass/b.png")
        report = imported(masks.read(root, photos, None, [], None, None), tmp_path / "out")
        assert np.array_equal(labels_of(tmp_path / "out", "a"), DISC * 2 + BOX * 1)
        assert any("b.png has the colour 1,2,3" in text for text in report.skipped)
        assert len(ids(tmp_path / "out", "unlabelled")) == 10


def test_labelme(photos: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(BOX[10:34, 26:44]).save(file, format="PNG")
    shapes = [
        {"label": "disc", "points": np.reshape(DISC_AS_POLYGON, (4, 2)).tolist(), "group_id": None,
         "shape_type": "polygon", "flags": {}, "description": "", "mask": None},
        {"label": "box", "points": [[26.0, 10.0], [43.0, 33.0]], "group_id": None, "shape_type": "mask", "flags": {},
         "mask": base64.b64encode(file.getvalue()).decode()},
        {"label": "wire", "points": [[1.0, 1.0], [5.0, 5.0]], "shape_type": "line", "flags": {}, "group_id": None},
    ]  # fmt: skip
    content = {"version": "5.5.0", "flags": {"night": True, "rain": False}, "shapes": shapes, "imagePath": "a.jpg",
               "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}  # fmt: skip
    (photos / "a.json").write_text(json.dumps(content))
    (photos / "other.json").write_text("[1, 2]")
    report = imported(labelme.read(photos, None), tmp_path / "out")
    assert np.array_equal(labels_of(tmp_path / "out", "a"), DISC * 2 + BOX * 1)
    assert tags_of(tmp_path / "out") == {"a": {"disc", "box", "wire", "night"}}
    assert len(ids(tmp_path / "out", "unlabelled")) == 11
    assert ["line" in report.skipped[0], "other.json" in report.skipped[1]] == [True, True]


def test_a_folder_for_each_tag(tmp_path: Path) -> None:
    for place, name in enumerate(["cup/1.jpg", "cup/2.jpg", "tea spoon/1.jpg", "3.jpg", "unlabelled/4.jpg"]):
        photo(tmp_path / "in" / name, 0 if name.endswith("/1.jpg") else place)
    imported(tables.read_folders(tmp_path / "in"), tmp_path / "out")
    assert tags_of(tmp_path / "out") == {"1": {"cup", "tea_spoon"}, "2": {"cup"}}
    assert ids(tmp_path / "out", "unlabelled") == ["3", "4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tags.csv", "file,tags\na.jpg,cup;spoon\nb.jpg,cup\nc.jpg,\n"),
        ("tags.tsv", "note\tfile\ttags\nx\tphotos/a.jpg\tcup spoon\nx\tphotos/b.jpg\tcup\nx\tphotos/c.jpg\t\n"),
        ("ones.csv", "\ufefffile;cup;spoon\na.jpg;1;1\nb.jpg;1;0\nc.jpg;0;0\n"),
        ("long.csv", "file,label\na.jpg,cup\na.jpg,spoon\nb.jpg,cup\nc.jpg,\n"),
    ],
)
def test_a_table(photos: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    imported(tables.read_table(tmp_path / name, photos, None, None), tmp_path / "out")
    assert tags_of(tmp_path / "out") == {"a": {"cup", "spoon"}, "b": {"cup"}, "c": set()}
    assert len(ids(tmp_path / "out", "unlabelled")) == 9


def test_a_table_in_parquet_with_columns_by_name(photos: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["1", "2"], "path": ["a.jpg", "b.jpg"], "found": [["cup", "spoon"], ["cup"]]})
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(Problem, match="--tags-column"):
        tables.read_table(tmp_path / "t.parquet", photos, None, None)
    found = tables.read_table(tmp_path / "t.parquet", photos, "path", "found")
    imported(found, tmp_path / "out")
    assert tags_of(tmp_path / "out") == {"a": {"cup", "spoon"}, "b": {"cup"}}


class TestMasks:
    @pytest.mark.parametrize("one", [1, 255])
    def test_of_one_object(self, photos: Path, tmp_path: Path, one: int) -> None:
        (tmp_path / "masks").mkdir()
        Image.fromarray((BOX * one).astype(np.uint8)).save(tmp_path / "masks/a_mask.png")
        imported(masks.read(tmp_path, photos, None, [], None, "box"), tmp_path / "out")
        assert np.array_equal(labels_of(tmp_path / "out", "a"), BOX * 1)

    def test_of_colours(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "masks").mkdir()
        painted = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        painted[DISC], painted[BOX] = (255, 0, 0), (0, 0, 255)
        Image.fromarray(painted).save(tmp_path / "masks/a.png")
        imported(masks.read(tmp_path, photos, None, ["disc=255,0,0", "void=0,0,255"], None, None), tmp_path / "out")
        assert np.array_equal(labels_of(tmp_path / "out", "a"), DISC * 1 + BOX * 255)

    def test_of_indices_with_other_ids(self, photos: Path, tmp_path: Path) -> None:
        """COCO-like: background is not first, and some ids are of nothing that is wanted."""
        (tmp_path / "masks").mkdir()
        Image.fromarray(np.where(DISC, 0, np.where(BOX, 2, 1)).astype(np.uint8)).save(tmp_path / "masks/a.png")
        Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(tmp_path / "masks/b.png")
        (tmp_path / "names.txt").write_text("disc\nbackground\nignore\n")
        report = imported(masks.read(tmp_path, photos, None, [], tmp_path / "names.txt", None), tmp_path / "out")
        assert np.array_equal(labels_of(tmp_path / "out", "a"), DISC * 1 + BOX * 255)
        assert any("b.png holds the value 7" in text for text in report.skipped)

    def test_nothing_says_what_values_mean(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "masks").mkdir()
        Image.fromarray(BOX).save(tmp_path / "masks/a.png")
        with pytest.raises(Problem, match="--object"):
            masks.read(tmp_path, photos, None, [], None, None)


class TestTiff:
    def test_sixteen_bits_and_many_bands(self, tmp_path: Path) -> None:
        raw = np.random.default_rng(0).integers(0, 10_000, (6, HEIGHT, WIDTH), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", raw, photometric="minisblack")
        picture = pixels_of(tmp_path / "a.tif", Reading((4, 3, 2), (0.0, 10_000.0)))
        assert np.abs(picture.astype(float) - raw[[3, 2, 1]].transpose(1, 2, 0) / 10_000 * 255).max() <= 0.5
        grey = pixels_of(tmp_path / "a.tif", Reading((5,), (0.0, 10_000.0)))
        assert np.array_equal(grey[:, :, 0], grey[:, :, 2])
        with pytest.raises(Problem, match="has 6 bands"):
            pixels_of(tmp_path / "a.tif", Reading((7,), None))

    def test_numbers_without_a_range_are_refused(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((HEIGHT, WIDTH), np.float32))
        with pytest.raises(Problem, match="--range"):
            pixels_of(tmp_path / "a.tif", Reading(None, None))

    def test_it_becomes_a_png(self, tmp_path: Path) -> None:
        photo(tmp_path / "in/cup/a.tif", 1)
        imported(tables.read_folders(tmp_path / "in"), tmp_path / "out")
        with Image.open(tmp_path / "out/JPEGImages/a.png") as image, Image.open(tmp_path / "in/cup/a.tif") as own:
            assert np.array_equal(np.asarray(image), np.asarray(own))


class TestFolder:
    """What is written, whatever the format."""

    @pytest.fixture
    def file(self, photos: Path) -> Path:
        letters = "abcdefghijkl"
        annotations = [
            {"image_id": 100 + place, "category_id": (3, 7)[place % 2], "segmentation": runs((DISC, BOX)[place % 2])}
            for place in range(len(letters))
        ]
        file = photos.parent / "instances.json"
        file.write_text(json.dumps(instances(annotations, letters)))
        return file

    def test_pictures_are_links_and_the_same_again_changes_nothing(self, photos: Path, file: Path) -> None:
        out = photos.parent / "out"
        first = imported(coco.read(file, photos, None), out, val=0.2)
        assert first.written == 12 + 12 + 5
        assert (out / "JPEGImages/a.jpg").samefile(photos / "a.jpg")
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != devkit.RECORD}
        record = (out / devkit.RECORD).read_bytes()
        assert imported(coco.read(file, photos, None), out, val=0.2).written == 0
        assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != devkit.RECORD}
        assert (out / devkit.RECORD).read_bytes() == record

    def test_a_mask_that_somebody_corrected_stays(self, photos: Path, file: Path) -> None:
        out = photos.parent / "out"
        imported(coco.read(file, photos, None), out)
        mask = out / "SegmentationClass/a.png"
        Image.fromarray((BOX * 2).astype(np.uint8)).save(mask)
        for _ in range(2):
            report = imported(coco.read(file, photos, None), out)
            assert (report.kept, report.written) == (["SegmentationClass/a.png"], 0)
            assert np.array_equal(labels_of(out, "a"), BOX * 2)

    def test_a_folder_of_something_else_is_refused(self, photos: Path, file: Path) -> None:
        with pytest.raises(Problem, match=r"not empty"):
            imported(coco.read(file, photos, None), photos)
        imported(coco.read(file, photos, None), photos.parent / "out")
        with pytest.raises(Problem, match=r"imported otherwise"):
            imported(coco.read(file, photos, None), photos.parent / "out", source={"of": "others"})

    def test_copies_are_none_of_the_sources_files(self, photos: Path, file: Path) -> None:
        imported(coco.read(file, photos, None), photos.parent / "out", copy=True)
        copy = photos.parent / "out/JPEGImages/a.jpg"
        assert copy.read_bytes() == (photos / "a.jpg").read_bytes()
        assert not copy.samefile(photos / "a.jpg")

    def test_a_list_says_what_is_measured_on(self, photos: Path, file: Path) -> None:
        report = imported(coco.read(file, photos, None), photos.parent / "out", val_names=frozenset({"b", "c", "zz"}))
        assert ids(photos.parent / "out", "val") == ["b", "c"]
        assert any("--val-list" in text for text in report.skipped)

    def test_names_that_lists_cannot_hold_and_twins_in_other_folders(self, tmp_path: Path) -> None:
        for place, name in enumerate(["cup/my photo.jpg", "cup/x/1.jpg", "cup/y/1.jpg", "cup/..odd.jpg"]):
            photo(tmp_path / "in" / name, place)
        imported(tables.read_folders(tmp_path / "in"), tmp_path / "out")
        assert {*tags_of(tmp_path / "out")} == {"my_photo", "x-1", "y-1", "odd"}

    @pytest.mark.parametrize("orientation", [3, 6, 8])
    @pytest.mark.parametrize("drawn_as_stored", [True, False])
    def test_turned_photographs(self, tmp_path: Path, orientation: int, drawn_as_stored: bool) -> None:
        """By EXIF; the labels are those of the picture as a person sees it, however the tool had it."""
        stored = Image.open(photo(tmp_path / "plain.png", 0)).convert("RGB")
        exif = Image.Exif()
        exif[274] = orientation
        (tmp_path / "in").mkdir()
        stored.save(tmp_path / "in/a.jpg", exif=exif, quality=95)
        turns = {3: 2, 6: 3, 8: 1}[orientation]
        seen = np.rot90(BOX, turns)
        if drawn_as_stored and orientation == 3:
            return  # of the same size either way: nothing tells, and tools show pictures turned
        mask = BOX if drawn_as_stored else seen
        size = {"width": mask.shape[1], "height": mask.shape[0]}
        file = tmp_path / "instances.json"
        annotation = {"image_id": 100, "category_id": 7, "segmentation": runs(mask)}
        file.write_text(json.dumps(instances([annotation], "a", **size)))
        imported(coco.read(file, tmp_path / "in", None), tmp_path / "out")
        assert np.array_equal(labels_of(tmp_path / "out", "a"), seen * 1)


class TestHalves:
    def test_each_tag_has_its_share(self) -> None:
        rng = np.random.default_rng(0)
        tags = {
            f"i{n}": frozenset({f"t{k}" for k in rng.choice(5, rng.integers(1, 3), replace=False)}) for n in range(200)
        }
        val = held_back([[name] for name in tags], tags, 0.2, 0)
        assert 30 <= len(val) <= 55
        for tag in sorted({tag for of in tags.values() for tag in of}):
            count = sum(tag in of for of in tags.values())
            assert abs(sum(tag in tags[name] for name in val) - 0.2 * count) <= 4
        assert val == held_back([[name] for name in tags], tags, 0.2, 0)
        assert val != held_back([[name] for name in tags], tags, 0.2, 1)

    def test_a_rare_tag_is_on_both_sides_and_a_single_one_is_trained_on(self) -> None:
        tags = {f"i{n}": frozenset({"often"}) for n in range(20)} | {
            "r1": frozenset({"rare"}),
            "r2": frozenset({"rare"}),
        }
        tags |= {"s": frozenset({"single"})}
        val = held_back([[name] for name in tags], tags, 0.1, 0)
        assert len(val & {"r1", "r2"}) == 1
        assert "s" not in val

    def test_copies_stay_together(self, tmp_path: Path) -> None:
        for place in range(10):
            path = photo(tmp_path / f"in/cup/{place}.jpg", place, (120, 100))
            with Image.open(path) as image:
                image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((60, 50)).save(
                    tmp_path / f"in/cup/{place}-small.jpg"
                )
        imported(tables.read_folders(tmp_path / "in"), tmp_path / "out", val=0.3)
        val = {*ids(tmp_path / "out", "val")}
        assert len(val) == 6
        assert all((f"{place}" in val) == (f"{place}-small" in val) for place in range(10))

    def test_plain_pictures_are_one_family_if_they_are_equal(self) -> None:
        assert families(["a", "b", "c"], dict.fromkeys("abc"), {"a": "x", "b": "y", "c": "x"}) == [["a", "c"], ["b"]]


class TestRoundTrips:
    """Out and in again: masks, unknown pixels, tags of images without masks, pictures without anything."""

    @pytest.fixture
    def out(self, photos: Path) -> Path:
        annotations = [
            {"image_id": 100, "category_id": 3, "segmentation": runs(DISC)},
            {"image_id": 100, "category_id": 7, "segmentation": runs(BOX)},
            {"image_id": 101, "category_id": 90, "bbox": [1, 1, 9, 9]},
            {"image_id": 101, "category_id": 3, "segmentation": runs(BOX)},
            {"image_id": 102, "category_id": 3, "bbox": [1, 1, 9, 9]},
        ]
        file = photos.parent / "instances.json"
        file.write_text(json.dumps(instances(annotations, "abcd")))
        imported(coco.read(file, photos, None), photos.parent / "first")
        return photos.parent / "first"

    def through_coco(self, out: Path, file: Path) -> Collection:
        found = collection.of(out)
        file.write_text(json.dumps(coco.write(found.items, found.classes)))
        return coco.read(file, out / "JPEGImages", None)

    def through_label_studio(self, out: Path, file: Path) -> Collection:
        found = collection.of(out)
        file.write_text(json.dumps(label_studio.write(found.items, found.classes, "/data/local-files/?d=", None)))
        return label_studio.read(file, out / "JPEGImages")

    def through_cvat(self, out: Path, file: Path) -> Collection:
        found = collection.of(out)
        file.write_text(cvat.write(found.items, found.classes))
        return cvat.read(file, out / "JPEGImages")

    @pytest.mark.parametrize("way", ["coco", "label_studio", "cvat"])
    def test_nothing_is_lost(self, out: Path, tmp_path: Path, way: str) -> None:
        through: Callable[[Path, Path], Collection] = getattr(self, f"through_{way}")
        report = imported(through(out, tmp_path / "file"), tmp_path / "second")
        names = [(folder / "classes.txt").read_text().split() for folder in (out, tmp_path / "second")]
        assert sorted(names[0]) == sorted(names[1])
        assert tags_of(out) == tags_of(tmp_path / "second")
        assert ids(out, "unlabelled") == ids(tmp_path / "second", "unlabelled") == ["d"]
        order = np.array([names[0].index(name) for name in names[1]] + [0] * (255 - len(names[1])) + [255])
        for image_id in "ab":
            assert np.array_equal(labels_of(out, image_id), order[labels_of(tmp_path / "second", image_id)])
        assert (255 in labels_of(out, "b"), report.skipped) == (True, [])

    def test_the_folder_itself_is_read_as_pictures_and_masks(self, out: Path, tmp_path: Path) -> None:
        """Masks are all that these hold: of pictures without one nothing is known."""
        found = masks.read(out, out / "JPEGImages", None, [], out / "classes.txt", None)
        imported(found, tmp_path / "second")
        assert (tmp_path / "second/classes.txt").read_text() == (out / "classes.txt").read_text()
        for image_id in "ab":
            assert np.array_equal(labels_of(out, image_id), labels_of(tmp_path / "second", image_id))
        assert ids(tmp_path / "second", "unlabelled") == ["c", "d"]

    def test_its_tags_are_read_as_a_table(self, out: Path, tmp_path: Path) -> None:
        table = tables.read_table(out / "tags.csv", out / "JPEGImages", "image_id", None)
        imported(table, tmp_path / "second")
        assert tags_of(tmp_path / "second") == tags_of(out)
        assert ids(tmp_path / "second", "unlabelled") == ["d"]

    def test_pre_annotations_are_predictions(self, out: Path) -> None:
        found = collection.of(out)
        tasks = label_studio.write(found.items, found.classes, "", "deeplab")
        assert all("annotations" not in task and task["predictions"][0]["model_version"] == "deeplab" for task in tasks)
        assert '<Label value="toothbrush"/>' in label_studio.config(found.classes)

    def test_another_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Problem, match="neither a data set"):
            collection.of(tmp_path)


@pytest.mark.parametrize("content", [[[0, 0, float("nan"), 1, 2, 2]], {"size": [1], "counts": []}, [["x", "y"]], {}])
def test_a_shape_that_cannot_be_drawn_is_a_sentence(content: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        drawn(content, WIDTH, HEIGHT)


def test_compressed_counts_are_summed_before_they_are_trusted() -> None:
    whole = runs(BOX)
    assert np.array_equal(drawn(whole, WIDTH, HEIGHT), BOX)
    for counts in (whole["counts"][:-2], whole["counts"] + "1", "~~~", whole["counts"] + "\x7f"):
        with pytest.raises(ValueError, match="add up"):
            drawn({"size": [HEIGHT, WIDTH], "counts": counts}, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("coco", {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}),
        ("coco", {"images": [], "annotations": [], "categories": [{"id": 1}]}),
        ("label-studio", [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [3]}]}]),
    ],
)
def test_a_file_with_holes_is_one_message(photos: Path, form: str, content: Any) -> None:
    file = photos.parent / "holes.json"
    file.write_text(json.dumps(content))
    arguments = ["import", form, str(file), "--images", str(photos), "--into", str(photos.parent / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "holes.json" in result.output


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(Problem, match="it is no file but a folder, a pipe or a device"):
        coco.read(tmp_path / "pipe.json", None, None)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(Problem, match="it is no file"):
        pixels_of(tmp_path / "pipe.png", Reading(None, None))


def test_the_command_tells_what_was_left_out_and_what_came_of_it(photos: Path) -> None:
    annotations = [{"image_id": 100 + place, "category_id": 7, "segmentation": runs(BOX)} for place in range(4)]
    content = instances(annotations, "abcd")
    content["images"].append({"id": 5, "file_name": "gone.jpg", "width": 9, "height": 9})
    file = photos.parent / "instances.json"
    file.write_text(json.dumps(content))
    command = ["import", "coco", str(file), "--images", str(photos), "--into", str(photos.parent / "out")]
    result = CliRunner().invoke(app, [*command, "--val", "0.25"])
    assert result.exit_code == 1, result.output
    assert "left out: gone.jpg: its picture was not found" in result.output
    assert "3 images to train on and 1 to measure on, 4 with masks; 0 unlabelled" in result.output
    assert "nothing changed, 1 left out" in CliRunner().invoke(app, [*command, "--val", "0.25"]).output
    assert "2 to measure on" in CliRunner().invoke(app, [*command, "--val", "0.5"]).output
