"""What a stage leaves behind, so that nothing that was finished is lost when DVC is killed.

DVC notes in `dvc.lock` that a stage has finished. A kill may cut that file, or come between the end of the stage's
command and the note. So each stage keeps a copy of the lock when it begins, as DVC then waits for it and the file is
whole; and it leaves a mark when it has ended. `commands.repro` mends the lock by them.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segcore.cli import lockfile
from segcore.cli.console import is_main_process
from segcore.files import write_atomically

LOCK = Path("dvc.lock")
FOLDER = Path(".scratch/pipeline")
COPY = FOLDER / "dvc.lock"
ENDED = FOLDER / "ended"


@dataclass(frozen=True)
class Mark:
    """That a stage's command ended well: its name, its arguments, and when by the clock of the file system."""

    stage: str
    arguments: list[str]
    nanoseconds: int


@contextlib.contextmanager
def left() -> Iterator[None]:
    """Around the work of a stage; where DVC did not start it, this does nothing."""
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if not stage or not is_main_process() or not LOCK.parent.joinpath("dvc.yaml").is_file():
        yield
        return
    keep(text_of(LOCK))
    clear()  # the stages before this one are in the lock, or DVC would not have gone on
    yield
    content = {"stage": stage, "arguments": sys.orig_argv[1:]}
    ENDED.mkdir(parents=True, exist_ok=True)
    write_atomically(ENDED / f"{stage}.json", json.dumps(content).encode())


def keep(text: str) -> None:
    """Keep a lock that is whole, with the entries that it may have lost before."""
    if lockfile.entries(text) is None or not text.endswith("\n"):
        return
    former = text_of(COPY)
    whole = lockfile.mended(text, former)
    if whole != former:
        keep_exactly(whole)


def keep_exactly(text: str) -> None:
    """Keep a lock in place of the former copy."""
    COPY.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(COPY, text.encode())


def found() -> list[Mark]:
    """The marks that are there; those of a kill halfway are none."""
    marks = []
    for file in sorted(ENDED.glob("*.json")):
        content = json.loads(file.read_text())
        marks.append(Mark(content["stage"], content["arguments"], file.stat().st_mtime_ns))
    return sorted(marks, key=lambda mark: mark.nanoseconds)


def clear() -> None:
    """Take all marks away."""
    for file in ENDED.glob("*.json"):
        file.unlink(missing_ok=True)


def text_of(file: Path) -> str:
    """What is in a file; nothing where there is none."""
    try:
        return file.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
