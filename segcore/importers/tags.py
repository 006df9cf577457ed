"""Image-level tags that somebody wrote down: VOC's `Annotations/*.xml`, or a CSV with `image_id,tags`.

An annotation marks as difficult what can hardly be recognised without the rest of the scene. VOC's own classification
task does not count such objects, and its tables leave them out. The published weak labels do count them: those that
AffinityNet made, and IRN and SEAM took over, hold every name in the annotation, as `dataset.tags.difficult: count`
does. The papers that this project follows do not say. With `skip` an object is a tag only if somebody could point at it
without thinking, which is nearer to tags that a person types; masks show the others all the same (in VOC's 2007 part 64
of 472 images lose a tag, and every one of these has it in its mask), and that is a warning instead of a problem.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from segcore.config.data import TagsFromAnnotations, TagsFromTable, VocParams
from segcore.errors import hint


@dataclass(frozen=True)
class Named:
    """Class indices 1..L, sorted: the tags of an image, and classes of which it has difficult objects only."""

    tags: tuple[int, ...]
    skipped: tuple[int, ...]


Reader = Callable[[str], Named | None]
"""What is named for an image id; None where that cannot be told, and a problem then says why."""


def reader(root: Path, params: VocParams, classes: Sequence[str], problems: list[str]) -> Reader | None:
    """The source that `dataset.tags` names, or None where the tags are those of the labels."""
    if isinstance(params.tags, TagsFromTable):
        problems += [
            f"the class '{name}' holds a blank, which is what separates tags in a CSV; write it as "
            f"'{'_'.join(name.split())}' in classes.txt and in the CSV"
            for name in classes
            if len(name.split()) > 1
        ]
        return _csv_reader(_csv_path(root, params.tags.file), classes, problems)
    if isinstance(params.tags, TagsFromAnnotations):
        return _xml_reader(root / "Annotations", params.tags.difficult == "skip", classes, problems)
    return None


def _csv_path(root: Path, name: str) -> Path:
    """`tags_file` is meant from the data set's root; from the project where it is not there."""
    path = Path(name).expanduser()
    return root / path if (root / path).is_file() else path


def _csv_reader(path: Path, classes: Sequence[str], problems: list[str]) -> Reader:
    table = _read_csv(path, problems)
    if table is None:
        return lambda image_id: None

    def tags_of(image_id: str) -> Named | None:
        if image_id not in table:
            problems.append(
                f"{path}: the id '{image_id}' has no line; add '{image_id},<class names>' or unlist the image"
            )
            return None
        cell = table[image_id]
        if found := re.search("[,;|]", cell):
            problems.append(f"{path}: {image_id}: found '{found[0]}' between tags in '{cell}'; separate them by blanks")
            return None
        indices = _indices(cell.split(), classes, f"{path}: {image_id}", problems)
        return None if indices is None else Named(indices, ())

    return tags_of


def _read_csv(path: Path, problems: list[str]) -> dict[str, str] | None:
    """Tags by image id, or None where the file cannot serve (one problem then says it for all ids)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            if missing := {"image_id", "tags"} - set(lines.fieldnames or ()):
                problems.append(
                    f"{path}: lacks the column {', '.join(sorted(missing))}; the first line must be image_id,tags"
                )
                return None
            rows: list[tuple[str, str]] = []
            for line in lines:
                image_id = (line["image_id"] or "").strip()
                rows.append((image_id, line["tags"] or ""))
                if None in line:  # where the reader puts the cells that have no column
                    problems.append(
                        f"{path}: line {lines.line_num}, '{image_id}', has more cells than the first line has columns; "
                        "the tags of an image stand in one cell, separated by blanks"
                    )
    except FileNotFoundError:
        problems.append(
            f"{path}: this file is missing; dataset.tags.file is meant from dataset.root or from the project"
        )
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path}: cannot be read as CSV ({error}); save it as UTF-8 text with image_id,tags")
        return None
    table = dict(rows)
    if len(table) < len(rows):
        seen: set[str] = set()
        twice = sorted({image_id for image_id, _ in rows if image_id in seen or seen.add(image_id)})
        problems += [
            f"{path}: the id '{image_id}' has more than one line; put all its tags into one" for image_id in twice
        ]
    return table


def _xml_reader(folder: Path, skip: bool, classes: Sequence[str], problems: list[str]) -> Reader:
    if not folder.is_dir():
        problems.append(
            f"{folder}: this folder is missing; dataset.tags: annotations needs one <id>.xml an image there"
        )
        return lambda image_id: None

    def tags_of(image_id: str) -> Named | None:
        path = folder / f"{image_id}.xml"
        try:
            objects = _objects(path, skip)
        except FileNotFoundError:
            problems.append(
                f"{path}: this annotation is missing; add it, unlist the image, or take tags from masks or csv"
            )
            return None
        except (OSError, ValueError, ElementTree.ParseError) as error:
            problems.append(f"{path}: cannot be read as a VOC annotation ({error}); mend it or take it from the devkit")
            return None
        indices = _indices([name for name, _ in objects], classes, str(path), problems)
        tags = _indices([name for name, difficult in objects if not difficult], classes, str(path), [])
        if indices is None or tags is None:
            return None
        return Named(tags, tuple(sorted(set(indices) - set(tags))))

    return tags_of


def _objects(path: Path, skip: bool) -> list[tuple[str, bool]]:
    """Names of the annotated objects, not of their parts, and whether each is to be skipped as difficult.

    Raises:
        ValueError: the text is no annotation, or one that cannot be trusted.
    """
    text = path.read_text("utf-8-sig")
    # Entities can expand to gigabytes or name other files; no annotation needs a DTD. Null characters are refused with
    # them, because the parser would take such text for UTF-16 and find a DTD in it that is not seen here.
    if any(part in text for part in ("<!DOCTYPE", "<!ENTITY", "\0")):
        raise ValueError("it declares a DTD or entities, or holds null characters, which are refused")
    objects = []
    for element in ElementTree.fromstring(text).iter("object"):
        name, mark = ((element.findtext(key) or "").strip() for key in ("name", "difficult"))
        if skip and mark not in ("", "0", "1"):
            raise ValueError(f"it marks '{name}' with <difficult>{mark}</difficult>; allowed are 0 and 1")
        objects.append((name, skip and mark == "1"))
    return objects


def _indices(names: Sequence[str], classes: Sequence[str], where: str, problems: list[str]) -> tuple[int, ...] | None:
    known = {name: index for index, name in enumerate(classes) if index > 0}
    unknown = sorted(set(names) - set(known))
    for name in unknown:
        meant = hint(name, known) or f"; allowed are {', '.join(known)}"
        problems.append(f"{where}: names the class '{name}', which the data set does not have{meant}")
    return None if unknown else tuple(sorted({known[name] for name in names}))
