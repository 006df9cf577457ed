"""What stages left behind, as the report reads it: each file whole, or one clear error."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from segcore.errors import Problem
from segcore.files import from_cell

AGAIN = "delete it and run the stage that writes it again"
SCORES = ("mean_iou", "mean_iou_foreground", "pixel_accuracy", "mean_accuracy", "boundary_f")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a stage's file; nothing where it is not there.

    Raises:
        Problem: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        raise Problem(f"{path} is not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise Problem(f"{path} is damaged: it holds a {type(content).__name__} instead of named values; {AGAIN}")
    return content


def read_scores(path: Path) -> dict[str, Any]:
    """The scores of a system.

    Raises:
        Problem: the file is damaged.
    """
    content = read_json(path)
    of_classes = content.get("iou")
    known = [content.get(name) for name in SCORES]
    known += [*of_classes.values()] if isinstance(of_classes, dict) else [False]
    if not all(value is None or type(value) in (int, float) for value in known):
        raise Problem(f"{path} is damaged: it holds no scores; {AGAIN}")
    return content


def read_counts(path: Path) -> tuple[list[str], Int64[np.ndarray, "K K"]]:
    """The names of the classes and how often a pixel of each (row) was taken for each (column).

    Names are text, whatever they look like: no reader guesses at them.

    Raises:
        Problem: the file is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            (_, *header), *rows = csv.reader(file)
        names, lines = [from_cell(cell) for cell in header], [[int(cell) for cell in row[1:]] for row in rows]
        counts = np.array(lines, dtype=np.int64).reshape(len(names), len(names))
        if [from_cell(row[0]) for row in rows] != names or not names or counts.min() < 0:
            raise ValueError("its rows are not those of its columns")
    except (OSError, ValueError, OverflowError, csv.Error, IndexError) as error:
        raise Problem(f"{path} is damaged ({error}); {AGAIN}") from None
    return names, counts


def read_curve(path: Path) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Steps, and what DVCLive recorded in each.

    Raises:
        Problem: the file is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, delimiter="\t")
        value = [place for place, column in enumerate(header) if column not in ("step", "timestamp")][-1]
        pairs = [(float(row[header.index("step")]), float(row[value])) for row in rows]
    except (OSError, ValueError, csv.Error, IndexError) as error:
        raise Problem(f"{path} is damaged ({error}); {AGAIN}") from None
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, values
