"""`dvc repro`, killed at any moment, goes on where it was: `python -m segcore.commands.repro [what dvc repro takes]`.

DVC writes `dvc.lock` anew after each stage and a kill may cut it: empty, it is refused; shorter, finished stages run
again and lose their outputs first. Before DVC starts, this mends the lock by what the stages left behind (see
`cli.marks`): what was cut off comes back from the copy, and a stage that had ended is recorded if neither what it read
nor what it wrote was touched since. DVC's other leftovers go, too. Then DVC runs in this process, and ends it.
"""

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import zc.lockfile

from segcore.cli import console, held, lockfile, marks
from segcore.errors import Problem
from segcore.files import write_atomically

if TYPE_CHECKING:
    from dvc.stage import PipelineStage

DVC_FOLDER = Path(".dvc/tmp")
RUNNING = marks.FOLDER / "running"
"""There while DVC runs, and after a kill."""


def main(arguments: list[str]) -> int:
    """Mend what a kill left, then run `dvc repro` with these arguments."""
    from dvc.cli import main as dvc

    try:
        with held.held(marks.LOCK, patiently=True):
            # A stage whose DVC was killed alone goes on, and may have hours of work to save.
            held.wait_for_all_but(marks.LOCK)
            with _running():
                recover()
                code = dvc(["repro", *arguments])
            if code == 0:
                marks.keep(marks.text_of(marks.LOCK))
                marks.clear()
            else:
                _tell_of_the_root(Path("params.yaml"))
            return code
    except Problem as problem:
        console.complain(str(problem))
        return 2
    except KeyboardInterrupt:
        return 130


def _tell_of_the_root(params: Path) -> None:
    """Where the data set's folder is not there, DVC names the folder alone, and no stage gets as far as saying more."""
    from segcore.config.settings import load

    if not params.is_file():
        return
    with contextlib.suppress(Problem):  # of which check_params has told
        root = load(params).dataset.root
        if "://" not in root and not Path(root).exists():
            console.complain(f"dataset.root: {root}: there is no such folder; name that of your data set in {params}")


@contextlib.contextmanager
def _running() -> Iterator[None]:
    if RUNNING.is_file():
        _free_git(RUNNING.stat().st_mtime)
    RUNNING.parent.mkdir(parents=True, exist_ok=True)
    RUNNING.touch()
    yield
    RUNNING.unlink()


def recover() -> None:
    """Bring everything to where it was before the kill, if there was one."""
    with _no_other_dvc():
        _forget_the_dead(DVC_FOLDER / "rwlock")
        if marks.LOCK.is_file():  # a kill never takes it away
            text = marks.text_of(marks.LOCK)
            staged = _git("show", f":./{marks.LOCK}")  # where DVC puts it at the end of every run
            if text and text == staged:
                marks.keep_exactly(text)  # so it is whole, whatever the copy has besides
            else:
                _mend(text, marks.text_of(marks.COPY) or staged)
        marks.keep(marks.text_of(marks.LOCK))  # for a kill while DVC writes what follows
    for mark in marks.found():
        if _recorded(mark):
            console.say(f"{mark.stage} had ended before the kill: recorded in {marks.LOCK}")
    marks.keep(marks.text_of(marks.LOCK))
    marks.clear()


@contextlib.contextmanager
def _no_other_dvc() -> Iterator[None]:
    """While a DVC that somebody started by hand writes the lock, it looks as if it had been cut."""
    DVC_FOLDER.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        try:
            guard = zc.lockfile.LockFile(str(DVC_FOLDER / "lock"))
            break
        except zc.lockfile.LockError:
            if not told:
                console.say("waiting for the end of another DVC")
            told = True
            time.sleep(0.1)
    with contextlib.closing(guard):
        yield


def _mend(text: str, known: str) -> None:
    whole = lockfile.mended(text, known)
    if lockfile.entries(whole) and whole != known and not _is_valid(whole):
        whole = lockfile.mended(lockfile.without_last(text), known)
    if whole == text and whole:
        return
    count = len(lockfile.entries(whole) or {}), len(lockfile.entries(text) or {})
    console.say(f"{marks.LOCK} was cut short by a kill, {count[1]} entries were left: {count[0]} are back")
    if whole:
        write_atomically(marks.LOCK, whole.encode())
    else:
        marks.LOCK.unlink()  # DVC refuses an empty one


def _is_valid(text: str) -> bool:
    """Whether DVC would take it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML, YAMLError
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except (YAMLError, Invalid):
        return False
    return True


def _git(*arguments: str) -> str:
    """What Git says; nothing where it fails or is not there."""
    with contextlib.suppress(OSError):
        said = subprocess.run(["git", *arguments], capture_output=True)
        return said.stdout.decode(errors="replace") if said.returncode == 0 else ""
    return ""


def _recorded(mark: marks.Mark) -> bool:
    """Have DVC note a stage that ended, unless something was touched since."""
    from dvc.repo import Repo

    with Repo() as repo:
        for half in Path(repo.stage_cache.cache_dir).glob("*/*/.*.tmp"):
            half.unlink(missing_ok=True)  # DVC would take it for the newest entry of its run cache
        stages: dict[str, Any] = {str(getattr(stage, "name", "")): stage for stage in repo.index.stages}
        stage = stages.get(mark.stage)
        if stage is None or shlex.split(stage.cmd)[1:] != mark.arguments or _touched(stage, mark.nanoseconds):
            return False
        with repo.scm_context(quiet=True):
            repo.commit(mark.stage, force=True)
    return True


def _touched(stage: "PipelineStage", since: int) -> list[Path]:
    """What the stage read or wrote, and that changed, came or went later.

    By the time of the last change of a file's or a folder's entry, which a change of its content cannot but set.
    """
    files = [Path(str(item.fs_path)) for item in [*stage.deps, *stage.outs]]
    return [file for place in files for file in _below(place) if not file.exists() or file.stat().st_ctime_ns > since]


def _below(place: Path) -> Iterator[Path]:
    """The file, or the folder and all in it but what DVC ignores."""
    yield place
    for file in place.rglob("*") if place.is_dir() else ():
        if "__pycache__" not in file.parts and not file.name.endswith((".pyc", ".partial")):
            yield file


def _free_git(begun: float) -> None:
    """Take away the lock of Git's index that a killed DVC left; with it the next DVC fails at its end.

    Not one from before the killed run, nor while a Git is at work here. Nor where Git ignores all: in a copy of the
    project (`cli.experiments`) DVC leaves Git alone, and the lock is of somebody at work in the project.
    """
    if _git("check-ignore", "."):
        return
    lock = Path(_git("rev-parse", "--git-path", "index.lock").strip() or "none")
    gits = [p for p in psutil.process_iter(["name", "cwd"]) if (p.info["name"] or "").startswith("git")]
    here = any(p.info["cwd"] and Path(p.info["cwd"]).is_relative_to(Path.cwd()) for p in gits)
    if lock.is_file() and lock.stat().st_mtime >= begun and not here:
        console.say(f"{lock} was left by a kill: taken away")
        lock.unlink()


def _forget_the_dead(rwlock: Path) -> None:
    """Take those who are dead out of DVC's list of who reads and writes what.

    DVC does so itself, but not if the list was cut by the kill, if another process has the dead one's number now, or if
    nobody has asked for its exit code yet.
    """
    if not rwlock.is_file():
        return
    try:
        guard = zc.lockfile.LockFile(str(rwlock.with_name("rwlock.lock")))
    except zc.lockfile.LockError:
        return  # a DVC that is alive is writing it
    with contextlib.closing(guard):
        begun = rwlock.stat().st_mtime + 1
        try:
            listed = json.loads(rwlock.read_text())
        except ValueError:
            rwlock.unlink()
            return
        write = {path: who for path, who in listed.get("write", {}).items() if _lives(who["pid"], begun)}
        read = {path: [w for w in who if _lives(w["pid"], begun)] for path, who in listed.get("read", {}).items()}
        alive = {"write": write, "read": {path: who for path, who in read.items() if who}}
        write_atomically(rwlock, json.dumps(alive).encode())


def _lives(number: int, begun_by: float) -> bool:
    """Whether a process is at work and had begun by that time."""
    try:
        process = psutil.Process(number)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= begun_by
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
