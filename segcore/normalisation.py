"""Batch normalisation as the published networks use it, on any number of processes."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the whole batch, spread over processes or not.

    torch's own SyncBatchNorm runs on GPUs only. This one runs everywhere and is exactly `nn.BatchNorm2d` in a single
    process; every process must hold as many samples as any other.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(input)
        count = input.numel() / input.shape[1] * distributed.get_world_size()
        x = input.float()
        sums = all_reduce(torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]))
        mean = sums[0] / count
        variance = sums[1] / count - mean.square()
        self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def share(model: nn.Module) -> None:
    """Turn every `BatchNorm2d` inside `model` into a `SharedBatchNorm2d`, in place; names and values stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d


def batch_norm(channels: int) -> SharedBatchNorm2d:
    """As DecoupledNet and DeconvNet start it: scale 1, shift 0.001.

    The published epsilon of 1e-9 lets channels that are dead everywhere (saliency maps have some) explode; 1e-5 is
    torch's.
    """
    layer = SharedBatchNorm2d(channels, eps=1e-5)
    nn.init.constant_(layer.bias, 0.001)
    return layer


@torch.no_grad()
def reestimate(model: nn.Module, layers: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
    """Replace the running statistics in `layers` by plain averages over `batches`, as the authors did after training.

    Each item is what `model` is called with. The mean is averaged over batches, and so is the unbiased variance
    (times m / (m - 1) for m values a channel). Frozen layers (in eval mode) are left alone.
    """
    norms = [m for m in layers.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for batch in batches:
        model(*batch) if isinstance(batch, tuple) else model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
