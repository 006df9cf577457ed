"""Tars of the WebDataset kind: read from their headers alone, written so that the same members give the same bytes.

A tar comes from elsewhere. Its names are only ever compared, never used as paths, and nothing is unpacked: a member is
a range of bytes. Links, folders, devices, sparse and compressed members are refused, and so are long headers.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable

BLOCK = 512
LONGEST_HEADER = 2**16
"""Bytes of a header that extends the next one, as pax and GNU write them for long names and exact times."""
_EXTENDS = {b"x": "pax", b"g": "pax for all", b"L": "GNU's long name"}
_REFUSED = {
    b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe",
    b"K": "a long link", b"S": "a sparse file",
}  # fmt: skip


@runtime_checkable
class Stream(Protocol):
    """What members are read from, forwards only."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Range:
    """A member: its name and where its bytes lie in the tar."""

    name: str
    offset: int
    size: int


class NoTar(ValueError):
    """The bytes are no tar that can be used; the message goes on after its name."""


def members(tar: Stream, wanted: str = "", longest: int = 2**20) -> Iterator[tuple[Range, bytes | None]]:
    """The members in their order, with the content of those whose name ends in `wanted` (none if it is empty).

    Everything is read once, from the first to the last byte. No content that is wanted may be of more than `longest`
    bytes.

    Raises:
        NoTar: it is none, is cut off, or holds what is refused.
        OSError: it cannot be read.
    """
    place, extended, ended = 0, {}, False
    while header := tar.read(BLOCK):
        place += len(header)
        if len(header) < BLOCK:
            raise NoTar(f"ends in the middle of a header, at byte {place:,}: it is cut off")
        if not header.strip(b"\0"):
            ended = True
            continue
        if ended:
            raise NoTar("holds more behind its end, as tars that were joined do; pack its members anew")
        kind, size = header[156:157], _size(header, place)
        if kind in _EXTENDS:
            if size > LONGEST_HEADER:
                raise NoTar(f"has a header of {size:,} bytes at byte {place:,}; allowed are {LONGEST_HEADER:,}")
            extended |= _extension(kind, _content(tar, size, place))
            place += _padded(size)
            continue
        name = _name(header, extended)
        if kind not in (b"0", b"\0"):
            what = _REFUSED.get(kind, f"of the unknown kind {kind!r}")
            raise NoTar(f"holds {_shown(name)}, which is {what}; allowed are files alone")
        size = int(extended.get("size", size))
        found = Range(name, place, size)
        is_wanted = bool(wanted) and name.lower().endswith(wanted)
        if is_wanted and size > longest:
            raise NoTar(f"holds {_shown(name)} of {size:,} bytes; allowed are {longest:,}")
        content = _content(tar, size, place) if is_wanted else _skipped(tar, size, place)
        place += _padded(size)
        extended = {}
        yield found, content
    if not ended:
        raise NoTar("has no end, two blocks of zeros: it is cut off, or no tar")


def _size(header: bytes, place: int) -> int:
    sums = header[:148] + b" " * 8 + header[156:]
    if header[:2] == b"\x1f\x8b":
        raise NoTar("is compressed, and ranges of it cannot be read; unpack it by gunzip")
    try:
        told = int(header[148:156].strip(b" \0") or b"0", 8)
        if told != sum(sums):
            raise NoTar(f"is no tar, or damaged: the header before byte {place:,} has a wrong sum")
        if header[124] & 0x80:  # GNU writes sizes from 8 GB on in base 256
            return int.from_bytes(header[125:136], "big")
        return int(header[124:136].strip(b" \0") or b"0", 8)
    except NoTar:
        raise
    except ValueError:
        raise NoTar(f"is no tar, or damaged: the header before byte {place:,} holds no numbers") from None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _content(tar: Stream, size: int, place: int) -> bytes:
    content = b"".join(_read(tar, _padded(size), place))
    return content[:size]


def _skipped(tar: Stream, size: int, place: int) -> None:
    for _ in _read(tar, _padded(size), place):
        pass


def _read(tar: Stream, size: int, place: int) -> Iterator[bytes]:
    """In pieces, so that a size that a header merely claims takes no memory."""
    left = size
    while left:
        piece = tar.read(min(left, 2**20))
        if not piece:
            raise NoTar(f"is cut off: a member at byte {place:,} should go on for {left:,} bytes")
        left -= len(piece)
        yield piece


def _extension(kind: bytes, content: bytes) -> dict[str, str]:
    """What matters of a header that extends the next one: `path` and `size`."""
    if kind == b"L":
        return {"path": _text(content.rstrip(b"\0"))}
    found, rest = {}, content
    while rest.strip(b"\0"):
        length, blank, _ = rest.partition(b" ")
        if not blank or not length.isdigit() or not len(length) + 1 < int(length[:6]) <= len(rest):
            raise NoTar("has a pax header that cannot be read")
        key, equals, value = rest[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise NoTar("holds a sparse file; allowed are plain files alone")
        if key == b"path" or (key == b"size" and value.isdigit() and len(value) < 16):
            found[key.decode()] = _text(value)
        rest = rest[int(length) :]
    return found if kind == b"x" else {}


def _name(header: bytes, extended: dict[str, str]) -> str:
    """The member's name; `./`, which `tar` puts before names of the folder it stands in, is left out.

    Raises:
        NoTar: it lies in a folder, or cannot be a name.
    """
    name = extended.get("path")
    if name is None:
        name = _text(header[:100].partition(b"\0")[0])
        if header[257:263] == b"ustar\0" and (folder := header[345:500].partition(b"\0")[0]):
            name = f"{_text(folder)}/{name}"
    name = name.removeprefix("./")
    if not name or "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
        raise NoTar(f"holds the name {_shown(name)}; names are <id>.jpg, <id>.png, <id>.json, without any folder")
    return name


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise NoTar(f"holds the name {_shown(name.decode(errors='replace'))}, which is no UTF-8") from None


def _shown(name: str) -> str:
    return ascii(name[:80])


class Writer:
    """A tar whose bytes are a function of the names and contents, in their order: no times, no owners."""

    def __init__(self, file: BinaryIO) -> None:
        # GNU's format: names of any length in UTF-8, and no headers that carry times.
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8")

    def add(self, name: str, content: Stream, size: int) -> None:
        """A member, whose content is copied and not held."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._tar.addfile(info, content)  # type: ignore[arg-type]

    def close(self) -> None:
        """Write its end; the file stays open."""
        self._tar.close()
