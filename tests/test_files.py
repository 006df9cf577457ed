"""Whole files or none, and names by what files hold."""

import os
from pathlib import Path

import pytest

from segcore.errors import Problem
from segcore.files import fingerprint, replacing, write_atomically
from tests.loop import full_disk


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    with replacing(path) as file:
        file.write(b"ne")
        assert path.read_bytes() == b"old"
        file.write(b"w")
    assert path.read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_write_leaves_the_old_file(stop: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise stop

    with pytest.raises(stop):
        interrupted()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x", b"old")]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    with full_disk(1000), pytest.raises(Problem, match=r"could not be written \(File too large\)"):
        write_atomically(path, bytes(5000))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x", b"old")]


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="could not be written"):
        write_atomically(tmp_path / "nowhere/x", b"")


def test_what_a_kill_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".x.partial").write_bytes(b"half of a longer file")
    write_atomically(tmp_path / "x", b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x", b"new")]


def test_a_fingerprint_follows_parameters_and_contents(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    name = fingerprint({"steps": 3}, [a, b])
    assert name == fingerprint({"steps": 3}, [b, a])
    assert name != fingerprint({"steps": 4}, [a, b])
    b.write_text("3")
    assert name != fingerprint({"steps": 3}, [a, b])
