"""Ridge regression of many tags at once, in closed form, with what it says of each image that is left out.

For each tag, with t = 1 where an image has it and -1 where not,

    minimise  sum_i a_i (t_i - w . x_i - b)^2 + strength D |w|^2

over w and b, where D is the number of features: by it a strength means the same for one level or several. What the fit
without image i would say of it follows from the fit with all of them, t_i - (t_i - f(x_i)) / (1 - h_ii), h being the
diagonal of the hat matrix; so every strength is cross-validated on all images at the price of one factorisation.
On a few thousand photographs this ranks tags better than logistic regression, whose penalty is chosen as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from segcore.config.classifiers import Alike, Balanced


@dataclass(frozen=True)
class Linear:
    """w_c . x + b_c for each tag c: `weight` (L, D), `bias` (L,)."""

    weight: Float[np.ndarray, "L D"]
    bias: Float[np.ndarray, " L"]

    def __call__(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N L"]:
        return x @ self.weight.T + self.bias


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
        return (x - self.shift) / self.scale


@dataclass(frozen=True)
class Ridge:
    """The regression at one strength, and the scores (N, L) of images by the fits that each leave out that image."""

    strength: float
    linear: Linear
    left_out: Float[np.ndarray, "N L"]


def ridges(
    x: Float[np.ndarray, "N D"], tags: Bool[np.ndarray, "N L"], strengths: tuple[float, ...],
    weights: Float[np.ndarray, "N L"],
) -> list[Ridge]:  # fmt: skip
    """The regressions at all strengths, in their order.

    Args:
        x: standardised, float64.
        weights: a, how much each image counts for each tag. A factorisation serves all tags that weigh alike.
    """
    found = [Ridge(s, _zeros(tags.shape[1], x.shape[1]), np.zeros(tags.shape)) for s in strengths]
    for columns in _alike(weights):
        a = weights[:, columns[0]]
        centre = a @ x / a.sum()
        root = np.sqrt(a)[:, None]
        p, u, squares = _factors(root * (x - centre))
        targets = np.where(tags[:, columns], 1.0, -1.0)
        middle = a @ targets / a.sum()
        seen = p.T @ (root * (targets - middle))
        for ridge in found:
            shrunk = 1 / (squares + ridge.strength * x.shape[1])
            share = a / a.sum() + np.square(p) @ shrunk
            rest = targets - middle - p @ (shrunk[:, None] * seen) / root
            ridge.left_out[:, columns] = targets - rest / np.maximum(1 - share, 1e-9)[:, None]
            ridge.linear.weight[columns] = (u @ (shrunk[:, None] * seen)).T
            ridge.linear.bias[columns] = middle - ridge.linear.weight[columns] @ centre
    return found


def image_weights(tags: Bool[np.ndarray, "N L"], params: Alike | Balanced) -> Float[np.ndarray, "N L"]:
    """How much each image counts for each tag: 1, or where it has the tag, what balances both sides, at most `cap`."""
    if isinstance(params, Alike):
        return np.ones(tags.shape)
    have = tags.sum(0)
    balance = (len(tags) - have) / np.maximum(have, 1)
    return np.where(tags, np.minimum(balance, params.cap), 1.0)


def _zeros(n_tags: int, d: int) -> Linear:
    return Linear(np.zeros((n_tags, d)), np.zeros(n_tags))


def _alike(weights: Float[np.ndarray, "N L"]) -> Iterator[list[int]]:
    """The tags, those together for which all images count the same."""
    groups: dict[bytes, list[int]] = {}
    for tag in range(weights.shape[1]):
        groups.setdefault(weights[:, tag].tobytes(), []).append(tag)
    yield from groups.values()


def _factors(rows: Float[np.ndarray, "N D"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p = rows u, orthonormal u (D, r) and the squared lengths of the columns of p, by the smaller of both products."""
    n, d = rows.shape
    if d <= n:
        squares, u = np.linalg.eigh(rows.T @ rows)
        return rows @ u, u, np.maximum(squares, 0)
    squares, v = np.linalg.eigh(rows @ rows.T)
    kept = squares > squares[-1] * 1e-12
    length = np.sqrt(squares[kept])
    return v[:, kept] * length, rows.T @ v[:, kept] / length, squares[kept]
