"""Files of other tools, read with care: of bounded size, nothing in them followed or run."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from segcore.errors import Problem
from segcore.files import regular

MOST_JSON, MOST_XML = 2**31, 2**29
"""Bytes; COCO's largest file has 470 million."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        Problem: no such file, too large, or no JSON.
    """
    try:
        return json.loads(_bytes(path, MOST_JSON).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}: is not valid JSON ({error}); export it anew") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; one that declares a DTD or entities is refused, as these can name other files and grow.

    Raises:
        Problem: no such file, too large, no XML, or with a DTD.
    """
    try:
        text = _bytes(path, MOST_XML).decode("utf-8-sig")
        if any(part in text for part in ("<!DOCTYPE", "<!ENTITY", "\0")):
            raise Problem(f"{path}: declares a DTD or entities, or holds null characters, which are refused")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise Problem(f"{path}: is not valid XML in UTF-8 ({error}); export it anew") from error


def read_text(path: Path) -> str:
    """A text in UTF-8.

    Raises:
        Problem: no such file, or no such text.
    """
    try:
        return _bytes(path, MOST_XML).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: is no text in UTF-8 ({error})") from error


def _bytes(path: Path, most: int) -> bytes:
    try:
        if (size := regular(path).stat().st_size) > most:
            raise Problem(f"{path}: has {size:,} bytes; allowed are {most:,}: export it in parts")
        return path.read_bytes()
    except FileNotFoundError:
        raise Problem(f"{path}: there is no such file") from None
    except OSError as error:
        raise Problem(f"{path}: cannot be read ({error.strerror})") from error


@contextlib.contextmanager
def understood(source: Path, form: str) -> Iterator[None]:
    """A block that reads a file of some form; what it does not hold as that form has it is told.

    Raises:
        Problem: a key is missing, or holds something else.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks the key {error}" if isinstance(error, KeyError) else f"holds something else ({error})"
        raise Problem(f"{source}: is not as {form} writes it: an entry {what}; export it anew") from error


def listed(value: Any, where: str) -> list[dict[str, Any]]:
    """A list of objects in JSON.

    Raises:
        Problem: something else.
    """
    if not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
        raise Problem(f"{where}: found {type(value).__name__}; it must be a list of objects")
    return value
