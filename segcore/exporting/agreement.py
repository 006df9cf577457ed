"""Whether an exported file says what the model says, on real pictures."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segcore.data.geometry import padded_square, stretched_square
from segcore.errors import Problem
from segcore.evaluation.score_maps import Mean
from segcore.exporting.graphs import Graph
from segcore.prediction.model import Model
from segcore.systems.contract import System

Run = Callable[[np.ndarray], np.ndarray]
"""An exported file at work: its input to its output."""

Pixels = UInt8[np.ndarray, "_ _ 3"]

SAME_LABELS = 0.999
"""Least share of pixels with the same class."""

SCORES = 1e-3
"""Greatest difference of any score, unless the model itself rounds worse: see `Agreement.rounding`."""

WORSE = 2.0
"""Times the model's own rounding that the file may be off then."""

REPEATED = 3
"""How often a time is taken; the shortest counts."""


@dataclass(frozen=True)
class Agreement:
    """What was compared, and what came out."""

    pictures: int
    sizes: tuple[str, ...]
    """Of the inputs that the file was run with."""
    same_labels: float
    """Share of all pixels to which both give the same class."""
    scores: float | None
    """Greatest difference of any score; None of a graph that gives labels."""
    rounding: float | None
    """Greatest difference of any score of the model in single and in double precision, where `scores` is above the bar.

    Where two pixels of a pooling window are equal but for rounding, another one wins in another runtime, and the scores
    around where it is put back (switches of DeconvNet) are others; so they are in torch itself.
    """
    milliseconds: float
    """Of the file, for one input, in as many threads as `torch_milliseconds`, of the model."""
    torch_milliseconds: float

    def check(self, what: str) -> None:
        """See that the bars are kept.

        Raises:
            Problem: they are not.
        """
        allowed = max(SCORES, WORSE * (self.rounding or 0.0))
        if self.same_labels >= SAME_LABELS and (self.scores is None or self.scores <= allowed):
            return
        scores = "" if self.scores is None else f", and scores differ by up to {self.scores:.2g} (allowed: {allowed})"
        raise Problem(
            f"{what}: on {self.pictures} pictures it gives the model's class to {self.same_labels:.4%} of the pixels "
            f"(wanted: {SAME_LABELS:.1%}){scores}; so it was not kept"
        )


def measured(run: Run, graph: Graph, model: Model, pictures: Sequence[Pixels], limited: bool) -> Agreement:
    """Compare a file with the model that it was made of.

    Args:
        limited: whether fewer tags than the model has may be found at once; the graph itself, as torch runs it, is then
            what the file must agree with.
    """
    found = _of_pictures if graph.takes_pictures else _of_squares
    return found(run, graph, model, pictures, limited)


def _of_pictures(run: Run, graph: Graph, model: Model, pictures: Sequence[Pixels], limited: bool) -> Agreement:
    plain = graph.program.module() if limited else None
    same = total = 0
    for picture in pictures:
        wanted = _winners(model, picture) if plain is None else plain(torch.from_numpy(picture)).numpy()
        same += int((run(picture) == wanted).sum())
        total += wanted.size
    sizes = tuple(sorted({f"{p.shape[1]}x{p.shape[0]}" for p in pictures}))
    times = milliseconds(run, graph, model, pictures[0]), _shortest(lambda: _winners(model, pictures[0]))
    return Agreement(len(pictures), sizes, same / total, None, None, *times)


def _winners(model: Model, picture: Pixels) -> UInt8[np.ndarray, "H W"]:
    (scores,) = model.scores([picture])
    return scores.winners()


def _of_squares(run: Run, graph: Graph, model: Model, pictures: Sequence[Pixels], limited: bool) -> Agreement:
    plain = graph.program.module() if limited else model.system.predict
    sides = [graph.side, graph.side + model.system.input_step] if graph.any_size else [graph.side]
    same, total, worst, off, sizes = 0, 0, 0.0, [], []
    for side in sides:
        squares = as_squares(model, pictures, side)
        for batch in squares.split(2) if graph.any_batch else squares.split(1):
            with torch.no_grad():
                wanted = plain(batch)
            found = torch.from_numpy(run(batch.numpy()))
            same += int((found.argmax(1) == wanted.argmax(1)).sum())
            total += wanted[:, 0].numel()
            difference = float((found - wanted).abs().max())
            worst = max(worst, difference)
            off += [(batch, wanted)] if difference > SCORES else []
            sizes.append("x".join(map(str, batch.shape)))
    first = as_squares(model, pictures[:1], graph.side)
    times = milliseconds(run, graph, model, pictures[0]), _shortest(lambda: model.system.predict(first))
    # A traced graph is of single precision for good, so nothing is excused where it is what counts.
    rounding = _rounding(model.system, off) if off and not limited else None
    return Agreement(len(pictures), tuple(dict.fromkeys(sizes)), same / total, worst, rounding, *times)


def _rounding(system: System, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Greatest difference of the scores that single precision gave for some batches from those of double."""
    double = copy.deepcopy(system).double()
    with torch.no_grad():
        return max(float((double.predict(batch.double()) - scores).abs().max()) for batch, scores in batches)


def as_squares(model: Model, pictures: Sequence[Pixels], side: int) -> Float[Tensor, "B 3 S S"]:
    """Pictures as the bare network takes them."""
    square = stretched_square if model.system.square == "stretch" else padded_square
    return torch.stack([square(picture, side) for picture in pictures]).float()


def _shortest(work: Callable[[], object]) -> float:
    """Milliseconds that something takes, after a first time that does not count."""
    work()
    times = []
    for _ in range(REPEATED):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return round(1000 * min(times), 2)


def milliseconds(run: Run, graph: Graph, model: Model, picture: Pixels) -> float:
    """Of a file, for one input."""
    given = picture if graph.takes_pictures else as_squares(model, [picture], graph.side).numpy()
    return _shortest(lambda: run(given))


def labels(run: Run, graph: Graph, model: Model, picture: Pixels) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel by an exported file, at the picture's own size."""
    if graph.takes_pictures:
        return run(picture)
    side = graph.side
    height, width = picture.shape[:2]
    long = max(height, width)
    square = (height, width) if model.system.square == "stretch" else (long, long)
    scores = Mean(height, width, square, len(model.classes), 1)
    scores.add(torch.from_numpy(run(as_squares(model, [picture], side).numpy())))
    return scores.winners()
