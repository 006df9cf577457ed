"""Per-image work of a stage in shards: `--shard i/n` does the i-th of n parts, and a run without it merges them.

A shard is what `Runtime.shard` gives one of n processes, kept on disk. It is done in pieces of a few batches; each is a
ZIP that is written whole or not at all, so a shard that was stopped goes on, and one that is done does nothing. They
lie in `<folder>/<out of the stage>/<key>/<i>-of-<n>/`, the key being a fingerprint of all that the result depends on:
what was made of other parameters, data or code is never taken. No folder is any stage's output: DVC clears those.

A run without `--shard`, such as DVC starts, that finds shards of its stage takes them all, or says which are missing.
It takes them away once the result is written.
"""

import contextlib
import io
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from segcore.cli import held, scratch
from segcore.cli.console import say
from segcore.errors import EXAMPLES, Problem
from segcore.files import replacing

FOLDER = Path(".scratch/shards")
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The first date that a ZIP can tell: when a piece was made is no part of it."""

IMAGES = 64
"""In a piece, or one batch if that is more: so much is done again after a kill."""

Members = Mapping[str, bytes | Path]
"""What a piece holds, by name: the content, or the file that has it."""

BROKEN = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, KeyError, ValueError)
"""What reading a damaged piece may raise."""


Item = TypeVar("Item")


@runtime_checkable
class Processes(Protocol):
    """What is asked of `processes.Runtime`, which brings torch along."""

    @property
    def is_main(self) -> bool: ...
    def shard(self, items: Sequence[Item]) -> list[Item]: ...
    def gather(self, value: Item) -> list[Item]: ...
    def wait(self) -> None: ...


class OneProcess:
    """For work that torchrun does not share out."""

    is_main = True

    def shard(self, items: Sequence[Item]) -> list[Item]:
        return list(items)

    def gather(self, value: Item) -> list[Item]:
        return [value]

    def wait(self) -> None:
        """Nobody else is there."""


@dataclass(frozen=True)
class Shard:
    """The `number`-th, from 1, of `of` parts."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number}-of-{self.of}"


def shard(text: str) -> Shard:
    """What `--shard` says.

    Raises:
        Problem: it is not `i/n`.
    """
    part, _, parts = text.partition("/")
    if not (re.fullmatch(r"[0-9]{1,9}", part) and re.fullmatch(r"[0-9]{1,9}", parts) and 1 <= int(part) <= int(parts)):
        raise Problem(f"--shard: found '{text}'; it must be i/n, such as 2/8 for the second of eight parts")
    return Shard(int(part), int(parts))


class Work:
    """The work of one stage on its images, in shards.

    Args:
        out: the folder of the stage's results, by whose name its shards lie in `folder`.
        key: a fingerprint of all that the result depends on.
        count: of the images, which are known by their places in the stage's list.
        block: images that must be done together, a batch: shards are dealt out in whole blocks.
    """

    def __init__(self, out: Path, folder: Path, key: str, count: int, block: int) -> None:
        absolute = out.resolve()
        inside = absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else None
        self.all = folder / (inside or Path(*absolute.parts[1:]))
        self.folder = self.all / key
        self.count, self.block = count, block

    def folder_of(self, one: Shard) -> Path:
        return self.folder / one.name

    def pieces(self, one: Shard) -> list[tuple[Path, list[int]]]:
        """The files of a shard, each with the places of its images."""
        starts = range((one.number - 1) * self.block, self.count, one.of * self.block)
        blocks = [range(first, min(first + self.block, self.count)) for first in starts]
        size = max(1, IMAGES // self.block)
        groups = [blocks[first : first + size] for first in range(0, len(blocks), size)]
        places = [[place for block in group for place in block] for group in groups]
        return [(self.folder_of(one) / f"{number:06d}.zip", some) for number, some in enumerate(places)]

    @contextlib.contextmanager
    def alone(self, one: Shard, runtime: Processes) -> Iterator[None]:
        """The shard's folder, there and this run's alone.

        Raises:
            Problem: another run is at work on the shard.
        """
        folder = self.folder_of(one)
        with held.held(folder, patiently=False) if runtime.is_main else contextlib.nullcontext():
            folder.mkdir(parents=True, exist_ok=True)
            yield

    def left(
        self, one: Shard, runtime: Processes, is_good: Callable[[Path, list[int]], bool] | None = None
    ) -> list[tuple[Path, list[int]]] | None:
        """The pieces of a shard that this process of torchrun has to make; None where no process has any.

        Those that are there are left out, if they are still good.
        """
        pieces = runtime.shard(self.pieces(one))
        mine = [p for p in pieces if not (p[0].is_file() and (is_good is None or is_good(*p)))]
        return mine if any(runtime.gather(bool(mine))) else None

    def make(
        self, one: Shard, runtime: Processes, left: list[tuple[Path, list[int]]], make: Callable[[list[int]], Members]
    ) -> None:
        """Make these pieces of the shard."""
        for number, (file, places) in enumerate(left, start=1):
            write(file, make(places))
            say(f"shard {one}: {number} of {len(left)} pieces done")
        runtime.wait()

    def do(
        self,
        one: Shard,
        runtime: Processes,
        make: Callable[[list[int]], Members],
        is_good: Callable[[Path, list[int]], bool] | None = None,
    ) -> None:
        """Do what is left of a shard, where nothing has to be prepared for it."""
        with self.alone(one, runtime):
            if (left := self.left(one, runtime, is_good)) is not None:
                self.make(one, runtime, left, make)
            self.tell(one)

    def tell(self, one: Shard) -> None:
        """Say that a shard is done."""
        images = sum(len(places) for _, places in self.pieces(one))
        say(f"shard {one} is done: {images} of {self.count} images, in {self.folder_of(one)}")

    def found(self) -> list[tuple[Path, list[int]]]:
        """The pieces of all shards, if there are any, in the order of the shards.

        Raises:
            Problem: a shard is missing, or lacks pieces; there are shards of other parameters, or of two divisions.
        """
        shards = [Shard(int(m[1]), int(m[2])) for m in map(_folder_name, self.folder.glob("*-of-*")) if m is not None]
        others = [one for one in self._keys() if one != self.folder and any(one.glob("*-of-*/*.zip"))]
        if not shards:
            if not others:
                return []
            raise Problem(
                f"{others[0]} holds shards that were made of other parameters, data or code, and there are none of "
                "today's; run all shards again, or delete that folder to do the work in one run"
            )
        divisions = sorted({one.of for one in shards})
        if len(divisions) > 1:
            raise Problem(
                f"{self.folder} holds shards of {' and of '.join(map(str, divisions))} parts; "
                f"delete those of all but one division, such as {self.folder}/*-of-{divisions[0]}"
            )
        whole = [Shard(number, divisions[0]) for number in range(1, divisions[0] + 1)]
        lacking = {one: sum(not file.is_file() for file, _ in self.pieces(one)) for one in whole}
        missing = {one: f"{lacks} of {len(self.pieces(one))} pieces" for one, lacks in lacking.items() if lacks}
        if missing:
            told = ", ".join(f"--shard {one} ({lacks})" for one, lacks in [*missing.items()][:MOST])
            more = f" and {len(missing) - MOST} more" if len(missing) > MOST else ""
            beside = f" ({others[0]} holds some of other parameters, data or code)" if others else ""
            raise Problem(
                f"{self.folder}: of {divisions[0]} shards {len(missing)} are not done, and lack: {told}{more}{beside}; "
                f"run those, then this again, or delete {self.folder} to do the work in one run"
            )
        say(f"merging {divisions[0]} shards of {self.count} images")
        return [piece for one in whole for piece in self.pieces(one)]

    def again(self, wrong: Sequence[Path], why: str) -> Problem:
        """Pieces that cannot be merged, by the shards that must be run again."""
        shards = list(dict.fromkeys(f"--shard {file.parent.name.replace('-of-', '/')}" for file in wrong))
        more = f" and {len(shards) - MOST} more" if len(shards) > MOST else ""
        return Problem(f"{self.folder}: {why}; run {', '.join(shards[:MOST])}{more} again, then this")

    def clear(self) -> None:
        """Take all shards of the stage away, also those of former parameters: they are merged."""
        for folder in self._keys():
            shutil.rmtree(folder, ignore_errors=True)

    def _keys(self) -> list[Path]:
        """The folders of shards for this stage; beside them may lie stages whose results lie within its own."""
        return [folder for folder in sorted(self.all.glob("*")) if re.fullmatch(scratch.FINGERPRINT, folder.name)]


MOST = 3 * EXAMPLES
"""Shards that a message names."""


def _folder_name(folder: Path) -> re.Match[str] | None:
    return re.fullmatch(r"([1-9][0-9]{0,8})-of-([1-9][0-9]{0,8})", folder.name)


def write(file: Path, members: Members) -> None:
    """A piece; the same members give the same bytes."""
    with replacing(file) as target, zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            content = content.read_bytes() if isinstance(content, Path) else content
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), content)


class Piece:
    """A piece that was written, read member by member.

    Raises:
        Problem: it is damaged, at once or when a member is read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(file.read_bytes()))
        except BROKEN as error:
            raise self._damaged(error) from None
        self.names = self._archive.namelist()

    def __getitem__(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except BROKEN as error:
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> Problem:
        shard = self.file.parent.name.replace("-of-", "/")
        return Problem(f"{self.file} is damaged ({error}); delete it, and run --shard {shard} again, then this")
