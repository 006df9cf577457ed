"""What the sections of `params.yaml` are made of: a strict model, and the kinds of values that recur.

A default in code would be a parameter that DVC cannot see; so there are none.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME = r"^[a-z][a-z0-9_]*$"
LIKE = "names like 'my_name_2'"
"""What `NAME` allows, in words."""

Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=1, le=10_000)]
"""How many there are of what takes memory or a file each: images of a batch, maps, channels. A slip of the keyboard is
refused here, not by a machine that stands still."""
Long = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""How many there are of what comes one after the other."""
Side = Annotated[int, Field(ge=1, le=4096)]
"""Pixels a side of what a network sees."""
Cells = Annotated[int, Field(ge=1, le=256)]
"""Cells a side of a kernel."""
Padding = Annotated[int, Field(ge=0, le=64)]
Width = Annotated[float, Field(gt=0, le=16)]
"""Channels over the published numbers."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Threshold = Annotated[float, Field(gt=0, lt=1)]


def _multiple_of_32(size: int) -> int:
    if size % 32:
        raise ValueError("must be a multiple of 32, as five poolings halve it")
    return size


InputSize = Annotated[int, Field(ge=32, le=4096), AfterValidator(_multiple_of_32)]
GridSize = Annotated[int, Field(ge=33, le=4097)]
"""Side of the input of a network that keeps a fine grid: 8 k + 1 pixels become k + 1 cells at stride 8."""


class Section(BaseModel):
    """A section of `params.yaml`: frozen, no unknown key, no conversion between types, no infinite number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Views(Section):
    """One of `views`: at which sizes, and mirrored or not, an image is predicted before the scores are averaged."""

    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=8)], ...], Field(min_length=1, max_length=20)]
    """Sizes, as parts of the input size that the system was trained at."""
    flip: bool
    """Predict the mirrored image too."""
