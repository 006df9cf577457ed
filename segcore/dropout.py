"""Dropout that is a function of a key: the same for one process or many, and after a resumption."""

import torch
from torch import Tensor, nn


class KeyedDropout(nn.Module):
    """Dropout whose mask depends on a key alone.

    A batch of B samples may be spread over processes: each draws the mask of the whole batch and keeps its own rows,
    so the number of processes changes nothing. `set_key` is called before every training step.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.key: int | None = None
        self.rank = 0
        self.world = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.key is None:
            raise RuntimeError("set_key must be called before a training step")
        generator = torch.Generator(x.device).manual_seed(self.key)
        whole = torch.rand((x.shape[0] * self.world, *x.shape[1:]), generator=generator, device=x.device)
        return x * (whole[self.rank :: self.world] >= self.p) / (1 - self.p)


def set_key(model: nn.Module, key: int, rank: int, world: int) -> None:
    """Give every keyed dropout of `model` its mask for the coming step."""
    layers = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    for number, layer in enumerate(layers):
        layer.key, layer.rank, layer.world = key + number, rank, world


def keep_from_compiler(model: nn.Module) -> None:
    """Let `torch.compile` call every keyed dropout of `model` as it is: compiled code has no generators.

    No decorator of the class, as that loads the compiler into every process that never compiles: a second each.
    """
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
