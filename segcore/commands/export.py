"""`segcore export`: a data set, or predictions, as files of other tools."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from segcore.cli import app, console

Format = Literal["coco", "label-studio", "cvat"]


def export(
    format: Annotated[Format, typer.Argument(metavar="FORMAT", help="coco, label-studio or cvat (images 1.1).")],
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A folder of `segcore import` or of `segcore predict`.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    prefix: Annotated[
        str, typer.Option(help="label-studio: what comes before the names of pictures, so that it finds them.")
    ] = "/data/local-files/?d=",
) -> None:
    """Write annotations, or predictions to be corrected, for another tool.

    For Label Studio predictions become pre-annotations; the labelling interface is written beside the tasks, as
    OUT with the ending .xml.

    \b
    Example:
      segcore export label-studio predicted --out tasks.json
    """
    with app.told():
        import json

        from segcore.exchange import coco, collection, cvat, label_studio
        from segcore.files import write_atomically

        found = collection.of(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        if format == "coco":
            text = json.dumps(coco.write(found.items, found.classes))
        elif format == "cvat":
            text = cvat.write(found.items, found.classes)
        else:
            text = json.dumps(label_studio.write(found.items, found.classes, prefix, found.model))
            write_atomically(out.with_suffix(".xml"), label_studio.config(found.classes).encode())
        write_atomically(out, text.encode())
        what = "annotated pictures" if found.model is None else f"predictions of {found.model}"
        console.say(f"{out}: {len(found.items)} {what}")
