"""Where and how a result was made: code, commit, machine, time, memory."""

import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import segcore
from segcore.cli.console import is_main_process
from segcore.files import write_atomically
from segcore.reporting.reading import read_json

TIMINGS = Path(".scratch/timings")
"""Run times and peak memory: true of one machine and one run, so neither in Git nor in DVC."""

WITH_TIMES = ("stage", "seconds", "peak_memory_mb", "machine", "commit")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-contrib-python-headless", "pillow", "dvc", "dvclive")


def sources() -> list[Path]:
    """Every file of code that a result may depend on."""
    package = Path(segcore.__path__[0])
    return [*package.rglob("*.py"), *package.parent.glob("stages/*.py")]


def files_in(path: Path) -> list[Path]:
    """The file itself, or every file of a folder: what a result was made from."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


@contextlib.contextmanager
def timed(stage: str, out: Path = Path()) -> Iterator[None]:
    """Record the stage's time, peak memory, machine and versions for the report.

    By `out`, where its results lie, times of one data set are told from those of another.
    """
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
    file = timings_of(out) / f"{stage}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record, indent=2).encode())


def timings_of(folder: Path) -> Path:
    """Where times are recorded of what lies in a folder."""
    return beside(TIMINGS, folder)


def beside(scratch: Path, folder: Path) -> Path:
    """A folder's own place in a folder of the scratch folder, by where it lies."""
    absolute = folder.resolve()
    inside = absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else Path(*absolute.parts[1:])
    return scratch / inside


def timings(data: Path) -> dict[str, dict[str, Any]]:
    """What `timed` recorded on this machine of the results in a folder, by stage."""
    files = sorted(timings_of(data).rglob("*.json"))
    return {record["stage"]: record for record in map(read_json, files) if {*WITH_TIMES} <= {*record}}


def versions() -> dict[str, str]:
    """Of what results depend on, for the report."""
    return {name: metadata.version(name) for name in PACKAGES}


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
