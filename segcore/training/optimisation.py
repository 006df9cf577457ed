"""The optimiser of a recipe: learning rates by step and by parameter, what decays and what is frozen."""

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from segcore.config.sections import RecipeParams
from segcore.data.batches import Batch
from segcore.losses import Term


@runtime_checkable
class Trainable(Protocol):
    """What the loop asks for, beside being a module."""

    pretrained: tuple[str, ...]

    def losses(self, batch: Batch) -> dict[str, Term]: ...


def rate(step: int, recipe: RecipeParams) -> float:
    """The learning rate of a step over the recipe's: linear warm-up times constant, poly or step decay."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    if recipe.schedule == "poly":
        return warm * (1 - step / recipe.steps) ** recipe.poly_power
    if recipe.schedule == "step":
        return warm * recipe.step_factor ** (step // recipe.step_every)
    return warm


def parameter_groups(model: nn.Module, recipe: RecipeParams) -> list[dict[str, Any]]:
    """Four groups: weights that decay and the rest that does not, each for pre-trained and for new layers.

    Biases of (transposed) convolutions and linear layers learn `bias_multiplier` times as fast; scale and shift of a
    normalisation learn as weights do. Neither decays.
    Pre-trained parameters learn `trunk_multiplier` times as fast; at 0 they are frozen.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    pretrained = cast(Trainable, model).pretrained
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        old = name.startswith(pretrained) if pretrained else False
        if old and recipe.trunk_multiplier == 0:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        multiplier = recipe.trunk_multiplier if old else 1.0
        if name.endswith("bias") and parameters.get(f"{name.removesuffix('bias')}weight", parameter).ndim > 1:
            multiplier *= recipe.bias_multiplier
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((multiplier, decay), []).append(parameter)
    return [{"params": ps, "multiplier": m, "weight_decay": d, "lr": 0.0} for (m, d), ps in groups.items()]


def optimiser(model: nn.Module, recipe: RecipeParams) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW (whose first beta is the recipe's momentum)."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999))
