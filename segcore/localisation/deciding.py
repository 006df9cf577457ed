"""From what the maps of an image say to labels of its cells and pixels, by given or chosen settings."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from segcore.config.labels import BackgroundParams, Constant, Objects, Union
from segcore.config.refinements import LabelCRFParams, NoRefinement
from segcore.data.geometry import Grid
from segcore.data.pictures import IGNORE
from segcore.localisation import refinement
from segcore.localisation.aggregation import Aggregation, Merged
from segcore.localisation.refinement import Learned, Refined, Refinement


def classes_at(
    members: Bool[Tensor, "T h w"],
    ranks: Float[Tensor, "T h w"],
    tags: tuple[int, ...],
    background: Bool[Tensor, "h w"] | None = None,
) -> UInt8[Tensor, "h w"]:
    """The class of each place of one image.

    Of the tags (1..L) that a place is a member of, that with the greatest rank (the first one named, if equal) wins;
    foreground wins over background; 255 where there is neither.
    """
    labels = torch.full(members.shape[1:], IGNORE, dtype=torch.uint8, device=members.device)
    if background is not None:
        labels[background] = 0
    if tags:
        winner = ranks.masked_fill(~members, -1).argmax(0)
        named = torch.tensor(tags, dtype=torch.uint8, device=members.device)[winner]
        labels = torch.where(members.any(0), named, labels)
    return labels


@dataclass(frozen=True)
class Way:
    """How the maps of an image become labels: an entry's own settings, or those that calibration chose."""

    aggregation: Aggregation
    theta: float
    background: BackgroundParams
    refinement: Refinement


@dataclass(frozen=True)
class Found:
    """What the maps of one image say at the cells of the grid.

    Attributes:
        tags: of the image, 1..L, one for each map.
        maps: merged over passes and views.
        cue: where the background is by a cue that lies beside the maps; None where there is no such cue.
        levels: of the trunk, if they were asked for.
    """

    tags: tuple[int, ...]
    maps: Merged
    cue: Bool[Tensor, "h w"] | None
    levels: tuple[Float[Tensor, "_ _ _"], ...] | None

    def labels_at_cells(self, way: Way) -> UInt8[Tensor, "h w"]:
        """Without refinement, as published: places are members or not."""
        scores = self.maps.scores(way.aggregation)
        ground = self.ground(scores, way.background)
        return classes_at(scores > way.theta, self.maps.ranks(way.aggregation), self.tags, ground)

    def ground(self, scores: Float[Tensor, "T h w"], how: BackgroundParams) -> Bool[Tensor, "h w"] | None:
        """Where the background is at the cells; a constant is compared with what `scores` are at any places."""
        if isinstance(how, Constant | Objects):
            return (scores <= how.score).all(0)
        return self.cue


def labels_of(
    found: Found, way: Way, grid: Grid, picture: UInt8[np.ndarray, "H W 3"], learned: Learned
) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "H W"]]:
    """The labels of an image at the cells and at its pixels.

    A union without refinement is decided at the cells, whose labels its pixels take over, as published; all else is
    decided at the pixels, between whose values cells have been interpolated.
    """
    plain = isinstance(way.refinement, NoRefinement) and not isinstance(way.background, Objects)
    if isinstance(way.aggregation, Union) and plain:
        cells = found.labels_at_cells(way).cpu().numpy()
        return cells, grid.at_pixels(cells, *picture.shape[:2])
    scores = found.maps.scores(way.aggregation)
    refined = refinement.at_pixels(scores, grid, way.refinement, picture, learned)
    labels = decided(refined, found, way, grid, picture)
    return grid.at_cells(labels), labels


def decided(
    refined: Refined, found: Found, way: Way, grid: Grid, picture: UInt8[np.ndarray, "H W 3"]
) -> UInt8[np.ndarray, "H W"]:
    """The labels that what was refined becomes."""
    maps = refined.maps
    if isinstance(way.background, Objects):
        assert refined.objects is not None
        share = way.background.share
        maps = maps.clamp(min=0) ** (1 - share) * refined.objects**share
    ground = found.ground(maps, way.background)
    if ground is not None and not isinstance(way.background, Constant | Objects):
        ground = torch.from_numpy(grid.at_pixels(ground.cpu().numpy(), *picture.shape[:2]))
    labels = classes_at(maps > way.theta, maps, found.tags, ground).numpy()
    if isinstance(way.refinement, LabelCRFParams):
        return refinement.labels_by_crf(labels, picture, found.tags, way.refinement)
    return labels
