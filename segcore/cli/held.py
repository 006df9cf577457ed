"""One run at a time: who writes a folder or a file holds it, and a second one is told who.

The system lets go of it when the process ends, however it ends; nothing is left to clean up.
"""

import contextlib
import fcntl
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from segcore.cli.console import say
from segcore.errors import Problem

FOLDER = Path(".scratch/held")
SECONDS = 1.0
"""How long another may hold it before it counts as held: who only looks whether it is, holds it for an instant."""


@contextlib.contextmanager
def held(path: Path, *, patiently: bool, note: Path | None = None) -> Iterator[None]:
    """Hold `path`, which need not be there, until the block ends; `patiently` waits for another who holds it.

    `note` is the file that says who does, where it is not to be among those of the working directory.

    Raises:
        Problem: another process holds it, and there is no patience.
    """
    file = note or _lock_of(path)
    with _opened(file, path, patiently) as lock:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}: {shlex.join(sys.orig_argv)}")
        lock.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(file: Path, path: Path, patiently: bool) -> Iterator[IO[str]]:
    """The file that stands for `path`, taken; another one each time that its last holder has deleted it."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+") as lock:
            if not _taken(lock, SECONDS):
                if not patiently:
                    raise Problem(f"{path} is being written by {_holder(file)}; wait for its end, or stop it")
                say(f"waiting for the end of {_holder(file)}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_still(file, lock):
                yield lock
                return


def _is_still(file: Path, lock: IO[str]) -> bool:
    """Whether a file that was opened is the one that is there."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether somebody holds `path` at this moment."""
    with contextlib.suppress(FileNotFoundError), _lock_of(path).open("r+") as lock:
        return not _taken(lock, 0.0)
    return False


def wait_for_all_but(path: Path) -> None:
    """Until nobody holds anything else that was ever held in this working directory; says who does."""
    _wait_for(Path(), patiently=True, but=_lock_of(path))


def wait_for_all(directory: Path, *, patiently: bool) -> None:
    """Until nobody holds anything that was ever held by those who work in a directory; says who does.

    Raises:
        Problem: somebody does, and there is no patience.
    """
    _wait_for(directory, patiently=patiently)


def _wait_for(directory: Path, *, patiently: bool, but: Path | None = None) -> None:
    for file in sorted((directory / FOLDER).rglob("*.lock")):
        if file == but:
            continue
        with contextlib.suppress(FileNotFoundError), file.open("r+") as lock:
            if not _taken(lock, 0.0):
                if not patiently:
                    raise Problem(f"{directory} is being worked in by {_holder(file)}; wait for its end, or stop it")
                say(f"waiting for the end of {_holder(file)}")
                fcntl.flock(lock, fcntl.LOCK_EX)


def _taken(lock: IO[str], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        else:
            return True


def _holder(file: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return file.read_text() or "another process"
    return "another process"


def _lock_of(path: Path) -> Path:
    """Where it is noted who holds a path: by its place in the working directory, or in the file system."""
    absolute = path.resolve()
    inside = absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else Path(*absolute.parts[1:])
    return FOLDER / f"{inside}.lock"
