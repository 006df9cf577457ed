"""Deep seeded region growing: cues grow over what the network has become sure of (Huang et al. 2018, section 3.3).

A pixel may take a class if the network gives it a probability above the class's threshold and if it is joined to a cue
of that class through such pixels. Cues themselves never change. A training step grows the cues that it is handed, not
what an earlier step made of them; otherwise errors would feed themselves.
"""

from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from segcore.data.pictures import IGNORE

NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""Pixels touch at sides and corners."""


def grow(
    cues: UInt8[np.ndarray, "h w"],
    probabilities: Float[np.ndarray, "K h w"],
    tags: tuple[int, ...],
    theta_foreground: float,
    theta_background: float,
) -> UInt8[np.ndarray, "h w"]:
    """The cues of one image and what grew from them; 255 where still nothing is known.

    `cues` are class indices, 255 where there is none; `tags` are classes 1..K-1 of the image, which compete with the
    background and with each other: the most probable of them is the only one that a pixel may take. Regions are
    8-connected and hold at least one cue of their class; the pixels of a region that are cues of another class stay
    what they are. Probabilities are compared as they are, not divided by their sum over these classes.

    As published, `theta_foreground` holds for every class, and the background must exceed `theta_background` as well:
    where that is the lower one, it changes nothing.
    """
    from scipy import ndimage  # here, as it takes 9 MB, and every training loads all systems to check their entries

    present = np.array(sorted({0, *tags}))
    best = probabilities[present].argmax(0)
    theta_of_background = max(theta_background, theta_foreground)
    sure = probabilities[present].max(0) > np.where(best == 0, theta_of_background, theta_foreground)
    classes = np.where(sure, present[best], cues)
    grown = cues.copy()
    for index in present:
        regions, _ = cast(tuple[np.ndarray, int], ndimage.label(classes == index, NEIGHBOURS))
        seeded = np.unique(regions[(cues == index) & (regions > 0)])
        grown[np.isin(regions, seeded) & (cues == IGNORE)] = index
    return grown


@torch.no_grad()
def grow_batch(
    cues: Int64[Tensor, "B h w"],
    probabilities: Float[Tensor, "B K h w"],
    tags: Float[Tensor, "B L"],
    theta_foreground: float,
    theta_background: float,
) -> Int64[Tensor, "B h w"]:
    """`grow` for each image of a batch, on the CPU; the result is where the cues are. `tags` are 0 or 1, L = K - 1."""
    grown = cues.byte().cpu().numpy().copy()
    likely, named = probabilities.float().cpu().numpy(), tags.cpu().numpy()
    for number in range(len(grown)):
        classes = tuple((np.flatnonzero(named[number]) + 1).tolist())
        grown[number] = grow(grown[number], likely[number], classes, theta_foreground, theta_background)
    return torch.from_numpy(grown).long().to(cues.device)
