"""What every stage does first and last: read the settings, show what happens, keep time, end with a clear error."""

import errno
import functools
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from segcore.cli.console import complain, say
from segcore.config.settings import Settings, load
from segcore.errors import Problem


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
            main(**arguments)
        except Problem as problem:
            complain(advised(problem))
            raise typer.Exit(2) from None
        except OSError as error:
            complain(told(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("stopped; no output was left half-written; a training goes on from its last checkpoint when run again")
            raise typer.Exit(130) from None

    command.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    typer.run(command)


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
    regularisers.check(settings.systems)
    return settings
