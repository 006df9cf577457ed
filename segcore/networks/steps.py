"""State that changes once a step, whatever the number of parts and processes that the step is spread over."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from segcore.data.pictures import IGNORE
from segcore.networks.across import summed


class Once(nn.Module):
    """Says which step has begun last, so that something is done once between two steps.

    `began(step)` is asked in every part of a step and is true in the first one. The step is a buffer: a run that goes
    on from a checkpoint of the end of step t does what belongs before step t + 1, and no more.
    """

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(-1))

    def began(self, step: int) -> bool:
        """Whether this is the first part of that step."""
        if step == int(self.step):
            return False
        self.step.fill_(step)
        return True


class RunningIoU(nn.Module):
    """The IoU of each class over the batches of the past, those long ago counting less.

    Intersections and unions are both averaged with a momentum and then divided, so that a class that few batches show
    keeps its value in between. What the parts and processes of a step count comes in at the beginning of the next
    step: in all parts of a step the IoU is the same.
    """

    past: Tensor
    coming: Tensor

    def __init__(self, n_classes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.once = Once()
        self.register_buffer("past", torch.zeros(2, n_classes))
        self.register_buffer("coming", torch.zeros(2, n_classes))

    def begin(self, step: int) -> None:
        """Called in every part of a step, before it counts."""
        if self.once.began(step):
            self.past.lerp_(self.coming, 1 - self.momentum)
            self.coming.zero_()

    @torch.no_grad()
    def count(self, found: Int64[Tensor, "B h w"], labels: Int64[Tensor, "B h w"]) -> None:
        """What was found beside labels, where these are known; by all processes."""
        n, known = self.past.shape[1], labels != IGNORE
        table = torch.bincount(labels[known] * n + found[known], minlength=n * n).view(n, n).float()
        both = table.diagonal()
        self.coming += summed(torch.stack([both, table.sum(0) + table.sum(1) - both]))

    @property
    def value(self) -> Float[Tensor, " K"]:
        """The IoU of each class, 0 of one that was neither there nor found yet."""
        return self.past[0] / self.past[1].clamp(min=1e-12)
