"""How mIoU grows with tags and masks, and what the next hour of a person's time is best spent on.

The law is that of Gamazo Tejero et al. 2023 ("Full or Weak annotations? An adaptive strategy for budget-constrained
annotation campaigns", CVPR; the mean of their Gaussian process), with a floor for what is known without either:

    mIoU(C, S) = a + g_c log(1 + b_c C) + g_s log(1 + b_s S)

for C images with tags and S with masks. Theirs is the mean of a Gaussian process whose spread leads to new proportions
at every round of a campaign; a curve of some ten points cannot tell its parameters, and a bootstrap gives the interval
here. As they do, the advice compares what the same budget buys and takes the greater expected gain. Of one hour only
the ends of their front are compared, all tags or all masks: so small a step is nearly straight, and the best place of
a straight front is an end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import optimize

from segcore.errors import Problem
from segcore.seeds import derived_seed

RATES = 15
"""Values of b_c and of b_s that are tried each: from a straight line to one that is steep at the first image only."""

DRAWS = 500
CONFIDENCE = 0.95
Amounts = Float[np.ndarray, " points"]


@dataclass(frozen=True)
class Cost:
    """Seconds of a person that one annotation takes."""

    tag: float
    """All tags of an image."""
    mask: float
    """All masks of an image."""


@dataclass(frozen=True)
class Law:
    """The law with its numbers; mIoU as a fraction. `g_c` is 0 where tags were never varied."""

    a: float
    g_c: float
    b_c: float
    g_s: float
    b_s: float

    def __call__(self, tags: Amounts, masks: Amounts) -> Amounts:
        return self.a + self.g_c * np.log1p(self.b_c * tags) + self.g_s * np.log1p(self.b_s * masks)


@dataclass(frozen=True)
class Gain:
    """What one more hour of `kind` is expected to add to mIoU, as a fraction, and between what bounds."""

    kind: Literal["tags", "masks"]
    images: int
    expected: float
    low: float
    high: float


def fitted(tags: Amounts, masks: Amounts, mean_iou: Amounts) -> Law:
    """The law with the least squared error, no part of which falls with more annotation.

    For given rates b the law is linear, and non-negative least squares (scipy) solve it; the rates are those of a grid
    that give the least. So there is one answer, without a start to choose.
    """
    best: tuple[float, Law] | None = None
    for b_c in _rates(tags):
        for b_s in _rates(masks):
            columns = [np.ones_like(masks), np.log1p(b_c * tags), np.log1p(b_s * masks)]
            (a, g_c, g_s), error = optimize.nnls(np.stack(columns, axis=1), mean_iou)
            if best is None or error < best[0] - 1e-12:
                best = error, Law(float(a), float(g_c), b_c, float(g_s), b_s)
    assert best is not None
    return best[1]


def _rates(amounts: Amounts) -> list[float]:
    """Rates to try; a rate of 0, which takes the term out, where the amount is always the same."""
    if np.ptp(amounts) == 0:
        return [0.0]
    smallest = amounts[amounts > 0].min()
    return np.geomspace(0.1 / amounts.max(), 10 / smallest, RATES).tolist()


def varied(tags: Amounts, masks: Amounts) -> list[Literal["tags", "masks"]]:
    """What the points tell of: amounts of which there are several."""
    kinds: list[Literal["tags", "masks"]] = ["tags", "masks"]
    return [kind for kind, amounts in zip(kinds, (tags, masks), strict=True) if len(np.unique(amounts)) > 1]


def gains(
    tags: Amounts,
    masks: Amounts,
    mean_iou: Amounts,
    drawn: Float[np.ndarray, "draws points"],
    now: tuple[int, int],
    cost: Cost,
    hours: float = 1.0,
) -> list[Gain]:
    """What `hours` more of each kind that was varied are expected to add to the images `now` (tags, masks).

    Each refit takes one of `drawn`, the points' mIoU on other draws of the images, and adds residuals of the fit, drawn
    with replacement and widened by (points / (points - parameters))^1/2: what seeds, the choice of images and the form
    of the law leave unexplained.

    Raises:
        Problem: there are no more points than numbers in the law.
    """
    kinds = varied(tags, masks)
    parameters = 1 + 2 * len(kinds)
    if len(mean_iou) <= parameters:
        raise Problem(f"{len(mean_iou)} points tell nothing of a law with {parameters} numbers; add masks or seeds")
    law = fitted(tags, masks, mean_iou)
    residuals = (mean_iou - law(tags, masks)) * np.sqrt(len(mean_iou) / (len(mean_iou) - parameters))
    rng = np.random.default_rng(derived_seed("bootstrap", "law", len(mean_iou)))
    refits = []
    for draw in drawn[:DRAWS]:
        picked = rng.choice(residuals - residuals.mean(), len(residuals))
        refits.append(fitted(tags, masks, law(tags, masks) + (draw - mean_iou) + picked))
    found = []
    for kind in kinds:
        images = int(hours * 3600 / getattr(cost, kind.removesuffix("s")))
        more = [_added(one, kind, images, now) for one in refits]
        low, high = np.quantile(more, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        found.append(Gain(kind, images, _added(law, kind, images, now), float(low), float(high)))
    return found


def _added(law: Law, kind: str, images: int, now: tuple[int, int]) -> float:
    after = np.array(now, dtype=np.float64)
    after[0 if kind == "tags" else 1] += images
    before = law(np.array([now[0]], dtype=np.float64), np.array([now[1]], dtype=np.float64))
    return float(law(after[:1], after[1:])[0] - before[0])


def advice(system: str, found: Sequence[Gain]) -> str:
    """One sentence: what the next hour is to be spent on, what it is expected to add, and in which interval."""
    best = max(found, key=lambda gain: gain.expected)
    sentence = f"{system}, the next hour: {best.images} {_spelled(best)}, expected {_points(best)}"
    others = [f"{gain.images} {_spelled(gain)} {_points(gain)}" for gain in found if gain is not best]
    never = {"tags", "masks"} - {gain.kind for gain in found}
    others += [f"{kind} were not varied" for kind in sorted(never)]
    return sentence + "".join(f"; {other}" for other in others) + "."


def _spelled(gain: Gain) -> str:
    return "images with tags" if gain.kind == "tags" else "images with masks"


def _points(gain: Gain) -> str:
    return "{:+.2f} points ({:+.2f} to {:+.2f})".format(*(100 * v for v in (gain.expected, gain.low, gain.high)))
