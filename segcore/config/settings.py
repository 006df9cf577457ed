"""`params.yaml` as a whole: every section checked, every name that stands for a shared section resolved.

Shared sections (`recipes`, `backbones`, `networks`, `cue_losses`, `crfs`, `views`) hold each number once; entries of
`classifiers`, `pseudo_labels` and `systems` name them.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segcore.config.classifiers import ClassifierParams, FittedParams, FullyConnectedParams, TrainedParams
from segcore.config.data import CropsParams, DatasetParams, OnDisk, SplitParams
from segcore.config.labels import (
    CueLossParams,
    EvaluationParams,
    LabelsFromFile,
    LabelsParams,
)
from segcore.config.networks import (
    AnyBackbone,
    BackboneParams,
    DeconvolutionParams,
    DualParams,
    GridParams,
    NetworkParams,
    PyramidParams,
)
from segcore.config.reading import MISTAKE, read, section
from segcore.config.refinements import CRFParams
from segcore.config.section import LIKE, NAME, Views
from segcore.config.systems import BACKBONES, CROPS, PSEUDO_LABELS, SEGMENTERS, SystemEntry
from segcore.config.training import RecipeParams
from segcore.errors import Problem, Problems, hint

SHARED: dict[str, Any] = {
    "recipes": RecipeParams,
    "backbones": AnyBackbone,
    "networks": NetworkParams,
    "crfs": CRFParams,
    "cue_losses": CueLossParams,
    "views": Views,
}
"""Sections of named values that entries refer to, with what one of them is."""

ENTRIES: dict[str, Any] = {"classifiers": ClassifierParams, "pseudo_labels": LabelsParams, "systems": SystemEntry}
COMMON = "common"
"""The recipe that holds what all recipes share."""

REFERENCES = (
    ("cue_losses.*", "crf", "crfs"),
    ("classifiers.*", "backbone", "backbones"),
    ("classifiers.*.head", "views", "views"),
    ("pseudo_labels.*", "crf", "crfs"),
    ("pseudo_labels.*", "views", "views"),
    ("pseudo_labels.*.refinement", "crf", "crfs"),
    ("pseudo_labels.*.candidates.refinements.*", "crf", "crfs"),
    ("systems.*.training", "network", "networks"),
    ("systems.*.training", "cues", "cue_losses"),
    ("systems.*.prediction", "views", "views"),
    ("systems.*.prediction", "crf", "crfs"),
)
"""Where a name stands for a shared section: at which key of which mappings, and of which section."""


class Settings:
    """Every section of a parameters file, checked when it is read, with names of shared sections resolved.

    `systems` holds what every system's entry has; `segcore.systems.check`, which each stage calls before any work,
    checks `training` and `prediction` by the system's own module.

    Attributes:
        given: the content of the file.
    """

    KEYS = ("seed", "dataset", "split", "crops", *SHARED, *ENTRIES, "evaluation")
    MAY_BE_EMPTY = ("pseudo_labels", "classifiers", "networks", "cue_losses", "crfs")

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = dict(given)
        self._problems = list(self._unknown_or_missing())
        self._raise_problems()
        self._told: set[str] = set()
        self._raw: dict[str, Any] = copy.deepcopy(self.given)
        self.seed = self._checked_seed(given["seed"])
        self.dataset: OnDisk = self._checked("dataset", DatasetParams)
        self.split: SplitParams = self._checked("split", SplitParams)
        self.crops: CropsParams = self._checked("crops", CropsParams)
        self.evaluation: EvaluationParams = self._checked("evaluation", EvaluationParams)
        self.recipes: dict[str, RecipeParams] = self._completed_recipes()
        self.backbones: dict[str, BackboneParams] = self._named("backbones")
        self.networks: dict[str, DeconvolutionParams | GridParams | DualParams | PyramidParams] = self._named(
            "networks"
        )
        self.crfs: dict[str, CRFParams] = self._named("crfs")
        self.views: dict[str, Views] = self._named("views")
        self._resolve("cue_losses.*")
        self.cue_losses: dict[str, CueLossParams] = self._named("cue_losses")
        for place in dict.fromkeys(place for place, _, _ in REFERENCES if place != "cue_losses.*"):
            self._resolve(place)
        self.classifiers: dict[str, TrainedParams | FittedParams] = self._named("classifiers")
        self.pseudo_labels: dict[str, LabelsParams] = self._named("pseudo_labels")
        self.systems: dict[str, SystemEntry] = self._named("systems")
        self._raise_problems()
        self._problems += self._broken_references()
        self._raise_problems()

    def _raise_problems(self) -> None:
        if self._problems:
            raise Problems(MISTAKE, self._problems)

    def _unknown_or_missing(self) -> Iterator[str]:
        for key in self.given:
            if key not in self.KEYS:
                yield f"{key}: unknown section; allowed are {', '.join(self.KEYS)}{hint(key, self.KEYS)}"
        for key in self.KEYS:
            if key not in self.given:
                yield f"{key}: this section is missing"
                continue
            value = self.given[key]
            if key not in {*SHARED, *ENTRIES} or (key in self.MAY_BE_EMPTY and value == {}):
                continue
            if not (isinstance(value, Mapping) and value):
                yield f"{key}: found {value!r}; it must hold at least one named entry"
            else:
                # A name becomes part of folders and of DVC's stages.
                odd = [name for name in value if not re.fullmatch(NAME, str(name))]
                yield from (f"{key}: found the name {name!r}; allowed are {LIKE}" for name in odd)

    def _checked_seed(self, seed: Any) -> int:
        if type(seed) is int and seed >= 0:
            return seed
        self._problems.append(f"seed: found {seed!r}; must be a whole number, 0 or more")
        return 0

    def _checked(self, name: str, into: Any) -> Any:
        try:
            return section(self._raw, name, into)
        except Problems as found:
            # A shared section's mistake is told where it stands, not again by all that name it.
            told = tuple(place + end for place in self._told for end in ".:")
            self._problems += [problem for problem in found.problems if not problem.startswith(told)]
            self._told.add(name)
            return None  # seen by nobody: the problems are raised once all are known

    def _named(self, kind: str) -> dict[str, Any]:
        into = (SHARED | ENTRIES)[kind]
        return {name: self._checked(f"{kind}.{name}", into) for name in self._raw[kind]}

    def _completed_recipes(self) -> dict[str, Any]:
        """The recipes, completed by `recipes.common`, which is none itself."""
        own = self._raw["recipes"]
        common = own.pop(COMMON, {})
        if not isinstance(common, Mapping):
            self._problems.append(f"recipes.{COMMON}: found {common!r}; it must hold keys of recipes")
            return {}
        if not own:
            self._problems.append(f"recipes: found nothing beside '{COMMON}'; it must hold at least one named entry")
        whole = {name: {**common, **recipe} if isinstance(recipe, Mapping) else recipe for name, recipe in own.items()}
        self._raw["recipes"], before = whole, len(self._problems)
        recipes = self._named("recipes")
        found = self._problems[before:]
        for name, recipe in own.items():
            for key in {*common} - {*recipe} if isinstance(recipe, Mapping) else ():
                place = re.compile(rf"\brecipes\.{re.escape(f'{name}.{key}')}\b")
                found = [place.sub(f"recipes.{COMMON}.{key}", problem) for problem in found]
        self._problems[before:] = dict.fromkeys(found)  # each once, in this order
        return recipes

    def _resolve(self, place: str) -> None:
        """Put shared sections where their names stand."""
        for where, mapping in _mappings(self._raw, place.split("."), ""):
            for key, kind in [(key, kind) for at, key, kind in REFERENCES if at == place]:
                name, have = mapping.get(key), self._raw[kind]
                if not isinstance(name, str):
                    continue  # null, a section of the entry's own, or nothing: the model of the entry judges
                if name in have:
                    mapping[key] = copy.deepcopy(have[name])
                else:
                    self._problems.append(_not_there(f"{where}.{key}", name, have))
                if name not in have or f"{kind}.{name}" in self._told:
                    self._told.add(f"{where}.{key}")

    def _broken_references(self) -> Iterator[str]:
        starts: dict[str, Mapping[str, object]] = {
            "backbones": self.backbones,
            "classifiers": self.classifiers,
            "segmenters": self.systems,
        }
        wants: list[tuple[str, str, Mapping[str, object]]] = []
        trained = {k: c for k, c in self.classifiers.items() if isinstance(c, TrainedParams)}
        wants += [(f"classifiers.{k}.recipe", c.recipe, self.recipes) for k, c in trained.items()]
        wants += [(f"systems.{k}.start", s.start_name, starts[s.start_kind]) for k, s in self.systems.items()]
        for key, labels in self.pseudo_labels.items():
            if not isinstance(labels, LabelsFromFile):
                kind, _, name = labels.input.partition("/")
                wants.append((f"pseudo_labels.{key}.input", name, starts[kind]))
        for key, system in self.systems.items():
            recipe = system.training.get("recipe")
            if isinstance(recipe, str):
                wants.append((f"systems.{key}.training.recipe", recipe, self.recipes))
            if system.labels.startswith(PSEUDO_LABELS):
                name = system.labels.removeprefix(PSEUDO_LABELS)
                wants.append((f"systems.{key}.labels", name, self.pseudo_labels))
        broken = [(where, name, have) for where, name, have in wants if name not in have]
        for where, name, have in broken:
            yield _not_there(where, name, have)
        if not broken:
            yield from self._impossible_systems()

    def _impossible_systems(self) -> Iterator[str]:
        for key, system in self.systems.items():
            zoom, recipe = (system.training.get(part) for part in ("zoom", "recipe"))
            if isinstance(zoom, Mapping) and zoom.get("bank") is not None and isinstance(recipe, str):
                learning = self.recipes[recipe].multipliers.get("pretrained", 1.0)
                if learning:
                    yield (
                        f"systems.{key}.training.zoom.bank: found {zoom['bank']}, but recipes.{recipe}.multipliers."
                        f"pretrained is {learning:g}: what a trunk that learns makes of a view is new each time, so "
                        "fixed views would save nothing; set it to 0, or leave bank out"
                    )
            try:
                kind, name = self.origin_of(key)
            except Problem as problem:
                yield str(problem)
                continue
            head = self.classifiers[name].head if kind != BACKBONES else None
            if not (isinstance(head, FullyConnectedParams) and system.labels == CROPS):
                continue
            cells = self.crops.input_size // self.classifiers[name].backbone.stride
            if head.kernel > cells + 2 * head.padding:
                yield (
                    f"systems.{key}: classifiers.{name}.head.kernel {head.kernel} exceeds "
                    f"the {cells} cells of the top map at crops.input_size {self.crops.input_size}"
                )

    @property
    def needing_masks(self) -> list[str]:
        """The entries that learn from masks of strong images, or from crops, which are cut out of these."""
        sections = {"classifiers": self.classifiers, "pseudo_labels": self.pseudo_labels, "systems": self.systems}
        return [
            f"{section}.{name}"
            for section, entries in sections.items()
            for name, entry in entries.items()
            if entry.images == "strong" or (isinstance(entry, SystemEntry) and entry.labels == CROPS)
        ]

    def origin_of(self, system: str) -> tuple[str, str]:
        """What is at the beginning of a system's chain of starts: `backbones` or `classifiers`, and its name.

        Raises:
            Problem: the chain is a circle.
        """
        seen = [system]
        while self.systems[seen[-1]].start_kind == SEGMENTERS:
            seen.append(self.systems[seen[-1]].start_name)
            if seen[-1] in seen[:-1]:
                raise Problem(f"systems.{system}.start: found a circle, {' starts from '.join(seen)}")
        last = self.systems[seen[-1]]
        return last.start_kind, last.start_name


def _mappings(value: Any, path: list[str], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping at a dotted path in which * stands for any key or any place in a list, with its own path."""
    if isinstance(value, list) and path[:1] == ["*"]:
        for place, item in enumerate(value):
            yield from _mappings(item, path[1:], f"{where}.{place}")
    if not isinstance(value, dict):
        return  # the model of that place says what is wrong with it
    if not path:
        yield where, value
        return
    for key in list(value) if path[0] == "*" else [path[0]]:
        if key in value:
            yield from _mappings(value[key], path[1:], f"{where}.{key}".lstrip("."))


def _not_there(where: str, name: str, have: Mapping[str, object]) -> str:
    return f"{where}: found '{name}'; allowed are {', '.join(sorted(have)) or 'none'}{hint(name, have)}"


def load(path: Path) -> Settings:
    """Read and check a parameters file."""
    return Settings(read(path))
