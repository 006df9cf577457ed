"""Every image of a data set compared with its labels and its tags.

Nothing is raised on the way: an image's finding holds all that is wrong with it, so that one run shows everything.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segcore.config.data import SixteenBit
from segcore.data.manifest import Record
from segcore.errors import About
from segcore.importers import Entry, Finding
from segcore.importers.decoding import Labels, Picture, open_labels, open_picture


def inspect_all(
    entries: Sequence[Entry], classes: Sequence[str], convert_palette: bool, sixteen_bit: SixteenBit, converted: Path
) -> Iterator[Finding]:
    """Findings in the order of the entries, while threads work ahead.

    What had to be converted is written into the folder `converted`: labels as indexed PNGs into `SegmentationClass`,
    pictures of 16 bits as RGB PNGs into `JPEGImages`.

    Raises:
        OSError: it could not be written.
    """
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda entry: inspect(entry, classes, convert_palette, sixteen_bit, converted), entries)


def inspect(
    entry: Entry, classes: Sequence[str], convert_palette: bool, sixteen_bit: SixteenBit, converted: Path
) -> Finding:
    """Open the picture and the labels of one entry and compare them with each other and with the tags."""
    finding = Finding(entry)
    picture = open_picture(entry.image, sixteen_bit, converted / "JPEGImages", finding)
    finding.fingerprint = picture.fingerprint if picture is not None else None
    masks = converted / "SegmentationClass"
    labels = open_labels(entry.labels, classes, convert_palette, masks, finding) if entry.labels else None
    if picture is not None and entry.annotated is not None:
        _compare_annotation(picture, entry.annotated, entry, finding)
    if picture is not None and labels is not None:
        _compare_sizes(picture, labels, entry, finding)
    if labels is not None and entry.tags is not None:
        _compare_tags(entry.tags, entry.skipped, labels, classes, finding)
    tags = entry.tags if entry.tags is not None else labels.classes if labels is not None else ()
    if picture is None or finding.problems:
        return finding
    if not tags:
        why = "all its objects are difficult" if entry.skipped else "neither tags nor labels name a class"
        finding.warnings.append(("no_tags", About(entry.image, f"{why}; it serves as background")))
    finding.record = Record(
        image_id=entry.image_id,
        image=picture.path,
        labels=labels.path if labels else None,
        width=picture.size[0],
        height=picture.size[1],
        tags=tags,
        split=entry.split,
        image_sha256=picture.sha256,
        labels_sha256=labels.sha256 if labels else None,
        label_classes=labels.classes if labels else None,
    )
    return finding


def _compare_sizes(picture: Picture, labels: Labels, entry: Entry, finding: Finding) -> None:
    (width, height), (across, down) = picture.size, labels.size
    if (width, height) == (across, down):
        # A half turn, a mirror or a square keeps the size: nothing but an eye can tell whether the labels agree.
        if picture.orientation in (2, 3, 4) or (picture.orientation > 4 and width == height):
            turned = f"{entry.image}: is turned by its EXIF orientation {picture.orientation}"
            text = f"{turned}; look whether {labels.path} is drawn on the turned picture"
            finding.warnings.append(("orientation_unproven", text))
        return
    message = f"{labels.path}: is {across}x{down} while {entry.image} is {width}x{height}"
    if picture.orientation > 4 and (across, down) == (height, width):
        message += (
            f" when turned by its EXIF orientation {picture.orientation}; labels must be drawn on the turned picture: "
            "turn the labels, or remove the EXIF orientation if the pixels lie right without it"
        )
    else:
        message += "; export both at one size, labels without interpolation"
    finding.problems.append(message)


def _compare_annotation(picture: Picture, annotated: tuple[int, int], entry: Entry, finding: Finding) -> None:
    """An annotation of another picture names other things; one that was made before a turn by EXIF is in order."""
    turned = picture.orientation > 4 and annotated == picture.size[::-1]
    if annotated != picture.size and not turned:
        (width, height), (across, down) = picture.size, annotated
        finding.problems.append(
            f"{entry.image}: is {width}x{height}, but its annotation is of a picture of {across}x{down} pixels; "
            "give it the annotation of this picture, or mend its <size>"
        )


def _compare_tags(
    tags: tuple[int, ...], skipped: tuple[int, ...], labels: Labels, classes: Sequence[str], finding: Finding
) -> None:
    if difficult := sorted(set(labels.classes) & set(skipped)):
        text = f"{labels.path}: shows {_names(difficult, classes)}, which no tag names as its objects are difficult"
        finding.warnings.append(("difficult_in_labels", text))
    if untagged := sorted(set(labels.classes) - set(tags) - set(skipped)):
        finding.problems.append(
            f"{labels.path}: shows {_names(untagged, classes)}, which the tags of {finding.entry.image_id} do not name "
            f"({_names(tags, classes)}); add it to the tags or mend the labels"
        )
    if unseen := sorted(set(tags) - set(labels.classes)):
        text = f"{labels.path}: lacks {_names(unseen, classes)}, which the tags of {finding.entry.image_id} name"
        finding.warnings.append(("tag_not_in_labels", text))


def _names(indices: Iterable[int], classes: Sequence[str]) -> str:
    return ", ".join(classes[index] for index in indices) or "nothing"
