"""`segcore import`: a data set of another tool into a devkit folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from segcore.cli import app, console

NAMED = 20

Item = TypeVar("Item")
Format = Literal["coco", "label-studio", "cvat", "labelme", "folders", "table", "masks"]


def import_(
    format: Annotated[
        Format,
        typer.Argument(
            metavar="FORMAT",
            help="coco (instances or panoptic), label-studio, cvat (images 1.1), labelme, folders (one a tag), "
            "table (CSV, parquet), masks (as pictures; CVAT's segmentation mask 1.1).",
        ),
    ],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The annotation file, or the folder.")],
    into: Annotated[Path, typer.Option(help="The folder to make: `images` in a project of `segcore new`.")],
    images: Annotated[Path | None, typer.Option(help="Where the pictures are, if not beside SOURCE.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Where masks are (masks, panoptic), if not beside SOURCE.")] = None,
    val: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share to measure on, of each tag; copies stay together.")
    ] = 0.1,
    val_list: Annotated[
        Path | None, typer.Option(help="Instead: a file with the images to measure on, one a line.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice by --val.")] = 0,
    colours: Annotated[
        list[str] | None, typer.Option(help="masks: a labelmap.txt, or name=r,g,b for each class.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="masks: the class of each value, a name a line, background first.")
    ] = None,
    object: Annotated[str | None, typer.Option(help="masks: the only class; they hold 0 and 1, or 0 and 255.")] = None,
    image_column: Annotated[str | None, typer.Option(help="table: the column that names pictures.")] = None,
    tags_column: Annotated[str | None, typer.Option(help="table: the column of tags.")] = None,
    bands: Annotated[str | None, typer.Option(help="TIFFs: one or three bands, such as 4,3,2.")] = None,
    range_: Annotated[str | None, typer.Option("--range", help="TIFFs: what is black and white: 0,10000.")] = None,
    empty: Annotated[
        Literal["unlabelled", "background"], typer.Option(help="What pictures without annotations are.")
    ] = "unlabelled",
    copy: Annotated[bool, typer.Option("--copy", help="Copy pictures, instead of hard links.")] = False,
) -> None:
    """Read the annotations of another tool, and make a folder that the pipeline reads.

    What cannot be used is named and left out; then the exit code is 1. The same import again changes nothing.

    \b
    Example:
      segcore import coco instances.json --images photos --into images --val 0.2
    """
    with app.told():
        from segcore.exchange import coco, cvat, devkit, label_studio, labelme, tables
        from segcore.exchange import masks as painted
        from segcore.exchange.rasters import Reading
        from segcore.exchange.reading import understood

        options = devkit.Options(
            source={"format": format, "source": str(source.resolve())},
            val=val,
            val_names=None if val_list is None else _listed(val_list),
            seed=seed,
            copy=copy,
            empty_is_background=empty == "background",
            reading=Reading(_bands(bands), _limits(range_)),
        )
        with understood(source, format):
            match format:
                case "coco":
                    collection = coco.read(source, images, masks)
                case "label-studio":
                    collection = label_studio.read(source, images)
                case "cvat":
                    collection = cvat.read(source, images)
                case "labelme":
                    collection = labelme.read(source, images)
                case "folders":
                    collection = tables.read_folders(source)
                case "table":
                    collection = tables.read_table(source, images, image_column, tags_column)
                case "masks":
                    collection = painted.read(source, images, masks, colours or [], names, object)
        report = devkit.write(collection, into, options, _watched)
        for problem in report.skipped[:NAMED]:
            console.console.print(f"left out: {problem}", markup=False)
        if len(report.skipped) > NAMED:
            console.say(f"... and {len(report.skipped) - NAMED} more")
        for sentence in devkit.sentences(report):
            console.say(sentence)
        changed = f"{report.written} files written" if report.written else "nothing changed"
        console.say(f"{into}: {changed}, {len(report.skipped)} left out")
        if report.skipped:
            raise typer.Exit(app.PARTLY)


def _watched(items: Iterable[Item], total: int) -> Iterable[Item]:
    from rich.progress import track

    quiet = not console.console.is_terminal
    return track(items, "importing", total, console=console.console, disable=quiet, transient=True)


def _listed(file: Path) -> frozenset[str]:
    from segcore.exchange.reading import read_text

    return frozenset(Path(line.strip()).stem for line in read_text(file).splitlines() if line.strip())


def _bands(text: str | None) -> tuple[int, ...] | None:
    from segcore.errors import Problem

    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise Problem(f"--bands: found '{text}'; it must be one or three numbers from 1 by commas, such as 4,3,2")
    return tuple(int(part) for part in parts)


def _limits(text: str | None) -> tuple[float, float] | None:
    from segcore.errors import Problem

    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise Problem(f"--range: found '{text}'; it must be two numbers by a comma, the lower first, such as 0,10000")
    return low, high
