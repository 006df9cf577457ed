"""A model into a folder: the file, checked, and its card. Whole, or not at all."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segcore.data.pictures import read_image
from segcore.errors import Problem
from segcore.exporting import agreement, beside, card, graphs, int8, onnx_file, pt2_file, text
from segcore.exporting.agreement import Agreement
from segcore.exporting.graphs import Graph
from segcore.files import fresh_folder
from segcore.prediction.model import load, model_folder

Format = Literal["onnx", "pt2"]
CARD, README = "card.json", "README.md"


@dataclass(frozen=True)
class Wanted:
    """What is to be written."""

    format: Format
    with_resize: bool
    int8: bool
    tags_at_once: int | None
    images: Sequence[str]
    """Pictures to check with; none takes validation images of the data set that the model lies in."""
    masks: Path | None
    """Masks of these pictures, for what 8 bits cost."""
    how: Path | None
    """As `load` takes it."""


def export_model(path: Path, out: Path, wanted: Wanted) -> dict[str, Any]:
    """Write `model.onnx` or `model.pt2`, and its card, into the folder `out`; gives the card.

    Raises:
        Problem: the system cannot be exported, the file does not agree with it, or `out` holds something else.
    """
    if wanted.int8 and wanted.format != "onnx":
        raise Problem("--int8: found --format pt2; onnxruntime quantises, so it goes with --format onnx")
    if wanted.format == "onnx":
        onnx_file.check_packages()
    _check_place(out)
    model, folder = load(path, device="cpu", how=wanted.how, as_trained=True), model_folder(path)
    pictures = beside.pictures(folder, wanted.images, wanted.masks)
    measurable = [picture for picture in pictures if picture.mask is not None]
    if wanted.int8 and not measurable:
        raise Problem("--int8: what it costs is measured on masks, and these pictures have none; name some by --masks")
    graph = (graphs.of_pictures if wanted.with_resize else graphs.of_network)(model, wanted.tags_at_once)
    some = [read_image(picture.image) for picture in beside.spread(pictures, beside.CHECKED)]
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    try:
        fresh_folder(partial)
        file = partial / f"model.{wanted.format}"
        (onnx_file if wanted.format == "onnx" else pt2_file).write(graph, file)
        run = onnx_file.Session(file) if wanted.format == "onnx" else pt2_file.Loaded(file)
        found: Agreement = agreement.measured(run, graph, model, some, wanted.tags_at_once is not None)
        found.check(f"{out}/{file.name}")
        loss = None
        if wanted.int8:
            pairs = [picture.pair(len(model.classes)) for picture in beside.spread(measurable, beside.MEASURED)]
            loss = _quantised(file, graph, model, run, pairs)
        content = card.content(model, folder, graph, file, wanted.tags_at_once, found, loss)
        (partial / CARD).write_text(json.dumps(content, indent=2) + "\n")
        (partial / README).write_text(text.markdown(content))
        _put(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return content


def _quantised(file: Path, graph: Graph, model: Any, run: agreement.Run, pairs: Sequence[beside.Pair]) -> int8.Loss:
    small = file.with_name(f"{file.stem}.int8{file.suffix}")
    int8.write(file, small)
    return int8.measured((run, onnx_file.Session(small)), (file, small), graph, model, pairs)


def _check_place(out: Path) -> None:
    """See that `out` is free, or holds an export, which is replaced.

    Raises:
        Problem: it holds something else.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise Problem(f"--out: {out} is no folder; name another one")
    if out.is_dir() and any(out.iterdir()) and not (out / CARD).is_file():
        raise Problem(f"--out: {out} holds other things than an export (there is no {CARD}); name another folder")


def _put(partial: Path, out: Path) -> None:
    """The finished folder in its place; one that was there goes once the new one stands."""
    former = partial.with_name(f".{out.absolute().name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if out.exists():
        os.replace(out, former)
    os.replace(partial, out)
    shutil.rmtree(former, ignore_errors=True)
