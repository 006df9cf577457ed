"""Today's results beside those of another commit: what changed, how far chance explains it, which parameters differ.

What the other commit holds was laid into a folder before (`cli.revisions`); here it is read as today's results are,
but for their state: today's code cannot say what that commit's parameters meant, so its own results are taken as they
lie there, and those of other seeds only where today's code knows its parameters.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segcore import made_of
from segcore.config import reading
from segcore.config.settings import Settings
from segcore.errors import Problem
from segcore.evaluation import per_image
from segcore.reporting import kept
from segcore.reporting.chance import BySeed, Difference, difference, paired
from segcore.reporting.reading import read_scores
from segcore.reporting.results import Results, scored_by_seed

PARAMS = "params.yaml"
RESULTS = "results"
FILES = ("metrics.json", per_image.FILE, made_of.FILE, kept.SPLIT)
"""What is read of each result of another commit."""


@dataclass(frozen=True)
class Change:
    """A system then and now: mIoU as fractions over the seeds that both have, None where one has no result.

    `over` is None where there is no telling, for the reason `why`; seeds of other images are left out.
    """

    system: str
    then: float | None
    now: float | None
    over: Difference | None
    why: str
    classes: Mapping[str, float]
    """How much the IoU of each class that both measured grew."""


@dataclass(frozen=True)
class Earlier:
    """What is told of another commit: its name, the changes of each system, and parameters as (key, then, now)."""

    commit: str
    changes: list[Change]
    params: list[tuple[str, str, str]]


@dataclass(frozen=True)
class _Then:
    by_seed: BySeed
    metrics: dict[str, Any]


def beside(results: Results, commit: str, folder: Path) -> Earlier:
    """Today's results beside those that `folder` holds of `commit`: a params.yaml and data/<name>/results.

    Raises:
        Problem: it has no results of this data set, or one is damaged.
    """
    given = reading.read(folder / PARAMS)
    data = folder / "data" / results.settings.dataset.name
    then = dict(_systems(data, given))
    if not then:
        raise Problem(
            f"commit {commit} has no results in data/{data.name}; `git log data/{data.name}/results` lists those"
        )
    now = {entry.system: entry for entry in results.entries}
    metrics = {row.system: row.metrics for row in results.rows}
    names = [row.system for row in results.ranked if row.system in now or row.system in then]
    names += [system for system in then if system not in names]
    changes = [_change(name, then.get(name), now[name].by_seed if name in now else None, metrics) for name in names]
    return Earlier(commit, changes, changed_values(given, results.settings.given))


def _systems(data: Path, given: Mapping[str, Any]) -> Iterator[tuple[str, _Then]]:
    settings = _known(given)
    for folder in sorted((data / RESULTS).glob("*")):
        if not (folder / "metrics.json").is_file():
            continue
        metrics = read_scores(folder / "metrics.json")
        if not (folder / per_image.FILE).is_file() or "data_set" not in made_of.read(folder):
            yield folder.name, _Then({}, metrics)
            continue
        folders = [(int(given.get("seed", 0)), folder)]
        if settings is not None and folder.name in settings.systems:
            folders += kept.seeds_of(data, settings, folder.name, made_of.read(folder)["data_set"])
        yield folder.name, _Then(scored_by_seed(folders, list(metrics["iou"])), metrics)


def _known(given: Mapping[str, Any]) -> Settings | None:
    """Another commit's parameters, where today's code knows them."""
    try:
        return Settings(given)
    except Problem:
        return None


def _change(system: str, then: _Then | None, now: BySeed | None, metrics: Mapping[str, dict[str, Any]]) -> Change:
    if then is None:
        assert now is not None
        return Change(system, None, _mean(now), None, "not there then", {})
    if now is None:
        return Change(system, then.metrics.get("mean_iou"), None, None, "no current result", {})
    ious, before = metrics[system]["iou"], then.metrics["iou"]
    classes = {
        name: iou - before[name] for name, iou in ious.items() if iou is not None and before.get(name) is not None
    }
    shared = then.by_seed.keys() & now.keys()
    if not shared:
        why = "other seeds" if then.by_seed else f"its {per_image.FILE} is neither in Git nor in DVC's cache"
        return Change(system, then.metrics.get("mean_iou"), _mean(now), None, why, classes)
    same = paired(then.by_seed, now)
    old, new = ({seed: of[seed] for seed in same or shared} for of in (then.by_seed, now))
    if not same:
        return Change(system, _mean(old), _mean(new), None, "other images", {})
    return Change(system, _mean(old), _mean(new), difference(new, old), "no validation image has a mask", classes)


def _mean(by_seed: BySeed) -> float | None:
    """None where no image has a known pixel."""
    mean = float(np.mean([scored.mean_iou for scored in by_seed.values()]))
    return None if math.isnan(mean) else mean


def changed_values(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Dotted keys of which the values differ, with both as text; empty where there is none."""
    old, new = dict(_leaves(then)), dict(_leaves(now))
    keys = [*new, *(key for key in old if key not in new)]
    return [(key, old.get(key, ""), new.get(key, "")) for key in keys if old.get(key) != new.get(key)]


def _leaves(content: Any, above: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _leaves(value, f"{above}.{key}" if above else str(key))
    else:
        yield above, str(content)
