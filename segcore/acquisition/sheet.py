"""A contact sheet: the chosen images with what the system would label, in the order of their worth."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from segcore.data.pictures import voc_palette

SIDE, GAP, TEXT = 220, 12, 34
ACROSS = 5
MOST = 100
"""Images on the sheet; the list has all."""

OPACITY = 0.45
INK, PAPER = (32, 36, 42), (255, 255, 255)


@dataclass(frozen=True)
class Tile:
    picture: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]
    title: str
    note: str


def drawn(tiles: Iterable[Tile]) -> Image.Image:
    """The first `MOST` of the tiles, row by row."""
    images = [*_images(tiles)]
    rows = -(-len(images) // ACROSS)
    page = Image.new("RGB", (ACROSS * (SIDE + GAP) + GAP, rows * (SIDE + TEXT + GAP) + GAP), PAPER)
    for place, image in enumerate(images):
        page.paste(image, (GAP + place % ACROSS * (SIDE + GAP), GAP + place // ACROSS * (SIDE + TEXT + GAP)))
    return page


def _images(tiles: Iterable[Tile]) -> Iterator[Image.Image]:
    font = ImageFont.load_default(13)
    for _, tile in zip(range(MOST), tiles, strict=False):
        image = Image.new("RGB", (SIDE, SIDE + TEXT), PAPER)
        picture = _overlaid(tile)
        image.paste(picture, ((SIDE - picture.width) // 2, SIDE - picture.height))
        draw = ImageDraw.Draw(image)
        for line, text in enumerate((tile.title, tile.note)):
            while text and font.getlength(text) > SIDE:
                text = text[:-1]
            draw.text((0, SIDE + 2 + 16 * line), text, INK, font)
        yield image


def _overlaid(tile: Tile) -> Image.Image:
    """The picture, small, with every object in VOC's colour of its class."""
    scale = SIDE / max(tile.labels.shape)
    height, width = (max(1, round(side * scale)) for side in tile.labels.shape)
    small = np.asarray(Image.fromarray(tile.picture).resize((width, height), Image.Resampling.BICUBIC))
    labels = np.asarray(Image.fromarray(tile.labels).resize((width, height), Image.Resampling.NEAREST))
    strength = np.where(labels > 0, OPACITY, 0.0)[..., None]
    return Image.fromarray(((1 - strength) * small + strength * voc_palette()[labels]).round().astype(np.uint8))
