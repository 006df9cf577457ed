"""Data sets on disk: one file a layout, each of which lists images; `checks` makes records of them."""

from dataclasses import dataclass, field

from segcore.data.addresses import Address
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

WARNINGS = (
    "narrow_sixteen_bit",
    "clipped_sixteen_bit",
    "class_in_no_mask",
    "class_of_no_image",
    "labels_twice",
    "tags_alone",
    "tag_not_in_labels",
    "difficult_in_labels",
    "no_tags",
    "orientation_unproven",
    "same_bytes_in_split",
    "same_pixels_in_split",
    "alike_in_split",
    "same_bytes_across_splits",
    "same_pixels_across_splits",
    "alike_across_splits",
)


@dataclass(frozen=True)
class Entry:
    """What a layout says of an image before anybody opened its files.

    `labels` is an indexed PNG or one of SBD's `.mat` files, or None where nobody outlined the image; `tags` are class
    indices 1..L, or None where those of the labels are to be taken; `skipped` are classes that the labels may show
    although no tag names them, as all their objects were too difficult to count.
    """

    image_id: str
    split: Split
    image: Address
    labels: Address | None
    tags: tuple[int, ...] | None
    skipped: tuple[int, ...] = ()
    annotated: tuple[int, int] | None = None
    """Width and height of the picture as its annotation has them, or None where it does not say."""


@dataclass(frozen=True)
class Listing:
    """A data set as its layout lists it: class names by index (0 is background), images, and what is wrong so far."""

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    problems: tuple[str, ...]
    warnings: tuple[tuple[str, str], ...] = ()
    """Pairs of a kind out of `WARNINGS` and a sentence."""


@dataclass(frozen=True)
class Fingerprint:
    """What copies of a picture have in common; see `duplicates`."""

    sha256: str
    """Of the file's bytes."""
    pixels: str
    """SHA-256 of the size and the pixels as a person sees them, in RGB."""
    looks: bytes | None
    """32 bytes that hardly change when the picture is compressed or scaled; None for a plain one."""


@dataclass
class Finding:
    """What was found in the files of one entry; `record` is None where there are problems."""

    entry: Entry
    record: Record | None = None
    fingerprint: Fingerprint | None = None
    """Of the picture, if it could be read, also where other things are wrong."""
    problems: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of a kind out of `WARNINGS` and a sentence."""
    conversions: list[str] = field(default_factory=list)
    values: tuple[int, int] | None = None
    """The lowest and the highest value in a picture of 16 bits; None for others."""
    unknown: bool = False
    """Whether its labels hold 255."""
