"""Copies of the project with runs at work in them: whose they are, what is laid out there, going on after a kill.

What DVC makes of a whole project in one is in `test_copies`.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from segcore.cli import experiments
from segcore.cli.experiments import Copies
from segcore.config.settings import load
from segcore.errors import Problem
from segcore.reporting.kept import Experiment
from tests import warm
from tests.devkit import PARAMS, PROJECT

PYTHON = """#!/bin/sh
case "$*" in
    "-m dvc cache dir") echo cache ;;
    *) {instead} ;;
esac
"""
"""In place of Python where only what is around DVC is tested."""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says by a line of shell what DVC does in a copy."""
    file = tmp_path / "python"

    def does(instead: str) -> None:
        file.write_text(PYTHON.format(instead=instead))
        file.chmod(0o755)

    monkeypatch.setattr(sys, "executable", str(file))
    does("exit 1")
    return does


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").touch()
    (folder / "params.yaml").write_text("seed: 0\ndataset: {name: tiny, root: my-images}\n")
    (folder / ".gitignore").write_text("/.scratch\n")
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    monkeypatch.chdir(folder)
    return folder


def wanted(system: str = "one", **changes: Any) -> Experiment:
    return Experiment(system, {"seed": 1} | changes, Path("kept") / system)


@pytest.mark.usefixtures("python")
def test_a_copy_that_two_want_is_there_until_the_second_is_done(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two terminals, the same seed, other systems."""
    copies, settings = Copies(project, Path("params.yaml")), load(PARAMS)
    copy = copies.folder({"seed": 1})
    seconds, found = {"short": 0.3, "long": 0.9}, {}

    def works(some: Iterable[Experiment], *_: Any) -> list[str]:
        for one in some:
            copy.mkdir(parents=True, exist_ok=True)
            time.sleep(seconds[one.system])
            found[one.system] = copy.is_dir()
        return []

    monkeypatch.setattr(experiments, "perform", works)
    monkeypatch.setattr(experiments.held, "SECONDS", 0.05)
    both = [
        threading.Thread(target=copies.perform, args=([wanted(name)], settings, None, False, False)) for name in seconds
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert found == {"short": True, "long": True}
    assert "waiting for the end of process" in capsys.readouterr().out
    assert list(copy.parent.iterdir()) == []


def test_a_copy_that_was_deleted_under_a_run_is_told(project: Path, python: Callable[[str], None]) -> None:
    python('rm -r "$PWD"; exit 1')
    with pytest.raises(Problem, match=r"was deleted while it ran; run this again"):
        Copies(project, Path("params.yaml")).run(wanted())


def held_in_part(project: Path) -> Path:
    """A data set of whose files Git holds the lists alone, as after `dvc add my-images/JPEGImages`."""
    folder = project / "my-images"
    for name in (
        "ImageSets/train.txt",
        "JPEGImages/a.jpg",
        "JPEGImages/more/b.jpg",
        "JPEGImages/old/c.jpg",
        "classes.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("/JPEGImages\n")
    return folder


def seen_by_dvc(folder: Path) -> dict[str, str]:
    """The files in a folder that is named, and what is in them: links to other folders are not gone into."""
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


@pytest.mark.usefixtures("python")
def test_a_copy_has_what_git_does_not_hold_of_a_data_set(project: Path) -> None:
    folder = held_in_part(project)
    copies = Copies(project, Path("params.yaml"))
    copy = copies.folder({"seed": 1})
    for given in (copies.given, copies.given | {"dataset": {"name": "tiny", "root": "."}}):
        copies._laid_out(copy, given)
        assert seen_by_dvc(copy / "my-images") == seen_by_dvc(folder)
        assert len(seen_by_dvc(folder)) == 6
    assert not (copy / "my-images/classes.txt").is_symlink()
    assert not (copy / ".git").exists()
    (folder / "JPEGImages/a.jpg").unlink()
    shutil.rmtree(folder / "JPEGImages/old")
    (folder / "JPEGImages/c.jpg").write_text("c")
    subprocess.run(["git", "add", "--force", "my-images/JPEGImages/more/b.jpg"], check=True)
    Copies(project, Path("params.yaml"))._laid_out(copy, copies.given)
    assert seen_by_dvc(copy / "my-images") == seen_by_dvc(folder)


@pytest.mark.usefixtures("python")
def test_results_of_the_project_are_not_linked_into_a_copy(project: Path) -> None:
    """DVC would write through the links; a part of them lies in Git."""
    for name in ("data/tiny/labels/quality.json", "data/tiny/labels/cues/a.png"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    (project / "data/.gitignore").write_text("cues\n")
    copies = Copies(project, Path("params.yaml"))
    copy = copies.folder({"seed": 1})
    copies._laid_out(copy, copies.given | {"others": ["data", "data/tiny", "data/tiny/labels"]})
    assert sorted(seen_by_dvc(copy / "data")) == [".gitignore", "tiny/labels/quality.json"]


@pytest.mark.usefixtures("python")
def test_copies_share_the_features_of_the_project(project: Path) -> None:
    """A pass of a frozen trunk over all images takes minutes, and a copy goes when its point of the curve is done."""
    copies = Copies(project, Path("params.yaml"))
    one, other = copies.folder({"seed": 1}), copies.folder({"seed": 2})
    copies._laid_out(one, copies.given)
    (one / ".scratch/features/maps").write_text("of a trunk")
    copies._laid_out(other, copies.given)
    assert (other / ".scratch/features/maps").read_text() == "of a trunk"
    shutil.rmtree(one)
    copies._laid_out(other, copies.given)
    assert (project / ".scratch/features/maps").read_text() == (other / ".scratch/features/maps").read_text()
    (other / ".scratch/features").unlink()
    (other / ".scratch/features").symlink_to(project / "moved")
    copies._laid_out(other, copies.given)
    assert (other / ".scratch/features/maps").read_text() == "of a trunk"


STAGE = """
import sys, time
from pathlib import Path
from segcore.cli import held, marks
with marks.left():
    out = Path(sys.argv[1])
    with held.held(out, patiently=False):
        Path("begun").write_text(Path("begun").read_text() + "." if Path("begun").exists() else ".")
        while Path("wait").exists():
            time.sleep(0.02)
        assert Path("stages/evaluate.py").exists()
        out.mkdir(parents=True)
        (out / "metrics.json").write_text("{}")
"""
PIPELINE = """
stages:
  evaluate:
    foreach: [one, two]
    do:
      cmd: python stages/evaluate.py data/tiny/results/${item}
      deps: [stages]
      outs: ["data/tiny/results/${item}"]
"""


@pytest.fixture
def pipeline(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that DVC knows, of one stage a system; it ends once there is no file `wait`."""
    monkeypatch.setenv("PATH", warm.path())
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(project.parent / "site"))
    monkeypatch.setattr(sys, "executable", str(warm.folder() / "python"))
    (project / "stages").mkdir()
    (project / "stages/evaluate.py").write_text(STAGE)
    (project / "dvc.yaml").write_text(PIPELINE)
    return project


def test_a_copy_whose_lock_a_kill_emptied_goes_on(pipeline: Path) -> None:
    copies = Copies(pipeline, Path("params.yaml"))
    result = copies.run(wanted("one"))
    lock = copies.folder({"seed": 1}) / "dvc.lock"
    whole = lock.read_text()
    lock.write_text("")
    copies.run(wanted("two"))
    assert lock.read_text().startswith(whole)
    assert (result / "metrics.json").is_file()
    assert (lock.parent / "begun").read_text() == ".."


def test_what_outlives_a_killed_run_is_waited_for(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its own code, which the next run does not take from under it; what it made is not made again."""
    copies = Copies(pipeline, Path("params.yaml"))
    copy = copies.folder({"seed": 1})
    copies._laid_out(copy, copies.given)
    (copy / "wait").touch()
    alone = subprocess.Popen([sys.executable, "-m", "segcore.commands.repro", "evaluate@one"], cwd=copy)
    until((copy / "begun").exists)
    again = threading.Thread(target=copies.run, args=[wanted("one")])
    again.start()
    said = ""

    def waits() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "waiting for the end of process" in said

    try:
        until(waits)
    finally:
        (copy / "wait").unlink()
        again.join(60)
    assert alone.wait() == 0
    assert (copy / "data/tiny/results/one/metrics.json").is_file()
    assert (copy / "begun").read_text() == "."


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)
