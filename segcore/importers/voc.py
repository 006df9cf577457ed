"""The layout of the PASCAL VOC devkit: `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/<list>.txt`.

Masks that VOC's own set lacks come from `SegmentationClassAug/` or from SBD's `cls/*.mat`. The classes are VOC's twenty
unless the root holds a `classes.txt`: one name a line, `background` first.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from segcore.config.data import VocParams
from segcore.data.manifest import Split, wrong_ids
from segcore.errors import About, Problem, some
from segcore.importers import Entry, Listing, tags
from segcore.importers.folders import MASK_ENDING, PICTURE_ENDINGS, Folder, one_form, spelled

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

LONGEST_NAME = 100
"""Characters of a class name."""


def read(root: Path, params: VocParams) -> Listing:
    """List the images of both splits with their labels and tags; files are found, not opened.

    Raises:
        Problem: there is no devkit at `root`. Everything else that is wrong is in the listing's `problems`.
    """
    _check_root(root)
    problems: list[str] = []
    classes = _read_classes(root, problems)
    train = _read_ids(root, params.train_list, problems)
    val = _read_ids(root, params.val_list, problems)
    problems += [
        About(
            image_id,
            f"this id is in both lists, {params.train_list}.txt and {params.val_list}.txt; "
            "an image that is trained on cannot measure anything: remove it from one of them",
        )
        for image_id in sorted(set(train) & set(val))
    ]
    trained_on = set(train)
    val = [image_id for image_id in val if image_id not in trained_on]
    twice_spelled = _spellings([*train, *val])
    problems += [_written_twice(same) for same in twice_spelled]
    train, val = ([one for one in ids if not any(one in same for same in twice_spelled)] for ids in (train, val))
    tags_of = tags.reader(root, params, classes, problems)
    pictures, masks = Folder(root / "JPEGImages", problems), Folder(root / "SegmentationClass", problems)
    twice: list[str] = []
    find_labels = _labels_finder(root, params, masks, problems, twice)
    # Where tags come from elsewhere, a validation list without any mask is meant so; one mask that is missing is not.
    measured = tags_of is None or any(masks.holds(image_id) for image_id in val)
    mask_of = partial(masks.mask, problems=problems, wanted=measured)
    entries = [
        *_entries(masks, "train", train, pictures, find_labels, tags_of, problems),
        *_entries(masks, "val", val, pictures, mask_of, tags_of, problems),
    ]
    places = f"labels in {masks.path} and elsewhere (SegmentationClassAug/ or SBD); those in {masks.path} are taken"
    warnings = [("labels_twice", f"{len(twice)} images, {some(twice)}, have {places}")] if twice else []
    if val and not measured:
        what = f"none of the {len(val)} validation images has a mask in {masks.path}"
        warnings.append(("tags_alone", f"{what}: systems are measured by their tags alone, and have no mIoU"))
    return Listing(tuple(classes), tuple(entries), tuple(problems), tuple(warnings))


def _check_root(root: Path) -> None:
    try:
        if (root / "JPEGImages").is_dir():
            return
        below = sorted(folder.parent.as_posix() for folder in root.glob("*/JPEGImages"))
        below += sorted(folder.parent.as_posix() for folder in root.glob("*/*/JPEGImages"))
        found = "it has no folder JPEGImages/" if root.is_dir() else "there is no such folder"
    except OSError as error:
        raise Problem(f"dataset.root: {root}: cannot be read ({error.strerror}); check its permissions") from None
    hint = f"; did you mean {below[0]}?" if below else "; give the folder that holds it, as VOCdevkit/VOC2012 does"
    raise Problem(f"dataset.root: {root}: {found}{hint}")


def _read_classes(root: Path, problems: list[str]) -> list[str]:
    path = root / "classes.txt"
    if not os.path.lexists(path):
        return list(CLASSES)
    before = len(problems)
    lines = _read_lines(path, problems)
    if len(problems) > before:
        return list(CLASSES)  # to go on with; the problem keeps them from being used
    problems += wrong_classes(path, lines)
    return lines


def wrong_classes(path: Path, names: Sequence[str]) -> list[str]:
    """What keeps names, by class index, from being those of a data set; `path` is where they stand."""
    problems: list[str] = []
    if not names or names[0] != "background":
        problems.append(f"{path}: the first line must be 'background', found {names[0] if names else 'nothing'!r}")
    if not 2 <= len(names) <= 255:
        problems.append(
            f"{path}: holds {len(names)} names; allowed are 2 to 255, as labels have 8 bits and 255 is unknown"
        )
    twice = [name for name, count in Counter(map(one_form, names)).items() if count > 1]
    problems += [f"{path}: the name '{name}' stands there more than once; a class has one index" for name in twice]
    odd = [name for name in names if not name.isprintable() or len(name) > LONGEST_NAME]
    if odd:
        what = f"a class name has at most {LONGEST_NAME} characters, all of which can be seen"
        problems.append(f"{path}: found {some([ascii(name)[1:60] for name in odd])}; {what}")
    return problems


def _read_ids(root: Path, name: str, problems: list[str]) -> list[str]:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not os.path.lexists(path):
        others = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        problems.append(f"{path}: this list is missing; lists there: {others}; set dataset.train_list or val_list")
        return []
    before = len(problems)
    lines = _read_lines(path, problems)
    if not lines and len(problems) == before:
        problems.append(f"{path}: this list is empty; write one image id a line")
    counts = Counter(lines)
    problems += [
        About(f"{path}: the id '{line}' is listed {count} times", "leave one")
        for line, count in counts.items()
        if count > 1
    ]
    with_ending = [line for line in counts if Path(line).suffix.lower() in PICTURE_ENDINGS]
    if with_ending:
        what = "an image id is a file name without its folder and ending, such as 2007_000032"
        problems.append(f"{path}: found {some(with_ending)}; {what}")
    ids = [line for line in counts if line not in set(with_ending)]
    problems += [f"{path}: {wrong}" for wrong in wrong_ids(ids)]
    return [line for line in ids if not wrong_ids([line])]


def _read_lines(path: Path, problems: list[str]) -> list[str]:
    """The lines that are not blank; a byte order mark, which Windows editors put there, is dropped."""
    try:
        if path.exists() and not path.is_file():
            problems.append(f"{path}: is no file; put a plain text there")
            return []
        return [line.strip() for line in re.split(r"[\r\n]+", path.read_text("utf-8-sig")) if line.strip()]
    except FileNotFoundError:
        problems.append(f"{path}: is a link that leads nowhere; put a plain text there, or delete it")
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}); check its permissions")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: cannot be read as UTF-8 text ({error}); save it as plain text")
    return []


def _spellings(ids: Sequence[str]) -> list[list[str]]:
    """Ids that only a computer tells apart: some file systems take their files for one."""
    spellings: dict[str, list[str]] = {}
    for image_id in ids:
        spellings.setdefault(one_form(image_id), []).append(image_id)
    return [same for same in spellings.values() if len(same) > 1]


def _written_twice(same: Sequence[str]) -> About:
    return About(
        f"the ids {' and '.join(spelled(image_id) for image_id in same)}",
        "they differ in their Unicode form only; leave one, or rename one with its files",
    )


def _labels_finder(
    root: Path, params: VocParams, masks: Folder, problems: list[str], twice: list[str]
) -> Callable[[str], Path | None]:
    """Where an image's labels are, VOC's own before those that others added; `twice` takes ids that have both."""
    sbd_root = Path(params.sbd_root).expanduser() if params.sbd_root is not None else None
    if sbd_root is not None and not (sbd_root / "cls").is_dir():
        raise Problem(
            f"dataset.sbd_root: {sbd_root} has no folder cls/ with SBD's .mat files; mend it or set it to null"
        )
    added = Folder(root / "SegmentationClassAug", problems)
    sbd = Folder(sbd_root / "cls", problems) if sbd_root is not None else None

    def find(image_id: str) -> Path | None:
        places = [masks.mask(image_id, problems, wanted=False), added.mask(image_id, problems, wanted=False)]
        places += [sbd.mask(image_id, problems, wanted=False, ending=".mat")] if sbd is not None else []
        found = [place for place in places if place is not None]
        twice.extend([image_id] if len(found) > 1 else [])
        return found[0] if found else None

    return find


def _entries(
    masks: Folder,
    split: Split,
    ids: Sequence[str],
    pictures: Folder,
    find_labels: Callable[[str], Path | None],
    tags_of: tags.Reader | None,
    problems: list[str],
) -> list[Entry]:
    entries = []
    for image_id in ids:
        labels = find_labels(image_id)
        if labels is None and tags_of is None:
            advice = (
                f"a training image without labels, and tags come from labels; put them into {masks.path} as "
                f"<id>{MASK_ENDING}, set dataset.sbd_root, or take dataset.tags from annotations or csv"
            )
            problems.append(About(image_id, advice))
        named = tags_of(image_id) if tags_of is not None else None
        entries.append(
            Entry(
                image_id=image_id,
                split=split,
                image=pictures.picture(image_id, problems),
                labels=labels,
                tags=named.tags if named is not None else None,
                skipped=named.skipped if named is not None else (),
                annotated=named.size if named is not None else None,
            )
        )
    return entries
