"""Early looks at validation: what the environment asks for, and the curves that trainings on this machine left."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segcore.cli import provenance
from segcore.errors import Problem
from segcore.reporting.charts import Curve
from segcore.reporting.reading import read_json

VARIABLE = "SEGCORE_LOOK"
LOOKS = Path(".scratch/looks")
"""True of one machine and one run, as times are, so neither in Git nor in DVC."""


@dataclass(frozen=True)
class Asked:
    """A look after every so many steps, at so many validation images."""

    every: int
    images: int


def asked() -> Asked | None:
    """What the environment asks for; None where it asks for nothing.

    Raises:
        Problem: it asks for something else.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    if not (found := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)):
        raise Problem(f"{VARIABLE}: found '{text}'; allowed is STEPS:IMAGES, such as 200:100, or nothing")
    return Asked(int(found[1]), int(found[2]))


def whole(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """An entry's prediction, but of whole images where it is by proposals."""
    return {**prediction} | ({"proposals": 0} if "proposals" in prediction else {})


def file_of(out: Path) -> Path:
    """Where the curve lies of the system that is trained into a folder."""
    return provenance.beside(LOOKS, out).with_suffix(".json")


def curves(data: Path, systems: Sequence[str]) -> dict[str, Curve]:
    """Of the models that are there now, where a curve is known: finished steps, and mIoU after them."""
    found = {}
    for system in systems:
        content = read_json(file_of(data / "segmenters" / system))
        card = read_json(data / "segmenters" / system / "model/model.json")
        if content and content["training"] == card.get("made_of", {}).get("training"):
            steps, values = np.array(content["curve"], dtype=np.float64).T
            found[system] = (steps, values)
    return found
