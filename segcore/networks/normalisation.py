"""Batch normalisation as the published networks use it, on any number of processes."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segcore.errors import Problem


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is that of all of them too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the whole batch, spread over processes or not.

    torch's own SyncBatchNorm runs on GPUs only. This one runs everywhere and is exactly `nn.BatchNorm2d` in a single
    process. Processes may hold unequal numbers of samples, and one may hold none. The variance takes a second round of
    sums, as E[x^2] - E[x]^2 loses all digits where the mean is large.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_tensor(input.numel() // input.shape[1])
        distributed.all_reduce(count)
        mean = cast(Tensor, _Sum.apply(x.sum((0, 2, 3)))) / count
        x = x - mean[:, None, None]
        variance = cast(Tensor, _Sum.apply(x.square().sum((0, 2, 3)))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        x = x * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            x = x * self.weight[:, None, None] + self.bias[:, None, None]
        return x.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


class DecayedBatchNorm2d(SharedBatchNorm2d):
    """One whose scale and shift decay as weights do; those of every other normalisation never decay.

    So they do in the published prototxts of DecoupledNet and DeconvNet, whose layers of type BN name no `weight_decay`:
    Caffe then takes 1, where their biases name 0.
    """


def share(model: nn.Module) -> None:
    """Turn every `BatchNorm2d` inside `model` into a `SharedBatchNorm2d`, in place; names and values stay.

    Raises:
        Problem: a layer in training mode normalises over the batch in a way of its own (some of timm's do).
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
        elif isinstance(module, _BatchNorm) and not isinstance(module, SharedBatchNorm2d) and module.training:
            raise Problem(
                f"the backbone's {type(module).__name__} cannot be shared by several processes; "
                "set backbone.frozen_norm: true, take another backbone, or train in one process"
            )


def batch_norm(channels: int, eps: float = 1e-5) -> DecayedBatchNorm2d:
    """As DecoupledNet and DeconvNet start it: scale 1, shift 0.001, both of which decay.

    The published epsilon of 1e-9 lets channels that are nearly dead explode, hence torch's 1e-5, except where the
    input itself is tiny, as gradients are.
    """
    layer = DecayedBatchNorm2d(channels, eps=eps)
    nn.init.constant_(layer.bias, 0.001)
    return layer


@torch.no_grad()
def reestimate(model: nn.Module, layers: nn.Module, batches: Iterable[object]) -> None:
    """Replace the running statistics in `layers` by plain averages over `batches`, as the authors did after training.

    Each item is what `model` is called with, a tuple being several arguments. The mean is averaged over batches, and
    so is the unbiased variance (times m / (m - 1) for m values a channel). Frozen layers (in eval mode) are left alone.

    Computes in full precision whatever block it is called in, as systems predict in it: statistics of activations that
    were rounded to bf16 would be those of another network.
    """
    norms = [m for m in layers.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    device = next(layers.parameters()).device.type
    with torch.autocast(device, enabled=False):
        for batch in batches:
            model(*batch) if isinstance(batch, tuple) else model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
