"""How predictions are scored: mean IoU from one confusion matrix, boundary F-score.

Every score is a fraction in 0..1; nan stands for a class that there was nothing to score on, and is left out of means.
Accumulators merge with `+`, so that a set can be scored in shards.
"""

import math
from typing import TypeVar

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from segcore.data.pictures import IGNORE
from segcore.evaluation.numbers import mean_of, ratio_of

BORDER = 4
"""Pixels into an unknown region within which a boundary is still known.

VOC draws a band of 5 unknown pixels along every outline. The outline is taken to run in its middle, at most 3 pixels
from a known pixel; where an unknown region is wider than such a band, nobody knows where its boundaries lie.
"""

AT_ONCE = 2**20
"""Pixels that are counted at once: their numbers take eight times the memory of their labels."""

Counts = TypeVar("Counts", bound="ConfusionMatrix")


class ConfusionMatrix:
    """Counts of pixels by true class (row) and predicted class (column), over a whole set of images.

    Averaging the IoU of single images is another metric; here TP, FP and FN are summed over the set first.
    """

    columns = 0
    """Columns beside those of the classes."""

    def __init__(self, n_classes: int, counts: Int64[np.ndarray, "K _"] | None = None) -> None:
        self.n_classes = n_classes
        shape = (n_classes, n_classes + self.columns)
        self.counts = np.zeros(shape, dtype=np.int64) if counts is None else counts

    def update(self, truth: UInt8[np.ndarray, "..."], prediction: UInt8[np.ndarray, "..."]) -> None:
        """Add images; pixels whose truth is 255 count neither as TP, FP nor FN.

        Raises:
            ValueError: the shapes differ, or a class index that counts lies outside 0..K-1.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape} but the prediction is {prediction.shape}; they must be equal")
        truth, prediction = truth.reshape(-1), prediction.reshape(-1)
        parts = (slice(first, first + AT_ONCE) for first in range(0, truth.size, AT_ONCE))
        self.counts += sum((self._counted(truth[part], prediction[part]) for part in parts), np.zeros_like(self.counts))

    def _counted(self, truth: UInt8[np.ndarray, " n"], prediction: UInt8[np.ndarray, " n"]) -> Int64[np.ndarray, "K _"]:
        counted = truth != IGNORE
        actual, column = truth[counted].astype(np.int64), self._columns_of(prediction[counted].astype(np.int64))
        width = self.counts.shape[1]
        for what, values, beyond in (("truth", actual, self.n_classes), ("prediction", column, width)):
            if values.size and values.max() >= beyond:
                raise ValueError(f"the {what} holds class {values.max()}; allowed are 0..{self.n_classes - 1}")
        # Without weights, so that the same count would be deterministic on any device.
        pairs = np.bincount(actual * width + column, minlength=self.counts.size)
        return pairs.reshape(self.counts.shape)

    def _columns_of(self, prediction: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return prediction

    def __add__(self: Counts, other: Counts) -> Counts:
        return type(self)(self.n_classes, self.counts + other.counts)

    @property
    def labelled(self) -> Int64[np.ndarray, "K K"]:
        """The counts of pixels that have a class in the prediction."""
        return self.counts[:, : self.n_classes]

    @property
    def iou(self) -> Float[np.ndarray, " K"]:
        """TP / (TP + FP + FN) per class; nan for a class absent from both truth and prediction."""
        hits = np.diag(self.counts)
        return ratio_of(hits, self.labelled.sum(0) + self.counts.sum(1) - hits)

    @property
    def accuracy(self) -> Float[np.ndarray, " K"]:
        """TP / (TP + FN) per class, which is its recall; nan for a class absent from the truth."""
        return ratio_of(np.diag(self.counts), self.counts.sum(1))

    @property
    def precision(self) -> Float[np.ndarray, " K"]:
        """TP / (TP + FP) per class; nan for a class absent from the prediction."""
        return ratio_of(np.diag(self.counts), self.labelled.sum(0))

    @property
    def mean_iou(self) -> float:
        """Mean over all classes, background included, as VOC scores (21 classes)."""
        return mean_of(self.iou)

    @property
    def mean_iou_foreground(self) -> float:
        """Mean over the classes except background (20 of VOC): an extra, not what the papers print."""
        return mean_of(self.iou[1:])

    @property
    def pixel_accuracy(self) -> float:
        """Share of counted pixels with the right class."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else math.nan

    @property
    def mean_accuracy(self) -> float:
        """Mean over the classes in the truth of their share of right pixels."""
        return mean_of(self.accuracy)


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
        return ratio_of(self.sums, self.images)

    @property
    def mean(self) -> float:
        """Mean over the classes."""
        return mean_of(self.per_class)


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
    known = distance <= BORDER
    del distance  # of a large picture, what is not needed any more is worth its memory
    class_of = np.zeros(int(nearest.max()) + 1, dtype=np.uint8)
    for row, labels, is_unknown in zip(nearest, truth, unknown, strict=True):
        class_of[row[~is_unknown]] = labels[~is_unknown]
    return np.stack([class_of[row] for row in nearest]), known


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
