"""Pictures for people: a prediction beside image, truth and errors, in the colours of VOC with class names."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from segcore.data.pictures import IGNORE, voc_palette

TILE = 320
"""Pixels of the longer side of each picture in a panel."""
GAP = 12
TEXT = (32, 36, 42)
FAINT = (104, 110, 120)
EDGE = (170, 174, 180)
PAPER = (255, 255, 255)
UNKNOWN = "unknown"

ERRORS = {
    "missed": (0, 114, 178),
    "invented": (213, 94, 0),
    "wrong class": (204, 121, 167),
}
"""Colours of the error map (Okabe and Ito's, told apart by colour-blind readers too)."""


def colour_labels(labels: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Every pixel in VOC's colour of its class; 255 is VOC's off-white."""
    return voc_palette()[labels]


def error_map(
    image: UInt8[np.ndarray, "H W 3"], truth: UInt8[np.ndarray, "H W"], prediction: UInt8[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Where the prediction is wrong, and how, on a faded grey picture; unknown pixels are off-white.

    A prediction of 255, which pseudo-labels have where they know nothing, is no error.

    Missed: an object taken for background. Invented: background taken for an object. Wrong class: an object taken for
    an object of another class.
    """
    picture = np.empty_like(image)
    for row, pixels in zip(picture, image, strict=True):  # a large picture as floats would take eight times its memory
        row[:] = 150 + pixels.mean(axis=1, keepdims=True) * (95 / 255)
    wrong = (truth != prediction) & (truth != IGNORE) & (prediction != IGNORE)
    picture[wrong & (prediction == 0)] = ERRORS["missed"]
    picture[wrong & (truth == 0)] = ERRORS["invented"]
    picture[wrong & (truth != 0) & (prediction != 0)] = ERRORS["wrong class"]
    picture[truth == IGNORE] = voc_palette()[IGNORE]
    return picture


def panel(
    image: UInt8[np.ndarray, "H W 3"],
    truth: UInt8[np.ndarray, "H W"],
    prediction: UInt8[np.ndarray, "H W"],
    names: Sequence[str],
    title: str,
    caption: str = "prediction",
) -> Image.Image:
    """Image, truth, prediction and error map side by side, under a title and over a legend of what occurs.

    `names` are those of all K classes, background first; `caption` is what the prediction is called.
    """
    tiles = {
        "image": _tile(image, Image.Resampling.BICUBIC),
        "truth": _tile(colour_labels(truth), Image.Resampling.NEAREST),
        caption: _tile(colour_labels(prediction), Image.Resampling.NEAREST),
        "errors": _tile(error_map(image, truth, prediction), Image.Resampling.NEAREST),
    }
    width, height = tiles["image"].size
    chips = _chips(truth, prediction, names)
    page = Image.new("RGB", (4 * width + 5 * GAP, 1))
    legend = _legend_rows(chips, page.width - 2 * GAP)
    top = GAP + 26 + 20
    page = Image.new("RGB", (page.width, top + height + GAP + 26 * len(legend) + GAP // 2), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP - 2), _shortened(title, page.width - 2 * GAP, 18), TEXT, _font(18))
    for column, (name, tile) in enumerate(tiles.items()):
        left = GAP + column * (width + GAP)
        draw.text((left, top - 20), name, FAINT, _font(14))
        page.paste(tile, (left, top))
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=EDGE)
    for row, entries in enumerate(legend):
        _draw_chips(draw, entries, top + height + GAP + 26 * row)
    return page


def stacked(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels one below the other."""
    page = Image.new("RGB", (max(p.width for p in panels), sum(p.height for p in panels)), PAPER)
    top = 0
    for one in panels:
        page.paste(one, (0, top))
        top += one.height
    return page


def _tile(picture: UInt8[np.ndarray, "H W 3"], resampling: Image.Resampling) -> Image.Image:
    height, width = picture.shape[:2]
    scale = TILE / max(height, width)
    size = (max(round(width * scale), TILE // 2), max(round(height * scale), 1))
    return Image.fromarray(picture).resize(size, resampling)


Chip = tuple[str, tuple[int, ...]]


def _chips(truth: UInt8[np.ndarray, "H W"], prediction: UInt8[np.ndarray, "H W"], names: Sequence[str]) -> list[Chip]:
    palette = voc_palette()
    occurring = [int(index) for index in np.union1d(truth, prediction) if index != IGNORE]
    chips = [(names[index], tuple(palette[index].tolist())) for index in occurring]
    if (truth == IGNORE).any() or (prediction == IGNORE).any():
        chips.append((UNKNOWN, tuple(palette[IGNORE].tolist())))
    return [*chips, *((f"error: {name}", colour) for name, colour in ERRORS.items())]


def _legend_rows(chips: Sequence[Chip], width: int) -> list[list[tuple[int, Chip]]]:
    """The chips with their left edges, broken into rows that fit into `width`."""
    rows: list[list[tuple[int, Chip]]] = [[]]
    left = 0
    for name, colour in chips:
        needed = 22 + round(_font(14).getlength(name)) + 18
        if left and left + needed > width:
            rows.append([])
            left = 0
        rows[-1].append((GAP + left, (name, colour)))
        left += needed
    return rows


def _draw_chips(draw: ImageDraw.ImageDraw, entries: Sequence[tuple[int, Chip]], top: int) -> None:
    for left, (name, colour) in entries:
        draw.rectangle((left, top + 1, left + 15, top + 16), fill=colour, outline=EDGE)
        draw.text((left + 22, top), name, TEXT, _font(14))


def _shortened(text: str, width: int, size: int) -> str:
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same letters on every machine."""
    return ImageFont.load_default(size)
