"""Inference of DIS by the image alone, written out: every step with its gradient, as layers.

What `dual_inference.infer` does with the objective of prediction, L_img, where nobody can ask for a gradient: in a
graph for other runtimes. L_img goes through subnet 2 and the layer of the labelmap, four convolutions and two ReLUs, so
its gradient is a pass back through them with tied weights. The basis of the features is computed once.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.networks import resizing
from segcore.networks.deeplab import enlarged
from segcore.networks.dual import Dual, Responses
from segcore.networks.dual_inference import basis_of


class _Place(NamedTuple):
    """Features of each image, and how to go on from there."""

    u: Float[Tensor, "B r h w"]
    v: Float[Tensor, "B r"]
    value: Float[Tensor, " B"]
    """L_img."""
    gradient_u: Float[Tensor, "B r h w"]
    gradient_v: Float[Tensor, "B r"]


class Unrolled(nn.Module):
    """The network of DIS and so many steps of inference, from images to scores.

    Args:
        iterations: 0 is the forward pass.
        step: length of a step over that of the features.
    """

    basis: Tensor
    kernel: Tensor

    def __init__(self, network: Dual, iterations: int, step: float) -> None:
        super().__init__()
        self.network = network
        self.iterations = iterations
        self.step = step
        with torch.no_grad():
            basis = basis_of(network, network.tags.weight.dtype)
            kernel = torch.einsum("kcyx,cr->kryx", network.labelmap.weight, basis).contiguous()
        self.register_buffer("basis", basis.contiguous(), persistent=False)
        self.register_buffer("kernel", kernel, persistent=False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        network, size = self.network, (images.shape[2], images.shape[3])
        u1 = network.trunk(images).top.float()
        v1 = network.vector_of(u1)
        if self.iterations == 0:
            return enlarged(network.fused(network.respond(u1, v1)), size, network.stride)
        u, v = F.conv2d(u1, self.basis.T[:, :, None, None]), v1 @ self.basis
        unseen_u, unseen_v = ((_squares(a) - _squares(b)).clamp(min=0) for a, b in ((u1, u), (v1, v)))
        seen = self._seen(images, u1)
        kept = self._place(u, v, seen)
        length = torch.full_like(kept.value, self.step)
        for _ in range(self.iterations):
            u = kept.u - _spread(length * _ratio(kept.u, kept.gradient_u, unseen_u), kept.u) * kept.gradient_u
            v = kept.v - _spread(length * _ratio(kept.v, kept.gradient_v, unseen_v), kept.v) * kept.gradient_v
            reached = self._place(u, v, seen)
            lower = reached.value < kept.value
            kept = _Place(*(torch.where(_spread(lower, a), a, b) for a, b in zip(reached, kept, strict=True)))
            length = torch.where(lower, length, length / 2)
        tags = F.linear(kept.u.mean((2, 3)) + kept.v, network.tags.weight @ self.basis, network.tags.bias)
        return enlarged(network.fused(Responses(self._labelmap(kept.u, kept.v), tags)), size, network.stride)

    def _seen(self, images: Float[Tensor, "B 3 H W"], u1: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 h w"]:
        """`Dual.seen`, by products."""
        normal = self.network.trunk.normalise(images)
        rows, columns = (resizing.antialiased(normal.shape[axis], u1.shape[axis], normal) for axis in (2, 3))
        return rows @ normal @ columns.T

    def _labelmap(self, u: Float[Tensor, "B r h w"], v: Float[Tensor, "B r"]) -> Float[Tensor, "B K h w"]:
        return F.conv2d(u + v[:, :, None, None], self.kernel, self.network.labelmap.bias, padding=1)

    def _place(self, u: Float[Tensor, "B r h w"], v: Float[Tensor, "B r"], seen: Float[Tensor, "B 3 h w"]) -> _Place:
        first, second, third = (cast(nn.Conv2d, self.network.image[i]) for i in (0, 2, 4))
        hidden_1 = first(self._labelmap(u, v))
        hidden_2 = second(F.relu(hidden_1))
        off = third(F.relu(hidden_2)) - seen
        back = off * (2 / (off.shape[1] * off.shape[2] * off.shape[3]))
        back = F.conv_transpose2d(back, third.weight, padding=1) * (hidden_2 > 0)
        back = F.conv_transpose2d(back, second.weight, padding=1) * (hidden_1 > 0)
        back = F.conv_transpose2d(back, first.weight, padding=2)
        gradient = F.conv_transpose2d(back, self.kernel, padding=1)
        return _Place(u, v, off.square().mean((1, 2, 3)), gradient, gradient.sum((2, 3)))


def _ratio(features: Tensor, gradient: Tensor, unseen: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """By what a gradient is as long as the features, what no subnet sees of them included; 0 where it vanishes."""
    theirs = _squares(gradient).sqrt()
    return torch.where(theirs > 0, (_squares(features) + unseen).sqrt() / theirs, 0.0)


def _squares(x: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    return x.flatten(1).square().sum(1)


def _spread(values: Float[Tensor, " B"] | Tensor, over: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (over.ndim - 1))
