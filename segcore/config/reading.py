"""Reads `params.yaml` and checks it against the models of `segcore.config.sections`: the only reader of YAML.

A typo, a wrong type or a value out of range becomes one `Problems` that names every key, what was found and what is
allowed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from segcore.config.networks import ClassifierParams, FullyConnectedParams, StochasticParams
from segcore.config.sections import (
    NAME,
    CropsParams,
    DatasetParams,
    EvaluationParams,
    PseudoLabelParams,
    RecipeParams,
    SplitParams,
    SystemEntry,
)
from segcore.errors import Problem, Problems, hint

CROPS = "data/crops/crops.parquet"
MANIFEST = "data/prepared/manifest.parquet"
PSEUDO_LABELS = "data/pseudo_labels/"
"""What `systems.<name>.labels` may name: the crop index, the masks of the manifest, a folder of pseudo-labels."""

KINDS: dict[str, type[BaseModel]] = {"fully_connected": FullyConnectedParams, "stochastic": StochasticParams}
"""What `head.kind` may be; pydantic puts it among the keys of a mistake in a head."""

SectionType = TypeVar("SectionType", bound=BaseModel)


def read(path: Path) -> dict[str, Any]:
    """The plain content of a parameters file, as DVC reads it (YAML 1.2)."""
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise Problem(f"there is no parameters file {path}; start from one of profiles/*.yaml") from None
    except OSError as error:
        raise Problem(f"the parameters file {path} cannot be read ({error.strerror})") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise Problem(f"{path} must hold sections, found {type(content).__name__}")
    return content


def section(params: Mapping[str, Any], name: str, into: type[SectionType]) -> SectionType:
    """The section at the dotted `name`, checked.

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
        return into.model_validate_json(json.dumps(value, default=str))
    except TypeError as error:  # YAML takes dates and lists for keys, JSON does not
        raise Problems("params.yaml has a mistake:", [f"{name}: found a key that is no text ({error})"]) from None
    except ValidationError as error:
        raise Problems("params.yaml has a mistake:", [_sentence(name, into, e) for e in error.errors()]) from None


def _sentence(name: str, into: type[BaseModel], error: Any) -> str:
    where = ".".join([name, *(str(part) for part in error["loc"] if part not in KINDS)])
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        found = error["input"].get("kind") if isinstance(error["input"], Mapping) else error["input"]
        return f"{where}.kind: found {found!r}; allowed are {', '.join(sorted(KINDS))}{hint(found, KINDS)}"
    if error["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(into, error["loc"][:-1]))
        meant = hint(error["loc"][-1], allowed)
        return f"{where}: unknown key, found {error['input']!r}; allowed here are {', '.join(allowed)}{meant}"
    if error["type"] == "missing":
        return f"{where}: this key is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if isinstance(error["input"], Mapping) and error["type"] == "value_error":
        return f"{where}: {message}"  # the message of a rule over several keys names what it found
    return f"{where}: found {error['input']!r}; {message}"


def _fields_at(into: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    for part in loc:
        if part in KINDS:
            into = KINDS[part]
            continue
        annotation = into.model_fields[part].annotation if part in into.model_fields else None
        inner = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not inner:
            return []
        into = inner[0]
    return list(into.model_fields)


class Settings:
    """Every section of a parameters file, checked when it is read.

    `systems` holds the entries every system shares; the part of a system's own module is checked by
    `segcore.systems.check`, which a stage calls before any work.
    """

    KEYS = (
        "seed",
        "dataset",
        "split",
        "recipes",
        "classifiers",
        "crops",
        "pseudo_labels",
        "systems",
        "evaluation",
    )
    NAMED = ("recipes", "classifiers", "pseudo_labels", "systems")
    MAY_BE_EMPTY = ("pseudo_labels",)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._problems = list(self._unknown_or_missing(params))
        self._raise_problems()
        self.raw = dict(params)
        self.seed = self._checked_seed(params["seed"])
        self.dataset = self._checked("dataset", DatasetParams)
        self.split = self._checked("split", SplitParams)
        self.crops = self._checked("crops", CropsParams)
        self.evaluation = self._checked("evaluation", EvaluationParams)
        self.recipes = {key: self._checked(f"recipes.{key}", RecipeParams) for key in params["recipes"]}
        self.classifiers = {key: self._checked(f"classifiers.{key}", ClassifierParams) for key in params["classifiers"]}
        labels = params["pseudo_labels"]
        self.pseudo_labels = {key: self._checked(f"pseudo_labels.{key}", PseudoLabelParams) for key in labels}
        self.systems = {key: self._checked(f"systems.{key}", SystemEntry) for key in params["systems"]}
        self._raise_problems()
        self._problems += self._broken_references()
        self._raise_problems()

    def _raise_problems(self) -> None:
        if self._problems:
            raise Problems("params.yaml has a mistake:", self._problems)

    def _unknown_or_missing(self, params: Mapping[str, Any]) -> Iterator[str]:
        for key in params:
            if key not in self.KEYS:
                yield f"{key}: unknown section; allowed are {', '.join(self.KEYS)}{hint(key, self.KEYS)}"
        for key in self.KEYS:
            if key not in params:
                yield f"{key}: this section is missing"
            elif key in self.MAY_BE_EMPTY and params[key] == {}:
                continue
            elif key in self.NAMED and not (isinstance(params[key], Mapping) and params[key]):
                yield f"{key}: found {params[key]!r}; it must hold at least one named entry"
            elif key in self.NAMED:
                # A name becomes part of folders and of DVC's stages.
                odd = [name for name in params[key] if not re.fullmatch(NAME, str(name))]
                yield from (f"{key}: found the name {name!r}; allowed are names like 'my_name_2'" for name in odd)

    def _checked_seed(self, seed: Any) -> int:
        if type(seed) is int and seed >= 0:
            return seed
        self._problems.append(f"seed: found {seed!r}; must be a whole number, 0 or more")
        return 0

    def _checked(self, name: str, into: type[SectionType]) -> SectionType:
        try:
            return section(self.raw, name, into)
        except Problems as found:
            self._problems += found.problems
            return into.model_construct()  # seen by nobody: the problems are raised once all are known

    def _broken_references(self) -> Iterator[str]:
        models: dict[str, Mapping[str, object]] = {"classifiers": self.classifiers, "segmenters": self.systems}
        wants: list[tuple[str, str, Mapping[str, object]]] = []
        wants += [(f"classifiers.{k}.recipe", c.recipe, self.recipes) for k, c in self.classifiers.items()]
        wants += [(f"systems.{k}.recipe", s.recipe, self.recipes) for k, s in self.systems.items()]
        wants += [(f"systems.{k}.start", s.start_name, models[s.start_kind]) for k, s in self.systems.items()]
        for key, labels in self.pseudo_labels.items():
            if labels.source != "cues_file":
                _, kind, name, _ = labels.input.split("/")
                wants.append((f"pseudo_labels.{key}.input", name, models[kind]))
        for key, system in self.systems.items():
            if system.labels.startswith(PSEUDO_LABELS):
                name = system.labels.removeprefix(PSEUDO_LABELS)
                wants.append((f"systems.{key}.labels", name, self.pseudo_labels))
        broken = [(where, name, have) for where, name, have in wants if name not in have]
        for where, name, have in broken:
            yield f"{where}: found '{name}'; allowed are {', '.join(sorted(have)) or 'none'}{hint(name, have)}"
        if not broken:
            yield from self._impossible_systems()

    def _impossible_systems(self) -> Iterator[str]:
        cells = self.crops.input_size // 32
        for key, system in self.systems.items():
            try:
                name = self.classifier_of(key)
            except Problem as problem:
                yield str(problem)
                continue
            head = self.classifiers[name].head
            if not (isinstance(head, FullyConnectedParams) and system.labels == CROPS):
                continue
            if head.kernel > cells + 2 * head.padding:
                yield (
                    f"systems.{key}: classifiers.{name}.head.kernel {head.kernel} exceeds "
                    f"the {cells} cells of the top map at crops.input_size {self.crops.input_size}"
                )

    def classifier_of(self, system: str) -> str:
        """The classifier at the beginning of a system's chain of starts.

        Raises:
            Problem: the chain is a circle.
        """
        seen = [system]
        while self.systems[seen[-1]].start_kind == "segmenters":
            seen.append(self.systems[seen[-1]].start_name)
            if seen[-1] in seen[:-1]:
                raise Problem(f"systems.{system}.start: found a circle, {' starts from '.join(seen)}")
        return self.systems[seen[-1]].start_name


def load(path: Path) -> Settings:
    """Read and check a parameters file."""
    return Settings(read(path))
