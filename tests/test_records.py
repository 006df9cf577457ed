"""Lists of records are columns: they hold what was written, in little memory, and so does what trains on them."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from segcore.data.addresses import Member
from segcore.data.manifest import read_manifest, write_manifest
from segcore.data.record import Record
from segcore.data.records import Records
from tests.devkit import PARAMS, PROJECT

COUNT = 6000
"""More than are made at once."""


def made(count: int = COUNT, masked: int = 3) -> list[Record]:
    """Records in shards, each n-th of which has a mask, as a file of its own here and there."""
    records = []
    for number in range(count):
        tags = (1 + number % 7,)
        record = Record(
            image_id=f"picture_{number:08d}",
            image=Member(f"train-{number % 5}.tar", f"{number:05d}.jpg", 512 + number, 1000 + number, f"{number:064x}"),
            labels=None,
            width=64,
            height=48,
            tags=tags,
            split="val" if number % 10 == 0 else "train",
            image_sha256=f"{number:064x}",
            labels_sha256=None,
            label_classes=None,
        )
        if number % masked == 0:
            mask = Member("masks.tar", f"{number:05d}.png", 512 + number, 100, f"{number + 1:064x}")
            labels = Path(f"files/{number:05d}.png") if number % 2 else mask
            record = replace(record, labels=labels, labels_sha256=f"{number + 1:064x}", label_classes=tags)
        records.append(record)
    return records


def read(records: list[Record], folder: Path) -> Records:
    write_manifest(folder / "manifest.parquet", records)
    return read_manifest(folder / "manifest.parquet")


@pytest.mark.parametrize("masked", [1, 3, 2 * COUNT])
def test_records_are_what_was_written(tmp_path: Path, masked: int) -> None:
    records = made(masked=masked)[1:]  # with a mask all, some and none
    found = read(records, tmp_path)
    assert [*found.values()] == records
    assert [*found] == [record.image_id for record in records]
    backwards = records[::-1]
    rows = found.of([record.image_id for record in backwards])
    assert [*rows] == backwards
    assert [rows[place] for place in range(0, len(rows), 777)] == backwards[::777]
    assert [*pickle.loads(pickle.dumps(found)).values()] == records


def test_there_may_be_none() -> None:
    none = Records.of_all([])
    assert [*none.values()] == [*none.with_masks_of([]).of([])] == []


def test_images_without_masks_know_what_masks_show(tmp_path: Path) -> None:
    records = made()
    strong = {record.image_id for record in records[:2000] if record.labels is not None}
    found = read(records, tmp_path).with_masks_of([*strong, records[1].image_id])
    assert [*found.values()] == [one if one.image_id in strong else replace(one, labels=None) for one in records]


def test_a_mask_that_is_not_there_takes_no_memory(tmp_path: Path) -> None:
    """What a process that loads images is sent, and holds: the cells of masks alone would take 40 bytes an image."""
    sizes = [len(pickle.dumps(read(made(masked=masked), tmp_path))) / COUNT for masked in (2 * COUNT, 50, 1)]
    assert sizes[0] < sizes[1] < 130
    assert sizes[1] - sizes[0] < 10
    assert sizes[2] - sizes[0] > 40


def run(code: str) -> list[str]:
    """What the code prints, in a process that has not heard which memory Arrow is asked for in this one."""
    known = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=known, capture_output=True, text=True, check=True
    )
    return told.stdout.split()


def test_a_training_loads_no_library_that_only_others_need() -> None:
    """Each would cost every training its seconds and its memory, which with a million images is 1 GB in all."""
    code = (
        "import sys; from pathlib import Path; from stages import train_classifier, train_segmenter\n"
        f"train_segmenter.command.settings(Path({str(PARAMS)!r}))\n"  # loads every system to check its entries
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = {*run(code)}
    assert {"torch", "pyarrow", "dvclive"} <= loaded
    assert not loaded & {"scipy", "torchvision", "timm", "sympy", "triton", "matplotlib", "onnx", "pytest", "tests"}


@pytest.mark.skipif(
    sys.platform != "linux" or "jemalloc" not in pa.supported_memory_backends(), reason="Arrow has no jemalloc here"
)
@pytest.mark.parametrize("stage", ["train_classifier", "train_segmenter"])
def test_arrow_takes_memory_where_it_is_handed_back(tmp_path: Path, stage: str) -> None:
    """Its readers of files, too: what they took on their way would stay in another pool."""
    manifest = tmp_path / "manifest.parquet"
    write_manifest(manifest, made(100))
    code = (
        "import {first}; from pathlib import Path; import pyarrow as pa\n"
        "from segcore.data.manifest import read_manifest\n"
        f"read_manifest(Path({str(manifest)!r}))\n"
        "others = {{*pa.supported_memory_backends()}} - {{'jemalloc'}}\n"
        "print(*(getattr(pa, f'{{name}}_memory_pool')().max_memory() for name in others))"
    )
    assert not any(map(int, run(code.format(first=f"stages.{stage}"))))
    assert any(map(int, run(code.format(first="pyarrow"))))  # loaded too early; or else nobody would see it here
