"""Do labels or maps that somebody handed in lie as the masks do? If they are turned, shapes and classes do not show it.

Every orientation is tried on the images that have a mask. One is what somebody's tool did if it agrees better than what
was handed in, on so many more images than it agrees worse on that chance does not explain it: a sign test at three
standard deviations, so on nine images at least.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Shaped, UInt8

from segcore.data.pictures import IGNORE

DEVIATIONS = 3.0

ORIENTATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored from left to right": lambda picture: picture[:, ::-1],
    "upside down": lambda picture: picture[::-1],
    "turned by 180 degrees": lambda picture: picture[::-1, ::-1],
    "turned by 90 degrees": lambda picture: np.rot90(picture, 1),
    "turned by 270 degrees": lambda picture: np.rot90(picture, 3),
    "with rows and columns exchanged": lambda picture: np.swapaxes(picture, 0, 1),
    "with rows and columns exchanged and turned by 180 degrees": lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
}
"""What may have been done to a square, each other than doing nothing."""


def cues_lie_otherwise(pairs: Iterable[tuple[UInt8[np.ndarray, "n n"], UInt8[np.ndarray, "n n"]]]) -> str | None:
    """How cues lie, if not as the masks at the same cells; None if as these.

    Args:
        pairs: cues and mask of each image, both at the cells, 255 where unknown.
    """
    return _better((_shares(cues, mask) for cues, mask in pairs))


def saliency_lies_otherwise(pairs: Iterable[tuple[UInt8[np.ndarray, "n n"], UInt8[np.ndarray, "n n"]]]) -> str | None:
    """How saliency maps lie, or whether they are inverted; None if objects are brighter than the background.

    Args:
        pairs: map (0..255) and mask (255 where unknown) of each image, both scaled to the same square.
    """
    return _better((_contrasts(values, mask) for values, mask in pairs))


def _shares(cues: Shaped[np.ndarray, "n n"], mask: Shaped[np.ndarray, "n n"]) -> dict[str, float]:
    """The share of known cells that agree, as handed in (under an empty name) and in each orientation."""

    def share(turned: np.ndarray) -> float:
        known = (turned != IGNORE) & (mask != IGNORE)
        return float((turned == mask)[known].mean()) if known.any() else 0.0

    return {"": share(cues)} | {name: share(turn(cues)) for name, turn in ORIENTATIONS.items()}


def _contrasts(values: Shaped[np.ndarray, "n n"], mask: Shaped[np.ndarray, "n n"]) -> dict[str, float]:
    """By how much objects are brighter than the background, likewise, and in inverted maps."""
    objects, background = (mask != IGNORE) & (mask > 0), mask == 0
    if not objects.any() or not background.any():
        return {}

    def contrast(turned: np.ndarray) -> float:
        return float(turned[objects].mean()) - float(turned[background].mean())

    as_it_is = contrast(values)
    turned = {name: contrast(turn(values)) for name, turn in ORIENTATIONS.items()}
    return {"": as_it_is, "inverted, dark where something stands out": -as_it_is} | turned


def _better(images: Iterable[dict[str, float]]) -> str | None:
    """The name of what agrees better than what was handed in, by most; None if chance explains it."""
    gains: dict[str, list[float]] = {}
    for scores in images:
        for name, score in scores.items():
            if score != scores[""]:
                gains.setdefault(name, []).append(score - scores[""])

    def sure(gained: list[float]) -> bool:
        lead = sum(1 if gain > 0 else -1 for gain in gained)
        return lead >= DEVIATIONS * math.sqrt(len(gained))

    found = [name for name, gained in gains.items() if sure(gained)]
    return max(found, key=lambda name: sum(gains[name])) if found else None
