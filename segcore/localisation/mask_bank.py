"""The random selections of a run's localisation maps, one bank of bits for all images and tags."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from segcore.seeds import derived_seed

NUMBERS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}
"""Mask values that are unpacked together: few enough for a CPU's memory, enough to keep a GPU busy."""

GAMMA, FIRST, SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def keep(seed: int, number: int, grid: tuple[int, int], units: int, rate: float) -> Bool[np.ndarray, "N U"]:
    """Which units are kept at each place in pass `number`, each with probability 1 - rate.

    A bit is a function of the seed, the pass, the place (row, column) and the unit alone, not of the size of the grid:
    their number goes through the mixing function of SplitMix64 (Steele et al. 2014). Where units are the offsets in a
    window, place and offset say which window it is.
    """
    row, column, unit = np.ogrid[: grid[0], : grid[1], :units]
    # 24 bits of the pass, 12 of row and column each, 16 of the unit
    counter = ((number << 12 | row) << 12 | column).astype(np.uint64) << np.uint64(16) | unit.astype(np.uint64)
    bits = counter * GAMMA + np.uint64(derived_seed("masks", seed))
    for shift, factor in ((30, FIRST), (27, SECOND)):
        bits ^= bits >> np.uint64(shift)
        bits *= factor
    bits ^= bits >> np.uint64(31)
    return (bits >= np.uint64(int(rate * 2**64))).reshape(-1, units)


class MaskBank:
    """The masks of `passes` localisation maps on a grid, keyed by (seed, pass, place, unit).

    Labels made with it depend on no order of images, batch size, shard or number of processes. Bits are packed, eight
    to a byte; never more than a chunk of passes is unpacked.

    Attributes:
        passes: how many maps an image and a tag have.
        grid: height and width of the top map.
    """

    def __init__(
        self, seed: int, passes: int, grid: tuple[int, int], units: int, rate: float, centre: int | None
    ) -> None:
        """`units` are the offsets of a window, `centre` being always kept, or channels (`centre` None)."""
        self.passes = passes
        self.grid = grid
        self.units = units
        packed = np.empty((grid[0] * grid[1], passes, -(-units // 8)), dtype=np.uint8)
        for number in range(passes):
            kept = keep(seed, number, grid, units, rate)
            if centre is not None:
                kept[:, centre] = True
            packed[:, number] = np.packbits(kept, axis=1, bitorder="little")
        self.packed = torch.from_numpy(packed)
        self.bytes = (torch.arange(256)[:, None] >> torch.arange(8) & 1).float()

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "MaskBank":
        """Itself, moved to a device; `dtype` is that of the masks it then gives."""
        self.packed, self.bytes = self.packed.to(device), self.bytes.to(device, dtype)
        return self

    def chunks(self) -> Iterator[Float[Tensor, "N n U"]]:
        """The masks of all passes, 1 where a unit is kept: at each of the N places, for some passes n at a time."""
        size = max(1, NUMBERS_AT_ONCE[self.packed.device.type] // (self.packed.shape[0] * self.units))
        for some in cast(tuple[UInt8[Tensor, "N n _"], ...], self.packed.split(size, dim=1)):
            yield F.embedding(some.int(), self.bytes).flatten(2)[:, :, : self.units]
