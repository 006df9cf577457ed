"""What stops a training run, and going on after a stop, bit for bit."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segcore.data.batches import Batch, Moment
from segcore.data.order import Order
from segcore.errors import Problem
from segcore.losses import Term
from segcore.training import checkpoints
from tests.loop import Linear, Net, Pictures, fit, full_disk, net, same, trained


class Failing(Net):
    """Two good terms and one that is not finite from the third step on."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.calls = 0

    def losses(self, batch: Batch) -> dict[str, Term]:
        self.calls += 1
        bad = self.trunk.weight.sum() * (self.value if self.calls > 2 else 0.0)
        return super().losses(batch) | {"extra": Term(bad, torch.ones(()))}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_terms_step_and_images(value: float) -> None:
    model = Failing(value)
    run = fit(model)
    done = list(itertools.islice(run, 2))
    assert [progress.step for progress in done] == [0, 1]
    order = Order(10, 4, 1, seed=1)
    ids = [f"picture_{index}" for index, _ in next(order.micro_batches(2))]
    model = Failing(value)
    with pytest.raises(Problem) as raised:
        trained(model)
    message = str(raised.value)
    assert message.startswith("step 2: the loss is not finite (pixels 0.")
    assert "extra nan" in message or "extra inf" in message or "extra -inf" in message
    assert ", ".join(ids) in message


def test_a_step_whose_loss_is_not_finite_is_none() -> None:
    run = fit(Failing(math.nan))
    with pytest.raises(Problem):
        list(run)
    assert len(run.history) == 2


def test_weights_that_are_not_finite_are_no_result() -> None:
    class Exploding(Linear):
        def losses(self, batch: Batch) -> dict[str, Term]:
            total = (self.layer.weight - self.layer.weight.detach()).abs().sqrt().sum()  # its gradient is not finite
            return {"tags": Term(total, torch.ones(()))}

    with pytest.raises(Problem, match="left weights that are not finite"):
        trained(Exploding(), steps=1)


def test_nothing_to_train_on() -> None:
    with pytest.raises(Problem, match="no training samples"):
        fit(net(), samples=Pictures(0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "accumulate": 2,
            "channels_last": True,
            "multipliers": {"pretrained": 0.0},
        },
    ],
)
def test_stopped_after_any_step_it_goes_on_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = net()
    expected = trained(whole, **changes)
    for stop in range(1, 8):
        checkpoint = tmp_path / f"{stop}.pt"
        for _ in itertools.islice(fit(net(), checkpoint, **changes), stop):
            pass
        torch.manual_seed(stop)  # whatever happened to torch's own generator
        again = net()
        resumed = fit(again, checkpoint, **changes)
        progress = list(resumed)
        assert [p.losses for p in progress] == expected
        # A stop right after a step comes after its checkpoint: 3 is saved by the steps 3, 4 and 5.
        assert sum(p.replayed for p in progress) == stop // 3 * 3
        assert same(again, whole)
        resumed.finish()
    assert list(tmp_path.iterdir()) == []


def test_stopped_twice_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = net()
    expected = trained(whole, steps=10)
    checkpoint = tmp_path / "x.pt"
    for stop in (4, 7):
        for _ in itertools.islice(fit(net(), checkpoint, steps=10), stop):
            pass
    again = net()
    assert trained(again, checkpoint, steps=10) == expected
    assert same(again, whole)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "of another version"])
def test_a_damaged_checkpoint_means_a_clean_start_and_a_message(damage: str, tmp_path: Path) -> None:
    whole = net()
    expected = trained(whole)
    checkpoint = tmp_path / "x.pt"
    for _ in itertools.islice(fit(net(), checkpoint), 5):
        pass
    content = bytearray(checkpoint.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 4
    elif damage == "of another version":
        content[:8] = b"segcore0"
    checkpoint.write_bytes(content[: {"truncated": len(content) // 2, "empty": 0}.get(damage)])
    again = net()
    run = fit(again, checkpoint)
    assert run.damage is not None
    assert str(checkpoint) in run.damage
    assert "damaged" in run.damage
    progress = list(run)
    assert not any(p.replayed for p in progress)
    assert [p.losses for p in progress] == expected
    assert same(again, whole)


def test_half_a_checkpoint_from_a_kill_is_ignored(tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.pt"
    for _ in itertools.islice(fit(net(), checkpoint), 5):
        pass
    (tmp_path / ".x.pt.partial").write_bytes(checkpoint.read_bytes()[:100])
    whole, again = net(), net()
    expected = trained(whole)
    run = fit(again, checkpoint)
    assert run.damage is None
    assert [p.losses for p in run] == expected
    run.finish()
    assert same(again, whole)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error_and_the_former_checkpoint_stays(tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.pt"
    run = iter(fit(net(), checkpoint))
    for _ in itertools.islice(run, 5):
        pass
    former = checkpoint.read_bytes()
    with full_disk(2000), pytest.raises(Problem, match=r"x\.pt could not be written \(File too large\)"):
        list(run)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    assert checkpoint.read_bytes() == former
    whole, again = net(), net()
    expected = trained(whole)
    progress = list(fit(again, checkpoint))
    assert sum(p.replayed for p in progress) == 3
    assert [p.losses for p in progress] == expected
    assert same(again, whole)


def test_frozen_weights_are_not_in_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.pt"
    list(fit(net(), checkpoint, multipliers={"pretrained": 0.0}, steps=4))
    state = checkpoints.load(checkpoint)
    assert isinstance(state, dict)
    assert "trunk.weight" not in state["model"]
    assert "norm.running_mean" in state["model"]


def test_the_state_is_the_trained_one(tmp_path: Path) -> None:
    """What a checkpoint holds is equal to what the run had, arrays and their layout in memory included."""
    checkpoint = tmp_path / "x.pt"
    model = net()
    run = fit(model, checkpoint, steps=4, channels_last=True, optimizer="adamw")
    list(itertools.islice(run, 3))
    again = net()
    resumed = fit(again, checkpoint, steps=4, channels_last=True, optimizer="adamw")
    states = [list(r.optimiser.state.values()) for r in (run, resumed)]
    for mine, theirs in zip(*states, strict=True):
        for key, value in mine.items():
            assert torch.equal(value, theirs[key])
            assert isinstance(value, Tensor)
            assert value.stride() == theirs[key].stride()
    assert same(model, again)


class WarmingUp(Net):
    """A term that counts from the third step on, and notes when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Moment] = []

    def losses(self, batch: Batch) -> dict[str, Term]:
        self.seen.append(batch.moment)
        late = self.tags.weight.square().sum() * (batch.moment.elapsed >= 0.25)
        return super().losses(batch) | {"late": Term(late, torch.ones(()))}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_sees_every_step_once_also_after_a_resumption(accumulate: int, tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = WarmingUp()
    losses = trained(whole, accumulate=accumulate)
    assert whole.seen == [Moment(step, 8) for step in range(8) for _ in range(accumulate)]
    assert [step["late"] > 0 for step in losses] == [False] * 2 + [True] * 6
    torch.manual_seed(5)
    first = WarmingUp()
    list(itertools.islice(fit(first, tmp_path / "state.pt", accumulate=accumulate), 5))  # saved after step 2
    second = WarmingUp()
    again = trained(second, tmp_path / "state.pt", accumulate=accumulate)
    assert second.seen == [Moment(step, 8) for step in range(3, 8) for _ in range(accumulate)]
    assert again == losses
    assert same(second, whole)


def test_a_term_that_joins_later_is_a_problem() -> None:
    class Joining(WarmingUp):
        def losses(self, batch: Batch) -> dict[str, Term]:
            terms = super().losses(batch)
            return terms if batch.moment.step >= 2 else {"tags": terms["tags"], "pixels": terms["pixels"]}

    with pytest.raises(Problem, match=r"step 2: terms of the loss joined or left \(late\)"):
        trained(Joining())
