"""How a command of `segcore` ends: mistakes as one clear message, and an exit code.

0: done. 1: done, but some inputs were left out, which the command names. 2: a mistake that stopped it. 130: stopped by
Ctrl-C; what was done is whole, and the same command goes on.
"""

import contextlib
from collections.abc import Iterator

import typer

from segcore.cli import shard_cache
from segcore.cli.console import complain, say
from segcore.errors import Problem

PARTLY, MISTAKE, STOPPED = 1, 2, 130


@contextlib.contextmanager
def told() -> Iterator[None]:
    """A block whose mistakes are told to a person without a traceback."""
    try:
        shard_cache.begin()
        yield
    except Problem as problem:
        _end(str(problem))
    except OSError as error:
        if error.filename is None:
            raise
        _end(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        say("stopped; nothing is half-written, and the same command goes on where it was")
        raise typer.Exit(STOPPED) from None


def _end(message: str) -> None:
    complain(message)
    raise typer.Exit(MISTAKE) from None
