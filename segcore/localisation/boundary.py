"""Small nets that find boundaries of objects, or objects, in the levels of a trunk, learned from a few masks.

The head is that of IRN (Ahn et al. 2019, section 4.1): every level is projected by a convolution of 1 x 1, brought to
one grid, and joined. IRN learns it from localisation maps; here masks teach it, by the same loss over pairs of cells:
the path between two cells of one class holds no boundary, that between two classes holds one. A net of the same form
learns what is an object at all, of whatever class. The trunk does not learn.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.refinements import NetParams
from segcore.data.geometry import Grid
from segcore.data.pictures import IGNORE
from segcore.localisation.affinity import greatest_on_paths, offsets
from segcore.localisation.cells import moved
from segcore.losses import Term
from segcore.networks.trunk import Trunk
from segcore.seeds import derived_seed

FINEST = 4
"""Pixels to a cell of the grid of boundaries, or more where the trunk has no level that fine."""

WEIGHT_DECAY = 1e-4
"""As published."""


def grid_of(trunk: Trunk, size: int) -> Grid:
    """The cells at which boundaries are found in squares of `size` pixels."""
    return Grid(size, next(stride for stride in trunk.level_strides if stride >= FINEST))


class CellNet(nn.Module):
    """One logit at each cell of `grid`: of a boundary, or of an object."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], grid: Grid, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.strides = tuple(strides)
        groups = math.gcd(4, width)
        self.sides = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own, width, 1), nn.GroupNorm(groups, width), nn.ReLU()) for own in channels
        )
        self.join = nn.Sequential(
            nn.Conv2d(width * len(channels), width, 1), nn.GroupNorm(groups, width), nn.ReLU(), nn.Conv2d(width, 1, 1)
        )

    def forward(self, levels: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B y x"]:
        sides = [
            self._brought(side(level), stride)
            for side, level, stride in zip(self.sides, self.prepared(levels), self.strides, strict=True)
        ]
        return self.join(torch.cat(sides, dim=1))[:, 0]

    def prepared(self, levels: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B _ _ _"]]:
        """Levels that are finer than the grid are averaged around its cells; doing it twice changes nothing.

        Cells beyond the picture, which trunks have that pad it, are cut off.
        """
        cells, found = self.grid.cells, []
        for level, stride in zip(levels, self.strides, strict=True):
            inside = Grid(self.grid.size, stride).cells
            level = level[..., :inside, :inside]
            every = self.grid.stride // stride
            if every > 1 and level.shape[-1] != cells:
                level = F.avg_pool2d(level, every + 1, every, every // 2, count_include_pad=False)
            found.append(level)
        return found

    def _brought(self, side: Float[Tensor, "B C _ _"], stride: int) -> Float[Tensor, "B C y x"]:
        return moved(side, self.grid, Grid(self.grid.size, max(stride, self.grid.stride)))

    @torch.no_grad()
    def probability(self, levels: Sequence[Float[Tensor, "_ _ _"]]) -> Float[np.ndarray, "y x"]:
        """Of what was learned, at each cell of one image."""
        return self([level[None].float() for level in levels])[0].sigmoid().cpu().numpy()


Lesson = Callable[[Float[Tensor, "B y x"], UInt8[Tensor, "B y x"]], Term]
"""What logits at the cells learn from the classes there."""


def object_loss(logits: Float[Tensor, "B y x"], classes: UInt8[Tensor, "B y x"]) -> Term:
    """Cross-entropy of any object against the background, over the cells that are known (not 255)."""
    known = classes != IGNORE
    total = F.binary_cross_entropy_with_logits(logits[known], (classes[known] > 0).to(logits), reduction="sum")
    return Term(total, known.sum().clamp(min=1).to(logits))


def loss(logits: Float[Tensor, "B y x"], classes: UInt8[Tensor, "B y x"], radius: int) -> Term:
    """IRN's loss (equation 8): -log a of pairs of one class, -log (1 - a) of pairs of two, each kind by its mean.

    Pairs of the background and of objects are averaged apart, so that the few of objects count as much. `classes` are
    255 where unknown, which takes part in no pair.
    """
    costs = logits.new_zeros(3)
    counts = logits.new_zeros(3)
    for (dy, dx), greatest in zip(offsets(radius), greatest_on_paths(logits, radius), strict=True):
        first, rows, columns = max(0, -dx), greatest.shape[1], greatest.shape[2]
        one = classes[:, :rows, first : first + columns]
        other = classes[:, dy : dy + rows, first + dx : first + dx + columns]
        known = (one != IGNORE) & (other != IGNORE)
        together, apart = F.softplus(greatest), F.softplus(-greatest)
        for kind, (cost, chosen) in enumerate(_kinds(one, other, known, together, apart)):
            costs[kind] = costs[kind] + (cost * chosen).sum()
            counts[kind] = counts[kind] + chosen.sum()
    means = costs / counts.clamp(min=1)
    return Term(means[0] / 2 + means[1] / 2 + means[2], logits.new_ones(()))


def _kinds(
    one: Tensor, other: Tensor, known: Tensor, together: Tensor, apart: Tensor
) -> list[tuple[Float[Tensor, "B _ _"], Bool[Tensor, "B _ _"]]]:
    alike = (one == other) & known
    return [(together, alike & (one == 0)), (together, alike & (one != 0)), (apart, (one != other) & known)]


def learn(
    levels: Sequence[Sequence[Tensor]],
    classes: Sequence[UInt8[np.ndarray, "y x"]],
    trunk: Trunk,
    grid: Grid,
    lesson: Lesson,
    params: NetParams,
    seed: int,
) -> CellNet:
    """A net that takes a lesson in some images: their `levels`, as `CellNet.prepared` has them, and the classes there.

    Batches are drawn by the seed and the step; in every second one images are mirrored. Adam with a polynomial schedule
    of power 0.9. Deterministic on one machine with one number of threads.
    """
    device = next(trunk.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        net = CellNet(trunk.level_channels, trunk.level_strides, grid, params.width)
    net.to(device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=params.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 - step / params.steps) ** 0.9)
    for step in range(params.steps):
        rng = np.random.default_rng(derived_seed(seed, "batch", step))
        chosen = rng.choice(len(levels), min(params.batch_size, len(levels)), replace=False)
        batch = [torch.stack([levels[i][k] for i in chosen]).to(device).float() for k in range(len(levels[0]))]
        truth = torch.from_numpy(np.stack([classes[i] for i in chosen])).to(device)
        if step % 2:
            batch, truth = [level.flip(3) for level in batch], truth.flip(2)
        with torch.enable_grad():
            term = lesson(net(batch), truth)
            (term.total / term.weight).backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
    return net.eval()
