"""From a picture to a class per pixel at its own resolution: square padding, scales, flips, proposals."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from segcore.problems import Problem
from segcore.proposals import edge_boxes
from segcore.sections import CropsParams, EvaluationParams
from segcore.systems import System
from segcore.transforms import padded_square

Image = UInt8[np.ndarray, "_ _ 3"]
Predict = Callable[[Float[Tensor, "B 3 S S"]], Float[Tensor, "B K S S"]]


@torch.inference_mode()
def predict(
    system: System, images: Sequence[Image], input_size: int, params: EvaluationParams, crops: CropsParams
) -> list[UInt8[np.ndarray, "_ _"]]:
    """The class of each pixel of each image, at the image's own size.

    Each image is padded with black to a square, scaled to `input_size` times each of `params.scales` (rounded to a
    multiple of 32), predicted as it is and mirrored if `params.flip`, and the scores are averaged at the size of the
    square before the greatest is chosen. A system that asks for proposals is predicted by EdgeBoxes windows instead.

    Raises:
        Problem: a scale makes images too small for the system.
    """
    if system.proposals:
        on_device = _device(system)

        def predict_windows(windows: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B K S S"]:
            return system.predict(windows.to(on_device))

        scores = [by_proposals(predict_windows, image, input_size, system.proposals, crops) for image in images]
    else:
        scores = _by_squares(system, images, input_size, params)
    return [score.argmax(0).to(torch.uint8).cpu().numpy() for score in scores]


def _by_squares(
    system: System, images: Sequence[Image], input_size: int, params: EvaluationParams
) -> list[Float[Tensor, "K _ _"]]:
    sides = [max(image.shape[:2]) for image in images]
    sums: list[Tensor | float] = [0.0] * len(images)
    for scale in params.scales:
        size = max(32, round(input_size * scale / 32) * 32)
        if size < system.smallest_input:
            raise Problem(
                f"evaluation.scales: {scale} of {input_size} makes images of {size} pixels; "
                f"this system needs at least {system.smallest_input}"
            )
        batch = torch.stack([padded_square(image, size) for image in images]).float().to(_device(system))
        passes = [system.predict(batch)]
        if params.flip:
            passes.append(system.predict(batch.flip(3)).flip(3))
        for i, side in enumerate(sides):
            for scores in passes:
                sums[i] = sums[i] + F.interpolate(scores[i : i + 1], (side, side), mode="bilinear", antialias=False)[0]
    return [torch.as_tensor(s)[:, : im.shape[0], : im.shape[1]] for s, im in zip(sums, images, strict=True)]


def by_proposals(
    predict: Predict, image: Image, input_size: int, proposals: int, crops: CropsParams
) -> Float[Tensor, "K H W"]:
    """DeconvNet's inference: the pixel-wise maximum, from 0 up, of the scores of EdgeBoxes windows.

    Windows whose shorter side is below half of `input_size` are skipped (112 of 224 in the published code); the whole
    image is always one of the windows.
    """
    height, width = image.shape[:2]
    boxes = edge_boxes(image, crops, 20 * proposals)
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
