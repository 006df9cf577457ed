"""What is done in a folder of predictions, and the table of it."""

import csv
import io
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segcore.prediction.listing import Photo

FOLDER = ".journal"


class Journal:
    """What is done in a folder: a line of JSON a picture, in a file for each shard.

    `done` are the pictures among those of this shard, if it names them.
    """

    def __init__(self, out: Path, shard: int, shards: int, among: Container[str] | None = None) -> None:
        self.folder = out / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done = done_in(out, among)
        path = self.folder / f"{shard}-of-{shards}.jsonl"
        torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self.file = path.open("a", encoding="utf-8")
        if torn:
            self.file.write("\n")

    def add(self, row: dict[str, Any]) -> None:
        self.done[row["image"]] = row
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()


def done_in(out: Path, among: Container[str] | None = None) -> dict[str, dict[str, Any]]:
    """By picture, the rows of all shards whose files are there; of some pictures only, if they are named.

    To look for the files of a million pictures takes a shared disk minutes: a shard looks for its own.
    """
    rows = (row for file in sorted((out / FOLDER).glob("*.jsonl")) for row in _rows(file))
    wanted = (row for row in rows if among is None or row["image"] in among)
    return {row["image"]: row for row in wanted if all((out / made).is_file() for made in row["files"])}


def state(out: Path) -> dict[str, int]:
    """How long the journals are: it changes when a shard does a picture."""
    return {file.name: file.stat().st_size for file in (out / FOLDER).glob("*.jsonl")}


def divisions(out: Path) -> set[int]:
    """Into how many shards the work was divided; more than one if it was divided anew."""
    return {int(file.stem.partition("-of-")[2]) for file in (out / FOLDER).glob("*-of-*.jsonl")}


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a kill cut this line off, and its picture is done again
        if isinstance(row, dict) and {"image", "stamp", "files"} <= row.keys():
            yield row


def table_of(photos: Sequence[Photo], done: Mapping[str, dict[str, Any]], classes: Sequence[str]) -> str:
    """A line a picture that is done: found tags, the probability of each tag, the share of pixels of each class."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    header = ["image", "mask", "width", "height", "tags"]
    header += [f"probability:{name}" for name in classes[1:]] + [f"share:{name}" for name in classes]
    lines.writerow(header)
    rows = (done[photo.name] for photo in photos if photo.name in done)
    for row in (row for row in rows if "problem" not in row):
        tags = " ".join(classes[int(index)] for index in row["tags"])
        values = [*row["probabilities"][1:], *row["shares"]]
        lines.writerow([row["image"], row["mask"], row["width"], row["height"], tags, *values])
    return text.getvalue()
