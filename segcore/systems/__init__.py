"""The systems: one file each, found by its name. A system is a row of the result table."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from segcore.config.labels import LabelsFromKnownTags, LabelsParams
from segcore.config.reading import MISTAKE, section
from segcore.config.systems import SystemEntry
from segcore.errors import Problem, Problems, hint

NO_SYSTEM = ("contract",)
"""What lies here and is no system, beside the modules whose names begin with an underscore."""


def names() -> list[str]:
    """The systems there are."""
    found = (module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    return sorted(name for name in found if name not in NO_SYSTEM)


def load(name: str) -> ModuleType:
    """The module of a system.

    Raises:
        Problem: there is none of that name.
    """
    if name not in names():
        raise Problem(f"params.yaml: systems: unknown module '{name}'; segcore/systems has {', '.join(names())}")
    return import_module(f"{__name__}.{name}")


def check(entries: Mapping[str, SystemEntry]) -> None:
    """Check the training and the prediction of every entry against its module.

    Raises:
        Problems: all mistakes of all entries.
    """
    problems: list[str] = []
    for key, entry in entries.items():
        if entry.module not in names():
            allowed = f"allowed are {', '.join(names())}{hint(entry.module, names())}"
            problems.append(f"systems.{key}.module: found '{entry.module}'; {allowed}")
            continue
        module, content = load(entry.module), {"systems": {key: entry.model_dump(mode="json")}}
        for part, into in (("training", module.Training), ("prediction", module.Prediction)):
            try:
                section(content, f"systems.{key}.{part}", into)
            except Problems as found:
                problems += found.problems
    if problems:
        raise Problems(MISTAKE, problems)


def check_takers(labels: Mapping[str, LabelsParams], entries: Mapping[str, SystemEntry]) -> None:
    """See that labels by known tags come from systems that take tags: from modules with `TAKES_TAGS`.

    Raises:
        Problems: all entries of `pseudo_labels` of which it is not so.
    """
    takers = [name for name in names() if getattr(load(name), "TAKES_TAGS", False)]
    problems = [
        f"pseudo_labels.{key}.input: found '{entry.input}', of the module {module}, which finds the classes of an "
        f"image itself; source: decoupled needs a system of one of the modules {', '.join(takers)}"
        for key, entry in labels.items()
        if isinstance(entry, LabelsFromKnownTags)
        and (module := entries[entry.input.partition("/")[2]].module) not in takers
    ]
    if problems:
        raise Problems(MISTAKE, problems)
