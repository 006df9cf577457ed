"""Class-specific saliency maps: what of the top map speaks for some tags (Hong et al. 2015, section 4.2)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.networks.classifiers import Activations, FullyConnectedHead


def saliency(
    head: FullyConnectedHead,
    activations: Activations,
    values: Float[Tensor, "P L"],
    image: Int64[Tensor, " P"],
) -> Float[Tensor, "P C h w"]:
    """How much each unit of the top map speaks for some tags: a backward pass made of forward layers.

    For P pairs of an image (its index in the batch) and a vector v of tag values, the map is
    d/d top of sum_l v_l * max over places of score_l (Hong et al. 2015, equation 3, in the form of the published
    network: v is put where the score of its tag is greatest, then goes back through score, fc7 and fc6 with tied
    weights and the ReLU masks of the forward pass; batch normalisation, in eval mode, is a factor per channel). All
    pairs go in one batch; the result carries no gradient.
    """
    with torch.no_grad():
        grid = activations.scores.shape[2:]
        cells = grid[0] * grid[1]  # `numel` would be one number in a graph that is traced for any size
        switches = activations.scores.flatten(2).argmax(2)[image]  # P L: the place of each tag's maximum
        placed = values.new_zeros(*values.shape, cells).scatter_(2, switches[..., None], values[..., None])
        back = F.conv_transpose2d(placed.unflatten(2, grid), head.score.weight)
        back = back * (activations.fc7[image] > 0) * _slope(head.norm7)
        back = F.conv_transpose2d(back, head.fc7.weight)
        back = back * (activations.fc6[image] > 0) * _slope(head.norm6)
        return F.conv_transpose2d(back, head.fc6.weight, padding=head.padding)


def _slope(norm: nn.Module) -> Float[Tensor, "D 1 1"] | float:
    """The derivative of a normalisation in eval mode."""
    if not isinstance(norm, nn.BatchNorm2d):
        return 1.0
    assert norm.running_var is not None
    return (norm.weight * torch.rsqrt(norm.running_var + norm.eps))[:, None, None]


def saliency_autograd(
    head: FullyConnectedHead,
    activations: Activations,
    values: Float[Tensor, "P L"],
    image: Int64[Tensor, " P"],
) -> Float[Tensor, "P C h w"]:
    """The same map by automatic differentiation; works for any head that maps `top` to a score map."""
    with torch.enable_grad():
        top = activations.features.top.detach()[image].requires_grad_()
        strongest = head(top)[-1].amax((2, 3))
        (gradient,) = torch.autograd.grad((values.detach() * strongest).sum(), top)
    return gradient.detach()
