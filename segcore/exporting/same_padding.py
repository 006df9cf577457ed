"""TensorFlow's padding, which some of timm's trunks use, as the constants that it is.

How many zeros `SAME` adds depends on the size of a map, so that a graph for any size would carry formulas of sizes, all
the longer with every level; tracing them takes minutes, and `.pt2` cannot hold the `math.ceil` in them. But a system's
sides are its step times something, and an offset more, and the step is a multiple of every stride of its trunk: what is
left over at a layer, and so its zeros, are the same for all of these sides.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers import padding
from torch import nn


@contextmanager
def constant(network: nn.Module, side: int, step: int) -> Iterator[None]:
    """A block in which `network` pads by the numbers that it pads by at `side` pixels; call it once, in eval mode.

    Where two sides are padded differently after all, each layer keeps its formula.
    """
    formula = padding.get_same_padding
    told: list[list[int]] = []

    def noted(*about: int) -> int:
        told[-1].append(int(formula(*about)))
        return told[-1][-1]

    try:
        padding.get_same_padding = noted
        for other in (side, side + step, side + 2 * step):
            told.append([])
            with torch.no_grad():
                network(torch.zeros(1, 3, other, other))
        if told[0] == told[1] == told[2]:
            known = iter(told[0])
            padding.get_same_padding = lambda *_: next(known)
        else:
            padding.get_same_padding = formula
        yield
    finally:
        padding.get_same_padding = formula
