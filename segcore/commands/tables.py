"""Fill the tables of README.md and of documents in docs/ from files, so that no number in them is typed by hand.

A table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`. `docs/tables/NAME.csv` holds it as shown,
the header first; `embedded` and `demo` come from the report on the embedded data set, `report/voc_mini` from that on
voc_mini, and `curve/voc_mini` from its curve. `docs/tables/NAME.json`, where there is one, tells command, commit and
machine, and becomes the line below the table; it may also choose `rows` (systems) and `columns`. `--check` writes
nothing and exits with 1 if a table is not what the files say. No stage of the pipeline.
"""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import typer

from segcore.cli import command, console
from segcore.errors import Problem, hint
from segcore.files import write_atomically
from segcore.reporting import comparison
from segcore.reporting import rows as rows_of

DOCUMENTS = ("README.md", "docs/own-data.md", "docs/results.md")
TABLES = "docs/tables"
EMBEDDED, DEMO = "embedded", "demo"
SYSTEMS = "data/shapes/report/systems.csv"
MADE = {"report": "data/{}/report/systems.csv", "curve": "data/{}/curve/curve.csv"}
"""Tables of a data set that runs make, by what stands before the slash in their names."""

PLACE = re.compile(r"(<!-- table: (?P<name>\S+) -->\n)(?P<content>.*?)(?P<end><!-- end -->)", re.DOTALL)
OPENING = re.compile(r"<!-- table:.*")
NUMBER = re.compile(
    r"[+-]?\d[\d,]*(\.\d+)?( ± [\d.]+| \([+-][\d.]+ to [+-][\d.]+\)(, level)?"
    rf"| \({comparison.TOO_FEW}\))?"
)
NOTHING = ("", "-", "none")
"""Cells that may stand in a column of numbers."""

ABOUT = {"command": "`{}`", "commit": "commit {}", "machine": "{}"}
"""What the line below a table tells, in this order."""
ROWS, COLUMNS = "rows", "columns"
"""Which rows, by their first cell, and columns a table shows; names with commas between them."""


def main(*, root: Path = Path(), check: bool = False) -> None:
    """Fill every marked table of the project in `root`, or see whether all are filled as the files say."""
    stale = []
    for name in DOCUMENTS:
        document = root / name
        text = document.read_text()
        filled = fill(text, root, name)
        if filled == text:
            continue
        stale.append(name)
        if not check:
            write_atomically(document, filled.encode())
            console.say(f"{name}: tables written")
    if not stale:
        console.say("every table is what the files say")
    elif check:
        console.say(f"{', '.join(stale)}: tables are not what the files say; run `python -m segcore.commands.tables`")
        raise typer.Exit(1)


def fill(text: str, root: Path, where: str) -> str:
    """A document with the content of every marked table; `where` is what messages call it.

    Raises:
        Problem: a table has no end, or no file.
    """
    opened, closed = len(OPENING.findall(text)), len(PLACE.findall(text))
    if opened != closed:
        raise Problem(
            f"{where}: {opened} lines open a table, {closed} tables have a beginning and an end; "
            "write <!-- table: NAME -->, a line break, and further down <!-- end -->"
        )

    def content(match: re.Match[str]) -> str:
        if OPENING.search(match["content"]):
            raise Problem(f"{where}: the table '{match['name']}' does not end before the next one; add <!-- end -->")
        found = table(match["name"], root, where)
        return match[0] if found is None else f"{match[1]}\n{found}\n{match['end']}"

    return PLACE.sub(content, text)


def table(name: str, root: Path, where: str) -> str | None:
    """A table in Markdown with the line below it; None where its file is made by a run that is still to come."""
    file = root / TABLES / f"{name}.csv"
    kind, _, data_set = ("report/shapes" if name in (EMBEDDED, DEMO) else name).partition("/")
    if kind in MADE and data_set:
        made = root / MADE[kind].format(data_set)
        if not made.is_file():
            by = "`make curve` makes" if kind == "curve" else "`make demo` and `make report` make"
            console.say(f"{where}: '{name}' stays as it is, as {made.relative_to(root)} is not there; {by} it")
            return None
        rows, note = rows_of.curve(made) if kind == "curve" else rows_of.systems(made)
        shown = chosen(rows, file.with_suffix(".json"))
        if shown == rows:
            return markdown(shown) + note + about(file.with_suffix(".json"))
        # A choice may leave out the columns that the note speaks of, but must say what its mIoU is.
        return markdown(shown) + about(file.with_suffix(".json"), "" if kind == "curve" else rows_of.seeds(made, shown))
    if file.is_file():
        with file.open(newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    else:
        known = sorted(
            {EMBEDDED, DEMO, "report/<data set>", "curve/<data set>", *(f.stem for f in file.parent.glob("*.csv"))}
        )
        raise Problem(f"{where}: found the table '{name}'; there are {', '.join(known)}{hint(name, known)}")
    if len({len(row) for row in rows}) != 1:
        raise Problem(f"{file}: it must hold a header, and rows with as many cells")
    return markdown(rows) + about(file.with_suffix(".json"))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table, the header first; columns of numbers lie to the right."""
    header, *body = rows
    columns = list(zip(*body, strict=True)) or [()] * len(header)
    lines = [header, ["---:" if _numbers(column) else "---" for column in columns], *body]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _numbers(column: Sequence[str]) -> bool:
    told = [cell.strip("*") for cell in column if cell not in NOTHING]
    return bool(told) and all(NUMBER.fullmatch(cell) for cell in told)


def chosen(rows: list[list[str]], file: Path) -> list[list[str]]:
    """The rows and columns that the file beside a table asks for; all where it asks for none.

    Raises:
        Problem: it asks for others.
    """
    header, *body = rows
    wanted = {key: [name.strip() for name in text.split(",")] for key, text in _told(file).items()}
    lines = wanted.get(ROWS, [row[0] for row in body])
    columns = wanted.get(COLUMNS, header)
    if odd := [name for name in lines if name not in [row[0] for row in body]] + [
        c for c in columns if c not in header
    ]:
        raise Problem(f"{file}: found '{odd[0]}', which its table has not; there are {', '.join(header)}")
    places = [header.index(column) for column in columns]
    return [[row[place] for place in places] for row in [header, *body] if row is header or row[0] in lines]


def about(file: Path, seeds: str = "") -> str:
    """The line below a table: what made it, by the file beside it, where there is one, and of which seeds it is."""
    told = [form.format(text) for key, form in ABOUT.items() if (text := _told(file).get(key))] + [seeds] * bool(seeds)
    return f"\n{'; '.join(told)}.\n" if told else ""


def _told(file: Path) -> dict[str, str]:
    """What the file beside a table says; nothing where there is none.

    Raises:
        Problem: the file holds anything else.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise Problem(f"{file} is not valid JSON: {error}") from error
    known = {*ABOUT, ROWS, COLUMNS}
    if not (isinstance(content, dict) and content.keys() <= known and all(map(_is_text, content.values()))):
        raise Problem(f"{file}: it must hold texts under {', '.join([*ABOUT, ROWS, COLUMNS])}, and nothing else")
    return content


def _is_text(value: object) -> bool:
    return isinstance(value, str)


if __name__ == "__main__":
    command.start(main)
