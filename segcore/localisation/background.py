"""Cues of the background for images that have tags only: by the gradient of a classifier, or from saliency maps."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.data import saliency_maps
from segcore.data.geometry import Grid
from segcore.errors import Problem
from segcore.networks.classifiers import Classifier
from segcore.networks.trunk import Features


def importance(classifier: Classifier, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B h w"], Features]:
    """How much the scores of all tags together depend on each place of the grid, and the features on the way.

    Ones are sent back from the scores to the layer halfway up the trunk (`Trunk.middle`): conv4_1 of VGG before its
    ReLU, as published; elsewhere the output of the last level but one. Its greatest absolute gradient over the channels
    is read at the cells of the top map where that is coarser, and smoothed by a 3x3 median.

    The trunk is cut there by a hook, as `Features.levels` cannot be cut: the levels are handed out once the whole graph
    above and below them is made (several times the memory), conv4_1 is none, and where timm orders them B h w C they
    are views that the scores do not depend on.

    The classifier is put into eval mode: the scores are the expectation over its random selections.
    """
    classifier.eval()
    found: list[Tensor] = []

    def cut(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # A gradient is needed from here on only, so nothing below has to be kept for it.
        found.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)
        return found[0].clone()  # as the next layer may work in place

    hook = classifier.trunk.middle.register_forward_hook(cut)
    try:
        with torch.no_grad():
            result = classifier(images)
            (gradient,) = torch.autograd.grad(result.decision.float().sum(), found[0])
    finally:
        hook.remove()
    top: Tensor = result.features.top.detach()
    gradient = classifier.trunk.as_map(gradient, top)
    importances = smooth(gradient.float().abs().amax(1), (top.shape[2], top.shape[3]))
    return importances, Features((top,), result.features.switches)


def smooth(values: Float[Tensor, "B _ _"], grid: tuple[int, int]) -> Float[Tensor, "B h w"]:
    """Values at a coarser grid, each the median of its 3x3 neighbourhood there, in which the border is repeated.

    Cell i of either grid lies at its stride times i (`geometry.Grid`), so those of the coarser one are every second,
    fourth ... of the finer.

    Raises:
        Problem: they are not.
    """
    (rows, columns) = (_every(side, target) for side, target in zip(values.shape[1:], grid, strict=True))
    values = values[:, ::rows, ::columns]
    padded = F.pad(values[:, None], (1, 1, 1, 1), mode="replicate")
    nine = F.unfold(padded, 3)
    # As with `kthvalue`, torch refuses the median on a GPU for the sake of its place, which nobody asks for.
    deterministic = torch.are_deterministic_algorithms_enabled()
    middle = nine.sort(dim=1).values[:, 4] if deterministic else nine.median(1).values
    return middle.unflatten(1, grid)


def _every(side: int, target: int) -> int:
    """The power of two of which a grid of `side` cells has to be thinned out to `target`."""
    every = 1
    while -(-side // every) > target:
        every *= 2
    if -(-side // every) != target:
        raise Problem(
            f"background: gradient needs a layer halfway up whose {side} cells a side hold every cell of the top map's "
            f"{target}, which they do not; take another backbone or size, or background: saliency or none"
        )
    return every


def lowest(values: Float[Tensor, "B h w"], fraction: float) -> Bool[Tensor, "B h w"]:
    """The places whose value lies below the one that a `fraction` of the image's places are no greater than.

    Equal values are all in or all out, so where all are equal there is no background.
    """
    flat = values.flatten(1)
    limit = flat.sort(dim=1).values[:, int(fraction * flat.shape[1])]
    return values < limit[:, None, None]


def gradient_cue(classifier: Classifier, images: Float[Tensor, "B 3 H W"], fraction: float) -> Bool[Tensor, "B h w"]:
    """The `fraction` of the places that matter least to the tags is background (Kolesnikov and Lampert 2016, SEC)."""
    return lowest(importance(classifier, images)[0], fraction)


def saliency_cue(path: Path, grid: Grid, threshold: float) -> Bool[np.ndarray, "h w"]:
    """The cells whose saliency, in 0..1 at the pixel that each lies at, is below `threshold`.

    The map may be a smaller picture than its image; it is stretched as that is. DSRG, and FickleNet after it, take
    0.06 with the maps of DRFI.

    Raises:
        Problem: the file is missing or no grey 8-bit PNG.
    """
    return grid.at_cells(saliency_maps.read(path)).astype(np.float32) / 255 < threshold
