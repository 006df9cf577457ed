"""What every stage does first and last: read the settings, show what happens, keep time, end with a clear error."""

import contextlib
import errno
import functools
import inspect
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import typer

from segcore import memory
from segcore.cli import held, marks, meeting, scratch, shard_cache
from segcore.cli.console import complain, is_main_process, say
from segcore.config.settings import Settings, load
from segcore.errors import Problem

_RESTARTS = "torchrun --max-restarts N starts all again up to N times, from the last checkpoint"


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What a process that loads images says of an error that nobody catches: nothing of a run that was stopped.

    Its thread that hands out shared memory shows each connection that breaks, as the one at work does on Ctrl-C.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


# Such a process imports what the run's own has as its main module; of whom it comes it knows later.
if multiprocessing.current_process().name != "MainProcess":
    sys.excepthook = _uncaught


def start(main: Callable[..., None]) -> None:
    """Run a stage's `main` with its keyword arguments as command-line options."""
    logging.getLogger("dvclive").setLevel(logging.ERROR)
    signature = inspect.signature(main)
    options = [
        parameter.replace(default=typer.Option(... if parameter.default is parameter.empty else parameter.default))
        for parameter in signature.parameters.values()
    ]

    @functools.wraps(main)
    def command(**arguments: Any) -> None:
        try:
            _keep_memory()
            shard_cache.begin()
            with _alone(arguments), marks.left():
                meeting.meet()
                main(**arguments)
        except Problem as problem:
            raise _ended(problem) from None
        except OSError as error:
            complain(told(error))
            raise typer.Exit(2) from None
        except RuntimeError as error:
            if not meeting.lost(error):
                raise
            complain(f"another process of this run has ended, so this one ends, too ({error}); {_RESTARTS}")
            _end_children()
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _end_children()
            say("stopped; no output was left half-written; a training goes on from its last checkpoint when run again")
            raise typer.Exit(130) from None

    command.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    typer.run(command)


def _keep_memory() -> None:
    """Have a stage keep the memory of its maps as under `make`, whatever starts it; what the environment says stays."""
    if not os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}:
        memory.keep()


def _ended(problem: Problem) -> typer.Exit:
    """Tell what can be mended, and end."""
    complain(advised(problem))
    _end_children()
    return typer.Exit(2)


def _end_children() -> None:
    """End the processes that load images or compute at once: to wait until they have finished takes long."""
    for child in multiprocessing.active_children():
        child.kill()


@contextlib.contextmanager
def _alone(arguments: dict[str, Any]) -> Iterator[None]:
    """The output folder is this run's alone, where there is one; what a kill left half written there goes.

    Other processes of the same run only help; a shard writes elsewhere (`cli.shards`).
    """
    out = arguments.get("out")
    if not isinstance(out, Path) or not is_main_process() or arguments.get("shard") is not None:
        yield
        return
    with held.held(out, patiently=False):
        scratch.delete(scratch.halves_of(out))
        yield


def told(error: OSError) -> str:
    """What the system refused, of which file, as far as it says so."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename or error}: not there; `dvc repro` makes what a stage needs"
    where = f"{error.filename}: " if error.filename is not None else ""
    room = "; make room, then run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return f"{where}{error.strerror or error}{room}"


def advised(problem: Problem) -> str:
    """The message, and the command that makes the file which it is about, if a stage makes it."""
    text = str(problem)
    if problem.made_by is None:
        return text
    return f"{text}{chr(10) if chr(10) in text else '; '}run `dvc repro {problem.made_by}`"


def settings(params: Path) -> Settings:
    """Every section checked, those of the systems' modules too, so that no work starts on a typo."""
    return checked(load(params))


def checked(settings: Settings) -> Settings:
    """The settings, once what the modules of systems and regularisers say of them has been checked, too."""
    from segcore import regularisers, systems

    systems.check(settings.systems)
    systems.check_takers(settings.pseudo_labels, settings.systems)
    regularisers.check(settings.systems)
    return settings
