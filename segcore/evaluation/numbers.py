"""Numbers of a score: ratios and means of which some may be missing (nan), and as JSON can hold them."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float


def rounded(value: Any, digits: int = 4) -> Any:
    """A nested result as JSON can hold it: floats rounded, nan as None, numpy numbers as Python's."""
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), digits)
    return value


def ratio_of(above: np.ndarray, below: np.ndarray) -> Float[np.ndarray, " K"]:
    return np.divide(above, below, out=np.full(below.shape, math.nan), where=below > 0)


def mean_of(values: Float[np.ndarray, " K"]) -> float:
    """Mean of the values that are not nan; nan where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan
