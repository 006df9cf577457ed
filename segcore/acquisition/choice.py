"""Which images to annotate within a budget: those a system is uncertain of, and that are unlike each other.

Greedy k-centre (Sener and Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
ICLR, algorithm 1) takes the image farthest from all that are known; here its distance is weighted by how uncertain the
system is of it, so that neither twenty frames of one hard scene are taken nor outliers that are easy. The features are
those of the system's own trunk. Greedy and by hand, as scikit-learn has no k-centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Kind = Literal["masks", "tags"]


@dataclass(frozen=True)
class Cost:
    """Seconds of a person that one annotation of an image takes (Bearman et al. 2016 measured 20.0 and 239.7)."""

    tags: float
    masks: float

    def of(self, kind: Kind, is_tagged: bool) -> float:
        """Of an image; who outlines one that has no tags names its classes on the way."""
        if kind == "tags":
            return self.tags
        return self.masks if is_tagged else self.masks + self.tags


@dataclass(frozen=True)
class Candidate:
    """An image that may be taken: `uncertainty` between 0 and 1, what it costs, where it lies among others."""

    image_id: str
    uncertainty: float
    seconds: float
    features: Float[np.ndarray, " C"]


@dataclass(frozen=True)
class Chosen:
    """An image that was taken, and its distance (of directions, 0 to 2) from all that was known before."""

    candidate: Candidate
    distance: float


FARTHEST = 2.0
"""The distance of opposite directions; of the first image where nothing is known yet."""


def choose(candidates: Sequence[Candidate], known: Sequence[Float[np.ndarray, " C"]], seconds: float) -> list[Chosen]:
    """Images that `seconds` pay for, in the order in which they are worth most: uncertainty times distance a second.

    `known` are the features of images that have this annotation. Equal ones are taken by their ids, so that the order
    of the candidates changes nothing.
    """
    left = sorted(candidates, key=lambda one: one.image_id)
    if not left:
        return []
    features = _directions([one.features for one in left])
    cost = np.array([one.seconds for one in left])
    worth = np.array([one.uncertainty for one in left]) / cost
    distance = np.full(len(left), FARTHEST)
    for other in _directions(known):
        distance = np.minimum(distance, 1 - features @ other)
    taken: list[Chosen] = []
    is_left = np.ones(len(left), dtype=bool)
    while (affordable := is_left & (cost <= seconds + 1e-9)).any():
        # One that is certain, or a copy of a known one, is worth nothing but comes last rather than never.
        gain = np.where(affordable, worth * distance.clip(min=0), -1.0)
        best = int(gain.argmax())
        taken.append(Chosen(left[best], float(distance[best].clip(min=0))))
        is_left[best] = False
        seconds -= cost[best]
        distance = np.minimum(distance, 1 - features @ features[best])
    return taken


def _directions(features: Sequence[Float[np.ndarray, " C"]]) -> Float[np.ndarray, "N C"]:
    rows = np.stack(features) if features else np.zeros((0, 1))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
