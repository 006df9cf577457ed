"""Many localisation maps of a tag merged into one as they come, without holding them (FickleNet, section 3.2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from segcore.config.labels import Mean, Quantile, Union

BINS = 64
"""Of the histogram that quantiles are read from, over 0..1."""

Aggregation = Union | Mean | Quantile


@dataclass(frozen=True)
class Merged:
    """What all maps of some pairs of an image and a tag say; `histogram` is None where no quantile is wanted.

    Attributes:
        greatest: of all maps, each divided by its greatest value or by that of its image and tag.
        mean: of the same, without those that are zero everywhere; 0 where there is no other.
        histogram: how many of these maps lie in each of `BINS` parts of 0..1.
    """

    greatest: Float[Tensor, "P h w"]
    mean: Float[Tensor, "P h w"]
    histogram: Int32[Tensor, "P h w _"] | None

    def scores(self, how: Aggregation) -> Float[Tensor, "P h w"]:
        """The one map that the maps become, in 0..1.

        A quantile is read from the histogram: it is less than 1/64 off the value that as many maps do not exceed.
        """
        if isinstance(how, Union):
            return self.greatest
        if isinstance(how, Mean):
            return self.mean
        assert self.histogram is not None
        return quantile(self.histogram, how.q).to(self.mean)

    def ranks(self, how: Aggregation) -> Float[Tensor, "P h w"]:
        """By what one tag wins over another where both are members: of a union by the mean, as published."""
        return self.mean if isinstance(how, Union) else self.scores(how)

    def some(self, pairs: slice) -> "Merged":
        """Those of some pairs."""
        rest = None if self.histogram is None else self.histogram[pairs]
        return Merged(self.greatest[pairs], self.mean[pairs], rest)

    @staticmethod
    def joined(parts: "list[Merged]") -> "Merged":
        """All pairs of several, in their order."""
        histograms = [part.histogram for part in parts if part.histogram is not None]
        return Merged(
            torch.cat([part.greatest for part in parts]),
            torch.cat([part.mean for part in parts]),
            torch.cat(histograms) if histograms else None,
        )


def quantile(histogram: Int32[Tensor, "*P B"], q: float) -> Float[Tensor, "*P"]:
    """The value of rank ceil(q n) among n values in 0..1, 0 where there are none.

    The bin that holds it is known exactly; within it values are taken to be spread evenly.
    """
    below = histogram.cumsum(-1)
    n = below[..., -1:]
    rank = (q * n.double()).ceil().clamp(min=1)
    place = (below < rank).sum(-1, keepdim=True).clamp(max=histogram.shape[-1] - 1)
    inside = histogram.gather(-1, place)
    before = below.gather(-1, place) - inside
    value = (place + (rank - before - 0.5) / inside.clamp(min=1)) / histogram.shape[-1]
    return torch.where(n > 0, value, 0.0)[..., 0]


class Aggregate:
    """The maps of P pairs at N places, of all passes and views, merged as they are added.

    Maps that are zero everywhere count for nothing: a pair whose maps are all zero scores 0 everywhere. Memory does not
    grow with the number of maps; `bins` keeps a histogram of `BINS` numbers a place for quantiles.
    """

    def __init__(self, bins: bool) -> None:
        self.bins = bins
        self._greatest: Float[Tensor, "N P"] | None = None
        self._total: Float[Tensor, "N P"] | None = None
        self._maps: Int64[Tensor, " P"] | None = None
        self._histogram: Int32[Tensor, "N P B"] | None = None

    def add(self, shares: Float[Tensor, "N n P"], there: Bool[Tensor, "n P"]) -> None:
        """Merge n maps of each pair, in 0..1; `there` says which of them are not zero everywhere."""
        greatest, total, count = shares.amax(1), shares.sum(1), there.sum(0)
        if self._greatest is None or self._total is None or self._maps is None:
            self._greatest, self._total, self._maps = greatest, total, count
        else:
            self._greatest = torch.maximum(self._greatest, greatest)
            self._total, self._maps = self._total + total, self._maps + count
        if self.bins:
            places, _, pairs = shares.shape
            if self._histogram is None:
                self._histogram = torch.zeros(places, pairs, BINS, dtype=torch.int32, device=shares.device)
            index = (shares.permute(0, 2, 1) * BINS).long().clamp_(max=BINS - 1)
            self._histogram.scatter_add_(2, index, there.T.int().expand_as(index))

    def merged(self, grid: tuple[int, int]) -> Merged:
        """What was added; the places are those of a grid, row by row."""
        assert self._greatest is not None
        assert self._total is not None
        assert self._maps is not None
        bins = None if self._histogram is None else self._histogram.transpose(0, 1).unflatten(1, grid)
        mean = self._total / self._maps.clamp(min=1)
        return Merged(self._greatest.T.unflatten(1, grid), mean.T.unflatten(1, grid), bins)


def shares_of(
    maps: Float[Tensor, "N n P"], peak: Float[Tensor, " P"] | None
) -> tuple[Float[Tensor, "N n P"], Bool[Tensor, "n P"]]:
    """Maps, which it overwrites, divided by `peak`, or if None each by its own greatest value; and which have any."""
    own = maps.amax(0)
    maps /= (own if peak is None else peak).clamp(min=torch.finfo(maps.dtype).tiny)
    return maps, own > 0
