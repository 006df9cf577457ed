"""Somebody's saliency maps: a folder with a grey 8-bit PNG an image, bright where something stands out."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL.ExifTags import Base

from segcore.data.manifest import Record
from segcore.data.pictures import BROKEN, opened, why_broken
from segcore.errors import About, Problem, Problems, together
from segcore.files import regular

STRETCH = 0.02
"""By how much the aspect of a map may differ from that of its picture, beside rounding to whole pixels."""


def file_of(root: Path, image_id: str) -> Path:
    """The map of an image."""
    return root / f"{image_id}.png"


def read(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The values of a map.

    Raises:
        Problem: the file is missing or no grey 8-bit PNG.
    """
    try:
        with opened(path) as image:
            if image.mode != "L":
                raise Problem(f"{path}: a saliency map must be a grey 8-bit PNG, found mode {image.mode}")
            if image.getexif().get(Base.Orientation, 1) != 1:
                raise Problem(f"{path}: a saliency map must lie as its picture is seen, without an EXIF orientation")
            return np.asarray(image)
    except BROKEN as error:
        try:
            with regular(path).open("rb") as file:
                reason = why_broken(error, file.read(512))
        except OSError as closed:
            reason = closed.strerror or str(closed)
        raise Problem(f"{path} is not a readable saliency map ({reason})") from error


def check(root: Path, records: Sequence[Record]) -> None:
    """See that every image has its map, and that the maps are of these images.

    Raises:
        Problems: all that is wrong with any of them.
    """
    problems: list[str] = []
    missing = [
        file_of(root, record.image_id).name for record in records if not file_of(root, record.image_id).is_file()
    ]
    problems += [About(name, "this map is missing; add it or choose background.kind: gradient") for name in missing]
    there = [record for record in records if file_of(root, record.image_id).is_file()]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda record: _seen(root, record), there))
    problems += [problem for problem, _ in found if problem is not None]
    brightest = max((bright for problem, bright in found if problem is None), default=255)
    if brightest <= 1:
        problems.append(f"no value of any map exceeds {brightest}; 255 is the brightest: were they saved as 0 and 1?")
    if problems:
        raise Problems(f"the saliency maps in background.root: {root} cannot be used:", together(problems))


def _seen(root: Path, record: Record) -> tuple[str | None, int]:
    """What is wrong with the map of an image, and its brightest value."""
    path = file_of(root, record.image_id)
    try:
        values = read(path)
    except Problem as problem:
        return str(problem), 0
    (height, width), (down, across) = values.shape, (record.height, record.width)
    if abs(width * down - height * across) > max(across, down) + STRETCH * width * down:
        turned = ", so it is turned" if (height, width) == (across, down) else ""
        return f"{path}: is {width}x{height} while its picture is {across}x{down}{turned}; give it that shape", 0
    return None, int(values.max())
