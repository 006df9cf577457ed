"""mIoU against annotation: what has to be run, what came of it, and what it says of the next hour.

Masks are varied with all tags, tags with the masks of today's split: a cross instead of the whole rectangle, as the law
(`law.Law`) is a sum. A system that sees no masks has a point at 0 masks and no other, one that sees no tags is not run
with fewer of them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segcore import made_of
from segcore.config.settings import Settings
from segcore.errors import Problem
from segcore.evaluation import per_image
from segcore.reporting import kept, law
from segcore.reporting.chance import Scored
from segcore.reporting.reading import read_json
from segcore.reporting.supervision import supervision

FOLDER = "curve"
ALL = "all"
POINT = re.compile(r"masks_(\d+|all)|tagged_\d+", re.ASCII)
COLUMNS = ("system", "point", "seed", "masks_per_class", "masks", "tagged", "hours", "mean_iou")


@dataclass(frozen=True)
class Point:
    """A place on the curve: masks per class (`all`, or 0 for systems that see none) or tagged images, and a seed."""

    name: str
    changes: dict[str, Any]

    @classmethod
    def of_masks(cls, masks: str) -> "Point":
        """So many masks per class, with all tags.

        Raises:
            Problem: neither a whole number nor `all`.
        """
        if masks == ALL:
            return cls(f"masks_{ALL}", {"split.strong": {"kind": "all"}})
        if not masks.isdecimal():
            raise Problem(f"--masks: found '{masks}'; allowed are whole numbers, a class, and {ALL}")
        count = int(masks)
        return cls(f"masks_{count}", {"split.strong": {"kind": "per_class", "images": count}} if count else {})

    @classmethod
    def of_tags(cls, images: int) -> "Point":
        """So many tagged images, with the masks of today's split."""
        return cls(f"tagged_{images}", {"split.weak_images": images})

    def suits(self, sees_masks: bool, sees_tags: bool) -> str:
        """Why a system is not run here; empty where it is."""
        if self.name == "masks_0":
            return "it needs masks" if sees_masks else ""
        if self.name.startswith("masks_"):
            return "" if sees_masks else "it sees no masks"
        return "" if sees_tags else "it sees no tags"


def experiments(
    settings: Settings,
    data: Path,
    systems: Sequence[str],
    points: Sequence[Point],
    seeds: Sequence[int],
    say: Callable[[str], None],
) -> list[kept.Experiment]:
    """Everything to run, those of one copy of the project one after the other; what is skipped is told once."""
    wanted = []
    for point in points:
        chosen = []
        for system in systems:
            masks, by_tags = supervision(system, settings)
            if why := point.suits(masks is not None, by_tags):
                say(f"{system}: no point {point.name}: {why}")
            else:
                chosen.append(system)
        wanted += [
            kept.Experiment(system, {"seed": seed} | point.changes, data / FOLDER / system / point.name / str(seed))
            for seed in dict.fromkeys(seeds)
            for system in chosen
        ]
    return wanted


@dataclass(frozen=True)
class Measured:
    """One result that is kept and current, and what it took."""

    line: dict[str, Any]
    scored: Scored


def measured(data: Path, settings: Settings, data_set: str | None, cost: law.Cost) -> list[Measured]:
    """All points of today's parameters that are kept, of systems that are still there."""
    found = []
    for folder in sorted(_folders(data, settings), key=_order):
        system, name, seed = folder.relative_to(data / FOLDER).parts
        own = kept.changed(settings, {"seed": int(seed)} | _point(name).changes)
        if kept.is_current(folder, own, system, data_set):
            found.append(_measured(folder, own, system, name, int(seed), cost))
    return found


def _folders(data: Path, settings: Settings) -> Iterator[Path]:
    """Those whose names are a system, a point and a seed; whatever else lies there is nobody's result."""
    for folder in (data / FOLDER).glob("*/*/*"):
        system, name, seed = folder.relative_to(data / FOLDER).parts
        if system in settings.systems and POINT.fullmatch(name) and seed.isdecimal() and folder.is_dir():
            yield folder


def _order(folder: Path) -> tuple[str, str, int, int]:
    kind, _, amount = folder.parent.name.partition("_")
    return folder.parts[-3], kind, int(amount) if amount.isdecimal() else 10**9, int(folder.name)


def _point(name: str) -> Point:
    kind, _, amount = name.partition("_")
    return Point.of_masks(amount) if kind == "masks" else Point.of_tags(int(amount))


def _measured(folder: Path, settings: Settings, system: str, name: str, seed: int, cost: law.Cost) -> Measured:
    split, metrics = read_json(folder / kept.SPLIT), read_json(folder / "metrics.json")
    classes = list(metrics["iou"])
    sees_masks, by_tags = supervision(system, settings)
    masks, tagged = split["strong"] if sees_masks is not None else 0, split["weak"] if by_tags else 0
    # The tags of an image come with its masks.
    only_tags = (split["weak_without_mask"] if masks else tagged) if by_tags else 0
    scored = Scored(per_image.read(folder, classes), made_of.read(folder)["data_set"])
    values = (
        *(system, name, seed, round(masks / (len(classes) - 1), 2), masks, tagged),
        *(round((cost.mask * masks + cost.tag * only_tags) / 3600, 2), round(scored.mean_iou, 5)),
    )
    return Measured(dict(zip(COLUMNS, values, strict=True)), scored)


def table(points: Sequence[Measured]) -> pd.DataFrame:
    """A line a result."""
    return pd.DataFrame([point.line for point in points], columns=pd.Index(COLUMNS))


def laws(points: Sequence[Measured]) -> dict[str, law.Law]:
    """By system, of those with points enough for one."""
    found = {}
    for system, of_system in _by_system(points).items():
        some, _ = _telling(of_system)
        tags, masks, mean_iou = _arrays(some)
        if len(some) > 1 + 2 * len(law.varied(tags, masks)):
            found[system] = law.fitted(tags, masks, mean_iou)
    return found


def advice(points: Sequence[Measured], settings: Settings, split: dict[str, Any], cost: law.Cost) -> list[str]:
    """A sentence a system: what the next hour after today's `split` is best spent on, or why that cannot be told."""
    sentences = []
    for system, of_system in _by_system(points).items():
        some, left_out = _telling(of_system)
        sentences += [f"{system}: {why}." for why in left_out]
        sees_masks, by_tags = supervision(system, settings)
        now = (split["weak"] if by_tags else 0, split["strong"] if sees_masks is not None else 0)
        tags, masks, mean_iou = _arrays(some)
        if not law.varied(tags, masks):
            sentences.append(f"{system}: one amount of annotation tells nothing of another.")
            continue
        drawn = np.stack([point.scored.drawn for point in some], axis=1)
        try:
            sentences.append(law.advice(system, law.gains(tags, masks, mean_iou, drawn, now, cost)))
        except Problem as problem:
            sentences.append(f"{system}: {problem}.")
    return sentences


def _telling(points: Sequence[Measured]) -> tuple[list[Measured], list[str]]:
    """The points of one system that a law is fitted to, and why others are not.

    A point with fewer tags needs others with as many masks and other tags: a law without tags would take what it lacks
    for chance.
    """
    some = [point for point in points if np.isfinite(point.scored.mean_iou)]
    why = []
    if len(some) < len(points):
        why.append(f"{len(points) - len(some)} of {len(points)} points have no mIoU and are left out")
    whole = [point for point in some if not point.line["point"].startswith("tagged_")]
    if len(whole) < len(some) and "tags" not in law.varied(*_arrays(some)[:2]):
        why.append("points with fewer tags are left out, as no others have as many masks")
        some = whole
    return some, why


def _by_system(points: Sequence[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for point in points:
        found.setdefault(point.line["system"], []).append(point)
    return found


def _arrays(points: Sequence[Measured]) -> tuple[law.Amounts, law.Amounts, law.Amounts]:
    tags, masks = (np.array([point.line[name] for point in points], dtype=np.float64) for name in ("tagged", "masks"))
    return tags, masks, np.array([point.scored.mean_iou for point in points])
