"""Profiles: complete parameter files, or what differs from another one (`based_on`), composed with their comments."""

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from segcore.config import reading
from segcore.config.reading import DISCRIMINATORS
from segcore.errors import Problem, hint

BASED_ON = "based_on"
WIDTH, NULL = 120, "tag:yaml.org,2002:null"


def names(folder: Path) -> list[str]:
    """The profiles in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def compose(folder: Path, name: str) -> str:
    """The text of a complete `params.yaml` for a profile, with the comments of the profiles that it is made of.

    A profile is laid over the one that it is `based_on`: mappings are merged key by key, everything else replaces what
    was there. A mapping of another kind than the one below (another `kind`, `layout` or `source`) replaces it whole,
    and null takes a named entry away.

    Raises:
        Problem: there is no such profile, or it is based on itself.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = WIDTH
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(NULL, "null"))
    merged = _merged(folder, name, yaml, ())
    text = io.StringIO()
    yaml.dump(merged, text)
    return _aired(text.getvalue())


def _merged(folder: Path, name: str, yaml: YAML, above: tuple[str, ...]) -> CommentedMap:
    if name in above:
        raise Problem(f"{folder / name}.yaml: is based on itself, by way of {', '.join(above)}")
    if name not in (known := names(folder)):
        raise Problem(f"found the profile '{name}'; {folder} has {', '.join(known)}{hint(name, known)}")
    reading.read(folder / f"{name}.yaml")  # tells what is wrong with it
    own: CommentedMap = yaml.load(folder / f"{name}.yaml")
    if BASED_ON not in own:
        return own
    base = _merged(folder, own.pop(BASED_ON), yaml, (*above, name))
    _lay(base, own, depth=0)
    # The comment at the head of a file stands before its first key.
    base.ca.comment = copy.deepcopy(own.ca.comment)
    return base


def _lay(base: CommentedMap, over: Mapping[str, Any], depth: int) -> None:
    for key, value in over.items():
        below = base.get(key)
        if value is None and depth == 1 and isinstance(below, Mapping):
            del base[key]
        elif isinstance(value, CommentedMap) and isinstance(below, CommentedMap) and _alike(below, value):
            if not value.fa.flow_style():
                below.fa.set_block_style()
            _lay(below, value, depth + 1)
        else:
            if value != below:
                _drop_remark(base, key)
            base[key] = value
        if isinstance(over, CommentedMap) and key in over.ca.items and key in base:
            base.ca.items[key] = over.ca.items[key]


def _drop_remark(base: CommentedMap, key: str) -> None:
    """Take away what stands beside a value that is replaced; lines below it are about what follows, and stay."""
    token = (base.ca.items.get(key) or [None] * 3)[2]
    if token is not None and token.value.startswith("#"):
        token.value = "\n" + token.value.partition("\n")[2]


def _alike(below: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether two mappings are of one kind, so that the keys of the one make sense in the other."""
    return all(key not in over or over[key] == below.get(key) for key in DISCRIMINATORS)


def _aired(text: str) -> str:
    """One blank line before every section and its comments, and none elsewhere: laid over others, they go astray."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        head = not line.startswith((" ", "#"))
        if head and lines:
            above = len(lines)
            while above and lines[above - 1].startswith("#"):
                above -= 1
            if above:
                lines.insert(above, "")
        lines.append(line)
    return "\n".join(lines) + "\n"
