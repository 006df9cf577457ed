"""A collection into a devkit folder: `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/`, `tags.csv`.

Pictures are hard links where they can be, masks are drawn. The same collection again changes nothing; a mask that a
person has changed since stays as it is. What cannot be used is told, and never the end of it.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from segcore.errors import Problem
from segcore.exchange import BACKGROUND, Collection
from segcore.exchange.entries import Options, Writer, Written, ids_of
from segcore.exchange.halves import families, held_back
from segcore.files import write_atomically

RECORD = "import.json"
LISTS = "ImageSets/Segmentation"
MOST_CLASSES = 254

Item = TypeVar("Item")
Watched = Callable[[Iterable[Item], int], Iterable[Item]]


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
    writer = Writer(out, index, options, former)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(writer.image, ids_of([one.picture for one in found if one.picture is not None]), found)
        done = list(watched(results, len(found)))
    images = [one for one in done if isinstance(one, Written)]
    report.skipped += [one for one in done if isinstance(one, str)]
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


def _lists(images: Sequence[Written], classes: Sequence[str], options: Options, writer: Writer, report: Report) -> None:
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
