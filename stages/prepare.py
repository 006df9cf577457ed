"""Check every file of the data set and write one manifest of it.

Writes into `out`: `manifest.parquet` (a line an image), `classes.json` (names by class index), `dataset.json` (counts)
and `files/` (what was generated or converted; other pictures are used where they lie).
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import track

from segcore.config import Settings
from segcore.datasets import CONVERSIONS, WARNINGS, Finding, Listing, Row, checks, shapes, voc
from segcore.problems import Problem, Problems
from segcore.runtime import write_atomically
from segcore.sections import DatasetParams
from stages import run

SHOWN_WARNINGS = 10


def main(*, out: Path, params: Path = Path("params.yaml")) -> None:
    settings = run.settings(params)
    with run.timed("prepare"):
        building = out.parent / f".{out.name}.partial"
        try:
            _fresh(building)
            listing, findings = _inspect(settings, building)
            _publish(building, out, listing, findings, settings.dataset)
        except OSError as error:
            raise Problem(
                f"{error.filename or out}: could not be written ({error.strerror}); {out} is as it was"
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        _tell(findings, out)


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _inspect(settings: Settings, building: Path) -> tuple[Listing, list[Finding]]:
    dataset = settings.dataset
    root = Path(dataset.root).expanduser()
    if dataset.layout == "shapes":
        run.say(f"generating {dataset.shapes.train_images + dataset.shapes.val_images} pictures of shapes")
        shapes.generate(building, dataset.shapes, settings.seed)
        root, dataset = building, dataset.model_copy(update={"train_list": "train", "val_list": "val"})
    listing = voc.read(root, dataset)
    inspected = checks.inspect_all(
        listing.entries, listing.classes, dataset.convert_palette, building / "SegmentationClass"
    )
    findings = list(_shown(inspected, len(listing.entries)))
    duplicates, warnings = checks.same_bytes(findings)
    problems = [*listing.problems, *(problem for finding in findings for problem in finding.problems), *duplicates]
    if problems:
        heading = f"the data set in {root} has {len(problems)} problems; nothing was written:"
        raise Problems(heading, problems)
    findings[-1].warnings.extend(warnings)
    return listing, findings


def _shown(findings: Iterator[Finding], total: int) -> Iterator[Finding]:
    """A bar on a terminal, ten lines in a log."""
    if run.console.is_terminal:
        yield from track(findings, "checking images", total, console=run.console)
        return
    for done, finding in enumerate(findings, start=1):
        if done % max(1, total // 10) == 0:
            run.say(f"checked {done} of {total} images")
        yield finding


def _publish(building: Path, out: Path, listing: Listing, findings: Sequence[Finding], dataset: DatasetParams) -> None:
    rows = [finding.row for finding in findings if finding.row is not None]
    manifest = _manifest([_line(row, building, out / "files") for row in rows])
    counts = _counts(rows, listing.classes, findings, dataset)
    out.mkdir(parents=True, exist_ok=True)
    # A crash from here on leaves no manifest, rather than one that describes other files.
    (out / "manifest.parquet").unlink(missing_ok=True)
    if (out / "files").exists():
        shutil.rmtree(out / "files")
    os.replace(building, out / "files")
    write_atomically(out / "classes.json", (json.dumps(listing.classes, indent=2) + "\n").encode())
    write_atomically(out / "dataset.json", (json.dumps(counts, indent=2) + "\n").encode())
    write_atomically(out / "manifest.parquet", manifest)


def _line(row: Row, building: Path, files: Path) -> dict[str, Any]:
    """The row with the paths that its files will have."""

    def placed(path: Path | None) -> str | None:
        if path is None:
            return None
        return (files / path.relative_to(building) if path.is_relative_to(building) else path).as_posix()

    return asdict(row) | {"image": placed(row.image), "labels": placed(row.labels)}


def _manifest(lines: Sequence[dict[str, Any]]) -> bytes:
    buffer = BytesIO()
    columns = [field.name for field in fields(Row)]
    pd.DataFrame(lines, columns=columns).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _counts(
    rows: Sequence[Row], classes: Sequence[str], findings: Sequence[Finding], dataset: DatasetParams
) -> dict[str, Any]:
    """The data set's card in numbers: per class, `images` carry the tag and `masks` show it."""
    of_split = {split: [row for row in rows if row.split == split] for split in ("train", "val")}
    conversions = Counter(name for finding in findings for name in finding.conversions)
    warnings = Counter(kind for finding in findings for kind, _ in finding.warnings)
    return {
        "layout": dataset.layout,
        "tags": dataset.tags,
        "classes": len(classes) - 1,
        "images": {split: len(members) for split, members in of_split.items()},
        "masks": {split: sum(row.labels is not None for row in members) for split, members in of_split.items()},
        "per_class": {
            name: {
                split: {
                    "images": sum(index in row.tags for row in members),
                    "masks": sum(index in (row.label_classes or ()) for row in members),
                }
                for split, members in of_split.items()
            }
            for index, name in enumerate(classes)
            if index > 0
        },
        "conversions": {name: conversions[name] for name in CONVERSIONS},
        "warnings": {kind: warnings[kind] for kind in WARNINGS},
    }


def _tell(findings: Sequence[Finding], out: Path) -> None:
    warnings = [text for finding in findings for _, text in finding.warnings]
    for text in warnings[:SHOWN_WARNINGS]:
        run.say(f"warning: {text}")
    if len(warnings) > SHOWN_WARNINGS:
        run.say(f"... and {len(warnings) - SHOWN_WARNINGS} more warnings, counted in {out / 'dataset.json'}")
    splits = Counter(finding.entry.split for finding in findings)
    run.say(
        f"{splits['train']} training and {splits['val']} validation images are in order: {out / 'manifest.parquet'}"
    )


if __name__ == "__main__":
    run.start(main)
