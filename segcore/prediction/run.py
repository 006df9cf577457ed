"""Many pictures into a folder: masks, a table, and on demand overlays and maps of confidence.

Pictures are read, and what scores mean is found and written, by threads while the network computes. A batch always
holds the same pictures, whatever was done before and however the work is shared out, as a network may round otherwise
in another batch. Each result is a line of a journal once its files are there, so that a run which was stopped goes on.
"""

import io
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segcore.data.pictures import labels_png, read_image, voc_palette
from segcore.errors import Problem
from segcore.evaluation.score_maps import ScoreMaps
from segcore.files import write_atomically
from segcore.prediction.journal import Journal, done_in, table_of
from segcore.prediction.listing import Photo
from segcore.prediction.model import Model, Pixels

CARD, TABLE = "predictions.json", "predictions.csv"
AHEAD = 2
"""Batches that are read, or written, while another is computed."""

OPACITY = 0.5


@dataclass(frozen=True)
class Wanted:
    """What is written beside masks and the table, and how the work is done."""

    overlay: bool
    confidence: bool
    batch_size: int
    shard: int
    shards: int
    tags: Mapping[str, Sequence[int]] | None
    """Classes 1..L that a picture may show, by its name without ending; None where all may."""


@dataclass(frozen=True)
class Outcome:
    """What became of one picture."""

    photo: Photo
    problem: str | None
    """Why it was left out; None where it is done."""
    repeated: bool
    """Done by a run before this one."""


def predict_folder(
    model: Model, weights: Path, photos: Sequence[Photo], out: Path, wanted: Wanted
) -> Iterator[Outcome]:
    """Predict this shard's pictures, with an outcome for each, in order of the batches.

    Raises:
        Problem: the folder holds predictions of another model, or of other options.
    """
    _claim(model, weights, out, wanted)
    journal = Journal(out, wanted.shard, wanted.shards)
    batches = [photos[first : first + wanted.batch_size] for first in range(0, len(photos), wanted.batch_size)]
    mine = batches[wanted.shard :: wanted.shards]
    workers = max(2, min(8, os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
        reading: deque[tuple[Sequence[Photo], list[Future[Pixels | str]] | None]] = deque()
        writing: deque[list[tuple[Photo, Future[dict[str, Any]] | str]]] = deque()
        for place in range(len(mine) + AHEAD):
            if place < len(mine):
                fresh = any(not _is_done(photo, journal, wanted) for photo in mine[place])
                reading.append((mine[place], [readers.submit(_read, p) for p in mine[place]] if fresh else None))
            if place < AHEAD:
                continue
            batch, reads = reading.popleft()
            if reads is None:
                yield from (Outcome(photo, journal.done[photo.name].get("problem"), True) for photo in batch)
                continue
            pixels = [read.result() for read in reads]
            writing.append(_predicted(model, batch, pixels, out, wanted, writers))
            if len(writing) > AHEAD:
                yield from _recorded(writing.popleft(), journal)
        while writing:
            yield from _recorded(writing.popleft(), journal)
    journal.file.close()
    # Other shards may have gone on meanwhile: the last one to end writes the table of all.
    table = table_of(photos, done_in(out), model.classes)
    _write_shared(out / TABLE, table.encode(), wanted)


def _claim(model: Model, weights: Path, out: Path, wanted: Wanted) -> None:
    """Say in the folder whose predictions it holds."""
    card = {
        "model": model.name,
        "classes": list(model.classes),
        "fingerprint": model.fingerprint(weights),
        "limited_to_tags": wanted.tags is not None,
        "batch_size": wanted.batch_size,
    }
    text = json.dumps(card, indent=2) + "\n"
    file = out / CARD
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        _write_shared(file, text.encode(), wanted)
    elif file.read_text() != text:
        raise Problem(f"{out} holds predictions of another model or with other options ({file}); name another folder")


def _write_shared(path: Path, content: bytes, wanted: Wanted) -> None:
    """Write a file that other shards may be writing at the same moment."""
    own = path.with_name(f".{path.name}.{wanted.shard}-of-{wanted.shards}")
    write_atomically(own, content)
    os.replace(own, path)


def _stamp(path: Path) -> list[int]:
    """By what a file is known to be the same; of one that is gone, nothing."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _is_done(photo: Photo, journal: Journal, wanted: Wanted) -> bool:
    row = journal.done.get(photo.name)
    if row is None or not ("problem" in row or {*_files(photo, wanted).values()} <= {*row["files"]}):
        return False
    return row["stamp"] == _stamp(photo.path)


def _files(photo: Photo, wanted: Wanted) -> dict[str, str]:
    """The files of a picture, by kind, from the folder of the predictions."""
    kinds = {"masks": ".png"}
    kinds |= {"overlays": ".jpg"} if wanted.overlay else {}
    kinds |= {"confidence": ".png"} if wanted.confidence else {}
    return {kind: f"{kind}/{photo.out}{ending}" for kind, ending in kinds.items()}


def _read(photo: Photo) -> Pixels | str:
    try:
        return read_image(photo.path)
    except Problem as problem:
        return str(problem).split("; mend it")[0]


def _predicted(
    model: Model,
    batch: Sequence[Photo],
    pixels: Sequence[Pixels | str],
    out: Path,
    wanted: Wanted,
    writers: ThreadPoolExecutor,
) -> list[tuple[Photo, Future[dict[str, Any]] | str]]:
    """Each picture of the batch with its row to come, or with what is wrong with it."""
    good = [(photo, p) for photo, p in zip(batch, pixels, strict=True) if not isinstance(p, str)]
    rows: dict[Photo, Future[dict[str, Any]] | str] = {
        photo: p for photo, p in zip(batch, pixels, strict=True) if isinstance(p, str)
    }
    for (photo, picture), scores in zip(good, model.scores([picture for _, picture in good]), strict=True):
        future = writers.submit(_written, model, photo, picture, scores, out, wanted)
        if not scores.small:
            wait([future])  # the scores of many large pictures at once would fill the memory
        rows[photo] = future
    return [(photo, rows[photo]) for photo in batch]


def _recorded(rows: Sequence[tuple[Photo, Future[dict[str, Any]] | str]], journal: Journal) -> Iterator[Outcome]:
    for photo, row in rows:
        if isinstance(row, str):
            journal.add({"image": photo.name, "stamp": _stamp(photo.path), "files": [], "problem": row})
            yield Outcome(photo, row, False)
        else:
            journal.add(row.result())
            yield Outcome(photo, None, False)


def _written(
    model: Model, photo: Photo, picture: Pixels, scores: ScoreMaps, out: Path, wanted: Wanted
) -> dict[str, Any]:
    """Write the files of one picture; its row."""
    allowed = None if wanted.tags is None else wanted.tags.get(Path(photo.name).stem)
    said = model.said(scores, picture, allowed, wanted.confidence)
    files = _files(photo, wanted)
    contents = {"masks": labels_png(said.labels)}
    if wanted.overlay:
        contents["overlays"] = overlay_jpeg(picture, said.labels)
    if said.confidence is not None:
        contents["confidence"] = _encoded(Image.fromarray(said.confidence), "PNG")
    for kind, content in contents.items():
        file = out / files[kind]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
    found = [index for index in range(1, len(model.classes)) if said.shares[index] > 0]
    return {
        "image": photo.name,
        "path": str(photo.path),
        "stamp": _stamp(photo.path),
        "files": list(files.values()),
        "mask": files["masks"],
        "width": int(said.labels.shape[1]),
        "height": int(said.labels.shape[0]),
        "tags": found,
        "probabilities": [round(float(value), 4) for value in said.probabilities],
        "shares": [round(float(value), 6) for value in said.shares],
    }


def overlay_jpeg(picture: Pixels, labels: UInt8[np.ndarray, "H W"]) -> bytes:
    """The picture with every found object in the colour of its class, half transparent."""
    mixed = picture.copy()
    shown = labels > 0
    mixed[shown] = (picture[shown] * (1 - OPACITY) + voc_palette()[labels[shown]] * OPACITY).astype(np.uint8)
    return _encoded(Image.fromarray(mixed), "JPEG")


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, quality=90)
    return file.getvalue()
