"""How DIS fills in the labelmap of an image that has tags alone: the three ways of the paper's first figure.

Luo, Wang, Lin and Wang, "Deep Dual Learning for Semantic Image Segmentation", ICCV 2017, section 3. Where the source is
silent stands in `systems/dis.py`.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from segcore.config.section import Count, Fraction, Positive, Section, Threshold
from segcore.data.batches import Batch
from segcore.localisation.expectation import adaptive_bias, visiting_order


class NoUpdate(Section):
    """Figure 1 (a): a weak image teaches its tags and its colours, and no labelmap."""

    kind: Literal["none"]


class Shares(Section):
    """How much of an image its labelmap shows of each of its tags at least, roughly, as EM-Adapt of WSSL sees to it."""

    background: Threshold
    foreground: Threshold
    rounds: Count
    """How often every class is visited."""


class Predicted(Section):
    """Figure 1 (b): its labelmap is what the network scores highest among its tags and the background."""

    kind: Literal["predicted"]
    shares: Shares | None
    """Null, as published: a tag that scores less than the background everywhere is nowhere in the labelmap."""


class InferredUpdate(Section):
    """Figure 1 (c): its labelmap and its tags are inferred from its colours and the tags that it was given."""

    kind: Literal["inferred"]
    iterations: Count
    """Steps of inference, t; independent of those of prediction."""
    step: Positive
    """Length of a step over that of the features."""
    keep: Fraction
    """Least probability at which a tag that was given stays."""
    add: Fraction
    """Least probability at which a tag that was not given is added."""
    shares: Shares | None
    """As in `predicted`; of the tags that were kept or added."""


Update = Annotated[NoUpdate | Predicted | InferredUpdate, Field(discriminator="kind")]


def cleaned(
    probabilities: Float[Tensor, "B K"], given: Float[Tensor, "B K"], keep: float, add: float
) -> Float[Tensor, "B K"]:
    """Tags by what is probable after inference, 0 or 1; the background is one always.

    An image of which no tag is left keeps the likeliest of those that it was given, if it was given any.
    """
    kept = torch.where(given > 0, probabilities >= keep, probabilities >= add)
    kept[:, 0] = True
    tagged = given[:, 1:] > 0
    lost = tagged.any(1) & ~kept[:, 1:].any(1)
    likeliest = probabilities[:, 1:].masked_fill(~tagged, -1).argmax(1) + 1
    kept[lost, likeliest[lost]] = True
    return kept.to(given.dtype)


def labelmaps(
    batch: Batch,
    which: Int64[Tensor, " W"],
    scores: Float[Tensor, "W K h w"],
    tags: Float[Tensor, "W K"],
    shares: Shares | None,
) -> Int64[Tensor, "W h w"]:
    """The class of the greatest score at each cell of these samples of a batch, among the tags of each, 0 or 1.

    With shares, scores are raised first until every tag wins its share of the cells (`localisation.expectation`), in an
    order drawn by the image and the step.
    """
    if shares is not None:
        ids = [batch.ids[i] for i in which.tolist()]
        order = visiting_order("dis", ids, batch.moment.step, shares.rounds, tags.shape[1] - 1).to(scores.device)
        scores = adaptive_bias(scores.float(), tags[:, 1:], order, shares.background, shares.foreground, None)
    return scores.masked_fill(tags[:, :, None, None] == 0, -torch.inf).argmax(1)


def shown(labels: Int64[Tensor, "B H W"], n_tags: int) -> Float[Tensor, "B L"]:
    """Which of the classes 1..L the labels show."""
    classes = torch.arange(1, n_tags + 1, device=labels.device)
    return (labels.flatten(1)[:, :, None] == classes).any(1).float()


def with_background(tags: Float[Tensor, "B L"]) -> Float[Tensor, "B K"]:
    """Tags with that of the background before them, which every image has."""
    return torch.cat([torch.ones_like(tags[:, :1]), tags], 1)
