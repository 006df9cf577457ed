"""What a regulariser supplies, and a system that is trained with some."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from segcore import regularisers
from segcore.config.reading import section
from segcore.data.batches import Batch
from segcore.errors import Problem
from segcore.losses import Term
from segcore.systems.contract import OpenSystem, Outputs, System


class Regulariser(nn.Module, ABC):
    """Terms beside a system's own, from what its network computes, by heads that only training has.

    Self-Regulation (Zhang et al., ICCV 2021) is one: a head on every level, which the finest and the deepest teach.

    A module of this package has

    * `Params`, a `Section`: what an entry says under `training.regularisers.<name>`;
    * `build(params, system, n_tags) -> Regulariser`, for an open system;
    * `smallest() -> dict[str, Any]`, parameters as cheap as can be, complete: what every test of the contract uses.
    """

    @abstractmethod
    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """The terms to sum and minimise beside the system's, from its pass over the batch.

        Every term is there, with a gradient for every parameter of the heads, from step 0 on and in batches without
        labels too: during a warm-up (`batch.moment`) it is `weighted` by 0. A head that joins later would stop several
        processes, which wait for each other's gradients, with "Expected to have finished reduction".
        """


def weighted(term: Term, factor: float) -> Term:
    """The term times a factor; at 0 its gradients are zeros, but there.

    The term must be finite even so: 0 times what is not finite is not a number.
    """
    return Term(term.total * factor, term.weight)


class Regularised(nn.Module):
    """A system in training with regularisers: its own terms and theirs, from one pass of its network.

    What is trained is `system` itself, whose names of weights, random numbers and graph are those that it has alone:
    it is finished, saved and used without this wrapper, and so without the heads. Terms of a regulariser are logged
    as `<regulariser>/<term>`, and its parameters are a group of its name.

    Args:
        system: an open system; trained in place.
        regularisers: by the names that they are logged under.

    Raises:
        Problem: the system is not open.
    """

    def __init__(self, system: System, regularisers: Mapping[str, Regulariser]) -> None:
        super().__init__()
        if not isinstance(system, OpenSystem):
            raise Problem(
                f"{type(system).__name__} does not show what its network computes, which regularisers learn from; "
                f"train it without {', '.join(regularisers)}"
            )
        # First: the keys of its dropout go by the order of modules, and stay those of the system alone.
        self.system = system
        self.regularisers = nn.ModuleDict(dict(regularisers))
        self.pretrained = tuple(f"system.{prefix}" for prefix in system.pretrained)
        own = {name: tuple(f"system.{prefix}" for prefix in prefixes) for name, prefixes in system.groups.items()}
        heads = {
            name: (f"regularisers.{name}.",)
            for name, regulariser in regularisers.items()
            if any(True for _ in regulariser.parameters())
        }
        if both := sorted({"pretrained", *own} & {*regularisers}):
            raise Problem(f"regularisers: '{both[0]}' is a group of parameters of this system; take another name")
        self.groups = own | heads

    def losses(self, batch: Batch) -> dict[str, Term]:
        """The terms of the system and of every regulariser."""
        outputs = self.system(batch)
        terms = dict(self.system.terms(batch, outputs))
        for name, regulariser in self.regularisers.items():
            own = cast(Regulariser, regulariser).terms(batch, outputs)
            terms |= {f"{name}/{term}": value for term, value in own.items()}
        return terms


def regularised(system: System, entries: Mapping[str, Mapping[str, Any]], n_tags: int) -> System | Regularised:
    """The system, or what it is trained as with the regularisers of its entry.

    Their heads are made after the system, whose initial weights are those that it has without them.

    Raises:
        Problem: a regulariser is unknown, its parameters do not fit, or the system is not open.
    """
    if not entries:
        return system
    modules = {name: regularisers.load(name) for name in entries}
    params = {name: section(entries, name, module.Params) for name, module in modules.items()}
    return Regularised(system, {name: module.build(params[name], system, n_tags) for name, module in modules.items()})
