"""Losses that more than one system uses, as plain functions."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from segcore.samples import IGNORE


class Term(NamedTuple):
    """One term of a loss, not yet divided: its value is `total / weight`.

    Kept apart so that a batch spread over processes is normalised by the weight of all of it, as one process would.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]


def pixel_cross_entropy(scores: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"]) -> Term:
    """Softmax cross-entropy over the pixels whose label is known (Hong et al. 2015, equation 2).

    `labels` are class indices 0..K-1, 255 where unknown; the weight is the number of known pixels.
    """
    total = F.cross_entropy(scores.float(), labels, ignore_index=IGNORE, reduction="sum")
    return Term(total, torch.count_nonzero(labels != IGNORE).to(total.dtype))
