"""Data sets in WebDataset tars: what is packed, what is refused, and that results are those of the folder."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.config.data import ShapesParams, VocParams
from segcore.config.settings import load
from segcore.data import tars
from segcore.data.addresses import Member
from segcore.data.batches import Samples, Stream
from segcore.data.manifest import read_manifest, write_manifest
from segcore.data.order import Order
from segcore.data.samples import INDEX as CROPS
from segcore.data.samples import CropSamples, LabelledImages, TaggedImages
from segcore.errors import Problem
from segcore.exchange import packs
from segcore.importers import shapes, voc
from segcore.importers.webdataset import INDEX, SHARDS
from stages import prepare
from tests.devkit import make_devkit, voc_section
from tests.tiny import STAGES, files, run_stages, tiny_dataset, tiny_params


def all_of(items: Any, total: int) -> Any:
    return items


def shards_section(root: str | Path, **changes: Any) -> dict[str, Any]:
    section = {"layout": "webdataset", "name": "tiny", "root": str(root), "shards": None, "convert_palette": False}
    return section | {"sixteen_bit": "full", "duplicates": "refuse"} | changes


def packed(root: Path, into: Path, most_bytes: int = 20_000, **changes: Any) -> packs.Packed:
    dataset = VocParams.model_validate(voc_section(root) | changes)
    return packs.pack(voc.read(root, dataset), into, most_bytes, all_of)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny data set as a folder `voc`, packed in `shards`, and the working directory."""
    monkeypatch.chdir(tmp_path)
    tiny_dataset(tmp_path)
    packed(Path("voc"), Path("shards"))
    return tmp_path


def prepared(**changes: Any) -> Path:
    params = tiny_params(Path("of_shards.yaml"), dataset=shards_section("shards", **changes))
    prepare.main(out=Path("prepared"), params=params)
    return Path("prepared")


class TestPacking:
    def test_the_same_folder_gives_the_same_bytes(self, tmp_path: Path) -> None:
        make_devkit(tmp_path / "voc")
        packed(tmp_path / "voc", tmp_path / "one")
        for path in (tmp_path / "voc").rglob("*"):
            os.utime(path, (1, 1))
            path.chmod(0o700)
        packed(tmp_path / "voc", tmp_path / "two")
        assert files(tmp_path / "one") == files(tmp_path / "two")

    def test_a_shard_holds_pictures_tags_and_masks(self, folder: Path) -> None:
        first, *_ = sorted((folder / "shards").glob("train-*.tar"))
        with tarfile.open(first) as tar:
            assert tar.getnames()[:3] == ["train_000.jpg", "train_000.json", "train_000.png"]
            picture = tar.extractfile("train_000.jpg")
            assert picture is not None
            assert picture.read() == (folder / "voc/JPEGImages/train_000.jpg").read_bytes()
            one = tar.getmember("train_000.png")
            assert (one.mtime, one.uid, one.gid, one.uname, one.mode) == (0, 0, 0, "", 0o644)

    def test_shards_are_as_large_as_asked_for_and_of_one_split(self, folder: Path) -> None:
        found = json.loads((folder / "shards" / SHARDS).read_text())["shards"]
        assert [one["name"][:5] for one in found] == sorted(one["name"][:5] for one in found)
        assert sum(one["images"] for one in found) == 14
        assert len(found) > 2
        for one in found:
            path = folder / "shards" / one["name"]
            assert path.stat().st_size == one["bytes"] <= 20_000 + 2 * tarfile.RECORDSIZE
            assert hashlib.sha256(path.read_bytes()).hexdigest() == one["sha256"]

    def test_the_index_of_shards_that_are_there_is_that_of_the_packer(self, folder: Path) -> None:
        classes = (folder / "voc/classes.txt").read_text().split()
        packs.index(sorted(str(path) for path in (folder / "shards").glob("*.tar")), classes, folder / "again")
        for name in (INDEX, SHARDS):
            assert (folder / "again" / name).read_bytes() == (folder / "shards" / name).read_bytes()

    def test_pictures_that_are_pngs_have_another_ending_than_masks(self, tmp_path: Path) -> None:
        params = ShapesParams(
            layout="shapes", name="shapes", root="x", classes=3, train_images=2, val_images=1, size=64, max_objects=1
        )
        shapes.generate(tmp_path / "shapes", params, 0)
        listing = voc.read(tmp_path / "shapes", shapes.as_devkit(tmp_path / "shapes"))
        packs.pack(listing, tmp_path / "out", 10**9, all_of)
        with tarfile.open(tmp_path / "out/val-00000.tar") as tar:
            assert tar.getnames() == ["val_00001.image.png", "val_00001.json", "val_00001.png"]

    def test_tags_and_difficult_ones_go_along(self, tmp_path: Path) -> None:
        make_devkit(tmp_path / "voc")
        lines = "".join(f"train_{i:03d},{'circle square star'}\n" for i in range(6))
        lines += "".join(f"val_{i:03d},{'circle square star'}\n" for i in range(3))
        (tmp_path / "voc/tags.csv").write_text(f"image_id,tags\n{lines}")
        packed(tmp_path / "voc", tmp_path / "out", tags={"kind": "csv", "file": "tags.csv"})
        table = pq.read_table(tmp_path / "out" / INDEX)
        assert table.column("tags").to_pylist() == [["circle", "square", "star"]] * 9

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda root: (root / "JPEGImages/train_001.jpg").unlink(), "train_001.jpg: this file is missing"),
            (lambda root: (root / "SegmentationClass/val_001.png").unlink(), "val_001.png: this file is missing"),
            (lambda root: (root / "ImageSets/Segmentation/val.txt").write_text(""), "this list is empty"),
        ],
    )
    def test_what_is_wrong_is_told_and_nothing_is_written(
        self, tmp_path: Path, damage: Callable[[Path], object], said: str
    ) -> None:
        make_devkit(tmp_path / "voc")
        damage(tmp_path / "voc")
        with pytest.raises(Problem, match=said):
            packed(tmp_path / "voc", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_ids_with_dots_are_refused(self, tmp_path: Path) -> None:
        make_devkit(tmp_path / "voc")
        for path in (tmp_path / "voc").rglob("train_001.*"):
            path.rename(path.with_name(f"train.001{path.suffix}"))
        lists = tmp_path / "voc/ImageSets/Segmentation/train.txt"
        lists.write_text(lists.read_text().replace("train_001", "train.001"))
        with pytest.raises(Problem, match="'train.001' hold dots"):
            packed(tmp_path / "voc", tmp_path / "out")

    def test_nothing_is_written_over(self, folder: Path) -> None:
        before = files(folder / "shards")
        with pytest.raises(Problem, match="holds shards already"):
            packed(Path("voc"), Path("shards"))
        assert files(folder / "shards") == before

    def test_a_failure_leaves_no_half_shard_and_no_index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_devkit(tmp_path / "voc")
        add, calls = tars.Writer.add, iter(range(100))

        def full(self: tars.Writer, *arguments: Any) -> None:
            if next(calls) == 10:
                raise OSError(28, "No space left on device")
            add(self, *arguments)

        monkeypatch.setattr(tars.Writer, "add", full)
        with pytest.raises(Problem, match="could not be written"):
            packed(tmp_path / "voc", tmp_path / "out", 10**9)
        assert list((tmp_path / "out").iterdir()) == []


def archive(kind: int, **info: Any) -> bytes:
    """A tar of one small picture, one of whose facts is another."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        one = tarfile.TarInfo(info.pop("name", "a.jpg"))
        one.size = 4
        for key, value in info.items():
            setattr(one, key, value)
        tar.addfile(one, io.BytesIO(b"abcd"))
    return file.getvalue()


def listed(content: bytes) -> list[tars.Range]:
    return [member for member, _ in tars.members(io.BytesIO(content))]


class TestReadingTars:
    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    @pytest.mark.parametrize("name", ["a.jpg", "ä" * 40 + ".jpg", "x" * 95 + ".jpg"])
    def test_members_are_where_python_finds_them(self, kind: int, name: str) -> None:
        content = archive(kind, name=name)
        (found,) = listed(content)
        assert (found.name, content[found.offset : found.offset + found.size]) == (name, b"abcd")

    @pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_long_names_and_exact_times(self, kind: int) -> None:
        content = archive(kind, name="x" * 180 + ".jpg", mtime=1.25)
        (found,) = listed(content)
        assert (found.name, content[found.offset : found.offset + 4]) == ("x" * 180 + ".jpg", b"abcd")

    def test_a_tar_of_the_systems_own(self, folder: Path) -> None:
        (folder / "one").mkdir()
        for name in ("a.jpg", "a.json"):
            (folder / "one" / name).write_bytes(name.encode() * 300)
        subprocess.run(["tar", "-cf", "own.tar", "-C", "one", "./a.jpg", "./a.json"], check=True)
        content = (folder / "own.tar").read_bytes()
        for member in listed(content):
            assert content[member.offset :][: member.size] == (folder / "one" / member.name).read_bytes()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (archive(tarfile.PAX_FORMAT, name="../a.jpg"), r"holds the name '../a.jpg'"),
            (archive(tarfile.PAX_FORMAT, name="/etc/passwd"), r"holds the name '/etc/passwd'"),
            (archive(tarfile.USTAR_FORMAT, name="d" * 90 + "/" + "a" * 60 + ".jpg"), "without any folder"),
            (archive(tarfile.PAX_FORMAT, name="a\nb.jpg"), "holds the name"),
            (archive(tarfile.PAX_FORMAT, name=".hidden.jpg"), "holds the name"),
            (archive(tarfile.GNU_FORMAT, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "which is a link"),
            (archive(tarfile.GNU_FORMAT, type=tarfile.LNKTYPE, linkname="b.jpg"), "which is a hard link"),
            (archive(tarfile.GNU_FORMAT, type=tarfile.FIFOTYPE), "which is a pipe"),
            (archive(tarfile.GNU_FORMAT, type=tarfile.DIRTYPE, name="a"), "without any folder"),
            (archive(tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 100_000}), "has a header of 100,"),
            (archive(tarfile.PAX_FORMAT)[:700], "is cut off"),
            (archive(tarfile.PAX_FORMAT)[:1024], "has no end"),
            (archive(tarfile.PAX_FORMAT)[:300], "ends in the middle of a header"),
            (archive(tarfile.PAX_FORMAT) + archive(tarfile.PAX_FORMAT), "holds more behind its end"),
            (b"\x1f\x8b" + bytes(1000), "unpack it by gunzip"),
            (b"<html>" + bytes(1000), "is no tar, or damaged"),
            (b"", "has no end"),
        ],
    )
    def test_what_is_refused(self, content: bytes, said: str) -> None:
        with pytest.raises(tars.NoTar, match=said):
            listed(content)

    def test_a_size_that_a_header_merely_claims_takes_no_memory(self) -> None:
        content = bytearray(archive(tarfile.GNU_FORMAT))
        content[124:136] = b"77777777777\0"
        content[148:156] = b"%06o\0 " % sum(content[:148] + b" " * 8 + content[156:512])
        with pytest.raises(tars.NoTar, match="is cut off: a member at byte 512 should go on for 8,589,"):
            listed(bytes(content))

    def test_damage_anywhere_is_no_tar_or_tells_ranges_within(self) -> None:
        whole, rng = archive(tarfile.PAX_FORMAT, name="ä" * 80 + ".jpg", mtime=0.5), np.random.default_rng(0)
        for _ in range(400):
            content = bytearray(whole)
            content[rng.integers(2048)] = rng.integers(256)
            with contextlib.suppress(tars.NoTar):
                assert all(member.offset + member.size <= len(content) for member in listed(bytes(content)))


def tar_of(path: Path, **members: bytes) -> str:
    with path.open("wb") as file:
        writer = tars.Writer(file)
        for name, content in members.items():
            writer.add(name.replace("__", "."), io.BytesIO(content), len(content))
        writer.close()
    return str(path)


class TestIndexing:
    @pytest.mark.parametrize(
        ("members", "said"),
        [
            ({"a__png": b"x"}, "has no picture of 'a'"),
            ({"a__jpg": b"x", "a__jpeg": b"x"}, "has two pictures of 'a'"),
            ({"a__jpg": b"x", "a__json": b"["}, "'a.json' cannot be read as JSON with tags"),
            ({"a__jpg": b"x", "a__json": b"[1]"}, "it is no object"),
            ({"a__jpg": b"x", "a__json": b'{"tags": "cat"}'}, "its tags are no list of names"),
            ({"a__jpg": b"x", "a__json": b'{"width": -1}'}, "no number of pixels"),
            ({"a__jpg": b"x", "a__json": b"[" * 50_000}, "cannot be read as JSON"),
            ({"a__jpg": b"x", "a__json": b" " * 70_000}, "allowed are 65,536"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, members: dict[str, bytes], said: str) -> None:
        with pytest.raises(Problem, match=said):
            packs.index([tar_of(tmp_path / "train-0.tar", **members)], ["background", "cat"], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_other_members_are_counted(self, tmp_path: Path) -> None:
        tar = tar_of(tmp_path / "train-0.tar", a__jpg=b"x", a__txt=b"x", b__jpg=b"y", b__txt=b"z")
        assert packs.index([tar], ["background", "cat"], tmp_path).ignored == {"txt": 2}


class TestPreparing:
    def test_records_are_those_of_the_folder(self, folder: Path) -> None:
        prepare.main(out=Path("of_folder"), params=Path("params.yaml"))
        expected, found = (read_manifest(Path(name) / "manifest.parquet") for name in ("of_folder", prepared()))
        assert list(found) == list(expected)
        assert all(isinstance(record.image, Member) and isinstance(record.labels, Member) for record in found.values())
        away = {"image": Path(), "labels": None}
        assert [replace(one, **away) for one in found.values()] == [replace(one, **away) for one in expected.values()]
        cards = [json.loads((Path(name) / "dataset.json").read_text()) for name in ("of_folder", "prepared")]
        assert cards[0]["fingerprint"] == cards[1]["fingerprint"]

    def test_the_manifest_names_shard_offset_and_size(self, folder: Path) -> None:
        table = pq.read_table(prepared() / "manifest.parquet").to_pylist()
        for line in table:
            content = Path(line["image_shard"]).read_bytes()[line["image_offset"] :][: line["image_size"]]
            assert hashlib.sha256(content).hexdigest() == line["image_sha256"]
            assert line["image"] == f"{line['image_id']}.jpg"

    def test_files_and_members_may_be_mixed(self, folder: Path) -> None:
        """What had to be converted is a file of its own."""
        records = list(read_manifest(prepared() / "manifest.parquet").values())
        records[1] = replace(records[1], labels=Path("files/a.png"))
        records[2] = replace(records[2], image=Path("files/b.png"), labels=None, labels_sha256=None, label_classes=None)
        write_manifest(Path("mixed.parquet"), records)
        found = read_manifest(Path("mixed.parquet"))
        assert list(found.values()) == records == [found[record.image_id] for record in records]
        assert [*found.of_split("val")] == [record for record in records if record.split == "val"]

    @pytest.mark.parametrize(("column", "value"), [("image_offset", 0), ("image_size", -1), ("image_offset", None)])
    def test_a_manifest_with_an_odd_member_is_none(self, folder: Path, column: str, value: int | None) -> None:
        table = pq.read_table(prepared() / "manifest.parquet")
        place, values = table.column_names.index(column), [value, *table.column(column).to_pylist()[1:]]
        pq.write_table(table.set_column(place, column, pa.array(values, pa.int64())), "odd.parquet")
        with pytest.raises(Problem, match="train_000: its image is at byte"):
            read_manifest(Path("odd.parquet"))

    def test_a_prepared_set_may_be_read_from_another_place(self, folder: Path) -> None:
        (folder / "elsewhere").mkdir()
        for tar in (folder / "shards").glob("*.tar"):
            tar.rename(folder / "elsewhere" / tar.name)
        records = read_manifest(prepared(shards="elsewhere") / "manifest.parquet")
        assert isinstance(first := records["train_000"].image, Member)
        assert first.shard == "elsewhere/train-00000.tar"

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda root: (root / SHARDS).unlink(), "no index of shards .there is no such file"),
            (lambda root: (root / SHARDS).write_text("[" * 9000), "no index of shards"),
            (lambda root: (root / SHARDS).write_text('{"format": 9}'), "its format is 9"),
            (lambda root: (root / INDEX).write_bytes(b"PAR1"), "no index of shards"),
            (lambda root: (root / "val-00000.tar").unlink(), "val-00000.tar: this shard is missing"),
            (lambda root: cut(root / "val-00000.tar"), "val-00000.tar: has .* bytes and its index says"),
            (lambda root: noise(root / "val-00000.tar"), "val-00000.tar/val_000.jpg: "),
            (lambda root: change(root, "tags", [["dragon"]] * 14), "'dragon' is no class"),
            (lambda root: change(root, "shard", ["../x.tar"] * 14), "which shards.json does not list"),
            (lambda root: change(root, "image_id", ["a"] * 14), "'a' are listed more than once"),
            (lambda root: change(root, "image_id", ["../a"] * 14), "an image id is a file name without its folder"),
            (lambda root: change(root, "picture_offset", [10**12] * 14), "which has"),
            (lambda root: change(root, "picture_size", [-1] * 14), "which has"),
            (lambda root: change(root, "labels_name", [None] * 14), "has neither tags in its .json nor a mask"),
        ],
    )
    def test_what_is_refused(self, folder: Path, damage: Callable[[Path], object], said: str) -> None:
        damage(folder / "shards")
        with pytest.raises(Problem, match=said):
            prepared()
        assert not Path("prepared/manifest.parquet").exists()

    def test_a_root_that_is_an_address_is_told_where_addresses_go(self, folder: Path) -> None:
        with pytest.raises(Problem, match="an address of tars goes to dataset.shards"):
            load(tiny_params(Path("x.yaml"), dataset=shards_section("s3://bucket/x")))

    def test_a_shard_that_is_gone_or_cut_later_is_told(self, folder: Path) -> None:
        record = read_manifest(prepared() / "manifest.parquet")["val_000"]
        samples = TaggedImages([record], 3, 72, 64)
        cut(folder / "shards/val-00000.tar", 600)
        with pytest.raises(Problem, match=r"val-00000.tar/val_000.jpg cannot be read"):
            samples.sample(0, 0)
        (folder / "shards/val-00000.tar").unlink()
        with pytest.raises(Problem, match=r"val-00000.tar/val_000.jpg cannot be read \(No such file"):
            samples.sample(0, 0)


def cut(path: Path, size: int = 1000) -> None:
    path.write_bytes(path.read_bytes()[:size])


def noise(path: Path) -> None:
    """Other bytes, as many, where the first picture lies."""
    content = bytearray(path.read_bytes())
    content[520:900] = bytes(380)
    path.write_bytes(content)


def change(root: Path, column: str, values: list[Any]) -> None:
    table = pq.read_table(root / INDEX)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, table.schema.field(column).type)), root / INDEX)


def batches(samples: Samples, workers: int = 0) -> str:
    """A sum of the batches of a few steps."""
    digest = hashlib.sha256()
    for step in Stream(samples, Order.of(samples, 4, 2, seed=3), workers).steps(0, 4):
        for batch in step:
            digest.update(repr(batch.ids).encode())
            for part in (batch.images, batch.tags, batch.labels):
                digest.update(part.numpy().tobytes())
    return digest.hexdigest()


class TestEqualResults:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_batches_are_those_of_the_folder(self, folder: Path, workers: int) -> None:
        run_stages("prepare", "split", "make_crops", params=Path("params.yaml"))
        index = pd.read_parquet(Path("crops") / CROPS)
        sums = []
        for manifest in (Path("data/manifest.parquet"), prepared() / "manifest.parquet"):
            records = read_manifest(manifest)
            strong = records.of_split("train")
            masks = [record.labels for record in strong]
            of_all = [TaggedImages(strong, 3, 72, 64), CropSamples(index, records, 3, 72, 64)]
            of_all.append(LabelledImages(strong, masks, 3, 65, (0.5, 1.5)))
            sums.append([batches(samples, workers) for samples in of_all])
        assert sums[0] == sums[1]

    def test_every_stage_gives_the_same(self, folder: Path) -> None:
        run_stages(*STAGES)
        expected = results()
        for name in ("data", "split", "masks", "classifier", "crops", "segmenter", "results", ".scratch"):
            Path(name).rename(f"former_{name}")
        params = tiny_params(Path("of_shards.yaml"), dataset=shards_section("shards"))
        run_stages(*STAGES, params=params)
        assert results() == expected


def results() -> dict[str, str]:
    """Sums of what stages made, apart from where pictures lie and how they were laid out, and from times."""
    found = {}
    for folder in ("split", "masks", "classifier", "crops", "segmenter", "results"):
        for name, content in files(Path(folder)).items():
            if "training/" not in name and Path(name).name not in ("panels.png", "timings.json"):
                found[f"{folder}/{name}"] = hashlib.sha256(content).hexdigest()
    assert {"split/weak.txt", "classifier/metrics.json", "crops/crops.parquet", "results/metrics.json"} <= found.keys()
    assert any(name.endswith(".safetensors") for name in found)
    return found
