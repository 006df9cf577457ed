"""How mIoU grows with tags and masks, and what the next hour of a person's time is best spent on.

The law is that of Gamazo Tejero et al. 2023 ("Full or Weak annotations? An adaptive strategy for budget-constrained
annotation campaigns", CVPR; the mean of their Gaussian process), with a floor for what is known without either:

    mIoU(C, S) = a + g_c log(1 + b_c C) + g_s log(1 + b_s S)

for C images with tags and S with masks. Theirs is the mean of a Gaussian process whose spread leads to new proportions
at every round of a campaign; a curve of some ten points cannot tell its parameters, and a bootstrap gives the interval
here: the gain +- t times the spread of the refits, as in `chance`; Student's t (scipy) has a degree of freedom for each
point more than the law has numbers. Percentiles of the refits promise 95 % and held the gain in 83, 77 and 90 of
100 simulated curves of 4, 5 and 7 points, this interval in 100, 97 and 98; of 4 points by three seeds in 94 and 96.

As they do, the advice compares what the same budget buys and takes the greater expected gain. Of one hour only the ends
of their front are compared, all tags or all masks: so small a step is nearly straight, and the best place of a straight
front is an end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

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
    """What more of `kind` is expected to add to mIoU, as a fraction, and between what bounds."""

    kind: Literal["tags", "masks"]
    images: int
    expected: float
    low: float
    high: float
    hours: float = 1.0
    """What the images take: more than was asked for where that pays for none."""


def fitted(tags: Amounts, masks: Amounts, mean_iou: Amounts) -> Law:
    """The law with the least squared error, no part of which falls with more annotation.

    For given rates b the law is linear, and non-negative least squares (scipy) solve it; the rates are those of a grid
    that give the least. So there is one answer, without a start to choose.
    """
    best: tuple[float, Law] | None = None
    kinds = varied(tags, masks)
    for b_c in _rates(tags, "tags" in kinds):
        for b_s in _rates(masks, "masks" in kinds):
            columns = [np.ones_like(masks), np.log1p(b_c * tags), np.log1p(b_s * masks)]
            (a, g_c, g_s), error = optimize.nnls(np.stack(columns, axis=1), mean_iou)
            if best is None or error < best[0] - 1e-12:
                best = error, Law(float(a), float(g_c), b_c, float(g_s), b_s)
    assert best is not None
    return best[1]


def _rates(amounts: Amounts, is_varied: bool) -> list[float]:
    """Rates to try; a rate of 0, which takes the term out, of what was not varied."""
    if not is_varied:
        return [0.0]
    smallest = amounts[amounts > 0].min()
    return np.geomspace(0.1 / amounts.max(), 10 / smallest, RATES).tolist()


def varied(tags: Amounts, masks: Amounts) -> list[Literal["tags", "masks"]]:
    """What the points tell of: several amounts of masks, and of tags where as many masks have several.

    Where images with masks are not among those with tags, every mask takes a tag away: tags then differ, but what masks
    add and what tags lack cannot be told apart.
    """
    kinds: list[Literal["tags", "masks"]] = []
    if any(len(np.unique(tags[masks == amount])) > 1 for amount in np.unique(masks)):
        kinds.append("tags")
    return [*kinds, "masks"] if len(np.unique(masks)) > 1 else kinds


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
    of the law leave unexplained. A draw without a known pixel has no mIoU (NaN) and is left out.

    Raises:
        Problem: there are no more points than numbers in the law, or no two draws have a mIoU.
    """
    kinds = varied(tags, masks)
    parameters = 1 + 2 * len(kinds)
    freedom = len(mean_iou) - parameters
    if freedom < 1:
        raise Problem(
            f"{len(mean_iou)} points leave a law with {parameters} numbers no degree of freedom, so no interval can be "
            "given; add masks or seeds"
        )
    known = drawn[np.isfinite(drawn).all(axis=1)][:DRAWS]
    if len(known) < 2:
        raise Problem("too few validation images have masks, so no interval can be given; add masks to them")
    law = fitted(tags, masks, mean_iou)
    residuals = (mean_iou - law(tags, masks)) * np.sqrt(len(mean_iou) / freedom)
    rng = np.random.default_rng(derived_seed("bootstrap", "law", len(mean_iou)))
    refits = []
    for draw in known:
        picked = rng.choice(residuals - residuals.mean(), len(residuals))
        refits.append(fitted(tags, masks, law(tags, masks) + (draw - mean_iou) + picked))
    found = []
    for kind in kinds:
        seconds = getattr(cost, kind.removesuffix("s"))
        images = max(1, int(hours * 3600 / seconds))
        expected = _added(law, kind, images, now)
        spread = float(np.std([_added(one, kind, images, now) for one in refits], ddof=1))
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * spread
        found.append(Gain(kind, images, expected, expected - reach, expected + reach, max(hours, seconds / 3600)))
    return found


def _added(law: Law, kind: str, images: int, now: tuple[int, int]) -> float:
    after = np.array(now, dtype=np.float64)
    after[0 if kind == "tags" else 1] += images
    before = law(np.array([now[0]], dtype=np.float64), np.array([now[1]], dtype=np.float64))
    return float(law(after[:1], after[1:])[0] - before[0])


def advice(system: str, found: Sequence[Gain]) -> str:
    """One sentence: what the next hour is to be spent on, what it is expected to add, and in which interval.

    Where an hour does not pay for one image, the sentence says how many do, and gains are compared by the hour.
    """
    best = max(found, key=lambda gain: gain.expected / gain.hours)
    sentence = f"{system}, the next {_time(best)}: {_spelled(best)}, expected {_points(best)}"
    others = [
        f"{_spelled(gain)}{f' in {_time(gain)}' * (gain.hours != best.hours)} {_points(gain)}"
        for gain in found
        if gain is not best
    ]
    never = {"tags", "masks"} - {gain.kind for gain in found}
    others += [f"{kind} were not varied" for kind in sorted(never)]
    return sentence + "".join(f"; {other}" for other in others) + "."


def _spelled(gain: Gain) -> str:
    return f"{gain.images} image{'s' * (gain.images > 1)} with {gain.kind}"


def _time(gain: Gain) -> str:
    return "hour" if gain.hours == 1 else f"{gain.hours:.2f} hours"


def _points(gain: Gain) -> str:
    return "{:+.2f} points ({:+.2f} to {:+.2f})".format(*(100 * v for v in (gain.expected, gain.low, gain.high)))
