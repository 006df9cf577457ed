"""The training loop: schedules, groups, one step against plain torch, what stops it, and going on after a stop."""

import itertools
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.batches import Batch, Order, Sample, Stream
from segcore.config import RecipeParams
from segcore.dropout import KeyedDropout
from segcore.losses import Term, pixel_cross_entropy
from segcore.problems import Problem
from segcore.runtime import Runtime
from segcore.training import Fit, Progress, optimiser, parameter_groups, rate


def recipe(**changes: Any) -> RecipeParams:
    values: dict[str, Any] = {
        "steps": 8, "batch_size": 4, "accumulate": 1, "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9,
        "weight_decay": 0.01, "bias_multiplier": 2.0, "trunk_multiplier": 0.5, "schedule": "poly", "poly_power": 0.9,
        "step_every": 3, "step_factor": 0.1, "warmup_steps": 2, "clip_norm": None, "precision": "fp32",
        "channels_last": False, "compile": False, "checkpoint_every": 3, "workers": 0,
    }  # fmt: skip
    return RecipeParams.model_validate(values | changes)


class Pictures:
    """Small pictures with two classes; every second one is unknown in its right half."""

    def __init__(self, count: int = 10, size: int = 16) -> None:
        self.count = count
        self.size = size

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, seed: int) -> Sample:
        rng = np.random.default_rng([index, seed])
        size = self.size, self.size
        labels = torch.from_numpy(rng.integers(0, 2, size, dtype=np.uint8))
        image = labels * 150 + torch.from_numpy(rng.integers(0, 50, size, dtype=np.uint8))
        labels = labels.clone()
        if index % 2:
            labels[:, self.size // 2 :] = 255
        return Sample(
            f"picture_{index}", image.expand(3, *size).contiguous(), torch.tensor([1.0, float(index % 3 == 0)]), labels
        )


class Net(nn.Module):
    """Batch normalisation, dropout of our kind and of torch's, two terms with different weights."""

    pretrained = ("trunk.",)

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = KeyedDropout(dropout)
        self.foreign_drop = nn.Dropout(dropout)
        self.pixels = nn.Conv2d(4, 2, 1)
        self.tags = nn.Linear(4, 2)

    def losses(self, batch: Batch) -> dict[str, Term]:
        x = self.foreign_drop(self.drop(F.relu(self.norm(self.trunk(batch.images / 255)))))
        tags = F.binary_cross_entropy_with_logits(self.tags(x.mean((2, 3))).float(), batch.tags, reduction="sum")
        return {
            "pixels": pixel_cross_entropy(self.pixels(x), batch.labels),
            "tags": Term(tags, tags.new_tensor(len(batch.ids))),
        }


def net(dropout: float = 0.3) -> Net:
    torch.manual_seed(5)
    return Net(dropout)


def fit(model: nn.Module, checkpoint: Path | None = None, samples: Any = None, **changes: Any) -> Fit:
    return Fit(model, Pictures() if samples is None else samples, recipe(**changes), 1, Runtime(), checkpoint)


def trained(model: nn.Module, checkpoint: Path | None = None, **changes: Any) -> list[dict[str, float]]:
    return [progress.losses for progress in fit(model, checkpoint, **changes)]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# Schedules and groups


def test_schedules() -> None:
    steps = range(6)
    assert [rate(s, recipe(schedule="constant", warmup_steps=0)) for s in steps] == [1] * 6
    assert [rate(s, recipe(schedule="constant", warmup_steps=4)) for s in steps] == [0.25, 0.5, 0.75, 1, 1, 1]
    step = recipe(schedule="step", step_every=2, step_factor=0.1, warmup_steps=0)
    assert [rate(s, step) for s in steps] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    poly = recipe(schedule="poly", poly_power=0.9, steps=6, warmup_steps=2)
    expected = [0.5 * 1.0, (5 / 6) ** 0.9, (4 / 6) ** 0.9, (3 / 6) ** 0.9, (2 / 6) ** 0.9, (1 / 6) ** 0.9]
    assert [rate(s, poly) for s in steps] == pytest.approx(expected)


def test_groups_of_parameters() -> None:
    model = net()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        names[id(parameter)]: (group["multiplier"], group["weight_decay"])
        for group in parameter_groups(model, recipe(trunk_multiplier=0.5, bias_multiplier=2.0, weight_decay=0.01))
        for parameter in group["params"]
    }
    assert groups == {
        "trunk.weight": (0.5, 0.01),
        "trunk.bias": (1.0, 0.0),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (2.0, 0.0),
        "pixels.weight": (1.0, 0.01),
        "pixels.bias": (2.0, 0.0),
        "tags.weight": (1.0, 0.01),
        "tags.bias": (2.0, 0.0),
    }


def test_a_trunk_with_multiplier_zero_stays_as_it_is() -> None:
    model = net()
    before = model.trunk.weight.clone()
    trained(model, trunk_multiplier=0.0, steps=3)
    assert torch.equal(model.trunk.weight, before)
    assert not torch.equal(model.tags.weight, net().tags.weight)


def test_adamw_takes_its_first_beta_from_the_momentum() -> None:
    made = optimiser(net(), recipe(optimizer="adamw", momentum=0.8))
    assert isinstance(made, torch.optim.AdamW)
    assert made.param_groups[0]["betas"] == (0.8, 0.999)


# One loop, and what plain torch would do


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2},
        {"clip_norm": 0.05},
        {"momentum": 0.0, "schedule": "step", "accumulate": 2, "clip_norm": 0.5},
    ],
)
def test_fit_does_what_a_plain_loop_does(changes: dict[str, Any]) -> None:
    settings = recipe(**changes)
    plain, ours = net(dropout=0.0), net(dropout=0.0)
    steps = optimiser(plain, settings)
    stream = Stream(Pictures(), Order(10, settings.batch_size, settings.accumulate, seed=1), workers=0)
    expected = []
    for step, batches in enumerate(stream.steps(0, settings.steps)):
        for group in steps.param_groups:
            group["lr"] = settings.learning_rate * rate(step, settings) * group["multiplier"]
        steps.zero_grad()
        sums = {"pixels": 0.0, "tags": 0.0}
        for batch in batches:
            terms = {name: term.total / term.weight for name, term in plain.losses(batch).items()}
            (sum(terms.values(), torch.zeros(())) / len(batches)).backward()
            sums = {name: sums[name] + value.item() / len(batches) for name, value in terms.items()}
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(plain.parameters(), settings.clip_norm)
        steps.step()
        expected.append(sums)
    got = trained(ours, **changes)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Linear(nn.Module):
    """Without batch normalisation and dropout, every way to cut a batch must give the same."""

    pretrained = ()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def losses(self, batch: Batch) -> dict[str, Term]:
        scores = self.layer(batch.images.mean((2, 3)) / 255)
        total = F.binary_cross_entropy_with_logits(scores, batch.tags, reduction="sum")
        return {"tags": Term(total, total.new_tensor(len(batch.ids)))}


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_one_large_batch(accumulate: int) -> None:
    torch.manual_seed(0)
    whole = Linear()
    parts = Linear()
    parts.load_state_dict(whole.state_dict())
    expected, got = trained(whole), trained(parts, accumulate=accumulate)
    assert [x["tags"] for x in got] == pytest.approx([x["tags"] for x in expected], rel=1e-5)
    torch.testing.assert_close(parts.layer.weight, whole.layer.weight)


@pytest.mark.parametrize("changes", [{}, {"channels_last": True}, {"optimizer": "adamw", "learning_rate": 0.01}])
def test_the_loss_falls_and_the_same_seed_gives_the_same_weights(changes: dict[str, Any]) -> None:
    models = net(), net()
    losses = [trained(model, steps=40, **changes) for model in models]
    assert losses[0] == losses[1]
    assert same(*models)
    assert sum(losses[0][-1].values()) < 0.8 * sum(losses[0][0].values())


def test_channels_last_reaches_weights_and_images() -> None:
    class Watching(Net):
        def losses(self, batch: Batch) -> dict[str, Term]:
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert self.trunk.weight.is_contiguous(memory_format=torch.channels_last)
            return super().losses(batch)

    trained(Watching(), steps=2, channels_last=True)


def test_progress_names_terms_and_rates() -> None:
    first, second, *_ = fit(net(), steps=4, warmup_steps=2)
    assert isinstance(first, Progress)
    assert (first.step, second.step) == (0, 1)
    assert set(first.losses) == {"pixels", "tags"}
    assert first.learning_rate == pytest.approx(0.025)
    assert first.seconds > 0
    assert not first.replayed


def test_bf16_on_a_cpu_is_a_choice() -> None:
    assert Runtime("auto").precision == ("bf16" if torch.cuda.is_available() else "fp32")
    models = net(), net()
    full = trained(models[0], steps=4)
    half = [p.losses for p in Fit(models[1], Pictures(), recipe(steps=4), 1, Runtime("bf16"), None)]
    assert half != full
    assert [x["tags"] for x in half] == pytest.approx([x["tags"] for x in full], rel=0.05)
    assert models[1].trunk.weight.dtype == torch.float32


def test_torch_compile_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(inductor, "cpp_cache_precompile_headers", False)
    torch.manual_seed(0)
    plain, compiled = Linear(), Linear()
    compiled.load_state_dict(plain.state_dict())
    expected, got = trained(plain, steps=3), trained(compiled, steps=3, compile=True)
    assert [x["tags"] for x in got] == pytest.approx([x["tags"] for x in expected], rel=1e-5)
    torch.testing.assert_close(compiled.layer.weight, plain.layer.weight)


def test_torch_compile_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(config.cpp, "cxx", "/nowhere/g++")
    cpp_builder.cpp_compiler_search.cache_clear()
    with pytest.raises(Problem, match=r"needs a C\+\+ compiler"):
        fit(net(), compile=True)


# What stops a run


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
    assert all(bool(p.isfinite().all()) for p in model.parameters())


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


# Going on


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "learning_rate": 0.01, "accumulate": 2, "channels_last": True, "trunk_multiplier": 0.0},
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


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
    list(fit(net(), checkpoint, trunk_multiplier=0.0, steps=4))
    from segcore import checkpoints

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
