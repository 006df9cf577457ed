"""What draws maps of tags, or labels made of them, to the borders of a picture."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from segcore.config.refinements import AffinityParams, LabelCRFParams, NoRefinement, PAMRParams
from segcore.data.geometry import Grid, planes, resized
from segcore.data.pictures import IGNORE
from segcore.localisation import affinity, crf
from segcore.localisation.cells import cells_of, enlarged
from segcore.localisation.pamr import pamr

Refinement = NoRefinement | PAMRParams | LabelCRFParams | AffinityParams
Picture = UInt8[np.ndarray, "H W 3"]
Boundary = tuple[Float[np.ndarray, "y x"], Grid]
"""The probability of a boundary of objects at the cells of a grid."""


def maps_at_pixels(
    scores: Float[Tensor, "T h w"],
    grid: Grid,
    how: Refinement,
    picture: Picture,
    boundary: Boundary | None,
) -> Float[Tensor, "T H W"]:
    """The scores of an image's tags at the pixels of its picture, after what refines maps: PAMR or the walk.

    `boundary` is the probability of one at the cells of its grid, which the walk needs.
    """
    height, width = picture.shape[:2]
    if isinstance(how, AffinityParams):
        assert boundary is not None
        probability, finer = boundary
        reader = cells_of(finer, grid)
        fine = scores if reader is None else reader.to(scores) @ scores @ reader.to(scores).mT
        walked = affinity.walk(fine.cpu().numpy(), probability, how.radius, how.beta, how.steps)
        return enlarged(torch.from_numpy(walked), finer, height, width)
    if isinstance(how, PAMRParams) and len(scores):
        small = _small(picture, how.long_side)
        maps = enlarged(scores.cpu(), grid, *small.shape[:2])
        maps = pamr(maps, planes(small).float(), how.dilations, how.iterations)
        return F.interpolate(maps[None], size=(height, width), mode="bilinear")[0]
    return enlarged(scores.cpu(), grid, height, width)


def labels_by_crf(
    labels: UInt8[np.ndarray, "H W"], picture: Picture, tags: tuple[int, ...], params: LabelCRFParams
) -> UInt8[np.ndarray, "H W"]:
    """Labels after a CRF over the background and the image's tags, which leaves nothing unknown.

    Each label is believed to `confidence`, an unknown pixel (255) may be anything. The CRF is computed on a smaller
    picture, with its distances as many times smaller, and its probabilities are enlarged.
    """
    height, width = labels.shape
    small = _small(picture, params.long_side)
    classes = np.array([0, *tags], dtype=np.uint8)
    if len(classes) == 1:
        return np.zeros_like(labels)
    shrunk = cv2.resize(labels, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    believed = np.where(
        shrunk[None] == classes[:, None, None], params.confidence, (1 - params.confidence) / (len(classes) - 1)
    )
    believed = np.where(shrunk[None] == IGNORE, 1 / len(classes), believed).astype(np.float32)
    scale = max(height, width) / max(small.shape[:2])
    refined = crf.mean_field(
        -torch.from_numpy(believed).log()[None], planes(small).float()[None], params.crf, max(scale, 1.0)
    )
    large = F.interpolate(refined, size=(height, width), mode="bilinear")[0]
    return classes[large.argmax(0).numpy()]


def _small(picture: Picture, long_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with a long side of at most so many pixels."""
    height, width = picture.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    return resized(picture, max(1, round(width * scale)), max(1, round(height * scale)))
