"""What a reader must be told before the numbers: systems that find nothing, classes that one of them never finds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segcore.errors import some
from segcore.reporting.states import Row

BACKGROUND = 0
"""The place of the class that is no object among those of a system's scores."""


@dataclass(frozen=True)
class Group:
    """Current rows that learned from the same, best first, and the best score of each class among them."""

    title: str
    rows: list[Row]
    best: dict[str, float]
    best_mean: float | None


def groups(ranked: Sequence[Row], names: Sequence[str]) -> list[Group]:
    """The current rows by what they learned from; the group of the best row first."""
    made = []
    for title in dict.fromkeys(row.learned_from for row in ranked):
        rows = [row for row in ranked if row.learned_from == title]
        ious = {name: [row.metrics["iou"].get(name) for row in rows] for name in names}
        best = {name: max((iou for iou in values if iou is not None), default=0.0) for name, values in ious.items()}
        means = [row.metrics["mean_iou"] for row in rows if row.metrics["mean_iou"] is not None]
        made.append(Group(title, rows, best, max(means, default=None)))
    return made


def objects(metrics: Mapping[str, Any]) -> dict[str, float]:
    """IoU of every object that a validation mask or the system itself shows."""
    found = [*metrics.get("iou", {}).items()]
    return {name: iou for name, iou in found[BACKGROUND + 1 :] if iou is not None}


def finds_nothing(metrics: Mapping[str, Any]) -> bool:
    """Whether no pixel of any object is right: such a mIoU is that of the background."""
    found = objects(metrics)
    return bool(found) and not any(found.values())


def winner(ranked: Sequence[Row]) -> Row | None:
    """The first row, if it has found anything; where the best found nothing, no other is put in its place."""
    return ranked[0] if ranked and not finds_nothing(ranked[0].metrics) else None


def warnings(ranked: Sequence[Row]) -> Iterator[str]:
    """A sentence for each current row that scores 0 on objects."""
    for row in ranked:
        found = objects(row.metrics)
        zero = [name for name, iou in found.items() if not iou]
        if finds_nothing(row.metrics):
            yield f"{row.system} finds no object: every class but the background scores 0, whatever its mIoU says"
        elif zero:
            yield f"{row.system} scores 0 on {len(zero)} of {len(found)} objects: {some(zero, most=8)}"
