"""Image-level tags that somebody wrote down: VOC's `Annotations/*.xml`, or a CSV with `image_id,tags`."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from segcore.config.sections import DatasetParams
from segcore.errors import hint

Reader = Callable[[str], tuple[int, ...] | None]
"""Class indices 1..L of an image id, sorted; None where they cannot be told, and a problem then says why."""


def reader(root: Path, params: DatasetParams, classes: Sequence[str], problems: list[str]) -> Reader | None:
    """The source that `dataset.tags` names, or None where the tags are those of the labels."""
    if params.tags == "csv":
        problems += [
            f"the class '{name}' holds a blank, which is what separates tags in a CSV; write it as "
            f"'{'_'.join(name.split())}' in classes.txt and in the CSV"
            for name in classes
            if len(name.split()) > 1
        ]
        return _csv_reader(_csv_path(root, params.tags_file or ""), classes, problems)
    if params.tags == "annotations":
        return _xml_reader(root / "Annotations", classes, problems)
    return None


def _csv_path(root: Path, name: str) -> Path:
    """`tags_file` is meant from the data set's root; from the project where it is not there."""
    path = Path(name).expanduser()
    return root / path if (root / path).is_file() else path


def _csv_reader(path: Path, classes: Sequence[str], problems: list[str]) -> Reader:
    table = _read_csv(path, problems)
    if table is None:
        return lambda image_id: None

    def tags_of(image_id: str) -> tuple[int, ...] | None:
        if image_id not in table:
            problems.append(
                f"{path}: the id '{image_id}' has no line; add '{image_id},<class names>' or unlist the image"
            )
            return None
        cell = table[image_id]
        if found := re.search("[,;|]", cell):
            problems.append(f"{path}: {image_id}: found '{found[0]}' between tags in '{cell}'; separate them by blanks")
            return None
        return _indices(cell.split(), classes, f"{path}: {image_id}", problems)

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
            f"{path}: this file is missing; dataset.tags_file is meant from dataset.root or from the project"
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


def _xml_reader(folder: Path, classes: Sequence[str], problems: list[str]) -> Reader:
    if not folder.is_dir():
        problems.append(
            f"{folder}: this folder is missing; dataset.tags: annotations needs one <id>.xml an image there"
        )
        return lambda image_id: None

    def tags_of(image_id: str) -> tuple[int, ...] | None:
        path = folder / f"{image_id}.xml"
        try:
            names = _object_names(path)
        except FileNotFoundError:
            problems.append(
                f"{path}: this annotation is missing; add it, unlist the image, or take tags from masks or csv"
            )
            return None
        except (OSError, ValueError, ElementTree.ParseError) as error:
            problems.append(f"{path}: cannot be read as a VOC annotation ({error}); mend it or take it from the devkit")
            return None
        return _indices(names, classes, str(path), problems)

    return tags_of


def _object_names(path: Path) -> list[str]:
    """Names of the annotated objects, not of their parts."""
    text = path.read_text("utf-8-sig")
    # Entities can expand to gigabytes or name other files; no annotation needs a DTD. Null characters are refused with
    # them, because the parser would take such text for UTF-16 and find a DTD in it that is not seen here.
    if any(part in text for part in ("<!DOCTYPE", "<!ENTITY", "\0")):
        raise ValueError("it declares a DTD or entities, or holds null characters, which are refused")
    return [(element.findtext("name") or "").strip() for element in ElementTree.fromstring(text).iter("object")]


def _indices(names: Sequence[str], classes: Sequence[str], where: str, problems: list[str]) -> tuple[int, ...] | None:
    known = {name: index for index, name in enumerate(classes) if index > 0}
    unknown = sorted(set(names) - set(known))
    for name in unknown:
        meant = hint(name, known) or f"; allowed are {', '.join(known)}"
        problems.append(f"{where}: names the class '{name}', which the data set does not have{meant}")
    return None if unknown else tuple(sorted({known[name] for name in names}))
