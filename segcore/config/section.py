"""What the sections of `params.yaml` are made of: a strict model, and the kinds of values that recur.

A default in code would be a parameter that DVC cannot see; so there are none.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME = r"^[a-z][a-z0-9_]*$"
LIKE = "names like 'my_name_2'"
"""What `NAME` allows, in words."""

Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Threshold = Annotated[float, Field(gt=0, lt=1)]


def _multiple_of_32(size: int) -> int:
    if size % 32:
        raise ValueError("must be a multiple of 32, as five poolings halve it")
    return size


InputSize = Annotated[int, Field(ge=32), AfterValidator(_multiple_of_32)]
GridSize = Annotated[int, Field(ge=33)]
"""Side of the input of a network that keeps a fine grid: 8 k + 1 pixels become k + 1 cells at stride 8."""


class Section(BaseModel):
    """A section of `params.yaml`: frozen, no unknown key, no conversion between types, no infinite number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Views(Section):
    """One of `views`: at which sizes, and mirrored or not, an image is predicted before the scores are averaged."""

    scales: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Sizes, as parts of the input size that the system was trained at."""
    flip: bool
    """Predict the mirrored image too."""
