"""Photographs that are open on the page: read from the data set, or dropped there by a person."""

import io
import re
import secrets
import threading
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
from PIL import Image, ImageOps

from segcore.data.pictures import BROKEN, opened, to_rgb, why_broken
from segcore.errors import Problem
from segcore.prediction.model import Pixels

MOST_BYTES = 64 * 2**20
"""Of a file that is dropped on the page."""

MOST_PIXELS = 50_000_000
"""Of a picture on the page: a browser holds four bytes a pixel for each of its layers."""

HELD = 4
"""Photographs that stay open, the last ones."""

THUMBNAIL = 160
AS_THEY_ARE = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}
"""Formats that a data set takes, with the ending of each; pictures of other formats are saved as PNGs."""


@dataclass(frozen=True)
class Photo:
    """A photograph that is open."""

    key: str
    """What the page calls it; nobody can guess it."""
    name: str
    """What a person calls it: the name of its file."""
    pixels: Pixels
    """As a person sees it, turned by its EXIF orientation."""
    image_id: str | None
    """In the data set; None for one that was dropped on the page."""
    content: bytes
    """The file as a data set takes it."""
    ending: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]


class Photos:
    """The photographs that were opened last; safe for threads."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Photo] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes, name: str, image_id: str | None = None) -> Photo:
        """Open a photograph.

        Raises:
            Problem: it is no picture, damaged, or too large.
        """
        pixels, format = _decoded(content, name)
        if format not in AS_THEY_ARE:
            content, format = encoded(pixels, "PNG"), "PNG"
        photo = Photo(secrets.token_urlsafe(12), name, pixels, image_id, content, AS_THEY_ARE[format])
        with self._lock:
            self._held[photo.key] = photo
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        return photo

    def get(self, key: str) -> Photo:
        """The photograph of a key.

        Raises:
            Problem: it is open no more.
        """
        with self._lock:
            if key not in self._held:
                raise Problem(f"This photo is open no more, as {HELD} others were opened since; open it again.")
            self._held.move_to_end(key)
            return self._held[key]

    def rename(self, key: str, image_id: str) -> None:
        """The photograph is in the data set now, by this id."""
        with self._lock:
            if key in self._held:
                self._held[key] = replace(self._held[key], image_id=image_id)


def _decoded(content: bytes, name: str) -> tuple[Pixels, str]:
    """The pixels, and the format as Pillow calls it."""
    try:
        with opened(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise Problem(
                    f"{name} has {width}x{height} pixels; the page shows {MOST_PIXELS / 1e6:.0f} million at most. "
                    "Scale it down, or predict it by `segcore predict`."
                )
            return np.asarray(to_rgb(ImageOps.exif_transpose(image))), str(image.format)
    except BROKEN as error:
        reason = why_broken(error, content[:512])
        raise Problem(f"{name} {reason}. Choose a JPEG, PNG, WebP, TIFF, BMP or GIF.") from error


def encoded(pixels: Pixels, format: str) -> bytes:
    """A file of the pixels."""
    file = io.BytesIO()
    options = {"quality": 92, "subsampling": 0} if format == "JPEG" else {}
    Image.fromarray(pixels).save(file, format=format, **options)
    return file.getvalue()


def thumbnail(content: bytes, name: str) -> bytes:
    """A small JPEG of a picture's file, at the cost of a fraction of its pixels where it is a JPEG itself.

    Raises:
        Problem: it cannot be read.
    """
    try:
        with opened(io.BytesIO(content)) as image:
            image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            small = to_rgb(ImageOps.exif_transpose(image))
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            return encoded(np.asarray(small), "JPEG")
    except BROKEN as error:
        raise Problem(f"{name} {why_broken(error, content[:512])}.") from error


def as_id(name: str) -> str:
    """A proposal of an image id for a file of this name."""
    stem = unicodedata.normalize("NFC", PurePath(name.replace("\\", "/")).stem)
    return re.sub(r"[^\w.-]+", "_", stem).strip("._")[:80] or "photo"
