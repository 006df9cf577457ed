"""Turn what is known of whole images into labels of their pixels: cues at the grid of a network, and at full size.

Reads the manifest, the class names, a list of the split, its tags and the source: a classifier, whose localisation
maps are merged (Lee et al. 2019, section 3.2), a segmenter, whose predictions are labels to train again on, or
somebody's cues.
Entries that learn from masks, by `calibrate: strong` or a net of boundaries, read those of S.
Writes `cues/` (indexed PNGs of the grid), `labels/` (of the images' own size), `images.txt`, `quality.json` (measured
on the masks where there are any), `calibration.json` (the settings and how they were found), `figure.png` and
`made_of.json`. What is done stays in the scratch folder until all of it is: a run that was killed goes on there.

With `--shard i/n` it labels the i-th of n parts of the images and leaves them in `--shard-folder`; a run without it
takes what all shards have left there, as if it had made it.
"""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from segcore import files, made_of
from segcore.cli import command, console, held, provenance, scratch, shards
from segcore.cli.shards import Members, Piece, Shard, Work
from segcore.config import fingerprints
from segcore.config import plan as plans
from segcore.config.labels import LabelsFromFile, learns_from_masks
from segcore.data import pseudo_labels, seen_tags
from segcore.data.manifest import Record, data_set_fingerprint, listed, read_class_names, read_manifest
from segcore.data.pictures import labels_png, read_image, read_labels, write_png
from segcore.data.records import ids_of
from segcore.evaluation import labelling
from segcore.evaluation.labelling import Extract, Source
from segcore.evaluation.map_labels import CALIBRATION
from segcore.evaluation.quality import Quality
from segcore.models import cards
from segcore.processes import Runtime
from segcore.reporting import panels

FIGURE_ROWS = 6


def main(
    *,
    name: str,
    manifest: Path,
    classes: Path,
    split: Path,
    input: Path,
    out: Path,
    params: Path = Path("params.yaml"),
    shard: str | None = None,
    shard_folder: Path = shards.FOLDER,
) -> None:
    one = None if shard is None else shards.shard(shard)
    plan = plans.extract_pseudo_labels(command.settings(params), name)
    names: list[str] = read_class_names(classes)
    records = read_manifest(manifest)
    ids = listed(split / f"{plan.entry.images}.txt", records)
    seen = seen_tags.as_training_sees(records, ids, split, names)
    chosen = seen.of(ids)
    saliency = labelling.check(chosen, plan.entry)
    lists = dict.fromkeys([split / f"{plan.entry.images}.txt"])
    strong: Sequence[Record] = []
    if learns_from_masks(plan.entry):
        lists[split / "strong.txt"] = None
        strong = records.of(listed(split / "strong.txt", records))
    device = Runtime()
    with provenance.timed(f"extract_pseudo_labels@{name}", out) if one is None else contextlib.nullcontext():
        key = files.fingerprint(
            [name, plans.plain(plan), torch.__version__],
            [
                *(manifest, *lists, split / made_of.TAGS_FILE),
                *(*provenance.files_in(input), *saliency, *provenance.sources()),
            ],
        )
        division = Work(out, shard_folder, key, len(chosen), plan.entry.batch_size)
        ready = division.found() if one is None and device.is_main else []
        merges = any(device.gather(bool(ready)))
        if merges and not device.is_main:
            return
        source = None if merges else labelling.source(plan, input, names, chosen, strong, device)
        if one is not None and source is not None:
            label_shard(one, division, source, chosen, strong, device)
            return
        kept = scratch.FOLDER / f"pseudo-labels-{name}-{key}"
        with held.held(kept, patiently=False) if device.is_main else contextlib.nullcontext():
            for folder in ("cues", "labels"):
                (kept / folder).mkdir(parents=True, exist_ok=True)
            if source is None:
                calibration = merge(division, ready, chosen, kept)
            else:
                calibration = prepared(source, strong, kept)
                work(chosen, source.extract, plan.entry.batch_size, kept, device)
            if device.is_main:
                finish(chosen, names, calibration, kept, out)
        if device.is_main:
            scratch.sweep(kept)
            from_file = isinstance(plan.entry, LabelsFromFile)
            behind = () if from_file else (cards.made_of(input / "model").get("training", ""),)
            origin = {
                "data_set": data_set_fingerprint(records.values(), names),
                "images": files.fingerprint([ids_of(strong), ids] if strong else ids, ()),
                "tags": made_of.tags(split),
                "training": fingerprints.of(plan, *behind),
            }
            made_of.write(out, origin)
            if ready:
                division.clear()


def prepared(source: Source, strong: Sequence[Record], kept: Path) -> dict[str, Any]:
    """Learn and choose what comes before the first label, and say so."""
    if strong:
        console.say(f"learning from the masks of {len(strong)} images")
    calibration = source.prepare(kept)
    if calibration["calibrate"]:
        console.say(calibrated(calibration))
    return calibration


def work(records: Sequence[Record], extract: Extract, batch_size: int, kept: Path, device: Runtime) -> None:
    """Label this process's share of the images, whole batches only: what a batch holds never depends on a restart."""
    mine = device.shard(records, batch_size)
    batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    quiet = not (console.is_main_process() and console.console.is_terminal)
    watched = track(batches, "pseudo-labels", console=console.console, disable=quiet, transient=True)
    for batch in watched:
        if all(file.is_file() for record in batch for file in _files(kept, record)):
            continue
        for record, found in zip(batch, extract(batch), strict=True):
            for file, content in zip(_files(kept, record), found, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomically(file, labels_png(content))
    device.wait()


def label_shard(
    one: Shard, division: Work, source: Source, chosen: Sequence[Record], strong: Sequence[Record], device: Runtime
) -> None:
    """Label the images of one shard; each piece holds by which settings, too."""

    def make(places: Sequence[int]) -> Members:
        members: dict[str, bytes] = {CALIBRATION: _json(calibration)}
        for first in range(0, len(places), division.block):
            batch = [chosen[place] for place in places[first : first + division.block]]
            for record, found in zip(batch, source.extract(batch), strict=True):
                for file, content in zip(_files(Path(), record), found, strict=True):
                    members[file.as_posix()] = labels_png(content)
        return members

    with division.alone(one, device):
        if (left := division.left(one, device)) is not None:
            calibration = prepared(source, strong, division.folder_of(one))
            division.make(one, device, left, make)
        division.tell(one)


def merge(
    division: Work, ready: Sequence[tuple[Path, list[int]]], chosen: Sequence[Record], kept: Path
) -> dict[str, Any]:
    """Put the labels of all shards into `kept`, as `work` would have; gives the settings by which all were made.

    Raises:
        Problem: shards were made by other settings than the first.
    """
    settings = Piece(ready[0][0])[CALIBRATION]
    others = [file for file, _ in ready if Piece(file)[CALIBRATION] != settings]
    if others:
        raise division.again(others, "shards learned other settings from the masks than the first, on other machines")
    for file, places in ready:
        piece = Piece(file)
        for place in places:
            for path in _files(Path(), chosen[place]):
                (kept / path).parent.mkdir(parents=True, exist_ok=True)
                files.write_atomically(kept / path, piece[path.as_posix()])
    return json.loads(settings)


def _files(folder: Path, record: Record) -> tuple[Path, Path]:
    """Where the cues and the labels of an image are."""
    return pseudo_labels.cue_file(folder, record.image_id), pseudo_labels.label_file(folder, record.image_id)


def calibrated(found: dict[str, Any]) -> str:
    """What calibration chose, in a line."""
    chosen, trials = found["chosen"], len(found["tried"])
    rest = {key: value for key, value in chosen["refinement"].items() if key in ("beta", "steps", "confidence")}
    settings = ", ".join(f"{key} {value}" for key, value in rest.items())
    return (
        f"calibrated on {found['images']} masks, {trials} settings: {chosen['aggregation']['kind']} of the maps, "
        f"background below {chosen['theta']}, refinement {chosen['refinement']['kind']}"
        + (f" ({settings})" if settings else "")
        + f"; mean IoU {found['mean_iou']}, on folds apart {found['mean_iou_of_folds_apart']}"
    )


def finish(records: Sequence[Record], names: list[str], calibration: dict[str, Any], kept: Path, out: Path) -> None:
    """Measure, draw, and move everything to its place."""
    quality = Quality(len(names))
    for record in records:
        if record.labels is not None:
            pseudo = read_labels(pseudo_labels.label_file(kept, record.image_id))
            quality.update(read_labels(record.labels), pseudo)
    summary = quality.summary(names)
    files.write_atomically(kept / pseudo_labels.LIST, "".join(f"{r.image_id}\n" for r in records).encode())
    write_png(kept / "figure.png", figure(records, names, kept))
    files.write_atomically(kept / "quality.json", (json.dumps(summary, indent=2) + "\n").encode())
    files.write_atomically(kept / CALIBRATION, _json(calibration))
    out.mkdir(parents=True, exist_ok=True)
    # The list, by which others know the folder, goes first and comes last.
    (out / pseudo_labels.LIST).unlink(missing_ok=True)
    for part in ("cues", "labels", "figure.png", "quality.json", CALIBRATION, pseudo_labels.LIST):
        if (out / part).is_dir():
            shutil.rmtree(out / part)
        shutil.move(kept / part, out / part)  # they may be on different disks
    shutil.rmtree(kept, ignore_errors=True)
    console.say(
        f"pseudo-labels of {len(records)} images in {out}: precision {summary['precision']}, "
        f"recall {summary['recall']}, coverage {summary['coverage']}"
    )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def figure(records: Sequence[Record], names: list[str], folder: Path) -> Image.Image:
    """A few images with masks, spread over the list: image, truth, pseudo-labels, errors."""
    shown = [record for record in records if record.labels is not None] or list(records)
    places = np.linspace(0, len(shown) - 1, min(FIGURE_ROWS, len(shown)))
    pages = []
    for record in (shown[round(place)] for place in places):
        pseudo = read_labels(pseudo_labels.label_file(folder, record.image_id))
        truth = read_labels(record.labels) if record.labels is not None else np.full_like(pseudo, 255)
        picture = read_image(record.image)
        pages.append(panels.panel(picture, truth, pseudo, names, record.image_id, "pseudo-labels"))
    return panels.stacked(pages)


if __name__ == "__main__":
    command.start(main)
