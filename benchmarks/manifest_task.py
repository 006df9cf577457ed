"""One task of `benchmarks.manifest` in its own process: `python -m benchmarks.manifest_task TASK IMAGES FOLDER`."""

import contextlib
import io
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.manifest import CLASSES, CLASSIFIER, FILES, MASKED, PICTURES, SYSTEM
from segcore.config import plan as plans
from segcore.config.reading import section
from segcore.config.settings import load
from segcore.data.addresses import Member
from segcore.data.batches import Samples, Stream
from segcore.data.manifest import read_class_names, write_manifest
from segcore.data.order import Order
from segcore.data.pictures import labels_png
from segcore.data.record import Record
from segcore.data.tars import Writer, members
from segcore.systems import load as module_of
from stages import split, train_classifier, train_segmenter
from tests.tiny import tiny_params


class Opened(Exception):
    """The first batch of a training is there."""


def records(count: int, shard: Path) -> Iterator[Record]:
    """As many records as are asked for, of the pictures of one shard."""
    with shard.open("rb") as file:
        found = {member.name: member for member, _ in members(file)}
    rng = np.random.default_rng(0)
    for number in range(count):
        picture, mask = found[f"{number % PICTURES:04d}.jpg"], found["mask.png"]
        tags = tuple(sorted({*rng.integers(1, CLASSES + 1, 2).tolist()}))
        is_val, is_masked = number % MASKED == 0, number % MASKED < 2
        yield Record(
            image_id=f"picture_{number:08d}",
            image=Member(str(shard), picture.name, picture.offset, picture.size, f"{number:064x}"),
            labels=Member(str(shard), mask.name, mask.offset, mask.size, "0" * 64) if is_masked else None,
            width=64,
            height=64,
            tags=tags,
            split="val" if is_val else "train",
            image_sha256=f"{number:064x}",
            labels_sha256="0" * 64 if is_masked else None,
            label_classes=tags if is_masked else None,
        )


def draw(shard: Path) -> None:
    """A thousand small pictures and a mask."""
    rng = np.random.default_rng(0)
    with shard.open("wb") as file:
        tar = Writer(file)
        for number in range(PICTURES):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "JPEG")
            tar.add(f"{number:04d}.jpg", io.BytesIO(content.getvalue()), len(content.getvalue()))
        mask = labels_png(np.ones((64, 64), dtype=np.uint8))
        tar.add("mask.png", io.BytesIO(mask), len(mask))
        tar.close()


def write(count: int) -> None:
    """What `prepare` does with records that it has made."""
    draw(Path("train-00000.tar"))
    Path("data").mkdir()
    FILES["classes"].write_text(json.dumps(["background", *(f"class_{i}" for i in range(1, CLASSES + 1))]))
    write_manifest(FILES["manifest"], records(count, Path("train-00000.tar")))
    tiny_params(Path("params.yaml"), **{"split.strong": {"kind": "all"}})


def first_batch(samples: Samples, batch_size: int) -> None:
    """Read the first batch, and end as if training began."""
    batch = next(Stream(samples, Order.of(samples, batch_size, 1, seed=0), workers=0).steps(0, 1))[0]
    print(f"{len(samples):,} samples, the first batch is of {batch.ids[0]}")
    raise Opened


def open_classifier() -> None:
    """The stage, until its loop would begin."""

    class NoFit:
        def __init__(self, model: Any, samples: Samples, recipe: Any, *others: Any) -> None:
            first_batch(samples, recipe.batch_size)

    train_classifier.Fit = NoFit  # type: ignore[misc, assignment]
    train_classifier.main(**FILES, name=CLASSIFIER, split=Path("split"), out=Path("classifier"))


def open_segmenter() -> None:
    """Samples of a system that learns from masks and from the tags of all images."""
    plan = plans.train_segmenter(load(Path("params.yaml")), SYSTEM)
    module = module_of(plan.entry.module)
    training = section({"systems": {SYSTEM: plan.entry.model_dump()}}, f"systems.{SYSTEM}.training", module.Training)
    names = read_class_names(FILES["classes"])
    inputs = train_segmenter.inputs_of(plan, FILES["manifest"], names, Path("split"), Path("masks"))
    first_batch(module.samples(training, inputs), plan.recipe.batch_size)


def main() -> None:
    task, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    os.chdir(folder)
    match task:
        case "write":
            write(count)
        case "split":
            split.main(**FILES, out=Path("split"), masks=Path("masks"))
        case "train_classifier" | "train_segmenter":
            with contextlib.suppress(Opened):
                open_classifier() if task == "train_classifier" else open_segmenter()
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


if __name__ == "__main__":
    main()
