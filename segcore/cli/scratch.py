"""The scratch folder: what a run keeps so that it can go on after a stop, and how that goes again.

Its names end in a fingerprint of all that the result depends on, so a run with other parameters starts anew; what the
former ones left is swept away when a run of the same name has succeeded.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from segcore.cli import held

FOLDER = Path(".scratch")
FINGERPRINT = "[0-9a-f]{16}"
KEPT = ("timings", "looks", "pipeline", "held", "shards")
"""What is no run's: times of stages, looks at trainings, what the lock of DVC is mended by, who is at work, shards."""


def sweep(done: Path) -> None:
    """Take away what former runs of the same name left beside `done`, but what another one is at work on."""
    name = re.sub(rf"-{FINGERPRINT}$", "", done.stem)
    alike = re.compile(rf"\.?{re.escape(name)}-{FINGERPRINT}(\.pt)?(\.partial)?")
    siblings = list(done.parent.iterdir()) if done.parent.is_dir() else []
    take_away(path for path in siblings if path != done and alike.fullmatch(path.name))


def take_away(paths: Iterable[Path]) -> list[Path]:
    """Delete files and folders that nobody holds; links, not what they lead to."""
    gone = [path for path in paths if not held.is_held(_of_partial(path))]
    delete(gone)
    return gone


def delete(paths: Iterable[Path]) -> None:
    """Delete files and folders, whoever holds them: for who does; links, not what they lead to."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def halves_of(out: Path) -> list[Path]:
    """What runs that were killed left half written, of `out` and in it."""
    beside = out.with_name(f".{out.name}.partial")
    return [*([beside] if beside.exists() or beside.is_symlink() else []), *out.rglob(".*.partial")]


def _of_partial(path: Path) -> Path:
    """What a partial file is to become."""
    return path.with_name(re.sub(r"^\.(.+)\.partial$", r"\1", path.name))
