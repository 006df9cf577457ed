"""Bytes of shards in an object store or behind a web server, by `fsspec`: s3://, gs://, http:// and others.

A range that does not come is asked for again, `TRIES` times in all and after longer and longer pauses; then there is
one `Problem` that names the address. What comes is checked by its length and, where it is known, its SHA-256.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from segcore.errors import Problem

TRIES = 6
FIRST_PAUSE = 0.5
"""Seconds before the second try; each further pause is twice as long: 15 s in all."""
PATIENCE = 60.0
"""Seconds that one try may take."""
PIECE = 2**23
"""Bytes that are asked for at once when a shard is fetched whole."""

Answer = TypeVar("Answer")

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, Problem)
"""What another try does not mend."""
FORBIDDEN = (401, 403)
GONE = (404, 410)
"""Answers of a web server that are no other the next time."""


def is_remote(address: str) -> bool:
    """Whether it is an address of `fsspec`, and no path."""
    return "://" in address


def below(folder: str, name: str) -> str:
    """The address or path of what is called `name` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(Path(folder).expanduser() / name)


def size(address: str) -> int | None:
    """The bytes of a remote file; None where there is none.

    Raises:
        Problem: the store does not say.
    """
    try:
        found = _patiently(address, lambda: _asked(address, "_info").get("size"))
    except FileNotFoundError:
        return None
    if not isinstance(found, int):
        raise Problem(f"{address}: the server does not tell its size; shards need a server that gives ranges of bytes")
    return found


def read(address: str, offset: int, size: int, sha256: str = "") -> bytes:
    """A range of a remote file.

    Raises:
        Problem: it does not come, or is not what was listed.
    """
    if not size:
        return b""

    def get() -> bytes:
        content = _asked(address, "_cat_file", start=offset, end=offset + size)
        if len(content) != size:
            raise OSError(errno.EIO, f"{len(content):,} bytes came instead of {size:,}")
        if not is_sum_of(content, sha256):
            raise OSError(errno.EIO, "other bytes came than those that were listed")
        return content

    try:
        return _patiently(address, get)
    except FileNotFoundError:
        raise Problem(f"{address}: is not there; bring the shard back, or set dataset.shards to where it is") from None


def stream(address: str) -> "Whole":
    """A remote file from its first to its last byte."""
    length = size(address)
    if length is None:
        raise Problem(f"{address}: is not there; check the address")
    return Whole(address, length)


class Whole:
    """A remote file read forwards, piece by piece, each of which is asked for again if it does not come."""

    def __init__(self, address: str, length: int) -> None:
        self.address = address
        self.length = length
        self._place = 0
        self._ahead = b""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        if not self._ahead:
            wanted = min(PIECE, self.length - self._place)
            self._ahead = read(self.address, self._place, wanted)
            self._place += wanted
        given, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(given) < size and self._place < self.length:
            given += self.read(size - len(given))
        return given


def listing(address: str) -> list[str]:
    """The addresses of the tars in a remote folder, sorted.

    Raises:
        Problem: the store does not say.
    """
    protocol = address.partition("://")[0]
    try:
        found = _patiently(address, lambda: _asked(address, "_ls", detail=False))
    except FileNotFoundError:
        raise Problem(f"{address}: there is no such folder; check the address") from None
    names = sorted(str(one) for one in found if str(one).endswith(".tar"))
    return [name if is_remote(name) else f"{protocol}://{name}" for name in names]


def _asked(address: str, what: str, **how: Any) -> Any:
    """One request, which ends in time whatever the server does."""
    from fsspec.asyn import AsyncFileSystem, sync

    system, path = _system(address)
    if isinstance(system, AsyncFileSystem):
        return sync(system.loop, getattr(system, what), path, timeout=PATIENCE, **how)
    return getattr(system, what.removeprefix("_"))(path, **how)


@lru_cache(maxsize=1024)
def _resolved(address: str, process: int) -> Any:
    from fsspec.core import url_to_fs

    # Retries are ours alone; those of a store's own client would multiply with them.
    own = {"s3": {"config_kwargs": {"retries": {"max_attempts": 0}}}, "s3a": {}}
    system, path = url_to_fs(address, **own.get(address.partition("://")[0], {}))
    if hasattr(system, "retries"):  # s3fs has some beside those of its client
        system.retries = 1
    return system, path


def _system(address: str) -> Any:
    try:
        return _resolved(address, os.getpid())
    except ImportError as error:
        extra = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(address.partition("://")[0])
        cure = f"pip install {extra}" if extra else str(error)
        raise Problem(f"{address}: a package for such addresses is missing; {cure}") from None
    except ValueError as error:
        raise Problem(f"{address}: is no address that can be read ({error})") from None


def _patiently(address: str, ask: Callable[[], Answer]) -> Answer:
    """The answer, after `TRIES` tries at most.

    Raises:
        FileNotFoundError: there is nothing.
        Problem: it may not be read, or no try gave it.
    """
    last: Exception | None = None
    for number in range(TRIES):
        if number:
            time.sleep(FIRST_PAUSE * 2 ** (number - 1))
        try:
            return ask()
        except PermissionError as error:
            raise _forbidden(address, error) from error
        except Exception as error:  # each store's client raises types of its own
            last = _behind(error)
            if getattr(last, "status", None) in FORBIDDEN:
                raise _forbidden(address, last) from error
            if isinstance(last, _FINAL):
                raise
    what = str(last).strip() or type(last).__name__
    raise Problem(
        f"{address}: could not be read in {TRIES} tries ({what[:200]}); see whether its server answers, then run the "
        "same again: nothing is half-written"
    ) from last


def _behind(error: Exception) -> Exception:
    """What a web server did: fsspec says of whatever goes wrong, as it looks for a file, that the file is not there."""
    from aiohttp import ClientError

    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or getattr(cause, "status", None) in GONE:
        return error
    return cause if isinstance(cause, ClientError | TimeoutError) else error


def _forbidden(address: str, error: Exception) -> Problem:
    cure = "check the credentials that its store takes from the environment"
    return Problem(f"{address}: may not be read ({str(error)[:200]}); {cure}")


def is_sum_of(content: bytes, sha256: str) -> bool:
    """Whether this is the SHA-256 of the bytes; an empty one is that of any."""
    return not sha256 or hashlib.sha256(content).hexdigest() == sha256
