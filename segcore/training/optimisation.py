"""The optimiser of a recipe: learning rates by step and by parameter, what decays and what is frozen."""

from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from segcore.config.training import Poly, RecipeParams, Steps
from segcore.data.batches import Batch
from segcore.errors import Problem, hint
from segcore.losses import Term
from segcore.networks.normalisation import DecayedBatchNorm2d


@runtime_checkable
class Trainable(Protocol):
    """What the loop asks for, beside being a module."""

    pretrained: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]

    def losses(self, batch: Batch) -> dict[str, Term]: ...


def rate(step: int, recipe: RecipeParams) -> float:
    """The learning rate of a step over the recipe's: linear warm-up times constant, poly or step decay."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    if isinstance(recipe.schedule, Poly):
        return warm * (1 - step / recipe.steps) ** recipe.schedule.power
    if isinstance(recipe.schedule, Steps):
        return warm * recipe.schedule.factor ** (step // recipe.schedule.every)
    return warm


def group_of(model: nn.Module) -> dict[str, str | None]:
    """The group of each parameter, by its name: `pretrained`, one of the model's own, or None.

    Raises:
        ValueError: a parameter belongs to two groups, or none to a group of the model's own.
    """
    trainable, names = cast(Trainable, model), [name for name, _ in model.named_parameters()]
    prefixes = {"pretrained": trainable.pretrained, **trainable.groups}
    found: dict[str, str | None] = {}
    for name in names:
        groups = [group for group, starts in prefixes.items() if starts and name.startswith(starts)]
        if len(groups) > 1:
            raise ValueError(f"{name} belongs to {' and '.join(groups)}")
        found[name] = groups[0] if groups else None
    if idle := sorted({*trainable.groups} - {*found.values()}):
        raise ValueError(f"no parameter belongs to {', '.join(idle)}")
    return found


def parameter_groups(model: nn.Module, recipe: RecipeParams) -> list[dict[str, Any]]:
    """Weights that decay and the rest that does not, apart for every learning rate.

    A parameter of a group that `recipe.multipliers` names learns so many times as fast; at 0 it is frozen. Groups are
    `pretrained` and those that the model says: see `group_of`.
    Biases of (transposed) convolutions and linear layers learn `bias_multiplier` times as fast; scale and shift of a
    normalisation learn as weights do. Neither decays, but for the normalisations that are `DecayedBatchNorm2d`.

    Raises:
        Problem: the recipe names a group that the model lacks.
    """
    known = ["pretrained", *cast(Trainable, model).groups]
    for name in recipe.multipliers:
        if name not in known:
            there = ", ".join(known)
            raise Problem(
                f"recipe: multipliers: found '{name}'; this network has the groups {there}{hint(name, known)}"
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    parameters, members = dict(model.named_parameters()), group_of(model)
    norms = {name for name, module in model.named_modules() if isinstance(module, DecayedBatchNorm2d)}
    decayed = {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    for name, parameter in parameters.items():
        group = members[name]
        multiplier = 1.0 if group is None else recipe.multipliers.get(group, 1.0)
        if multiplier == 0:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        if name.endswith("bias") and parameters.get(f"{name.removesuffix('bias')}weight", parameter).ndim > 1:
            multiplier *= recipe.bias_multiplier
        decay = recipe.weight_decay if parameter.ndim > 1 or name in decayed else 0.0
        groups.setdefault((multiplier, decay), []).append(parameter)
    return [{"params": ps, "multiplier": m, "weight_decay": d, "lr": 0.0} for (m, d), ps in groups.items()]


def optimiser(model: nn.Module, recipe: RecipeParams) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW (whose first beta is the recipe's momentum)."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999))
