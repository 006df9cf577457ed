"""The data set of `benchmarks.manifest`: a manifest of any length, of the pictures of one shard."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.manifest import BACKBONE, CLASSES, FILES, MASKED, PICTURES
from segcore.config.settings import load
from segcore.data.addresses import Member
from segcore.data.manifest import write_manifest
from segcore.data.pictures import labels_png
from segcore.data.record import Record
from segcore.data.tars import Writer, members
from segcore.models.systems import save_backbone
from tests.tiny import tiny_params


def records(count: int, shard: Path) -> Iterator[Record]:
    """As many records as are asked for, of the pictures of one shard."""
    with shard.open("rb") as file:
        found = {member.name: member for member, _ in members(file)}
    rng = np.random.default_rng(0)
    for number in range(count):
        picture, mask = found[f"{number % PICTURES:04d}.jpg"], found["mask.png"]
        tags = tuple(sorted({*rng.integers(1, CLASSES + 1, 2).tolist()}))
        sha256 = hashlib.sha256(str(number).encode()).hexdigest()
        is_val, is_masked = number % MASKED == 0, number % MASKED < 2
        yield Record(
            image_id=f"picture_{number:08d}",
            image=Member(str(shard), picture.name, picture.offset, picture.size, sha256),
            labels=Member(str(shard), mask.name, mask.offset, mask.size, "0" * 64) if is_masked else None,
            width=64,
            height=64,
            tags=tags,
            split="val" if is_val else "train",
            image_sha256=sha256,
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
    save_backbone(Path("start/model"), BACKBONE, load(Path("params.yaml")).backbones[BACKBONE], {})
