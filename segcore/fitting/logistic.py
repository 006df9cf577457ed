"""Logistic regression of many tags at once, by L-BFGS: convex, so its result depends on no seed and no order."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize

from segcore.config.networks import Alike, Balanced

ITERATIONS = 300
"""Of L-BFGS at most; well-posed problems end long before, by its tolerance."""


@dataclass(frozen=True)
class Linear:
    """w_c . x + b_c for each tag c: `weight` (L, D), `bias` (L,), float64."""

    weight: Float[np.ndarray, "L D"]
    bias: Float[np.ndarray, " L"]

    def __call__(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N L"]:
        return x @ self.weight.T.astype(x.dtype) + self.bias.astype(x.dtype)


@dataclass(frozen=True)
class Standard:
    """The mean and the standard deviation of each feature over the images that something is fitted to.

    A feature that is the same in all of them has a deviation of 1: it tells nothing, and then weighs nothing.
    """

    shift: Float[np.ndarray, " D"]
    scale: Float[np.ndarray, " D"]

    @staticmethod
    def of(x: Float[np.ndarray, "N D"]) -> "Standard":
        scale = x.std(0, dtype=np.float64)
        return Standard(x.mean(0, dtype=np.float64), np.where(scale > 1e-6, scale, 1.0))

    def __call__(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        return ((x - self.shift) / self.scale).astype(np.float32)


def fit(
    x: Float[np.ndarray, "N D"],
    tags: Bool[np.ndarray, "N L"],
    strength: float,
    weights: Float[np.ndarray, "N L"],
    start: Linear | None = None,
) -> Linear:
    """Minimises, for each tag, 1/N sum_i a_i log(1 + exp(-y_i (w . x_i + b))) + strength D / 2 |w|^2, y = +1 or -1.

    By the factor D, the number of features, a strength means the same for one level or several. The bias is free.

    Args:
        x: standardised.
        weights: a, how much each image counts for each tag.
        start: where the search begins, which saves time and changes nothing but the last digits.
    """
    n, d = x.shape
    n_tags = tags.shape[1]
    signs = np.where(tags, 1.0, -1.0).astype(np.float32)
    share = (weights / n).astype(np.float64)
    penalty = strength * d

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        linear = _unflat(flat, n_tags, d)
        margin = signs * linear(x)
        total = (share * np.logaddexp(0, -margin)).sum() + penalty / 2 * np.square(linear.weight).sum()
        slope = (-share * signs / (1 + np.exp(np.clip(margin, -60, 60)))).astype(np.float32)
        return float(total), _flat(slope.T @ x + penalty * linear.weight, slope.sum(0, dtype=np.float64))

    begin = start or Linear(np.zeros((n_tags, d)), np.zeros(n_tags))
    options = {"maxiter": ITERATIONS, "ftol": 1e-9, "gtol": 1e-6}
    found = minimize(loss, _flat(begin.weight, begin.bias), jac=True, method="L-BFGS-B", options=options)
    return _unflat(found.x, n_tags, d)


def image_weights(tags: Bool[np.ndarray, "N L"], params: Alike | Balanced) -> Float[np.ndarray, "N L"]:
    """How much each image counts for each tag: 1, or where it has the tag, what balances both sides, at most `cap`."""
    if isinstance(params, Alike):
        return np.ones(tags.shape)
    have = tags.sum(0)
    balance = (len(tags) - have) / np.maximum(have, 1)
    return np.where(tags, np.minimum(balance, params.cap), 1.0)


def _flat(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.concatenate([weight.ravel(), bias]).astype(np.float64)


def _unflat(flat: np.ndarray, n_tags: int, d: int) -> Linear:
    return Linear(flat[: n_tags * d].reshape(n_tags, d), flat[n_tags * d :])
