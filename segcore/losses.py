"""Losses that more than one system uses, as plain functions.

Of weak labels there are three: seed, expand and boundary (Kolesnikov and Lampert, "Seed, Expand and Constrain", ECCV
2016), the seed loss also as Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region
Growing", CVPR 2018, balance it, which is the form that FickleNet (Lee et al., CVPR 2019, equations 5 to 7) uses. Each
is a loss of one image, summed over the images of the batch; the weight is their number. So are those by which one part
of a network teaches another, in the form of Zhang et al., "Self-Regulation for Semantic Segmentation", ICCV 2021.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from segcore.data.pictures import IGNORE

FLOOR = 1e-4
"""Least probability of a class, before all are divided by their sum; also stands for the size of an empty set."""


class Term(NamedTuple):
    """One term of a loss, not yet divided: its value is `total / weight`.

    Kept apart so that a batch spread over processes is normalised by the weight of all of it, as one process would.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]

    def over(self, weight: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """`total / weight`, where `weight` is that of the whole batch: any number from 0 up.

        A batch in which nothing weighs has a total of 0, which stays 0.
        """
        return self.total / torch.where(weight > 0, weight, 1)

    def times(self, factor: float) -> "Term":
        """The term times a factor; at 0 its gradients are zeros, but there."""
        return Term(self.total * factor, self.weight)


def pixel_cross_entropy(
    scores: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"], weights: Float[Tensor, " K"] | None = None
) -> Term:
    """Softmax cross-entropy over the pixels whose label is known (Hong et al. 2015, equation 2).

    `labels` are class indices 0..K-1, 255 where unknown; the weight is the number of known pixels. With `weights` of
    the classes a pixel counts, in both, by that of its label.
    """
    # A GPU adds up the pixels in no fixed order, which torch refuses where it is told to be deterministic.
    how = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
    total = F.cross_entropy(scores.float(), labels, weights, ignore_index=IGNORE, reduction=how).sum()
    known = labels != IGNORE
    if weights is not None:
        return Term(total, weights[labels[known]].sum().to(total.dtype))
    return Term(total, torch.count_nonzero(known).to(total.dtype))


def limited_to_tags(scores: Float[Tensor, "B K H W"], tags: Float[Tensor, "B L"]) -> Float[Tensor, "B K H W"]:
    """y_c e^{f_c} / sum_k y_k e^{f_k}: the softmax over the tags of each image and the background.

    `tags` are 0 or 1, L = K - 1; classes that an image lacks get 0.
    """
    there = F.pad(tags > 0, (1, 0), value=True)
    return _wide(scores).masked_fill(~there[:, :, None, None], -torch.inf).softmax(1)


def pixel_dice(scores: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"]) -> Term:
    """`dice_costs` of the softmax, its mean over the classes that the labels of an image show, background included.

    An image of which nothing is known costs nothing. `labels` are 0..K-1, 255 where unknown.
    """
    p = _wide(scores).softmax(1)
    known = (labels != IGNORE)[:, None].to(p.dtype).expand_as(p)
    wanted = _one_hot(labels, p)
    costs = dice_costs(p.flatten(0, 1), wanted.flatten(0, 1), known.flatten(0, 1)).view(p.shape[:2])
    return over_images(_mean_where(costs[:, :, None], wanted.flatten(2).any(2)[:, :, None]))


def lovasz_softmax(scores: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"]) -> Term:
    """The Lovasz extension of 1 - IoU, its mean over the classes that the labels of an image show (Berman, Rannen Triki
    and Blaschko, "The Lovasz-Softmax loss", CVPR 2018, equations 8 and 11, image by image).

    Per image, so that none depends on the others of its batch; one of which nothing is known costs nothing. `labels`
    are 0..K-1, 255 where unknown.
    """
    p = _wide(scores).softmax(1)
    wanted = _one_hot(labels, p).flatten(2)
    # Unknown pixels have no error and are wanted by no class: sorted to the end, they change no sum.
    errors = (wanted - p.flatten(2)).abs() * (labels != IGNORE).flatten(1)[:, None]
    errors, order = errors.sort(dim=2, descending=True)
    wanted = wanted.gather(2, order)
    size = wanted.sum(2, keepdim=True)
    # Counted in whole numbers: the same, and in floating point a GPU adds up in no fixed order.
    hits, misses = (counts.cumsum(2, dtype=torch.int64).to(p.dtype) for counts in (wanted, 1 - wanted))
    both, either = size - hits, size + misses
    cost = 1 - both / either
    steps = torch.cat([cost[:, :, :1], cost.diff(dim=2)], 2)
    return over_images(_mean_where((errors * steps).sum(2, keepdim=True), size > 0))


def _one_hot(labels: Int64[Tensor, "B H W"], like: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
    """1 for the class of each pixel, 0 for all where it is unknown."""
    classes = torch.arange(like.shape[1], device=labels.device)[:, None, None]
    return (labels[:, None] == classes).to(like.dtype)


def dice_costs(
    probabilities: Float[Tensor, "P h w"], wanted: Float[Tensor, "P h w"], known: Float[Tensor, "P h w"]
) -> Float[Tensor, " P"]:
    """1 - (2 sum pq + 1) / (sum p + sum q + 1) of each map, over the places that are known.

    Milletari, Navab and Ahmadi, "V-Net", 3DV 2016, without their squares. `wanted` q and `known` are 0 or 1; the 1
    added above and below keeps it defined where nothing is wanted: it is then 0 if nothing is found either.
    """
    p, q = ((x * known).flatten(1) for x in (probabilities, wanted))
    return 1 - (2 * (p * q).sum(1) + 1) / (p.sum(1) + q.sum(1) + 1)


def floored_softmax(scores: Float[Tensor, "B K h w"]) -> Float[Tensor, "B K h w"]:
    """Class probabilities of at least about 1e-4: logarithms and ratios of them stay finite. In float32 or wider."""
    return _floored(_wide(scores).softmax(1) + FLOOR)


def seed_loss(probabilities: Float[Tensor, "B K h w"], cues: Int64[Tensor, "B h w"]) -> Term:
    """SEC's seed loss: the mean of -log f over all cues of an image, whatever their class.

    `probabilities` f are `floored_softmax`; `cues` are class indices, 255 where there is none. An image without cues
    costs nothing.
    """
    costs = _costs(probabilities, cues)
    return over_images(_mean_where(costs, cues != IGNORE))


def balanced_seed_loss(probabilities: Float[Tensor, "B K h w"], cues: Int64[Tensor, "B h w"]) -> Term:
    """DSRG's seed loss: the mean of -log f over the cues of the tags plus the mean over those of the background.

    Arguments as of `seed_loss`; a side without cues costs nothing.
    """
    costs = _costs(probabilities, cues)
    foreground = (cues != IGNORE) & (cues != 0)
    return over_images(_mean_where(costs, foreground) + _mean_where(costs, cues == 0))


def expand_loss(
    probabilities: Float[Tensor, "B K h w"],
    tags: Float[Tensor, "B L"],
    decay_foreground: float = 0.996,
    decay_background: float = 0.999,
) -> Term:
    """SEC's expand loss: -log of the pooled probability of each tag and of the background, and of 1 minus the absent's.

    Pooled is a weighted mean in which the i-th greatest probability weighs decay^i (global weighted rank pooling); of
    an absent class it is the maximum. The means over tags and over absent classes count once each, and nothing where
    there are none. `tags` are 0 or 1, L = K - 1. Published decays are for 41x41 places: 0 there is the maximum, 1 the
    mean.
    """
    ranked = probabilities.flatten(2).sort(dim=2, descending=True).values
    present = tags > 0
    foreground = ranked[:, 1:]
    tagged = -_pooled(foreground, decay_foreground).log()
    absent = -(1 - foreground[:, :, 0]).log()
    background = -_pooled(ranked[:, :1], decay_background).log()
    return over_images(_mean_where(tagged, present) + _mean_where(absent, ~present) + background.squeeze(1))


def boundary_loss(
    probabilities: Float[Tensor, "B K h w"], refined: Float[Tensor, "B K h w"], ratio: tuple[float, float] | None
) -> Term:
    """Constrain-to-boundary loss: the mean over places of KL(Q || f), where Q is what a CRF makes of f.

    `probabilities` f are `floored_softmax`; `refined` Q is floored and divided by its sum in the same way and takes no
    gradient. With bounds, such as DSRG's 0.05 and 20, the `ratio` Q / f counts within them alone: places that are
    further off teach nothing. None, as in SEC (equation 5), takes every ratio as it is.
    """
    target = _floored(refined.detach().clamp(min=FLOOR))
    ratios = target / probabilities
    if ratio is not None:
        ratios = ratios.clamp(*ratio)
    divergence = target * ratios.log()
    return over_images(divergence.sum(1).mean((1, 2)))


def tag_costs(
    scores: Float[Tensor, "B L"], tags: Float[Tensor, "B L"], positive: Float[Tensor, " L"] | None = None
) -> Float[Tensor, " B"]:
    """Sigmoid cross-entropy of each image, its mean over the tags; `tags` are 0 or 1. In float32 or wider.

    Tags that an image has count `positive` times.
    """
    wide = _wide(scores)
    costs = F.binary_cross_entropy_with_logits(wide, tags.to(wide.dtype), pos_weight=positive, reduction="none")
    return costs.mean(1)


def reconstruction_costs(found: Float[Tensor, "B C h w"], wanted: Float[Tensor, "B C h w"]) -> Float[Tensor, " B"]:
    """Squared difference of each image, its mean over places and channels. In float32 or wider."""
    return (_wide(found) - wanted).square().mean((1, 2, 3))


def over_images(losses: Float[Tensor, " B"]) -> Term:
    """Losses of single images, to be averaged over all images of a batch."""
    return Term(losses.sum(), losses.new_full((), len(losses)))


def tag_cross_entropy(
    scores: Float[Tensor, "B L"], tags: Float[Tensor, "B L"], positive: Float[Tensor, " L"] | None = None
) -> Term:
    """`tag_costs` of a batch."""
    return over_images(tag_costs(scores, tags, positive))


def distillation_loss(
    teacher: Float[Tensor, "B C *places"], student: Float[Tensor, "B C *places"], temperature: float
) -> Term:
    """L_ce^tau: tau^2 times the cross-entropy of softmax(teacher / tau) and softmax(student / tau), over channels.

    Averaged over the places of an image, if there are any. The teacher takes no gradient. The source writes the powers
    sigma(x)^(1/tau) of the softmax sigma, which do not add up to 1; divided by their sum they are softmax(x / tau), as
    distillation has it elsewhere (Hinton et al. 2015).
    """
    target = (_wide(teacher).detach() / temperature).softmax(1)
    costs = -(target * (_wide(student) / temperature).log_softmax(1)).sum(1)
    return over_images(temperature**2 * costs.reshape(len(costs), -1).mean(1))


def binary_distillation_loss(teacher: Float[Tensor, "B L"], student: Float[Tensor, "B L"], temperature: float) -> Term:
    """`distillation_loss` for tags of which an image has several: a sigmoid each, averaged over the tags."""
    target = (_wide(teacher).detach() / temperature).sigmoid()
    costs = F.binary_cross_entropy_with_logits(_wide(student) / temperature, target, reduction="none")
    return over_images(temperature**2 * costs.mean(1))


def added(terms: Sequence[Term]) -> Term:
    """The sum of terms of equal weight."""
    return Term(torch.stack([term.total for term in terms]).sum(), terms[0].weight)


def _wide(scores: Tensor) -> Tensor:
    """In float32, whatever a network computes in, or wider."""
    return scores if scores.dtype == torch.float64 else scores.float()


def _floored(positive: Float[Tensor, "B K h w"]) -> Float[Tensor, "B K h w"]:
    return positive / positive.sum(1, keepdim=True)


def _costs(probabilities: Float[Tensor, "B K h w"], cues: Int64[Tensor, "B h w"]) -> Float[Tensor, "B h w"]:
    """-log of the probability of each cue's class; of class 0 where there is no cue."""
    classes = torch.where(cues == IGNORE, 0, cues)
    return -probabilities.gather(1, classes[:, None]).squeeze(1).log()


def _mean_where(costs: Float[Tensor, "B *places"], chosen: Tensor) -> Float[Tensor, " B"]:
    """Mean over the chosen places of each image; 0 where none is chosen."""
    total = torch.where(chosen, costs, 0).flatten(1).sum(1)
    return total / chosen.flatten(1).sum(1).clamp(min=FLOOR)


def _pooled(ranked: Float[Tensor, "B C n"], decay: float) -> Float[Tensor, "B C"]:
    weights = decay ** torch.arange(ranked.shape[2], dtype=ranked.dtype, device=ranked.device)
    return (ranked * weights).sum(2) / weights.sum()
