"""Label Studio's run lengths of brush strokes: thi.ng's rle-pack over the picture's RGBA values, alpha being the mask.

A header of 32 bits with the number of values, 5 with their size less one, four times 4 with sizes of lengths less one.
Then blocks: a bit that says whether one value is repeated, two that choose a size, a length less one, and the value or
values (github.com/thi-ng/umbrella, packages/rle-pack; label-studio-sdk, converter/brush.py).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

CHANNELS, HALF = 4, 128
_SIZES = (3, 4, 8, 16)


def decode(packed: Sequence[int], width: int, height: int) -> Bool[np.ndarray, "H W"]:
    """The pixels that a brush covers, at least half.

    Raises:
        ValueError: damaged, or of another size.
    """
    if any(not 0 <= value <= 255 for value in packed):
        raise ValueError("brush strokes hold numbers that are no bytes")
    bits = _Bits(bytes(packed))
    count, size = bits.take(32), bits.take(5) + 1
    sizes = [bits.take(4) + 1 for _ in range(4)]
    if count != width * height * CHANNELS or size != 8:
        raise ValueError(f"brush strokes are of {count // CHANNELS} pixels, their picture has {width}x{height}")
    values, place = np.zeros(count, dtype=np.uint8), 0
    while place < count:
        repeated = bits.take(1)
        end = place + 1 + bits.take(sizes[bits.take(2)])
        if end > count:
            raise ValueError("brush strokes lead out of their picture")
        values[place:end] = bits.take(8) if repeated else [bits.take(8) for _ in range(end - place)]
        place = end
    return values.reshape(height, width, CHANNELS)[:, :, 3] >= HALF


class _Bits:
    """Bits of bytes, the first one the highest; reading one number of them costs the same anywhere."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def take(self, count: int) -> int:
        begin, end = self.place // 8, (self.place + count + 7) // 8
        if end > len(self.content):
            raise ValueError("brush strokes are cut off")
        rest = end * 8 - self.place - count
        value = int.from_bytes(self.content[begin:end], "big") >> rest & ((1 << count) - 1)
        self.place += count
        return value


def encode(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """A mask as `decode` reads it."""
    flat: UInt8[np.ndarray, " N"] = mask.ravel().astype(np.uint8) * 255
    ends = np.append(np.flatnonzero(np.diff(flat)) + 1, flat.size)
    parts = [f"{flat.size * CHANNELS:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    begin = 0
    for end in ends.tolist():
        value, left = f"{flat[begin]:08b}", (end - begin) * CHANNELS
        begin = end
        while left:
            length = min(left, 1 << _SIZES[-1])
            chosen = next(place for place, size in enumerate(_SIZES) if length <= 1 << size)
            parts.append(f"1{chosen:02b}{length - 1:0{_SIZES[chosen]}b}{value}")
            left -= length
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
