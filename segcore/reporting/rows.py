"""The tables that runs leave behind, as rows of text for a document: the header first."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segcore.reporting import comparison
from segcore.reporting.chance import Difference

SCORES = {"mean_iou": "mIoU", "pixel_accuracy": "pixel accuracy", "boundary_f": "boundary F"}
COUNTS = {"masks_per_class": "masks per class", "tagged_images": "tagged images"}
OVER_SEEDS = (comparison.MEAN, comparison.STD)
OVER = {"over_masks_only": "over masks only", "over_next": "over the next row"}
ENDS = ("", "_low", "_high")
AMOUNTS = {"masks_per_class": 1, "masks": 0, "tagged": 0, "hours": 1}
"""Columns of a curve, and the digits that are told of them."""

PUBLISHED = "published"
STATE, CURRENT, MISSING = "state", "current", "missing"


def systems(file: Path) -> tuple[list[list[str]], str]:
    """The rows of the report's table, scores in per cent, best system first, after it what is stale; and their note.

    Systems without a result are left out, and the states and the papers' numbers too, where there are none to tell.
    """
    read = _read(file)
    if STATE in read:
        read = read.loc[read[STATE] != MISSING]
    numbers = [*SCORES, *comparison.OVER_SEEDS, PUBLISHED, *(f"{over}{end}" for over in OVER for end in ENDS)]
    ranked = read.assign(**{n: pd.to_numeric(read[n], errors="coerce") for n in numbers if n in read})
    by_seeds = {*OVER_SEEDS} <= {*ranked}
    of_all = ranked["mean_iou"]  # of the seed in params.yaml, which every row has
    best = ranked[comparison.SHARED].fillna(of_all) if comparison.SHARED in ranked else of_all
    ranked = ranked.assign(best=best).sort_values("best", ascending=False, kind="stable")
    told = STATE in ranked and {*ranked[STATE]} != {CURRENT}
    if told:
        ranked = ranked.sort_values(STATE, key=lambda states: states != CURRENT, kind="stable")
    columns: dict[str, Any] = {"system": ranked["system"]} | {
        title: ranked[name].map(_percent) for name, title in SCORES.items()
    }
    if by_seeds:
        columns |= _of_seeds(ranked, columns)
    if PUBLISHED in ranked and not all(map(pd.isna, ranked[PUBLISHED])):
        columns["published"] = ranked[PUBLISHED].map(lambda value: "-" if pd.isna(value) else f"{value:.1f}")
    columns |= {title: ranked[name].map(_grouped) for name, title in COUNTS.items()}
    if told:
        columns["state"] = ranked[STATE]
    notes = comparison.notes(*(_seeds(ranked, column) for column in (comparison.APART, comparison.OTHER_CODE)))
    note = f"\n{' '.join(notes)}\n" if by_seeds else ""
    return [[*columns], *map(list, zip(*columns.values(), strict=True))], note


def seeds(file: Path, shown: list[list[str]]) -> str:
    """Of which seeds some rows and columns of the report's table are; empty where mIoU is not among them."""
    header, *body = shown
    of = _seeds(_read(file), comparison.SEEDS)
    found = [of[row[0]] for row in body if of.get(row[0])]
    if "mIoU" not in header or not found:
        return ""
    same = all(seeds == found[0] for seeds in found)
    if same and len(found[0]) == 1:
        return f"seed {found[0][0]}"
    over = f"seeds {', '.join(found[0])}" if same else "the seeds of each row"
    return f"mIoU: mean ± standard deviation over {over}, other scores of the seed in params.yaml"


def _seeds(read: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """By system; nothing where the file does not tell."""
    return dict(zip(read["system"], read[column].str.split(), strict=True)) if column in read else {}


def _of_seeds(ranked: pd.DataFrame, columns: dict[str, Any]) -> dict[str, pd.Series]:
    """mIoU over the seeds, how many they are, and the differences to two other rows."""
    means = [comparison.spread(*pair) for pair in ranked[[*OVER_SEEDS]].itertuples(index=False)]
    found = {"mIoU": pd.Series(means, ranked.index).where(lambda text: text != "", columns["mIoU"])}
    found["seeds"] = ranked["seeds"].str.split().map(len).map(str).replace("0", "-")
    for over, title in OVER.items():
        rows = ranked[[f"{over}{end}" for end in ENDS]].itertuples(index=False)
        texts = ["-" if pd.isna(at) else comparison.told(Difference(at, low, high, 0, 0)) for at, low, high in rows]
        found[title] = pd.Series(texts, ranked.index, dtype=str)
    return found


def curve(file: Path) -> tuple[list[list[str]], str]:
    """The rows of a curve, one a system and point, over its seeds; and nothing to note."""
    header = ["system", "masks per class", "images with masks", "images with tags", "hours", "mIoU", "seeds"]
    rows = [header]
    for _, some in pd.read_csv(file).groupby(["system", "point"], sort=False):
        scores = some["mean_iou"].to_numpy(np.float64)
        std = float(scores.std(ddof=1)) if len(scores) > 1 else None
        amounts = (f"{some[name].to_numpy().mean():,.{digits}f}" for name, digits in AMOUNTS.items())
        rows.append(
            [str(some["system"].iloc[0]), *amounts, comparison.spread(float(scores.mean()), std), str(len(some))]
        )
    return rows, ""


def _percent(fraction: float) -> str:
    return "-" if pd.isna(fraction) else f"{100 * fraction:.1f}"


def _grouped(count: str) -> str:
    return f"{int(count):,}" if count.isdigit() else count


def _read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype=dict.fromkeys([*COUNTS, STATE, *comparison.OF_SEEDS], str), keep_default_na=False)
