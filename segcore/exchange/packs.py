"""A devkit folder as WebDataset tars with their index, and the index of tars that are there.

The same folder gives the same bytes, whoever packs it and when. Images lie in the order of the folder's lists, so the
manifest of the shards has the order of the folder's, and everything that is made of it is equal. Nobody here reads tars
from front to back but `prepare`; a reader elsewhere that does shuffles them with a buffer, as all of them can.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.data import remote
from segcore.data.addresses import Address
from segcore.data.tars import BLOCK, NoTar, Range, Stream, Writer, members
from segcore.errors import Problem, Problems, some, together
from segcore.files import replacing, write_atomically
from segcore.importers import Entry, Listing
from segcore.importers.webdataset import COLUMNS, FORMAT, INDEX, SHARDS, Shard

PICTURES = ("jpg", "jpeg", "webp", "image.png")
LABELS = ("png", "mat")
TAGS = "json"
LONGEST_JSON = 2**16
"""What may stand behind the first dot of a name: the picture's, the mask's and the tags' ending."""

Watched = Callable[[Iterable[Entry], int], Iterable[Entry]]


@dataclass(frozen=True)
class Packed:
    """What was written or listed."""

    shards: tuple[Shard, ...]
    ignored: Counter[str]
    """Members that are neither picture, mask nor tags, by what stands behind the dot of their names."""


def pack(listing: Listing, into: Path, most_bytes: int, watched: Watched) -> Packed:
    """Write the shards of a devkit and their index into a folder that is new or empty.

    Args:
        most_bytes: of a shard, unless one image alone has more.

    Raises:
        Problem: something is wrong with the data set, as far as that shows without decoding it; the folder holds
            something; a file cannot be read or written. What was written by then has no index, which comes last.
    """
    if problems := [*listing.problems, *_cannot_be_packed(listing.entries)]:
        raise Problems("the data set cannot be packed; mend it first:", together(problems))
    into.mkdir(parents=True, exist_ok=True)
    if any(path.suffix in (".tar", ".json", ".parquet") for path in into.iterdir()):
        raise Problem(f"{into} holds shards already; give another folder, or empty this one")
    names: list[str] = []
    with _Folder(into, most_bytes) as folder:
        for entry in watched(listing.entries, len(listing.entries)):
            folder.add(entry.split, _members_of(entry, listing.classes))
        names = folder.names
    return index([str(into / name) for name in names], listing.classes, into)


def _cannot_be_packed(entries: Sequence[Entry]) -> Iterator[str]:
    with_dots = [entry.image_id for entry in entries if "." in entry.image_id]
    if with_dots:
        what = "WebDataset takes what stands behind the first dot for the ending; rename these images"
        yield f"the ids {some(with_dots)} hold dots, and {what}"
    for entry in entries:
        for path in (entry.image, entry.labels):
            if isinstance(path, Path) and not path.is_file():
                yield f"{path}: this file is missing; add it, or unlist the image"


def _members_of(entry: Entry, classes: Sequence[str]) -> list[tuple[str, Path | bytes]]:
    """The files of an image by their names in the tar; tags only where the folder tells them beside the mask."""
    found: list[tuple[str, Path | bytes]] = [(f"{entry.image_id}.{_ending(entry.image)}", _path(entry.image))]
    told: dict[str, Any] = {}
    if entry.tags is not None:
        told["tags"] = [classes[tag] for tag in entry.tags]
    if entry.skipped:
        told["difficult"] = [classes[tag] for tag in entry.skipped]
    if entry.annotated is not None:
        told["width"], told["height"] = entry.annotated
    found.append((f"{entry.image_id}.{TAGS}", json.dumps(told, ensure_ascii=False).encode()))
    if entry.labels is not None:
        found.append((f"{entry.image_id}.{entry.labels.suffix[1:].lower()}", _path(entry.labels)))
    return found


def _path(address: Address) -> Path:
    assert isinstance(address, Path), "a devkit is a folder of files"
    return address


def _ending(picture: Address) -> str:
    """JPEGs are `.jpg`; `.png` is the mask's, so a picture that is a PNG is `.image.png`."""
    ending = picture.suffix[1:].lower()
    return "image.png" if ending == "png" else "jpg" if ending == "jpeg" else ending


class _Folder:
    """Shards one after the other, each whole or not there: `train-00000.tar` and on, `val-00000.tar` and on."""

    def __init__(self, into: Path, most_bytes: int) -> None:
        self.into = into
        self.most_bytes = most_bytes
        self.names: list[str] = []
        self._counts: Counter[str] = Counter()
        self._split = ""
        self._bytes = 0
        self._open: Any = None
        self._tar: Writer | None = None

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._end(kind, error, trace)

    def add(self, split: str, files: Sequence[tuple[str, Path | bytes]]) -> None:
        """Put an image's files into the shard, or into the next one if it is full or of the other split."""
        sizes = (len(file) if isinstance(file, bytes) else file.stat().st_size for _, file in files)
        size = sum(BLOCK + -(-each // BLOCK) * BLOCK for each in sizes)
        if self._tar is None or split != self._split or self._bytes + size > self.most_bytes:
            self._end(None, None, None)
            self._begin(split)
        assert self._tar is not None
        self._bytes += size
        for name, file in files:
            if isinstance(file, bytes):
                self._tar.add(name, io.BytesIO(file), len(file))
            else:
                with file.open("rb") as content:
                    self._tar.add(name, content, file.stat().st_size)

    def _begin(self, split: str) -> None:
        name = f"{split}-{self._counts[split]:05d}.tar"
        self._counts[split] += 1
        self._split, self._bytes = split, 0
        self.names.append(name)
        self._open = replacing(self.into / name)
        self._tar = Writer(self._open.__enter__())

    def _end(self, kind: Any, error: Any, trace: Any) -> None:
        if self._tar is None:
            return
        if error is None:
            self._tar.close()
        self._tar = None
        self._open.__exit__(kind, error, trace)


# --- the index


def index(addresses: Sequence[str], classes: Sequence[str], into: Path) -> Packed:
    """Read tars once, from front to back, and write the index of what is in them.

    Args:
        addresses: paths, or addresses of `fsspec`, all in one folder.

    Raises:
        Problem: a tar cannot be read or used; nothing is written then.
    """
    shards: list[Shard] = []
    tables: list[pa.Table] = []
    ignored: Counter[str] = Counter()
    problems: list[str] = []
    for address in addresses:
        name = address.rstrip("/").rpartition("/")[2]
        reading = _Shard(name, ignored)
        try:
            with _opened(address) as file:
                summed = _Summed(file)
                lines = reading.lines(summed)
        except NoTar as error:
            problems.append(f"{address}: {error}")
            continue
        except OSError as error:
            problems.append(f"{address}: cannot be read ({error.strerror or error})")
            continue
        problems += [f"{address}: {problem}" for problem in together(reading.problems)]
        shards.append(Shard(name, summed.bytes, summed.sha256, len(lines)))
        tables.append(pa.Table.from_pylist(lines, COLUMNS))
    if not addresses:
        problems.append("there are no tars")
    if problems:
        raise Problems("these shards cannot be used:", problems)
    content = {"format": FORMAT, "classes": list(classes), "shards": [asdict(shard) for shard in shards]}
    into.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, write_page_checksum=True)
    write_atomically(into / INDEX, buffer.getvalue())
    write_atomically(into / SHARDS, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return Packed(tuple(shards), ignored)


class _Remote:
    def __init__(self, address: str) -> None:
        self.whole = remote.stream(address)

    def __enter__(self) -> Stream:
        return self.whole

    def __exit__(self, *error: object) -> None:
        return None


def _opened(address: str) -> Any:
    return _Remote(address) if remote.is_remote(address) else Path(address).open("rb")


class _Summed:
    """Bytes that are counted and summed up on their way."""

    def __init__(self, file: Stream) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int, /) -> bytes:
        content = self._file.read(size)
        self._sum.update(content)
        self.bytes += len(content)
        return content

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()


class _Shard:
    """From the members of a tar to lines of the index."""

    def __init__(self, name: str, ignored: Counter[str]) -> None:
        self.name = name
        self.ignored = ignored
        self.problems: list[str] = []

    def lines(self, tar: Stream) -> list[dict[str, Any]]:
        """A line for each image, in their order."""
        found: dict[str, dict[str, Any]] = {}
        for member, content in members(tar, f".{TAGS}", LONGEST_JSON):
            image_id, _, ending = member.name.partition(".")
            line = found.setdefault(image_id, {"image_id": image_id, "shard": self.name})
            ending = ending.lower()
            if ending in PICTURES or ending in LABELS:
                self._place(line, "picture" if ending in PICTURES else "labels", member)
            elif ending == TAGS:
                if "told" in line:
                    self.problems.append(f"holds {member.name} twice")
                line |= self._told(member.name, content or b"") | {"told": True}
            else:
                self.ignored[ending] += 1
        for image_id, line in found.items():
            if "picture_name" not in line:
                endings = ", ".join(f".{one}" for one in PICTURES)
                self.problems.append(f"has no picture of {image_id[:80]!r}; pictures end in {endings}")
        return [{name: line.get(name) for name in COLUMNS.names} for line in found.values()]

    def _place(self, line: dict[str, Any], kind: str, member: Range) -> None:
        if f"{kind}_name" in line:
            what = "two pictures" if kind == "picture" else "two masks"
            self.problems.append(f"has {what} of {line['image_id'][:80]!r}, {member.name[:80]!r} and another")
        line |= {f"{kind}_name": member.name, f"{kind}_offset": member.offset, f"{kind}_size": member.size}

    def _told(self, name: str, content: bytes) -> dict[str, Any]:
        """What the tags' file says; whatever else stands there is somebody else's."""
        try:
            told = json.loads(content)
            if not isinstance(told, Mapping):
                raise ValueError("it is no object")
            for key in ("tags", "difficult"):
                names = told.get(key)
                if names is not None and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
                    raise ValueError(f"its {key} are no list of names")
            sides = [told.get(side) for side in ("width", "height")]
            if not all(side is None or (type(side) is int and 0 < side < 2**31) for side in sides):
                raise ValueError("its width or height is no number of pixels")
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{name[:80]!r} cannot be read as JSON with tags ({str(error)[:100]})")
            return {}
        return {key: told.get(key) for key in ("tags", "difficult", "width", "height")}
