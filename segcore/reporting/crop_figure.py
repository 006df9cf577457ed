"""A picture of combinatorial crops: what the segmentation network is shown, and what it must outline."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from segcore.data.geometry import cut
from segcore.data.pictures import IGNORE, voc_palette
from segcore.data.samples import binary_labels

OUTLINE = "#ffd400"
BOX_PROPOSED, BOX_RANDOM = "#00d0ff", "#ff5cc8"
SHOWN_BOXES = 6
SHOWN_PROPOSALS = 2


@dataclass(frozen=True)
class Example:
    """One label subset of one image with its boxes, the first `proposed` of which are proposals."""

    image_id: str
    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]
    subset: tuple[int, ...]
    boxes: Int32[np.ndarray, "N 4"]
    proposed: int


def draw(examples: Sequence[Example], names: Sequence[str], warp: int) -> bytes:
    """A PNG with a row an example: the image with its labels and boxes, then its crops, warped to `warp` pixels.

    The target, pixels of the subset's classes, is outlined in yellow; what is unknown is pale. The frames tell
    proposals from random boxes. `names` are those of all K classes, background first. Without examples it says so.
    """
    if not examples:
        figure = Figure(figsize=(6.0, 1.0), dpi=100)
        FigureCanvasAgg(figure)
        figure.text(0.5, 0.5, "There are no strong images, so there are no crops.", ha="center", va="center")
        return _png(figure)
    figure = Figure(figsize=(2.1 * (SHOWN_BOXES + 1.5), 2.5 * len(examples) + 0.5), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    widths = [1.5] + [1.0] * SHOWN_BOXES
    grid = figure.subplots(len(examples), len(widths), squeeze=False, width_ratios=widths)
    for row, example in zip(grid, examples, strict=True):
        shown = _spread(0, example.proposed, min(example.proposed, SHOWN_PROPOSALS))
        shown += _spread(example.proposed, len(example.boxes), SHOWN_BOXES - len(shown))
        _draw_image(row[0], example, shown, names)
        subset = " + ".join(names[label] for label in example.subset)
        for axes, place in zip(row[1:], shown, strict=True):
            _draw_crop(axes, example, place, len(names), warp)
            axes.set_title(_shortened(subset, 24), fontsize=9)
    figure.legend(
        handles=[
            Line2D([], [], color=OUTLINE, linewidth=2, label="target: the named classes"),
            Patch(facecolor=voc_palette()[IGNORE] / 255, edgecolor="grey", label="unknown: border, beyond image"),
            Patch(facecolor="none", edgecolor=BOX_PROPOSED, linewidth=2, label="box proposed by EdgeBoxes"),
            Patch(facecolor="none", edgecolor=BOX_RANDOM, linewidth=2, label="random enclosing box"),
        ],
        loc="outside lower center", ncols=4, fontsize=9, frameon=False,
    )  # fmt: skip
    return _png(figure)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _spread(first: int, end: int, count: int) -> list[int]:
    """`count` places over `first`..`end` - 1, both ends among them; few boxes repeat."""
    return [round(place) for place in np.linspace(first, end - 1, count)]


def _frame(example: Example, place: int) -> str:
    return BOX_PROPOSED if place < example.proposed else BOX_RANDOM


def _draw_image(axes: Axes, example: Example, shown: list[int], names: Sequence[str]) -> None:
    colours = voc_palette()[example.labels]
    overlay = np.where((example.labels > 0)[..., None], 0.45 * example.image + 0.55 * colours, example.image)
    height, width = example.labels.shape
    axes.imshow(overlay.astype(np.uint8))
    for place in shown:
        x1, y1, x2, y2 = example.boxes[place]
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_frame(example, place), linewidth=1.2)
        )
    _bare(axes)
    axes.set_xlim(min(0, example.boxes[shown, 0].min()) - 1, max(width, example.boxes[shown, 2].max()) + 1)
    axes.set_ylim(max(height, example.boxes[shown, 3].max()) + 1, min(0, example.boxes[shown, 1].min()) - 1)
    present = [names[int(label)] for label in np.unique(example.labels) if 0 < label < len(names)]
    axes.set_title(f"{_shortened(example.image_id, 28)}\n{_shortened(', '.join(present), 34)}", fontsize=9)


def _draw_crop(axes: Axes, example: Example, place: int, n_classes: int, warp: int) -> None:
    image, labels = cut(example.image, example.labels, example.boxes[place], warp)
    subset = torch.zeros(1, n_classes - 1)
    subset[0, [label - 1 for label in example.subset]] = 1
    target = binary_labels(torch.from_numpy(labels)[None].long(), subset)[0].numpy()
    unknown = (target == IGNORE)[..., None]
    axes.imshow(np.where(unknown, 0.35 * image + 0.65 * voc_palette()[IGNORE], image).astype(np.uint8))
    if (target == 1).any() and (target != 1).any():
        axes.contour(target == 1, levels=[0.5], colors=OUTLINE, linewidths=1.4)
    _bare(axes, _frame(example, place))


def _bare(axes: Axes, colour: str = "none") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=2.5)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
