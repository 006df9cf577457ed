"""How well a classifier finds the tags of images.

On its own, as every `train_classifier` measures so: how segmentations are scored may change without training again.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from segcore.evaluation.numbers import mean_of, ratio_of


def tag_metrics(
    scores: Float[np.ndarray, "N L"],
    tags: Bool[np.ndarray, "N L"],
    names: Sequence[str],
    threshold: float | Float[np.ndarray, " L"] = 0.5,
) -> dict[str, Any]:
    """How well a classifier finds the tags of N images.

    `scores` are probabilities (after the sigmoid) and `names` those of the L classes. Returns `mean_average_precision`,
    `f1_micro` and `f1_macro` of the tags with a probability above `threshold` (one for all, or one a tag),
    `average_precision` by class, and `classes_without_positives`, whose average precision is nan and which count in no
    mean over classes.

    Raises:
        ValueError: shapes do not agree or `scores` are no probabilities.
    """
    if scores.shape != tags.shape or scores.shape[1:] != (len(names),):
        raise ValueError(f"scores {scores.shape}, tags {tags.shape} and {len(names)} names do not agree")
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError("scores must be probabilities in 0..1; apply the sigmoid first")
    precisions = np.array([average_precision(scores[:, k], tags[:, k]) for k in range(len(names))])
    found = scores > threshold
    hits, either = (found & tags).sum(0), found.sum(0) + tags.sum(0)
    absent = tags.sum(0) == 0
    return {
        "mean_average_precision": mean_of(precisions),
        "f1_micro": mean_of(ratio_of(2 * hits.sum(keepdims=True), either.sum(keepdims=True))),
        "f1_macro": mean_of(ratio_of(2 * hits, either)[~absent]),
        "average_precision": {name: float(value) for name, value in zip(names, precisions, strict=True)},
        "classes_without_positives": [name for name, missing in zip(names, absent.tolist(), strict=True) if missing],
    }


def average_precision(scores: Float[np.ndarray, " N"], positives: Bool[np.ndarray, " N"]) -> float:
    """Area under the precision-recall curve as a sum over all recall steps, without interpolation.

    Images with equal scores share one threshold, so their order does not matter. nan without positives.
    """
    if not positives.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positives[order])
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    hits = hits[last_of_ties]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (last_of_ties + 1)) / hits[-1])
