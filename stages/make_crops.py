"""Choose the boxes that segmenters are trained on: many for every label subset of every strong image.

Reads the manifest, the class names and `strong.txt` of the split; writes `crops.parquet` (a row a whole image or a
crop, boxes only), `crops.json` (counts), `figure.png` and `made_of.json` (Hong et al. 2015, section 5). Nothing
depends on the number of workers or processes.
"""

import functools
import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from rich.progress import track

from segcore import made_of
from segcore.cli import command, console, provenance
from segcore.config import fingerprints, plan
from segcore.config.data import CropsParams
from segcore.data import kept_shards
from segcore.data.addresses import is_there
from segcore.data.crops import ImageCrops, image_crops, index
from segcore.data.manifest import Record, data_set_fingerprint, read_class_names, read_ids, read_manifest
from segcore.data.pictures import read_image, read_labels
from segcore.errors import Problem, Problems
from segcore.files import fingerprint, write_atomically
from segcore.processes import Runtime
from segcore.reporting import crop_figure

FEW = 64
"""Images below which starting workers takes longer than the work."""

MOST_WORKERS = 16
MOST_CROPS = 50_000_000
"""Boxes that fit into some GB of memory."""

SECONDS_BETWEEN_LINES = 15
NAMED = 10
FIGURE_ROWS = 4


def main(*, manifest: Path, classes: Path, split: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    settings = plan.make_crops(command.settings(params))
    if missing := [
        f"{file}: there is no such file" for file in (manifest, classes, split / "strong.txt") if not file.is_file()
    ]:
        raise Problems("make_crops needs what `dvc repro split` makes:", missing)
    names: list[str] = read_class_names(classes)
    records = _strong_records(manifest, split / "strong.txt")
    _check_number(records, settings.crops)
    processes = Runtime()
    with provenance.timed("make_crops", out):
        mine = list(_computed(processes.shard(records), settings.crops, settings.seed, processes.world))
        images = sorted((image for part in processes.gather(mine) for image in part), key=lambda image: image.image_id)
        if records and not any(image.subsets for image in images):
            raise Problem(f"no mask of {split / 'strong.txt'} holds an object; crops need at least one")
        if not processes.is_main:
            return
        _warn(images, settings.crops.max_subsets)
        out.mkdir(parents=True, exist_ok=True)
        table = io.BytesIO()
        pq.write_table(index(images), table, write_page_checksum=True)
        write_atomically(out / "crops.parquet", table.getvalue())
        counts = json.dumps(_counts(images, names), indent=2, ensure_ascii=False)
        write_atomically(out / "crops.json", f"{counts}\n".encode())
        examples = _examples(images, {record.image_id: record for record in records})
        if not records:
            console.say("no strong images, so there are no crops")
        origin = {
            "data_set": data_set_fingerprint(read_manifest(manifest).values(), names),
            "images": fingerprint(read_ids(split / "strong.txt"), ()),
            "training": fingerprints.of(settings),
        }
        made_of.write(out, origin)
        write_atomically(out / "figure.png", crop_figure.draw(examples, names, settings.crops.warp))
        console.say(
            f"{sum(_size(image) for image in images):,} crops of {len(images)} strong images, and these, in {out}"
        )


def _strong_records(manifest: Path, strong: Path) -> list[Record]:
    """The strong images by id, each checked, so that no worker meets one that it cannot use."""
    known = read_manifest(manifest)
    ids = sorted(set(read_ids(strong, made_by="split")))
    problems = [f"{image_id}: not in {manifest}" for image_id in ids if image_id not in known]
    records = [known[image_id] for image_id in ids if image_id in known]
    for record in records:
        if record.split != "train":
            problems.append(f"{record.image_id}: is a validation image, which is never trained on")
        if record.labels is None:
            problems.append(f"{record.image_id}: has no labels")
        files = [file for file in (record.image, record.labels) if file is not None]
        problems += [f"{record.image_id}: {file} is gone" for file in files if not is_there(file)]
    if problems:
        raise Problems(f"{strong} names images that crops cannot be made of (run `dvc repro split`):", problems)
    return records


def _computed(records: Sequence[Record], params: CropsParams, seed: int, world: int) -> Iterator[ImageCrops]:
    compute = functools.partial(image_crops, params=params, seed=seed)
    workers = min((os.cpu_count() or 1) // world, MOST_WORKERS)
    if len(records) < FEW or workers < 2:
        _one_thread()
        yield from _watched(map(compute, records), len(records))
        return
    # Spawned, as OpenCV and torch hold threads that a forked child would miss.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(kept_shards.in_use(),)) as pool:
        yield from _watched(pool.map(compute, records, chunksize=4), len(records))


def _begin(cache: kept_shards.Cache | None) -> None:
    kept_shards.use(cache)
    _one_thread()


def _one_thread() -> None:
    cv2.setNumThreads(1)  # images run side by side already


def _watched(images: Iterator[ImageCrops], total: int) -> Iterator[ImageCrops]:
    """A bar on a terminal, a line now and then elsewhere."""
    if sys.stdout.isatty() and console.is_main_process():
        yield from track(images, "crops", total=total, console=console.console)
        return
    begin = last = time.monotonic()
    for done, image in enumerate(images, start=1):
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            rate = done / (last - begin)
            console.say(f"crops: {done}/{total} images, {rate:.1f} images/s, {(total - done) / rate / 60:.1f} min left")
        yield image


def _check_number(records: Sequence[Record], params: CropsParams) -> None:
    """Refuse a number of crops that no machine holds, before hours of work."""
    subsets = sum(min(2 ** len(record.label_classes or ()) - 1, params.max_subsets) for record in records)
    if (crops := subsets * params.per_subset) > MOST_CROPS:
        raise Problem(
            f"crops.per_subset {params.per_subset:,} for {subsets:,} label subsets of {len(records):,} strong images "
            f"makes {crops:,} crops; allowed are {MOST_CROPS:,} (published: 290,570): set it or crops.max_subsets lower"
        )


def _warn(images: Sequence[ImageCrops], most: int) -> None:
    def listed(names: list[str]) -> str:
        return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

    if capped := [f"{image.image_id} ({image.possible})" for image in images if image.possible > len(image.subsets)]:
        console.say(f"warning: crops.max_subsets keeps {most} of the label subsets of {listed(capped)}")
    if empty := [image.image_id for image in images if not image.subsets]:
        console.say(f"warning: no crops of {listed(empty)}, the whole image alone: the mask holds no object")


def _size(image: ImageCrops) -> int:
    return image.boxes.shape[0] * image.boxes.shape[1]


def _counts(images: Sequence[ImageCrops], names: Sequence[str]) -> dict[str, Any]:
    """What was made, and how well proposals do: the share of tight boxes that one meets with an IoU of 0.5 or 0.7."""
    if not images:
        return {"strong_images": 0, "crops": 0}
    crops = sum(_size(image) for image in images)
    nearest = np.array([iou for image in images for iou in image.nearest_iou])
    by_class: dict[str, dict[str, int]] = {}
    for label, name in enumerate(names[1:], start=1):
        shown = [image for image in images if label in image.classes]
        subsets = sum(label in subset for image in shown for subset in image.subsets)
        per_subset = images[0].boxes.shape[1]
        by_class[name] = {"images": len(shown), "subsets": subsets, "crops": subsets * per_subset}
    return {
        "strong_images": len(images),
        "whole_images": len(images),
        "images_without_objects": sum(not image.subsets for image in images),
        "subsets": sum(len(image.subsets) for image in images),
        "crops": crops,
        "share_of_proposals": round(sum(sum(image.proposed) for image in images) / crops, 4),
        "tight_boxes_proposed_at_iou_50": round(float((nearest >= 0.5).mean()), 4),
        "tight_boxes_proposed_at_iou_70": round(float((nearest >= 0.7).mean()), 4),
        "capped_images": {i.image_id: i.possible for i in images if i.possible > len(i.subsets)},
        "by_class": by_class,
    }


def _examples(images: Sequence[ImageCrops], records: dict[str, Record]) -> list[crop_figure.Example]:
    """Rows for the figure: half of them subsets of images with several classes, one class first, then all."""
    several = _spread([image for image in images if len(image.classes) > 1], FIGURE_ROWS // 2)
    single = _spread([image for image in images if len(image.classes) == 1], FIGURE_ROWS - len(several))
    rows = [(image, 0 if number % 2 == 0 else len(image.subsets) - 1) for number, image in enumerate(several)]
    rows += [(image, 0) for image in single]
    examples = []
    for image, place in rows:
        record = records[image.image_id]
        assert record.labels is not None
        picture, labels = read_image(record.image), read_labels(record.labels)
        proposed = image.proposed[place]
        subset, boxes = image.subsets[place], image.boxes[place]
        examples.append(crop_figure.Example(image.image_id, picture, labels, subset, boxes, proposed))
    return examples


def _spread(images: list[ImageCrops], most: int) -> list[ImageCrops]:
    places = np.linspace(0, len(images) - 1, min(most, len(images)))
    return [images[round(place)] for place in places]


if __name__ == "__main__":
    command.start(main)
