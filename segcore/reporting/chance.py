"""What chance may explain of a difference between two systems: a paired bootstrap over images and seeds.

One draw takes as many images as there are, with replacement, and both systems are scored on the same ones, so that
what makes an image hard for both is no difference between them; mIoU is computed anew from the summed counts, as it is
no mean over images. With several seeds a draw takes seeds first: n - 1 of n, as the means of n drawn ones vary too
little, by (n - 1) / n (McCarthy and Snowden 1985). Seeds that were measured on the same pictures share the drawn ones.
Where each has pictures of its own, as on the embedded set, each draws its own; the spread of the seeds then holds the
chance of the pictures already, and the interval is too wide rather than too narrow.

The interval is the difference +- t times the spread of the draws, where Student's t (scipy) has the degrees of freedom
of Satterthwaite (1946): those of the seeds where seeds matter most. Percentiles of the draws promise 95 % and held the
truth in 83 and 89 of 100 simulated experiments with two and three seeds, this interval in 93 and 96.

`scipy.stats.bootstrap` resamples samples or pairs of them, not seeds and then images, and would copy the counts of
every drawn image; here a draw is a row of whole weights, and all draws are one product of matrices.

An image without a known pixel says nothing and is not drawn. One image that says something has no others to be drawn
instead of it: then there is a difference, and no interval.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from segcore.evaluation.per_image import PARTS, ImageCounts, mean_iou
from segcore.seeds import derived_seed

DRAWS = 2000
CONFIDENCE = 0.95
FEWEST = 2
"""Images with known pixels, below which there is no interval."""


class Scored:
    """One system's result of one seed, and what it would have been on other draws of its images.

    Everything that was measured on the same `pictures`, a name of theirs, sees the same draws.
    """

    def __init__(self, counts: ImageCounts, pictures: str) -> None:
        self.counts = counts
        self.pictures = pictures
        self.mean_iou = counts.mean_iou

    @cached_property
    def known(self) -> Bool[np.ndarray, " N"]:
        """Whether an image has a known pixel, as its mask says: the same for all systems."""
        return self.counts.counts[:, PARTS.index("truth")].sum(1) > 0

    @cached_property
    def drawn(self) -> Float[np.ndarray, " draws"]:
        """mIoU on `DRAWS` sets of as many images as have known pixels; NaN where none has."""
        counts = self.counts.counts[self.known]
        n = len(counts)
        if not n:
            return np.full(DRAWS, np.nan)
        rng = np.random.default_rng(derived_seed("bootstrap", "images", self.pictures, n))
        weights = rng.multinomial(n, np.full(n, 1 / n), DRAWS)
        # Whole numbers below 2^53: exact in floats, whose products are much faster.
        sums = weights.astype(np.float64) @ counts.reshape(n, -1).astype(np.float64)
        return mean_iou(sums.reshape(DRAWS, *counts.shape[1:]))


BySeed = Mapping[int, Scored]
"""The results of one system, by the seed that it was trained with."""


@dataclass(frozen=True)
class Difference:
    """Of two systems' mIoU, as a fraction, with its interval; `seeds` and `images` say what was drawn.

    The ends are NaN where fewer than `FEWEST` images were there to be drawn.
    """

    estimate: float
    low: float
    high: float
    seeds: int
    images: int

    @property
    def level(self) -> bool:
        """Whether chance alone may explain the difference: the interval holds 0, or there is none."""
        return not (self.low > 0 or self.high < 0)


def paired(mine: BySeed, others: BySeed) -> list[int]:
    """The seeds that both have of the same images; pictures that were generated may be of other code."""
    shared = sorted(mine.keys() & others.keys())
    return [seed for seed in shared if _measured_on(mine[seed]) == _measured_on(others[seed])]


def _measured_on(scored: Scored) -> tuple[str, tuple[str, ...]]:
    return scored.pictures, scored.counts.ids


def difference(mine: BySeed, others: BySeed) -> Difference | None:
    """How much better `mine` are than `others`, over the seeds that are `paired`.

    None where there are none, or where nothing is scored as no image has a known pixel.
    """
    seeds = paired(mine, others)
    pairs = [(mine[seed], others[seed]) for seed in seeds]
    of_seeds = np.array([a.mean_iou - b.mean_iou for a, b in pairs])
    if not seeds or np.isnan(of_seeds).any():
        return None
    drawn = np.stack([a.drawn - b.drawn for a, b in pairs], axis=1)
    n_images = min(int(a.known.sum()) for a, _ in pairs)
    return Difference(*_interval(of_seeds, drawn, n_images), len(seeds), n_images)


def _interval(
    of_seeds: Float[np.ndarray, " seeds"], drawn: Float[np.ndarray, "draws seeds"], n_images: int
) -> tuple[float, float, float]:
    """The mean over the seeds, and the ends of its interval; NaN where there are too few images for one."""
    n_seeds = len(of_seeds)
    estimate = float(of_seeds.mean())
    if n_images < FEWEST:
        return estimate, math.nan, math.nan
    rng = np.random.default_rng(derived_seed("bootstrap", "seeds", n_seeds))
    picked = rng.integers(n_seeds, size=(len(drawn), max(1, n_seeds - 1)))
    spread = float(np.take_along_axis(drawn, picked, axis=1).mean(1).std(ddof=1))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, _freedom(of_seeds, drawn, n_images))) * spread if spread else 0.0
    return estimate, estimate - reach, estimate + reach


def _freedom(of_seeds: Float[np.ndarray, " seeds"], drawn: Float[np.ndarray, "draws seeds"], n_images: int) -> float:
    """Satterthwaite's degrees of freedom of the sum of the two variances."""
    of_images = float(drawn.mean(1).var(ddof=1))
    if len(of_seeds) == 1:
        return float(n_images - 1)
    of_all_seeds = float(of_seeds.var(ddof=1)) / len(of_seeds)
    parts = of_images**2 / (n_images - 1) + of_all_seeds**2 / (len(of_seeds) - 1)
    # Both are 0 where two seeds err by as much to opposite sides: then only the seeds tell how far chance goes.
    return (of_images + of_all_seeds) ** 2 / parts if parts else float(len(of_seeds) - 1)
