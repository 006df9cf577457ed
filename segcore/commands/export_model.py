"""`segcore export-model`: a trained model as one file for other runtimes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from segcore.cli import app, console


def export_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="data/<data set>/segmenters/<system>")],
    out: Annotated[Path, typer.Option(help="The folder for the file and its card; an export there is replaced.")],
    format: Annotated[Literal["onnx", "pt2"], typer.Option(help="onnx, or torch's own pt2.")] = "onnx",
    with_resize: Annotated[
        bool,
        typer.Option("--with-resize", help="From a picture of any size to labels of its size, all in the graph."),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: also with 8-bit weights; what they cost in mIoU is measured.")
    ] = False,
    tags_at_once: Annotated[
        int | None, typer.Option(help="decouplednet: run that many of the likeliest tags, not all: faster.")
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option(help="Pictures to check with, instead of validation images of the data set.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Masks of these pictures by their names, for --int8.")] = None,
    how: Annotated[
        Path | None, typer.Option(help="JSON with the key prediction, for a model outside of its project.")
    ] = None,
) -> None:
    """A model that other programs run: ONNX or pt2, checked against the model on real pictures, with a card.

    Without --with-resize it is the bare network: float32 RGB in 0..255, (batch, 3, height, width), to scores. card.json
    and README.md say exactly what goes in and what comes out. An export that does not agree with its model (the same
    class at 99.9 % of the pixels, scores to 0.001) is not kept.

    \b
    Examples:
      segcore export-model data/own/segmenters/deeplab --out exported
      segcore export-model data/own/segmenters/deeplab --out exported --with-resize --int8
      segcore export-model data/own/segmenters/decouplednet --out exported --format pt2 --tags-at-once 5
    """
    with app.told():
        from segcore.exporting import run

        wanted = run.Wanted(format, with_resize, int8, tags_at_once, images or [], masks, how)
        card = run.export_model(model, out, wanted)
        checked, loss, taken = card["checked"], card["int8"], card["input"]
        scores = "" if checked["scores"] is None else f", scores within {checked['scores']:.1e}"
        console.say(
            f"{out / card['file']}: {card['bytes'] / 1e6:.1f} MB; takes {taken['dtype']} "
            f"{' x '.join(map(str, taken['shape']))}; on {checked['pictures']} pictures the same class at "
            f"{checked['same_labels']:.4%} of the pixels{scores}; {checked['milliseconds']} ms (torch: "
            f"{checked['torch_milliseconds']} ms)"
        )
        if loss is not None:
            console.say(
                f"8 bits: mIoU {loss['mean_iou_int8']} instead of {loss['mean_iou']} on {loss['pictures']} pictures, "
                f"{loss['bytes_int8'] / 1e6:.1f} MB, {loss['milliseconds_int8']} ms"
            )
        for limit in card["limits"][1:]:
            console.say(limit)
