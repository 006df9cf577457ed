"""Sampling by class: samples of classes seldom seen come more often."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from segcore.seeds import derived_seed


def blocks(tags: Sequence[Sequence[int]], power: float) -> "Blocks":
    """The way through samples with these tags, each a list of class indices; those without are a class of their own."""
    members: dict[int, list[int]] = {}
    for index, own in enumerate(tags):
        for tag in own or (0,):
            members.setdefault(tag, []).append(index)
    classes = sorted(members)
    counts = np.array([len(members[tag]) for tag in classes], dtype=np.float64)
    shares = counts ** (1 - power)
    return Blocks([np.array(members[tag]) for tag in classes], shares / shares.sum(), len(tags))


class Blocks:
    """Blocks of as many draws as there are samples: an epoch, but that seldom classes come more often in it.

    Within a block every class has its share of the draws, rounded up or down so that the mean over blocks is exact,
    and a class goes through all of its samples before one comes again.
    """

    def __init__(self, members: list[Int64[np.ndarray, " _"]], shares: Float[np.ndarray, " C"], size: int) -> None:
        self.members = members
        self.shares = shares
        self.size = size

    def block(self, seed: int) -> Int64[np.ndarray, " N"]:
        """The samples of one block, in their order: a function of the seed."""
        rng = np.random.default_rng(seed)
        places = (np.arange(self.size) + rng.random()) / self.size
        drawn = np.searchsorted(self.shares.cumsum()[:-1], places, side="right")
        found = []
        for number, count in enumerate(np.bincount(drawn, minlength=len(self.members))):
            own, random = self.members[number], np.random.default_rng(derived_seed(seed, number))
            rounds = [random.permutation(own) for _ in range(-(-int(count) // len(own)))]
            found += [np.concatenate(rounds)[:count]] if rounds else []
        return rng.permutation(np.concatenate(found))
