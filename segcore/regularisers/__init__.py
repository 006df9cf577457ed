"""Regularisers: losses that any open system may be trained with, one file each, found by its name."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from segcore.config.reading import MISTAKE, section
from segcore.config.systems import SystemEntry
from segcore.errors import Problem, Problems, hint

NO_REGULARISER = ("contract",)
"""What lies here and is none."""


def names() -> list[str]:
    """The regularisers there are."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in NO_REGULARISER)


def load(name: str) -> ModuleType:
    """The module of a regulariser; `contract.Regulariser` says what it has.

    Raises:
        Problem: there is none of that name.
    """
    if name not in names():
        there = ", ".join(names()) or "none"
        raise Problem(f"regularisers: unknown module '{name}'; segcore/regularisers has {there}{hint(name, names())}")
    return import_module(f"{__name__}.{name}")


def check(entries: Mapping[str, SystemEntry]) -> None:
    """Check the regularisers of every entry: their names, and their parameters by their modules.

    Raises:
        Problems: all mistakes of all entries.
    """
    problems: list[str] = []
    for key, entry in entries.items():
        where = f"systems.{key}.training.regularisers"
        for name, params in entry.training.get("regularisers", {}).items():
            if name not in names():
                allowed = f"allowed are {', '.join(names()) or 'none'}{hint(name, names())}"
                problems.append(f"{where}: found '{name}'; {allowed}")
                continue
            try:
                section({name: params}, name, load(name).Params)
            except Problems as found:
                problems += [f"{where}.{text}" for text in found.problems]
    if problems:
        raise Problems(MISTAKE, problems)
