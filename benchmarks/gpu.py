"""What the project does on a GPU, in ten minutes: `python -m benchmarks.gpu --out gpu-figures`; see docs/gpu.md.

Every part runs in a process of its own with a bound on its time, and leaves one JSON file. One that is there is not
measured again, so a run that was cut short goes on where it stopped; a part that failed, whose file says why, is tried
again. `--toy` runs everything on a CPU at sizes that say nothing but that it runs.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from segcore.files import write_atomically

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
RESERVE = 5.0
"""Seconds that are kept for the table at the end."""

LONGEST = 3000
"""Characters of an error that are kept, from each end."""


@dataclass(frozen=True)
class Part:
    """A function of `benchmarks.gpu_parts`, how long it is thought to take, and after how long it is ended."""

    place: str
    estimate: float
    bound: float


PARTS = {
    "matrix_rate": Part("training.matrix", 20, 60),
    "train_vgg": Part("training.train_vgg", 50, 120),
    "train_resnet101": Part("training.train_resnet101", 40, 120),
    "extraction": Part("labels.extraction", 30, 90),
    "boundary_crf": Part("labels.boundary_crf", 25, 90),
    "full_crf": Part("labels.full_crf", 40, 120),
    "determinism": Part("determinism.determinism", 100, 240),
    "memory": Part("training.memory", 45, 120),
    "compile": Part("training.compiled", 90, 240),
    "rows": Part("rows.rows", 60, 3600),
}
"""In the order in which they run: what has a bar first, what can take any time last."""


def main(given: Sequence[str] | None = None) -> int:
    """0 if nothing failed and every bar is met (toy: if nothing failed)."""
    options = _options(given)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        import_module("benchmarks.gpu_parts.rows").prepare(_context(options, time.monotonic() + options.seconds))
        return 0
    if options.inside:
        _measure(options)
        return 0
    deadline = time.monotonic() + options.seconds
    for name in options.parts:
        _part(name, options, deadline)
    told = {name: _read(options.out, name) for name in options.parts}
    print("\n".join(_table(told, options.toy)))
    return 0 if all(_is_good(one, options.toy) for one in told.values()) else 1


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files, one a part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="which; all if not given")
    parser.add_argument("--seconds", type=float, default=600, help="begin no part that would not fit (600)")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that it runs; bars are not judged")
    parser.add_argument("--voc", type=Path, help="VOCdevkit/VOC2012, for rows")
    parser.add_argument("--weights", type=Path, help="a folder with ImageNet weights, for rows")
    parser.add_argument("--data", type=Path, help="where rows keeps what it makes (<out>/rows)")
    parser.add_argument("--prepare", action="store_true", help="only make what rows needs and no GPU makes faster")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the process of one part
    return parser.parse_args(given)


def _context(options: argparse.Namespace, deadline: float) -> Any:
    from benchmarks.gpu_parts.measuring import Context

    def keep(figures: dict[str, Any]) -> None:
        _write(options.out, options.parts[0], {"error": "cut short", "figures": figures, "complete": False})

    data = options.data or options.out / "rows"
    return Context(options.toy, deadline, options.voc, options.weights, data, keep)


def _part(name: str, options: argparse.Namespace, deadline: float) -> None:
    """Run a part that is not there yet, in a process of its own: an error of the card lasts as long as its process."""
    from benchmarks.gpu_parts.rows import finished

    if (known := _read(options.out, name)) is not None and known.get("complete"):
        return
    part, left = PARTS[name], deadline - time.monotonic() - RESERVE
    if left < part.estimate:
        print(
            f"{name}: left for another call; it takes some {part.estimate:.0f} s, and {left:.0f} are left", flush=True
        )
        return
    if name == "rows" and options.voc is None:
        print("rows: left out, as --voc does not say where the pictures are", flush=True)
        return
    limit = min(part.bound, left)
    command = [sys.executable, "-m", "benchmarks.gpu", "--inside", "--parts", name, "--seconds", f"{limit:.1f}"]
    for key in ("out", "voc", "weights", "data"):
        command += [f"--{key}", str(getattr(options, key))] if getattr(options, key) else []
    command += ["--toy"] if options.toy else []
    print(f"{name} ...", flush=True)
    os.environ[CUBLAS] = ":4096:8"  # read when cuBLAS starts; without it its results may differ from run to run
    (options.out / f"{name}.json").unlink(missing_ok=True)  # of a try that failed
    begin = time.monotonic()
    code, told = finished(command, limit), _read(options.out, name) or {}
    if "part" not in told:  # it did not come to its end; a card that fails may also end a process behind its end
        why = f"ended after {limit:.0f} s" if code is None else f"its process ended with exit code {code}"
        _write(options.out, name, {"error": why, "figures": told.get("figures", {}), "complete": False})
    print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


def _measure(options: argparse.Namespace) -> None:
    """Measure the one part that is named, and write what was found, or what went wrong."""
    (name,) = options.parts
    begin = time.monotonic()
    try:
        from benchmarks.gpu_parts.measuring import machine

        place, _, function = PARTS[name].place.partition(".")
        measure: Callable[[Any], dict[str, Any]] = getattr(import_module(f"benchmarks.gpu_parts.{place}"), function)
        # A part that works piece by piece ends before it would be ended.
        told = (
            {"complete": True} | measure(_context(options, begin + options.seconds - RESERVE)) | {"machine": machine()}
        )
    except Exception as error:  # whatever it is, the next part goes on
        where = traceback.format_exc()[-LONGEST:]  # compilers tell thousands of lines
        told = {"error": f"{type(error).__name__}: {error}"[:LONGEST], "where": where, "complete": False}
        print(where, file=sys.stderr)
    seconds = round(time.monotonic() - begin, 1)
    _write(options.out, name, told | {"part": name, "toy": options.toy, "seconds": seconds})


def _write(out: Path, name: str, content: dict[str, Any]) -> None:
    write_atomically(out / f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())


def _read(out: Path, name: str) -> dict[str, Any] | None:
    file = out / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _is_good(told: dict[str, Any] | None, toy: bool) -> bool:
    """A part that was left for another call is no fault."""
    return told is None or ("error" not in told and (toy or all(bar["met"] for bar in told["bars"].values())))


def _table(told: dict[str, dict[str, Any] | None], toy: bool) -> list[str]:
    """A line a part, with its bars; figures are in the files."""
    lines = ["", "| part | s | what it is judged by | |", "| --- | --- | --- | --- |"]
    for name, one in told.items():
        if one is None:
            lines.append(f"| {name} | | | not measured |")
        elif "error" in one:
            lines.append(f"| {name} | {one.get('seconds', '')} | {' '.join(one['error'].split())[:160]} | failed |")
        else:
            bars = "; ".join(_shown(title, bar) for title, bar in one["bars"].items()) or "no bar"
            verdict = "toy" if toy else "met" if _is_good(one, toy) else "missed"
            left = "" if one["complete"] else f", left: {', '.join(one['left'])}"
            lines.append(f"| {name} | {one['seconds']} | {bars}{left} | {verdict} |")
    return lines


def _shown(title: str, bar: dict[str, Any]) -> str:
    sign, bound = (">=", bar["at_least"]) if "at_least" in bar else ("<=", bar["at_most"])
    return f"{title} {bar['value']:.3g} ({sign} {bound:g})"


if __name__ == "__main__":
    sys.exit(main())
