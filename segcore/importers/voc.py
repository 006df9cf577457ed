"""The layout of the PASCAL VOC devkit: `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/<list>.txt`.

Masks that VOC's own set lacks come from `SegmentationClassAug/` or from SBD's `cls/*.mat`. The classes are VOC's twenty
unless the root holds a `classes.txt`: one name a line, `background` first.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from segcore.config.data import VocParams
from segcore.data.manifest import Split
from segcore.errors import Problem
from segcore.importers import Entry, Listing, tags

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

PICTURE_ENDINGS = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")


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
    for image_id in sorted(set(train) & set(val)):
        problems.append(
            f"{image_id}: this id is in both lists, {params.train_list}.txt and {params.val_list}.txt; "
            "an image that is trained on cannot measure anything: remove it from one of them"
        )
    trained_on = set(train)
    val = [image_id for image_id in val if image_id not in trained_on]
    problems += _written_twice([*train, *val])
    tags_of = tags.reader(root, params, classes, problems)
    find_labels = _labels_finder(root, params)
    pictures = _pictures(root)
    entries = [
        *_entries(root, "train", train, pictures, find_labels, tags_of, problems),
        *_entries(root, "val", val, pictures, lambda image_id: _mask(root, image_id), tags_of, problems),
    ]
    return Listing(tuple(classes), tuple(entries), tuple(problems))


def _check_root(root: Path) -> None:
    if (root / "JPEGImages").is_dir():
        return
    below = sorted(folder.parent.as_posix() for folder in root.glob("*/JPEGImages"))
    below += sorted(folder.parent.as_posix() for folder in root.glob("*/*/JPEGImages"))
    hint = f"; did you mean {below[0]}?" if below else "; give the folder that holds it, as VOCdevkit/VOC2012 does"
    found = "it has no folder JPEGImages/" if root.is_dir() else "there is no such folder"
    raise Problem(f"dataset.root: {root}: {found}{hint}")


def _read_classes(root: Path, problems: list[str]) -> list[str]:
    path = root / "classes.txt"
    if not path.is_file():
        return list(CLASSES)
    lines = _read_lines(path, problems)
    if not lines or lines[0] != "background":
        problems.append(f"{path}: the first line must be 'background', found {lines[0] if lines else 'nothing'!r}")
    if not 2 <= len(lines) <= 255:
        problems.append(
            f"{path}: holds {len(lines)} names; allowed are 2 to 255, as labels have 8 bits and 255 is unknown"
        )
    twice = [name for name, count in Counter(lines).items() if count > 1]
    problems += [f"{path}: the name '{name}' stands there more than once; a class has one index" for name in twice]
    return lines


def _read_ids(root: Path, name: str, problems: list[str]) -> list[str]:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not path.is_file():
        others = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        problems.append(f"{path}: this list is missing; lists there: {others}; set dataset.train_list or val_list")
        return []
    lines = _read_lines(path, problems)
    if not lines:
        problems.append(f"{path}: this list is empty; write one image id a line")
    counts = Counter(lines)
    problems += [
        f"{path}: the id '{line}' is listed {count} times; leave one" for line, count in counts.items() if count > 1
    ]
    # An id becomes part of file names: none may lead out of the data set's folders.
    wrong = [
        line
        for line in counts
        if any(part in line for part in ("/", "\\", "..", "\0"))
        or line != line.split()[0]
        or Path(line).suffix in PICTURE_ENDINGS
    ]
    problems += [
        f"{path}: found '{line}'; an image id is a file name without its folder and ending, such as 2007_000032"
        for line in wrong
    ]
    return [line for line in counts if line not in wrong]


def _read_lines(path: Path, problems: list[str]) -> list[str]:
    """The lines that are not blank; a byte order mark, which Windows editors put there, is dropped."""
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as UTF-8 text ({error}); save it as plain text")
        return []


def _one_form(name: str) -> str:
    """The name in the one form of Unicode that all its spellings share: an accent may be a character of its own."""
    return unicodedata.normalize("NFC", name)


def _written_twice(ids: Sequence[str]) -> list[str]:
    """Problems for ids that only a computer tells apart: some file systems take their files for one."""
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for image_id in ids:
        spellings[_one_form(image_id)].append(image_id)
    return [
        f"the ids {' and '.join(_spelled(image_id) for image_id in same)} differ in their Unicode form only; "
        "leave one, or rename one with its files"
        for same in spellings.values()
        if len(same) > 1
    ]


def _spelled(name: str) -> str:
    return name if name.isascii() else f"{name} ({ascii(name)})"


def _pictures(root: Path) -> dict[str, list[Path]]:
    """By id, in one form of Unicode, the pictures of any ending that cameras and editors write."""
    pictures: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted((root / "JPEGImages").iterdir()):
        if path.suffix in PICTURE_ENDINGS:
            pictures[_one_form(path.stem)].append(path)
    return pictures


def _picture(root: Path, image_id: str, pictures: Mapping[str, list[Path]], problems: list[str]) -> Path:
    """The one picture of the id; where there is none, the devkit's own name for it."""
    found = pictures.get(_one_form(image_id), [])
    found = [path for path in found if path.stem == image_id] or found
    if not found:
        return root / "JPEGImages" / f"{image_id}{PICTURE_ENDINGS[0]}"
    if len(found) > 1:
        names = " and ".join(_spelled(path.name) for path in found)
        problems.append(f"{image_id}: has {len(found)} pictures in {root / 'JPEGImages'}, {names}; remove all but one")
    elif found[0].stem != image_id:
        problems.append(
            f"the id {_spelled(image_id)} and its picture {_spelled(found[0].name)} in {root / 'JPEGImages'} differ in "
            "their Unicode form; give both the same, and so the labels and tags"
        )
    return found[0]


def _mask(root: Path, image_id: str) -> Path:
    return root / "SegmentationClass" / f"{image_id}.png"


def _labels_finder(root: Path, params: VocParams) -> Callable[[str], Path | None]:
    sbd_root = Path(params.sbd_root).expanduser() if params.sbd_root is not None else None

    def find(image_id: str) -> Path | None:
        places = [_mask(root, image_id), root / "SegmentationClassAug" / f"{image_id}.png"]
        places += [sbd_root / "cls" / f"{image_id}.mat"] if sbd_root is not None else []
        return next((place for place in places if place.is_file()), None)

    if sbd_root is not None and not (sbd_root / "cls").is_dir():
        raise Problem(
            f"dataset.sbd_root: {sbd_root} has no folder cls/ with SBD's .mat files; mend it or set it to null"
        )
    return find


def _entries(
    root: Path,
    split: Split,
    ids: Sequence[str],
    pictures: Mapping[str, list[Path]],
    find_labels: Callable[[str], Path | None],
    tags_of: tags.Reader | None,
    problems: list[str],
) -> list[Entry]:
    entries = []
    for image_id in ids:
        labels = find_labels(image_id)
        if labels is None and tags_of is None:
            problems.append(
                f"{image_id}: a training image without labels, and tags come from labels; put them at "
                f"{_mask(root, image_id)}, set dataset.sbd_root, or take dataset.tags from annotations or csv"
            )
        named = tags_of(image_id) if tags_of is not None else None
        entries.append(
            Entry(
                image_id=image_id,
                split=split,
                image=_picture(root, image_id, pictures, problems),
                labels=labels,
                tags=named.tags if named is not None else None,
                skipped=named.skipped if named is not None else (),
            )
        )
    return entries
