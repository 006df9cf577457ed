"""What was found in some images, as files in memory: for a process that judges what others have found.

An entry is not written: the reader lists the same data set. Files that were converted have their path within the folder
of conversions, wherever that will be.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from segcore.config.data import SixteenBit
from segcore.data.addresses import Address, Member
from segcore.data.manifest import Record
from segcore.errors import About
from segcore.files import write_atomically
from segcore.importers import Entry, Finding, Fingerprint, checks

FOLDER = "\0"
"""Stands for the folder of conversions: no path holds it."""

FINDINGS, STAMPS, CONVERTED = "findings.json", "stamps.json", "files/"


@runtime_checkable
class Files(Protocol):
    """Contents by name."""

    @property
    def names(self) -> Sequence[str]: ...
    def __getitem__(self, name: str, /) -> bytes: ...


@dataclass(frozen=True)
class Inspected:
    """Findings, in which state the files were before, and the folder of conversions."""

    findings: list[Finding]
    stamps: bytes
    converted: Path

    def files(self) -> dict[str, bytes | Path]:
        """All of it by name; `unpacked` gives the findings back."""
        lines = [_plain(finding, self.converted) for finding in self.findings]
        made = sorted(path for path in self.converted.rglob("*") if path.is_file())
        return {
            FINDINGS: (json.dumps(lines) + "\n").encode(),
            STAMPS: self.stamps,
            **{f"{CONVERTED}{path.relative_to(self.converted).as_posix()}": path for path in made},
        }


def inspected(
    entries: Sequence[Entry], classes: Sequence[str], convert_palette: bool, sixteen_bit: SixteenBit, converted: Path
) -> Inspected:
    """Open the files of some entries, as `checks.inspect_all` does.

    Raises:
        OSError: a converted file could not be written.
    """
    stamps = _stamps(entries)
    return Inspected(
        [*checks.inspect_all(entries, classes, convert_palette, sixteen_bit, converted)], stamps, converted
    )


def unpacked(files: Files, entries: Sequence[Entry], converted: Path) -> list[Finding]:
    """The findings of these entries; their converted files are put into the folder `converted`.

    Raises:
        ValueError: they are of other entries.
        OSError: a converted file could not be written.
    """
    for name in files.names:
        if name.startswith(CONVERTED) and ".." not in Path(name).parts:
            path = converted / name.removeprefix(CONVERTED)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, files[name])
    lines = json.loads(files[FINDINGS])
    return [_finding(line, entry, converted) for line, entry in zip(lines, entries, strict=True)]


def have_changed(files: Files, entries: Sequence[Entry]) -> bool:
    """Whether files of these entries are not what they were when they were inspected, by size and time."""
    return files[STAMPS] != _stamps(entries)


def is_good(files: Files, entries: Sequence[Entry]) -> bool:
    """Whether nothing was wrong with these entries, nor has changed since."""
    return not have_changed(files, entries) and not any(line["problems"] for line in json.loads(files[FINDINGS]))


def _stamps(entries: Sequence[Entry]) -> bytes:
    """Size and time of every file of some images."""

    def stamp(address: Address) -> list[int | str]:
        path = address if isinstance(address, Path) else Path(address.shard)
        where = [] if isinstance(address, Path) else [address.offset, address.size, address.sha256]
        try:
            status = path.stat()
        except OSError:
            return where  # of a shard behind a server the index alone tells
        return [*where, status.st_size, status.st_mtime_ns]

    found = [[stamp(entry.image), stamp(entry.labels) if entry.labels is not None else []] for entry in entries]
    return json.dumps(found).encode()


def _plain(finding: Finding, converted: Path) -> dict[str, Any]:
    def moved(text: str) -> str:
        return text.replace(str(converted), FOLDER)

    def place(address: Any) -> Any:
        return moved(address) if isinstance(address, str) else address

    def sentence(text: str) -> str | list[str]:
        return [moved(text.what), moved(text.rest)] if isinstance(text, About) else moved(text)

    record, fingerprint = finding.record, finding.fingerprint
    values = None if record is None else {key: _as_text(value) for key, value in asdict(record).items()}
    return {
        "image_id": finding.entry.image_id,
        "record": values and values | {key: place(values[key]) for key in ("image", "labels")},
        "fingerprint": fingerprint
        and asdict(fingerprint) | {"looks": None if fingerprint.looks is None else fingerprint.looks.hex()},
        "problems": [sentence(text) for text in finding.problems],
        "warnings": [[kind, sentence(text)] for kind, text in finding.warnings],
        "conversions": finding.conversions,
        "values": finding.values,
        "unknown": finding.unknown,
    }


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _finding(line: dict[str, Any], entry: Entry, converted: Path) -> Finding:
    def moved(text: str) -> str:
        return text.replace(FOLDER, str(converted))

    def place(address: str | dict[str, Any] | None) -> Address | None:
        if address is None:
            return None
        return Path(moved(address)) if isinstance(address, str) else Member(**address)

    def sentence(text: str | list[str]) -> str:
        return moved(text) if isinstance(text, str) else About(moved(text[0]), moved(text[1]))

    if line["image_id"] != entry.image_id:
        raise ValueError(f"found {line['image_id']} in the place of {entry.image_id}")
    record, fingerprint = line["record"], line["fingerprint"]
    if record is not None:
        classes = record["label_classes"]
        record |= {
            "image": place(record["image"]),
            "labels": place(record["labels"]),
            "tags": tuple(record["tags"]),
            "label_classes": None if classes is None else tuple(classes),
        }
    if fingerprint is not None and fingerprint["looks"] is not None:
        fingerprint["looks"] = bytes.fromhex(fingerprint["looks"])
    return Finding(
        entry,
        None if record is None else Record(**record),
        None if fingerprint is None else Fingerprint(**fingerprint),
        [sentence(text) for text in line["problems"]],
        [(kind, sentence(text)) for kind, text in line["warnings"]],
        line["conversions"],
        None if line["values"] is None else (line["values"][0], line["values"][1]),
        line["unknown"],
    )
