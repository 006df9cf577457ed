"""`segcore next`: which images to annotate next."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from segcore.cli import app, console

if TYPE_CHECKING:
    from segcore.acquisition.choice import Chosen
    from segcore.acquisition.looking import Looker
    from segcore.acquisition.pool import Pool
    from segcore.data.manifest import Record

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def next_(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="data/<data set>/segmenters/<system> of a project.")],
    budget: Annotated[str, typer.Option(help="A person's time, such as 30m, 2h or 90s.")],
    out: Annotated[Path, typer.Option(help="Where the list, the contact sheet and the tasks go.")],
    kind: Annotated[
        Literal["masks", "tags"], typer.Option(help="Images to outline, or images to tag that have no tags yet.")
    ] = "masks",
    tag_seconds: Annotated[float, typer.Option(min=0.1, help="What the tags of an image take.")] = 20.0,
    mask_seconds: Annotated[float, typer.Option(min=0.1, help="What all masks of an image take.")] = 239.7,
    prefix: Annotated[
        str, typer.Option(help="Label Studio: what comes before the names of pictures, so that it finds them.")
    ] = "/data/local-files/?d=",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; a GPU if there is one.")] = None,
) -> None:
    """Which images to outline or tag next: the model is unsure of them, and their classes are known from few images.

    Writes next.csv (the most worthwhile first), sheet.png, and what the model would label as pre-annotations:
    label-studio.json with label-studio.xml, and cvat.xml. `make curve` says which of the two kinds is worth more.

    \b
    Example:
      segcore next data/own/segmenters/deeplab --budget 30m --out next
    """
    with app.told():
        from segcore.acquisition.choice import Candidate, Cost, Known, choose
        from segcore.acquisition.looking import Looker
        from segcore.acquisition.pool import pool
        from segcore.data.pictures import read_image
        from segcore.errors import Problem
        from segcore.prediction.model import load, model_folder

        seconds, cost = seconds_of(budget), Cost(tag_seconds, mask_seconds)
        data = model_folder(model).resolve().parents[2]
        images = pool(data, kind)
        looker = Looker(load(model, device=device))
        if [*looker.model.classes] != images.classes:
            raise Problem(f"{model} was trained for other classes than {data} has; train it again")
        known = [
            Known(images.shown(record), looker(read_image(record.image), record.tags or None).features)
            for record in watched(images.known, "known images")
        ]
        candidates = []
        for record in watched(images.wanting, "images to choose from"):
            seen = looker(read_image(record.image), record.tags or None)
            price = cost.of(kind, bool(record.tags))
            candidates.append(Candidate(record.image_id, seen.uncertainty, price, seen.features, seen.classes))
        chosen = choose(candidates, known, seconds)
        if not chosen:
            least = min(candidate.seconds for candidate in candidates)
            raise Problem(f"--budget: found {budget}, but one image takes {least:.0f} seconds; give more")
        write(out, chosen, images, looker, prefix)
        spent = sum(one.candidate.seconds for one in chosen)
        console.say(f"{len(chosen)} of {len(candidates)} images, {spent / 60:.0f} minutes: {out / 'next.csv'}")


def seconds_of(budget: str) -> float:
    """The seconds of a text such as 30m.

    Raises:
        Problem: it is no time.
    """
    from segcore.errors import Problem

    number, unit = budget[:-1], budget[-1:]
    try:
        seconds = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise Problem(f"--budget: found '{budget}'; it must be a time such as 30m, 1.5h or 90s")
    return seconds


def watched(records: "list[Record]", what: str) -> "Iterator[Record]":
    """The records, with a bar where a person looks on."""
    from rich.progress import track

    quiet = not console.console.is_terminal
    yield from track(records, what, console=console.console, disable=quiet, transient=True)


def write(out: Path, chosen: "list[Chosen]", images: "Pool", looker: "Looker", prefix: str) -> None:
    """The list, the sheet and the tasks; each picture is predicted once more rather than all kept in memory."""
    import csv
    import io
    import json

    from segcore.acquisition import sheet
    from segcore.data.addresses import text_of
    from segcore.data.pictures import read_image, write_png
    from segcore.exchange import clean, cvat, label_studio
    from segcore.exchange.collection import Item
    from segcore.files import as_cell, write_atomically

    out.mkdir(parents=True, exist_ok=True)
    records = {record.image_id: record for record in images.wanting}
    classes = [clean(name) for name in images.classes]
    items: list[Item] = []
    tiles: list[sheet.Tile] = []
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(["rank", "image_id", "image", "tags", "seconds", "uncertainty", "rarity", "distance"])
    for rank, one in enumerate(chosen, start=1):
        candidate, record = one.candidate, records[one.candidate.image_id]
        picture = read_image(record.image)
        labels = looker(picture, record.tags or None).labels
        names = [classes[tag] for tag in record.tags]
        tags = "|".join(as_cell(name) for name in names)
        worth = (f"{number:.4f}" for number in (candidate.uncertainty, one.rarity, one.distance))
        lines.writerow(
            [rank, as_cell(record.image_id), as_cell(text_of(record.image)), tags, f"{candidate.seconds:.1f}", *worth]
        )
        found = frozenset(names) or frozenset(classes[k] for k in {*labels.ravel().tolist()} if k)
        items.append(
            Item(
                record.image.name, record.width, record.height, found,
                lambda labels=labels: labels, round(1 - candidate.uncertainty, 4),
            )
        )  # fmt: skip
        if rank <= sheet.MOST:
            title, note = (
                f"{rank}. {record.image_id}",
                f"unsure {candidate.uncertainty:.2f}, rare {one.rarity:.2f}, new {one.distance:.2f}",
            )
            tiles.append(sheet.Tile(picture, labels, title, note))
    write_png(out / "sheet.png", sheet.drawn(tiles))
    tasks = label_studio.write(items, classes[1:], prefix, looker.model.name)
    texts = {
        "label-studio.json": json.dumps(tasks),
        "label-studio.xml": label_studio.config(classes[1:]),
        "cvat.xml": cvat.write(items, classes[1:]),
        "next.csv": table.getvalue(),
    }
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
