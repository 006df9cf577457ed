"""The model at work: one question after the other, in a thread of its own, so that the page goes on meanwhile."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8

from segcore.evaluation.score_maps import ScoreMaps
from segcore.prediction.model import Model, Predicted
from segcore.serving.photos import Photo

Answer = TypeVar("Answer")

HELD = 2
"""Photographs whose scores are kept, for maps and other limits of tags."""

MAP_SIDE = 512
"""Pixels of a map's shorter side, about: the page enlarges it, as scores come from coarser grids anyway."""


class Gone(Exception):
    """Nobody waits for the answer any more."""


class Worker:
    """A model that answers in turn.

    Attributes:
        model: what is asked; only its thread may run it.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._scores: OrderedDict[str, ScoreMaps] = OrderedDict()

    async def predict(self, photo: Photo, allowed: list[int] | None, wanted: Callable[[], bool]) -> Predicted:
        """What the model says of a photograph; `allowed` are the classes 1..L that it may show, None for all.

        Raises:
            Gone: it was wanted no more when its turn came.
        """
        return await self._asked(
            lambda: self.model.said(self._scores_of(photo), photo.pixels, allowed, confidence=False), wanted
        )

    async def map(self, photo: Photo, index: int, wanted: Callable[[], bool]) -> UInt8[np.ndarray, "_ _"]:
        """The probability of a class at every so many pixels, 255 being 1.

        Raises:
            Gone: it was wanted no more when its turn came.
        """
        return await self._asked(lambda: self._map(photo, index), wanted)

    def close(self) -> None:
        """Wait for the question that is being answered, and take no more."""
        self._thread.shutdown(cancel_futures=True)

    async def _asked(self, question: Callable[[], Answer], wanted: Callable[[], bool]) -> Answer:
        def answer() -> Answer:
            if not wanted():
                raise Gone
            return question()

        return await asyncio.get_running_loop().run_in_executor(self._thread, answer)

    def _scores_of(self, photo: Photo) -> ScoreMaps:
        if photo.key not in self._scores:
            self._scores[photo.key] = self.model.scores([photo.pixels])[0]
            while len(self._scores) > HELD:
                self._scores.popitem(last=False)
        return self._scores[photo.key]

    @torch.no_grad()
    def _map(self, photo: Photo, index: int) -> UInt8[np.ndarray, "_ _"]:
        step = max(1, min(photo.size) // MAP_SIDE)
        some = self.model.system.probabilities(self._scores_of(photo).sampled(step)[None])[0, index]
        return (some * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
