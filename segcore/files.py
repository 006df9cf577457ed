"""Whole files: written at once or not at all, and named by what they hold."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
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
        with partial.open("wb") as file:
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


def fingerprint(run: Any, sources: Iterable[Path]) -> str:
    """A short name for parameters and the contents of files: equal only where both are."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode())
    for source in sorted(sources):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:16]
