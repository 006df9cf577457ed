"""Batch normalisation: exactly torch's in one process, and its statistics estimated again after training."""

import pytest
import torch
from torch import nn

from segcore.errors import Problem
from segcore.networks import normalisation
from segcore.networks.normalisation import SharedBatchNorm2d
from segcore.systems.decouplednet import DecoupledNet
from tests.networks import squares, system_of


def test_in_one_process_it_is_torch_s() -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(3)
    ours = SharedBatchNorm2d(3)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5) * 3 + 1
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out = theirs(a), ours(b)
        assert torch.equal(*out)
        (out[0].square().sum() + out[1].square().sum()).backward()
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
    assert all(torch.equal(x, y) for x, y in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True))


def test_the_published_start() -> None:
    layer = normalisation.batch_norm(4)
    assert layer.eps == 1e-5
    assert layer.weight.tolist() == [1.0] * 4
    assert layer.bias.tolist() == pytest.approx([0.001] * 4)


def test_share_keeps_names_and_values() -> None:
    inner = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sequential(inner))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    normalisation.share(model)
    assert isinstance(model[1], SharedBatchNorm2d)
    assert isinstance(inner, SharedBatchNorm2d)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_norm_that_cannot_be_shared_is_refused_unless_it_is_frozen() -> None:
    class Other(nn.BatchNorm2d):
        pass

    model = nn.Sequential(Other(3))
    with pytest.raises(Problem, match="Other cannot be shared by several processes"):
        normalisation.share(model)
    normalisation.share(model.eval())


def test_reestimated_statistics_are_plain_averages_over_batches() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(4, 2, 3, 3) * (i + 1) + i for i in range(5)]
    frozen, layer = nn.BatchNorm2d(2).eval(), nn.BatchNorm2d(2, momentum=0.3)
    model = nn.Sequential(layer, nn.Sequential(frozen))
    model(torch.randn(4, 2, 3, 3))
    kept = frozen.running_mean
    assert kept is not None
    before = kept.clone()
    normalisation.reestimate(model, model, iter(batches))
    means = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1, unbiased=True) for x in batches]).mean(0)
    torch.testing.assert_close(layer.running_mean, means)
    torch.testing.assert_close(layer.running_var, variances)
    assert layer.momentum == 0.3
    assert torch.equal(kept, before)


def test_statistics_are_those_of_full_precision_in_which_systems_predict() -> None:
    def system() -> DecoupledNet:
        made = system_of("decouplednet")
        assert isinstance(made, DecoupledNet)
        return made

    plain, within = system(), system()
    batches = [squares(2, seed=seed) for seed in range(2)]
    plain.finish(batches)
    with torch.autocast("cpu", torch.bfloat16):
        within.finish(batches)
    statistics = {name: value for name, value in plain.state_dict().items() if "running" in name}
    assert len(statistics) > 10
    for name, value in statistics.items():
        assert torch.equal(within.state_dict()[name], value), name


def test_reestimating_several_inputs_reads_one_batch_at_a_time() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            calls.append(len(made))
            return self.norm(a + b)

    def batches():
        for value in (1.0, 3.0):
            made.append(value)
            yield torch.full((2, 1, 2, 2), value), torch.ones(2, 1, 2, 2)

    made: list[float] = []
    calls: list[int] = []
    model = Sum()
    normalisation.reestimate(model, model, batches())
    assert calls == [1, 2]
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.item() == 3
