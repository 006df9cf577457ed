"""What a finished system says of an image that nobody outlined: labels to begin with, how unsure it is, what it saw."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segcore.errors import Problem
from segcore.evaluation.score_maps import ScoreMaps
from segcore.networks.trunk import Features, Trunk
from segcore.prediction.model import Model, Pixels

SAMPLES = 80
"""Pixels along the shorter side at which the entropy is taken: scores come from coarser grids."""

SHOWN = 0.01
"""The part of an image without tags that a class must cover to be one that it shows."""


@dataclass(frozen=True)
class Seen:
    """Of an image: what the system would label, its `uncertainty` in 0..1, and the mean of its trunk's map.

    `classes` are its tags, or, where it has none, those that the system labels on more than specks.
    """

    labels: UInt8[np.ndarray, "H W"]
    uncertainty: float
    features: Float[np.ndarray, " C"]
    classes: tuple[int, ...]


def uncertainty(probabilities: Float[Tensor, "K P"], allowed: Sequence[int]) -> float:
    """The mean over pixels of the entropy among the allowed classes, 1 being that of a throw of the dice."""
    if len(allowed) < 2:
        return 0.0
    p = probabilities[list(allowed)].clamp(min=1e-8)
    p = p / p.sum(0, keepdim=True)
    return float(-(p * p.log()).sum(0).mean()) / float(np.log(len(allowed)))


class Looker:
    """Asks a model about images, one by one: batch mates would change the last digits, and with them a close choice.

    Raises:
        Problem: the system has no trunk.
    """

    def __init__(self, model: Model) -> None:
        trunks = [module for module in model.system.modules() if isinstance(module, Trunk)]
        if len(trunks) != 1:
            raise Problem(
                f"system '{model.name}' has {len(trunks)} trunks, and images are compared by one; use another"
            )
        self.model, self._trunk = model, trunks[0]

    def __call__(self, picture: Pixels, tags: Sequence[int] | None) -> Seen:
        """Of a picture that shows the classes `tags` and background alone, or any class where they are None."""
        with _listening(self._trunk) as heard:
            (scores,) = self.model.scores([picture])
            found = self.model.said(scores, picture, tags, confidence=False)
        allowed = range(len(self.model.classes)) if tags is None else [0, *tags]
        shown = tags if tags is not None else (np.flatnonzero(found.shares[1:] >= SHOWN) + 1).tolist()
        return Seen(found.labels, self._uncertainty(scores, list(allowed)), np.mean(heard, axis=0), tuple(shown))

    @torch.no_grad()
    def _uncertainty(self, scores: ScoreMaps, allowed: list[int]) -> float:
        some = scores.sampled(max(1, min(scores.height, scores.width) // SAMPLES))
        return uncertainty(self.model.system.probabilities(some[None])[0].flatten(1), allowed)


@contextmanager
def _listening(trunk: Trunk) -> Iterator[list[Float[np.ndarray, " C"]]]:
    """What the trunk computes meanwhile: for each pass the mean of its map on top, of all views together."""
    heard: list[Float[np.ndarray, " C"]] = []

    def keep(module: Any, inputs: Any, output: Features | Tensor) -> None:
        top = output.top if isinstance(output, Features) else output
        heard.extend(top.detach().float().mean((2, 3)).cpu().numpy())

    handle: Callable[[], None] = trunk.register_forward_hook(keep).remove
    try:
        yield heard
    finally:
        handle()
