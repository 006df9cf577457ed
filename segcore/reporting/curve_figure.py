"""The curve as a picture: mIoU against masks per class, and against hours of a person's time."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, StrMethodFormatter

from segcore.reporting.law import Law

STEPS = 200


def draw(points: pd.DataFrame, laws: Mapping[str, Law]) -> bytes:
    """A PNG of the table of `curve.table`: a mark a system and point, its spread over seeds, and the fitted laws.

    On the left only points with all tags; on the right also those with fewer, as open marks.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (system, some) in enumerate(points.groupby("system", sort=False)):
        colour, marks = f"C{number % 10}", [_mark(of_point) for _, of_point in some.groupby("point", sort=False)]
        whole = [mark for mark in marks if not mark.fewer_tags]
        _draw_marks(left, [mark.masks_per_class for mark in whole], whole, colour, str(system))
        _draw_marks(right, [mark.hours for mark in whole], whole, colour, str(system))
        fewer = [mark for mark in marks if mark.fewer_tags]
        _draw_marks(right, [mark.hours for mark in fewer], fewer, colour, None)
        if str(system) in laws and len({mark.masks for mark in whole}) > 1:
            _draw_law(left, whole, laws[str(system)], colour)
    for axes, label in ((left, "masks per class"), (right, "hours of annotation")):
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_locator(FixedLocator([0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("mIoU, per cent")
    left.legend(frameon=False)
    right.set_title("open marks: fewer tagged images", fontsize=9, loc="right")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


@dataclass(frozen=True)
class Mark:
    """One system at one point, over its seeds."""

    fewer_tags: bool
    masks_per_class: float
    masks: float
    tagged: float
    hours: float
    mean_iou: float
    std: float


def _mark(results: pd.DataFrame) -> Mark:
    def mean(name: str) -> float:
        return float(np.mean(results[name].to_numpy(np.float64)))

    values = results["mean_iou"].to_numpy(np.float64)
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    fewer = str(results["point"].iloc[0]).startswith("tagged_")
    amounts = {name: mean(name) for name in ("masks_per_class", "masks", "tagged", "hours", "mean_iou")}
    return Mark(fewer_tags=fewer, std=std, **amounts)


def _draw_marks(axes: Axes, x: list[float], marks: list[Mark], colour: str, label: str | None) -> None:
    """Filled ones with a label, or open ones."""
    heights, spreads = [100 * mark.mean_iou for mark in marks], [100 * mark.std for mark in marks]
    axes.errorbar(x, heights, spreads, fmt="o", color=colour, mfc=colour if label else "none", capsize=2, label=label)


def _draw_law(axes: Axes, marks: list[Mark], law: Law, colour: str) -> None:
    """The law with as many tags as these points have."""
    seen = [mark for mark in marks if mark.masks]
    amounts = [mark.masks_per_class for mark in seen]
    per_class = np.geomspace(min(amounts), max(amounts), STEPS)
    classes = float(np.median([mark.masks / mark.masks_per_class for mark in seen]))
    tags = np.full(STEPS, float(np.mean([mark.tagged for mark in seen])))
    axes.plot(per_class, 100 * law(tags, per_class * classes), color=colour, linewidth=1)
