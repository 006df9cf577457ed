"""A pooled head, fitted to stored features: strength, calibration and thresholds by cross-validation.

Every choice is made on scores of images by a fit that left them out, all of them training images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segcore.config.classifiers import FitParams
from segcore.evaluation.tags import average_precision
from segcore.fitting.ridge import Linear, Standard, image_weights, ridges
from segcore.networks.pooled_head import PooledHead

GRID = (np.arange(1, 100) - 0.5) / 100
"""Thresholds to choose among."""


@dataclass(frozen=True)
class Tried:
    """What one strength gave on images that were left out."""

    strength: float
    loss: float
    """Cross-entropy of the calibrated scores, summed over the tags, an image."""
    mean_average_precision: float


@dataclass(frozen=True)
class Fitted:
    """A calibrated regression: logits of standardised features, at the strength that did best.

    `path` has every strength, from strong to weak; `left_out` the logits (N, L) of the images when left out.
    """

    standard: Standard
    linear: Linear
    left_out: Float[np.ndarray, "N L"]
    strength: float
    path: list[Tried]


def fit_head(
    head: PooledHead, pooled: Float[np.ndarray, "N D"], top: Float[np.ndarray, "N C"], tags: Bool[np.ndarray, "N L"],
    params: FitParams,
) -> Fitted:  # fmt: skip
    """Set every number of a pooled head; returns how its regression was found.

    Args:
        pooled: the features that the head sees of each image, the mean over its views: as a head is linear, its mean
            logit over the views is its logit of that mean.
        top: the mean of the top map alone, likewise.
    """
    found, alone = fitted(pooled, tags, params), fitted(top, tags, params)
    _set(head, "shift", found.standard.shift)
    _set(head, "scale", found.standard.scale)
    _set(head, "weight", found.linear.weight)
    _set(head, "bias", found.linear.bias)
    _set(head, "thresholds", thresholds(sigmoid(found.left_out), tags))
    vectors = alone.linear.weight / alone.standard.scale
    _set(head, "class_vectors", vectors)
    _set(head, "class_bias", alone.linear.bias - vectors @ alone.standard.shift)
    return found


def fitted(x: Float[np.ndarray, "N D"], tags: Bool[np.ndarray, "N L"], params: FitParams) -> Fitted:
    """The greatest mean average precision over images left out wins; of equals, the strongest penalty.

    Images that are left out have a part in the mean and the deviation of the features alone.
    """
    standard = Standard.of(x)
    strengths = tuple(sorted(params.strengths, reverse=True))
    tried, path = ridges(standard(x), tags, strengths, image_weights(tags, params.class_weights)), []
    for ridge in tried:
        a, c = calibration(ridge.left_out, tags)
        loss = cross_entropy(a * ridge.left_out + c, tags)
        path.append(Tried(ridge.strength, loss, mean_average_precision(ridge.left_out, tags)))
    best = tried[max(range(len(path)), key=lambda number: path[number].mean_average_precision)]
    a, c = calibration(best.left_out, tags)
    linear = Linear(a[:, None] * best.linear.weight, a * best.linear.bias + c)
    return Fitted(standard, linear, a * best.left_out + c, best.strength, path)


def mean_average_precision(logits: Float[np.ndarray, "N L"], tags: Bool[np.ndarray, "N L"]) -> float:
    """Over the tags that any image has; 0 if none has any."""
    shown = np.flatnonzero(tags.any(0))
    return float(np.mean([average_precision(logits[:, k], tags[:, k]) for k in shown])) if len(shown) else 0.0


def cross_entropy(logits: Float[np.ndarray, "N L"], tags: Bool[np.ndarray, "N L"]) -> float:
    """Summed over the tags, an image."""
    return float(np.logaddexp(0, np.where(tags, -logits, logits)).sum() / len(logits))


def sigmoid(logits: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))


def calibration(
    logits: Float[np.ndarray, "N L"], tags: Bool[np.ndarray, "N L"]
) -> tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]]:
    """a > 0 and c of each tag, with which sigmoid(a logit + c) is its probability (Platt 1999, with his targets).

    His targets, (n + 1) / (n + 2) and 1 / (m + 2) for n images with the tag and m without, keep a tag of few images
    from becoming certain.
    """
    pairs = [_platt(logits[:, k], tags[:, k]) for k in range(tags.shape[1])]
    return np.array([a for a, _ in pairs]), np.array([c for _, c in pairs])


def _platt(logits: Float[np.ndarray, " N"], has: Bool[np.ndarray, " N"]) -> tuple[float, float]:
    from scipy.optimize import minimize  # here, as it takes 30 MB, and most classifiers are not fitted

    n, m = has.sum(), (~has).sum()
    target = np.where(has, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(free[0])
        z = a * logits + free[1]
        slope = sigmoid(z) - target
        return float((np.logaddexp(0, z) - target * z).sum()), np.array([(slope * logits).sum() * a, slope.sum()])

    bounds = [(np.log(0.1), np.log(100.0)), (-30.0, 30.0)]
    free = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(free[0])), float(free[1])


def thresholds(probabilities: Float[np.ndarray, "N L"], tags: Bool[np.ndarray, "N L"]) -> Float[np.ndarray, " L"]:
    """For each tag the probability above which counting it as found gives the best F1; 0.5 if no image has it.

    The counts of a tag are few, and its best threshold is mostly luck; so the mean counts of all tags are added to
    them, as if of one tag more. Chosen on half of the images of `voc-mini`, such thresholds give the other half a point
    of F1 more than those of each tag alone, or than 0.5 for all.
    """
    found = np.stack([(probabilities > t).sum(0) for t in GRID])
    hits = np.stack([((probabilities > t) & tags).sum(0) for t in GRID])
    have = tags.sum(0)
    either = found + have + found.mean(1, keepdims=True) + have.mean()
    f1 = 2 * (hits + hits.mean(1, keepdims=True)) / np.maximum(either, 1e-9)
    return np.where(have > 0, GRID[f1.argmax(0)], 0.5)


def _set(head: PooledHead, name: str, value: Float[np.ndarray, "..."]) -> None:
    buffer: Tensor = getattr(head, name)
    buffer.copy_(torch.from_numpy(np.asarray(value)))
