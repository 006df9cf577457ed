"""Check every file of the data set and write one manifest of it.

Writes into `out`: `manifest.parquet` (a line an image), `classes.json` (names by class index), `dataset.json`
(fingerprint and counts) and `files/` (what was generated or converted; other pictures are used where they lie).

With `--shard i/n` the i-th of n parts of the images are checked, and what was found is left in `--shard-folder`; a run
without it judges what all shards have found there: copies, classes that nothing shows, and all that is wrong.
"""

import errno
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.progress import track

from segcore.cli import command, console, provenance, shards
from segcore.cli.shards import Members, OneProcess, Piece, Shard, Work
from segcore.config import plan as plans
from segcore.config.data import ShapesParams, ShardsParams, SixteenBit, VocParams
from segcore.config.plan import Prepare, prepare
from segcore.errors import EXAMPLES, Problem, Problems, together
from segcore.files import fingerprint, fresh_folder
from segcore.importers import (
    WARNINGS,
    Finding,
    Listing,
    checks,
    coverage,
    duplicates,
    outputs,
    parts,
    shapes,
    sixteen_bit,
    voc,
    webdataset,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(
    *,
    out: Path,
    params: Path = Path("params.yaml"),
    shard: str | None = None,
    shard_folder: Path = shards.FOLDER,
) -> None:
    one = None if shard is None else shards.shard(shard)
    plan = prepare(command.settings(params))
    # Nothing here is shared out: under torchrun, more processes would only write over each other's files.
    if not console.is_main_process():
        return
    if one is not None:
        _check_shard(one, plan, out, shard_folder)
        return
    with provenance.timed("prepare", out):
        building = out.parent / f".{out.name}.partial"
        try:
            fresh_folder(building)
            (building / "files").mkdir()
            listing, findings, division = _inspect(plan, building / "files", out, shard_folder)
            outputs.write(building, out, listing, findings, plan)
            outputs.swap(building, out)
            if division is not None:
                division.clear()
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


def _inspect(plan: Prepare, files: Path, out: Path, shard_folder: Path) -> tuple[Listing, list[Finding], Work | None]:
    """What the data set holds, and the shards that found it, if such were there."""
    division = None
    if isinstance(plan.dataset, ShapesParams):
        console.say(f"generating {plan.dataset.train_images + plan.dataset.val_images} pictures of shapes")
        shapes.generate(files, plan.dataset, plan.seed or 0)
        root, dataset = files, shapes.as_devkit(files)
    else:
        root, dataset = Path(plan.dataset.root).expanduser(), plan.dataset
    listing = _listing(root, dataset)
    wide = _wide(listing, dataset)
    if not isinstance(plan.dataset, ShapesParams):
        division = _division(plan, listing, wide, out, shard_folder)
    if division is not None and (ready := division.found()):
        findings = _merged(division, ready, listing, files)
    else:
        division = None
        inspected = checks.inspect_all(listing.entries, listing.classes, dataset.convert_palette, wide, files)
        findings = list(_shown(inspected, len(listing.entries)))
    repeated, warnings = duplicates.judged(findings, dataset.duplicates)
    unseen, uncovered = coverage.judged(findings, listing.classes)
    of_files = [problem for finding in findings for problem in finding.problems]
    if problems := together([*listing.problems, *of_files, *repeated, *unseen]):
        heading = f"the data set in {root} has {len(problems)} problems; what was there is as it was:"
        raise Problems(heading, problems)
    findings[-1].warnings.extend([*listing.warnings, *warnings, *uncovered, *sixteen_bit.judged(findings, wide)])
    return listing, findings, division


def _listing(root: Path, dataset: VocParams | ShardsParams) -> Listing:
    return webdataset.read(root, dataset) if isinstance(dataset, ShardsParams) else voc.read(root, dataset)


def _wide(listing: Listing, dataset: VocParams | ShardsParams) -> SixteenBit:
    """Which values of pictures of 16 bits are black and white."""
    if dataset.sixteen_bit != "measured":
        return dataset.sixteen_bit
    return sixteen_bit.measured(listing.entries) or "full"


def _division(plan: Prepare, listing: Listing, wide: SixteenBit, out: Path, shard_folder: Path) -> Work:
    """The work in shards; it is another one if lists, tags, places of files or the range of 16 bits are others."""
    entries = [asdict(entry) for entry in listing.entries]
    key = fingerprint([plans.plain(plan), listing.classes, wide, entries], provenance.sources())
    return Work(out, shard_folder, key, len(entries), 1)


def _check_shard(one: Shard, plan: Prepare, out: Path, shard_folder: Path) -> None:
    """Check the images of one shard; pieces with problems, and of files that are not what they were, are done again."""
    if isinstance(plan.dataset, ShapesParams):
        raise Problem("--shard: the embedded set is generated at once; shards are of data sets on disk")
    dataset, root = plan.dataset, Path(plan.dataset.root).expanduser()
    listing = _listing(root, dataset)
    if problems := together(listing.problems):
        raise Problems(f"the data set in {root} has {len(problems)} problems; no image was checked:", problems)
    wide = _wide(listing, dataset)
    division = _division(plan, listing, wide, out, shard_folder)
    converted = division.folder_of(one) / ".files.partial"
    bad: list[str] = []

    def make(places: Sequence[int]) -> Members:
        fresh_folder(converted)
        entries = [listing.entries[place] for place in places]
        found = parts.inspected(entries, listing.classes, dataset.convert_palette, wide, converted)
        bad.extend(text for finding in found.findings for text in finding.problems)
        return found.files()

    def is_good(file: Path, places: Sequence[int]) -> bool:
        return parts.is_good(Piece(file), [listing.entries[place] for place in places])

    try:
        division.do(one, OneProcess(), make, is_good)
    finally:
        shutil.rmtree(converted, ignore_errors=True)
    if bad:
        console.say(f"warning: {len(bad)} problems in these images, which the merge will tell: {bad[0]}")


def _merged(division: Work, ready: Sequence[tuple[Path, list[int]]], listing: Listing, files: Path) -> list[Finding]:
    """The findings of all shards in the order of the listing, and their converted files in `files`.

    Raises:
        Problem: files have changed since a shard checked them.
    """
    findings: dict[int, Finding] = {}
    changed: list[Path] = []
    for file, places in ready:
        piece, entries = Piece(file), [listing.entries[place] for place in places]
        if parts.have_changed(piece, entries):
            changed.append(file)
        else:
            findings |= dict(zip(places, parts.unpacked(piece, entries, files), strict=True))
    if changed:
        raise division.again(changed, "pictures or labels have changed since shards checked them")
    return [findings[place] for place in range(len(listing.entries))]


def _shown(findings: Iterator[Finding], total: int) -> Iterator[Finding]:
    """A bar on a terminal, ten lines in a log."""
    if console.console.is_terminal:
        yield from track(findings, "checking images", total, console=console.console)
        return
    for done, finding in enumerate(findings, start=1):
        if done % max(1, total // 10) == 0:
            console.say(f"checked {done} of {total} images")
        yield finding


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
