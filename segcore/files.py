"""Whole files: written at once or not at all, and named by what they hold."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from segcore.errors import Problem


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` at once when the block ends well.

    A crash or a full disk leaves the old file or none, never half of one. A kill may leave `.<name>.partial` behind;
    the next run writes over it.

    Raises:
        Problem: the file could not be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        # Made anew: a link that somebody put there would be followed to the file that it names.
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Problem(f"{path} could not be written ({error.strerror}); nothing that was there is lost") from error
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` at once; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def regular(path: Path) -> Path:
    """The path, unless what lies there is no file: a pipe would be waited for without end.

    Raises:
        OSError: it is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file but a folder, a pipe or a device", str(path))
    return path


def fresh_folder(folder: Path) -> None:
    """An empty folder in the place of whatever a killed run left there; a link is taken away, never followed.

    Raises:
        OSError: it could not be made.
    """
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""What a cell may begin with that a spreadsheet would run, and the mark by which `as_cell` keeps it from that."""


def as_cell(text: str) -> str:
    """A person's text for a CSV: one that a spreadsheet would take for a formula is marked as text by a `'`."""
    return f"'{text}" if text.startswith(FORMULA) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") else cell


def fingerprint(run: Any, sources: Iterable[Path]) -> str:
    """A short name for parameters and the contents of files: equal only where both are."""
    digest = hashlib.sha256()
    for piece in _as_json(run):
        digest.update(piece.encode())
    for source in sorted(sources):
        with source.open("rb") as file:  # in pieces: the tables of a million images have 100 MB
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


_AT_ONCE = 4096


def _as_json(run: Any) -> Iterator[str]:
    """The text of `json.dumps`, in pieces: that of a million ids, and they as a list, would take 130 MB."""
    if isinstance(run, list):
        yield "["
        for number, value in enumerate(run):
            yield ", " if number else ""
            yield from _as_json(value)
        yield "]"
    elif isinstance(run, Sequence) and not isinstance(run, str | bytes | tuple):
        yield "["
        for first in range(0, len(run), _AT_ONCE):
            yield ", " if first else ""
            yield json.dumps([*run[first : first + _AT_ONCE]])[1:-1]
        yield "]"
    else:
        yield json.dumps(run, sort_keys=True, default=str)
