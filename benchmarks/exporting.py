"""Every finished system as an ONNX file: `python -m benchmarks.exporting --data data/shapes --int8`.

Each model of the data set is exported as `segcore export-model` does it, into a folder that goes again. Told are the
share of pixels to which onnxruntime gives the model's class, and the greatest difference of any score, on validation
images of the data set; the file's size; times of one image, and with `--int8` what 8-bit weights cost. A system that
cannot be exported says why. Bars: every system is exported or says why, and has the model's class at 99.9 % of the
pixels. `--out docs/tables/exporting.csv` writes the table that docs/own-data.md shows; rows of systems that are not
named by `--systems` stay as they are in it.
"""

import argparse
import csv
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from segcore.cli import provenance
from segcore.errors import Problem
from segcore.exporting import agreement, run
from segcore.files import write_atomically

HEADER = ("system", "batch", "sides", "same class, %", "scores within", "MB", "ms in torch", "ms in onnxruntime")
INT8 = ("8 bits: MB", "points of mIoU", "ms")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/shapes"), help="data/<data set>")
    parser.add_argument("--systems", nargs="+", help="all that are there unless named")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--out", type=Path, help="a CSV, and what made it in a JSON beside it")
    given = parser.parse_args(arguments)
    names = given.systems or sorted(path.parents[1].name for path in given.data.glob("segmenters/*/model/model.json"))
    if not names:
        print(f"error: {given.data} holds no finished system; `dvc repro` makes them")
        return 2
    header = [*HEADER, *(INT8 if given.int8 else ())]
    rows, missed = [], []
    for name in names:
        cells, is_met = row(given.data / "segmenters" / name, given.int8)
        rows.append([name, *cells, *[""] * (len(header) - 1 - len(cells))])
        missed += [] if is_met else [name]
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    print(f"    (bars: each exported or a reason named; the same class at {agreement.SAME_LABELS:.1%} of the pixels)")
    if given.out is not None:
        write(given.out, header, rows, given.int8)
    return 1 if missed else 0


def row(model: Path, int8: bool) -> tuple[list[str], bool]:
    """The cells of a system after its name, and whether the bars are met."""
    wanted = run.Wanted("onnx", False, int8, None, [], None, None)
    with tempfile.TemporaryDirectory(prefix="exporting-") as folder:
        try:
            card = run.export_model(model, Path(folder) / "out", wanted)
        except Problem as problem:
            # What does not agree is not kept, and no reason is wrong enough to be one.
            return [f"no: {problem}"], "so it was not kept" not in str(problem)
    return cells(card), True


def cells(card: dict[str, Any]) -> list[str]:
    """What the card of an export says."""
    checked, loss, shape = card["checked"], card["int8"], card["input"]["shape"]
    told = [
        "any" if shape[0] == "batch" else str(shape[0]),
        "any" if shape[2] == "height" else str(shape[2]),
        f"{100 * checked['same_labels']:.4f}",
        f"{checked['scores']:.1e}" + (f" (torch itself {own:.1e})" if (own := checked["rounding"]) is not None else ""),
        f"{card['bytes'] / 1e6:.1f}",
        f"{checked['torch_milliseconds']:.1f}",
        f"{checked['milliseconds']:.1f}",
    ]
    if loss is not None:
        lost = 100 * (loss["mean_iou_int8"] - loss["mean_iou"])
        told += [f"{loss['bytes_int8'] / 1e6:.1f}", f"{lost:+.2f}", f"{loss['milliseconds_int8']:.1f}"]
    return told


def write(path: Path, header: list[str], rows: list[list[str]], int8: bool) -> None:
    """The table, and what made it; rows of other systems that are in a table of the same columns stay."""
    known: list[list[str]] = []
    if path.is_file():
        with path.open(newline="") as lines:
            first, *known = csv.reader(lines)
        known = known if first == header else []
    every = {row[0]: row for row in [*known, *rows]}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *(every[name] for name in sorted(every))])
    command = f"python -m benchmarks.exporting{' --int8' if int8 else ''} --out {path.as_posix()}"
    threads = torch.get_num_threads()
    about = {
        "command": command,
        "commit": provenance.commit(),
        "machine": f"{provenance.machine()}, {threads} thread{'' if threads == 1 else 's'}",
    }
    write_atomically(path, text.getvalue().encode())
    write_atomically(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
