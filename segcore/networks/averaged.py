"""A network that is the running mean of another one: the teacher of a mean teacher."""

import copy

import torch
from torch import Tensor, nn


class Averaged(nn.Module):
    """A copy of a network whose weights and statistics follow those of the original, and that never learns itself.

    Its weights are buffers: no optimiser sees them, a checkpoint keeps them, and the finished model has them.
    It is always in eval mode: what it says of an image does not depend on the others.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for module in self.network.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    del module._parameters[name]
                    module.register_buffer(name, parameter.detach().clone())
        self.eval()

    def train(self, mode: bool = True) -> "Averaged":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    @torch.no_grad()
    def follow(self, original: nn.Module, keep: float) -> None:
        """Become `keep` times what it is plus 1 - keep times the original, statistics as well; 0 makes it equal."""
        own = self.network.state_dict()
        for name, value in original.state_dict().items():
            if keep == 0 or not value.is_floating_point():
                own[name].copy_(value)
            else:
                own[name].lerp_(value, 1 - keep)
