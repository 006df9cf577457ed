"""Pictures and masks of a collection into the files of a devkit folder, those that are not there yet, or not so."""

import hashlib
import os
import re
import shutil
import threading
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from segcore.data.pictures import BROKEN, IGNORE, labels_png
from segcore.errors import Problem
from segcore.exchange import Annotated, rasters
from segcore.exchange.rasters import Reading
from segcore.files import regular, write_atomically
from segcore.importers.duplicates import looks_of


@dataclass(frozen=True)
class Options:
    """How the folder is to be made."""

    source: dict[str, Any]
    """What is imported, for the record: another source is refused."""
    val: float
    """Share of the images to measure on."""
    val_names: frozenset[str] | None
    """Names, with or without ending, of the images to measure on; instead of a share."""
    seed: int
    copy: bool
    empty_is_background: bool
    """Whether pictures that the tool holds nothing of show nothing, instead of being unlabelled."""
    reading: Reading


@dataclass(frozen=True)
class Written:
    """What is known of an image once its files are there."""

    image_id: str
    tags: frozenset[str]
    masked: bool
    labelled: bool
    looks: bytes | None
    pixels: str


def ids_of(pictures: Sequence[Path]) -> list[str]:
    """A name for each picture that can stand in lists: its own where no two are alike, else with its folders."""

    def plain(text: str) -> str:
        return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).replace("..", "_").strip("._") or "image"

    top = Path(os.path.commonpath([path.parent for path in pictures])) if pictures else Path()
    short = [plain(path.stem) for path in pictures]
    many = Counter(name.lower() for name in short)
    long = [plain(path.relative_to(top).with_suffix("").as_posix().replace("/", "-")) for path in pictures]
    ids = [a if many[a.lower()] == 1 else b for a, b in zip(short, long, strict=True)]
    taken: set[str] = set()
    for place, name in enumerate(ids):
        number = 1
        while ids[place].lower() in taken:
            number += 1
            ids[place] = f"{name}-{number}"
        taken.add(ids[place].lower())
    return ids


class Writer:
    """Writes files that are not there yet, or not so."""

    def __init__(self, out: Path, index: Mapping[str, int], options: Options, former: Mapping[str, str]) -> None:
        self.out, self.index, self.options, self.former = out, index, options, former
        self.names = {place: name for name, place in index.items()}
        self.files: dict[str, str] = {}
        self.kept: set[str] = set()
        self.written = 0
        self._counting = threading.Lock()

    def _count(self) -> None:
        with self._counting:  # pictures are written by several threads
            self.written += 1

    def image(self, image_id: str, one: Annotated) -> Written | str:
        """Write the picture and its mask, or say why not."""
        assert one.picture is not None
        try:
            picture = rasters.pixels_of(one.picture, self.options.reading)
            labels = None if one.paint is None else _turned(one.paint(self.index), one.picture, picture)
        except Problem as problem:
            return str(problem).split("; mend it")[0]
        except ValueError as error:
            return f"{one.name}: {error}"
        plain = self.options.reading == Reading(None, None)
        if one.picture.suffix in rasters.AS_THEY_ARE and plain:
            self.link(f"JPEGImages/{image_id}{one.picture.suffix}", one.picture)
        else:
            self.put(f"JPEGImages/{image_id}.png", rasters.png(picture))
        tags = one.tags
        empty = one.paint is None and not one.annotated and self.options.empty_is_background
        if empty:
            labels = np.zeros(picture.shape[:2], dtype=np.uint8)
        if labels is not None:
            shown = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:IGNORE]) + 1
            tags |= {self.names[value] for value in shown.tolist()}
            self.put(f"SegmentationClass/{image_id}.png", labels_png(labels))
        digest = hashlib.sha256(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()
        return Written(image_id, tags, labels is not None, one.annotated or empty, looks_of(picture), digest)

    def link(self, name: str, source: Path) -> None:
        target = self.out / name
        if target.exists():
            same = target.samefile(source) if not self.options.copy else False
            if same or target.read_bytes() == source.read_bytes():
                return
            target.unlink()
        self._count()
        if not self.options.copy:
            try:
                os.link(source.resolve(), target)
                return
            except OSError:
                pass  # another disk, or one without links
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        os.replace(partial, target)

    def put(self, name: str, content: bytes) -> None:
        target, digest = self.out / name, hashlib.sha256(content).hexdigest()
        if target.is_file():
            there = hashlib.sha256(target.read_bytes()).hexdigest()
            if there == digest:
                self.files[name] = digest
                return
            if name in self.former and there != self.former[name]:
                self.kept.add(name)
                return
        self._count()
        self.files[name] = digest
        write_atomically(target, content)


def _turned(
    labels: UInt8[np.ndarray, "H W"], path: Path, picture: UInt8[np.ndarray, "_ _ 3"]
) -> UInt8[np.ndarray, "_ _"]:
    """Labels of the picture as a person sees it; some tools draw on the pixels as they are stored.

    Raises:
        ValueError: they are of another size.
    """
    if labels.shape == picture.shape[:2]:
        return labels
    if labels.shape == picture.shape[1::-1]:
        try:
            with Image.open(regular(path)) as image:
                orientation = image.getexif().get(Base.Orientation, 1)
        except BROKEN:
            orientation = 1
        if orientation > 4:
            drawn = Image.fromarray(labels)
            drawn.getexif()[Base.Orientation] = orientation
            return np.asarray(ImageOps.exif_transpose(drawn))
    (height, width), (down, across) = picture.shape[:2], labels.shape
    raise ValueError(f"is annotated at {across}x{down} pixels, and its picture has {width}x{height}")
