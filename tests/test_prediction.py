"""Which pictures are meant, and how many are predicted together."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.errors import Problem
from segcore.prediction import journal as journals
from segcore.prediction import listing, run


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
    with Image.open(io.BytesIO(run.overlay_jpeg(picture, labels))) as image:
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
