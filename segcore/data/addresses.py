"""Where the bytes of a picture or of labels lie: a file of their own, or a range of a shard; here or in a store.

This is the one place that turns an address into bytes.
"""

import errno
from dataclasses import dataclass, replace
from pathlib import Path

from segcore.data import kept_shards, remote
from segcore.files import regular


@dataclass(frozen=True)
class Member:
    """A file inside of a tar: `size` bytes from byte `offset` of the shard on.

    `shard` is a path or an address of `fsspec` (`s3://bucket/train-00000.tar`); `name` is that in the tar, and never
    used as a path. `sha256` is what bytes that come over a network are checked against; empty where nobody knows.
    """

    shard: str
    name: str
    offset: int
    size: int
    sha256: str = ""

    @property
    def suffix(self) -> str:
        """The ending of its name, as a path has it."""
        return Path(self.name).suffix

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


Address = Path | Member


def read_bytes(address: Address) -> bytes:
    """All bytes that lie there.

    Raises:
        OSError: there are none, it is no file, or the shard ends early.
        Problem: a store does not give them, after several tries.
    """
    if isinstance(address, Path):
        return regular(address).read_bytes()
    if remote.is_remote(address.shard):
        return kept_shards.read(address.shard, address.offset, address.size, address.sha256)
    with regular(Path(address.shard)).open("rb") as file:
        file.seek(address.offset)
        content = file.read(address.size)
    if len(content) < address.size:
        raise OSError(errno.EIO, "the shard is shorter than its index says; index it anew", str(address))
    return content


def beginning(address: Address) -> bytes:
    """The first bytes, by which a kind of file is known."""
    if isinstance(address, Path):
        with regular(address).open("rb") as file:
            return file.read(512)
    return read_bytes(address)[:512]


def is_there(address: Address) -> bool:
    """Whether there is such a file or shard; of a store nobody asks, as that takes a request for each."""
    if isinstance(address, Path):
        return address.is_file()
    return remote.is_remote(address.shard) or Path(address.shard).is_file()


def seen_from(root: Path, address: Address) -> Address:
    """The same place for somebody who is not in the folder `root`, from which the address is meant."""
    if isinstance(address, Path):
        return root / address
    return address if remote.is_remote(address.shard) else replace(address, shard=str(root / address.shard))


def text_of(address: Address) -> str:
    """The address for a table: a path with slashes."""
    return address.as_posix() if isinstance(address, Path) else str(address)
