"""Masks as pictures: colours of a colour map (CVAT's "Segmentation mask 1.1" too), class indices, or 0 and 1 or 255."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segcore.data.pictures import BROKEN, IGNORE
from segcore.errors import Problem
from segcore.exchange import BACKGROUND, Annotated, Collection, Paint, clean, is_unknown
from segcore.exchange.pictures import Pictures, beside
from segcore.exchange.reading import read_text
from segcore.files import regular

LABELMAP = "labelmap.txt"
FOLDERS = ("SegmentationClass", "masks", "labels", "annotations")

Colour = tuple[int, int, int]


def read(
    source: Path, images: Path | None, masks: Path | None, colours: Sequence[str], names: Path | None, one: str | None
) -> Collection:
    """Pictures and masks with the same names but for their endings (and `_mask` or `_label` at the end).

    Args:
        colours: a file such as CVAT's labelmap.txt, or name=r,g,b for each class; without, masks hold class indices.
        names: a file with the class of each index, a name a line, background first.
        one: the name of the only class; masks hold 0 and anything else.

    Raises:
        Problem: no such folders, or nothing says what the values mean.
    """
    folder = masks or next((source / name for name in FOLDERS if (source / name).is_dir()), None)
    if folder is None:
        raise Problem(f"{source}: no folder of masks there ({', '.join(FOLDERS)}); name it by --masks")
    outlined = Pictures(folder)
    found = Pictures(beside(source, images, "images", "JPEGImages"), without=folder)
    table = colour_map(colours, source)
    if one is None and table is None and names is None:
        raise Problem(
            f"{source}: what do the values of its masks mean? Say --colours labelmap.txt, or --colours name=r,g,b for "
            "each class, --names FILE (the class of each index, a line each), or --object NAME (0, and anything else)"
        )
    classes = _classes(table, names, one)
    by_picture = {_of_picture(found, name): path for name, path in outlined.by_path.items()}
    by_picture.pop(None, None)
    known = {*by_picture.values()}
    made = []
    for name, path in found.by_path.items():
        if path in known:
            continue  # a mask beside its picture
        mask = by_picture.get(path)
        paint = None if mask is None else _paint(mask, table, classes, one)
        made.append(Annotated(name, path, frozenset(), paint, mask is not None))
    skipped = [f"{path}: no picture has this name" for path in outlined.by_path.values() if path not in known]
    return Collection(
        tuple(n for n in classes if n and n != BACKGROUND and not is_unknown(n)), tuple(made), tuple(skipped)
    )


def _of_picture(found: Pictures, name: str) -> Path | None:
    stem = name.rpartition(".")[0]
    plain = re.sub(r"[_-](mask|label|labels|seg|gt)$", "", stem, flags=re.IGNORECASE)
    return next((path for one in (stem, plain) if (path := found.of_stem(one)) is not None), None)


def colour_map(given: Sequence[str], source: Path) -> dict[Colour, str] | None:
    """Classes by colour: out of a file, of name=r,g,b, or of the labelmap.txt in the source.

    Raises:
        Problem: something that is no colour.
    """
    if not given:
        file = source / LABELMAP
        return _labelmap(file) if file.is_file() else None
    if len(given) == 1 and "=" not in given[0]:
        return _labelmap(Path(given[0]))
    table: dict[Colour, str] = {}
    for text in given:
        name, _, numbers = text.partition("=")
        table[_colour(numbers, f"--colours {text}")] = clean(name)
    table.setdefault((0, 0, 0), BACKGROUND)
    return table


def _labelmap(file: Path) -> dict[Colour, str]:
    """CVAT's form: `# label:color_rgb:parts:actions`, then a line a class."""
    table: dict[Colour, str] = {}
    for line in read_text(file).splitlines():
        if line.strip() and not line.startswith("#"):
            name, numbers = (line.split(":") + [""])[:2]
            table[_colour(numbers, f"{file}: {line}")] = clean(name)
    return table


def _colour(text: str, where: str) -> Colour:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdecimal() and int(part) < 256 for part in parts):
        raise Problem(f"{where}: must hold a colour, three numbers of 0 to 255 by commas")
    red, green, blue = map(int, parts)
    return red, green, blue


def _classes(table: Mapping[Colour, str] | None, names: Path | None, one: str | None) -> list[str]:
    """Names by index, where masks hold indices; otherwise in the order given."""
    if one is not None:
        return [clean(one)]
    if table is not None:
        return list(dict.fromkeys(table.values()))
    assert names is not None
    return [clean(line) for line in read_text(names).splitlines() if line.strip()]


def _paint(file: Path, table: Mapping[Colour, str] | None, classes: Sequence[str], one: str | None) -> Paint:
    def indices_of(named: Sequence[str], index: Mapping[str, int]) -> list[int]:
        return [0 if n == BACKGROUND else IGNORE if is_unknown(n) else index[n] for n in named]

    def paint(index: Mapping[str, int]) -> UInt8[np.ndarray, "H W"]:
        try:
            with Image.open(regular(file)) as image:
                if one is not None:
                    return np.where(_values(image) > 0, index[classes[0]], 0).astype(np.uint8)
                if table is None:
                    return _of_values(_values(image), indices_of(classes, index), file)
                painted = np.asarray(image.convert("RGB")).astype(np.int64) @ [65536, 256, 1]
        except BROKEN as error:
            raise ValueError(f"{file} cannot be read ({error})") from error
        wanted = {
            (r << 16) | (g << 8) | b: i
            for (r, g, b), i in zip(table, indices_of([*table.values()], index), strict=True)
        }
        colours, places = np.unique(painted, return_inverse=True)
        if strange := [colour for colour in colours.tolist() if colour not in wanted]:
            rgb = ",".join(str(strange[0] >> shift & 255) for shift in (16, 8, 0))
            raise ValueError(f"{file} has the colour {rgb} ({len(strange)} in all), which the colour map lacks")
        return np.asarray([wanted[c] for c in colours.tolist()], dtype=np.uint8)[places].reshape(painted.shape)

    return paint


def _values(image: Image.Image) -> np.ndarray:
    values = np.asarray(image if image.mode in ("P", "L", "1", "I;16", "I") else image.convert("L"))
    return values.astype(np.int64)


def _of_values(values: np.ndarray, indices: Sequence[int], file: Path) -> UInt8[np.ndarray, "H W"]:
    known = np.full(65536, -1, dtype=np.int64)
    known[: len(indices)] = indices
    known[IGNORE] = IGNORE
    labels = known[np.clip(values, 0, 65535)]
    if (labels < 0).any():
        strange = int(values[labels < 0].min())
        raise ValueError(f"{file} holds the value {strange}; the names go to {len(indices) - 1}, and 255 is unknown")
    return labels.astype(np.uint8)
