"""Whatever is wrong with a data set is said, all at once; whatever can be converted is, and counted."""

import hashlib
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from scipy.io import savemat

from segcore.cli import command, provenance
from segcore.data.columns import SCHEMA
from segcore.data.manifest import Record, listed, read_manifest, write_manifest
from segcore.data.pictures import IGNORE, read_image, read_labels, voc_palette, write_labels
from segcore.errors import Problem, Problems
from segcore.files import fingerprint
from stages import prepare
from tests.devkit import make_devkit, real_voc, voc_section, write_params
from tests.loop import full_disk

Prepare = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_devkit(tmp_path / "kit")
    return tmp_path / "kit"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> Prepare:
    """Run the stage on the devkit with changes to its section, or on another section; gives the folder of outputs."""
    monkeypatch.setattr(provenance, "TIMINGS", tmp_path / "timings")

    def go(section: dict[str, Any] | None = None, **changes: Any) -> Path:
        params = write_params(tmp_path / "params.yaml", {"dataset": section or voc_section(root) | changes})
        prepare.main(out=tmp_path / "prepared", params=params)
        return tmp_path / "prepared"

    return go


def problems_of(prepared: Prepare, **changes: Any) -> list[str]:
    with pytest.raises(Problems) as caught:
        prepared(**changes)
    return caught.value.problems


def only_problem(prepared: Prepare, **changes: Any) -> str:
    problems = problems_of(prepared, **changes)
    assert len(problems) == 1, problems
    return problems[0]


def image_at(root: Path, image_id: str = "train_000") -> Path:
    return root / f"JPEGImages/{image_id}.jpg"


def labels_at(root: Path, image_id: str = "train_000") -> Path:
    return root / f"SegmentationClass/{image_id}.png"


def list_at(root: Path, split: str = "train") -> Path:
    return root / f"ImageSets/Segmentation/{split}.txt"


def csv(file: str) -> dict[str, str]:
    """The section `dataset.tags` for a table."""
    return {"kind": "csv", "file": file}


def annotations(difficult: str = "count") -> dict[str, str]:
    """The section `dataset.tags` for annotations."""
    return {"kind": "annotations", "difficult": difficult}


def write_csv(root: Path, tags: dict[str, str]) -> str:
    (root / "tags.csv").write_text("image_id,tags\n" + "".join(f"{key},{value}\n" for key, value in tags.items()))
    return "tags.csv"


def true_tags(root: Path) -> dict[str, str]:
    names = (root / "classes.txt").read_text().split()
    return {
        path.stem: " ".join(names[index] for index in np.unique(read_labels(path)) if 0 < index < IGNORE)
        for path in sorted((root / "SegmentationClass").glob("*.png"))
    }


def test_manifest_describes_every_image(prepared: Prepare, root: Path) -> None:
    out = prepared()
    records = read_manifest(out / "manifest.parquet")
    assert [record.split for record in records.values()] == ["train"] * 6 + ["val"] * 3
    record = records["train_002"]
    assert (record.width, record.height) == (48, 40)
    assert record.tags == (1, 3)
    assert record.image == image_at(root, "train_002")
    assert record.labels == labels_at(root, "train_002")
    assert record.label_classes == (1, 3)
    assert record.image_sha256 == hashlib.sha256(image_at(root, "train_002").read_bytes()).hexdigest()
    assert record.labels_sha256 == hashlib.sha256(labels_at(root, "train_002").read_bytes()).hexdigest()
    assert json.loads((out / "classes.json").read_text()) == ["background", "circle", "square", "star"]
    counts = json.loads((out / "dataset.json").read_text())
    assert counts["images"] == {"train": 6, "val": 3}
    assert counts["per_class"]["circle"]["train"] == {"images": 4, "masks": 4}
    assert not any(counts["warnings"].values())
    assert not any(counts["conversions"].values())
    assert list((out / "files").iterdir()) == []


def test_a_manifest_is_read_as_it_was_written(prepared: Prepare, root: Path, tmp_path: Path) -> None:
    labels_at(root, "train_001").unlink()
    tags = write_csv(root, true_tags(root) | {"train_001": "square"})
    path = prepared(tags=csv(tags)) / "manifest.parquet"
    records = read_manifest(path)
    assert records["train_001"].labels is records["train_001"].label_classes is None
    write_manifest(tmp_path / "again.parquet", records.values())
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()
    assert list(records) == [record.image_id for record in records.values()]


def test_the_columns_of_a_manifest_are_the_fields_of_a_record(tmp_path: Path) -> None:
    """And what they were when line and record were two: a manifest of other columns is made anew by everybody."""
    text, whole, many = "large_string", "int64", "list<element: int64>"
    columns = {
        "image_id": text, "image": text, "labels": text, "width": whole, "height": whole, "tags": many, "split": text,
        "image_sha256": text, "labels_sha256": text, "label_classes": many,
    }  # fmt: skip
    assert [field.name for field in fields(Record)] == list(columns)
    bare = Record("a", Path("a.jpg"), None, 4, 3, (), "val", "0", None, None)
    full = Record("b", Path("b.jpg"), Path("b.png"), 4, 3, (1, 2), "train", "0", "1", (2,))
    for name, records in (("mixed", [bare, full]), ("bare", [bare])):
        write_manifest(tmp_path / name, records)
        schema = pq.read_schema(tmp_path / name)
        assert {field.name: str(field.type) for field in schema} == columns, "also where a column holds nothing at all"
        assert list(read_manifest(tmp_path / name).values()) == records
    assert SCHEMA.names == list(columns)


@pytest.mark.parametrize("other", ["1f" * 32, "1F" * 32, "xy" * 32, "1f" * 31, "1f" * 31 + " 1"])
def test_hashes_come_back_as_they_were_whatever_they_are(tmp_path: Path, other: str) -> None:
    records = [
        Record(f"a{number}", Path("a.jpg"), None, 4, 3, (1,), "train", sha256, None, None)
        for number, sha256 in enumerate(("0a" * 32, other, "ff" * 32))
    ]
    write_manifest(tmp_path / "manifest", records)
    assert list(read_manifest(tmp_path / "manifest").values()) == records


def test_ids_of_a_list_know_their_lines_in_the_manifest(tmp_path: Path) -> None:
    names = [f"image_{number}" for number in (3, 1, 2, 0)]
    write_manifest(
        tmp_path / "manifest",
        [Record(name, Path(name), None, 4, 3, (1,), "train", "0", None, None) for name in names],
    )
    (tmp_path / "list.txt").write_bytes("\ufeffimage_2\r\n\n image_3 \rimage_0".encode())
    records = read_manifest(tmp_path / "manifest")
    ids = listed(tmp_path / "list.txt", records)
    assert ids == ["image_2", "image_3", "image_0"] == [*ids]
    assert (ids[-1], ids[1:], len(ids)) == ("image_0", ["image_3", "image_0"], 3)
    assert records.rows(ids).tolist() == records.rows([*ids]).tolist() == [2, 0, 3]
    assert [record.image_id for record in records.of(ids)] == [*ids]
    assert fingerprint([ids, 1], ()) == fingerprint([[*ids], 1], ())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda table: table.drop_columns(["label_classes", "tags"]), r"lacks the columns \['label_classes', 'tags'\]"),
        (lambda table: table.set_column(3, "width", [["wide"] * len(table)]), "wide"),
        (lambda table: table.set_column(6, "split", [["test"] * len(table)]), "split 'test'; allowed are train, val"),
    ],
)
def test_a_table_that_is_no_manifest_is_refused(
    prepared: Prepare, tmp_path: Path, change: Callable[[pa.Table], pa.Table], found: str
) -> None:
    pq.write_table(change(pq.read_table(prepared() / "manifest.parquet")), tmp_path / "other.parquet")
    with pytest.raises(Problem, match=f"other.parquet is no manifest: .*{found}") as caught:
        read_manifest(tmp_path / "other.parquet")
    assert caught.value.made_by == "prepare"
    assert "dvc" not in str(caught.value)
    assert command.advised(caught.value).endswith("; run `dvc repro prepare`")


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_two_runs_write_the_same_bytes_and_leave_nothing_else(prepared: Prepare, tmp_path: Path) -> None:
    first = contents(prepared())
    (tmp_path / "prepared/.gitignore").write_text("/files\n")
    assert contents(prepared()) == first | {".gitignore": b"/files\n"}
    assert {path.name for path in tmp_path.iterdir()} == {"kit", "params.yaml", "prepared", "timings"}


def test_the_embedded_set_goes_through_the_same_reader(prepared: Prepare) -> None:
    shapes = {"layout": "shapes", "name": "shapes", "root": "data/embedded", "size": 64}
    out = prepared(shapes | {"classes": 3, "train_images": 6, "val_images": 3, "max_objects": 2})
    records = read_manifest(out / "manifest.parquet")
    assert len(records) == 9
    record = next(iter(records.values()))
    assert isinstance(record.image, Path)
    assert record.image.is_relative_to(out / "files")
    assert record.labels is not None
    assert read_image(record.image).shape == (64, 64, 3)
    assert read_labels(record.labels).shape == (64, 64)


def test_all_problems_are_told_at_once_and_nothing_is_written(prepared: Prepare, root: Path, tmp_path: Path) -> None:
    image_at(root, "train_000").write_bytes(b"")
    image_at(root, "train_001").write_bytes(image_at(root, "train_001").read_bytes()[:-400])
    image_at(root, "train_002").unlink()
    write_labels(labels_at(root, "train_003"), np.zeros((40, 47), np.uint8))
    labels_at(root, "val_000").unlink()
    list_at(root).write_text(list_at(root).read_text() + "train_004\n../kit\nval_001\n")
    problems = problems_of(prepared)
    expected = {
        "train_000.jpg: is empty": "replace it",
        "train_001.jpg: cannot be decoded whole": "replace it",
        "train_002.jpg: this file is missing": "unlist the image",
        "train_003.png: is 47x40 while": "48x40",
        "val_000.png: this file is missing": "a val image needs it",
        "train.txt: the id 'train_004' is listed 2 times": "leave one",
        "train.txt: found '../kit'": "a file name without its folder",
        "val_001: this id is in both lists": "remove it",
    }
    assert len(problems) == len(expected), problems
    for found, advice in expected.items():
        assert any(found in problem and advice in problem for problem in problems), (found, problems)
    assert not (tmp_path / "prepared").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"kit", "params.yaml"}


def test_outputs_survive_a_later_failure(prepared: Prepare, root: Path) -> None:
    out = prepared()
    before = (out / "manifest.parquet").read_bytes()
    image_at(root).write_bytes(b"\xff\xd8no picture")
    assert "is no picture, or its beginning is damaged" in only_problem(prepared)
    assert (out / "manifest.parquet").read_bytes() == before
    assert (out / "files").is_dir()


@pytest.fixture
def changed(prepared: Prepare, root: Path) -> Path:
    """Outputs, one of them a converted mask, of labels that have changed since."""
    labels = read_labels(labels_at(root))
    Image.fromarray(voc_palette()[labels]).save(labels_at(root))
    out = prepared(convert_palette=True)
    assert "files/SegmentationClass/train_000.png" in contents(out)
    write_labels(labels_at(root), np.where(labels == 1, 2, labels).astype(np.uint8))
    painted = Image.fromarray(voc_palette()[read_labels(labels_at(root, "train_001"))])
    painted.save(labels_at(root, "train_001"))
    return out


@pytest.mark.parametrize(
    ("size", "written"),
    [(20, "prepared"), (400, "classes.json"), (900, "dataset.json"), (4000, "manifest.parquet")],
)
def test_a_full_disk_is_a_problem_and_loses_nothing(
    prepared: Prepare, root: Path, changed: Path, size: int, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if size > 20:
        write_labels(labels_at(root, "train_001"), np.zeros((40, 48), np.uint8))
    if size == 400:
        (root / "classes.txt").write_text(
            "\n".join(["background", "circle", "square", "star", *(str(n) * 90 for n in range(1, 5))])
        )
    before = contents(changed)
    # capsys keeps what is said in memory: the file that pytest has for it could not grow either.
    with full_disk(size), pytest.raises(Problem, match=rf"{written}:? could not be written \(File too large\)"):
        prepare.main(out=changed, params=changed.parent / "params.yaml")
    assert contents(changed) == before
    assert not list(changed.parent.rglob("*.partial"))


@pytest.mark.parametrize("nth", range(8))
def test_outputs_that_cannot_be_swapped_are_as_they_were(
    prepared: Prepare, changed: Path, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(changed)
    swaps: list[Path] = []
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if changed in (source.parent, target.parent):
            swaps.append(source)
            if len(swaps) == nth + 1:
                raise OSError(5, "Input/output error", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(Problem, match=r"Input/output error.* is as it was"):
        prepared(convert_palette=True)
    assert contents(changed) == before
    assert not list(changed.parent.rglob("*.partial"))
    after = contents(prepared(convert_palette=True))
    assert after.keys() == {"manifest.parquet", "classes.json", "dataset.json", "files/SegmentationClass/train_001.png"}
    assert after["manifest.parquet"] != before["manifest.parquet"]


def test_what_a_killed_run_left_is_cleared_away(prepared: Prepare, tmp_path: Path) -> None:
    whole = contents(prepared())
    (tmp_path / ".prepared.partial/former/files").mkdir(parents=True)
    (tmp_path / ".prepared.partial/classes.json").write_text("[")
    (tmp_path / "prepared/manifest.parquet").unlink()
    assert contents(prepared()) == whole
    assert not (tmp_path / ".prepared.partial").exists()


def test_only_the_first_process_writes(prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = tmp_path / ".prepared.partial"
    partial.mkdir()
    monkeypatch.setenv("RANK", "1")
    prepared()
    assert {path.name for path in tmp_path.iterdir()} == {"kit", "params.yaml", partial.name}
    monkeypatch.setenv("RANK", "0")
    assert (prepared() / "manifest.parquet").exists()


@pytest.mark.parametrize(
    ("root_given", "found"),
    [("nowhere", "there is no such folder"), ("kit/JPEGImages", "has no folder JPEGImages"), (".", "did you mean")],
)
def test_a_wrong_root_is_one_sentence(prepared: Prepare, tmp_path: Path, root_given: str, found: str) -> None:
    with pytest.raises(Problem, match=found):
        prepared(root=str(tmp_path / root_given))


def test_missing_and_empty_lists(prepared: Prepare, root: Path) -> None:
    list_at(root, "val").write_text("\n \n")
    problems = problems_of(prepared, train_list="trainaug")
    assert any("trainaug.txt: this list is missing; lists there: train, val" in problem for problem in problems)
    assert any("val.txt: this list is empty" in problem for problem in problems)


def test_lists_from_windows_are_read(prepared: Prepare, root: Path) -> None:
    list_at(root).write_bytes(b"\xef\xbb\xbf" + list_at(root).read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_manifest(prepared() / "manifest.parquet")) == 9


@pytest.mark.parametrize("wrong", ["a/b", "..", "a\\b", "2007_000032 1", "/etc/passwd"])
def test_an_id_cannot_leave_its_folder(prepared: Prepare, root: Path, wrong: str) -> None:
    list_at(root).write_text(f"train_000\n{wrong}\n")
    assert f"found '{wrong}'" in only_problem(prepared)


def test_painted_labels_are_named_and_converted(prepared: Prepare, root: Path) -> None:
    labels = read_labels(labels_at(root))
    Image.fromarray(voc_palette()[labels]).save(labels_at(root))
    assert "dataset.convert_palette: true converts them" in only_problem(prepared)
    out = prepared(convert_palette=True)
    converted = read_manifest(out / "manifest.parquet")["train_000"].labels
    assert converted == out / "files/SegmentationClass/train_000.png"
    np.testing.assert_array_equal(read_labels(out / "files/SegmentationClass/train_000.png"), labels)
    assert json.loads((out / "dataset.json").read_text())["conversions"]["labels_from_colours"] == 1


def test_colours_indexed_anew_are_named_and_converted(prepared: Prepare, root: Path) -> None:
    labels = read_labels(labels_at(root))
    Image.fromarray(voc_palette()[labels]).quantize(8).save(labels_at(root))
    assert (read_labels(labels_at(root)) != labels).any()
    problem = only_problem(prepared)
    assert "VOC's colours at other indices than VOC's" in problem
    assert "dataset.convert_palette: true takes the classes from the colours" in problem
    out = prepared(convert_palette=True)
    np.testing.assert_array_equal(read_labels(out / "files/SegmentationClass/train_000.png"), labels)
    assert json.loads((out / "dataset.json").read_text())["conversions"]["labels_from_colours"] == 1


VOC = voc_palette()
OWN_PALETTES = {
    "VOC's": VOC,
    "its first half": VOC[:128],
    "other colours": 255 - VOC,
    "VOC's with another border": np.concatenate([VOC[[0, 2, 1, 3]], VOC[4:255], [[255, 255, 255]]]),
    "one other colour": np.concatenate([VOC[[0, 2]], [[1, 2, 3]], VOC[3:]]),
    "colours of classes that the data set lacks": np.concatenate([VOC[[0, 7, 21, 63]], VOC[4:]]),
    "a grey ramp": np.repeat(np.arange(256)[:, None], 3, axis=1),
    "one colour for all": np.zeros((256, 3), int),
}


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("name", OWN_PALETTES)
def test_the_indices_count_where_the_colours_say_nothing(
    prepared: Prepare, root: Path, name: str, convert: bool
) -> None:
    labels = np.zeros((40, 48), np.uint8)
    labels[:8], labels[8:16], labels[16:24], labels[24:32] = 1, 2, 3, IGNORE
    indexed = Image.fromarray(labels)
    indexed.putpalette(OWN_PALETTES[name].astype(np.uint8).tobytes())
    indexed.save(labels_at(root))
    out = prepared(convert_palette=convert)
    record = read_manifest(out / "manifest.parquet")["train_000"]
    assert (record.labels, record.tags) == (labels_at(root), (1, 2, 3))
    assert not any(json.loads((out / "dataset.json").read_text())["conversions"].values())


@pytest.mark.parametrize("present", [(0,), (0, 3), (2,), (0, IGNORE)])
def test_masks_that_show_little_of_vocs_palette_are_in_order(
    prepared: Prepare, root: Path, present: tuple[int, ...]
) -> None:
    write_labels(labels_at(root), np.resize(np.array(present, np.uint8), (40, 48)))
    assert read_manifest(prepared() / "manifest.parquet")["train_000"].labels == labels_at(root)


def write_png(path: Path, labels: np.ndarray, bits: int, palette: bool) -> None:
    """A grey or indexed PNG of less than 8 bits; Pillow writes no such grey."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = labels.shape
    ones = (labels[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(ones.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    colours = chunk(b"PLTE", voc_palette()[: 2**bits].tobytes()) if palette else b""
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("bits", "becomes"), [(1, 255), (2, 85), (4, 17)])
def test_grey_labels_of_few_bits_are_refused_and_indexed_ones_read(
    prepared: Prepare, root: Path, bits: int, becomes: int
) -> None:
    labels = np.zeros((40, 48), np.uint8)
    labels[10:20, 10:20] = 1
    write_png(labels_at(root), labels, bits, palette=False)
    problem = only_problem(prepared)
    assert f"indexed or grey 8-bit PNG, found a grey PNG of {bits} bit" in problem
    assert f"class 1 would be read as {becomes}; save it anew with 8 bits" in problem
    write_png(labels_at(root), labels, bits, palette=True)
    np.testing.assert_array_equal(read_labels(labels_at(root)), labels)
    assert read_manifest(prepared() / "manifest.parquet")["train_000"].tags == (1,)


@pytest.mark.parametrize("convert", [False, True])
def test_a_colour_outside_the_palette_is_named_with_its_place(prepared: Prepare, root: Path, convert: bool) -> None:
    painted = voc_palette()[read_labels(labels_at(root))]
    painted[7, 5] = (1, 2, 3)
    Image.fromarray(painted).save(labels_at(root))
    assert "colour (1, 2, 3) at x=5, y=7" in only_problem(prepared, convert_palette=convert)


def test_a_label_value_that_is_no_class(prepared: Prepare, root: Path) -> None:
    labels = read_labels(labels_at(root)).copy()
    labels[3, 9] = 4
    write_labels(labels_at(root), labels)
    problem = only_problem(prepared)
    assert "label values 4 (4 first at x=9, y=3)" in problem
    assert "0 to 3, and 255" in problem


def test_labels_of_16_bits_are_refused(prepared: Prepare, root: Path) -> None:
    Image.fromarray(read_labels(labels_at(root)).astype(np.uint16)).save(labels_at(root))
    assert "indexed or grey 8-bit PNG" in only_problem(prepared)


def save_grey(path: Path, image: Image.Image) -> None:
    image.convert("L").save(path)


def save_cmyk(path: Path, image: Image.Image) -> None:
    image.convert("CMYK").save(path)


def save_sixteen_bit(path: Path, image: Image.Image) -> None:
    wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(wide).save(path.with_suffix(".png"))
    path.unlink()


def save_turned(path: Path, image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(path, exif=exif)


@pytest.mark.parametrize(
    ("save", "counted"),
    [
        (save_grey, {"grey"}),
        (save_cmyk, {"cmyk"}),
        (save_sixteen_bit, {"grey", "sixteen_bit"}),
        (save_turned, {"turned"}),
    ],
)
def test_unusual_pictures_are_counted_and_read(
    prepared: Prepare, root: Path, save: Callable[[Path, Image.Image], None], counted: set[str]
) -> None:
    with Image.open(image_at(root)) as image:
        image.load()
    save(image_at(root), image)
    out = prepared()
    conversions = json.loads((out / "dataset.json").read_text())["conversions"]
    assert {name for name, count in conversions.items() if count} == counted
    record = read_manifest(out / "manifest.parquet")["train_000"]
    assert (record.width, record.height) == (48, 40)
    assert read_image(record.image).shape == (40, 48, 3)


def test_labels_that_lie_as_the_unturned_picture(prepared: Prepare, root: Path) -> None:
    with Image.open(image_at(root)) as image:
        image.load()
    save_turned(image_at(root), image)
    write_labels(labels_at(root), np.rot90(read_labels(labels_at(root))).copy())
    assert "labels must be drawn on the turned picture" in only_problem(prepared)


def test_a_half_turn_cannot_be_proven_and_warns(prepared: Prepare, root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(image_at(root)) as image:
        image.load()
    image.save(image_at(root), exif=exif)
    assert json.loads((prepared() / "dataset.json").read_text())["warnings"]["orientation_unproven"] == 1


def warnings_of(out: Path) -> dict[str, int]:
    """The counts of `dataset.json` that are not 0."""
    counted = json.loads((out / "dataset.json").read_text())["warnings"]
    return {kind: count for kind, count in counted.items() if count}


def test_the_same_bytes_in_both_splits_and_in_one(
    prepared: Prepare, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_at(root, "train_001").write_bytes(image_at(root, "train_000").read_bytes())
    out = prepared()
    assert warnings_of(out) == {"same_bytes_in_split": 1}
    assert "train_001.jpg (train): holds the same bytes" in capsys.readouterr().out
    image_at(root, "val_000").write_bytes(image_at(root, "train_002").read_bytes())
    labels_at(root, "val_000").unlink()
    problems = problems_of(prepared)
    assert len(problems) == 2
    assert "val_000.jpg (val): holds the same bytes" in problems[1]
    assert "train_002.jpg (train); what is trained on" in problems[1]


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("same_pixels", r"shows the same pixels as .*train_002.jpg \(train\)"),
        ("alike", r"looks like the picture .*train_002.jpg \(train\), in 2\d\d of 256 bits"),
        ("mirrored", r"looks like the mirrored picture .*train_002.jpg \(train\), in 2\d\d of 256 bits"),
    ],
)
@pytest.mark.parametrize("copied_to", ["train_005", "val_000"])
def test_copies_that_are_other_bytes(prepared: Prepare, root: Path, kind: str, seen: str, copied_to: str) -> None:
    with Image.open(image_at(root, "train_002")) as image:
        image.load()
    copy = image_at(root, copied_to)
    if kind == "same_pixels":
        comment = b"\xff\xfe\x00\x07mine!"
        content = image_at(root, "train_002").read_bytes()
        copy.write_bytes(content[:2] + comment + content[2:])
        labels_at(root, copied_to).write_bytes(labels_at(root, "train_002").read_bytes())
    else:
        turned = ImageOps.mirror if kind == "mirrored" else Image.Image.copy
        turned(image).resize((96, 80)).save(copy, quality=60)
        labels = read_labels(labels_at(root, "train_002"))
        write_labels(labels_at(root, copied_to), np.asarray(turned(Image.fromarray(labels)).resize((96, 80), 0)))
    name = "alike" if kind == "mirrored" else kind
    if copied_to == "train_005":
        assert warnings_of(prepared()) == {f"{name}_in_split": 1}
        return
    problem = only_problem(prepared)
    assert re.search(rf"val_000.jpg \(val\): {seen}.*; what is trained on cannot measure anything", problem)
    assert problem.endswith("unlist one of them, or keep both by dataset.duplicates: allow")
    assert warnings_of(prepared(duplicates="allow")) == {f"{name}_across_splits": 1}


def test_a_copy_in_another_file_format_shows_the_same_pixels(prepared: Prepare, root: Path) -> None:
    with Image.open(image_at(root, "train_002")) as image:
        image.save(image_at(root, "val_000").with_suffix(".png"))
    image_at(root, "val_000").unlink()
    labels_at(root, "val_000").write_bytes(labels_at(root, "train_002").read_bytes())
    assert "val_000.png (val): shows the same pixels as" in only_problem(prepared)


def test_plain_pictures_are_not_taken_for_each_other(prepared: Prepare, root: Path) -> None:
    for image_id, grey in (("train_000", 200), ("val_000", 60)):
        Image.new("RGB", (48, 40), (grey, grey, grey)).save(image_at(root, image_id))
    assert warnings_of(prepared()) == {}


def test_tags_from_a_csv_also_without_labels(prepared: Prepare, root: Path) -> None:
    tags = true_tags(root) | {"train_000": "circle star"}
    labels_at(root, "train_001").unlink()
    out = prepared(tags=csv(write_csv(root, tags)))
    records = read_manifest(out / "manifest.parquet")
    assert records["train_000"].tags == (1, 3)
    assert records["train_001"].labels is None
    assert records["train_001"].tags == (2,)
    counts = json.loads((out / "dataset.json").read_text())
    assert counts["masks"]["train"] == 5
    assert counts["warnings"]["tag_not_in_labels"] == 1
    assert counts["per_class"]["star"]["train"] == {"images": 3, "masks": 2}


def test_no_training_image_needs_labels_when_tags_are_given(prepared: Prepare, root: Path) -> None:
    tags = write_csv(root, true_tags(root))
    for path in (root / "SegmentationClass").glob("train_*"):
        path.unlink()
    records = read_manifest(prepared(tags=csv(tags)) / "manifest.parquet")
    assert all(record.labels is None for record in records.values() if record.split == "train")


def test_what_a_csv_can_get_wrong(prepared: Prepare, root: Path) -> None:
    tags = true_tags(root) | {"train_001": "sqare", "train_002": "circle", "train_003": ""}
    del tags["train_000"]
    write_csv(root, tags)
    with (root / "tags.csv").open("a") as file:
        file.write("val_000,circle\n")
    problems = problems_of(prepared, tags=csv("tags.csv"))
    for found in (
        "the id 'train_000': it has no line",
        "train_001: names the class 'sqare', which the data set does not have; did you mean 'square'?",
        "train_002.png: shows star, which the tags of train_002 do not name (circle)",
        "train_003.png: shows circle, which the tags of train_003 do not name (nothing)",
        "the id 'val_000': it has more than one line",
    ):
        assert any(found in problem for problem in problems), (found, problems)


def test_tags_of_a_csv_are_separated_by_blanks_only(prepared: Prepare, root: Path) -> None:
    """A tag in a cell of its own must not be lost."""
    tags = true_tags(root)
    write_csv(root, tags | {"train_000": "star,circle", "train_001": '"star,circle"', "train_002": "star;circle"})
    problems = problems_of(prepared, tags=csv("tags.csv"))
    for found in (
        "'train_000', has more cells than the first line has columns",
        "train_001: found ',' between tags in 'star,circle'; separate them by blanks",
        "train_002: found ';' between tags",
    ):
        assert any(found in problem for problem in problems), (found, problems)


def test_a_class_whose_name_a_csv_cannot_hold(prepared: Prepare, root: Path) -> None:
    names = (root / "classes.txt").read_text()
    tags = write_csv(root, true_tags(root))
    (root / "classes.txt").write_text(names.replace("star", "bright star"))
    assert any(
        "the class 'bright star' holds a blank" in problem and "'bright_star'" in problem
        for problem in problems_of(prepared, tags=csv(tags))
    )
    prepared(tags={"kind": "masks"})


@pytest.mark.parametrize("ending", [".png", ".jpeg", ".JPG"])
def test_pictures_of_other_endings_are_found(prepared: Prepare, root: Path, ending: str) -> None:
    picture = image_at(root)
    picture.rename(picture.with_suffix(ending))
    assert read_manifest(prepared() / "manifest.parquet")[picture.stem].image.suffix == ending


def test_two_pictures_of_one_id_are_both_named(prepared: Prepare, root: Path) -> None:
    with Image.open(image_at(root)) as image:
        image.save(image_at(root).with_suffix(".png"))
    problem = only_problem(prepared)
    assert problem.startswith("train_000: has 2 pictures in ")
    assert problem.endswith("JPEGImages, train_000.jpg and train_000.png; remove all but one")


def renamed(root: Path, new: str, split: str = "train") -> None:
    """The first image of the split under another id."""
    old = f"{split}_000"
    list_at(root, split).write_text(list_at(root, split).read_text().replace(old, new))
    image_at(root, old).rename(image_at(root, new))
    labels_at(root, old).rename(labels_at(root, new))


def test_ids_that_differ_in_their_unicode_form_only(prepared: Prepare, root: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    renamed(root, composed)
    assert composed in read_manifest(prepared() / "manifest.parquet")
    image_at(root, composed).rename(image_at(root, decomposed))
    problem = only_problem(prepared)
    assert "(" + ascii(composed) + ")" in problem
    assert ascii(f"{decomposed}.jpg") in problem
    image_at(root, decomposed).rename(image_at(root, composed))
    renamed(root, decomposed, "val")
    assert "differ in their Unicode form only; leave one" in only_problem(prepared)


def test_an_ending_in_a_list_is_named(prepared: Prepare, root: Path) -> None:
    ids = root / "ImageSets/Segmentation/train.txt"
    ids.write_text(ids.read_text().replace("train_000\n", "train_000.jpg\n"))
    assert "found 'train_000.jpg'; an image id is a file name without" in only_problem(prepared)


def test_a_csv_without_its_columns_and_none_at_all(prepared: Prepare, root: Path) -> None:
    (root / "tags.csv").write_text("id,tags\ntrain_000,circle\n")
    assert "lacks the column image_id" in only_problem(prepared, tags=csv("tags.csv"))
    assert "this file is missing" in only_problem(prepared, tags=csv("no.csv"))


def write_annotations(root: Path) -> None:
    (root / "Annotations").mkdir()
    for image_id, names in true_tags(root).items():
        objects = "".join(
            f"<object><name>{name}</name><part><name>head</name></part></object>" for name in names.split()
        )
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")


def test_an_annotation_of_another_picture(prepared: Prepare, root: Path) -> None:
    write_annotations(root)
    first, second = sorted((root / "Annotations").iterdir())[:2]
    of = "<annotation><filename>{}.jpg</filename>"
    first.write_text(first.read_text().replace("<annotation>", of.format("its_former_name")))
    second.write_text(second.read_text().replace("<annotation>", of.format(second.stem)))
    prepared(tags=annotations())
    second.write_text(second.read_text().replace(f"<filename>{second.stem}", f"<filename>{first.stem}"))
    said = only_problem(prepared, tags=annotations())
    assert f"{second.name}: is of another picture, by its <filename> {first.stem}.jpg; give the annotation" in said


def test_tags_from_annotations(prepared: Prepare, root: Path) -> None:
    write_annotations(root)
    records = read_manifest(prepared(tags=annotations()) / "manifest.parquet")
    assert records["train_002"].tags == (1, 3)


def test_difficult_objects_count_or_are_skipped(prepared: Prepare, root: Path) -> None:
    write_annotations(root)
    path = root / "Annotations/train_002.xml"
    circle, star = "<object><name>circle</name>{}</object>", "<object><name>star</name>{}</object>"
    easy, difficult = "<difficult>0</difficult>", "<difficult>1</difficult>"
    path.write_text(f"<annotation>{circle.format(difficult)}{star.format(easy)}</annotation>")
    out = prepared(tags=annotations("count"))
    assert read_manifest(out / "manifest.parquet")["train_002"].tags == (1, 3)
    assert warnings_of(out) == {}
    out = prepared(tags=annotations("skip"))
    record = read_manifest(out / "manifest.parquet")["train_002"]
    assert (record.tags, record.label_classes) == ((3,), (1, 3))
    assert warnings_of(out) == {"difficult_in_labels": 1}
    path.write_text(f"<annotation>{circle.format(difficult)}{circle.format(easy)}{star.format('')}</annotation>")
    out = prepared(tags=annotations("skip"))
    assert read_manifest(out / "manifest.parquet")["train_002"].tags == (1, 3), "one of the circles is easy to see"
    assert warnings_of(out) == {}
    path.write_text(f"<annotation>{circle.format(difficult)}{star.format(difficult)}</annotation>")
    out = prepared(tags=annotations("skip"))
    assert read_manifest(out / "manifest.parquet")["train_002"].tags == ()
    assert warnings_of(out) == {"difficult_in_labels": 1, "no_tags": 1}
    path.write_text(f"<annotation>{circle.format('<difficult>yes</difficult>')}{star.format(easy)}</annotation>")
    problem = only_problem(prepared, tags=annotations("skip"))
    assert "it marks 'circle' with <difficult>yes</difficult>; allowed are 0 and 1" in problem
    path.write_text(f"<annotation>{star.format(easy)}</annotation>")
    problem = only_problem(prepared, tags=annotations("skip"))
    assert "shows circle, which the tags of train_002 do not name (star)" in problem


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "this annotation is missing"),
        ("<annotation><object>", "cannot be read as a VOC annotation"),
        ('<!DOCTYPE a [<!ENTITY b "circle">]><a><object><name>&b;</name></object></a>', "DTD or entities"),
        (
            "<annotation><object><name>cube</name></object><object><name>circle</name></object></annotation>",
            "names the class 'cube'",
        ),
        ("<annotations><image name='a'/></annotations>", "its root is <annotations>, VOC's is <annotation>"),
        ("<annotation><polygon/></annotation>", "it has no <object> but <polygon>: it is of another format"),
        ("<annotation><object><nam>circle</nam></object></annotation>", "an <object> without a <name>"),
        (
            "<annotation><size><width>40</width><height>48</height></size><object><name>circle</name></object></annotation>",
            "is 48x40, but its annotation is of a picture of 40x48 pixels",
        ),
    ],
)
def test_what_an_annotation_can_get_wrong(prepared: Prepare, root: Path, content: str | None, found: str) -> None:
    write_annotations(root)
    path = root / "Annotations/train_000.xml"
    path.unlink() if content is None else path.write_text(content)
    assert any(found in problem for problem in problems_of(prepared, tags=annotations()))


def test_an_annotation_in_another_encoding_hides_no_entities(prepared: Prepare, root: Path) -> None:
    write_annotations(root)
    text = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "circle">]><a><object><name>&b;</name></object></a>'
    for encoding in ("utf-16", "utf-16-le"):
        (root / "Annotations/train_000.xml").write_bytes(text.encode(encoding))
        assert any("cannot be read as a VOC" in problem for problem in problems_of(prepared, tags=annotations()))


def test_a_mask_with_background_only_warns(prepared: Prepare, root: Path) -> None:
    write_labels(labels_at(root), np.zeros((40, 48), np.uint8))
    out = prepared()
    assert json.loads((out / "dataset.json").read_text())["warnings"]["no_tags"] == 1
    assert read_manifest(out / "manifest.parquet")["train_000"].tags == ()


def test_masks_of_sbd(prepared: Prepare, root: Path, tmp_path: Path) -> None:
    labels = read_labels(labels_at(root)).copy()
    labels[labels == IGNORE] = 0
    labels_at(root).unlink()
    assert "train_000: a training image without labels" in only_problem(prepared)
    with pytest.raises(Problem, match="has no folder cls/"):
        prepared(sbd_root=str(tmp_path))
    (tmp_path / "sbd/cls").mkdir(parents=True)
    mat = {"GTcls": {"Segmentation": labels, "CategoriesPresent": np.array([1])}}
    savemat(tmp_path / "sbd/cls/train_000.mat", mat, do_compression=True)
    out = prepared(sbd_root=str(tmp_path / "sbd"))
    converted = read_manifest(out / "manifest.parquet")["train_000"].labels
    assert converted == out / "files/SegmentationClass/train_000.png"
    np.testing.assert_array_equal(read_labels(out / "files/SegmentationClass/train_000.png"), labels)
    assert json.loads((out / "dataset.json").read_text())["conversions"]["labels_from_mat"] == 1
    whole = (tmp_path / "sbd/cls/train_000.mat").read_bytes()
    wrong = io.BytesIO()
    savemat(wrong, {"GTinst": 1})
    for broken in (b"", whole[:200], wrong.getvalue()):
        (tmp_path / "sbd/cls/train_000.mat").write_bytes(broken)
        assert "intact copy" in only_problem(prepared, sbd_root=str(tmp_path / "sbd"))


def test_masks_of_the_augmented_set(prepared: Prepare, root: Path) -> None:
    (root / "SegmentationClassAug").mkdir()
    moved = labels_at(root).rename(root / "SegmentationClassAug/train_000.png")
    assert read_manifest(prepared() / "manifest.parquet")["train_000"].labels == moved


def test_class_names_that_cannot_be(prepared: Prepare, root: Path) -> None:
    (root / "classes.txt").write_text("circle\nsquare\nstar\nstar\n")
    problems = problems_of(prepared)
    assert any("first line must be 'background', found 'circle'" in problem for problem in problems)
    assert any("'star' stands there more than once" in problem for problem in problems)


def test_without_classes_txt_the_classes_are_those_of_voc(prepared: Prepare, root: Path) -> None:
    (root / "classes.txt").unlink()
    names = json.loads((prepared() / "classes.json").read_text())
    assert (len(names), names[0], names[15], names[20]) == (21, "background", "person", "tvmonitor")


@pytest.mark.parametrize("tags", [{"kind": "masks"}, csv("ImageSets/image_tags.csv")], ids=lambda tags: tags["kind"])
def test_the_real_photographs_are_in_order(prepared: Prepare, tags: dict[str, str]) -> None:
    out = prepared(root=str(real_voc()), tags=tags)
    counts = json.loads((out / "dataset.json").read_text())
    assert counts["classes"] == 20
    assert counts["images"] == counts["masks"]
    assert not any(counts["conversions"].values())
    assert {*warnings_of(out)} <= {"tag_not_in_labels"}, "no photograph is there twice"


@pytest.mark.parametrize("difficult", ["count", "skip"])
def test_the_real_annotations(prepared: Prepare, difficult: str) -> None:
    lists = {"train_list": "train_2007", "val_list": "val_2007"}
    out = prepared(root=str(real_voc()), tags=annotations(difficult), **lists)
    assert warnings_of(out).get("difficult_in_labels", 0) == {"count": 0, "skip": 64}[difficult]
