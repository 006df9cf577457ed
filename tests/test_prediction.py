"""Which pictures are meant, and how many are predicted together."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from segcore.errors import Problem
from segcore.prediction import journal as journals
from segcore.prediction import listing, reading, run, threads, writing
from segcore.prediction.listing import Photo
from segcore.prediction.model import Model, counted
from segcore.prediction.tiles import Tiles
from tests.test_tiles import Convolutions


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


class TestListing:
    def test_folders_patterns_lists_and_files(self, tmp_path: Path) -> None:
        a, b, c, d = (tmp_path / name for name in ("in/a.JPG", "in/sub/b.png", "other/c.tif", "other/d.webp"))
        touch(a, b, c, d, tmp_path / "in/notes.md", tmp_path / "in/.hidden/e.jpg")
        (tmp_path / "list.txt").write_text(f"{d}\nother/c.tif\n\n")
        found = listing.photos([str(tmp_path / "in")])
        assert [(photo.path, photo.name, photo.out) for photo in found] == [
            (a, "a.JPG", "a"),
            (b, "sub/b.png", "sub/b"),
        ]
        assert {photo.path for photo in listing.photos([str(tmp_path / "list.txt")])} == {c, d}
        assert [photo.name for photo in listing.photos([str(tmp_path / "**/*.tif")])] == ["c.tif"]
        assert len(listing.photos([str(a), str(tmp_path / "in")])) == 2

    def test_twins_keep_their_endings(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.png")
        assert [photo.out for photo in listing.photos([str(tmp_path)])] == ["a.jpg", "a.png", "b"]

    def test_what_cannot_be_told_apart_is_refused(self, tmp_path: Path) -> None:
        touch(tmp_path / "one/a.jpg", tmp_path / "two/a.jpg")
        with pytest.raises(Problem, match="would have one name"):
            listing.photos([str(tmp_path / "one"), str(tmp_path / "two")])

    @pytest.mark.parametrize("given", ["nothing", "*.nothing", "."])
    def test_nothing_there(self, tmp_path: Path, given: str) -> None:
        with pytest.raises(Problem, match=r"no such picture|no pictures"):
            listing.photos([str(tmp_path / given)])


def test_an_overlay_shows_objects_in_their_colours() -> None:
    picture = np.full((16, 16, 3), 100, np.uint8)
    labels = np.zeros((16, 16), np.uint8)
    labels[:, 8:] = 1
    with Image.open(io.BytesIO(writing.overlay_jpeg(picture, labels))) as image:
        shown = np.asarray(image).astype(int)
    assert np.abs(shown[:, :6] - 100).max() < 12
    assert np.abs(shown[:, 10:] - [114, 50, 50]).max() < 12


def test_a_journal_that_a_kill_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    journal = journals.Journal(tmp_path, 0, 1)
    (tmp_path / "masks").mkdir()
    for name in "ab":
        (tmp_path / f"masks/{name}.png").touch()
        journal.add({"image": f"{name}.jpg", "stamp": [1, 2], "files": [f"masks/{name}.png"]})
    journal.file.close()
    file = next((tmp_path / journals.FOLDER).iterdir())
    file.write_bytes(file.read_bytes()[:-10])
    again = journals.Journal(tmp_path, 0, 1)
    assert {*again.done} == {"a.jpg"}
    again.add({"image": "b.jpg", "stamp": [1, 2], "files": ["masks/b.png"]})
    again.file.close()
    (tmp_path / "masks/a.png").unlink()
    assert {*journals.Journal(tmp_path, 0, 1).done} == {"b.jpg"}


def model(tiles: Tiles | None = None) -> Model:
    card = {"name": "convolutions", "tags": ["cup", "spoon"], "input_size": 64}
    made = Model(Convolutions("stretch"), card, {"prediction": {}})
    made.tiles = tiles
    return made


def photos_in(folder: Path, *sizes: tuple[int, int]) -> list[Photo]:
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return listing.photos([str(folder)])


def test_threads_compute_on_one_core_and_leave_the_others_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads.helpers(torch.device("cpu")) as beside:
            inside = beside.compute(lambda: (torch.ones(10).sum(), torch.get_num_threads())[1]).result()
            assert (inside, torch.get_num_threads()) == (1, 3)
        found: list[int] = []
        other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert found == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "in_turns"), [(1, True), (2, False)])
def test_a_network_on_all_cores_takes_turns_with_its_helpers(
    cores: int, in_turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cores_here", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    go_on = threading.Event()
    with threads.helpers(torch.device("cpu")) as beside:
        assert beside.in_turns == in_turns
        slow = beside.compute(go_on.wait, 30)
        later = threading.Timer(0.2, go_on.set)
        later.start()
        beside.before_the_network()
        assert slow.done() == in_turns
        go_on.set()
        assert slow.result()


@pytest.mark.parametrize("cores", [1, 99])
def test_pictures_are_the_same_in_turns_and_beside(cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photos_in(tmp_path / "in", (90, 60), (64, 64), (1700, 1300), (40, 80), (50, 50))
    (tmp_path / "weights").touch()
    monkeypatch.setattr(threads, "cores_here", lambda: cores)
    (tmp_path / "in/2.png").write_bytes(b"no picture")
    wanted = run.Wanted(False, False, 2, 0, 1, None)
    done = [*run.predict_folder(model(), tmp_path / "weights", photos, tmp_path / "out", wanted)]
    assert [outcome.photo for outcome in done] == photos
    assert [outcome.problem is None for outcome in done] == [True, True, False, True, True]
    again = [*run.predict_folder(model(), tmp_path / "weights", photos, tmp_path / "out", wanted)]
    assert [outcome.repeated for outcome in again] == [True] * 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("mode", "ending"), [("RGB", "jpg"), ("L", "jpg"), ("RGBA", "png"), ("P", "png")])
def test_pictures_are_read_as_a_person_sees_them(mode: str, ending: str, orientation: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (13, 21, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[reading.TURNED] = orientation
    Image.fromarray(noise).convert(mode).save(tmp_path / f"a.{ending}", exif=exif)
    with Image.open(tmp_path / f"a.{ending}") as image:
        upright = ImageOps.exif_transpose(image).copy().convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright).convert("RGB")
    assert np.array_equal(reading.read_image(tmp_path / f"a.{ending}"), np.asarray(expected))


def test_labels_are_counted_exactly() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (70, 90), dtype=np.uint8)
    for some in (labels, labels[3:40, 5:60]):
        assert np.array_equal(counted(some, 7), np.bincount(some.ravel(), minlength=7))


def test_labels_are_those_of_the_whole_scores_whatever_a_batch_holds(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "in", (90, 60), (64, 64), (1700, 1300), (40, 80))
    made = model()
    wanted = run.Wanted(True, True, 3, 0, 1, None)
    (tmp_path / "weights").touch()
    done = [*run.predict_folder(made, tmp_path / "weights", photos, tmp_path / "out", wanted)]
    assert [outcome.problem for outcome in done] == [None] * 4
    for photo in photos:
        picture = reading.read_image(photo.path)
        (scores,) = made.scores([picture])
        expected = scores.whole().max(0).indices.numpy()
        with Image.open(tmp_path / f"out/masks/{photo.out}.png") as image:
            assert np.array_equal(np.asarray(image), expected)


def test_a_batch_keeps_no_large_photograph(tmp_path: Path) -> None:
    small, large = photos_in(tmp_path / "in", (90, 60), (1700, 1300))
    made = model()
    found = [reading.ready(made, photo, True) for photo in (small, large)]
    assert [isinstance(one, reading.Ready) and one.picture is not None for one in found] == [True, False]
    for one in found:
        assert isinstance(one, reading.Ready)
        assert one.squares is not None
        assert [square.shape for square in one.squares.at] == [(3, 64, 64)]
    made.in_windows(Tiles(1000, 100))
    later = reading.ready(made, large, True)
    assert isinstance(later, reading.Ready)
    assert (later.squares, later.picture, later.width) == (None, None, 1700)


def test_windows_are_for_pictures_that_one_does_not_hold(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "in", (60, 50), (200, 130))
    pictures = [reading.read_image(photo.path) for photo in photos]
    whole, parts = model().predict_all(pictures), model(Tiles(64, 16)).predict_all(pictures, confidence=True)
    assert np.array_equal(whole[0].labels, parts[0].labels)
    assert not np.array_equal(whole[1].labels, parts[1].labels)
    assert parts[1].labels.shape == (130, 200)
    assert parts[1].confidence is not None
    assert parts[1].confidence.shape == (130, 200)
    assert parts[1].shares.sum() == pytest.approx(1)
    (limited,) = model(Tiles(64, 16)).predict_all(pictures[1:], [[1]])
    assert {*np.unique(limited.labels).tolist()} <= {0, 1}


def test_a_scale_that_is_too_small_ends_the_run_before_any_picture(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "in", (90, 60))
    made = model()
    made.system.smallest_input = 100
    wanted = run.Wanted(False, False, 3, 0, 1, None)
    with pytest.raises(Problem, match="at least 100"):
        next(run.predict_folder(made, tmp_path / "weights", photos, tmp_path / "out", wanted))
    assert not (tmp_path / "out").exists()
