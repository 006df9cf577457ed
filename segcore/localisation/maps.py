"""The localisation maps of a tag under many random selections, merged into one as they come."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from segcore.config.labels import Selection
from segcore.localisation.mask_bank import MaskBank
from segcore.networks import stochastic_head
from segcore.networks.stochastic_head import StochasticHead

PAIRS_AT_ONCE = 64
"""Pairs of an image and a tag whose maps are made together: bounds the memory of large batches."""


class Aggregate:
    """The maps of all passes merged as they come, without holding them (section 3.2 of FickleNet).

    Each map is divided by `peak`, or if that is None by its own greatest value. A place is a member if any map exceeds
    `theta` there. Maps that are zero everywhere are skipped: they count neither for the members nor for the mean, so a
    pair whose maps are all zero has no member.
    """

    def __init__(self, theta: float, peak: Float[Tensor, " P"] | None = None) -> None:
        self.theta = theta
        self.peak = peak
        self._member: Bool[Tensor, "N P"] | None = None
        self._total: Float[Tensor, "N P"] | None = None
        self._maps: Int64[Tensor, " P"] | None = None

    def add(self, maps: Float[Tensor, "N n P"]) -> None:
        """Merge n maps of each of the P pairs at the N places; overwrites them."""
        own = maps.amax(0)
        peak = own if self.peak is None else self.peak
        maps /= peak.clamp(min=torch.finfo(maps.dtype).tiny)
        member, total, count = maps.amax(1) > self.theta, maps.sum(1), (own > 0).sum(0)
        if self._member is None or self._total is None or self._maps is None:
            self._member, self._total, self._maps = member, total, count
        else:
            self._member, self._total, self._maps = self._member | member, self._total + total, self._maps + count

    @property
    def member(self) -> Bool[Tensor, "N P"]:
        """Whether any map exceeded theta."""
        assert self._member is not None
        return self._member

    @property
    def mean(self) -> Float[Tensor, "N P"]:
        """The mean of the divided maps, 0 where there was none."""
        assert self._total is not None
        assert self._maps is not None
        return self._total / self._maps.clamp(min=1)


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

    Places are those of the top map, row by row. `bank` has channels as units if the selection is `general`, else the
    offsets of a window; of `deterministic`, which is the expectation over selections, it keeps all.
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
    top: Float[Tensor, "B K h w"],
    image: Int64[Tensor, " P"],
    tag: Int64[Tensor, " P"],
    bank: MaskBank,
    selection: Selection,
    rate: float,
    form: str,
    theta: float,
    normalise: Literal["map", "image"],
) -> tuple[Bool[Tensor, "P h w"], Float[Tensor, "P h w"]]:
    """Where each pair of an image and a tag (0..L-1) is, by any of its maps, and the mean of its maps.

    `normalise: image` divides by the greatest value of all maps of a pair, for which they are made twice.
    """
    members = [torch.zeros(0, *top.shape[2:], dtype=torch.bool, device=top.device)]
    means = [top.new_zeros(0, *top.shape[2:])]
    for some in torch.arange(len(image), device=top.device).split(PAIRS_AT_ONCE) if len(image) else ():
        wanted = (head, top, image[some], tag[some], bank, selection, rate, form)
        peak = None
        if normalise == "image":
            peak = torch.stack([maps.amax((0, 1)) for maps in maps_of(*wanted)]).amax(0)
        merged = Aggregate(theta, peak)
        for maps in maps_of(*wanted):
            merged.add(maps)
        members.append(merged.member.T.unflatten(1, top.shape[2:]))
        means.append(merged.mean.T.unflatten(1, top.shape[2:]))
    return torch.cat(members), torch.cat(means)
