"""The localisation maps of a tag under many random selections, merged into one as they come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segcore.config.labels import Selection
from segcore.localisation.aggregation import BINS, Aggregate, Merged, shares_of
from segcore.localisation.mask_bank import MaskBank
from segcore.networks import stochastic_head
from segcore.networks.stochastic_head import StochasticHead

PAIRS_AT_ONCE = 64
"""Pairs of an image and a tag whose maps are made together: bounds the memory of large batches."""


@dataclass(frozen=True)
class View:
    """One look at a batch: what the head's windows see of it, and how its cells become those of the grid.

    Attributes:
        units: `StochasticHead.units` of the batch.
        bank: the selections of this view.
        rows: what reads its map at the rows of the grid that all views are merged on; None where they are its own.
        columns: the same for columns.
    """

    units: Float[Tensor, "B K h w"]
    bank: MaskBank
    rows: Float[Tensor, "y h"] | None = None
    columns: Float[Tensor, "x w"] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Of the cells that its maps are read at."""
        height, width = self.units.shape[2:]
        rows = height if self.rows is None else len(self.rows)
        return rows, width if self.columns is None else len(self.columns)

    def read(self, maps: Float[Tensor, "N n P"]) -> Float[Tensor, "M n P"]:
        """Its maps at the places of the grid."""
        if self.rows is None and self.columns is None:
            return maps
        planes = maps.unflatten(0, tuple(self.units.shape[2:]))
        for side, reader in ((0, self.rows), (1, self.columns)):
            if reader is not None:
                planes = torch.einsum("yh,h...->y...", reader.to(maps), planes.movedim(side, 0)).movedim(0, side)
        return planes.flatten(0, 1)


def maps_of(
    head: StochasticHead,
    top: Float[Tensor, "B K h w"],
    image: Int64[Tensor, " P"],
    tag: Int64[Tensor, " P"],
    bank: MaskBank,
    selection: Selection,
    rate: float,
    form: str,
) -> Iterator[Float[Tensor, "N n P"]]:
    """The localisation maps of the logit of tag `tag` (0..L-1) in image `image`, some passes at a time.

    `top` are the head's `units`. Places are those of the top map, row by row. `bank` has channels as units if the
    selection is `general`, else the offsets of a window; of `deterministic`, which is the expectation over selections,
    it keeps all.
    """
    weight = head.weight(selection, rate).to(top.dtype)
    per_channel = selection == "general"
    if form == "factorised":
        parts = stochastic_head.terms(top, weight, image, tag, per_channel)
        yield from (stochastic_head.factorised_maps(parts, masks) for masks in bank.chunks())
    else:
        for masks in bank.chunks():
            yield stochastic_head.autograd_maps(form, top, weight, image, tag, masks, per_channel)


@torch.no_grad()
def localise(
    head: StochasticHead,
    views: Sequence[View],
    image: Int64[Tensor, " P"],
    tag: Int64[Tensor, " P"],
    selection: Selection,
    rate: float,
    form: str,
    normalise: Literal["map", "image"],
    bins: bool = False,
) -> Merged:
    """Where each pair of an image and a tag (0..L-1) is, by all maps of all views.

    `normalise: image` divides by the greatest value of all maps of a pair at a view, for which they are made twice.
    `bins` keeps what quantiles are read from.
    """
    nothing = views[0].units.new_zeros(0, *views[0].grid)
    parts = [Merged(nothing, nothing, nothing[..., None].expand(*nothing.shape, BINS).int() if bins else None)]
    for some in torch.arange(len(image), device=image.device).split(PAIRS_AT_ONCE) if len(image) else ():
        merged = Aggregate(bins)
        for view in views:
            wanted = (head, view.units, image[some], tag[some], view.bank, selection, rate, form)
            peak = None
            if normalise == "image":
                peak = torch.stack([maps.amax((0, 1)) for maps in maps_of(*wanted)]).amax(0)
            for maps in maps_of(*wanted):
                shares, there = shares_of(maps, peak)
                merged.add(view.read(shares), there)
        parts.append(merged.merged(views[0].grid))
    return Merged.joined(parts)
