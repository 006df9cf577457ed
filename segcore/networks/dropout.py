"""Dropout that is a function of a key: the same for one process or many, and after a resumption."""

import torch
from jaxtyping import Bool
from torch import Tensor, nn


class KeyedMask(nn.Module):
    """Which units are kept, each with probability 1 - p, as a function of a key alone.

    A batch of B samples may be spread over processes: each draws the mask of the whole batch and keeps its own rows,
    so the number of processes changes nothing. `set_key` is called before every training step.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.key: int | None = None
        self.rank = 0
        self.world = 1

    def forward(self, shape: tuple[int, ...], device: torch.device) -> Bool[Tensor, "B ..."]:
        """The mask of this process's samples, of `shape`: samples first."""
        if self.key is None:
            raise RuntimeError("set_key must be called before a training step")
        generator = torch.Generator(device).manual_seed(self.key)
        whole = torch.rand((shape[0] * self.world, *shape[1:]), generator=generator, device=device)
        return whole[self.rank :: self.world] >= self.p


class KeyedDropout(KeyedMask):
    """Dropout by such a mask; what is kept is divided by 1 - p."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if not self.training or self.p == 0:
            return x
        return x * super().forward(tuple(x.shape), x.device) / (1 - self.p)


def set_key(model: nn.Module, key: int, rank: int, world: int) -> None:
    """Give every keyed mask and dropout of `model` its key for the coming step."""
    layers = [module for module in model.modules() if isinstance(module, KeyedMask)]
    for number, layer in enumerate(layers):
        layer.key, layer.rank, layer.world = key + number, rank, world


def keep_from_compiler(model: nn.Module) -> None:
    """Let `torch.compile` call every keyed mask of `model` as it is: compiled code has no generators.

    No decorator of the class, as that loads the compiler into every process that never compiles: a second each.
    """
    for module in model.modules():
        if isinstance(module, KeyedMask):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
