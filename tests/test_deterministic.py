"""Where torch is told to be deterministic: what replaces the operations that it refuses, and every system."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segcore import systems
from segcore.data.pictures import IGNORE
from segcore.localisation import background, expectation
from segcore.losses import lovasz_softmax, pixel_cross_entropy
from segcore.networks import dropout
from segcore.networks.deconvolution import unpooled
from tests.networks import batch_of, system_of, total


@pytest.fixture
def told() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def with_gradient(x: Tensor, *arguments: Tensor, how: object = unpooled) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    result: Tensor = how(leaf, *arguments)  # type: ignore[operator]
    weights = torch.arange(result.numel(), dtype=result.dtype).view_as(result)
    (gradient,) = torch.autograd.grad((result * weights).sum(), leaf)
    return result.detach(), gradient


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_unpooling_puts_values_where_torch_does(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    pooled, switches = F.max_pool2d(torch.randn(2, 3, 8, 6), 2, return_indices=True)
    pooled = pooled.contiguous(memory_format=layout)
    plain = with_gradient(pooled, switches)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deterministic"):
            F.max_unpool2d(pooled, switches, [2, 2])
        ours = with_gradient(pooled, switches)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(plain[0], ours[0])
    assert torch.equal(plain[1], ours[1])


@pytest.mark.parametrize("weighted", [False, True])
def test_the_pixels_loss_is_the_same_sum(weighted: bool) -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    labels[0, :2] = IGNORE
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0]) if weighted else None

    def loss(x: Tensor) -> Tensor:
        return pixel_cross_entropy(x, labels, weights).total[None]

    plain = with_gradient(scores, how=loss)
    torch.use_deterministic_algorithms(True)
    ours = with_gradient(scores, how=loss)
    torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(ours, plain)


def test_ordered_values_are_the_same_ones() -> None:
    torch.manual_seed(0)
    values = torch.randint(0, 9, (3, 40)).float()  # with equal ones among them
    maps = torch.randint(0, 9, (2, 7, 7)).float()
    plain = expectation._ranked(values, 7), background.smooth(maps, (7, 7))
    torch.use_deterministic_algorithms(True)
    ours = expectation._ranked(values, 7), background.smooth(maps, (7, 7))
    torch.use_deterministic_algorithms(False)
    assert torch.equal(plain[0], ours[0])
    assert torch.equal(plain[1], ours[1])


def test_lovasz_counts_as_sums_do() -> None:
    """Against the sums of floating-point numbers that it had."""
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 3, 20, 20), torch.randint(0, 3, (2, 20, 20))
    labels[1, :5] = IGNORE
    p = scores.softmax(1)
    wanted = (labels[:, None] == torch.arange(3)[:, None, None]).float().flatten(2)
    errors = (wanted - p.flatten(2)).abs() * (labels != IGNORE).flatten(1)[:, None]
    errors, order = errors.sort(dim=2, descending=True)
    wanted = wanted.gather(2, order)
    size = wanted.sum(2, keepdim=True)
    cost = 1 - (size - wanted.cumsum(2)) / (size + (1 - wanted).cumsum(2))
    steps = torch.cat([cost[:, :, :1], cost.diff(dim=2)], 2)
    assert lovasz_softmax(scores, labels).total == (errors * steps).sum(2).mean(1).sum()


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("module", systems.names())
def test_a_system_takes_a_step_twice_alike(module: str) -> None:
    def step() -> list[Tensor]:
        system = system_of(module).train()
        dropout.set_key(system, 0, rank=0, world=1)
        batch = batch_of(system, 2)
        total(system, batch).backward()
        return [p.grad for p in system.parameters() if p.grad is not None]

    once, again = step(), step()
    assert once
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
