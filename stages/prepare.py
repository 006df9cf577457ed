"""Check every file of the data set and write one manifest of it.

Writes into `out`: `manifest.parquet` (a line an image), `classes.json` (names by class index), `dataset.json`
(fingerprint and counts) and `files/` (what was generated or converted; other pictures are used where they lie).
"""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track

from segcore.cli import command, console, provenance
from segcore.config import fingerprints
from segcore.config.data import OnDisk, ShapesParams, ShardsParams, VocParams
from segcore.config.plan import Prepare, prepare
from segcore.data.addresses import Address
from segcore.data.manifest import Record, data_set_fingerprint, write_manifest
from segcore.errors import EXAMPLES, Problem, Problems, together
from segcore.files import fresh_folder, write_atomically
from segcore.importers import (
    CONVERSIONS,
    WARNINGS,
    Finding,
    Listing,
    checks,
    coverage,
    duplicates,
    shapes,
    sixteen_bit,
    voc,
    webdataset,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUTPUTS = ("manifest.parquet", "files", "classes.json", "dataset.json")


def main(*, out: Path, params: Path = Path("params.yaml")) -> None:
    plan = prepare(command.settings(params))
    # Nothing here is shared out: under torchrun, more processes would only write over each other's files.
    if not console.is_main_process():
        return
    with provenance.timed("prepare", out):
        building = out.parent / f".{out.name}.partial"
        try:
            fresh_folder(building)
            (building / "files").mkdir()
            listing, findings = _inspect(plan, building / "files")
            _write(building, out, listing, findings, plan)
            _swap(building, out)
        except Problem as problem:
            problem.args = (str(problem).replace(str(building), str(out)),)  # the folder that a person knows
            raise
        except OSError as error:
            raise _as_problem(error, building, out) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        _tell(findings, out)


def _as_problem(error: OSError, building: Path, out: Path) -> Problem:
    """What could not be written or read; the folder in which outputs are made has the name of theirs."""
    named = Path(error.filename) if isinstance(error.filename, str) else out
    ours = any(named.is_relative_to(folder) for folder in (building, out, out.parent))
    where = out / named.relative_to(building) if named.is_relative_to(building) else named
    what = "could not be written" if ours or error.errno in FULL else "could not be read or written"
    return Problem(f"{where}: {what} ({error.strerror or error}); {out} is as it was")


def _inspect(plan: Prepare, files: Path) -> tuple[Listing, list[Finding]]:
    if isinstance(plan.dataset, ShapesParams):
        console.say(f"generating {plan.dataset.train_images + plan.dataset.val_images} pictures of shapes")
        shapes.generate(files, plan.dataset, plan.seed or 0)
        root, dataset = files, shapes.as_devkit(files)
    else:
        root, dataset = Path(plan.dataset.root).expanduser(), plan.dataset
    listing = webdataset.read(root, dataset) if isinstance(dataset, ShardsParams) else voc.read(root, dataset)
    wide = dataset.sixteen_bit
    wide = (sixteen_bit.measured(listing.entries) or "full") if wide == "measured" else wide
    inspected = checks.inspect_all(listing.entries, listing.classes, dataset.convert_palette, wide, files)
    findings = list(_shown(inspected, len(listing.entries)))
    repeated, warnings = duplicates.judged(findings, dataset.duplicates)
    unseen, uncovered = coverage.judged(findings, listing.classes)
    of_files = [problem for finding in findings for problem in finding.problems]
    if problems := together([*listing.problems, *of_files, *repeated, *unseen]):
        heading = f"the data set in {root} has {len(problems)} problems; nothing was written:"
        raise Problems(heading, problems)
    findings[-1].warnings.extend([*listing.warnings, *warnings, *uncovered, *sixteen_bit.judged(findings, wide)])
    return listing, findings


def _shown(findings: Iterator[Finding], total: int) -> Iterator[Finding]:
    """A bar on a terminal, ten lines in a log."""
    if console.console.is_terminal:
        yield from track(findings, "checking images", total, console=console.console)
        return
    for done, finding in enumerate(findings, start=1):
        if done % max(1, total // 10) == 0:
            console.say(f"checked {done} of {total} images")
        yield finding


def _write(building: Path, out: Path, listing: Listing, findings: Sequence[Finding], plan: Prepare) -> None:
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


def _swap(building: Path, out: Path) -> None:
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


def _tell(findings: Sequence[Finding], out: Path) -> None:
    for kind in WARNINGS:
        texts = together(text for finding in findings for named, text in finding.warnings if named == kind)
        for text in texts[:EXAMPLES]:
            console.say(f"warning: {text}")
        if len(texts) > EXAMPLES:
            console.say(f"... and {len(texts) - EXAMPLES} more of this kind, counted in {out / 'dataset.json'}")
    splits = Counter(finding.entry.split for finding in findings)
    console.say(
        f"{splits['train']} training and {splits['val']} validation images are in order: {out / 'manifest.parquet'}"
    )


if __name__ == "__main__":
    command.start(main)
