"""What is known of one image of a data set, and what its id may be."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from segcore.data.addresses import Address
from segcore.errors import some

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Record:
    """One image of the data set, whose files were opened and found good: a line of the manifest.

    `tags` are the indices (1..L) of the classes that the image-level annotation names; `labels` is the indexed
    PNG with a class per pixel, or None where nobody outlined the image; `label_classes` are the classes 1..L that the
    labels show, which the tags may exceed (None without labels), or fall short of where difficult objects do not count;
    `width` and `height` are those of the picture as a
    person sees it, after its EXIF rotation; the hashes are of the files' bytes, so that a stage that depends on the
    manifest depends on the pictures.
    """

    image_id: str
    image: Address
    labels: Address | None
    width: int
    height: int
    tags: tuple[int, ...]
    split: Split
    image_sha256: str
    labels_sha256: str | None
    label_classes: tuple[int, ...] | None


LONGEST_ID = 200
"""Bytes of an image's id: with an ending and the marks of unfinished files it must stay a file name."""


def wrong_id(image_id: object) -> str | None:
    """What keeps an id from naming an image: it becomes part of file names, and of lists with an id a line.

    Every list and table is checked by this where it is read, so that none leads out of the data set's folders.
    """
    if not isinstance(image_id, str) or not image_id:
        return "an image id is a text that is not empty"
    if any(part in image_id for part in ("/", "\\")) or image_id.startswith("."):
        return "an image id is a file name without its folder and ending, such as 2007_000032, and begins with no dot"
    if any(character.isspace() for character in image_id):
        return "an image id may not hold blanks, by which other files separate ids; rename its files, by _ say"
    if not image_id.isprintable():
        return "an image id may not hold characters that cannot be seen; rename its files"
    if len(image_id.encode("utf-8", "surrogatepass")) > LONGEST_ID:
        return f"an image id is at most {LONGEST_ID} bytes long, so that it can be part of file names"
    return None


PLAIN = r"[!-\-0-\[\]-~][!-.0-\[\]-~]{0,199}"
"""Ids of ASCII that nothing is wrong with, told at once; `wrong_id` decides about all others."""
_plain_id = re.compile(PLAIN)


def wrong_ids(image_ids: Iterable[object]) -> list[str]:
    """A sentence for each thing that is wrong with any of the ids, with a few of those."""
    found: dict[str, list[str]] = {}
    for image_id in image_ids:
        if isinstance(image_id, str) and _plain_id.fullmatch(image_id):
            continue
        if (wrong := wrong_id(image_id)) is not None:
            shown = image_id if isinstance(image_id, str) and image_id.isprintable() else ascii(image_id)
            found.setdefault(wrong, []).append(str(shown))
    return [f"found {some(ids)}; {wrong}" for wrong, ids in found.items()]
