"""Data sets on disk: one file a layout, each of which lists images; `checks` makes records of them."""

from dataclasses import dataclass, field
from pathlib import Path

from segcore.data.manifest import Record, Split

CONVERSIONS = (
    "grey",
    "cmyk",
    "sixteen_bit",
    "palette",
    "transparent",
    "turned",
    "labels_from_colours",
    "labels_from_mat",
)
"""What may happen to pictures when they are read (see `read_image`) and to labels (see `decoding`)."""

WARNINGS = ("tag_not_in_labels", "no_tags", "orientation_unproven", "same_bytes_in_split")


@dataclass(frozen=True)
class Entry:
    """What a layout says of an image before anybody opened its files.

    `labels` is an indexed PNG or one of SBD's `.mat` files, or None where nobody outlined the image; `tags` are class
    indices 1..L, or None where those of the labels are to be taken.
    """

    image_id: str
    split: Split
    image: Path
    labels: Path | None
    tags: tuple[int, ...] | None


@dataclass(frozen=True)
class Listing:
    """A data set as its layout lists it: class names by index (0 is background), images, and what is wrong so far."""

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    problems: tuple[str, ...]


@dataclass
class Finding:
    """What was found in the files of one entry; `record` is None where there are problems."""

    entry: Entry
    record: Record | None = None
    image_sha256: str | None = None
    """Of the picture's file, also where other things are wrong."""
    problems: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of a kind out of `WARNINGS` and a sentence."""
    conversions: list[str] = field(default_factory=list)
