"""`segcore.commands.repro` after kills: what had finished does not run again, and `dvc.lock` ends as without them."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from segcore.cli import marks
from segcore.commands import repro
from tests import warm
from tests.devkit import PROJECT
from tests.tiny import tiny_params

STAGE = """
import sys, time
from pathlib import Path
from segcore.cli import marks
with marks.left():
    source, out = map(Path, sys.argv[1:])
    text = source.read_text() if source.is_file() else "".join(f.read_text() for f in sorted(source.iterdir()))
    out.mkdir()
    (out / "file.txt").write_text(text + "+")
"""
NAMES = ("first", "second@a", "third")
PLAIN = "second@a"
"""The stage with an output that DVC does not cache: its run cache cannot bring it back."""

PIPELINE = """
stages:
  first:
    cmd: python stage.py source.txt first
    deps: [stage.py, source.txt]
    outs: [first]
  second:
    foreach: [a]
    do:
      cmd: python stage.py first second
      deps: [stage.py, first]
      outs:
      - second: {cache: false}
  third:
    cmd: python stage.py second third
    deps: [stage.py, second]
    outs: [third]
"""


class Project:
    """Three stages in a Git repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / "dvc.lock"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_", "MAKE"))},
            "PATH": warm.path(),
            "PYTHONPATH": str(PROJECT),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        }
        for name, text in {
            "stage.py": STAGE,
            "source.txt": "text",
            "dvc.yaml": PIPELINE,
            ".gitignore": "/.scratch\n",
        }.items():
            (folder / name).write_text(text)
        self.run("git", "init", "--quiet")
        self.run("python", "-m", "dvc", "init", "--quiet")

    def run(self, *command: str, fails: bool = False, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | environment, capture_output=True, text=True
        )
        assert (done.returncode != 0) == fails, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def repro(self, *arguments: str, fails: bool = False) -> str:
        return self.run("python", "-m", "segcore.commands.repro", *arguments, fails=fails)

    def stage_ends(self, name: str) -> None:
        """What a stage does whose DVC is killed before it notes that it ended."""
        source, out = {"first": ("source.txt", "first"), PLAIN: ("first", "second"), "third": ("second", "third")}[name]
        self.run("python", "stage.py", source, out, DVC_STAGE=name)


def ran(said: str) -> list[str]:
    return re.findall(r"Running stage '(.+)':", said)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A pipeline that ran, and its lock."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    folder.mkdir()
    project = Project(folder)
    assert ran(project.repro()) == list(NAMES)
    return project, project.lock.read_text()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    return Project(folder)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("share", [0.0, 0.6, 0.99])
def test_a_lock_that_was_cut_is_whole_again_and_nothing_runs(share: float, finished: tuple[Project, str]) -> None:
    project, whole = finished
    project.run("git", "rm", "--quiet", "--cached", "--ignore-unmatch", "dvc.lock")
    project.lock.write_text(whole[: round(share * len(whole))])
    said = project.repro()
    assert ran(said) == []
    assert "was cut short by a kill" in said
    assert project.lock.read_text() == whole


def test_without_a_copy_the_lock_in_git_is_as_good(finished: tuple[Project, str]) -> None:
    project, whole = finished
    project.run("git", "add", "dvc.lock")
    (project.folder / marks.COPY).unlink()
    project.lock.write_text("")
    assert ran(project.repro()) == []
    assert project.lock.read_text() == whole


def test_a_lock_that_git_has_is_whole_whatever_the_copy_says(finished: tuple[Project, str]) -> None:
    """An older commit was checked out."""
    project, whole = finished
    project.lock.write_text(whole[: whole.index("  third:\n")])
    project.run("git", "add", "dvc.lock")
    assert ran(project.repro("second@a")) == []
    assert project.lock.read_text() == whole[: whole.index("  third:\n")]
    project.lock.write_text(whole)
    project.repro()
    project.run("git", "add", "dvc.lock")


def test_a_conflict_is_left_to_a_person(finished: tuple[Project, str]) -> None:
    project, whole = finished
    conflict = f"<<<<<<< ours\n{whole}=======\n{whole}>>>>>>> theirs\n"
    project.lock.write_text(conflict)
    project.repro(fails=True)
    assert project.lock.read_text() == conflict
    project.lock.write_text(whole)


def test_a_stage_that_had_ended_is_recorded(project: Project, finished: tuple[Project, str]) -> None:
    """Killed between the end of the command and DVC's note; before the first note there is no lock at all."""
    for number, name in enumerate(NAMES):
        project.stage_ends(name)
        said = project.repro(name)
        assert f"{name} had ended before the kill: recorded" in said
        assert ran(said) == []
        rest = finished[1].index(f"  {NAMES[number + 1]}:\n") if name != NAMES[-1] else None
        assert project.lock.read_text() == finished[1][:rest]


@pytest.mark.parametrize("touched", ["source.txt", "first/another.txt", "gone"])
def test_a_stage_whose_files_were_touched_since_runs_again(touched: str, project: Project) -> None:
    project.stage_ends("first")
    time.sleep(0.02)
    if touched == "gone":
        project.run("rm", "first/file.txt")
    else:
        with (project.folder / touched).open("a") as file:
            file.write("\n")
    said = project.repro("first")
    assert ran(said) == ["first"]
    assert "had ended" not in said
    expected = "text+" + "\n" * 0 if touched != "source.txt" else "text\n+"
    assert (project.folder / "first/file.txt").read_text() == expected


def test_another_command_line_runs_again(project: Project) -> None:
    project.stage_ends("first")
    pipeline = project.folder / "dvc.yaml"
    pipeline.write_text(
        pipeline.read_text().replace("python stage.py source.txt first", "python  -u stage.py source.txt first")
    )
    assert ran(project.repro("first")) == ["first"]


def test_the_exit_code_is_that_of_dvc(project: Project) -> None:
    (project.folder / "stage.py").write_text("raise SystemExit(3)")
    command = [sys.executable, "-m", "segcore.commands.repro"]
    done = subprocess.run(command, cwd=project.folder, env=project.environment, capture_output=True)
    assert done.returncode == 255


def test_a_second_one_waits_for_the_first(project: Project) -> None:
    stage = project.folder / "stage.py"
    stage.write_text(STAGE.replace("source, out =", "time.sleep(2); source, out ="))
    command = [sys.executable, "-m", "segcore.commands.repro", "first"]
    runs = [
        subprocess.Popen(command, cwd=project.folder, env=project.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(map(ran, said)) == [[], ["first"]]
    assert re.search(r"waiting for the end of process \d+ since [\d:]+: .*segcore.commands.repro first", "".join(said))


def test_who_is_dead_holds_nothing(inside: Path) -> None:
    """A number that is free, one that another process has got since, and one whose exit code nobody asked for."""
    rwlock = inside / "rwlock"
    free = max(psutil.pids()) + 1000
    another = subprocess.Popen(["sleep", "60"])
    zombie = subprocess.Popen(["true"])
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    mine = {"pid": os.getpid(), "cmd": "dvc repro"}
    dead = [{"pid": number, "cmd": "dvc repro"} for number in (free, another.pid, zombie.pid)]
    listed = {"write": {f"/{i}": who for i, who in enumerate([*dead, mine])}, "read": {"/x": [*dead, mine], "/y": dead}}
    rwlock.write_text(json.dumps(listed))
    begun = psutil.Process().create_time() + 0.5
    os.utime(rwlock, (begun, begun))
    repro._forget_the_dead(rwlock)
    another.kill()
    another.wait()
    zombie.wait()
    assert json.loads(rwlock.read_text()) == {"write": {"/3": mine}, "read": {"/x": [mine]}}


def test_a_list_of_dvc_that_was_cut_goes(inside: Path) -> None:
    rwlock = inside / "rwlock"
    rwlock.write_text('{"write": {"/project/data')
    repro._forget_the_dead(rwlock)
    assert not rwlock.exists()


def test_a_lock_of_git_that_a_killed_dvc_left_goes(finished: tuple[Project, str]) -> None:
    project, _ = finished
    running, lock = (project.folder / name for name in (repro.RUNNING, ".git/index.lock"))
    lock.touch()  # a Git of somebody else's, before the run that was killed
    os.utime(lock, (0, 0))
    running.touch()
    assert "index.lock" not in project.repro()
    assert lock.exists()
    running.touch()
    lock.touch()
    assert ".git/index.lock was left by a kill: taken away" in project.repro()
    assert not lock.exists()
    assert not running.exists()


def test_a_lock_of_git_is_none_of_a_copy_of_the_project(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    copy, lock = Path(".scratch/experiments/copy"), inside / ".git/index.lock"
    copy.mkdir(parents=True)
    lock.touch()
    Path(".gitignore").write_text(".scratch/\n")
    monkeypatch.chdir(copy)
    repro._free_git(0.0)
    assert lock.exists()
    monkeypatch.chdir(inside)
    repro._free_git(0.0)
    assert not lock.exists()


def test_a_stage_outside_of_dvc_leaves_nothing(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    with marks.left():
        pass
    assert list(inside.iterdir()) == []


def test_a_stage_that_fails_leaves_no_mark(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "first")
    (inside / "dvc.yaml").write_text("")
    with pytest.raises(ValueError, match="broken"), marks.left():
        raise ValueError("broken")
    assert marks.found() == []
    with marks.left():
        pass
    assert [mark.stage for mark in marks.found()] == ["first"]


def test_a_plain_dvc_does_not_spoil_the_copy(finished: tuple[Project, str]) -> None:
    """Cut by a kill, and then `dvc repro` by hand goes on from there."""
    project, whole = finished
    project.run("git", "rm", "--quiet", "--cached", "--ignore-unmatch", "dvc.lock")
    project.lock.write_text(whole[: whole.index("  second@a:\n")])
    project.run("python", "-m", "dvc", "repro", "--force", "--single-item", "first")
    assert (project.folder / marks.COPY).read_text() == whole
    assert ran(project.repro()) == []
    assert project.lock.read_text() == whole


def test_a_data_set_that_is_not_there_is_told_by_its_key(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC would name the folder alone."""
    tiny_params(inside / "params.yaml", **{"dataset.root": "nowhere"})
    repro._tell_of_the_root(Path("params.yaml"))
    assert "dataset.root: nowhere: there is no such folder; name that of your data set" in capsys.readouterr().out
    (inside / "nowhere").mkdir()
    repro._tell_of_the_root(Path("params.yaml"))
    repro._tell_of_the_root(Path("no_such.yaml"))
    assert capsys.readouterr().out == ""
