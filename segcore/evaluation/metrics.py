"""How predictions are scored: mean IoU from one confusion matrix, boundary F-score, tag metrics.

Every score is a fraction in 0..1; nan stands for a class that there was nothing to score on, and is left out of means.
Accumulators merge with `+`, so that a set can be scored in shards.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from segcore.data.pictures import IGNORE

BORDER = 4
"""Pixels into an unknown region within which a boundary is still known.

VOC draws a band of 5 unknown pixels along every outline. The outline is taken to run in its middle, at most 3 pixels
from a known pixel; where an unknown region is wider than such a band, nobody knows where its boundaries lie.
"""


class ConfusionMatrix:
    """Counts of pixels by true class (row) and predicted class (column), over a whole set of images.

    Averaging the IoU of single images is another metric; here TP, FP and FN are summed over the set first.
    """

    def __init__(self, n_classes: int, counts: Int64[np.ndarray, "K K"] | None = None) -> None:
        self.n_classes = n_classes
        self.counts = np.zeros((n_classes, n_classes), dtype=np.int64) if counts is None else counts

    def update(self, truth: UInt8[np.ndarray, "..."], prediction: UInt8[np.ndarray, "..."]) -> None:
        """Add images; pixels whose truth is 255 count neither as TP, FP nor FN.

        Raises:
            ValueError: the shapes differ, or a class index that counts lies outside 0..K-1.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape} but the prediction is {prediction.shape}; they must be equal")
        counted = truth != IGNORE
        actual, predicted = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        for what, values in (("truth", actual), ("prediction", predicted)):
            if values.size and values.max() >= self.n_classes:
                raise ValueError(f"the {what} holds class {values.max()}; allowed are 0..{self.n_classes - 1}")
        # Without weights, so that the same count would be deterministic on any device.
        pairs = np.bincount(actual * self.n_classes + predicted, minlength=self.n_classes**2)
        self.counts += pairs.reshape(self.n_classes, self.n_classes)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.n_classes, self.counts + other.counts)

    @property
    def iou(self) -> Float[np.ndarray, " K"]:
        """TP / (TP + FP + FN) per class; nan for a class absent from both truth and prediction."""
        hits = np.diag(self.counts)
        return _ratio(hits, self.counts.sum(0) + self.counts.sum(1) - hits)

    @property
    def accuracy(self) -> Float[np.ndarray, " K"]:
        """TP / (TP + FN) per class; nan for a class absent from the truth."""
        return _ratio(np.diag(self.counts), self.counts.sum(1))

    @property
    def mean_iou(self) -> float:
        """Mean over all classes, background included, as VOC scores (21 classes)."""
        return _mean(self.iou)

    @property
    def mean_iou_foreground(self) -> float:
        """Mean over the classes except background (20 of VOC): an extra, not what the papers print."""
        return _mean(self.iou[1:])

    @property
    def pixel_accuracy(self) -> float:
        """Share of counted pixels with the right class."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else math.nan

    @property
    def mean_accuracy(self) -> float:
        """Mean over the classes in the truth of their share of right pixels."""
        return _mean(self.accuracy)


class BoundaryScore:
    """Boundary F-score (Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?").

    Per image and class, precision is the share of predicted boundary pixels with a true one of that class within the
    tolerance, recall the reverse, F their harmonic mean. A class's score is the mean over the images where it has a
    boundary in truth or prediction (0 where only one of them has); the score of a set is the mean over classes.
    """

    def __init__(self, n_classes: int, tolerance: float) -> None:
        """`tolerance` is a fraction of the image diagonal."""
        self.n_classes = n_classes
        self.tolerance = tolerance
        self.sums = np.zeros(n_classes, dtype=np.float64)
        self.images = np.zeros(n_classes, dtype=np.int64)

    def update(self, truth: UInt8[np.ndarray, "H W"], prediction: UInt8[np.ndarray, "H W"]) -> None:
        """Add one image."""
        scores = boundary_f_score(truth, prediction, self.n_classes, self.tolerance)
        scored = ~np.isnan(scores)
        self.sums[scored] += scores[scored]
        self.images += scored

    def __add__(self, other: "BoundaryScore") -> "BoundaryScore":
        merged = BoundaryScore(self.n_classes, self.tolerance)
        merged.sums, merged.images = self.sums + other.sums, self.images + other.images
        return merged

    @property
    def per_class(self) -> Float[np.ndarray, " K"]:
        """Mean F over the images of each class; nan for a class without any boundary."""
        return _ratio(self.sums, self.images)

    @property
    def mean(self) -> float:
        """Mean over the classes."""
        return _mean(self.per_class)


def boundary_f_score(
    truth: UInt8[np.ndarray, "H W"], prediction: UInt8[np.ndarray, "H W"], n_classes: int, tolerance: float
) -> Float[np.ndarray, " K"]:
    """F-score of each class's boundary in one image; nan where neither truth nor prediction has one.

    Unknown pixels (255) take the class of the nearest known pixel, which puts an outline into the middle of VOC's
    unknown band; boundaries deeper than `BORDER` in an unknown region count on neither side. The edge of the picture
    is no boundary. `tolerance` is a fraction of the image diagonal.
    """
    scores = np.full(n_classes, math.nan)
    truth, known = _fill_unknown(truth)
    true_edges, predicted_edges = _edges(truth) & known, _edges(prediction) & known
    distance = tolerance * math.hypot(*truth.shape)
    for index in np.union1d(truth[true_edges], prediction[predicted_edges]):
        true_boundary = true_edges & (truth == index)
        predicted_boundary = predicted_edges & (prediction == index)
        precision = _share_near(predicted_boundary, true_boundary, distance)
        recall = _share_near(true_boundary, predicted_boundary, distance)
        scores[index] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return scores


def _fill_unknown(truth: UInt8[np.ndarray, "H W"]) -> tuple[UInt8[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Labels without 255, and where a boundary in them means something."""
    unknown = truth == IGNORE
    if not unknown.any():
        return truth, ~unknown
    if unknown.all():
        return np.zeros_like(truth), ~unknown
    distance, nearest = cv2.distanceTransformWithLabels(
        unknown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    class_of = np.zeros(int(nearest.max()) + 1, dtype=np.uint8)
    class_of[nearest[~unknown]] = truth[~unknown]
    return class_of[nearest], distance <= BORDER


def _edges(labels: UInt8[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels with a pixel of another class above, below, left or right."""
    edges = np.zeros(labels.shape, dtype=bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= right
    edges[:, :-1] |= right
    return edges


def _share_near(points: Bool[np.ndarray, "H W"], others: Bool[np.ndarray, "H W"], distance: float) -> float:
    if not (points.any() and others.any()):
        return 0.0
    to_others = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((to_others[points] <= distance).mean())


def tag_metrics(
    scores: Float[np.ndarray, "N L"], tags: Bool[np.ndarray, "N L"], names: Sequence[str], threshold: float = 0.5
) -> dict[str, Any]:
    """How well a classifier finds the tags of N images.

    `scores` are probabilities (after the sigmoid) and `names` those of the L classes. Returns `mean_average_precision`,
    `f1_micro` and `f1_macro` of the tags with a probability above `threshold`, `average_precision` by class, and
    `classes_without_positives`, whose average precision is nan and which count in no mean over classes.

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
        "mean_average_precision": _mean(precisions),
        "f1_micro": _mean(_ratio(2 * hits.sum(keepdims=True), either.sum(keepdims=True))),
        "f1_macro": _mean(_ratio(2 * hits, either)[~absent]),
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


def rounded(value: Any, digits: int = 4) -> Any:
    """A nested result as JSON can hold it: floats rounded, nan as None, numpy numbers as Python's."""
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), digits)
    return value


def _ratio(above: np.ndarray, below: np.ndarray) -> Float[np.ndarray, " K"]:
    return np.divide(above, below, out=np.full(below.shape, math.nan), where=below > 0)


def _mean(values: Float[np.ndarray, " K"]) -> float:
    """Mean of the values that are not nan; nan where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan
