"""Tags of one image, written where a data set keeps them, with every other line as it was.

`prepare` refuses a mask that shows a class which the image's tags do not name, so a new mask may need new tags.
"""

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import UInt8

from segcore.config.data import TagsFromAnnotations, TagsFromMasks, TagsFromTable, VocParams
from segcore.errors import Problem
from segcore.files import write_atomically

MARK = "\ufeff"
"""What Windows editors put before the first line."""


class Tags:
    """The place of the tags of one image, and what is in it.

    Args:
        root: of the data set.
        classes: background first.
        former: names of the tags that it has; others that stand there, such as difficult objects, stay.
        labels: the image's new mask; an annotation wants a box for each object.

    Raises:
        Problem: what is there cannot be read, or lies outside of the data set, where nothing is written.
    """

    def __init__(
        self,
        root: Path,
        params: VocParams,
        classes: Sequence[str],
        image_id: str,
        former: Collection[str],
        labels: UInt8[np.ndarray, "H W"],
    ) -> None:
        self.image_id, self.former, self.labels = image_id, former, labels
        self.index = {name: place for place, name in enumerate(classes)}
        self.place = _place(root, params, image_id)
        self.is_table = isinstance(params.tags, TagsFromTable)
        self.write(None)

    def write(self, tags: Sequence[str] | None) -> None:
        """Make these the tags of the image; None sees only whether that can be done."""
        if self.place is None:
            return
        text = _text(self.place, wanted=self.is_table)
        if self.is_table:
            content = in_table(text, self.image_id, tags or (), self.place)
        else:
            content = in_annotation(text, self.image_id, tags or (), self.former, self.labels, self.index, self.place)
        if tags is not None and content != text:
            self.place.parent.mkdir(exist_ok=True)
            write_atomically(self.place, content.encode())


def _place(root: Path, params: VocParams, image_id: str) -> Path | None:
    """The file that holds the tags of an image; None where they are those of its mask."""
    if isinstance(params.tags, TagsFromMasks):
        return None
    if isinstance(params.tags, TagsFromAnnotations):
        file = root / "Annotations" / f"{image_id}.xml"
    else:
        named = Path(params.tags.file).expanduser()
        file = root / named if (root / named).is_file() else named.absolute()
    if not file.resolve().is_relative_to(root.resolve()):
        raise Problem(
            f"The tags of this data set stand in {file}, outside of {root}, where nothing is written; put them into "
            "the data set to save masks from here."
        )
    return file


def _text(place: Path, wanted: bool) -> str:
    try:
        return place.read_bytes().decode("utf-8")  # with the ends of its lines as they are
    except FileNotFoundError:
        if not wanted:
            return ""
        raise Problem(f"{place}: this table of tags is missing; it must begin with the line image_id,tags") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{place} cannot be read ({error}); nothing was saved") from error


def in_table(text: str, image_id: str, tags: Sequence[str], place: Path) -> str:
    """A CSV with other tags for one image.

    Raises:
        Problem: it lacks the columns image_id and tags.
    """
    mark = MARK if text.startswith(MARK) else ""
    end = "\r\n" if "\r\n" in text else "\n"
    rows = list(csv.reader(io.StringIO(text.removeprefix(MARK), newline="")))
    header = rows[0] if rows else []
    if not {"image_id", "tags"} <= {*header}:
        raise Problem(f"{place}: the first line must be image_id,tags; nothing was saved")
    ids, cells = header.index("image_id"), header.index("tags")
    row = next((row for row in rows[1:] if len(row) > ids and row[ids].strip() == image_id), None)
    if row is None:
        row = [image_id if column == ids else "" for column in range(len(header))]
        rows.append(row)
    row += [""] * (len(header) - len(row))
    row[cells] = " ".join(tags)
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerows(row for row in rows if row)
    return mark + out.getvalue()


def in_annotation(
    text: str,
    image_id: str,
    tags: Sequence[str],
    former: Collection[str],
    labels: UInt8[np.ndarray, "H W"],
    index: dict[str, int],
    place: Path,
) -> str:
    """VOC's XML of an image, with an `<object>` for each tag that lacks one, and none for `former` tags that are gone.

    Raises:
        Problem: it is no annotation.
    """
    height, width = labels.shape
    try:
        if any(part in text for part in ("<!DOCTYPE", "<!ENTITY", "\0")):
            raise ValueError("it declares a DTD or entities")
        root = ElementTree.fromstring(text.removeprefix(MARK)) if text else ElementTree.Element("annotation")
    except (ValueError, ElementTree.ParseError) as error:
        raise Problem(f"{place} cannot be read as a VOC annotation ({error}); nothing was saved") from error
    if not text:
        ElementTree.SubElement(root, "filename").text = image_id
        size = ElementTree.SubElement(root, "size")
        for name, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, name).text = str(value)
    named: set[str] = set()
    for element in root.findall("object"):
        name = (element.findtext("name") or "").strip()
        if name in tags:
            named.add(name)
        elif name in former:
            root.remove(element)
    for name in tags:
        if name not in named:
            _add_object(root, name, labels == index[name])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_object(root: ElementTree.Element, name: str, where: np.ndarray) -> None:
    element = ElementTree.SubElement(root, "object")
    ElementTree.SubElement(element, "name").text = name
    ElementTree.SubElement(element, "difficult").text = "0"
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    if rows.size:
        box = ElementTree.SubElement(element, "bndbox")
        edges = {"xmin": columns[0], "ymin": rows[0], "xmax": columns[-1], "ymax": rows[-1]}
        for key, value in edges.items():
            ElementTree.SubElement(box, key).text = str(int(value) + 1)  # VOC counts from 1
