"""Keyed dropout: the mask depends on the key alone, for any number of processes."""

import pytest
import torch
from torch import nn

from segcore.networks.dropout import KeyedDropout, set_key


def dropped(key: int, x: torch.Tensor, rank: int = 0, world: int = 1, before: int = 0) -> torch.Tensor:
    layer = KeyedDropout(0.25)
    set_key(layer, key, rank, world, before)
    return layer(x)


def test_the_key_decides() -> None:
    x = torch.ones(6, 4, 5, 5)
    first = dropped(3, x)
    torch.rand(7)
    assert torch.equal(first, dropped(3, x))
    assert not torch.equal(first, dropped(4, x))


def test_a_share_of_the_values_is_dropped_and_the_mean_stays() -> None:
    out = dropped(1, torch.ones(8, 16, 16, 16))
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert set(out.unique().tolist()) == {0, torch.tensor(1 / 0.75).item()}


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_draw_the_mask_of_one(world: int) -> None:
    x = torch.randn(6, 4, 5, 5)
    whole = dropped(9, x)
    for rank in range(world):
        assert torch.equal(dropped(9, x[rank::world], rank, world), whole[rank::world])


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_parts_of_a_step_together_draw_the_mask_of_the_step(parts: int, world: int) -> None:
    """As `Order` deals a step out: parts one after the other, each part's samples in turn to the processes."""
    x = torch.randn(12, 4, 5, 5)
    whole, size = dropped(9, x), 12 // parts
    for first in range(0, 12, size):
        for rank in range(world):
            mine = slice(first + rank, first + size, world)
            assert torch.equal(dropped(9, x[mine], rank, world, before=first), whole[mine])


def test_samples_of_a_step_differ() -> None:
    out = dropped(2, torch.ones(16, 64))
    assert len(out.unique(dim=0)) == 16


def test_layers_of_a_model_differ() -> None:
    model = nn.Sequential(KeyedDropout(0.5), KeyedDropout(0.5))
    set_key(model, 1, 0, 1)
    x = torch.ones(1, 64)
    assert not torch.equal(model[0](x), model[1](x))
    # Nor is a layer's mask that of the next layer one sample further on.
    x = torch.ones(3, 64)
    first, second = model[0](x), model[1](x)
    assert not any(torch.equal(a, b) for a in first for b in second)


def test_nothing_is_dropped_when_not_training() -> None:
    x = torch.ones(4, 4)
    assert torch.equal(KeyedDropout(0.5).eval()(x), x)
    assert torch.equal(KeyedDropout(0.0)(x), x)


def test_training_without_a_key_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="set_key"):
        KeyedDropout(0.5)(torch.ones(2))
