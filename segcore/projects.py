"""A project of a person's own: what `segcore new` writes, made of the project that segcore itself is.

There is one dvc.yaml. Where its check of parameters depends on source files, that of a person's project depends on
`segcore.json`, which tells the version of the package and the fingerprint of its code: another segcore makes again what
its code concerns, once the person says so (`segcore upgrade`), and never by itself in the middle of a series of
experiments.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from segcore import sources
from segcore.config import profiles
from segcore.config.reading import parsed
from segcore.errors import Problem, hint

PACKAGE = Path(__file__).parent
STAMP = "segcore.json"
"""What the check of parameters of a person's project depends on instead of source files."""

PROFILE, LITE = "own", "lite"
TRUNKS: dict[str, dict[str, Any]] = {
    "lite": {},
    "resnet18": {"name": "resnet18", "weights": "imagenet", "finer": "dilated", "normalisation": None},
    "resnet50": {"name": "resnet50", "weights": "imagenet", "finer": "dilated", "normalisation": None},
}
"""What `--trunk` may name, and how it differs from the profile's own, whose weights come with a package; those of the
others are downloaded when they are used first. What is None is no key of theirs."""

ON_GPU: dict[str, Any] = {"workers": 4, "checkpoint_every": 500}
"""Of every recipe, where there is a GPU to be kept busy."""

HEAD = """\
# Parameters of this project: the profile `own` of segcore {version}. Every value here changes a result, and a stage
# runs again only if a value that it uses changed. A typo is an error before any work starts.
"""
DVC_HEAD = """\
# Written by `segcore new` of segcore {version}; `segcore upgrade` writes it anew. Your values are in params.yaml.
"""
IGNORED = """\
__pycache__/
.venv/
.scratch/
.*.partial
/{images}/
"""
DVC_IGNORED = "__pycache__/\n.venv/\n.scratch/\n.*.partial\n.gitignore\n"
DATA_IGNORED = "data/.gitignore"
"""What of the results DVC keeps, and Git does not: the same in a project of a person's own."""

ROOMS = {
    "segmenters": "systems",
    "classifiers": "classifiers",
    "pseudo_labels": "pseudo_labels",
    "backbones": "backbones",
}
"""Where entries name each other: the folder in a path, and the section of params.yaml."""

_CODE = re.compile(r"^( *)- (?:segcore|stages)(?:/\S*)?\n", re.MULTILINE)


@dataclass(frozen=True)
class Wishes:
    """The answers to the questions that `segcore new` would ask."""

    name: str
    """What the data set is called: results lie in data/<name>/."""
    images: str
    """The folder of the project that `segcore import` fills."""
    trunk: str
    gpu: bool
    systems: tuple[str, ...]


def template() -> Path:
    """The folder with dvc.yaml and profiles/: in the package, or around it in a checkout."""
    inside = PACKAGE / "template"
    return inside if inside.is_dir() else PACKAGE.parent


def stamp() -> dict[str, str]:
    """The version of the package that runs, and a fingerprint of its code."""
    try:
        version = metadata.version("segcore")
    except metadata.PackageNotFoundError:  # a checkout that nobody installed
        version = "checkout"
    digest = hashlib.sha256()
    for name, path in sources.files().items():
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return {"version": version, "code": digest.hexdigest()[:16]}


def stamp_text() -> str:
    return json.dumps(stamp(), indent=2) + "\n"


def check_stamp(folder: Path) -> None:
    """See that the project in a folder was made for the segcore that runs.

    Raises:
        Problem: it was made for another one.
    """
    file, mine = folder / STAMP, stamp()
    try:
        theirs = json.loads(file.read_text())
    except FileNotFoundError:
        raise Problem(f"{folder.resolve()} holds no {STAMP}: it is no project of `segcore new`; go to one") from None
    except ValueError as error:
        raise Problem(f"{file} is damaged ({error}); `segcore upgrade` writes it anew") from error
    if theirs != mine:
        raise Problem(
            f"{file}: this project is of segcore {_told(theirs)}, and {_told(mine)} is installed; install the former, "
            "or run `segcore upgrade`, after which what its code concerns is made again"
        )


def _told(found: Any) -> str:
    return f"{found.get('version')} (code {found.get('code')})" if isinstance(found, Mapping) else repr(found)


def dvc_yaml() -> str:
    """The stages of a person's project: those of segcore's own, on `STAMP` in the place of source files."""
    text = (template() / "dvc.yaml").read_text()
    stages = text[text.index("stages:\n") :]
    lines: list[str] = []
    stamped = False
    for line in stages.splitlines(keepends=True):
        code = _CODE.match(line)
        if code and stamped:
            continue
        stamped = bool(code) or (stamped and line.lstrip().startswith("- "))
        lines.append(f"{code[1]}- {STAMP}\n" if code else line)
    stages = re.sub(r"python -m (?:stages|segcore\.commands)\.", "python -m segcore stage ", "".join(lines))
    return DVC_HEAD.format(version=stamp()["version"]) + stages


def params_yaml(wishes: Wishes) -> str:
    """The profile of a person's own data, with the systems that are wanted and what these are made from.

    Raises:
        Problem: a trunk or a system that there is not.
    """
    if wishes.trunk not in TRUNKS:
        raise Problem(f"found the trunk '{wishes.trunk}'; there are {', '.join(TRUNKS)}{hint(wishes.trunk, TRUNKS)}")
    folder = template() / "profiles"
    whole = parsed(profiles.compose(folder, PROFILE), f"the profile {PROFILE}")
    over: dict[str, Any] = {
        profiles.BASED_ON: PROFILE,
        "dataset": {"name": wishes.name, "root": wishes.images},
    }
    kept = _kept(whole, wishes.systems)
    for section, names in kept.items():
        over[section] = {name: None for name in whole[section] if name not in names}
    if wishes.trunk != LITE:
        _on_trunk(whole, kept, over, wishes.trunk)
    if wishes.gpu:
        over["recipes"] = {"common": dict(ON_GPU)}
    with tempfile.TemporaryDirectory() as place:
        for file in folder.glob("*.yaml"):
            shutil.copy(file, place)
        mine = Path(place) / "mine.yaml"
        with mine.open("w") as file:
            file.write(HEAD.format(version=stamp()["version"]))
            YAML().dump(over, file)
        return profiles.compose(Path(place), mine.stem)


def _kept(whole: Mapping[str, Any], wanted: Collection[str]) -> dict[str, set[str]]:
    """By section, the wanted systems and the entries that they are made from."""
    if unknown := [name for name in wanted if name not in whole["systems"]]:
        known = whole["systems"]
        raise Problem(f"found the system '{unknown[0]}'; there are {', '.join(known)}{hint(unknown[0], known)}")
    kept: dict[str, set[str]] = {section: set() for section in ROOMS.values()}
    for place in (place for name in wanted for place in _behind(whole, f"segmenters/{name}")):
        room, _, name = place.partition("/")
        if room in ROOMS:
            kept[ROOMS[room]].add(name)
    return kept


def _on_trunk(whole: Mapping[str, Any], kept: Mapping[str, set[str]], over: dict[str, Any], trunk: str) -> None:
    """Put another trunk in the place of the profile's own wherever that is used."""
    mine = whole["backbones"][LITE] | TRUNKS[trunk]
    over["backbones"] |= {LITE: None, trunk: {key: value for key, value in mine.items() if value is not None}}
    for name in kept["classifiers"]:
        if whole["classifiers"][name]["backbone"] == LITE:
            over["classifiers"][name] = {"backbone": trunk}
    for name in kept["systems"]:
        if whole["systems"][name]["start"] == f"backbones/{LITE}":
            over["systems"][name] = {"start": f"backbones/{trunk}"}


def _behind(whole: Mapping[str, Any], place: str) -> Iterator[str]:
    """What lies at a place of a data set's folder, and all that it is made from."""
    yield place
    room, _, name = place.partition("/")
    if room not in ROOMS or room == "backbones":
        return  # masks and crops are made of the data set alone
    entry = whole[ROOMS[room]][name]
    behind = [entry.get(key) for key in ("start", "labels", "input")] + [f"backbones/{entry.get('backbone')}"]
    for other in behind:
        if other not in (None, "backbones/None"):
            yield from _behind(whole, other)
