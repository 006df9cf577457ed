"""The embedded data set `shapes`: VOC-like scenes drawn from a seed, written as a devkit folder.

A class is a shape AND a texture ("striped-disc"): each shape and each texture occurs in two classes, and patches that
have a texture without a shape lie in the background, so that neither cue is enough alone. Colours tell nothing.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from segcore.config.data import ShapesParams, VocParams
from segcore.data import pictures
from segcore.errors import Problem
from segcore.seeds import derived_seed

Generator = np.random.Generator
Grid = Float[np.ndarray, "H W"]
Picture = Float[np.ndarray, "H W 3"]
Instances = Int[np.ndarray, "H W"]
Labels = UInt8[np.ndarray, "H W"]
Outline = list[Float[np.ndarray, "N 2"]]
"""Closed contours; a contour within another one is a hole."""

SCALE = (0.28, 0.58)
"""Diameter of an object over the side of the image."""
PERIOD = (0.055, 0.085)
"""Period of a texture over the side of the image: texture says nothing of an object's scale."""
DISTRACTORS = 2
"""At most so many patches that have a texture of the classes but none of their shapes."""
MIN_VISIBLE = 0.5
"""A place where less of an object, or of one behind it, would show is given up for another."""
MIN_PIXELS = 30
"""Labelled pixels that every object has, its 255 border left out."""
ATTEMPTS = 50


def as_devkit(folder: Path) -> VocParams:
    """How the generated folder is read: as any other devkit."""
    return VocParams.model_validate({
        "layout": "voc", "name": "generated", "root": str(folder), "train_list": "train", "val_list": "val",
        "tags": {"kind": "masks"}, "sbd_root": None, "convert_palette": False,
        "sixteen_bit": "full", "duplicates": "refuse",
    })  # fmt: skip


def generate(out: Path, params: ShapesParams, seed: int) -> None:
    """Write a devkit folder and its classes.txt to `out`, which appears whole or not at all.

    An image is a function of the seed, its id, `classes`, `size` and `max_objects`, however many others there are.

    Raises:
        Problem: `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise Problem(f"{out} is not empty; the embedded set is only written into a new or empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        whole = Path(temporary) / "whole"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (whole / folder).mkdir(parents=True)
        for split, n_images in (("train", params.train_images), ("val", params.val_images)):
            ids = [f"{split}_{number:05d}" for number in range(1, n_images + 1)]
            (whole / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{one}\n" for one in ids))
            for index, image_id in enumerate(ids):
                rng = np.random.default_rng(derived_seed(seed, "shapes", image_id))
                # The first object's class goes round: each class has its share of images even in a small set.
                image, labels = _scene(rng, params, 1 + index % params.classes)
                Image.fromarray(image).save(whole / "JPEGImages" / f"{image_id}.png", compress_level=1)
                pictures.write_labels(whole / "SegmentationClass" / f"{image_id}.png", labels)
        (whole / "classes.txt").write_text("\n".join(["background", *class_names(params.classes), ""]))
        whole.replace(out)


def class_names(n_classes: int) -> list[str]:
    """Names of the classes 1..L, texture before shape."""
    return [f"{texture}-{shape}" for shape, texture in _pairs(n_classes)]


def _pairs(n_classes: int) -> list[tuple[str, str]]:
    """The shape and texture of each class: a closed chain in which neighbours share one of the two in turn.

    Every shape and texture in use has at least two classes, an odd last class taking two that are in use already.
    With 2, 3 or 5 classes no such choice exists: the chain is left open and its ends stand alone.
    """
    shapes, textures = tuple(SHAPES), tuple(TEXTURES)
    n_links = n_classes if n_classes in (2, 3, 5) else n_classes // 2
    pairs = [(shapes[k // 2], textures[(k + 1) // 2 % n_links]) for k in range(min(n_classes, 2 * n_links))]
    return pairs if len(pairs) == n_classes else [*pairs, (shapes[0], textures[2])]


def _scene(rng: Generator, params: ShapesParams, first_class: int) -> tuple[UInt8[np.ndarray, "H W 3"], Labels]:
    """A picture and its labels: clutter, distractors, then 1..max_objects objects, the later in front."""
    pairs = _pairs(params.classes)
    picture = _background(rng, params.size)
    for _ in range(rng.integers(0, DISTRACTORS + 1)):
        outline, texture = _placed(rng, _blob(rng), params.size), pairs[rng.integers(len(pairs))][1]
        _paint(rng, picture, _cover(outline, params.size), texture, outline)
    n_objects = rng.integers(1, params.max_objects + 1)
    wanted = [first_class, *rng.integers(1, params.classes + 1, size=n_objects - 1)]
    instances = np.zeros((params.size, params.size), dtype=np.int64)
    areas, drawn = [0], [0]
    for label in wanted:
        shape, texture = pairs[label - 1]
        for _ in range(ATTEMPTS):
            cover = _cover(outline := _placed(rng, SHAPES[shape], params.size), params.size)
            after, sizes = np.where(cover >= 0.5, len(drawn), instances), [*areas, int((cover >= 0.5).sum())]
            if _all_visible(after, sizes):
                instances, areas, drawn = after, sizes, [*drawn, int(label)]
                _paint(rng, picture, cover, texture, outline)
                break
    picture = picture + rng.normal(0, 0.02, (params.size, params.size, 1))
    labels = np.where(_border(instances), pictures.IGNORE, np.array(drawn)[instances])
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8), labels.astype(np.uint8)


def _all_visible(instances: Instances, areas: list[int]) -> bool:
    """Whether every object shows enough of itself, and has enough pixels that its border leaves labelled."""
    shown = np.bincount(instances.ravel(), minlength=len(areas))
    inside = np.bincount(instances[~_border(instances)], minlength=len(areas))
    return all(shown[i] >= MIN_VISIBLE * areas[i] and inside[i] >= MIN_PIXELS for i in range(1, len(areas)))


def _border(instances: Instances) -> Bool[np.ndarray, "H W"]:
    """The pixel on either side of every change of object, as VOC leaves it unlabelled; not the edge of the image."""
    ids, cross = instances.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return cv2.dilate(ids, cross) != cv2.erode(ids, cross)


# --- painting


def _background(rng: Generator, size: int) -> Picture:
    """Two dark colours mixed by a gradient and cloudy noise, with faint blobs and lines upon them."""
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    mix = rng.uniform(0, 1) * (xs * math.cos(angle) + ys * math.sin(angle))
    for cells in (3, 6, 12, 24):
        coarse = rng.normal(0, 1 / cells, (cells, cells)).astype(np.float32)
        mix += rng.uniform(0.5, 2) * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    low, high = (rng.uniform(*limits, 3).astype(np.float32) for limits in ((0.05, 0.3), (0.2, 0.5)))
    picture = low + np.clip(mix + 0.5, 0, 1)[..., None] * (high - low)
    for _ in range(rng.integers(2, 7)):
        _tint(picture, _cover(_placed(rng, _blob(rng), size), size), rng.uniform(-0.12, 0.12, 3))
    for _ in range(rng.integers(2, 9)):
        ends = rng.integers(-size // 4, size + size // 4, (2, 2)).tolist()
        canvas = np.zeros((size, size), dtype=np.uint8)
        cv2.line(canvas, ends[0], ends[1], 255, int(rng.integers(1, max(2, size // 32) + 1)), cv2.LINE_AA)
        _tint(picture, canvas / np.float32(255), rng.uniform(-0.2, 0.2, 3))
    return picture


def _tint(picture: Picture, cover: Grid, colour: Float[np.ndarray, "3"]) -> None:
    """Add a colour to `picture` where `cover` (0..1) says."""
    window = _window(cover)
    picture[window] += cover[window][..., None] * colour


def _paint(rng: Generator, picture: Picture, cover: Grid, texture: str, outline: Outline) -> None:
    """Lay a texture of a dark and a light colour over `picture` where `cover` (0..1) says."""
    size, centre = len(picture), outline[0].mean(axis=0)
    radius = float(np.abs(outline[0] - centre).max())
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(*PERIOD) * size
    window = _window(cover)
    ys, xs = np.mgrid[window] - centre[::-1, None, None]
    along, across = xs * np.cos(angle) + ys * np.sin(angle), ys * np.cos(angle) - xs * np.sin(angle)
    amount = TEXTURES[texture](along / period, across / period, radius / period, rng)
    # Lighter than the background on the whole, so that a shape shows against it and not only its texture.
    dark, light = rng.uniform(0.15, 0.6, 3), rng.uniform(0.7, 1, 3)
    ink = dark + np.clip(amount, 0, 1)[..., None] * (light - dark)
    picture[window] += cover[window][..., None] * (ink - picture[window])


def _window(cover: Grid) -> tuple[slice, slice]:
    """The smallest window that all of the cover lies in."""
    left, top, width, height = cv2.boundingRect((cover > 0).astype(np.uint8))
    return slice(top, top + height), slice(left, left + width)


def _cover(outline: Outline, size: int) -> Grid:
    """How much of each pixel, 0..1, lies within the outline."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    cv2.fillPoly(canvas, [np.round(contour * 16).astype(np.int32) for contour in outline], 255, cv2.LINE_AA, shift=4)
    return canvas / np.float32(255)


def _placed(rng: Generator, outline: Outline, size: int) -> Outline:
    """An outline of the unit circle at a random place, scale, rotation and slight stretch, in pixels."""
    radius = rng.uniform(*SCALE) * size / 2
    centre = rng.uniform(0.7 * radius, size - 0.7 * radius, 2)
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.18)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return [contour * (radius * stretch, radius / stretch) @ turn.T + centre for contour in outline]


# --- shapes, within the unit circle


def _arc(radii: Float[np.ndarray, "N"] | float, start: float = 0.0, stop: float = 2.0) -> Float[np.ndarray, "N 2"]:
    """Points at angles from `start` to short of `stop`, in half turns."""
    angles = np.pi * np.linspace(start, stop, np.size(radii) if np.ndim(radii) else 48, endpoint=False)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _blob(rng: Generator) -> Outline:
    """A smooth random closed curve with lobes, like none of the shapes."""
    angles = 2 * np.pi * np.arange(64) / 64
    waves = [rng.uniform(0.08, 0.2) * np.cos(n * angles + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5)]
    return [_arc(0.65 + np.sum(waves, axis=0))]


_QUARTER = np.array([[0, 1], [-1, 0]])
_CROSS = (1, -0.32), (1, 0.32), (0.32, 0.32)
_ARROW = (1, 0), (0.1, 0.85), (0.1, 0.35), (-1, 0.35), (-1, -0.35), (0.1, -0.35), (0.1, -0.85)
_ELL = (-0.75, -0.8), (-0.1, -0.8), (-0.1, 0.2), (0.8, 0.2), (0.8, 0.8), (-0.75, 0.8)
_BOW = (-0.85, -0.75), (0, -0.2), (0.85, -0.75), (0.85, 0.75), (0, 0.2), (-0.85, 0.75)

SHAPES: dict[str, Outline] = {
    "disc": [_arc(0.9)],
    "triangle": [_arc(np.ones(3))],
    "cross": [np.concatenate([np.array(_CROSS) @ np.linalg.matrix_power(_QUARTER, n) for n in range(4)])],
    "ring": [_arc(1.0), _arc(0.45)],
    "star": [_arc(np.tile([1, 0.45], 5))],
    "square": [_arc(np.ones(4))],
    "crescent": [np.concatenate([_arc(1.0, 0.25, 1.75), _arc(0.75, 1.7, 0.3) + (0.6, 0)])],
    "arrow": [np.array(_ARROW)],
    "ell": [np.array(_ELL)],
    "bow": [np.array(_BOW)],
}


# --- textures: 0 (dark) to 1 (light) at coordinates in periods, the object's radius in periods


def _wave(turns: Grid) -> Grid:
    """A soft square wave of period 1."""
    return np.clip(0.5 + np.sin(2 * np.pi * turns), 0, 1)


def _dotted(x: Grid, y: Grid, radius: float, rng: Generator) -> Grid:
    row = np.floor(y / 0.9)
    return np.clip((0.36 - np.hypot((x + 0.5 * row) % 1 - 0.5, y - 0.9 * (row + 0.5))) * 8, 0, 1)


def _speckled(x: Grid, y: Grid, radius: float, rng: Generator) -> Grid:
    cells = rng.integers(0, 2, (64, 64)).astype(np.float64)
    return cells[np.floor(3 * y).astype(int) % 64, np.floor(3 * x).astype(int) % 64]


def _bricked(x: Grid, y: Grid, radius: float, rng: Generator) -> Grid:
    joint = np.maximum(np.abs(y % 1 - 0.5), np.abs((x / 1.8 + 0.5 * np.floor(y)) % 1 - 0.5) * 1.1)
    return np.clip((0.42 - joint) * 8, 0, 1)


TEXTURES: dict[str, Callable[[Grid, Grid, float, Generator], Grid]] = {
    "striped": lambda x, y, radius, rng: _wave(x),
    "dotted": _dotted,
    "checked": lambda x, y, radius, rng: np.clip(0.5 + 2 * np.sin(np.pi * x) * np.sin(np.pi * y), 0, 1),
    "speckled": _speckled,
    "ringed": lambda x, y, radius, rng: _wave(np.hypot(x, y)),
    "zigzag": lambda x, y, radius, rng: _wave(y + 1.6 * np.abs((x / 1.6) % 1 - 0.5)),
    "shaded": lambda x, y, radius, rng: 0.5 + 0.5 * x / radius,
    "netted": lambda x, y, radius, rng: np.clip(8 * np.maximum(np.abs(x % 1 - 0.5), np.abs(y % 1 - 0.5)) - 2.8, 0, 1),
    "spoked": lambda x, y, radius, rng: _wave(np.arctan2(y, x) * 4 / np.pi),
    "bricked": _bricked,
}
