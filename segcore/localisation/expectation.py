"""The E-step of WSSL: where the classes of an image's tags are, by its scores, pushed towards those tags.

Papandreou, Chen, Murphy and Yuille, "Weakly- and Semi-Supervised Learning of a Deep Convolutional Network for Semantic
Image Segmentation", ICCV 2015, section 3.2. Biases are added to the scores of an image, a constant for each class; the
class that is greatest then is the label. EM-Fixed has the same biases for all images, EM-Adapt finds them image by
image. Where the paper is silent, the layers `BiasChannel` and `AdaptiveBiasChannel` of the authors' DeepLab say how.

Nothing here carries a gradient, and no image's result depends on the others of its batch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from segcore.seeds import derived_seed


def visiting_order(name: str, ids: Sequence[str], step: int, rounds: int, n_tags: int) -> Float[Tensor, "B n L"]:
    """In which order EM-Adapt visits the tags of each image: a function of the system, the image and the step alone."""
    random = torch.Generator()

    def of(image_id: str) -> Tensor:
        random.manual_seed(derived_seed(name, image_id, step))
        return torch.rand(rounds, n_tags, generator=random)

    return torch.stack([of(image_id) for image_id in ids])


@torch.no_grad()
def fixed_bias(
    scores: Float[Tensor, "B K h w"],
    tags: Float[Tensor, "B L"],
    background: float,
    foreground: float,
    exclude_absent: bool,
) -> Float[Tensor, "B K h w"]:
    """EM-Fixed: the scores, before the softmax, plus `foreground` for each tag of the image, `background` for class 0.

    Absent classes get nothing and so may still win; if they are excluded, their scores are -inf. `tags` are 0 or 1,
    L = K - 1.
    """
    bias = torch.cat([scores.new_full((len(scores), 1), background), foreground * tags.to(scores.dtype)], dim=1)
    if exclude_absent:
        bias = bias.masked_fill(~_present(tags), -torch.inf)
    return scores + bias[:, :, None, None]


@torch.no_grad()
def adaptive_bias(
    scores: Float[Tensor, "B K h w"],
    tags: Float[Tensor, "B L"],
    order: Float[Tensor, "B n L"],
    background_share: float,
    foreground_share: float,
    suppress_margin: float | None,
) -> Float[Tensor, "B K h w"]:
    """EM-Adapt: the scores with biases by which every class that is present wins a share of the image's cells.

    1. With a margin, an absent class is put that far below the lowest present one wherever it exceeds that one, so
       that it wins nowhere; without, it may win.
    2. m is the greatest score of the present classes at each cell.
    3. In each of n rounds each present class is visited, the background first: it is raised by the `share` quantile of
       m minus its score, so that it is the greatest at that share of the cells at least, and m is brought up to date.
    4. All classes are lowered by a constant, which gives m its mean again and changes no winner.

    Shares are approximate: who is visited later may take cells of who was before.

    Args:
        tags: 0 or 1, L = K - 1.
        order: by the size of these numbers the tags of an image are visited, in each of the rounds.
    """
    found, present = scores.flatten(2).clone(), _present(tags)
    if suppress_margin is not None:
        found = _suppressed(found, present, suppress_margin)
    best = found.masked_fill(~present[:, :, None], -torch.inf).amax(1)
    mean, background = best.mean(1), torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    # Tags that an image lacks are visited last, and so not at all.
    visited = int(present[:, 1:].sum(1).amax()) if len(tags) else 0
    for ranks in order.unbind(1):
        places = ranks.masked_fill(~present[:, 1:], torch.inf).argsort(1)[:, :visited]
        best = _raised(found, best, background, present, background_share)
        for place in places.unbind(1):
            best = _raised(found, best, place + 1, present, foreground_share)
    return (found - (best.mean(1) - mean)[:, None, None]).view_as(scores)


def _present(tags: Float[Tensor, "B L"]) -> Bool[Tensor, "B K"]:
    """Which classes an image shows, by its tags: the background always."""
    return torch.cat([torch.ones_like(tags[:, :1]), tags], dim=1) > 0


def _suppressed(scores: Float[Tensor, "B K n"], present: Bool[Tensor, "B K"], margin: float) -> Float[Tensor, "B K n"]:
    lowest = scores.masked_fill(~present[:, :, None], torch.inf).amin(1, keepdim=True)
    return torch.where(~present[:, :, None] & (scores > lowest), lowest - margin, scores)


def _raised(
    scores: Float[Tensor, "B K n"],
    best: Float[Tensor, "B n"],
    classes: Int64[Tensor, " B"],
    present: Bool[Tensor, "B K"],
    share: float,
) -> Float[Tensor, "B n"]:
    """Raise one class of each image, in place, where it is present; the greatest scores after it."""
    every, cells = torch.arange(len(scores), device=scores.device), best.shape[1]
    own, is_there = scores[every, classes], present[every, classes][:, None]
    # As published, the place counts from 0: the class wins at so many cells, and draws level at one more.
    rank = min(int(share * cells), cells - 1)
    rise = _ranked(best - own, rank)
    own = torch.where(is_there, own + rise, own)
    scores[every, classes] = own
    return torch.where(is_there, torch.maximum(best, own), best)


def _ranked(values: Float[Tensor, "B n"], rank: int) -> Float[Tensor, "B 1"]:
    """The value of each row that `rank` others are no greater than."""
    if torch.are_deterministic_algorithms_enabled():
        # A GPU may find any place of several equal values, for which torch refuses `kthvalue` whole.
        return values.sort(dim=1).values[:, rank : rank + 1]
    return values.kthvalue(rank + 1, dim=1, keepdim=True).values
