"""From a picture to a class per pixel at its own resolution: squares, scales, flips, proposals, a CRF at the end."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from segcore.config.data import EdgeParams
from segcore.config.labels import CRFParams
from segcore.config.section import Views
from segcore.data.geometry import padded_square, stretched_square
from segcore.data.proposals import edge_boxes
from segcore.errors import Problem
from segcore.localisation import crf
from segcore.systems.contract import System

Image = UInt8[np.ndarray, "_ _ 3"]
Predict = Callable[[Float[Tensor, "B 3 S S"]], Float[Tensor, "B K S S"]]


@torch.no_grad()  # not inference_mode, which a system that takes gradients at test time cannot leave
def score_maps(
    system: System, images: Sequence[Image], input_size: int, views: Views, edges: EdgeParams | None
) -> list[Float[Tensor, "K _ _"]]:
    """The system's scores at each pixel of each image, at the image's own size.

    Each image becomes a square, scaled to `input_size` times each of the scales of `views` (rounded to a size that the
    system takes), predicted as it is and mirrored if the views say so, and the scores are averaged at the size of the
    square. How it becomes a square is the system's to say: padded with black below and to the right, or stretched. A
    system that asks for proposals is predicted by EdgeBoxes windows instead, which want `edges`.

    Raises:
        Problem: a scale makes images too small for the system; several scales for one that asks for proposals.
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
        return [by_proposals(predict_windows, image, input_size, system.proposals, edges) for image in images]
    return _by_squares(system, images, input_size, scales, flip)


def predict(
    system: System, images: Sequence[Image], input_size: int, edges: EdgeParams | None
) -> list[UInt8[np.ndarray, "_ _"]]:
    """The class of each pixel of each image, at the image's own size: where `score_maps` are greatest.

    The system's own `prediction` says at which views.
    """
    return [winners(s) for s in score_maps(system, images, input_size, system.prediction.views, edges)]


def winners(scores: Float[Tensor, "K H W"]) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel."""
    return scores.argmax(0).to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def refined(
    system: System, scores: Float[Tensor, "K H W"], image: Image, params: CRFParams
) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel after a fully connected CRF has drawn the scores' borders to those of the image."""
    return winners(crf.refine(system.probabilities(scores[None])[0], image, params))


@torch.inference_mode()
def restricted(
    system: System, scores: Float[Tensor, "K H W"], allowed: Sequence[int], image: Image, params: CRFParams | None
) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel out of those `allowed` alone, after a CRF over them if `params` are given."""
    probabilities = system.probabilities(scores[None])[0][list(allowed)]
    probabilities = probabilities / probabilities.sum(0, keepdim=True).clamp(min=1e-8)
    if params is not None:
        probabilities = crf.refine(probabilities, image, params)
    return np.asarray(allowed, dtype=np.uint8)[winners(probabilities)]


def _by_squares(
    system: System, images: Sequence[Image], input_size: int, scales: Sequence[float], flip: bool
) -> list[Float[Tensor, "K _ _"]]:
    stretched = system.square == "stretch"
    heights_widths = [image.shape[:2] if stretched else (max(image.shape[:2]),) * 2 for image in images]
    sums: list[Tensor | float] = [0.0] * len(images)
    for scale in scales:
        size = _input_size(system, input_size * scale)
        if size < system.smallest_input:
            raise Problem(
                f"scales: {scale} of {input_size} makes images of {size} pixels; "
                f"this system needs at least {system.smallest_input}"
            )
        square = stretched_square if stretched else padded_square
        batch = torch.stack([square(image, size) for image in images]).float().to(_device(system))
        passes = [system.predict(batch)]
        if flip:
            passes.append(system.predict(batch.flip(3)).flip(3))
        for i, (height, width) in enumerate(heights_widths):
            for scores in passes:
                sums[i] = sums[i] + F.interpolate(scores[i : i + 1], (height, width), mode="bilinear")[0]
    count = len(scales) * (1 + flip)
    return [torch.as_tensor(s / count)[:, : im.shape[0], : im.shape[1]] for s, im in zip(sums, images, strict=True)]


def _input_size(system: System, wanted: float) -> int:
    """The nearest size that the system takes: a multiple of its step, and its offset more."""
    step = system.input_step
    return max(step, round((wanted - system.input_offset) / step) * step) + system.input_offset


def by_proposals(
    predict: Predict, image: Image, input_size: int, proposals: int, edges: EdgeParams
) -> Float[Tensor, "K H W"]:
    """DeconvNet's inference: the pixel-wise maximum, from 0 up, of the scores of EdgeBoxes windows.

    Windows whose shorter side is below half of `input_size` are skipped (112 of 224 in the published code); the whole
    image is always one of the windows. The authors' proposals were enlarged beforehand, how is not published; these are
    not.
    """
    height, width = image.shape[:2]
    boxes = edge_boxes(image, edges, 20 * proposals)
    large = [b for b in boxes if min(b[2] - b[0], b[3] - b[1]) >= input_size / 2][:proposals]
    best: Tensor | None = None
    for x1, y1, x2, y2 in [(0, 0, width, height), *large]:
        window = cv2.resize(image[y1:y2, x1:x2], (input_size, input_size), interpolation=cv2.INTER_LINEAR)
        scores = predict(torch.from_numpy(window.transpose(2, 0, 1)[None].copy()).float())
        scores = F.interpolate(scores, (int(y2 - y1), int(x2 - x1)), mode="bilinear")[0]
        best = scores.new_zeros(len(scores), height, width) if best is None else best
        best[:, y1:y2, x1:x2] = torch.maximum(best[:, y1:y2, x1:x2], scores)
    assert best is not None
    return best


def _device(system: System) -> torch.device:
    return next(system.parameters()).device
