"""Which images to annotate within a budget: those that are worth most a second of a person's time.

What an image is worth is a product of three, greedily, one image after the other:

- its uncertainty, the entropy of what the system says within the tags (`segcore.acquisition.looking`);
- its rarity, by the classes that its tags name: the mean of 1 / (1 + n)^2, n being the images with this annotation
  that show the class. Without it, whole budgets go to the two or three classes that the system confuses, and that is
  worse than chance (docs/results.md);
- its distance from all that is known, as in greedy k-centre (Sener and Savarese 2018, "Active Learning for
  Convolutional Neural Networks: A Core-Set Approach", ICLR, algorithm 1), so that not twenty frames of one hard scene
  are taken. The features are those of the system's own trunk.

Greedy and by hand, as scikit-learn has no k-centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

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
class Known:
    """An image that has the annotation: the classes that it shows, and where it lies among others."""

    classes: tuple[int, ...]
    features: Float[np.ndarray, " C"]


@dataclass(frozen=True)
class Candidate:
    """An image that may be taken: `uncertainty` between 0 and 1, what it costs, where it lies among others.

    `classes` are its tags, or what the system takes it to show.
    """

    image_id: str
    uncertainty: float
    seconds: float
    features: Float[np.ndarray, " C"]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """An image that was taken, and its `rarity` (0 to 1) and `distance` (of directions, 0 to 2) before it was."""

    candidate: Candidate
    rarity: float
    distance: float


FARTHEST = 2.0
"""The distance of opposite directions; of the first image where nothing is known yet."""


def choose(candidates: Sequence[Candidate], known: Sequence[Known], seconds: float) -> list[Chosen]:
    """Images that `seconds` pay for, in the order in which they are worth most a second.

    `known` are the images that have this annotation. Equal ones are taken by their ids, so that the order of the
    candidates changes nothing.
    """
    left = sorted(candidates, key=lambda one: one.image_id)
    if not left:
        return []
    shows = _shows([one.classes for one in [*left, *known]])
    shows, count = shows[: len(left)], shows[len(left) :].sum(0)
    features = _directions([one.features for one in left])
    cost = np.array([one.seconds for one in left])
    worth = np.array([one.uncertainty for one in left]) / cost
    distance = np.full(len(left), FARTHEST)
    for other in _directions([one.features for one in known]):
        distance = np.minimum(distance, 1 - features @ other)
    taken: list[Chosen] = []
    is_left = np.ones(len(left), dtype=bool)
    while (affordable := is_left & (cost <= seconds + 1e-9)).any():
        rarity = shows @ (1 / (1 + count) ** 2) / shows.sum(1)
        # One that is certain, or a copy of a known one, is worth nothing but comes last rather than never.
        gain = np.where(affordable, worth * rarity * distance.clip(min=0), -1.0)
        best = int(gain.argmax())
        taken.append(Chosen(left[best], float(rarity[best]), float(distance[best].clip(min=0))))
        is_left[best] = False
        seconds -= cost[best]
        count = count + shows[best]
        distance = np.minimum(distance, 1 - features @ features[best])
    return taken


def _shows(classes: Sequence[tuple[int, ...]]) -> Bool[np.ndarray, "N K"]:
    """Which image shows which class; nothing but background, 0, counts as a class of its own."""
    shows = np.zeros((len(classes), 1 + max(max(some, default=0) for some in classes)), dtype=bool)
    for row, some in zip(shows, classes, strict=True):
        row[list(some) or [0]] = True
    return shows


def _directions(features: Sequence[Float[np.ndarray, " C"]]) -> Float[np.ndarray, "N C"]:
    rows = np.stack(features) if features else np.zeros((0, 1))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
