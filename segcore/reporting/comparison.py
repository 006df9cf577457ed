"""The rows of the table beside each other: mean and spread over seeds, and differences with what chance may explain."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from segcore.reporting.chance import BySeed, Difference, difference, paired

NOTE = (
    "In per cent; mIoU over several seeds is mean ± standard deviation of single ones, other scores are of the seed in "
    "params.yaml. Rows are ranked over the seeds that all of them have. Differences, in points, are over the "
    "seeds that both rows have, with 95 % intervals over images and seeds (with one seed over images alone), level "
    "where the interval holds 0."
)
TOO_FEW = "too few images for an interval"
DIGITS = 5
"""Of fractions, which are told in tenths of a point."""
SEEDS, APART, OTHER_CODE = OF_SEEDS = ("seeds", "seeds_apart", "seeds_of_other_code")
MEAN, STD, SHARED = OVER_SEEDS = ("mean_over_seeds", "std_over_seeds", "mean_over_shared_seeds")
"""Columns of the table as a file."""


@dataclass(frozen=True)
class Entry:
    """A system's current results, and whether it learned from masks alone."""

    system: str
    by_seed: BySeed
    masks_only: bool
    other_code: tuple[int, ...] = ()
    """Seeds of which the result is of other code than today's, or of unknown code."""

    @property
    def mean(self) -> float:
        return self.mean_over(self.by_seed)

    def mean_over(self, seeds: Collection[int]) -> float:
        return float(np.mean([self.by_seed[seed].mean_iou for seed in seeds]))


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
    shared_mean: float
    """Over the seeds that all rows have of the same images, by which they are ranked."""
    apart: tuple[int, ...]
    """Seeds left out of a difference, as the other row has them of other images."""
    other_code: tuple[int, ...]


def compared(entries: Sequence[Entry]) -> dict[str, Compared]:
    """By system, the best one first; a system without any score is left out.

    Raises:
        ValueError: there is no seed that all have of the same images, so that nothing ranks them.
    """
    scored = [entry for entry in entries if not math.isnan(entry.mean)]
    shared = _shared(scored)
    ranked = sorted(scored, key=lambda entry: -entry.mean_over(shared))
    best = next((entry for entry in ranked if entry.masks_only), None)
    return {
        entry.system: Compared(
            seeds=tuple(sorted(entry.by_seed)),
            mean=entry.mean,
            std=_std(entry.by_seed),
            over_masks=_over(entry, None if entry is best else best),
            over_next=_over(entry, after),
            shared_mean=entry.mean_over(shared),
            apart=_apart(entry, best, after),
            other_code=entry.other_code,
        )
        for entry, after in zip_longest(ranked, ranked[1:])
    }


def _shared(entries: Sequence[Entry]) -> list[int]:
    found = set.intersection(*({*paired(entries[0].by_seed, entry.by_seed)} for entry in entries)) if entries else set()
    if entries and not found:
        raise ValueError("the rows have no seed in common that was measured on the same images")
    return sorted(found)


def _apart(entry: Entry, *others: Entry | None) -> tuple[int, ...]:
    apart: set[int] = set()
    for other in others:
        if other is not None:
            apart |= (entry.by_seed.keys() & other.by_seed.keys()) - {*paired(entry.by_seed, other.by_seed)}
    return tuple(sorted(apart))


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
    """In points of per cent: `+4.7 (+3.1 to +6.3)`, or the same and `level`; empty without another row."""
    if over is None:
        return ""
    if math.isnan(over.low):
        return f"{100 * over.estimate:+.1f} ({TOO_FEW})"
    text = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in (over.estimate, over.low, over.high)))
    return f"{text}, level" if over.level else text


def notes(apart: Mapping[str, Collection[object]], other_code: Mapping[str, Collection[object]]) -> list[str]:
    """What stands below the table of systems: how to read it, and what is odd in it; both are seeds by system."""
    odd = [
        f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)} of {name}" for name, seeds in apart.items() if seeds
    ]
    found = [NOTE]
    if odd:
        found.append(f"Left out of differences, as the other row saw other images: {'; '.join(odd)}.")
    if count := sum(map(len, other_code.values())):
        found.append(f"Results of other seeds that are of earlier or unknown code, and counted: {count}.")
    return found


def _listed(seeds: Collection[object]) -> str:
    return ", ".join(map(str, seeds))


def columns(found: Compared | None) -> dict[str, Any]:
    """What the table of systems tells of seeds and of chance; fractions, rounded."""
    if found is None:
        return dict.fromkeys(OF_SEEDS, "") | dict.fromkeys(OVER_SEEDS) | _ends(None, None)
    texts = (" ".join(map(str, seeds)) for seeds in (found.seeds, found.apart, found.other_code))
    values = (None if value is None else round(value, DIGITS) for value in (found.mean, found.std, found.shared_mean))
    own = dict(zip((*OF_SEEDS, *OVER_SEEDS), (*texts, *values), strict=True))
    return own | _ends(found.over_masks, found.over_next)


def _ends(*overs: Difference | None) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, over in zip(("over_masks_only", "over_next"), overs, strict=True):
        values = (None,) * 3 if over is None else (over.estimate, over.low, over.high)
        ends = zip(("", "_low", "_high"), values, strict=True)
        found |= {f"{name}{end}": value if value is None else round(value, DIGITS) for end, value in ends}
    return found
