"""The systems: one file each, found by its name. A system is a row of the result table."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from segcore import config
from segcore.batches import Batch
from segcore.losses import Term
from segcore.problems import Problem, Problems


class System(nn.Module, ABC):
    """What a method supplies; training and evaluation ask for nothing else.

    A module of this package has `Params` (its entry in `params.yaml`), a subclass of this class, and
    `build(params, classifier) -> System`.
    """

    pretrained: tuple[str, ...] = ()
    """Prefixes of the parameters that start from a pre-training and learn `trunk_multiplier` times as fast."""

    proposals: int = 0
    """Object proposals an image is predicted by; 0 predicts it whole."""

    smallest_input: int = 32
    """Side of the smallest image it can predict, in pixels."""

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Term]:
        """The terms to sum and minimise, by the name they are logged under."""

    @abstractmethod
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """Scores of each class at each pixel, background first; the greatest wins. Images are RGB in 0..255."""

    def finish(self, batches: Iterable[Batch]) -> None:
        """Called once after training with some training batches on the system's device."""

    def finishing_batches(self) -> tuple[int, int]:
        """How many batches of how many samples `finish` asks for."""
        return 0, 0


def names() -> list[str]:
    """The systems there are."""
    return sorted(module.name for module in iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a system.

    Raises:
        Problem: there is none of that name.
    """
    if name not in names():
        raise Problem(f"params.yaml: systems: unknown module '{name}'; segcore/systems has {', '.join(names())}")
    return import_module(f"{__name__}.{name}")


def check(entries: Mapping[str, Any]) -> None:
    """Check every entry of the section `systems` against its module's `Params`.

    Raises:
        Problems: all mistakes of all entries.
    """
    problems: list[str] = []
    for key, entry in entries.items():
        if entry["module"] not in names():
            problems.append(f"systems.{key}.module: found '{entry['module']}'; allowed are {', '.join(names())}")
            continue
        try:
            config.section({"systems": entries}, f"systems.{key}", load(entry["module"]).Params)
        except Problems as found:
            problems += found.problems
    if problems:
        raise Problems("params.yaml has a mistake:", problems)
