"""Data sets of the kinds that others met in the field: refused in words that name the cause, or read as meant."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from segcore.cli import provenance
from segcore.data.manifest import LONGEST_ID, read_manifest
from segcore.data.pictures import IGNORE, LONGEST_SIDE, read_image, read_labels, write_labels
from segcore.errors import About, Problem, Problems, together
from stages import prepare
from tests.devkit import PROJECT, make_devkit, voc_section, write_params

Prepare = Callable[..., Path]
CSV = {"kind": "csv", "file": "tags.csv"}
XML = {"kind": "annotations", "difficult": "count"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_devkit(tmp_path / "kit")
    return tmp_path / "kit"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> Prepare:
    monkeypatch.setattr(provenance, "TIMINGS", tmp_path / "timings")

    def go(**changes: Any) -> Path:
        params = write_params(tmp_path / "params.yaml", {"dataset": voc_section(root) | changes})
        prepare.main(out=tmp_path / "prepared", params=params)
        return tmp_path / "prepared"

    return go


@pytest.fixture
def refused(prepared: Prepare) -> Callable[..., list[str]]:
    def go(**changes: Any) -> list[str]:
        with pytest.raises(Problems) as caught:
            prepared(**changes)
        said = str(caught.value)
        assert "BytesIO" not in said
        assert ".partial" not in said
        return caught.value.problems

    return go


def picture(root: Path, image_id: str = "train_000") -> Path:
    return root / f"JPEGImages/{image_id}.jpg"


def mask(root: Path, image_id: str = "train_000") -> Path:
    return root / f"SegmentationClass/{image_id}.png"


def masks(root: Path, split: str = "*") -> list[Path]:
    return sorted((root / "SegmentationClass").glob(f"{split}_*.png"))


def ids(root: Path, split: str = "train") -> Path:
    return root / f"ImageSets/Segmentation/{split}.txt"


def tags_of(root: Path) -> dict[str, str]:
    names = (root / "classes.txt").read_text().split()
    return {
        file.stem: " ".join(names[one] for one in np.unique(read_labels(file)) if 0 < one < IGNORE)
        for file in masks(root)
    }


def write_table(root: Path, tags: dict[str, str]) -> None:
    (root / "tags.csv").write_text("image_id,tags\n" + "".join(f"{key},{value}\n" for key, value in tags.items()))


class TestReservedValue:
    """255 as content: nothing is learned from such masks, and nothing measured."""

    @pytest.mark.parametrize("split", ["train", "val", "*"])
    def test_masks_of_0_and_255(self, root: Path, refused: Callable[..., list[str]], split: str) -> None:
        write_table(root, tags_of(root))
        for file in masks(root, split):
            write_labels(file, np.where(read_labels(file) > 0, IGNORE, 0).astype(np.uint8))
        problems = refused(tags=CSV)
        assert len(problems) == (2 if split == "*" else 1)
        for problem in problems:
            assert "they hold 0 (background) and 255 (unknown) alone" in problem
            assert "if it was meant as a class, write the index of that class instead, 1 for 'circle'" in problem

    def test_masks_of_background_alone(self, root: Path, refused: Callable[..., list[str]]) -> None:
        write_table(root, tags_of(root))
        for file in masks(root, "val"):
            write_labels(file, np.zeros((40, 48), np.uint8))
        (problem,) = refused(tags=CSV)
        assert "none of the 3 masks of val shows a class: they hold 0 (background) alone" in problem

    def test_one_class_painted_as_255(self, root: Path, prepared: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
        write_table(root, tags_of(root))
        for file in masks(root):
            labels = read_labels(file)
            write_labels(file, np.where(labels == 3, IGNORE, labels).astype(np.uint8))
        counts = json.loads((prepared(tags=CSV) / "dataset.json").read_text())["warnings"]
        assert counts["class_in_no_mask"] == 2
        said = capsys.readouterr().out
        assert "no mask of the 6 of train shows 'star'; nothing but tags teaches it (255 means unknown here" in said
        assert "no mask of the 3 of val shows 'star'; nothing measures it: its IoU is null (255 means unknown" in said

    def test_a_class_that_nothing_shows_or_names(
        self, root: Path, prepared: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (root / "classes.txt").write_text((root / "classes.txt").read_text() + "moon\n")
        prepared()
        assert "no training image shows or names 'moon'; it cannot be learned" in capsys.readouterr().out


class TestSourcesThatDisagree:
    """Annotations of another format, of another picture, masks of another turn."""

    def annotate(self, root: Path, size: tuple[int, int] = (48, 40)) -> None:
        (root / "Annotations").mkdir()
        side = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        for image_id, tags in tags_of(root).items():
            objects = "".join(f"<object><name>{name}</name></object>" for name in tags.split())
            (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{side}{objects}</annotation>")

    def test_annotations_of_another_format(self, root: Path, refused: Callable[..., list[str]]) -> None:
        self.annotate(root)
        for image_id in ("train_003", "train_004"):
            path = root / f"Annotations/{image_id}.xml"
            path.write_text("<annotations><image name='a'><polygon label='circle'/></image></annotations>")
            mask(root, image_id).unlink()
        problems = refused(tags=XML)
        assert len(problems) == 2
        assert "train_003.xml: cannot be read as a VOC annotation (its root is <annotations>" in problems[0]

    def test_annotations_of_pictures_of_another_shape(self, root: Path, refused: Callable[..., list[str]]) -> None:
        self.annotate(root, (40, 48))
        (root / "Annotations/val_000.xml").write_text(
            (root / "Annotations/val_000.xml").read_text().replace(">40<", ">48<", 1).replace(">48<", ">48<")
        )
        assert any("but its annotation is of a picture of 40x48 pixels" in problem for problem in refused(tags=XML))

    def test_an_annotation_made_before_the_turn_by_exif(self, root: Path, prepared: Prepare) -> None:
        self.annotate(root)
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(picture(root)) as image:
            image.rotate(90, expand=True).save(picture(root), exif=exif)
        path = root / "Annotations/train_000.xml"
        path.write_text(path.read_text().replace(">48<", ">0<").replace(">40<", ">48<").replace(">0<", ">40<"))
        assert "train_000" in read_manifest(prepared(tags=XML) / "manifest.parquet")

    def test_a_mask_that_exif_turns(self, root: Path, refused: Callable[..., list[str]]) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3
        with Image.open(mask(root)) as image:
            image.load()
            image.save(mask(root), exif=exif)
        (problem,) = refused()
        assert "labels carry an EXIF orientation, 3" in problem

    def test_a_mask_that_is_a_jpeg(self, root: Path, refused: Callable[..., list[str]]) -> None:
        Image.fromarray(read_labels(mask(root))).convert("L").save(mask(root), format="JPEG")
        assert any("found a JPEG, whose compression makes other classes" in problem for problem in refused())


class TestAmbiguousMatches:
    """Nothing is settled by the order of a folder."""

    @pytest.mark.parametrize(
        ("folder", "other"), [("JPEGImages", ".png"), ("JPEGImages", ".JPG"), ("JPEGImages", ".jpeg")]
    )
    def test_two_pictures(self, root: Path, refused: Callable[..., list[str]], folder: str, other: str) -> None:
        Image.open(picture(root)).save(picture(root).with_suffix(other), format="PNG")
        (problem,) = refused()
        assert "train_000: has 2 pictures in " in problem
        assert "train_000.jpg" in problem
        assert f"train_000{other}" in problem

    @pytest.mark.parametrize("other", [".PNG", ".bmp", ".tif"])
    def test_two_masks(self, root: Path, refused: Callable[..., list[str]], other: str) -> None:
        mask(root).with_suffix(other).write_bytes(mask(root).read_bytes())
        (problem,) = refused()
        assert "train_000: has 2 masks in " in problem
        assert f"train_000{other}" in problem

    @pytest.mark.parametrize("other", [".PNG", ".bmp", ".tif", ".jpg"])
    def test_a_mask_of_another_ending_is_not_passed_over(
        self, root: Path, refused: Callable[..., list[str]], other: str
    ) -> None:
        write_table(root, tags_of(root))
        mask(root).rename(mask(root).with_suffix(other))
        (problem,) = refused(tags=CSV)
        assert f"train_000{other}: as labels, a name must be <id>.png to the letter" in problem

    def test_two_annotations(self, root: Path, refused: Callable[..., list[str]]) -> None:
        TestSourcesThatDisagree().annotate(root)
        (root / "Annotations/train_000.XML").write_text("<annotation/>")
        (problem,) = refused(tags=XML)
        assert "train_000.XML and train_000.xml; remove all but one" in problem

    def test_two_spellings_of_one_picture_and_of_one_mask(self, root: Path, refused: Callable[..., list[str]]) -> None:
        one, other = "caf\u00e9", "cafe\u0301"
        ids(root).write_text(ids(root).read_text().replace("train_000", one))
        for file in (picture(root), mask(root)):
            file.rename(file.with_stem(one))
            file.with_stem(other).write_bytes(file.with_stem(one).read_bytes())
        problems = refused()
        assert len(problems) == 2
        assert all(ascii(other)[1:-1] in problem and ascii(one)[1:-1] in problem for problem in problems)

    def test_two_tables(self, root: Path, refused: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        write_table(root, tags_of(root))
        monkeypatch.chdir(root.parent)
        Path("tags.csv").write_text("image_id,tags\n")
        assert "tags.csv differ; delete one, or write its whole path" in refused(tags=CSV)[0]

    def test_masks_in_two_folders_are_counted(
        self, root: Path, prepared: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (root / "SegmentationClassAug").mkdir()
        write_labels(root / "SegmentationClassAug/train_000.png", read_labels(mask(root)))
        prepared()
        assert "1 images, 'train_000', have labels in " in capsys.readouterr().out


def wide(values: np.ndarray, file: Path) -> None:
    """Write 16-bit values, grey or RGB, as a PNG."""
    stored = values.astype(np.uint16)
    cv2.imwrite(str(file), stored if stored.ndim == 2 else stored[..., ::-1])


class TestSixteenBits:
    """12 bits in files of 16."""

    @pytest.fixture(params=["grey", "rgb"])
    def stored(self, root: Path, request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        values: dict[str, np.ndarray] = {}
        for image_id in ("train_000", "val_000"):
            shape = (40, 48) if request.param == "grey" else (40, 48, 3)
            values[image_id] = rng.integers(0, 4096, shape)
            values[image_id].flat[:2] = 0, 4095
            picture(root, image_id).unlink()
            wide(values[image_id], picture(root, image_id).with_suffix(".png"))
        return values

    def test_are_told(
        self, stored: dict[str, np.ndarray], prepared: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = prepared()
        said = capsys.readouterr().out
        assert "2 pictures of 16 bits, " in said
        assert "hold the values 0 to 4095 of 65535 only and become nearly black" in said
        assert "set dataset.sixteen_bit: measured, or [0, 4095]" in said
        assert json.loads((out / "dataset.json").read_text())["warnings"]["narrow_sixteen_bit"] == 1
        assert read_image(read_manifest(out / "manifest.parquet")["train_000"].image).max() <= 15

    @pytest.mark.parametrize("how", ["measured", [0, 4095]], ids=str)
    def test_get_their_range(
        self, stored: dict[str, np.ndarray], prepared: Prepare, how: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = prepared(sixteen_bit=how)
        assert "warning" not in capsys.readouterr().out
        for image_id, values in stored.items():
            record = read_manifest(out / "manifest.parquet")[image_id]
            assert record.image == out / f"files/JPEGImages/{image_id}.png"
            seen = values if values.ndim == 3 else np.repeat(values[..., None], 3, 2)
            np.testing.assert_array_equal(read_image(record.image), np.rint(seen / 4095 * 255))

    def test_values_beyond_the_range_are_told(
        self, stored: dict[str, np.ndarray], prepared: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepared(sixteen_bit=[0, 2000])
        assert "lie outside of dataset.sixteen_bit: [0, 2000]" in capsys.readouterr().out

    @pytest.mark.parametrize("how", ["fully", [4095, 0], [0, 70000], [0], [0.5, 2], None], ids=str)
    def test_what_the_key_can_be(self, prepared: Prepare, how: Any) -> None:
        with pytest.raises(Problem, match=r"dataset.sixteen_bit: found .*must be full, measured, or \[low, high\]"):
            prepared(sixteen_bit=how)


NO_PICTURES = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    "a web page (HTML)": b"<!DOCTYPE html><title>404</title>",
    "a HEIC picture": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "a PDF document": b"%PDF-1.7\n",
    "an SVG drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a text that begins with 'hello'": b"hello",
    "nothing but zeros": bytes(4000),
    "is empty": b"",
    "is no picture, or its beginning is damaged": b"\xff\xd8\x80\xfe\x9e\x01",
}


class TestMessages:
    """The part that is wrong, once for all images."""

    @pytest.mark.parametrize("kind", NO_PICTURES)
    def test_what_is_no_picture(self, root: Path, refused: Callable[..., list[str]], kind: str) -> None:
        picture(root).write_bytes(NO_PICTURES[kind])
        (problem,) = refused()
        assert "train_000.jpg: " in problem
        assert kind in problem

    def test_many_alike_are_told_once(self, root: Path, refused: Callable[..., list[str]]) -> None:
        for file in (root / "JPEGImages").iterdir():
            file.write_bytes(NO_PICTURES["a web page (HTML)"])
        (problem,) = refused()
        assert problem.startswith("9 times, ")
        assert "train_000.jpg, " in problem
        assert "a web page" in problem

    def test_a_png_whose_texts_are_too_long(self, root: Path, refused: Callable[..., list[str]]) -> None:
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", "x" * 70_000_000, zip=True)
        with Image.open(picture(root)) as image:
            image.save(picture(root).with_suffix(".png"), pnginfo=info)
        picture(root).unlink()
        (problem,) = refused()
        assert "holds texts (metadata) that are too long to be read; its pixels may be in order" in problem

    @pytest.mark.parametrize("named", ["train (0)", "a b", "tab\there", "nbsp\u00a0x"])
    def test_blanks_in_ids(self, root: Path, refused: Callable[..., list[str]], named: str) -> None:
        ids(root).write_text(ids(root).read_text().replace("train_000", named))
        problems = refused()
        assert len(problems) == 1
        assert "train.txt: found " in problems[0]
        assert "an image id may not hold blanks" in problems[0]

    def test_many_wrong_ids_are_told_once(self, root: Path, refused: Callable[..., list[str]]) -> None:
        ids(root).write_text("".join(f"train ({n})\n" for n in range(50)) + "train_001\ntrain_002\n")
        assert "found 'train (0)', 'train (1)', 'train (2)' and 47 more; an image id may" in refused()[0]

    @pytest.mark.parametrize("named", ["../train_000", "x" * (LONGEST_ID + 1), ".hidden", "\u200bx", "a\\b", "/etc/x"])
    def test_ids_that_can_be_no_file_name(self, root: Path, refused: Callable[..., list[str]], named: str) -> None:
        ids(root).write_text(ids(root).read_text().replace("train_000", named))
        (problem,) = refused()
        assert "train.txt: found " in problem
        assert "an image id " in problem

    def test_ids_of_a_table_with_their_ending(self, root: Path, refused: Callable[..., list[str]]) -> None:
        write_table(root, {f"{key}.jpg": value for key, value in tags_of(root).items()})
        (problem,) = refused(tags=CSV)
        assert "'train_002.jpg' and 6 more; write them without the ending" in problem

    @pytest.mark.parametrize("separator", [";", "\t", "|"])
    def test_another_separator(self, root: Path, refused: Callable[..., list[str]], separator: str) -> None:
        write_table(root, tags_of(root))
        (root / "tags.csv").write_text((root / "tags.csv").read_text().replace(",", separator))
        (problem,) = refused(tags=CSV)
        assert f"found {separator!r} between columns where a comma is wanted" in problem

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("image_id,tags,tags\n", "has the column tags more than once"),
            ("image_id,tags\ntrain_000\n", "has no cell for tags"),
            ("image_id,tags\ntrain_000,background circle\n", "'background', which is no tag"),
            ("", "lacks the column image_id, tags"),
        ],
    )
    def test_tables(self, root: Path, refused: Callable[..., list[str]], text: str, said: str) -> None:
        (root / "tags.csv").write_text(text)
        assert any(said in problem for problem in refused(tags=CSV))

    @pytest.mark.parametrize("ending", [".tif", ".bmp", ".webp"])
    def test_a_picture_of_another_ending(self, root: Path, refused: Callable[..., list[str]], ending: str) -> None:
        picture(root).rename(picture(root).with_suffix(ending))
        (problem,) = refused()
        assert f"train_000{ending}: pictures may end in .jpg, .png, .jpeg, not in {ending}" in problem

    def test_a_class_in_another_unicode_form(self, root: Path, refused: Callable[..., list[str]]) -> None:
        tags = tags_of(root)
        (root / "classes.txt").write_text("background\ncaf\u00e9\nsquare\nstar\n")
        write_table(root, {key: value.replace("circle", "cafe\u0301") for key, value in tags.items()})
        assert all("in its Unicode form only" in problem for problem in refused(tags=CSV))


class TestClassesFile:
    """Never VOC's classes in the place of somebody's own."""

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda path: path.symlink_to("nowhere.txt"), "is a link that leads nowhere"),
            (lambda path: path.mkdir(), "is no file"),
            (lambda path: path.write_text(""), "first line must be 'background', found 'nothing'"),
            (lambda path: path.write_bytes("b\u00e4ckground".encode("latin-1")), "cannot be read as UTF-8 text"),
            (lambda path: os.mkfifo(path), "is no file"),
            (lambda path: path.write_text("background\ncircle\nsq\x1b[31muare\nstar\n"), "all of which can be seen"),
        ],
    )
    def test_is_refused(
        self, root: Path, refused: Callable[..., list[str]], make: Callable[[Path], object], said: str
    ) -> None:
        (root / "classes.txt").unlink()
        make(root / "classes.txt")
        assert any(said in problem for problem in refused())


class TestWhatCannotBeRead:
    """By a user who may not, as `setpriv` makes of root."""

    def test_is_not_told_as_unwritable(self, root: Path, tmp_path: Path) -> None:
        write_params(tmp_path / "params.yaml", {"dataset": voc_section("kit")})
        picture(root, "val_000").write_bytes(b"")
        closed = ("SegmentationClass", "ImageSets/Segmentation/train.txt", "classes.txt")
        for name in closed:
            (root / name).chmod(0)
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
        run = [*drop, sys.executable, "-m", "stages.prepare", "--out", "prepared"]
        environment = {"PYTHONPATH": str(PROJECT), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        try:
            ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, env=environment)
        finally:
            for name in closed:
                (root / name).chmod(stat.S_IRWXU)
        assert ended.returncode == 2, ended
        assert "written (" not in ended.stdout
        assert "SegmentationClass: this folder cannot be read (Permission denied)" in ended.stdout
        for name in closed[1:]:
            assert f"{name}: cannot be read (Permission denied)" in ended.stdout
        assert "val_000.jpg: is empty" in ended.stdout, "the other problems are told, too"

    def test_a_folder_that_may_not_be_listed(
        self, root: Path, refused: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listed = os.listdir

        def listdir(path: Path) -> list[str]:
            if Path(path).name == "JPEGImages":
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(os, "listdir", listdir)
        mask(root, "val_000").write_bytes(b"")
        problems = refused()
        assert "JPEGImages: this folder cannot be read (Permission denied)" in problems[0]
        assert any("val_000.png: is empty" in problem for problem in problems)


class TestSizes:
    """Pictures that no stage can hold, and what is no regular file."""

    @pytest.mark.parametrize(
        ("size", "said"),
        [
            ((LONGEST_SIDE + 1, 1000), "pixels are too many"),
            ((2000, 2), "too long a strip"),
            ((1, 33), "too long a strip"),
        ],
    )
    def test_are_refused(self, root: Path, refused: Callable[..., list[str]], size: tuple[int, int], said: str) -> None:
        Image.new("L", size).save(picture(root))
        assert any("train_000.jpg: cannot be used: its" in problem and said in problem for problem in refused())

    def test_a_bomb_is_not_decoded(self, root: Path, refused: Callable[..., list[str]]) -> None:
        content = bytearray(mask(root).read_bytes())
        content[16:24] = (60_000).to_bytes(4, "big") * 2
        picture(root).write_bytes(bytes(content))
        assert any("60000x60000" in problem or "decoded" in problem for problem in refused())

    def test_pipes_and_folders(self, root: Path, refused: Callable[..., list[str]]) -> None:
        for image_id, make in (("train_000", os.mkfifo), ("train_001", os.mkdir)):
            picture(root, image_id).unlink()
            make(picture(root, image_id))
        mask(root, "train_002").unlink()
        os.mkfifo(mask(root, "train_002"))
        problems = refused()
        assert len(problems) == 3
        assert all("is no file but a folder, a pipe or a device" in problem for problem in problems)


def test_sentences_on_many_things_are_put_together() -> None:
    few = [About("a", "is odd"), "b is gone", About("c", "is odd")]
    assert together(few) == ["a: is odd", "c: is odd", "b is gone"]
    assert together([About(one, "is odd") for one in "abcde"]) == ["5 times, a, b, c among them: is odd"]


def test_a_link_placed_in_advance_is_not_followed(root: Path, prepared: Prepare, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "files").mkdir(parents=True)
    (elsewhere / "keep").write_text("mine")
    (tmp_path / ".prepared.partial").symlink_to(elsewhere)
    prepared()
    assert sorted(file.name for file in elsewhere.rglob("*")) == ["files", "keep"]


def test_small_pictures_are_read(root: Path, prepared: Prepare) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (3, 8, 3), np.uint8)).save(picture(root))
    write_labels(mask(root), np.ones((3, 8), np.uint8))
    assert read_manifest(prepared() / "manifest.parquet")["train_000"].width == 8
