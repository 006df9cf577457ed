"""From a picture to a class per pixel at its own resolution: squares, scales, flips, proposals, a CRF at the end."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segcore.config.data import EdgeParams
from segcore.config.labels import CRFParams
from segcore.config.section import Views
from segcore.data.geometry import padded_square, stretched_square
from segcore.data.pictures import IGNORE
from segcore.data.proposals import edge_boxes
from segcore.errors import Problem
from segcore.evaluation.reading import Image
from segcore.evaluation.score_maps import Greatest, Mean, ScoreMaps, winners
from segcore.localisation import crf
from segcore.systems.contract import System

Predict = Callable[[Float[Tensor, "B 3 S S"]], Float[Tensor, "B K S S"]]


@torch.no_grad()  # not inference_mode, which a system that takes gradients at test time cannot leave
def score_maps(
    system: System,
    images: Sequence[Image],
    input_size: int,
    views: Views,
    edges: EdgeParams | None,
    tags: Float[Tensor, "B L"] | None = None,
) -> Iterable[ScoreMaps]:
    """The system's scores at each pixel of each image, at the image's own size.

    Each image becomes a square, scaled to `input_size` times each of the scales of `views` (rounded to a size that the
    system takes), predicted as it is and mirrored if the views say so, and the scores are averaged at the size of the
    square. How it becomes a square is the system's to say: padded with black below and to the right, or stretched. A
    system that asks for proposals is predicted by EdgeBoxes windows instead, which want `edges`. With `tags`, 0 or 1
    and on the system's device, the system is given those of each image instead of finding them.

    One image is in memory at a time, if `images` are read as they are asked for; each is asked for once. Scores are to
    be used in the order of the images, once.

    Raises:
        Problem: a scale makes images too small for the system; several scales for one that asks for proposals; tags for
            one that takes none.
    """
    scales, flip = views.scales, views.flip
    if system.proposals:
        on_device = _device(system)

        if list(scales) != [1.0]:
            raise Problem(
                f"scales: found {list(scales)} for a system with proposals, whose windows are all predicted at one "
                "size; give its prediction views with the scales [1.0], or set its proposals to 0"
            )

        def predict_windows(windows: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B K S S"]:
            windows = windows.to(on_device)
            scores = system.predict(windows)
            return (scores + system.predict(windows.flip(3)).flip(3)) / 2 if flip else scores

        if edges is None:
            raise ValueError("proposals need the parameters of edges")
        return (by_proposals(predict_windows, image, input_size, system.proposals, edges) for image in images)
    return maps_of(system, [squares_of(system, image, input_size, scales) for image in images], flip, tags)


def predict(
    system: System, images: Sequence[Image], input_size: int, edges: EdgeParams | None
) -> list[UInt8[np.ndarray, "_ _"]]:
    """The class of each pixel of each image, at the image's own size: where `score_maps` are greatest.

    The system's own `prediction` says at which views.
    """
    return [s.winners() for s in score_maps(system, images, input_size, system.prediction.views, edges)]


@torch.inference_mode()
def refined(
    system: System, scores: ScoreMaps, image: UInt8[np.ndarray, "H W 3"], params: CRFParams
) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel after a fully connected CRF has drawn the scores' borders to those of the image."""
    return winners(crf.refine(system.probabilities(scores.whole()[None])[0], image, params))


@torch.inference_mode()
def restricted(
    system: System,
    scores: ScoreMaps,
    allowed: Sequence[int],
    image: UInt8[np.ndarray, "H W 3"] | None,
    params: CRFParams | None,
) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel out of those `allowed` alone, after a CRF over them if `params` are given.

    The `image` is the CRF's. Without one the greatest score wins, as the greatest probability belongs to it.
    """
    if params is None:
        return scores.winners(allowed)
    assert image is not None
    probabilities = system.probabilities(scores.whole()[None])[0][list(allowed)]
    probabilities = probabilities / probabilities.sum(0, keepdim=True).clamp(min=1e-8)
    return np.asarray(allowed, dtype=np.uint8)[winners(crf.refine(probabilities, image, params))]


@torch.inference_mode()
def decided(
    system: System,
    scores: ScoreMaps,
    allowed: Sequence[int],
    image: UInt8[np.ndarray, "H W 3"] | None,
    params: CRFParams | None,
    unknown: tuple[float, float] | None,
) -> UInt8[np.ndarray, "H W"]:
    """Like `restricted`, but 255 where probabilities decide nothing.

    Args:
        allowed: classes that may win, the background first.
        unknown: a pixel is background where no other class has a probability above the first, and of a class where that
            one's is above the second; None takes the likeliest.
    """
    if unknown is None:
        return restricted(system, scores, allowed, image, params)
    probabilities = system.probabilities(scores.whole()[None])[0][list(allowed)]
    probabilities = probabilities / probabilities.sum(0, keepdim=True).clamp(min=1e-8)
    if params is not None:
        assert image is not None
        probabilities = crf.refine(probabilities, image, params)
    if len(allowed) == 1:
        return np.zeros(probabilities.shape[1:], dtype=np.uint8)
    best, place = probabilities[1:].max(0)
    labels = torch.full(best.shape, IGNORE, dtype=torch.uint8, device=best.device)
    labels[best <= unknown[0]] = 0
    winners_of = torch.tensor(allowed[1:], dtype=torch.uint8, device=best.device)[place]
    return torch.where(best > unknown[1], winners_of, labels).cpu().numpy()


SAMPLES = 80
"""Pixels along the shorter side at which the probabilities of tags are looked up: scores come from coarser grids."""


@torch.no_grad()
def probabilities(system: System, scores: ScoreMaps) -> Float[np.ndarray, " K"]:
    """Of each class, the greatest probability on a grid of places: low where the picture shows nothing of it."""
    step = max(1, min(scores.height, scores.width) // SAMPLES)
    return system.probabilities(scores.sampled(step)[None])[0].flatten(1).amax(1).cpu().numpy()


@dataclass(frozen=True)
class Squares:
    """What a network takes of one picture: a square for each scale, and the picture's own height and width."""

    height: int
    width: int
    at: tuple[UInt8[Tensor, "3 _ _"], ...]


def squares_of(system: System, image: Image, input_size: int, scales: Sequence[float]) -> Squares:
    """The picture as the system takes it at each scale; nothing is computed, so another thread may ask for it.

    Raises:
        Problem: a scale makes images too small for the system.
    """
    square = stretched_square if system.square == "stretch" else padded_square
    sizes = sizes_of(system, input_size, scales)
    return Squares(image.shape[0], image.shape[1], tuple(square(image, size) for size in sizes))


def sizes_of(system: System, input_size: int, scales: Sequence[float]) -> list[int]:
    """The sides of the squares that a picture becomes.

    Raises:
        Problem: a scale makes images too small for the system.
    """
    sizes = [system.side_near(input_size * scale) for scale in scales]
    for scale, size in zip(scales, sizes, strict=True):
        if size < system.smallest_input:
            raise Problem(
                f"scales: {scale} of {input_size} makes images of {size} pixels; "
                f"this system needs at least {system.smallest_input}"
            )
    return sizes


@torch.no_grad()
def maps_of(
    system: System, squares: Sequence[Squares], flip: bool, tags: Float[Tensor, "B L"] | None = None
) -> list[Mean]:
    """The system's scores at each pixel of the pictures that the squares were made of, predicted together.

    With `tags` the system is given those of each picture.
    """
    predict = system.predict if tags is None else partial(system.predict_given, tags=tags)
    scales = len(squares[0].at)
    sums: dict[torch.Size, Float[Tensor, "B K _ _"]] = {}
    for number in range(scales):
        batch = torch.stack([some.at[number] for some in squares]).float().to(_device(system))
        total = predict(batch)
        if total.shape in sums:
            total = sums[total.shape] + total
        if flip:
            mirrored = predict(batch.flip(3)).flip(3)  # a copy, which may be added to
            total = mirrored.add_(total)
        sums[total.shape] = total
    means = []
    for i, some in enumerate(squares):
        own = (some.height, some.width)
        square = own if system.square == "stretch" else (max(own), max(own))
        mean = Mean(*own, square, next(iter(sums.values())).shape[1], scales * (2 if flip else 1))
        for total in sums.values():
            mean.add(total[i : i + 1])
        means.append(mean)
    return means


@torch.no_grad()
def by_proposals(predict: Predict, image: Image, input_size: int, proposals: int, edges: EdgeParams) -> ScoreMaps:
    """DeconvNet's inference: the pixel-wise maximum, from 0 up, of the scores of EdgeBoxes windows.

    Windows whose shorter side is below half of `input_size` are skipped (112 of 224 in the published code); the whole
    image is always one of the windows. The authors' proposals were enlarged beforehand, how is not published; these are
    not.
    """
    height, width = image.shape[:2]
    boxes = edge_boxes(image, edges, 20 * proposals)
    large = [b for b in boxes if min(b[2] - b[0], b[3] - b[1]) >= input_size / 2][:proposals]
    windows = [(0, 0, width, height), *(tuple(map(int, box)) for box in large)]
    scores = []
    for x1, y1, x2, y2 in windows:
        window = cv2.resize(image[y1:y2, x1:x2], (input_size, input_size), interpolation=cv2.INTER_LINEAR)
        scores.append(predict(torch.from_numpy(window.transpose(2, 0, 1)[None].copy()).float()))
    return Greatest(height, width, windows, scores)


def _device(system: System) -> torch.device:
    return next(system.parameters()).device
