"""What chance may explain of a difference between two systems: a paired bootstrap over images and seeds.

One draw takes as many images as there are, with replacement, and both systems are scored on the same ones, so that what
makes an image hard for both is no difference between them; mIoU is computed anew from the summed counts, as it is no
mean over images. With several seeds, a draw takes seeds first. Of n it takes n - 1, as the spread of means of n draws is
too small by (n - 1) / n (McCarthy and Snowden 1985), a third for three seeds. The seeds share their images where they
were measured on the same ones; where every seed has pictures of its own, as the embedded set does, each draws its own,
and as their chance is also in the spread of the seeds, the interval is too wide rather than too narrow.

The interval is the difference +- t times the spread of the draws, where Student's t (scipy) has the degrees of freedom
of Satterthwaite (1946): those of the seeds where seeds matter most. Percentiles of the draws would promise 95 % and hold
the truth in 80 % of experiments with three seeds, as tests/test_chance.py shows. `scipy.stats.bootstrap` resamples single
samples or pairs, not seeds and then images, and would copy the counts of every drawn image; here a draw is a row of
integer weights and all draws are one product of matrices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from scipy import stats

from segcore.evaluation.per_image import ImageCounts, mean_iou
from segcore.seeds import derived_seed

DRAWS = 2000
CONFIDENCE = 0.95

BySeed = Mapping[int, ImageCounts]
"""The counts of one system, by the seed that it was trained with."""


@dataclass(frozen=True)
class Difference:
    """Of two systems' mIoU, as a fraction, with its interval; `seeds` and `images` say what was drawn."""

    estimate: float
    low: float
    high: float
    seeds: int
    images: int

    @property
    def level(self) -> bool:
        """Whether the interval holds 0: chance alone may explain the difference."""
        return self.low <= 0 <= self.high


def difference(mine: BySeed, others: BySeed, shared_images: bool = True) -> Difference | None:
    """How much better `mine` are than `others`, over the seeds that both have; None where there are none.

    `shared_images` says that all seeds were measured on the same pictures. The draws are a function of the number of
    images alone.

    Raises:
        ValueError: the two were measured on different images.
    """
    seeds = sorted(mine.keys() & others.keys())
    if not seeds:
        return None
    for seed in seeds:
        if mine[seed].ids != others[seed].ids:
            raise ValueError(f"seed {seed}: the two systems were measured on different images")
    pairs = [(mine[seed].counts, others[seed].counts) for seed in seeds]
    of_seeds = np.array([mean_iou(one.sum(0)) - mean_iou(other.sum(0)) for one, other in pairs])
    drawn = np.stack(
        [
            drawn_mean_iou(one, 0 if shared_images else seed) - drawn_mean_iou(other, 0 if shared_images else seed)
            for seed, (one, other) in zip(seeds, pairs, strict=True)
        ],
        axis=1,
    )
    return Difference(*_interval(of_seeds, drawn, len(pairs[0][0])), len(seeds), len(pairs[0][0]))


def drawn_mean_iou(counts: Int64[np.ndarray, "N 3 K"], stream: int) -> Float[np.ndarray, " draws"]:
    """mIoU on `DRAWS` sets of N images; the same sets for everything of N images and this stream."""
    n = len(counts)
    rng = np.random.default_rng(derived_seed("bootstrap", n, stream))
    weights = rng.multinomial(n, np.full(n, 1 / n), DRAWS)
    # Whole numbers below 2^53: exact in floats, whose products are much faster.
    sums = weights.astype(np.float64) @ counts.reshape(n, -1).astype(np.float64)
    return mean_iou(sums.reshape(DRAWS, *counts.shape[1:]))


def _interval(
    of_seeds: Float[np.ndarray, " seeds"], drawn: Float[np.ndarray, "draws seeds"], n_images: int
) -> tuple[float, float, float]:
    """The mean over the seeds, and the ends of its interval."""
    n_seeds = len(of_seeds)
    estimate = float(of_seeds.mean())
    rng = np.random.default_rng(derived_seed("bootstrap", "seeds", n_seeds))
    picked = rng.integers(n_seeds, size=(len(drawn), max(1, n_seeds - 1)))
    spread = float(np.take_along_axis(drawn, picked, axis=1).mean(1).std(ddof=1))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, _freedom(of_seeds, drawn, n_images))) * spread if spread else 0.0
    return estimate, estimate - reach, estimate + reach


def _freedom(of_seeds: Float[np.ndarray, " seeds"], drawn: Float[np.ndarray, "draws seeds"], n_images: int) -> float:
    """Satterthwaite's degrees of freedom of the sum of the two variances."""
    of_images = float(drawn.mean(1).var(ddof=1))
    if len(of_seeds) == 1:
        return n_images - 1
    of_all_seeds = float(of_seeds.var(ddof=1)) / len(of_seeds)
    parts = of_images**2 / (n_images - 1) + of_all_seeds**2 / (len(of_seeds) - 1)
    return (of_images + of_all_seeds) ** 2 / parts
