"""A collection into a devkit folder: `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/`, `tags.csv`.

Pictures are hard links where they can be, masks are drawn. The same collection again changes nothing; a mask that a
person has changed since stays as it is. What cannot be used is told, and never the end of it.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from segcore.data.pictures import BROKEN, IGNORE, labels_png
from segcore.errors import Problem
from segcore.exchange import BACKGROUND, Annotated, Collection, rasters
from segcore.exchange.halves import families, held_back
from segcore.exchange.rasters import Reading
from segcore.files import write_atomically
from segcore.importers.duplicates import looks_of

RECORD = "import.json"
LISTS = "ImageSets/Segmentation"
MOST_CLASSES = 254

Item = TypeVar("Item")
Watched = Callable[[Iterable[Item], int], Iterable[Item]]


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


@dataclass
class Report:
    """What came of it."""

    train: int = 0
    val: int = 0
    unlabelled: int = 0
    masks: int = 0
    written: int = 0
    """Files that were not there, or not so."""
    classes: dict[str, int] = field(default_factory=dict)
    """Images of each class."""
    kept: list[str] = field(default_factory=list)
    """Masks that somebody has changed since the last import."""
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Done:
    """What is known of an image once its files are written."""

    image_id: str
    tags: frozenset[str]
    masked: bool
    labelled: bool
    looks: bytes | None
    pixels: str


def write(collection: Collection, out: Path, options: Options, watched: Watched = lambda items, _: items) -> Report:
    """Write the folder.

    Raises:
        Problem: too many classes, no image that can be used, or a folder that holds something else.
    """
    if len(collection.classes) > MOST_CLASSES:
        raise Problem(f"found {len(collection.classes)} classes; allowed are {MOST_CLASSES}, as labels have 8 bits")
    if not collection.classes:
        raise Problem("no class is named anywhere; there is nothing to learn")
    former = _former(out, options)
    report = Report(skipped=list(collection.skipped))
    index = {BACKGROUND: 0} | {name: place for place, name in enumerate(collection.classes, start=1)}
    for folder in ("JPEGImages", "SegmentationClass", LISTS):
        (out / folder).mkdir(parents=True, exist_ok=True)
    found = [one for one in collection.images if one.picture is not None]
    report.skipped += [f"{one.name}: its picture was not found" for one in collection.images if one.picture is None]
    writer = _Writer(out, index, options, former)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(writer.image, _ids([one.picture for one in found if one.picture is not None]), found)
        done = [one for one in watched(results, len(found)) if not isinstance(one, str) or report.skipped.append(one)]
    images = [one for one in done if isinstance(one, _Done)]
    if not any(one.labelled for one in images):
        raise Problem(
            "none of the pictures is annotated, or could be read; nothing to learn from:\n  "
            + "\n  ".join(report.skipped[:10])
        )
    _lists(images, collection.classes, options, writer, report)
    writer.files |= {name: digest for name, digest in former.items() if name in writer.kept}
    record = {"source": options.source, "files": dict(sorted(writer.files.items()))}
    write_atomically(out / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    report.written, report.kept = writer.written, sorted(writer.kept)
    report.masks = sum(one.masked for one in images)
    return report


def _former(out: Path, options: Options) -> dict[str, str]:
    """The hashes of what an import of the same source wrote here before.

    Raises:
        Problem: the folder holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    try:
        record = json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        raise Problem(
            f"{out}: is not empty and holds no {RECORD} of an import; name a folder that is not there"
        ) from None
    if record.get("source") != options.source:
        raise Problem(
            f"{out}: holds what was imported otherwise ({json.dumps(record.get('source'))}); name another folder, or "
            "delete this one"
        )
    return record["files"]


def _ids(pictures: Sequence[Path]) -> list[str]:
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


class _Writer:
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

    def image(self, image_id: str, one: Annotated) -> "_Done | str":
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
        return _Done(image_id, tags, labels is not None, one.annotated or empty, looks_of(picture), digest)

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
            with Image.open(path) as image:
                orientation = image.getexif().get(Base.Orientation, 1)
        except BROKEN:
            orientation = 1
        if orientation > 4:
            drawn = Image.fromarray(labels)
            drawn.getexif()[Base.Orientation] = orientation
            return np.asarray(ImageOps.exif_transpose(drawn))
    (height, width), (down, across) = picture.shape[:2], labels.shape
    raise ValueError(f"is annotated at {across}x{down} pixels, and its picture has {width}x{height}")


def _lists(images: Sequence[_Done], classes: Sequence[str], options: Options, writer: _Writer, report: Report) -> None:
    """Choose what is measured on, and write the lists, the classes and the table of tags."""
    labelled = [one for one in images if one.labelled]
    by_id = {one.image_id: one for one in labelled}
    if options.val_names is not None:
        val = {i for i in by_id if i in options.val_names}
        if unknown := sorted(options.val_names - {*by_id}):
            report.skipped.append(f"--val-list names {len(unknown)} images that are not there, {unknown[0]} first")
    else:
        # Scores are of masks: where there are any, only pictures that have one are held back.
        able = [one for one in labelled if one.masked] or labelled
        ids = [one.image_id for one in labelled]
        kin = families(ids, {i: by_id[i].looks for i in ids}, {i: by_id[i].pixels for i in ids})
        fit = {one.image_id for one in able}
        groups = [group for group in kin if all(image_id in fit for image_id in group)]
        val = set(held_back(groups, {i: by_id[i].tags for i in ids}, options.val, options.seed))
    lists = {
        "train": [i for i in by_id if i not in val],
        "val": [i for i in by_id if i in val],
        "unlabelled": [one.image_id for one in images if not one.labelled],
    }
    for name, ids in lists.items():
        writer.put(f"{LISTS}/{name}.txt", "".join(f"{image_id}\n" for image_id in sorted(ids)).encode())
    writer.put("classes.txt", "".join(f"{name}\n" for name in (BACKGROUND, *classes)).encode())
    order = {name: place for place, name in enumerate(classes)}
    lines = [f"{i},{' '.join(sorted(by_id[i].tags, key=order.__getitem__))}\n" for i in sorted(by_id)]
    writer.put("tags.csv", "".join(["image_id,tags\n", *lines]).encode())
    report.train, report.val, report.unlabelled = (len(ids) for ids in lists.values())
    counts = Counter(tag for one in labelled for tag in one.tags)
    report.classes = {name: counts[name] for name in classes}


def sentences(report: Report) -> Iterator[str]:
    """What a person is told in the end."""
    masks = f"{report.masks} with masks" if report.masks else "none with a mask"
    yield f"{report.train} images to train on and {report.val} to measure on, {masks}; {report.unlabelled} unlabelled"
    yield "classes: " + ", ".join(f"{name} ({count})" for name, count in report.classes.items())
    if report.kept:
        changed = f"{len(report.kept)} files, {report.kept[0]} first"
        yield f"{changed}, were changed since the last import and stay as they are"
