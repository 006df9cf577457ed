"""Files and folders that `params.yaml` names and no stage makes: tables, lists, weights, saliency maps, cues.

DVC follows what `dvc.yaml` lists, and a template cannot list a file that only some parameters name. So a small stage
that always runs sums these up, and `check_params` writes the sum of each beside the parameters of the stages that read
it: edited, they run again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segcore.config.networks import NAMED_WEIGHTS
from segcore.files import write_atomically

PLACES = {
    ("tags", "file"),
    ("dataset", "sbd_root"),
    ("strong", "file"),
    ("edges", "model"),
    ("background", "root"),
    (None, "weights"),
    (None, "input"),
}
"""Where paths stand: the key, and that of the mapping above it; None where that is a name of an entry."""

FILE = "outside_files.json"
"""What the stage writes into the data set's folder."""


def named(content: Any, above: str | None = None) -> Iterator[tuple[str, str]]:
    """The paths in parameters, or in a part of them, each with the key that it stands at."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if isinstance(value, str) and ((above, key) in PLACES or (None, key) in PLACES):
            is_weights = key == "weights" and value not in NAMED_WEIGHTS
            is_cues = key == "input" and content.get("source") == "cues_file"
            if (above, key) in PLACES or is_weights or is_cues:
                yield key, value
        else:
            yield from named(value, str(key))


def sums(content: Any, root: object, data: Path, scratch: Path) -> dict[str, str | None]:
    """A sum of what lies at each path in parameters; None where there is nothing that can be read.

    Args:
        root: `dataset.root`, from which a table of tags is meant first.
        data: the data set's folder, from which cues are meant.
        scratch: where sums of large files are kept from run to run.
    """
    found: dict[str, str | None] = {}
    for key, name in named(content):
        path = Path(name).expanduser()
        places = {"input": [data / name], "sbd_root": [path / "cls"]}.get(key, [path])
        places += [Path(root).expanduser() / name] if key == "file" and isinstance(root, str) else []
        read = [_sum(place, scratch) for place in places]
        found[name] = read[0] if len(read) == 1 or not any(read[1:]) else _short(json.dumps(read).encode())
    return dict(sorted(found.items()))


def _sum(place: Path, scratch: Path) -> str | None:
    """By the content of every file, read again only where a name, a size or a time of change is another."""
    try:
        files = sorted(_below(place))
        looks = [[name, seen.st_size, seen.st_mtime_ns, seen.st_ino] for name, seen in files]
        if not files:
            return None
        kept = scratch / f"{_short(str(place.resolve()).encode())}.json"
        look = _short(json.dumps(looks).encode())
        known = _kept(kept)
        if known.get("look") == look and isinstance(known.get("sum"), str):
            return known["sum"]
        whole = hashlib.sha256()
        for name, _ in files:
            with (place / name if name else place).open("rb") as file:
                whole.update(name.encode("utf-8", "surrogateescape") + b"\0")
                whole.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        return f"cannot be read: {error.strerror}" if os.path.lexists(place) else None
    scratch.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps({"look": look, "sum": whole.hexdigest()}).encode())
    return whole.hexdigest()


def _below(place: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The regular files of a folder, by their paths inside; the file itself, under no name."""
    if place.is_file():
        yield "", place.stat()
    elif place.is_dir():
        for folder, _, names in os.walk(place):
            for name in names:
                file = Path(folder) / name
                if file.is_file():
                    yield file.relative_to(place).as_posix(), file.stat()


def _kept(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
