"""What every stage does first and last: read the settings, show what happens, keep time, end with a clear error."""

import contextlib
import functools
import inspect
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

import segcore
from segcore.config import reading
from segcore.errors import Problem
from segcore.files import write_atomically

TIMINGS = Path(".scratch/timings")
"""Run times and peak memory: true of one machine and one run, so neither in Git nor in DVC."""

console = Console(highlight=False, soft_wrap=True)


def is_main_process() -> bool:
    """Whether this process speaks and writes for all (torchrun numbers them in RANK)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """A line for a person, from the first process only."""
    if is_main_process():
        console.print(message, markup=False)


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
            console.print(f"[bold red]error[/]: {_escape(str(problem))}")
            raise typer.Exit(2) from None
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            if error.filename is None and not missing:
                raise
            what = "not there; `dvc repro` makes what a stage needs" if missing else error.strerror
            console.print(f"[bold red]error[/]: {_escape(f'{error.filename or error}: {what}')}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("stopped; no output was left half-written; a training goes on from its last checkpoint when run again")
            raise typer.Exit(130) from None

    command.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    typer.run(command)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def settings(params: Path) -> reading.Settings:
    """Every section checked, those of the systems' modules too, so that no work starts on a typo."""
    from segcore import systems

    checked = reading.load(params)
    systems.check(checked.raw["systems"])
    return checked


def chosen(name: str, entries: Mapping[str, object], kind: str) -> str:
    """`name`, if `params.yaml` has such an entry."""
    if name not in entries:
        raise Problem(f"there is no {kind} '{name}' in params.yaml; it has {', '.join(sorted(entries))}")
    return name


def sources() -> list[Path]:
    """Every file of code that a result may depend on."""
    return [*Path(segcore.__path__[0]).rglob("*.py"), *Path(__file__).parent.glob("*.py")]


def files_in(path: Path) -> list[Path]:
    """The file itself, or every file of a folder: what a result was made from."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


@contextlib.contextmanager
def timed(stage: str) -> Iterator[None]:
    """Record the stage's time, peak memory, machine and versions for the report."""
    begin = time.perf_counter()
    yield
    if not is_main_process():
        return
    record = {
        "stage": stage,
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(),
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision", "dvc", "numpy")},
        "commit": commit(),
    }
    TIMINGS.mkdir(parents=True, exist_ok=True)
    write_atomically(TIMINGS / f"{stage}.json", json.dumps(record, indent=2).encode())


def peak_memory_mb() -> int:
    """Peak resident memory of this process and its largest child."""
    kilobytes = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(kilobytes / (1024 * 1024 if sys.platform == "darwin" else 1024))


def peak_gpu_memory_mb() -> int:
    """Peak memory that torch held on this process's GPU; 0 without one."""
    import torch

    return round(torch.cuda.max_memory_reserved() / 1024**2) if torch.cuda.is_available() else 0


def machine() -> str:
    """The machine in words: what results and timings were measured on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}"


def commit() -> str:
    """The commit that is checked out, with + when files differ from it; empty outside Git."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        clean = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if clean.returncode else "")
