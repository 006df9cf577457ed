"""VOC's annotations: an XML file an image, with an `<object>` for every thing that somebody boxed."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = "annotation"
NO_OBJECTS = ("folder", "filename", "path", "source", "owner", "size", "segmented")
"""What stands in an annotation that has no objects; anything else is of another kind of file."""


@dataclass(frozen=True)
class Annotation:
    """What the annotation of an image says."""

    objects: list[tuple[str, bool]]
    """Names of the annotated objects, not of their parts, and whether each is to be skipped as difficult."""
    size: tuple[int, int] | None
    """Width and height of the picture; None where it does not say, or says 0."""
    picture: str | None
    """The name of the picture without its folder; None where it does not say."""


def read(path: Path, skip: bool) -> Annotation:
    """An annotation; with `skip`, objects that are marked as difficult are to be skipped.

    Raises:
        ValueError: the text is no annotation, one of another format, or one that cannot be trusted.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    text = path.read_text("utf-8-sig")
    # Entities can expand to gigabytes or name other files; no annotation needs a DTD. Null characters are refused with
    # them, because the parser would take such text for UTF-16 and find a DTD in it that is not seen here.
    if any(part in text for part in ("<!DOCTYPE", "<!ENTITY", "\0")):
        raise ValueError("it declares a DTD or entities, or holds null characters, which are refused")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if root.tag != ROOT:
        raise ValueError(f"its root is <{root.tag}>, VOC's is <{ROOT}>: it is of another format")
    if root.find("object") is None and (other := [part.tag for part in root if part.tag not in NO_OBJECTS]):
        raise ValueError(f"it has no <object> but <{other[0]}>: it is of another format")
    objects = []
    for element in root.findall("object"):
        name, mark = ((element.findtext(key) or "").strip() for key in ("name", "difficult"))
        if not name:
            raise ValueError("it has an <object> without a <name>")
        if skip and mark not in ("", "0", "1"):
            raise ValueError(f"it marks '{name}' with <difficult>{mark}</difficult>; allowed are 0 and 1")
        objects.append((name, skip and mark == "1"))
    picture = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    return Annotation(objects, _size(root), picture or None)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    sides = [(root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if not all(side.isascii() and side.isdigit() for side in sides):
        raise ValueError(f"its <size> is {sides[0]}x{sides[1]}")
    width, height = int(sides[0]), int(sides[1])
    return (width, height) if width and height else None
