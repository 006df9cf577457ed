"""What `prepare` writes: the manifest, the classes, the data set's card in numbers; all of it or nothing.

`manifest.parquet` has a line an image, `classes.json` the names by class index, `dataset.json` fingerprint and counts,
`files/` the pictures that were generated or converted.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segcore.config import fingerprints
from segcore.config.data import OnDisk, ShardsParams, VocParams
from segcore.config.plan import Prepare
from segcore.data.addresses import Address
from segcore.data.manifest import Record, data_set_fingerprint, write_manifest
from segcore.files import write_atomically
from segcore.importers import CONVERSIONS, WARNINGS, Finding, Listing

OUTPUTS = ("manifest.parquet", "files", "classes.json", "dataset.json")


def write(building: Path, out: Path, listing: Listing, findings: Sequence[Finding], plan: Prepare) -> None:
    """Write every output into `building`, as it will stand in `out`."""
    records = [finding.record for finding in findings if finding.record is not None]
    made_of = {
        "fingerprint": data_set_fingerprint(records, listing.classes),
        "parameters": fingerprints.of(plan),
    }
    counts = made_of | _counts(records, listing.classes, findings, plan.dataset)
    write_atomically(building / "classes.json", (json.dumps(listing.classes, indent=2) + "\n").encode())
    write_atomically(building / "dataset.json", (json.dumps(counts, indent=2) + "\n").encode())
    placed = [_placed(record, building / "files", out / "files") for record in records]
    write_manifest(building / "manifest.parquet", placed)


def swap(building: Path, out: Path) -> None:
    """Put the outputs in `building` in the place of those in `out`, by renames that a failure takes back.

    A kill halfway leaves no manifest rather than one that describes other files: it goes first and comes last.
    """
    out.mkdir(parents=True, exist_ok=True)
    former = building / "former"
    former.mkdir()
    # A link that leads nowhere, as DVC leaves for a file that its cache lost, must go too.
    moves = [(out / name, former / name) for name in OUTPUTS if os.path.lexists(out / name)]
    moves += [(building / name, out / name) for name in reversed(OUTPUTS)]
    try:
        for source, target in moves:
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(moves):
            if os.path.lexists(target) and not os.path.lexists(source):
                os.replace(target, source)
        raise


def _placed(record: Record, written: Path, files: Path) -> Record:
    """The record with the paths that its files will have."""

    def place(path: Address) -> Address:
        if not isinstance(path, Path):
            return path
        return files / path.relative_to(written) if path.is_relative_to(written) else path

    return replace(record, image=place(record.image), labels=record.labels and place(record.labels))


def _counts(
    records: Sequence[Record],
    classes: Sequence[str],
    findings: Sequence[Finding],
    dataset: OnDisk,
) -> dict[str, Any]:
    """The data set's card in numbers: per class, `images` carry the tag and `masks` show it."""
    of_split = {split: [record for record in records if record.split == split] for split in ("train", "val")}
    conversions = Counter(name for finding in findings for name in finding.conversions)
    warnings = Counter(kind for finding in findings for kind, _ in finding.warnings)
    return {
        "layout": dataset.layout,
        "tags": _source_of_tags(dataset),
        "classes": len(classes) - 1,
        "images": {split: len(members) for split, members in of_split.items()},
        "masks": {split: sum(record.labels is not None for record in members) for split, members in of_split.items()},
        "per_class": {
            name: {
                split: {
                    "images": sum(index in record.tags for record in members),
                    "masks": sum(index in (record.label_classes or ()) for record in members),
                }
                for split, members in of_split.items()
            }
            for index, name in enumerate(classes)
            if index > 0
        },
        "conversions": {name: conversions[name] for name in CONVERSIONS},
        "warnings": {kind: warnings[kind] for kind in WARNINGS},
    }


def _source_of_tags(dataset: OnDisk) -> str:
    if isinstance(dataset, VocParams):
        return dataset.tags.kind
    return "shards" if isinstance(dataset, ShardsParams) else "masks"
