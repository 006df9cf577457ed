"""Labels painted in the colours of VOC, as the devkit shows them and some tools export them."""

import numpy as np
from jaxtyping import UInt8

from segcore.data.pictures import voc_palette


def to_indices(painted: UInt8[np.ndarray, "H W 3"]) -> tuple[UInt8[np.ndarray, "H W"], str | None]:
    """Class indices 0..255 by VOC's palette, and a sentence on the first colour that it lacks, if there is one.

    Pixels of such a colour get an arbitrary index.
    """
    wanted = _packed(painted)
    palette = _packed(voc_palette())
    order = np.argsort(palette)
    place = np.minimum(np.searchsorted(palette[order], wanted), 255)
    indices = order[place].astype(np.uint8)
    stray = palette[indices] != wanted
    if not stray.any():
        return indices, None
    y, x = np.argwhere(stray)[0]
    colour = ", ".join(str(part) for part in painted[y, x].tolist())
    return indices, (
        f"the colour ({colour}) at x={x}, y={y} is not of VOC's palette ({stray.sum()} such pixels of {stray.size}); "
        "export labels as an indexed PNG, without interpolation and compression losses"
    )


def _packed(colours: UInt8[np.ndarray, "... 3"]) -> np.ndarray:
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return (red << 16) | (green << 8) | blue
