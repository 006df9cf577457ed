"""Dropout by key and place in the step: the same for any number of processes and parts, and after a resumption."""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from segcore.seeds import derived_seed


class Keyed(nn.Module):
    """What draws at random for each sample, as a function of a key and of the sample's place in the step.

    So neither the number of processes that a step is spread over nor that of the parts which it is cut into changes
    what a sample gets, and nobody draws more than its own. `set_key` is called before every part of a training step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key: int | None = None
        self.first = 0
        self.every = 1

    def seeds(self, count: int) -> list[int]:
        """A seed for each of this process's samples of this part.

        Raises:
            RuntimeError: no key was set.
        """
        if self.key is None:
            raise RuntimeError("set_key must be called before a training step")
        return [derived_seed(self.key, self.first + row * self.every) for row in range(count)]


class KeyedMask(Keyed):
    """Which units are kept, each with probability 1 - p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, shape: tuple[int, ...], device: torch.device) -> Bool[Tensor, "B ..."]:
        """The mask of this process's samples of this part, of `shape`: samples first.

        Raises:
            RuntimeError: no key was set.
        """
        generator = torch.Generator(device)
        drawn = torch.empty(shape, device=device)
        for row, seed in enumerate(self.seeds(shape[0])):
            generator.manual_seed(seed)
            torch.rand(shape[1:], generator=generator, device=device, out=drawn[row])
        return drawn >= self.p


class KeyedDropout(KeyedMask):
    """Dropout by such a mask; what is kept is divided by 1 - p."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if not self.training or self.p == 0:
            return x
        return x * super().forward(tuple(x.shape), x.device) / (1 - self.p)


def set_key(model: nn.Module, key: int, rank: int, world: int, before: int = 0) -> None:
    """Give everything keyed in `model` its key for the coming part of a step.

    `key` is the step's, whatever the part; `before` is how many samples of the step came in earlier parts, over all
    processes. Row i of what a layer will see is sample `before + rank + i * world` of the step.
    """
    layers = [module for module in model.modules() if isinstance(module, Keyed)]
    for number, layer in enumerate(layers):
        layer.key, layer.first, layer.every = derived_seed(key, number), before + rank, world


def keep_from_compiler(model: nn.Module) -> None:
    """Let `torch.compile` call every keyed mask of `model` as it is: compiled code has no generators.

    No decorator of the class, as that loads the compiler into every process that never compiles: a second each.
    """
    for module in model.modules():
        if isinstance(module, KeyedMask):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
