"""Pseudo-labels against masks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

from segcore.data.pictures import IGNORE
from segcore.evaluation.metrics import rounded


class Quality:
    """Pseudo-labels against masks: counts of pixels by true class (row) and label (column; the last one: unlabelled).

    Pixels whose truth is 255 count nowhere. An unlabelled pixel is a miss of its class and a false alarm of none.
    """

    def __init__(self, n_classes: int, counts: Int64[np.ndarray, "K _"] | None = None) -> None:
        self.n_classes = n_classes
        self.counts = np.zeros((n_classes, n_classes + 1), dtype=np.int64) if counts is None else counts

    def update(self, truth: UInt8[np.ndarray, "..."], pseudo: UInt8[np.ndarray, "..."]) -> None:
        """Add an image.

        Raises:
            ValueError: the shapes differ, or there is a class beyond those counted.
        """
        if truth.shape != pseudo.shape:
            raise ValueError(f"truth is {truth.shape} but the pseudo-labels are {pseudo.shape}; they must be equal")
        counted = truth != IGNORE
        actual, label = truth[counted].astype(np.int64), pseudo[counted].astype(np.int64)
        label[label == IGNORE] = self.n_classes
        for what, values, last in (("truth", actual, self.n_classes - 1), ("pseudo-label", label, self.n_classes)):
            if values.size and values.max() > last:
                raise ValueError(f"the {what} holds class {values.max()}; allowed are 0..{self.n_classes - 1}")
        width = self.n_classes + 1
        pairs = np.bincount(actual * width + label, minlength=self.n_classes * width)
        self.counts += pairs.reshape(self.n_classes, width)

    def __add__(self, other: "Quality") -> "Quality":
        return Quality(self.n_classes, self.counts + other.counts)

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """What `quality.json` holds, fractions of 1; None where there was nothing to measure on.

        `coverage` is the share of the pixels that have a label, `foreground_coverage` a label other than background.
        `precision` (right among the labelled), `recall` (right among all of the class) and `mean_iou` are means over
        the classes. `per_class` has the same for each class, `coverage` being the share of its pixels with any label.
        """
        hits, of_class, labelled = np.diag(self.counts), self.counts.sum(1), self.counts[:, :-1]
        with np.errstate(invalid="ignore"):  # nothing over nothing is nan
            shares = np.stack([labelled.sum(), labelled[:, 1:].sum()]) / self.counts.sum()
            columns = {
                "coverage": labelled.sum(1) / of_class,
                "precision": hits / labelled.sum(0),
                "recall": hits / of_class,
                "iou": hits / (of_class + labelled.sum(0) - hits),
            }
        means = {key: _mean(column) for key, column in columns.items()}
        overall = {
            "coverage": shares[0],
            "foreground_coverage": shares[1],
            "precision": means["precision"],
            "recall": means["recall"],
            "mean_iou": means["iou"],
        }
        per_class = {name: {key: column[row] for key, column in columns.items()} for row, name in enumerate(names)}
        return rounded({**overall, "per_class": per_class})


def _mean(values: Float[np.ndarray, " K"]) -> float:
    """Mean of the values that are not nan; nan where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan
