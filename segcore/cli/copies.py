"""Where copies of the project lie that `cli.experiments` works in, and who is at work in one."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from segcore.cli import held
from segcore.errors import Problem

FOLDER = Path(".scratch/experiments")


@contextlib.contextmanager
def alone_in(copy: Path, *, patiently: bool) -> Iterator[None]:
    """Hold a copy until the block ends, once nothing works in it that outlived a killed run.

    That is noted beside the copy: `make demo` waits for all that is noted with the project's own stages.

    Raises:
        Problem: a run is at work in it, and there is no patience.
    """
    with held.held(copy, patiently=patiently, note=copy.with_name(f"{copy.name}.lock")):
        held.wait_for_all(copy, patiently=patiently)
        yield


def take_away(copies: Iterable[Path]) -> list[Path]:
    """Delete the copies in which nobody is at work; gives them."""
    gone = []
    for copy in copies:
        with contextlib.suppress(Problem), alone_in(copy, patiently=False):
            shutil.rmtree(copy, ignore_errors=True)
            gone.append(copy)
    return gone
