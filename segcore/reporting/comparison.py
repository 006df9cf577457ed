"""The rows of the table beside each other: mean and spread over seeds, and differences with what chance may explain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from segcore.reporting.chance import BySeed, Difference, difference

NOTE = (
    "mIoU in per cent, mean ± standard deviation of single seeds; differences in points with 95 % intervals over "
    "images and seeds (with one seed over images alone), level where the interval holds 0."
)
DIGITS = 5
"""Of fractions, which are told in tenths of a point."""


@dataclass(frozen=True)
class Entry:
    """A system's current results, and whether it learned from masks alone."""

    system: str
    by_seed: BySeed
    masks_only: bool

    @property
    def mean(self) -> float:
        return float(np.mean([scored.mean_iou for scored in self.by_seed.values()]))


@dataclass(frozen=True)
class Compared:
    """mIoU of a system as a fraction: over its seeds, and beside two other rows.

    `over_masks` is the difference to the best row that saw masks alone, `over_next` that to the next row below, which
    was the best before this one came. Both are None for a row that is that row itself, or the last.
    """

    seeds: tuple[int, ...]
    mean: float
    std: float | None
    """Of single seeds (n - 1); None for one seed."""
    over_masks: Difference | None
    over_next: Difference | None


def compared(entries: Sequence[Entry]) -> dict[str, Compared]:
    """By system, the best one first; a system without any score is left out."""
    ranked = sorted((entry for entry in entries if not math.isnan(entry.mean)), key=lambda entry: -entry.mean)
    best = next((entry for entry in ranked if entry.masks_only), None)
    return {
        entry.system: Compared(
            seeds=tuple(sorted(entry.by_seed)),
            mean=entry.mean,
            std=_std(entry.by_seed),
            over_masks=_over(entry, None if entry is best else best),
            over_next=_over(entry, after),
        )
        for entry, after in zip_longest(ranked, ranked[1:])
    }


def _over(entry: Entry, other: Entry | None) -> Difference | None:
    return None if other is None else difference(entry.by_seed, other.by_seed)


def _std(by_seed: BySeed) -> float | None:
    values = [scored.mean_iou for scored in by_seed.values()]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def spread(mean: float | None, std: float | None) -> str:
    """In per cent: `58.9`, or `58.9 ± 1.2` over several seeds; empty without a score."""
    if mean is None or math.isnan(mean):
        return ""
    return f"{100 * mean:.1f}" + ("" if std is None or math.isnan(std) else f" ± {100 * std:.1f}")


def told(over: Difference | None) -> str:
    """In points of per cent: `+4.7 (+3.1 to +6.3)`, or `level` and the same; empty without another row."""
    if over is None:
        return ""
    text = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in (over.estimate, over.low, over.high)))
    return f"{text}, level" if over.level else text


def columns(found: Compared | None) -> dict[str, Any]:
    """What the table of systems tells of seeds and of chance; fractions, rounded."""
    if found is None:
        return {"seeds": "", "mean_over_seeds": None, "std_over_seeds": None} | _ends(None, None)
    seeds, std = " ".join(map(str, found.seeds)), None if found.std is None else round(found.std, DIGITS)
    own = {"seeds": seeds, "mean_over_seeds": round(found.mean, DIGITS), "std_over_seeds": std}
    return own | _ends(found.over_masks, found.over_next)


def _ends(*overs: Difference | None) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, over in zip(("over_masks_only", "over_next"), overs, strict=True):
        values = (None,) * 3 if over is None else (over.estimate, over.low, over.high)
        ends = zip(("", "_low", "_high"), values, strict=True)
        found |= {f"{name}{end}": value if value is None else round(value, DIGITS) for end, value in ends}
    return found
