"""What a finished system makes of the tags of weak images: a table beside its model, and how good it is.

The truth is read for `quality` alone.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segcore.data.geometry import padded_square, stretched_square
from segcore.data.manifest import Record
from segcore.data.pictures import read_image
from segcore.data.samples import tag_vector
from segcore.files import write_atomically
from segcore.processes import Runtime
from segcore.systems.contract import Inputs, System

TABLE, QUALITY = "cleaned_tags.csv", "tags.json"
BATCH = 16
"""Images at a time; the same ones for any number of processes."""


@dataclass(frozen=True)
class Row:
    """The tags of one image, indices 1..L, as given and as cleaned, and the probability of every class 1..L."""

    image_id: str
    given: tuple[int, ...]
    cleaned: tuple[int, ...]
    probabilities: tuple[float, ...]


def doubted(inputs: Inputs) -> Sequence[Record]:
    """The images that have tags and no mask, with their tags as training saw them."""
    strong = {*inputs.strong}
    return inputs.of([image_id for image_id in inputs.weak if image_id not in strong])


def table(system: System, records: Sequence[Record], n_tags: int, input_size: int, device: Runtime) -> list[Row]:
    """One pass over the images, whole, in the order of the list; under several processes each has all of the rows."""
    square = stretched_square if system.square == "stretch" else padded_square
    system.eval()
    rows: list[Row] = []
    mine = device.shard(records, BATCH)
    for first in range(0, len(mine), BATCH):
        some = mine[first : first + BATCH]
        images = torch.stack([square(read_image(record.image), input_size) for record in some]).float()
        given = torch.stack([tag_vector(record.tags, n_tags) for record in some])
        found = system.clean_tags(images.to(device.device), given.to(device.device))
        for record, tags, probabilities in zip(some, found.tags.cpu(), found.probabilities.cpu(), strict=True):
            cleaned = tuple((tags.nonzero().flatten() + 1).tolist())
            rows.append(Row(record.image_id, record.tags, cleaned, tuple(probabilities.tolist())))
    return device.merge(rows, BATCH)


def write(folder: Path, rows: Sequence[Row], truth: Mapping[str, Record], names: Sequence[str]) -> dict[str, Any]:
    """Write both files into `folder`; gives what `quality` says. `names` are those of all classes."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("image_id", "given", "cleaned", *names[1:]))
    for row in rows:
        given, cleaned = ("|".join(names[tag] for tag in tags) for tags in (row.given, row.cleaned))
        lines.writerow((row.image_id, given, cleaned, *(f"{p:.4f}" for p in row.probabilities)))
    measured = quality(rows, {row.image_id: truth[row.image_id].tags for row in rows})
    write_atomically(folder / TABLE, text.getvalue().encode())
    write_atomically(folder / QUALITY, (json.dumps(measured, indent=2) + "\n").encode())
    return measured


def quality(rows: Sequence[Row], truth: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Precision, recall and F1 over all tags of all images, of those given and of those cleaned, against the true ones.

    None where there is nothing to divide by.
    """
    measured: dict[str, Any] = {"images": len(rows)}
    for which in ("given", "cleaned"):
        pairs = [({*truth[row.image_id]}, {*getattr(row, which)}) for row in rows]
        hits = sum(len(true & found) for true, found in pairs)
        there, told = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
        ratios = {"precision": (hits, told), "recall": (hits, there), "f1": (2 * hits, there + told)}
        measured[which] = {name: round(a / b, 4) if b else None for name, (a, b) in ratios.items()}
    return measured
