"""The training loop: schedules, groups of parameters, one step against plain torch, precision, compilation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segcore.config.classifiers import HeadParams, StochasticParams
from segcore.config.training import RecipeParams
from segcore.data.batches import Batch, Stream
from segcore.data.order import Order
from segcore.errors import Problem
from segcore.losses import Term
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier
from segcore.processes import Runtime
from segcore.training.fit import Fit, Progress
from segcore.training.optimisation import optimiser, parameter_groups, rate
from tests.loop import Linear, Net, Pictures, fit, net, recipe, same, trained
from tests.networks import backbone, fully_connected


def test_schedules() -> None:
    steps = range(6)
    assert [rate(s, recipe(schedule={"kind": "constant"}, warmup_steps=0)) for s in steps] == [1] * 6
    assert [rate(s, recipe(schedule={"kind": "constant"}, warmup_steps=4)) for s in steps] == [0.25, 0.5, 0.75, 1, 1, 1]
    step = recipe(schedule={"kind": "step", "every": 2, "factor": 0.1}, warmup_steps=0)
    assert [rate(s, step) for s in steps] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    poly = recipe(schedule={"kind": "poly", "power": 0.9}, steps=6, warmup_steps=2)
    expected = [0.5 * 1.0, (5 / 6) ** 0.9, (4 / 6) ** 0.9, (3 / 6) ** 0.9, (2 / 6) ** 0.9, (1 / 6) ** 0.9]
    assert [rate(s, poly) for s in steps] == pytest.approx(expected)


def test_groups_of_parameters() -> None:
    model = net()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        names[id(parameter)]: (group["multiplier"], group["weight_decay"])
        for group in parameter_groups(
            model, recipe(multipliers={"pretrained": 0.5}, bias_multiplier=2.0, weight_decay=0.01)
        )
        for parameter in group["params"]
    }
    assert groups == {
        "trunk.weight": (0.5, 0.01),
        "trunk.bias": (1.0, 0.0),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "pixels.weight": (1.0, 0.01),
        "pixels.bias": (2.0, 0.0),
        "tags.weight": (1.0, 0.01),
        "tags.bias": (2.0, 0.0),
    }


def named(**multipliers: float) -> RecipeParams:
    return recipe(bias_multiplier=2.0, multipliers=multipliers)


class InGroups(Net):
    groups = {"new": ("pixels.", "tags."), "norms": ("norm.",)}


def test_groups_by_name_learn_as_fast_as_the_recipe_says() -> None:
    model = InGroups()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, named(pretrained=0.1, new=10.0, norms=0.0))
    rates = {names[id(p)]: group["multiplier"] for group in groups for p in group["params"]}
    expected = {"trunk.weight": 0.1, "trunk.bias": 0.2}
    expected |= {"pixels.weight": 10.0, "pixels.bias": 20.0, "tags.weight": 10.0, "tags.bias": 20.0}
    assert rates == pytest.approx(expected)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm.weight", "norm.bias"]
    plain = parameter_groups(InGroups(), named())
    assert {group["multiplier"] for group in plain} == {1.0, 2.0}


def test_a_recipe_that_names_a_group_there_is_not_is_a_problem() -> None:
    with pytest.raises(Problem, match=r"multipliers: found 'nwe'; .* pretrained, new, norms; did you mean 'new'\?"):
        parameter_groups(InGroups(), named(nwe=10.0))
    with pytest.raises(Problem, match="found 'new'; this network has the groups pretrained"):
        parameter_groups(net(), named(new=10.0))


def test_groups_that_overlap_or_hold_nothing_are_errors_of_the_system() -> None:
    class Overlapping(Net):
        groups = {"new": ("trunk.bias", "tags.")}

    with pytest.raises(ValueError, match=r"trunk.bias belongs to pretrained and new"):
        parameter_groups(Overlapping(), recipe())

    class Empty(Net):
        groups = {"heads": ("exits.",)}

    with pytest.raises(ValueError, match="no parameter belongs to heads"):
        parameter_groups(Empty(), recipe())


def test_a_trunk_with_multiplier_zero_stays_as_it_is() -> None:
    model = net()
    before = model.trunk.weight.clone()
    trained(model, multipliers={"pretrained": 0.0}, steps=3)
    assert torch.equal(model.trunk.weight, before)
    assert not torch.equal(model.tags.weight, net().tags.weight)


def test_adamw_takes_its_first_beta_from_the_momentum() -> None:
    made = optimiser(net(), recipe(optimizer="adamw", momentum=0.8))
    assert isinstance(made, torch.optim.AdamW)
    assert made.param_groups[0]["betas"] == (0.8, 0.999)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2},
        {"clip_norm": 0.05},
        {"momentum": 0.0, "schedule": {"kind": "step", "every": 3, "factor": 0.1}, "accumulate": 2, "clip_norm": 0.5},
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


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_one_large_batch(accumulate: int) -> None:
    torch.manual_seed(0)
    whole = Linear()
    parts = Linear()
    parts.load_state_dict(whole.state_dict())
    expected, got = trained(whole), trained(parts, accumulate=accumulate)
    assert [x["tags"] for x in got] == pytest.approx([x["tags"] for x in expected], rel=1e-5)
    torch.testing.assert_close(parts.layer.weight, whole.layer.weight)


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("head", ["fully_connected", "stochastic", "general"])
def test_accumulation_is_one_large_batch_with_dropout_too(head: str, accumulate: int) -> None:
    """A classifier without batch normalisation: the parts change memory, not results."""
    params: HeadParams = fully_connected(dropout=0.5)
    if head != "fully_connected":
        values = {"kind": "stochastic", "kernel": 3, "rate": 0.5, "rescale": True, "form": "factorised"}
        params = StochasticParams.model_validate(values | {"selection": head})

    def run(parts: int) -> tuple[Classifier, list[float]]:
        torch.manual_seed(0)
        model = classifiers.build(backbone("vgg16"), params, 2).double()
        runs = Fit(model, Pictures(size=64), recipe(steps=3, accumulate=parts), 1, Runtime(), None)
        return model, [progress.losses["tags"] for progress in runs]

    (whole, expected), (parts, got) = run(1), run(accumulate)
    assert got == pytest.approx(expected, rel=1e-6)  # the loss is single whatever the network is
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-8, msg=name)


def test_terms_that_weigh_less_than_one_are_means_all_the_same() -> None:
    """A weight may be a sum of confidences: scaling total and weight alike must change nothing."""

    class Doubtful(Linear):
        def losses(self, batch: Batch) -> dict[str, Term]:
            return {name: Term(t.total / 64, t.weight / 64) for name, t in super().losses(batch).items()}

    torch.manual_seed(0)
    certain, doubtful = Linear(), Doubtful()
    doubtful.load_state_dict(certain.state_dict())
    expected, got = trained(certain), trained(doubtful)
    assert [x["tags"] for x in got] == pytest.approx([x["tags"] for x in expected], rel=1e-6)
    torch.testing.assert_close(doubtful.layer.weight, certain.layer.weight)


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
    # Code without vectors: for which of them there are units, torch finds out by compiling, most of the time.
    monkeypatch.setattr(inductor.cpp, "vec_isa_ok", False)
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
