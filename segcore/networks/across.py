"""What the losses of a step need to know of the samples that other processes hold."""

import torch
from torch import Tensor, distributed


def shared() -> bool:
    """Whether the batch is spread over several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def summed(x: Tensor) -> Tensor:
    """The sum over all processes; carries no gradient."""
    x = x.detach()
    if shared():
        x = x.clone()
        distributed.all_reduce(x)
    return x


def everyones(x: Tensor) -> Tensor:
    """Rows of all processes in the order of their places in the batch; every process holds as many.

    Row i of process r is at place r + i * world, as `data.order` deals them. Carries no gradient.
    """
    x = x.detach()
    if not shared():
        return x
    sent = (x.to(torch.uint8) if x.dtype == torch.bool else x).contiguous()  # not every backend sends truth values
    parts = [torch.empty_like(sent) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, sent)
    return torch.stack(parts, 1).flatten(0, 1).to(x.dtype)


def rank() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if shared() else (0, 1)
