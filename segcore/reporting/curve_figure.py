"""The curve as a picture: mIoU against masks per class, and against hours of a person's time."""

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segcore.reporting.law import Law

STEPS = 200
COLOURS = "tab10"


def draw(points: pd.DataFrame, laws: Mapping[str, Law]) -> bytes:
    """A PNG of the table of `curve.table`: a mark a system and point, its spread over seeds, and the fitted laws.

    On the left only points with all tags; on the right also those with fewer, as open marks.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (system, some) in enumerate(points.groupby("system", sort=False)):
        means = some.groupby("point", sort=False).agg(
            masks_per_class=("masks_per_class", "mean"), hours=("hours", "mean"), masks=("masks", "mean"),
            tagged=("tagged", "mean"), mean=("mean_iou", "mean"), std=("mean_iou", "std"),
        ).fillna({"std": 0.0})  # fmt: skip
        whole = means[~means.index.str.startswith("tagged_")]
        colour = f"C{number % 10}"
        _marks(left, whole["masks_per_class"], whole, colour, str(system))
        _marks(right, whole["hours"], whole, colour, str(system))
        _marks(right, means["hours"].drop(whole.index), means.drop(whole.index), colour, "")
        if system in laws and whole["masks"].nunique() > 1:
            _line(left, whole, laws[str(system)], colour)
    for axes, label in ((left, "masks per class"), (right, "hours of annotation")):
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("mIoU, per cent")
    left.legend(frameon=False)
    right.set_title("open marks: fewer tagged images", fontsize=9, loc="right")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _marks(axes: Axes, x: pd.Series, points: pd.DataFrame, colour: str, label: str) -> None:
    fill = colour if label else "none"
    axes.errorbar(
        x, 100 * points["mean"], 100 * points["std"], fmt="o", color=colour, mfc=fill, capsize=2, label=label or None
    )


def _line(axes: Axes, points: pd.DataFrame, law: Law, colour: str) -> None:
    """The law with as many tags as these points have."""
    per_class: Float[np.ndarray, " steps"] = np.geomspace(
        max(points["masks_per_class"].min(), 0.1), points["masks_per_class"].max(), STEPS
    )
    classes = (points["masks"] / points["masks_per_class"]).median()
    tags = np.full(STEPS, points["tagged"].mean())
    axes.plot(per_class, 100 * law(tags, per_class * classes), color=colour, linewidth=1)
