"""The card of an exported model: what it is, what it takes and gives, what it was checked by, what it may be used for.

It is `card.json`, for programs; `text` makes `README.md` of it, for people.
"""

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segcore.exporting import beside, licences
from segcore.exporting.agreement import Agreement
from segcore.exporting.graphs import Graph
from segcore.exporting.int8 import Loss
from segcore.prediction.model import Model
from segcore.projects import stamp

FORMAT = 1


def content(
    model: Model,
    folder: Path,
    graph: Graph,
    file: Path,
    tags_at_once: int | None,
    agreement: Agreement,
    loss: Loss | None,
) -> dict[str, Any]:
    """What `card.json` holds."""
    card = model.card
    scores, why_none = beside.scores(folder, card)
    packages = ["torch", *(["onnx", "onnxruntime"] if file.suffix == ".onnx" else [])]
    return {
        "format": FORMAT,
        "file": file.name,
        "bytes": file.stat().st_size,
        "name": model.name,
        "module": card["module"],
        "weights_sha256": card["weights_sha256"],
        "classes": list(model.classes),
        "input": _input(model, graph),
        "output": _output(model, graph),
        "checked": asdict(agreement),
        "int8": None if loss is None else asdict(loss),
        "data_set": beside.data_set(folder),
        "learned_from": beside.learned_from(folder, model.name),
        "scores": scores,
        "no_scores": why_none,
        "trunk": licences.of_trunk(card["origin"]),
        "limits": _limits(model, graph, tags_at_once),
        "versions": {"segcore": stamp()["version"]}
        | {name: importlib.import_module(name).__version__ for name in packages},
    }


def _input(model: Model, graph: Graph) -> dict[str, Any]:
    system = model.system
    if graph.takes_pictures:
        shape: list[Any] = ["height", "width", 3]
        about = "one picture, RGB, 0..255, of any size, turned as a person sees it"
        return {"name": graph.input_name, "dtype": "uint8", "shape": shape, "about": about}
    sides = ["height", "width"] if graph.any_size else [graph.side, graph.side]
    square = (
        "stretched to it, whatever its aspect" if system.square == "stretch" else
        "made square by black below and to the right, then scaled to it"
    )  # fmt: skip
    about = (
        f"pictures, RGB, 0..255, not normalised (the network does that); trained for {graph.side} x {graph.side}, "
        f"each picture {square}, by areas where it shrinks and else bilinear"
    )
    if graph.any_size:
        offset = f" + {system.input_offset}" if system.input_offset else ""
        about += f"; sides must be {system.input_step} k{offset} pixels, {system.smallest_input} at least"
    shape = ["batch" if graph.any_batch else 1, 3, *sides]
    return {"name": graph.input_name, "dtype": "float32", "shape": shape, "about": about}


def _output(model: Model, graph: Graph) -> dict[str, Any]:
    classes = len(model.classes)
    sides: list[Any] = ["height", "width"] if graph.any_size else [graph.side, graph.side]
    if graph.takes_pictures:
        about = f"the class of each pixel, 0..{classes - 1}, by their order in `classes`"
        return {"name": graph.output_name, "dtype": "uint8", "shape": sides, "about": about}
    about = "a score of each class at each pixel of the input, background first; the greatest wins"
    about += "" if model.system.scores_are_probabilities else "; a softmax over the classes makes probabilities of them"
    shape = ["batch" if graph.any_batch else 1, classes, *sides]
    return {"name": graph.output_name, "dtype": "float32", "shape": shape, "about": about}


def _limits(model: Model, graph: Graph, tags_at_once: int | None) -> list[str]:
    system, views = model.system, model.views
    limits = [f"It knows {len(model.classes) - 1} classes, and calls everything else background."]
    if system.prediction.crf is not None:
        limits.append("`segcore predict` lets a CRF follow the borders of the picture; this file ends before it.")
    if not graph.takes_pictures and (views.flip or list(views.scales) != [1.0]):
        mirrored = " and mirrored pictures" if views.flip else ""
        limits.append(
            f"`segcore predict` takes the mean over scales {list(views.scales)}{mirrored}; this file is one pass."
        )
    if system.proposals:
        limits.append(f"`segcore predict` takes the greatest of {system.proposals} windows; this file scores one.")
    if tags_at_once is not None:
        limits.append(f"At most {tags_at_once} classes are found in one picture, the likeliest ones.")
    if graph.takes_pictures:
        limits.append(f"Memory grows with the picture: {4 * len(model.classes)} bytes a pixel for the scores alone.")
    if graph.why_fixed is not None:
        what = "the size and the batch" if not graph.any_batch else "the size"
        limits.append(f"It is made for {what} above alone, as torch could not trace it for others: {graph.why_fixed}")
    return limits
