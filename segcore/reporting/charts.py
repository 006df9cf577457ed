"""Line charts as SVG text that follows the style of the page it stands in: classes instead of colours.

The page's style sheet must give colours to `.chart text`, `.grid`, `.axis` and to the lines `.s0` ... `.s7`, and
strokes to `.d1` and `.d2`.
"""

import math
from collections.abc import Callable, Mapping
from html import escape

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 40
POINTS = 240
"""Points drawn per curve at most; longer ones are averaged over equal stretches."""
COLOURS, STROKES = 8, 3

Values = Float[np.ndarray, " _"]
Curve = tuple[Values, Values]
"""x and y, equally long."""


def ink(number: int) -> str:
    """The classes of the number-th of many lines: 8 colours, first drawn through, then dashed, then dotted."""
    stroke = number // COLOURS % STROKES
    return f"s{number % COLOURS}" + (f" d{stroke}" if stroke else "")


def line_chart(curves: Mapping[str, Curve], x_label: str, y_label: str, colours: Mapping[str, int]) -> str:
    """Curves over a common x: each as a faint line of what was measured under a smoothed one.

    `colours` gives every name its number, so that a system wears one colour on the whole page. The y axis is
    logarithmic where all values are positive and spread over more than a factor of 50. Values that are not finite
    are left out.
    """
    drawn = {name: _thinned(*_finite(*curve)) for name, curve in curves.items()}
    drawn = {name: curve for name, curve in drawn.items() if curve[0].size}
    if not drawn:
        return ""
    values = np.concatenate([y for _, y in drawn.values()])
    low, high = float(values.min()), float(values.max())
    is_log = low > 0 and high / low > 50
    x_ticks = _ticks(0.0, float(max(x.max() for x, _ in drawn.values())), 5)
    y_ticks = _log_ticks(low, high) if is_log else _ticks(low, high, 5)
    across = _scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT, is_log=False)
    up = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, is_log)
    label = escape(f"{y_label} over {x_label}", quote=True)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for tick in y_ticks:
        y = up(np.array([tick]))[0]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_ticks:
        x = across(np.array([tick]))[0]
        anchor = "end" if x > WIDTH - RIGHT - 8 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="{anchor}">{_number(tick)}</text>')
    floor = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for name, (x, y) in drawn.items():
        drawn_in, named = ink(colours[name]), escape(name, quote=True)
        parts.append(
            f'<g class="series" data-series="{named}"><path class="raw {drawn_in}" d="{_path(across(x), up(y))}"/>'
        )
        title = f"<title>{escape(name)}</title>"
        parts.append(f'<path class="smooth {drawn_in}" d="{_path(across(x), up(smoothed(y)))}">{title}</path></g>')
    return "".join([*parts, "</svg>"])


def smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """A moving average over an eighth of the curve: centred, but cut off at the end."""
    reach = values.size // 16
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    # Symmetric at the beginning, where curves are steep and the average would be pulled down.
    first, last = index - np.minimum(reach, index), np.minimum(index + np.minimum(reach, index), values.size - 1)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def _finite(x: Values, y: Values) -> Curve:
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep].astype(np.float64), y[keep].astype(np.float64)


def _thinned(x: Values, y: Values) -> Curve:
    if x.size <= POINTS:
        return x, y
    stretches = np.array_split(np.arange(x.size), POINTS)
    return np.array([x[some].mean() for some in stretches]), np.array([y[some].mean() for some in stretches])


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(index * step) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where these are few, from at or below `low` to at or above `high`."""
    first, last = math.floor(math.log10(low) + 1e-6), math.ceil(math.log10(high) - 1e-6)
    fine = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    bottom = max(tick for tick in fine if tick <= low * 1.001)
    top = min(tick for tick in fine if tick >= high * 0.999)
    fine = [tick for tick in fine if bottom <= tick <= top]
    if len(fine) <= 8:
        return fine
    stride = math.ceil((last - first) / 6)
    return [10.0**power for power in range(first, last + stride, stride)]


def _scale(low: float, high: float, start: int, end: int, is_log: bool) -> Callable[[Values], Values]:
    """Where a value stands between the pixels `start` and `end`."""

    def place(values: Values) -> Values:
        bottom, top, at = (math.log10(low), math.log10(high), np.log10(values)) if is_log else (low, high, values)
        return start + (at - bottom) / (top - bottom) * (end - start)

    return place


def _path(x: Values, y: Values) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _number(value: float) -> str:
    """As short as it can be: 0.25, 1.5k, 1e-05."""
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.3g}"
