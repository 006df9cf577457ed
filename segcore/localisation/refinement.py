"""What draws maps of tags, or labels made of them, to the borders of a picture."""

from dataclasses import dataclass

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
"""The probability of a boundary of objects, or of an object, at the cells of a grid."""


@dataclass(frozen=True)
class Learned:
    """What nets of the masks of S find in one image, at the cells of one grid; None where there is no such net."""

    boundary: Boundary | None
    objects: Boundary | None


@dataclass(frozen=True)
class Refined:
    """What is known of an image at the pixels of its picture.

    Attributes:
        maps: the scores of its tags, in 0..1.
        objects: the probability of any object; None where there is no net of it.
    """

    maps: Float[Tensor, "T H W"]
    objects: Float[Tensor, "H W"] | None


def at_pixels(
    scores: Float[Tensor, "T h w"], grid: Grid, how: Refinement, picture: Picture, learned: Learned
) -> Refined:
    """The scores of an image's tags, and its objects, at the pixels of its picture, after what refines them.

    PAMR and IRN's walk refine the maps alone, the joint walk both.
    """
    height, width = picture.shape[:2]
    objects = learned.objects
    if isinstance(how, AffinityParams):
        assert learned.boundary is not None
        walls, finer = learned.boundary
        reader = cells_of(finer, grid)
        fine = scores if reader is None else reader.to(scores) @ scores @ reader.to(scores).mT
        walked, objects = _walked(fine.cpu().numpy(), objects, walls, how)
        maps = enlarged(torch.from_numpy(walked), finer, height, width)
    else:
        maps = _maps_at_pixels(scores, grid, how, picture)
    if objects is None:
        return Refined(maps, None)
    probability, cells = objects
    return Refined(maps, enlarged(torch.from_numpy(probability)[None], cells, height, width)[0])


def _walked(
    maps: Float[np.ndarray, "T y x"],
    objects: Boundary | None,
    walls: Float[np.ndarray, "y x"],
    how: AffinityParams,
) -> tuple[Float[np.ndarray, "T y x"], Boundary | None]:
    if how.kind == "affinity":
        return affinity.walk(maps, walls, how.radius, how.beta, how.steps), objects
    if objects is None:
        return affinity.averaged(maps, walls, how.radius, how.beta, how.steps), None
    together = np.concatenate([maps, objects[0][None]])
    walked = affinity.averaged(together, walls, how.radius, how.beta, how.steps)
    return walked[:-1], (walked[-1], objects[1])


def _maps_at_pixels(
    scores: Float[Tensor, "T h w"], grid: Grid, how: Refinement, picture: Picture
) -> Float[Tensor, "T H W"]:
    height, width = picture.shape[:2]
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
