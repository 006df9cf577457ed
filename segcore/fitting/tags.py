"""A pooled head, fitted to stored features: strength, calibration and thresholds by cross-validation.

Every choice is made on scores of images that had no part in the fit they are scored by, all of them training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from torch import Tensor

from segcore.config.networks import FitParams
from segcore.evaluation.tags import average_precision
from segcore.fitting.logistic import Linear, Standard, fit, image_weights
from segcore.networks.pooled_head import PooledHead
from segcore.seeds import derived_seed


@dataclass(frozen=True)
class Tried:
    """What one strength gave on the images that were left out, and whether it was chosen."""

    strength: float
    loss: float
    """Cross-entropy, summed over the tags, an image."""
    mean_average_precision: float


@dataclass(frozen=True)
class CrossValidated:
    """The strengths in order, from strong to weak, and at the best one the logits (N, L) of images left out."""

    path: list[Tried]
    strength: float
    logits: Float[np.ndarray, "N L"]


def fit_head(
    head: PooledHead, pooled: Float[np.ndarray, "N D"], top: Float[np.ndarray, "N C"], tags: Bool[np.ndarray, "N L"],
    params: FitParams, folds: Int[np.ndarray, " N"],
) -> CrossValidated:  # fmt: skip
    """Set every number of a pooled head.

    Args:
        pooled: the features that the head sees of each image, the mean over its views: as a head is linear, its mean
            logit over the views is its logit of that mean.
        top: the mean of the top map alone, likewise.
        folds: which fold leaves each image out; see `deal`.

    Returns:
        How the strengths did for the whole head.
    """
    chosen, linear = _fitted(pooled, tags, params, folds)
    standard = Standard.of(pooled)
    a, c = calibration(chosen.logits, tags)
    _set(head, "shift", standard.shift)
    _set(head, "scale", standard.scale)
    _set(head, "weight", a[:, None] * linear.weight)
    _set(head, "bias", a * linear.bias + c)
    _set(head, "thresholds", thresholds(sigmoid(a * chosen.logits + c), tags))
    alone, linear = _fitted(top, tags, params, folds)
    standard = Standard.of(top)
    a, c = calibration(alone.logits, tags)
    vectors = a[:, None] * linear.weight / standard.scale
    _set(head, "class_vectors", vectors)
    _set(head, "class_bias", a * linear.bias + c - vectors @ standard.shift)
    return chosen


def deal(image_ids: Sequence[str], n_folds: int, seed: int) -> Int[np.ndarray, " N"]:
    """The fold of each image, of nearly equal sizes: a function of the ids and the seed, not of their order.

    Raises:
        ValueError: fewer images than folds.
    """
    if len(image_ids) < n_folds:
        raise ValueError(f"{len(image_ids)} images cannot be dealt out to {n_folds} folds")
    order = sorted(range(len(image_ids)), key=lambda i: derived_seed(seed, "fold", image_ids[i]))
    folds = np.empty(len(image_ids), dtype=np.int64)
    folds[order] = np.arange(len(image_ids)) % n_folds
    return folds


def _fitted(
    x: Float[np.ndarray, "N D"], tags: Bool[np.ndarray, "N L"], params: FitParams, folds: Int[np.ndarray, " N"]
) -> tuple[CrossValidated, Linear]:
    """The best strength, and the regression on all images at it; x is standardised by all of them."""
    chosen = cross_validated(x, tags, params, folds)
    linear = fit(Standard.of(x)(x), tags, chosen.strength, image_weights(tags, params.class_weights))
    return chosen, linear


def cross_validated(
    x: Float[np.ndarray, "N D"], tags: Bool[np.ndarray, "N L"], params: FitParams, folds: Int[np.ndarray, " N"]
) -> CrossValidated:
    """Every strength on every fold; the greatest mean average precision wins, of equals the strongest penalty."""
    strengths = sorted(params.strengths, reverse=True)
    logits = np.zeros((len(strengths), *tags.shape))
    for fold in range(params.folds):
        out, start = folds == fold, None
        standard = Standard.of(x[~out])
        seen, unseen = standard(x[~out]), standard(x[out])
        weights = image_weights(tags[~out], params.class_weights)
        for number, strength in enumerate(strengths):
            start = fit(seen, tags[~out], strength, weights, start)
            logits[number, out] = start(unseen)
    path = [
        Tried(strength, cross_entropy(logits[number], tags), mean_average_precision(logits[number], tags))
        for number, strength in enumerate(strengths)
    ]
    best = max(range(len(path)), key=lambda number: path[number].mean_average_precision)
    return CrossValidated(path, strengths[best], logits[best])


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
    n, m = has.sum(), (~has).sum()
    target = np.where(has, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(free[0])
        z = a * logits + free[1]
        slope = sigmoid(z) - target
        return float((np.logaddexp(0, z) - target * z).sum()), np.array([(slope * logits).sum() * a, slope.sum()])

    bounds = [(np.log(0.1), np.log(10.0)), (-30.0, 30.0)]
    free = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(free[0])), float(free[1])


def thresholds(probabilities: Float[np.ndarray, "N L"], tags: Bool[np.ndarray, "N L"]) -> Float[np.ndarray, " L"]:
    """For each tag the probability from which on counting it as found gives the greatest F1; 0.5 if no image has it.

    It lies halfway between the weakest image that is found and the strongest one that is not.
    """
    return np.array([_threshold(probabilities[:, k], tags[:, k]) for k in range(tags.shape[1])])


def _threshold(probabilities: Float[np.ndarray, " N"], has: Bool[np.ndarray, " N"]) -> float:
    if not has.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    sorted_ = probabilities[order]
    f1 = 2 * np.cumsum(has[order]) / (np.arange(1, len(has) + 1) + has.sum())
    f1[:-1][sorted_[:-1] == sorted_[1:]] = -1.0  # equal ones are found together
    last = int(np.argmax(f1))
    return float((sorted_[last] + sorted_[last + 1]) / 2) if last + 1 < len(sorted_) else float(sorted_[last] / 2)


def _set(head: PooledHead, name: str, value: Float[np.ndarray, "..."]) -> None:
    buffer: Tensor = getattr(head, name)
    buffer.copy_(torch.from_numpy(np.asarray(value)))
