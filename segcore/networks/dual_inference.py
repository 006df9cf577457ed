"""Iterative inference of DIS: features are moved until what the subnets make of them fits the image.

Luo et al., ICCV 2017, section 2.1, "Inference in Test": with all weights fixed, u1 and v1 go down the gradient of an
objective, from where the forward pass has put them. The published step is gamma times the gradient, gamma unpublished.
Here each step is as long as `step` says, relative to the features that it moves: u1 by `step` |u1| / |gradient of u1|
times its gradient, v1 likewise, every image by its own norms. So a step means the same for every trunk and image, and
no image depends on others.

Subnets 1 and 3 begin with linear layers, by 10 K rows of weights together. Whatever u1 and v1 hold at right angles to
these rows is seen by no subnet and moved by no gradient. So the features are written once in an orthonormal basis of
the rows, and all steps are taken there: the same steps, norms among them, with 210 channels in place of 2,048.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from segcore.networks.dual import Dual, Responses

Objective = Callable[[Responses], Float[Tensor, " B"]]
"""What is to fall, of each image; it is a function of that image's responses alone."""


class Inferred(NamedTuple):
    """Where inference ended."""

    responses: Responses
    values: Float[Tensor, "places B"]
    """The objective of each image at the start and after every step; it never rises."""


@torch.no_grad()
def infer(
    network: Dual,
    u1: Float[Tensor, "B C h w"],
    v1: Float[Tensor, "B C"],
    objective: Objective,
    iterations: int,
    step: float,
) -> Inferred:
    """Responses after so many steps; after 0, those of the forward pass.

    Neither the trunk nor any weight gets a gradient. The objective never rises, whatever the weights and the step: an
    image that a step did not bring lower goes back to where it was, and from there half as far. Whether it did, the
    pass shows that the next step starts with; a last pass, without gradients, gives the responses.
    """
    with torch.autocast(u1.device.type, enabled=False):
        u1, v1 = (x if x.dtype == torch.float64 else x.float() for x in (u1, v1))
        if iterations == 0:
            responses = network.respond(u1, v1)
            return Inferred(responses, objective(responses)[None])
        subnets = _Subnets(network, u1, v1)
        kept = subnets.place(subnets.start, objective, with_gradients=True)
        length = u1.new_full((len(u1),), step)
        values = [kept.value]
        for number in range(1, iterations + 1):
            moved = _Features(*(x - _spread(length, x) * d for x, d in zip(kept.features, kept.downhill, strict=True)))
            reached = subnets.place(moved, objective, with_gradients=number < iterations)
            lower = reached.value < kept.value  # not so where it is not a number
            kept = _chosen(lower, reached, kept)
            length = torch.where(lower, length, length / 2)
            values.append(kept.value)
        return Inferred(kept.responses, torch.stack(values))


class _Features(NamedTuple):
    """u1 and v1, or what moves them, in the basis."""

    u: Float[Tensor, "B r h w"]
    v: Float[Tensor, "B r"]


class _Place(NamedTuple):
    """Features of each image, what the subnets make of them, and how to go on from there."""

    features: _Features
    responses: Responses
    value: Float[Tensor, " B"]
    downhill: _Features
    """What a step of length 1 takes off the features; nothing where gradients were not asked for."""


class _Subnets:
    """Subnets 1 and 3 over features in the basis, and the features that the images start from."""

    def __init__(self, network: Dual, u1: Float[Tensor, "B C h w"], v1: Float[Tensor, "B C"]) -> None:
        basis = basis_of(network, u1.dtype)
        self.network = network
        kernel = torch.einsum("kcyx,cr->kryx", network.labelmap.weight.to(u1.dtype), basis)
        self.labelmap = kernel.contiguous(memory_format=torch.channels_last)
        self.tags = network.tags.weight.to(u1.dtype) @ basis
        self.start = _Features(F.conv2d(u1, basis.T[:, :, None, None].contiguous()), v1 @ basis)
        self.unseen = [
            (_squares(whole) - _squares(seen)).clamp(min=0) for whole, seen in zip((u1, v1), self.start, strict=True)
        ]

    def place(self, features: _Features, objective: Objective, with_gradients: bool) -> _Place:
        features = _Features(*(x.detach().requires_grad_(with_gradients) for x in features))
        with torch.set_grad_enabled(with_gradients):
            u, v = features
            labelmap = F.conv2d(u + v[:, :, None, None], self.labelmap, self.network.labelmap.bias, padding=1)
            responses = Responses(labelmap, F.linear(u.mean((2, 3)) + v, self.tags, self.network.tags.bias))
            value = objective(responses)
            gradients = torch.autograd.grad(value.sum(), features) if with_gradients else features
        features = _Features(*(x.detach() for x in features))
        downhill = _Features(*map(self._as_long, features, gradients, self.unseen)) if with_gradients else features
        return _Place(features, Responses(*(x.detach() for x in responses)), value.detach(), downhill)

    @staticmethod
    def _as_long(features: Tensor, gradient: Tensor, unseen: Tensor) -> Tensor:
        """The gradient at the norm of the features, what no subnet sees of them included; 0 where it vanishes."""
        ours, theirs = (_squares(features) + unseen).sqrt(), _squares(gradient).sqrt()
        return _spread(torch.where(theirs > 0, ours / theirs, 0), gradient) * gradient


def basis_of(network: Dual, dtype: torch.dtype) -> Float[Tensor, "C r"]:
    """An orthonormal basis of the rows that subnets 1 and 3 begin with; all of the space where there are as many."""
    rows = torch.cat([network.labelmap.weight.movedim(1, 3).flatten(0, 2), network.tags.weight]).to(dtype)
    return torch.linalg.qr(rows.T).Q if len(rows) < rows.shape[1] else torch.eye(rows.shape[1]).to(rows)


def _chosen(lower: Bool[Tensor, " B"], reached: _Place, kept: _Place) -> _Place:
    """For each image where it has got to, if that is lower, and else where it was."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(_spread(lower, new), new, old)

    return _Place(
        _Features(*map(choose, reached.features, kept.features)),
        Responses(*map(choose, reached.responses, kept.responses)),
        choose(reached.value, kept.value),
        _Features(*map(choose, reached.downhill, kept.downhill)),
    )


def _squares(x: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    return x.flatten(1).square().sum(1)


def _spread(values: Tensor, over: Tensor) -> Tensor:
    """A value of each image, as a factor of what it has at every place."""
    return values.view(-1, *(1,) * (over.ndim - 1))
