"""The layout of WebDataset tars: `<id>.jpg`, `<id>.json` with the tags, `<id>.png` with the mask where there is one.

The tars are read by an index that lies beside them or, for tars in an object store, in a folder here: `shards.json`
(class names; name, bytes and SHA-256 of each tar) and `index.parquet` (a line an image: where its picture and mask lie,
its tags). `exchange.packs` makes both. So tars are never searched, and DVC follows them, or their sums, and no images.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.config.data import ShardsParams
from segcore.data import remote
from segcore.data.addresses import Member
from segcore.data.manifest import Split, wrong_id
from segcore.errors import About, Problem, Problems, some
from segcore.files import regular
from segcore.importers import Entry, Listing
from segcore.importers.folders import one_form
from segcore.importers.voc import wrong_classes

SHARDS, INDEX = "shards.json", "index.parquet"
FORMAT = 1

_TEXT, _WHOLE = pa.string(), pa.int64()
_FILE = {"name": _TEXT, "offset": _WHOLE, "size": _WHOLE}
COLUMNS = pa.schema(
    [("image_id", _TEXT), ("shard", _TEXT)]
    + [(f"picture_{part}", kind) for part, kind in _FILE.items()]
    + [(f"labels_{part}", kind) for part, kind in _FILE.items()]
    + [("tags", pa.list_(_TEXT)), ("difficult", pa.list_(_TEXT)), ("width", _WHOLE), ("height", _WHOLE)]
)
"""Of `index.parquet`. `tags` is null where those of the mask are to be taken, `labels_*` where there is no mask;
`difficult` are classes that the mask may show beside; `width` and `height` are those that the annotation tells."""

BATCH = 10_000


@dataclass(frozen=True)
class Shard:
    """A tar as the index knows it: `images` of one split."""

    name: str
    bytes: int
    sha256: str
    images: int

    @property
    def split(self) -> Split | None:
        """By its name, as `train-00000.tar`."""
        return next((split for split in get_args(Split) if self.name.startswith(f"{split}-")), None)


@dataclass(frozen=True)
class Tars:
    """The content of `shards.json`."""

    classes: tuple[str, ...]
    shards: tuple[Shard, ...]


def read(root: Path, params: ShardsParams) -> Listing:
    """List the images of all shards with their labels and tags; tars are looked for, not opened.

    Raises:
        Problem: there is no index in `root`, or the shards are others. Everything else that is wrong is in the
            listing's `problems`.
    """
    tars = read_tars(root / SHARDS)
    at = params.shards if params.shards is not None else str(root)
    if wrong := _wrong_shards(at, tars.shards):  # told at once, as none of their pictures could be read
        raise Problems(f"the shards in {at} are not those of the index in {root}:", wrong)
    problems = wrong_classes(root / SHARDS, tars.classes)
    reading = _Reading(root / INDEX, at, tars, problems)
    entries = reading.entries()
    splits = Counter(entry.split for entry in entries)
    problems += [f"{root / INDEX}: there are no {split} images" for split in get_args(Split) if not splits[split]]
    measuring = [entry for entry in entries if entry.split == "val"]
    warnings: list[tuple[str, str]] = []
    if measuring and all(entry.labels is None and entry.tags is not None for entry in measuring):
        what = f"none of the {len(measuring)} validation images has a mask"
        warnings.append(("tags_alone", f"{what}: systems are measured by their tags alone, and have no mIoU"))
    else:
        problems += [
            About(str(entry.image), "a validation image without a mask, by which others are measured: add one")
            for entry in measuring
            if entry.labels is None
        ]
    return Listing(tars.classes, tuple(entries), tuple(problems), tuple(warnings))


def read_tars(path: Path) -> Tars:
    """The tars that an index is of.

    Raises:
        Problem: there is no such file, or it is none.
    """
    try:
        found = json.loads(regular(path).read_bytes())
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}; this version of segcore reads {FORMAT}")
        shards = tuple(Shard(**{**one, "bytes": int(one["bytes"])}) for one in found["shards"])
        if not all(isinstance(name, str) for name in (*found["classes"], *(shard.name for shard in shards))):
            raise ValueError("names are no texts")
        return Tars(tuple(found["classes"]), shards)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise Problem(
            f"dataset.root: {path}: is no index of shards ({reason}); `segcore pack` writes one with the shards, "
            "`segcore index` writes one of shards that are there"
        ) from None


def _wrong_shards(at: str, shards: Sequence[Shard]) -> list[str]:
    """What does not fit the index: tars that are not there, are of another size, or of no split."""
    problems = [f"{at}: the index lists no shards"] if not shards else []
    for shard in shards:
        where = remote.below(at, shard.name)
        if shard.split is None or wrong_id(shard.name) is not None:
            names = " or ".join(f"{split}-00000.tar" for split in get_args(Split))
            problems.append(About(where, f"its name does not tell whether it is trained on; names are {names}"))
            continue
        size = remote.size(where) if remote.is_remote(where) else _size(Path(where))
        if size is None:
            problems.append(About(where, "this shard is missing; bring it back (`dvc pull`), or set dataset.shards"))
        elif size != shard.bytes:
            told = f"has {size:,} bytes and its index says {shard.bytes:,}"
            problems.append(f"{where}: {told}; bring the shard back, or run `segcore index` on what is there")
    return problems


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


class _Reading:
    """From lines of the index to entries; what is wrong with a line goes to the problems."""

    def __init__(self, index: Path, at: str, tars: Tars, problems: list[str]) -> None:
        self.index = index
        self.problems = problems
        self.numbers = {name: number for number, name in enumerate(tars.classes)}
        self.shards = {shard.name: (shard, remote.below(at, shard.name)) for shard in tars.shards}

    def entries(self) -> list[Entry]:
        """Those of all lines, in their order.

        Raises:
            Problem: it is no index.
        """
        try:
            with pq.ParquetFile(regular(self.index), page_checksum_verification=True) as file:
                lacking = {*COLUMNS.names} - {*file.schema_arrow.names}
                if lacking:
                    raise ValueError(f"it lacks the columns {sorted(lacking)}")
                batches = file.iter_batches(BATCH, columns=COLUMNS.names)
                lines = (line for batch in batches for line in batch.cast(COLUMNS).to_pylist())
                found = [entry for line in lines if (entry := self._entry(line)) is not None]
        except (OSError, ValueError, NotImplementedError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise Problem(
                f"{self.index}: is no index of shards ({reason}); run `segcore index` on the shards"
            ) from None
        counts = Counter(one_form(entry.image_id) for entry in found)  # some file systems take two spellings for one
        twice = [image_id for image_id, count in counts.items() if count > 1]
        if twice:
            self.problems.append(f"{self.index}: the ids {some(twice)} are listed more than once; leave one of each")
        return found

    def _entry(self, line: Mapping[str, Any]) -> Entry | None:
        image_id, where = line["image_id"], f"{self.index}: {str(line['image_id'])[:80]!r}"
        if (wrong := wrong_id(image_id)) is not None:
            self.problems.append(f"{where}: {wrong}")
            return None
        if line["shard"] not in self.shards:
            self.problems.append(f"{where}: is in the shard {line['shard']!r}, which {SHARDS} does not list")
            return None
        shard, address = self.shards[line["shard"]]
        picture = self._member(line, "picture", shard, address, where)
        labels = self._member(line, "labels", shard, address, where) if line["labels_name"] is not None else None
        if picture is None or shard.split is None:
            return None
        if labels is None and line["tags"] is None:
            advice = "has neither tags in its .json nor a mask; add one of them, or take it out of the shard"
            self.problems.append(About(str(picture), advice))
        return Entry(
            image_id=image_id,
            split=shard.split,
            image=picture,
            labels=labels,
            tags=None if line["tags"] is None else self._classes(line["tags"], where),
            skipped=self._classes(line["difficult"] or (), where),
            annotated=None if None in (line["width"], line["height"]) else (line["width"], line["height"]),
        )

    def _member(self, line: Mapping[str, Any], kind: str, shard: Shard, address: str, where: str) -> Member | None:
        name, offset, size = (line[f"{kind}_{part}"] for part in ("name", "offset", "size"))
        if not isinstance(name, str) or "/" in name or None in (offset, size):
            self.problems.append(f"{where}: its {kind} has no name, offset or size")
        elif not (0 < offset <= offset + size <= shard.bytes):
            range_ = f"bytes {offset} to {offset + size}"
            self.problems.append(f"{where}: its {kind} are {range_} of {shard.name}, which has {shard.bytes}")
        else:
            return Member(address, name, offset, size)
        return None

    def _classes(self, names: Sequence[str], where: str) -> tuple[int, ...]:
        numbers = {self.numbers.get(name, 0) for name in names}
        if 0 in numbers:
            strange = [str(name) for name in names if self.numbers.get(name, 0) == 0]
            self.problems.append(f"{where}: {some(strange)} is no class; {SHARDS} has {some([*self.numbers][1:])}")
        return tuple(sorted(numbers - {0}))
