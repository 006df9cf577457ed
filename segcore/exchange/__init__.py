"""Data sets as other tools write them, into a devkit folder and back: one file a format.

A reader turns files into a `Collection`, which `devkit` writes out; what cannot be used is a sentence, never the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

BACKGROUND = "background"
UNKNOWN = ("unknown", "ignore", "void", "unlabeled", "unlabelled")
"""Names, in any case, of pixels that count neither as a class nor as background."""

Paint = Callable[[Mapping[str, int]], UInt8[np.ndarray, "H W"]]
"""The labels of a picture, given the index of each class; raises ValueError where the file is damaged."""


@dataclass(frozen=True)
class Annotated:
    """A picture, and what a tool says of it."""

    name: str
    """As the tool calls it: a path within its data set."""
    picture: Path | None
    """Where it is; None where it was not found."""
    tags: frozenset[str]
    """Classes that are named for it, beside those that its pixels show."""
    paint: Paint | None
    """None where nobody outlined anything."""
    annotated: bool
    """False where the tool holds nothing of it: then it is unlabelled, not a picture of the background."""


@dataclass(frozen=True)
class Collection:
    """A data set as its files tell it.

    `classes` are clean names without the background, in the order of the tool; `skipped` are sentences on what was
    left out.
    """

    classes: tuple[str, ...]
    images: tuple[Annotated, ...]
    skipped: tuple[str, ...]


def clean(name: object) -> str:
    """A class's name as tags.csv can hold it: blanks are what separates tags there."""
    return "_".join(str(name).split())


def is_unknown(name: str) -> bool:
    return name.lower() in UNKNOWN
