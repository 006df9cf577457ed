"""Shards of a store that are kept on this machine, in a folder that takes no more than it may.

Training reads pictures in random order from all shards, so a cache that turned shards out for others of the same run
would do nothing but download: what a run has begun to use stays, and shards that find no room are read range by range.
Room is made from what former runs left, the longest unused first. None of this changes a result.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segcore.data import remote


@dataclass(frozen=True)
class Cache:
    """A folder, and what the shards in it may take together."""

    folder: Path
    most_bytes: float


_cache: Cache | None = None


def use(cache: Cache | None, *_: object) -> None:
    """Keep shards there from now on, or nowhere; a process that is started anew has to be told, too."""
    global _cache  # one for the process, as a disk is: addresses are values, and pictures are read in many places
    _cache = cache


def in_use() -> Cache | None:
    """Where shards are kept."""
    return _cache


def read(address: str, offset: int, size: int, sha256: str = "") -> bytes:
    """A range of a remote file, out of the cache if the file is or can be there.

    Raises:
        Problem: it does not come, or is not what was listed.
    """
    # Without a sum nobody could tell whether a kept shard is still that of the store. `prepare` alone has none, and
    # reads everything once.
    if sha256 and (kept := _kept(address)) is not None:
        content = _of_file(kept, offset, size)
        if content is not None and remote.is_sum_of(content, sha256):
            return content
        kept.unlink(missing_ok=True)  # damaged, or the shard is another one now
    return remote.read(address, offset, size, sha256)


_BEGAN = time.time()
_without_room: set[str] = set()
_fetching = threading.Lock()


def _kept(address: str) -> Path | None:
    """The shard's file in the cache, fetched if there is room for it; None where it has to be read range by range."""
    if _cache is None or address in _without_room:
        return None
    folder, most = _cache.folder, _cache.most_bytes
    path = folder / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.tar"
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)
        return path
    # Whoever comes while the shard is fetched reads its range meanwhile.
    if not _fetching.acquire(blocking=False):
        return None
    try:
        return _fetched(address, path, folder, most)
    finally:
        _fetching.release()


def _fetched(address: str, path: Path, folder: Path, most: float) -> Path | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as alone:
            if not alone:
                return None
            whole = remote.stream(address)
            if not _made_room(folder, whole.length, most):
                _without_room.add(address)
                return None
            partial = path.with_name(f".{path.name}.partial")
            try:
                with partial.open("wb") as file:
                    while piece := whole.read(remote.PIECE):
                        file.write(piece)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            return path
    except OSError:  # a full or forbidden disk: slower, and the same
        _without_room.add(address)
        return None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process fetches into the folder, which none then does as long as the block lasts."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _made_room(folder: Path, size: int, most: float) -> bool:
    """Whether there are so many bytes left, after shards that nobody uses have gone."""
    for half in folder.glob(".*.partial"):  # of a process that was killed, as nobody else fetches now
        half.unlink(missing_ok=True)
    kept = sorted((seen.st_mtime, seen.st_size, path) for path in folder.glob("*.tar") if (seen := path.stat()))
    taken = sum(each for _, each, _ in kept)
    unused = [(each, path) for used, each, path in kept if used < _BEGAN]
    if taken - sum(each for each, _ in unused) + size > most:
        return False
    for each, path in unused:
        if taken + size <= most:
            break
        path.unlink(missing_ok=True)
        taken -= each
    return True


def _of_file(path: Path, offset: int, size: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError:
        return None
    return content if len(content) == size else None
