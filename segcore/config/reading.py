"""Reads YAML and checks a section against its model: a mistake becomes a sentence that a person can act on.

A typo, a wrong type or a value out of range becomes one `Problems` that names every key, what was found and what is
allowed.
"""

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from segcore.config.section import LIKE, NAME
from segcore.errors import Problem, Problems, hint

MISTAKE = "params.yaml has a mistake:"
DISCRIMINATORS = ("kind", "layout", "source", "calibrate")
"""Keys that say which of several models a section is."""

SectionType = TypeVar("SectionType")


def read(path: Path) -> dict[str, Any]:
    """The plain content of a parameters file, as DVC reads it (YAML 1.2)."""
    try:
        return parsed(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise Problem(f"there is no parameters file {path}; start from one of profiles/*.yaml") from None
    except OSError as error:
        raise Problem(f"the parameters file {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is not valid YAML: {error}") from None


def parsed(text: str, name: str) -> dict[str, Any]:
    """The plain content of a text; `name` says where it stands."""
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise Problem(f"{name} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise Problem(f"{name} must hold sections, found {type(content).__name__}")
    return content


def section(params: Mapping[str, Any], name: str, into: type[SectionType] | Any) -> SectionType:
    """The section at the dotted `name`, checked; `into` is a model, or a union of models with a discriminator.

    Raises:
        Problems: a key is missing, unknown, of another type or out of range; all of them are listed.
    """
    value: Any = params
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            have = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise Problem(f"params.yaml has no section '{name}': '{key}' is missing; here are {have}")
        value = value[key]
    try:
        # By way of JSON, so that a YAML list is taken for a tuple while types stay strict otherwise.
        # What JSON lacks, a date for one, becomes text.
        return TypeAdapter(into).validate_json(json.dumps(value, default=str))
    except TypeError as error:  # YAML takes dates and lists for keys, JSON does not
        raise Problems(MISTAKE, [f"{name}: found a key that is no text ({error})"]) from None
    except ValidationError as error:
        raise Problems(MISTAKE, [_sentence(name, into, e) for e in _telling(error.errors())]) from None


def _telling(errors: Sequence[Any]) -> Iterator[Any]:
    """Without what is said of the other keys of a section that is of the wrong kind, and of the length of a list whose
    items are told to be wrong: pydantic counts the right ones."""
    wrong = {e["loc"][:-1] for e in errors if e["type"] == "literal_error" and e["loc"][-1] in DISCRIMINATORS}
    for error in errors:
        where = error["loc"]
        if error["type"] == "too_short" and any(e["loc"] != where and e["loc"][: len(where)] == where for e in errors):
            continue
        above = [error["loc"][:length] for length in range(len(error["loc"]))]
        if wrong.isdisjoint(above) or error["loc"][-1] in DISCRIMINATORS:
            yield error


def _sentence(name: str, into: Any, error: Any) -> str:
    path, model = _followed(into, error["loc"])
    where = ".".join([name, *path])
    found, kinds = error["input"], _kinds(model)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        ((key, allowed),) = kinds.items()
        what = f"found {found[key]!r}" if key in found else "this key is missing"
        return f"{where}.{key}: {what}; allowed are {', '.join(allowed)}{hint(found.get(key), allowed)}"
    if kinds and not isinstance(found, Mapping):
        ((key, allowed),) = kinds.items()
        return f"{where}: found {found!r}; it must hold keys, `{key}` among them, which is one of {', '.join(allowed)}"
    if error["type"] == "string_pattern_mismatch":
        allowed = _shown(error["ctx"]["pattern"])
        return f"{where}: found {found!r}; allowed are {', '.join(allowed)}{hint(found, allowed)}"
    if error["type"] == "extra_forbidden":
        _, above = _followed(into, error["loc"][:-1])
        allowed = sorted(key for option in _models(above) for key in option.model_fields)
        key = error["loc"][-1]
        meant = hint(key, allowed) or f"; drop it (by -S '~{where}')"
        return f"{where}: unknown key, found {found!r}; allowed here are {', '.join(allowed)}{meant}"
    if error["type"] == "missing":
        return f"{where}: this key is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if isinstance(found, Mapping) and error["type"] == "value_error":
        return f"{where}: {message}"  # the message of a rule over several keys names what it found
    return f"{where}: found {found!r}; {message}"


def _shown(pattern: str) -> list[str]:
    """What a pattern allows: names, or a choice of words and paths."""
    if pattern == NAME:
        return [LIKE]
    name, file = NAME.strip("^$"), r"[^/\\]+"
    text = pattern.strip("^$").replace(name, "<name>").replace(file, "<file>").replace("\\.", ".")
    choices, _, rest = text.removeprefix("(").partition(")")
    return [choice + rest for choice in choices.split("|")]


def _followed(into: Any, loc: tuple[Any, ...]) -> tuple[list[str], Any]:
    """The keys of a place, without the tags that pydantic puts among them, and what belongs there."""
    path: list[str] = []
    for number, part in enumerate(loc):
        models = _models(into)
        chosen = [m for m in models if len(models) > 1 and _is_tag(part, m)]
        if chosen and not (len(models) == 1 and part in models[0].model_fields):
            into = Union[tuple(chosen)]  # noqa: UP007 - they may share one discriminator, and differ in the next
            continue
        path.append(str(part))
        if isinstance(part, int) and get_origin(into) is tuple:
            into = get_args(into)[0]
            continue
        fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if not fields:
            return path + [str(rest) for rest in loc[number + 1 :]], None
        into = fields[0]
    return path, into


def _models(into: Any) -> list[type[BaseModel]]:
    """The models that a type allows."""
    if isinstance(into, type) and issubclass(into, BaseModel):
        return [into]
    if get_origin(into) in (Annotated, Union, types.UnionType):
        parts = get_args(into)[:1] if get_origin(into) is Annotated else get_args(into)
        return [model for part in parts for model in _models(part)]
    return []


def _is_tag(part: Any, model: type[BaseModel]) -> bool:
    """Whether a part of a place means this model: a value of its discriminator, or its name where a function chose."""
    return part == model.__name__ or any(part in _tags(model, key) for key in DISCRIMINATORS)


def _tags(model: type[BaseModel], key: str) -> Iterator[str]:
    """The values of a discriminator that mean this model, as pydantic names them."""
    field = model.model_fields.get(key)
    if field is not None and get_origin(field.annotation) is Literal:
        yield from map(str, get_args(field.annotation))
    elif field is not None and field.annotation is type(None):
        yield str(None)


def _kinds(into: Any) -> dict[str, list[str]]:
    """The discriminator of a union of models, and its values; empty for a single model."""
    models = _models(into)
    if len(models) < 2:
        return {}
    tags = {key: [list(_tags(model, key)) for model in models] for key in DISCRIMINATORS}
    telling = {key: {tag for own in found for tag in own} for key, found in tags.items() if all(found)}
    first = next((key for key, values in telling.items() if len(values) > 1), None)
    if first is None:
        return {}
    return {first: ["null" if tag == str(None) else tag for tag in sorted(telling[first])]}
