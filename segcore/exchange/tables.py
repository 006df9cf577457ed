"""Tags without outlines: one folder for each tag, or a table with a line a picture (or a line a picture and tag)."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from segcore.errors import Problem, hint
from segcore.exchange import Annotated, Collection, clean
from segcore.exchange.pictures import Pictures, beside
from segcore.exchange.reading import read_text

UNLABELLED = ("unlabelled", "unlabeled", "unsorted")
"""Folders whose name is no tag."""

SEPARATORS = ";|,"
YES, NO = {"1", "1.0", "true", "yes"}, {"", "0", "0.0", "false", "no", "nan"}


def read_folders(source: Path) -> Collection:
    """A folder for each tag, with the pictures that have it; those beside the folders are unlabelled.

    A picture that lies in several folders by the same name has all their tags.

    Raises:
        Problem: no such folders.
    """
    found = Pictures(source)
    tags: defaultdict[str, set[str]] = defaultdict(set)
    pictures: dict[str, Path] = {}
    for name, path in found.by_path.items():
        folder, _, rest = name.partition("/")
        key = rest or folder
        pictures.setdefault(key, path)
        tags[key] |= {clean(folder)} if rest and folder.lower() not in UNLABELLED else set()
    classes = sorted({tag for of in tags.values() for tag in of})
    if not classes:
        raise Problem(f"{source}: its pictures lie in no folders; each tag needs a folder with its name")
    made = [Annotated(key, pictures[key], frozenset(of), None, bool(of)) for key, of in sorted(tags.items())]
    return Collection(tuple(classes), tuple(made), ())


def read_table(source: Path, images: Path | None, image_column: str | None, tags_column: str | None) -> Collection:
    """A CSV, TSV or parquet file: a column that names pictures, and one of tags, or a column of 0 and 1 for each tag.

    Columns and separators are found where they are not given; an empty cell is a picture that has none of the tags.

    Raises:
        Problem: no such file or column.
    """
    table = _table(source)
    found = Pictures(beside(source, images, "images"))
    column = _column(source, table, image_column, lambda values: sum(map(bool, map(found.find, values))))
    rest = [name for name in table.columns if name != column]
    ones = [name for name in rest if {*table[name].str.lower()} <= YES | NO and {*table[name].str.lower()} & YES]
    tags: defaultdict[str, set[str]] = defaultdict(set)
    if tags_column is None and ones:
        for row in table.to_dict("records"):
            tags[row[column]] |= {clean(name) for name in ones if row[name].lower() in YES}
    else:
        named = _named(source, table, rest, tags_column)
        separator = _separator([str(cell) for cell in table[named]])
        for name, cell in zip(table[column], table[named], strict=True):
            parts = re.split(f"[{re.escape(separator)}]" if separator.strip() else r"\s+", cell)
            tags[name] |= {clean(part) for part in parts if part.strip()}
    made = [Annotated(name, found.find(name), frozenset(of), None, True) for name, of in tags.items()]
    seen = {one.picture for one in made}
    made += [Annotated(n, path, frozenset(), None, False) for n, path in found.by_path.items() if path not in seen]
    return Collection(tuple(sorted({tag for of in tags.values() for tag in of})), tuple(made), ())


def _table(source: Path) -> pd.DataFrame:
    if source.suffix.lower() in (".parquet", ".pq"):
        try:
            table = pd.read_parquet(source)
        except (OSError, ValueError) as error:
            raise Problem(f"{source}: cannot be read as parquet ({error})") from error
        for name in table.columns:
            if any(not isinstance(cell, str) and hasattr(cell, "__iter__") for cell in table[name]):
                table[name] = ["|".join(map(str, cell)) for cell in table[name]]
        return table.fillna("").astype(str)
    text = read_text(source)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    rows = list(csv.DictReader(text.splitlines(), delimiter=separator))
    if not rows:
        raise Problem(f"{source}: holds no lines below its first one")
    return pd.DataFrame([{k: (v or "").strip() for k, v in row.items() if k is not None} for row in rows])


def _column(source: Path, table: pd.DataFrame, given: str | None, count: Callable[[Iterable[str]], int]) -> str:
    names = [str(name) for name in table.columns]
    if given is not None:
        return _known(source, given, names, "--image-column")
    best = max(names, key=lambda name: count(table[name]))
    if not count(table[best]):
        raise Problem(f"{source}: no column names pictures that are there; say which by --image-column, and --images")
    return best


def _named(source: Path, table: pd.DataFrame, rest: list[str], given: str | None) -> str:
    if given is not None:
        return _known(source, given, rest, "--tags-column")
    usual = [name for name in rest if name.lower() in ("tags", "tag", "labels", "label", "classes", "class")]
    if len(usual) != 1 and len(rest) != 1:
        raise Problem(f"{source}: has the columns {', '.join(rest)}; say which holds tags by --tags-column")
    return (usual or rest)[0]


def _known(source: Path, given: str, names: list[str], option: str) -> str:
    if given not in names:
        raise Problem(f"{source}: {option} {given}: there are {', '.join(names)}{hint(given, names)}")
    return given


def _separator(cells: list[str]) -> str:
    """What separates tags: a mark that occurs, or blanks."""
    return next((mark for mark in SEPARATORS if any(mark in cell for cell in cells)), " ")
