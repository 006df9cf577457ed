"""The page's server: what it opens, predicts and saves, and whom it refuses."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segcore
from segcore.data.manifest import read_manifest
from segcore.data.pictures import read_labels, voc_palette
from segcore.errors import Problem
from segcore.importers import annotations
from segcore.serving import data_set as data_sets
from segcore.serving import local, photos, saving, tagging
from segcore.serving.server import MODULES
from segcore.serving.tagging import in_annotation, in_table
from tests.devkit import PROJECT, draw
from tests.serving import MODEL, PREPARED, SIZE, Client, make_project, page_of, prepare, running, train
from tests.tiny import files

WIDTH, HEIGHT = SIZE


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("served"))


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, in whose folder the test runs."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def client(project: Path) -> Iterator[Client]:
    with running(page_of(project)) as address:
        yield Client(address)


def photograph(seed: int = 5, size: tuple[int, int] = (70, 50), **options: Any) -> bytes:
    picture, _ = draw(size, [1, 2], np.random.default_rng(seed))
    return encoded(Image.fromarray(picture), **{"format": "JPEG", "quality": 95} | options)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def lines(path: Path) -> list[str]:
    return path.read_text().split()


def tags_of(project: Path) -> dict[str, str]:
    with (project / "voc/tags.csv").open(newline="") as file:
        return {row["image_id"]: row["tags"] for row in csv.DictReader(file)}


class TestPredict:
    def test_a_photo_is_predicted_as_by_the_library(self, client: Client, project: Path) -> None:
        content = photograph()
        photo = client.upload(content, "cup & tea.jpg").json
        assert (photo["width"], photo["height"], photo["place"], photo["id"]) == (70, 50, None, "cup_tea")
        answer = client.ask("POST", f"api/photos/{photo['key']}/prediction")
        (project / "photo.jpg").write_bytes(content)
        model = segcore.load(project / MODEL, device="cpu")
        expected = model.predict_all([photos.Photos().add(content, "photo.jpg").pixels])[0]
        assert np.array_equal(answer.pixels, expected.labels)
        assert np.array_equal(answer.pixels, model.predict(project / "photo.jpg"))
        summary = json.loads(answer.headers["X-Summary"])
        assert summary["probabilities"] == pytest.approx(expected.probabilities.tolist(), abs=1e-4)
        assert summary["shares"] == pytest.approx(expected.shares.tolist(), abs=1e-5)

    def test_only_the_tags_that_are_named(self, client: Client) -> None:
        photo = client.upload(photograph()).json
        found = client.ask("POST", f"api/photos/{photo['key']}/prediction?tag=star").pixels
        assert {*np.unique(found).tolist()} <= {0, 3}
        assert "knows no 'cow'" in client.ask("POST", f"api/photos/{photo['key']}/prediction?tag=cow").problem

    def test_a_map_is_the_probability_of_its_class(self, client: Client) -> None:
        photo = client.upload(photograph()).json
        maps = [client.ask("GET", f"api/photos/{photo['key']}/map?class={name}").pixels for name in ("circle", "star")]
        assert all(20 <= side <= 100 for side in maps[0].shape), "about a value a pixel, stretched over the photo"
        answer = client.ask("POST", f"api/photos/{photo['key']}/prediction")
        told = json.loads(answer.headers["X-Summary"])["probabilities"]
        assert maps[0].max() / 255 == pytest.approx(told[1], abs=0.003)
        assert maps[1].max() / 255 == pytest.approx(told[3], abs=0.003)
        assert client.ask("GET", f"api/photos/{photo['key']}/map?class=background").status == local.MISTAKE

    def test_turned_and_transparent_pictures_are_as_a_person_sees_them(self, client: Client) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        photo = client.upload(photograph(exif=exif)).json
        assert (photo["width"], photo["height"]) == (50, 70)
        with Image.open(io.BytesIO(client.ask("GET", f"api/photos/{photo['key']}/picture").body)) as image:
            assert image.size == (50, 70)
            assert image.getexif().get(0x0112, 1) == 1
        layer = Image.new("RGBA", (40, 30), (200, 100, 50, 0))
        photo = client.upload(encoded(layer, format="PNG"), "layer.png").json
        with Image.open(io.BytesIO(client.ask("GET", f"api/photos/{photo['key']}/picture").body)) as image:
            assert image.getpixel((5, 5)) == (0, 0, 0)
        assert client.ask("POST", f"api/photos/{photo['key']}/prediction").pixels.shape == (30, 40)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "is empty"),
            (b"%PDF-1.7 ...", "is a PDF document"),
            (photograph()[:900], "cannot be decoded whole"),
            (encoded(Image.new("L", (20_000, 2)), format="PNG"), "its 20000x2 pixels are too many"),
            (encoded(Image.new("1", (9_000, 9_000)), format="PNG"), "has 9000x9000 pixels; the page shows 50 million"),
        ],
    )
    def test_what_is_no_picture_is_told_in_a_sentence(self, client: Client, content: bytes, said: str) -> None:
        problem = client.upload(content, "x.jpg").problem
        assert problem.startswith("x.jpg ")
        assert said in problem

    def test_too_large_a_file_is_refused(self, client: Client) -> None:
        answer = client.upload(bytes(photos.MOST_BYTES + 1))
        assert answer.status == local.TOO_LARGE
        assert "more than 64 MiB" in answer.json["problem"]

    def test_only_the_last_photos_stay_open(self, client: Client) -> None:
        first = client.upload(photograph(0)).json
        for seed in range(1, photos.HELD + 1):
            client.upload(photograph(seed))
        assert "open no more" in client.ask("GET", f"api/photos/{first['key']}/picture").problem


class TestSave:
    def test_a_new_photo_is_learned_from(self, client: Client, project: Path) -> None:
        before = files(project / "voc")
        content = photograph()
        photo = client.upload(content, "My cup.jpeg").json
        labels = np.zeros((50, 70), np.uint8)
        labels[10:30, 5:40], labels[:3] = 2, 255
        saved = client.save(photo, labels)
        assert saved.status == 200, saved.body
        assert saved.json["photo"] | {"key": ""} == {
            "key": "", "name": "My cup.jpeg", "width": 70, "height": 50, "id": "My_cup", "place": "train",
            "masked": True, "tags": ["square"],
        }  # fmt: skip
        assert (saved.json["listed"], saved.json["replaced"]) == ("train", None)
        after = files(project / "voc")
        assert after.pop("JPEGImages/My_cup.jpg") == content
        mask = after.pop("SegmentationClass/My_cup.png")
        with Image.open(io.BytesIO(mask)) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), labels)
            assert np.array_equal(np.asarray(image.convert("RGB")), voc_palette()[labels])
        assert after.pop("tags.csv") == before.pop("tags.csv") + b"My_cup,square\n"
        name = "ImageSets/Segmentation/train.txt"
        assert after.pop(name) == before.pop(name) + b"My_cup\n"
        assert after == before
        prepare()
        record = read_manifest(PREPARED["manifest"])["My_cup"]
        assert (record.split, record.tags, record.label_classes) == ("train", (2,), (2,))
        assert "My_cup" in lines(project / "data/tiny/split/strong.txt")

    def test_a_mask_that_is_replaced_is_kept(self, client: Client, project: Path) -> None:
        mask = project / "voc/SegmentationClass/train_000.png"
        first = mask.read_bytes()
        photo = client.open("train_000").json
        assert (photo["masked"], photo["tags"], photo["place"]) == (True, ["circle"], "train")
        assert np.array_equal(client.ask("GET", f"api/photos/{photo['key']}/mask").pixels, read_labels(mask))
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        labels[5:9] = 3
        saved = client.save(photo, labels, tags="circle").json
        assert np.array_equal(read_labels(mask), labels)
        assert Path(saved["replaced"]).read_bytes() == first
        assert (saved["listed"], saved["tags"]) == (None, ["circle", "star"])
        second = mask.read_bytes()
        again = client.save(photo, np.where(labels > 0, 2, labels).astype(np.uint8)).json
        assert again["replaced"] != saved["replaced"]
        assert Path(again["replaced"]).read_bytes() == second
        assert tags_of(project)["train_000"] == "square"
        prepare()
        assert read_manifest(PREPARED["manifest"])["train_000"].label_classes == (2,)

    def test_the_next_training_learns_from_a_corrected_mask(self, client: Client, project: Path) -> None:
        weights, mask = project / MODEL / "model/model.safetensors", project / "voc/SegmentationClass/train_000.png"
        first, given = weights.read_bytes(), read_labels(mask)
        photo = client.open("train_000").json
        learned = []
        for labels in (np.roll(given, 9, axis=1), given):
            assert client.save(photo, labels).status == 200
            prepare()
            assert "train_000" in lines(project / "data/tiny/split/strong.txt")
            train()
            learned.append(weights.read_bytes())
        assert learned[0] != first, "another mask, another model"
        assert learned[1] == first, "the former mask again, and nothing else was changed"

    def test_a_turned_photo_has_its_mask_as_a_person_sees_it(self, client: Client, project: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        photo = client.upload(photograph(exif=exif), "turned.jpg").json
        labels = np.zeros((70, 50), np.uint8)
        labels[:20] = 1
        assert client.save(photo, labels).status == 200
        assert read_labels(project / "voc/SegmentationClass/turned.png").shape == (70, 50)
        prepare()
        record = read_manifest(PREPARED["manifest"])["turned"]
        assert (record.width, record.height) == (50, 70)
        again = client.open("turned").json
        assert client.save(again, labels).status == 200

    def test_other_formats_become_pngs(self, client: Client, project: Path) -> None:
        picture, _ = draw((33, 44), [1], np.random.default_rng(3))
        photo = client.upload(encoded(Image.fromarray(picture), format="BMP"), "scan.bmp").json
        assert client.save(photo, np.ones((44, 33), np.uint8)).status == 200
        with Image.open(project / "voc/JPEGImages/scan.png") as image:
            assert np.array_equal(np.asarray(image), picture)

    def test_validation_images_stay_unless_it_is_said(self, client: Client, project: Path) -> None:
        before = files(project / "voc")
        photo = client.open("val_000").json
        labels = np.ones((HEIGHT, WIDTH), np.uint8)
        assert "validation image" in client.save(photo, labels).problem
        assert files(project / "voc") == before
        with running(page_of(project, correct_val=True)) as address:
            other = Client(address)
            assert other.save(other.open("val_000").json, labels, tags="circle").status == 200
        assert lines(project / "voc/ImageSets/Segmentation/train.txt") == [f"train_00{k}" for k in range(6)]

    @pytest.mark.parametrize(
        "image_id",
        [
            "",
            "../out",
            "a/b",
            "a\\b",
            ".hidden",
            "two words",
            "new\nline",
            "x" * 201,
            "train_000",
            "TRAIN_001",
            "a.png",
        ],
    )
    def test_ids_that_lead_elsewhere_or_are_taken_are_refused(
        self, client: Client, project: Path, image_id: str
    ) -> None:
        before = files(project)
        photo = client.upload(photograph()).json
        assert client.save(photo, np.zeros((50, 70), np.uint8), image_id).status == local.MISTAKE
        assert files(project) == before

    def test_labels_of_no_class_or_another_size_are_refused(self, client: Client, project: Path) -> None:
        before = files(project)
        photo = client.upload(photograph()).json
        assert "Found the label 4" in client.save(photo, np.full((50, 70), 4, np.uint8)).problem
        assert "70x50" in client.save(photo, np.zeros((49, 70), np.uint8)).problem
        assert "knows no 'cow'" in client.save(photo, np.zeros((50, 70), np.uint8), tags="cow").problem
        Image.new("RGB", (9, 9)).save(project / "voc/JPEGImages/train_000.jpg")
        photo = client.open("train_000").json
        Image.new("RGB", (9, 8)).save(project / "voc/JPEGImages/train_000.jpg")
        assert "has changed" in client.save(photo, np.zeros((9, 9), np.uint8)).problem
        assert files(project / "voc/SegmentationClass") == {
            name.removeprefix("voc/SegmentationClass/"): content
            for name, content in before.items()
            if name.startswith("voc/SegmentationClass/")
        }

    def test_nothing_is_written_through_a_link_that_leads_out(self, project: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        shutil.move(project / "voc/SegmentationClass", outside)
        (project / "voc/SegmentationClass").symlink_to(outside)
        before = files(outside)
        with running(page_of(project)) as address:
            client = Client(address)
            photo = client.open("train_000").json
            assert "outside of the data set" in client.save(photo, np.ones((HEIGHT, WIDTH), np.uint8)).problem
        assert files(outside) == before

    def test_a_failure_on_the_way_leaves_what_prepare_takes(
        self, client: Client, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The disk is full after any number of files."""
        labels = np.full((50, 70), 3, np.uint8)
        write, left = saving.write_atomically, 0

        def failing(path: Path, content: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Problem(f"{path} could not be written")
            write(path, content)

        for place in (saving, tagging):
            monkeypatch.setattr(place, "write_atomically", failing)
        for count, image_id in enumerate(("train_000", "train_001", "train_003", "train_004")):
            left, photo = count, client.open(image_id).json
            assert "could not be written" in client.save(photo, labels[:HEIGHT, :WIDTH]).problem
            assert len(files(project / "voc").keys() & {f"replaced/{image_id}.1.png"}) == (count > 2)
            prepare()
        photo = client.upload(photograph()).json
        for count in range(4):
            left = count
            assert "could not be written" in client.save(photo, labels, f"new{count}").problem
            assert not [*project.glob("voc/*/new*")]
            prepare()
        left = 4  # the photo is still open, and nothing of the failures stands in its way
        assert client.save(photo, labels, "new3").status == 200
        assert not [*project.rglob("*.partial")]

    def test_a_photo_of_the_data_set_is_known_again(self, client: Client, project: Path) -> None:
        photo = client.upload((project / "voc/JPEGImages/train_002.jpg").read_bytes(), "copy.jpg").json
        assert (photo["id"], photo["place"]) == ("train_002", "train")

    def test_an_unlisted_photo_joins_the_list(self, client: Client, project: Path) -> None:
        (project / "voc/JPEGImages/more.jpg").write_bytes(photograph())
        (project / "voc/ImageSets/Segmentation/unlabelled.txt").write_text("more\nother\n")
        places = {one["id"]: one["place"] for one in client.ask("GET", "api/pictures").json}
        assert places["more"] == "unlisted"
        saved = client.save(client.open("more").json, np.ones((50, 70), np.uint8)).json
        assert saved["listed"] == "train"
        assert lines(project / "voc/ImageSets/Segmentation/unlabelled.txt") == ["other"]
        assert tags_of(project)["more"] == "circle"

    def test_without_a_data_set_one_may_look(self, project: Path) -> None:
        with running(page_of(project, data=False)) as address:
            client = Client(address)
            photo = client.upload(photograph()).json
            assert client.ask("POST", f"api/photos/{photo['key']}/prediction").status == 200
            assert client.ask("GET", "api/pictures").json == []
            assert "--data" in client.save(photo, np.zeros((50, 70), np.uint8)).problem
            assert "--data" in client.open("train_000").problem


class TestWhoIsRefused:
    def test_other_names_of_this_machine(self, client: Client) -> None:
        port = client.parts.port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost:1"):
            assert client.ask("GET", "api/about", Host=host).status == 200
        for host in (f"evil.example:{port}", "127.0.0.1.evil.example", f"[::1]:{port}", ""):
            assert client.ask("GET", "api/about", Host=host).status == local.FORBIDDEN

    def test_requests_of_other_sites(self, client: Client) -> None:
        own = f"http://127.0.0.1:{client.parts.port}"
        assert client.ask("POST", "api/photos?id=train_000", Origin=own).status == 200
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            assert client.ask("POST", "api/photos?id=train_000", Origin=origin).status == local.FORBIDDEN
        assert client.ask("GET", "api/about", Sec_Fetch_Site="cross-site").status == local.FORBIDDEN
        assert client.ask("GET", "", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200

    def test_who_does_not_know_the_secret(self, client: Client) -> None:
        for path in ("/", "/api/about", "/page.js", "/wrong/api/about"):
            assert client.ask("GET", path).status == 404

    def test_nothing_comes_from_elsewhere_and_nothing_is_cached(self, client: Client) -> None:
        for name in ("", "page.css", *(f"{one}.js" for one in MODULES)):
            answer = client.ask("GET", name)
            assert answer.status == 200
            assert b"http" not in answer.body.replace(b"http-equiv", b"")
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")

    def test_pictures_are_found_by_their_ids_alone(self, client: Client) -> None:
        small = client.ask("GET", "api/pictures/train_000/thumbnail")
        with Image.open(io.BytesIO(small.body)) as image:
            assert max(image.size) <= photos.THUMBNAIL
        for image_id in ("..%2F..%2Fparams", "%2Fetc%2Fpasswd", "nothing"):
            assert client.ask("GET", f"api/pictures/{image_id}/thumbnail").status == local.MISTAKE


class TestTags:
    """Tables and annotations, changed for one image."""

    @pytest.mark.parametrize(
        ("table", "expected"),
        [
            ("image_id,tags\na,cat\nb,dog\n", "image_id,tags\na,cat\nb,dog bus\n"),
            ("image_id,tags\na,cat", "image_id,tags\na,cat\nb,dog bus\n"),
            ("\ufeffimage_id,tags\r\nb,\r\n", "\ufeffimage_id,tags\r\nb,dog bus\r\n"),
            ('note,tags,image_id\n"x, y",cat,b\n', 'note,tags,image_id\n"x, y",dog bus,b\n'),
            ("tags,image_id,note\n", "tags,image_id,note\ndog bus,b,\n"),
        ],
    )
    def test_a_table_keeps_its_other_lines(self, table: str, expected: str) -> None:
        assert in_table(table, "b", ["dog", "bus"], Path("tags.csv")) == expected

    def test_a_table_without_its_columns_is_refused(self) -> None:
        with pytest.raises(Problem, match="image_id,tags"):
            in_table("id;tags\n", "b", ["dog"], Path("tags.csv"))

    def test_annotations_name_what_the_mask_shows(self, tmp_path: Path) -> None:
        labels = np.zeros((20, 30), np.uint8)
        labels[5:9, 10:20] = 2
        index = {"background": 0, "cat": 1, "dog": 2}
        file = tmp_path / "a.xml"
        file.write_text(in_annotation("", "a", ["dog"], [], labels, index, file))
        assert annotations.read(file, True) == annotations.Annotation([("dog", False)], (30, 20), "a")
        assert "<xmin>11</xmin>" in file.read_text()
        assert "<ymax>9</ymax>" in file.read_text()
        whole = file.read_text().replace("<difficult>0", "<pose>left</pose><difficult>1")
        file.write_text(in_annotation(whole, "a", ["cat", "dog"], [], labels, index, file))
        assert annotations.read(file, True).objects == [("dog", True), ("cat", False)]
        assert "<pose>left" in file.read_text()
        file.write_text(in_annotation(file.read_text(), "a", ["cat"], ["cat"], labels, index, file))
        assert ("dog", True) in annotations.read(file, True).objects, "a difficult object is no tag, and stays"
        file.write_text(in_annotation(file.read_text(), "a", ["cat"], ["cat", "dog"], labels, index, file))
        assert annotations.read(file, False).objects == [("cat", False)]
        with pytest.raises(Problem, match="VOC annotation"):
            in_annotation("<!DOCTYPE x><annotation/>", "a", ["cat"], [], labels, index, file)


class TestDataSets:
    def test_the_project_says_how_it_is_read(self, project: Path) -> None:
        found = data_sets.open_data_set(
            Path("voc"), project / MODEL, None, None, ("background", "circle", "square", "star")
        )
        assert (found.strong, found.params.name, found.params.tags.kind) == ("all", "tiny", "csv")
        shutil.copytree("voc", "elsewhere")
        other = data_sets.open_data_set(Path("elsewhere"), project / MODEL, None, "train", found.listing.classes)
        assert (other.strong, other.params.name, other.params.val_list) == (None, "served", "train")

    def test_what_cannot_be_saved_into_is_refused(self, project: Path) -> None:
        classes = ("background", "circle", "square", "star")
        for root, names, list_, said in (
            ("nowhere", classes, None, "there is no such folder"),
            ("voc", classes[:3], None, "masks of one would mean other things"),
            ("voc", classes, "trainval", "no list trainval.txt; lists there: train, val"),
            ("data/tiny/prepared/files", classes, None, "what the stage prepare makes"),
        ):
            with pytest.raises(Problem, match=said):
                data_sets.open_data_set(Path(root), project / MODEL, list_, None, names)


def test_a_port_that_is_taken_is_told() -> None:
    with local.listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Problem, match=f"--port {port} cannot be used"):
            local.listen(port)


def test_the_command_serves_until_it_is_stopped(project: Path) -> None:
    command = [sys.executable, "-m", "segcore", "serve", str(MODEL), "--data", "voc", "--port", "0", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", "COLUMNS": "300"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first == "voc: 9 pictures; train.txt to learn from, val.txt to measure by; tags from csv\n"
        (address,) = re.findall(r"http://127\.0\.0\.1:\d+/\S+/", second)
        assert Client(address).ask("GET", "api/about").json["data_set"]["strong"] == "all"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "Ctrl-C ends it.\nended\n"
    assert process.returncode == 0
