"""Cues and saliency maps from elsewhere are those of the images, or the split refuses them before any training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segcore.data import agreement
from segcore.data.geometry import Grid
from segcore.data.manifest import Record, read_manifest
from segcore.data.pictures import read_labels
from segcore.errors import Problems
from stages import prepare, split
from tests.devkit import make_devkit, voc_section, write_params

CELLS = 13
CUES = {"source": "cues_file", "input": "cues/theirs.npz", "input_size": 97, "batch_size": 2, "images": "weak"}
SALIENCY = {"kind": "saliency", "root": "maps", "threshold": 0.1}
OUT = Path("data/tiny/split")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Record]:
    """Of a prepared project, in whose folder the test runs."""
    monkeypatch.chdir(tmp_path)
    make_devkit(Path("kit"))
    write_params(Path("params.yaml"), {"dataset": voc_section("kit"), "split.strong.images": 1})
    prepare.main(out=Path("data/tiny/prepared"))
    found = read_manifest(Path("data/tiny/prepared/manifest.parquet"))
    return {image_id: record for image_id, record in found.items() if record.split == "train"}


def run(**changes: Any) -> None:
    changes = {"dataset": voc_section("kit"), "split.strong.images": 1} | changes
    write_params(Path("params.yaml"), {key.replace("__", "."): value for key, value in changes.items()})
    prepared = Path("data/tiny/prepared")
    manifest, classes = prepared / "manifest.parquet", prepared / "classes.json"
    split.main(manifest=manifest, classes=classes, out=OUT, masks=Path("data/tiny/masks"))


def refused(**changes: Any) -> str:
    with pytest.raises(Problems, match="what was handed in for pseudo-labels does not fit the images") as caught:
        run(**changes)
    assert not OUT.exists()
    return str(caught.value)


def cues(records: dict[str, Record], change: Callable[[int], int] = lambda tag: tag, **arrays: Any) -> dict[str, Any]:
    """Cues of the first tag of each image, changed; and the parameters that name them."""
    labels = np.full((len(records), CELLS, CELLS), 255, np.uint8)
    for row, record in enumerate(records.values()):
        labels[row, :2], labels[row, 5:8, 5:8] = 0, change(record.tags[0])
    Path("data/tiny/cues").mkdir(parents=True, exist_ok=True)
    content = {"image_ids": np.array(list(records)), "labels": labels} | arrays
    np.savez(Path("data/tiny/cues/theirs.npz"), **content)
    return {"pseudo_labels__theirs": CUES}


def test_cues_of_the_images_are_taken(records: dict[str, Record]) -> None:
    run(**cues(records))
    assert (OUT / "weak.txt").is_file()


@pytest.mark.parametrize(("off", "why"), [(-1, "one too low, as without background"), (1, "one too high")])
def test_cues_that_are_numbered_otherwise(records: dict[str, Record], off: int, why: str) -> None:
    said = refused(**cues(records, lambda tag: tag + off))
    assert "show classes that the images' tags lack: train_" in said
    assert f": they look numbered {why}" in said


def test_cues_of_one_image_that_disagree(records: dict[str, Record]) -> None:
    wrong = iter([3, *[None] * 10])
    said = refused(**cues(records, lambda tag: next(wrong) or tag))
    assert "the cues of 1 of 6 images" in said
    assert "train_000 has cues of star, its tags name circle; 0 is background, 1 is circle" in said


def test_cues_of_background_alone(records: dict[str, Record]) -> None:
    assert "no image has a cue of any class" in refused(**cues(records, lambda _: 0))


def test_all_that_is_wrong_with_cues_is_told_at_once(records: dict[str, Record]) -> None:
    some = dict(list(records.items())[1:])
    said = refused(**cues(some, lambda _: 77) | {"pseudo_labels__theirs": CUES | {"input_size": 65}})
    for part in ("lacks 1 of 6 images: 'train_000'", "has label 77; allowed are 0..3 and 255", "cues of 13 x 13 cells"):
        assert part in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is none; put it there"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"PK\x03\x04 half of one", "is no readable .npz file of cues"),
        (b"<html>", "it is a web page"),
    ],
)
def test_a_file_that_holds_no_cues(records: dict[str, Record], content: bytes | None, said: str) -> None:
    changes = cues(records)
    path = Path("data/tiny/cues/theirs.npz")
    path.unlink() if content is None else path.write_bytes(content)
    assert said in refused(**changes)


def test_ids_that_lead_elsewhere(records: dict[str, Record]) -> None:
    ids = np.array(["../../x", *list(records)[1:]])
    assert "cues/theirs.npz: its image_ids: found '../../x'" in refused(**cues(records, image_ids=ids))


def maps(records: dict[str, Record]) -> dict[str, Any]:
    """A saliency map of half the size for each image; and the parameters that name them."""
    Path("maps").mkdir()
    for number, (image_id, record) in enumerate(records.items()):
        values = np.zeros((record.height // 2, record.width // 2), np.uint8)
        values[5:15, 5:15] = 200 + number
        Image.fromarray(values).save(f"maps/{image_id}.png")
    return {"pseudo_labels__ficklenet.background": SALIENCY}


def test_maps_of_the_images_are_taken(records: dict[str, Record]) -> None:
    run(**maps(records))
    assert (OUT / "weak.txt").is_file()


def turned(file: Path) -> None:
    Image.open(file).transpose(Image.Transpose.ROTATE_90).resize((40, 48)).save(file)


def squared(file: Path) -> None:
    Image.open(file).resize((32, 32)).save(file)


def coloured(file: Path) -> None:
    Image.open(file).convert("RGB").save(file)


def turned_by_exif(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.open(file)
    image.load()
    image.save(file, exif=exif)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (turned, "is 40x48 while its picture is 48x40, so it is turned"),
        (squared, "is 32x32 while its picture is 48x40"),
        (coloured, "must be a grey 8-bit PNG, found mode RGB"),
        (turned_by_exif, "must lie as its picture is seen, without an EXIF orientation"),
        (lambda file: file.write_text("<!DOCTYPE html>"), "is not a readable saliency map (is a web page"),
        (lambda file: file.unlink(), "train_000.png: this map is missing; add it"),
    ],
)
def test_a_map_of_another_kind(records: dict[str, Record], change: Callable[[Path], object], said: str) -> None:
    changes = maps(records)
    change(Path("maps/train_000.png"))
    assert said in refused(**changes)


def test_maps_of_0_and_1(records: dict[str, Record]) -> None:
    changes = maps(records)
    for file in Path("maps").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8)).save(file)
    assert "no value of any map exceeds 1; 255 is the brightest" in refused(**changes)


def test_cues_and_maps_are_told_together(records: dict[str, Record]) -> None:
    changes = cues(records, lambda _: 0) | maps(records)
    Path("maps/train_000.png").unlink()
    said = refused(**changes)
    assert "pseudo_labels.theirs: " in said
    assert "pseudo_labels.ficklenet: train_000.png: this map is missing" in said


def objects(count: int) -> list[np.ndarray]:
    """Masks of a square each, at places that no orientation keeps."""
    rng = np.random.default_rng(0)
    masks = []
    for number in range(count):
        mask = np.zeros((16, 16), np.uint8)
        top, left = rng.integers(0, 4), rng.integers(6, 10)
        mask[top : top + 3, left : left + 5] = 1 + number % 2
        mask[15] = 255
        masks.append(mask)
    return masks


@pytest.mark.parametrize("how", agreement.ORIENTATIONS)
def test_cues_and_maps_that_lie_otherwise(how: str) -> None:
    back = {"turned by 90 degrees": "turned by 270 degrees", "turned by 270 degrees": "turned by 90 degrees"}
    turn = agreement.ORIENTATIONS[back.get(how, how)]
    cues = [np.where(mask > 0, mask, 255).astype(np.uint8) for mask in objects(20)]
    assert agreement.cues_lie_otherwise((turn(one), mask) for one, mask in zip(cues, objects(20), strict=True)) == how
    bright = [np.where((mask > 0) & (mask < 255), 200, 30).astype(np.uint8) for mask in objects(20)]
    found = agreement.saliency_lies_otherwise((turn(one), m) for one, m in zip(bright, objects(20), strict=True))
    assert found == how


def test_maps_that_are_inverted() -> None:
    dark = [np.where(mask == 0, 200, 30).astype(np.uint8) for mask in objects(20)]
    found = agreement.saliency_lies_otherwise(zip(dark, objects(20), strict=True))
    assert found is not None
    assert found.startswith("inverted")


def test_what_chance_explains_is_taken() -> None:
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 256, (16, 16)).astype(np.uint8) for _ in objects(200)]
    assert agreement.saliency_lies_otherwise(zip(noise, objects(200), strict=True)) is None
    few = [np.rot90(mask) for mask in objects(8)]
    assert agreement.cues_lie_otherwise(zip(few, objects(8), strict=True)) is None
    right = [np.where(mask > 0, mask, 255).astype(np.uint8) for mask in objects(200)]
    assert agreement.cues_lie_otherwise(zip(right, objects(200), strict=True)) is None


def test_turned_cues_are_refused_by_the_split(records: dict[str, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "DEVIATIONS", 1.0)  # six images are too few for three
    labels = np.stack([_cells(record)[:, ::-1] for record in records.values()])
    said = refused(**cues(records, labels=labels) | {"split.strong": {"kind": "all"}})
    assert "the cues agree with the masks much better when they are mirrored from left to right" in said
    run(**cues(records, labels=labels[:, :, ::-1]) | {"split.strong": {"kind": "all"}})


def _cells(record: Record) -> np.ndarray:
    assert record.labels is not None
    return Grid(97, 8).at_cells(read_labels(record.labels))
