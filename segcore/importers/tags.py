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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segcore.config.data import TagsFromAnnotations, TagsFromTable, VocParams
from segcore.errors import About, hint, some
from segcore.importers import annotations
from segcore.importers.folders import PICTURE_ENDINGS, Folder, one_form, spelled


@dataclass(frozen=True)
class Named:
    """Class indices 1..L, sorted: the tags of an image, and classes of which it has difficult objects only."""

    tags: tuple[int, ...]
    skipped: tuple[int, ...]
    size: tuple[int, int] | None = None
    """Width and height of the picture that was annotated, where the source says so."""


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
        return _csv_reader(_csv_path(root, params.tags.file, problems), classes, problems)
    if isinstance(params.tags, TagsFromAnnotations):
        return _xml_reader(root, params.tags.difficult == "skip", classes, problems)
    return None


def _csv_path(root: Path, name: str, problems: list[str]) -> Path:
    """`tags.file` is meant from the data set's root; from the project where it is not there."""
    path = Path(name).expanduser()
    if path.is_absolute() or not (root / path).is_file():
        return path
    if path.is_file() and path.read_bytes() != (root / path).read_bytes():
        problems.append(f"dataset.tags.file: {path} and {root / path} differ; delete one, or write its whole path")
    return root / path


def _csv_reader(path: Path, classes: Sequence[str], problems: list[str]) -> Reader:
    table = _read_csv(path, problems)
    if table is None:
        return lambda image_id: None

    def tags_of(image_id: str) -> Named | None:
        if image_id not in table:
            other = next((known for known in table if one_form(known) == one_form(image_id)), None)
            if other is not None:
                problems.append(f"{path}: {spelled(other)} and {spelled(image_id)} differ in their Unicode form only")
            else:
                problems.append(
                    About(
                        f"{path}: the id '{image_id}'",
                        "it has no line; add '<id>,<class names>' or unlist the image",
                    )
                )
            return None
        cell = table[image_id]
        if found := re.search("[,;|]", cell):
            problems.append(f"{path}: {image_id}: found '{found[0]}' between tags in '{cell}'; separate them by blanks")
            return None
        indices = _indices(cell.split(), classes, path, image_id, problems)
        return None if indices is None else Named(indices, ())

    return tags_of


def _read_csv(path: Path, problems: list[str]) -> dict[str, str] | None:
    """Tags by image id, or None where the file cannot serve (one problem then says it for all ids)."""
    try:
        if path.exists() and not path.is_file():
            problems.append(f"{path}: is no file; dataset.tags.file must be a CSV with image_id,tags")
            return None
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            if (wrong := _wrong_header(lines.fieldnames or ())) is not None:
                problems.append(f"{path}: {wrong}; the first line must be image_id,tags")
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
                elif line["tags"] is None:
                    reason = "has no cell for tags; write '<id>,' where an image shows none of the classes"
                    problems.append(About(f"{path}: line {lines.line_num}, '{image_id}'", reason))
    except FileNotFoundError:
        problems.append(
            f"{path}: this file is missing; dataset.tags.file is meant from dataset.root or from the project"
        )
        return None
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}); check its permissions")
        return None
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path}: cannot be read as CSV ({error}); save it as UTF-8 text with image_id,tags")
        return None
    with_ending = [image_id for image_id, _ in rows if Path(image_id).suffix.lower() in PICTURE_ENDINGS]
    if with_ending:
        problems.append(f"{path}: found the ids {some(with_ending)}; write them without the ending, as the lists do")
        rows = [(_without_ending(image_id), tags) for image_id, tags in rows]
    twice = [image_id for image_id, count in Counter(image_id for image_id, _ in rows).items() if count > 1]
    problems += [
        About(f"{path}: the id '{image_id}'", "it has more than one line; put all its tags into one")
        for image_id in sorted(twice)
    ]
    return dict(rows)


def _without_ending(image_id: str) -> str:
    return image_id[: -len(Path(image_id).suffix)] if Path(image_id).suffix.lower() in PICTURE_ENDINGS else image_id


def _wrong_header(columns: Sequence[str]) -> str | None:
    """What is wrong with the first line of a table of tags."""
    if len(columns) == 1 and (found := re.search("[;\t|]", columns[0])):
        return f"found {found[0]!r} between columns where a comma is wanted; save it separated by commas"
    if missing := {"image_id", "tags"} - set(columns):
        return f"lacks the column {', '.join(sorted(missing))}"
    twice = [name for name in ("image_id", "tags") if list(columns).count(name) > 1]
    return f"has the column {twice[0]} more than once" if twice else None


def _xml_reader(root: Path, skip: bool, classes: Sequence[str], problems: list[str]) -> Reader:
    folder = root / "Annotations"
    if not folder.is_dir():
        problems.append(
            f"{folder}: this folder is missing; dataset.tags: annotations needs one <id>.xml an image there"
        )
        return lambda image_id: None
    files = Folder(folder, problems)
    pictures = _names_in(root / "JPEGImages")

    def tags_of(image_id: str) -> Named | None:
        path = files.mask(image_id, problems, ending=".xml")
        assert path is not None, "it is wanted"
        try:
            found = annotations.read(path, skip)
        except FileNotFoundError:
            wanted = "this annotation is missing; add it, unlist the image, or take tags from masks or csv"
            problems.append(About(path, wanted))
            return None
        except OSError as error:
            problems.append(About(path, f"cannot be read ({error.strerror}); check its permissions"))
            return None
        except ValueError as error:
            advice = "mend it or take it from the devkit"
            problems.append(About(path, f"cannot be read as a VOC annotation ({error}); {advice}"))
            return None
        # A name that no picture has may be the one it had before somebody renamed it; that of another one is a mistake.
        if found.picture in pictures and Path(found.picture).stem != image_id:
            wrong = f"is of another picture, by its <filename> {found.picture}; give the annotation of this one"
            problems.append(About(path, wrong))
            return None
        indices = _indices([name for name, _ in found.objects], classes, path, image_id, problems)
        tags = _indices([name for name, difficult in found.objects if not difficult], classes, path, image_id, [])
        if indices is None or tags is None:
            return None
        return Named(tags, tuple(sorted(set(indices) - set(tags))), found.size)

    return tags_of


def _names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def _indices(
    names: Sequence[str], classes: Sequence[str], path: Path, image_id: str, problems: list[str]
) -> tuple[int, ...] | None:
    known = {name: index for index, name in enumerate(classes) if index > 0}
    unknown = sorted(set(names) - set(known))
    where = str(path) if path.stem == image_id else f"{path}: {image_id}"
    for name in unknown:
        problems.append(About(where, f"names the class '{name}', {_why_unknown(name, known)}"))
    return None if unknown else tuple(sorted({known[name] for name in names}))


def _why_unknown(name: str, known: dict[str, int]) -> str:
    if name == "background":
        return "which is no tag: an image without any of the classes has none"
    for other in known:
        if one_form(other) == one_form(name):
            return f"which differs from the data set's {spelled(other)} in its Unicode form only: {spelled(name)}"
    return f"which the data set does not have{hint(name, known) or f'; allowed are {some([*known], 20)}'}"
