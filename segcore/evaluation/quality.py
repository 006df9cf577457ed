"""Pseudo-labels against masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from segcore.data.pictures import IGNORE
from segcore.evaluation.metrics import ConfusionMatrix
from segcore.evaluation.numbers import mean_of, ratio_of, rounded


class Quality(ConfusionMatrix):
    """A confusion matrix whose predictions may leave pixels unlabelled (255): those are counted in a last column.

    An unlabelled pixel is a miss of its class and a false alarm of none.
    """

    columns = 1

    def _columns_of(self, prediction: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        if (beyond := prediction[(prediction >= self.n_classes) & (prediction != IGNORE)]).size:
            raise ValueError(f"the pseudo-label holds class {beyond[0]}; allowed are 0..{self.n_classes - 1}")
        return np.where(prediction == IGNORE, self.n_classes, prediction)

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """What `quality.json` holds, fractions of 1; None where there was nothing to measure on.

        `coverage` is the share of the pixels that have a label, `foreground_coverage` a label other than background.
        `precision` (right among the labelled), `recall` (right among all of the class) and `mean_iou` are means over
        the classes. `per_class` has the same for each class, `coverage` being the share of its pixels with any label.
        """
        total = self.counts.sum(keepdims=True)[0]
        columns = {
            "coverage": ratio_of(self.labelled.sum(1), self.counts.sum(1)),
            "precision": self.precision,
            "recall": self.accuracy,
            "iou": self.iou,
        }
        overall = {
            "coverage": ratio_of(self.labelled.sum(keepdims=True)[0], total)[0],
            "foreground_coverage": ratio_of(self.labelled[:, 1:].sum(keepdims=True)[0], total)[0],
            "precision": mean_of(self.precision),
            "recall": mean_of(self.accuracy),
            "mean_iou": self.mean_iou,
        }
        per_class = {name: {key: column[row] for key, column in columns.items()} for row, name in enumerate(names)}
        return rounded({**overall, "per_class": per_class})
