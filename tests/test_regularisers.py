"""Regularisers on every open system, in one process and two. `torchrun -m tests.test_regularisers FILE` is the two."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from segcore import regularisers, systems
from segcore.data.batches import Batch, Moment, Sample
from segcore.data.pictures import IGNORE
from segcore.errors import Problem
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks import dropout
from segcore.networks.dropout import KeyedDropout
from segcore.processes import Runtime
from segcore.regularisers import contract
from segcore.regularisers.contract import Regularised, Regulariser, weighted
from segcore.systems.contract import OpenSystem, Outputs, System
from segcore.training.fit import Fit
from tests import warm
from tests.loop import recipe, same
from tests.networks import N_TAGS, SIZE, batch_of, squares, system_of
from tests.test_models import card_in, load, save, saved_system

PROJECT = Path(__file__).parents[1]
EVERY = regularisers.names()
OPEN = [module for module in systems.names() if isinstance(system_of(module), OpenSystem)]
STEPS = 4
TRAINING: dict[str, Any] = {
    "steps": STEPS, "learning_rate": 0.001, "clip_norm": None, "warmup_steps": 0, "multipliers": {"pretrained": 1.0},
}  # fmt: skip


class Exits(Regulariser):
    """A head on every level learns the labels; what all say together is taught by the scores after a warm-up."""

    def __init__(self, system: OpenSystem, start: float = 0.5, factor: float = 1.0) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, N_TAGS + 1, 1), nn.BatchNorm2d(N_TAGS + 1), KeyedDropout(0.2))
            for channels in system.trunk.level_channels
        )
        self.temperature = nn.Parameter(torch.ones(()))
        self.start = start
        self.factor = factor

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        heads = zip(self.heads, outputs.levels, strict=True)
        size = tuple(batch.labels.shape[1:])
        scores = [F.interpolate(head(level), size, mode="bilinear").float() for head, level in heads]
        exits = [pixel_cross_entropy(one, batch.labels) for one in scores]
        taught = torch.stack(scores).mean(0) * self.temperature
        teacher = F.interpolate(outputs.scores.float(), size, mode="bilinear").detach().softmax(1)
        distance = -(teacher * taught.log_softmax(1)).sum(1).mean((1, 2)).sum()
        agreement = Term(distance, distance.new_full((), len(batch.ids)))
        return {
            "exits": weighted(Term(torch.stack([x.total for x in exits]).sum(), exits[0].weight), self.factor),
            "agreement": weighted(agreement, self.factor if batch.moment.elapsed >= self.start else 0.0),
        }


class Idle(Regulariser):
    """Has nothing to say."""

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        return {}


def regularised(system: System, **changes: Any) -> Regularised:
    assert isinstance(system, OpenSystem)
    torch.manual_seed(3)
    return Regularised(system, {"exits": Exits(system, **changes)})


def small(name: str, system: System) -> Regularised:
    """A system with one of the regularisers there are, as cheap as can be."""
    torch.manual_seed(3)
    model = contract.regularised(system, {name: regularisers.load(name).smallest()}, N_TAGS)
    assert isinstance(model, Regularised)
    return model


class Few:
    """The samples of one batch as the system is trained on."""

    def __init__(self, system: System) -> None:
        self.batch = batch_of(system, 6)
        self.input_size = SIZE

    def __len__(self) -> int:
        return len(self.batch.ids)

    def sample(self, index: int, seed: int) -> Sample:
        batch = self.batch
        labels, strong = batch.labels[index].to(torch.uint8), bool(batch.strong[index])
        return Sample(batch.ids[index], batch.images[index].to(torch.uint8), batch.tags[index], labels, strong)


def trained(model: nn.Module, samples: Few, **changes: Any) -> list[dict[str, float]]:
    fit = Fit(model, samples, recipe(**TRAINING | changes), 1, Runtime(), None)
    return [progress.losses for progress in fit]


@pytest.mark.parametrize("module", OPEN)
def test_a_regulariser_shares_the_one_pass_of_its_system(module: str) -> None:
    system = system_of(module, "timm/test_resnet")
    assert isinstance(system, OpenSystem)
    model, passes = regularised(system).train(), []
    system.trunk.register_forward_hook(lambda *_: passes.append("trunk"))
    batch = batch_of(system, 2)
    for step in (0, 60):
        dropout.set_key(model, step, rank=0, world=1)
        terms = model.losses(batch.at(Moment(step, 100)))
        assert {"exits/exits", "exits/agreement"} <= terms.keys()
        assert (terms["exits/agreement"].total.item() > 0) == (step > 0)
        model.zero_grad(set_to_none=True)
        torch.stack([term.total for term in terms.values()]).sum().backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, "processes wait for these gradients"
    assert passes == ["trunk", "trunk"]
    # The levels teach the trunk.
    plain = terms.keys() - {"exits/exits", "exits/agreement"}
    own = system.terms(batch, system(batch)).keys()
    assert plain == own


@pytest.mark.parametrize("module", OPEN)
def test_a_regulariser_that_weighs_nothing_changes_nothing(module: str) -> None:
    """Not one bit: neither the initial weights nor dropout nor the order of the data know of it."""
    alone, other = (system_of(module, "timm/test_resnet") for _ in range(2))
    losses = trained(alone, Few(alone))
    beside = trained(regularised(other, factor=0.0), Few(other))
    assert [{k: v for k, v in step.items() if not k.startswith("exits/")} for step in beside] == losses
    assert same(alone, other)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("trunk", ["vgg16", "timm/test_resnet"])
@pytest.mark.parametrize("module", OPEN)
def test_every_regulariser_teaches_every_open_system(module: str, trunk: str, name: str) -> None:
    """All terms and gradients are there in every step and in batches without labels; the loss is finite."""
    system = system_of(module, trunk)
    model, batch, found = small(name, system).train(), batch_of(system, 3), []
    unknown = replace(batch, labels=torch.full_like(batch.labels, IGNORE), strong=torch.zeros(3) > 0)
    for given in (batch, unknown):
        for step in (0, 50, 99):
            dropout.set_key(model, step, rank=0, world=1)
            terms = model.losses(given.at(Moment(step, 100)))
            found.append(list(terms))
            assert all(term.total.isfinite() and term.total.shape == term.weight.shape == () for term in terms.values())
            model.zero_grad(set_to_none=True)
            torch.stack([term.total for term in terms.values()]).sum().backward()
            without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert not without, "processes wait for these gradients"
    assert found == [found[0]] * 6
    assert any(term.startswith(f"{name}/") for term in found[0])


@pytest.mark.parametrize("name", ["exits", *EVERY])
@pytest.mark.parametrize("module", OPEN)
def test_what_is_saved_is_the_plain_system(module: str, name: str, tmp_path: Path) -> None:
    plain = saved_system(tmp_path, module, "timm/test_resnet")
    system = system_of(module, "timm/test_resnet")
    trained(regularised(system) if name == "exits" else small(name, system), Few(system))
    save(tmp_path / "regularised", module, card_in(tmp_path / "classifier"), system)
    loaded, _ = load(tmp_path / "regularised", module)
    assert list(loaded.state_dict()) == list(plain.state_dict())
    images = squares(2).images
    expected = system.to(memory_format=torch.channels_last).eval().predict(images)  # type: ignore[call-overload]
    assert torch.equal(loaded.predict(images), expected)
    assert graph(loaded, images) == graph(plain, images)
    assert same(loaded, system)


def graph(system: nn.Module, images: Tensor) -> list[str]:
    """The layers that a prediction calls, in their order."""
    calls: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    hooks = [part.register_forward_hook(note(name)) for name, part in system.named_modules()]
    system.predict(images)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return calls


def test_the_heads_and_the_system_have_their_own_rates() -> None:
    model = regularised(system_of("deeplab"))
    assert model.pretrained == tuple(f"system.{prefix}" for prefix in model.system.pretrained)
    trained(model, Few(model.system), multipliers={"pretrained": 0.0}, steps=1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert model.groups == {"exits": ("regularisers.exits.",)}
    assert frozen
    assert all(name.startswith("system.network.trunk.") for name in frozen)


@pytest.mark.parametrize("module", sorted({*systems.names()} - {*OPEN}))
def test_a_system_that_shows_nothing_cannot_be_regularised(module: str) -> None:
    with pytest.raises(Problem, match="does not show what its network computes.*without exits, more"):
        Regularised(system_of(module), {"exits": Idle(), "more": Idle()})


def test_a_regulariser_cannot_take_the_name_of_a_group() -> None:
    with pytest.raises(Problem, match="'pretrained' is a group of parameters of this system"):
        Regularised(system_of("deeplab"), {"pretrained": Idle()})


def test_an_unknown_regulariser_is_a_problem() -> None:
    with pytest.raises(Problem, match="unknown module 'self_regulatoin'; segcore/regularisers has"):
        regularisers.load("self_regulatoin")
    for name in EVERY:
        module = regularisers.load(name)
        assert module.Params.model_config["extra"] == "forbid"
        assert set(module.smallest()) == set(module.Params.model_fields)


def work(file: Path) -> None:
    """Every system plain and every open one regularised, in double precision, on this process's share of a batch."""
    runtime, losses, states = Runtime(), {}, {}
    for module in systems.names():
        for heads in ("plain", *(("exits", *EVERY) if module in OPEN else ())):
            system = system_of(module, "timm/test_resnet")
            beside = {"plain": lambda plain: plain, "exits": regularised}.get(heads, partial(small, heads))
            model = beside(system).double()
            name = f"{module} {heads}"
            losses[name] = trained(model, Few(system))
            states |= {f"{name}: {key}": value.clone() for key, value in model.state_dict().items()}
    if runtime.is_main:
        save_file(states, file, {"losses": json.dumps(losses)})
    runtime.wait()


def python(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["python", *words]
    return subprocess.run(command, cwd=PROJECT, env=warm.environment(), capture_output=True, text=True, timeout=300)


def test_two_processes_train_every_system_as_one_does(tmp_path: Path) -> None:
    """A warm-up ends on the way: "Expected to have finished reduction" stops who joins a term late."""
    results = []
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * (processes > 1)
        file = tmp_path / f"{processes}.safetensors"
        done = python(*launcher, "-m", "tests.test_regularisers", str(file))
        assert done.returncode == 0, done.stdout + done.stderr
        with safe_open(file, "pt") as saved:
            results.append((json.loads(saved.metadata()["losses"]), load_file(file)))
    (one, states), (two, others) = results
    assert len(one) == len(systems.names()) + len(OPEN) * (1 + len(EVERY))
    for name, expected in one.items():
        for mine, theirs in zip(two[name], expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5), name
        if name.endswith(" exits"):
            agreement = [step["exits/agreement"] for step in expected]
            assert [value > 0 for value in agreement] == [False, False, True, True]
        if name.endswith(" self_regulation"):
            for term in ("features", "logits"):
                values = [step[f"self_regulation/{term}"] for step in expected]
                assert [value > 0 for value in values] == [False, False, True, True]
    assert {key.partition(":")[0] for key in states} == {*one}
    assert states.keys() == others.keys()
    for key, values in states.items():
        torch.testing.assert_close(
            others[key], values, rtol=1e-3, atol=1e-4, msg=lambda said, key=key: f"{key}: {said}"
        )


def test_a_head_that_joins_late_stops_two_processes(tmp_path: Path) -> None:
    """What the contract forbids, so that the test above is known to see it."""
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = python(*two, "-m", "tests.test_regularisers", "late")
    assert done.returncode != 0
    assert "Expected to have finished reduction" in done.stderr + done.stdout


class Late(Exits):
    """Leaves its second term out until it counts."""

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        terms = super().terms(batch, outputs)
        return terms if batch.moment.elapsed >= self.start else {"exits": terms["exits"]}


if __name__ == "__main__":
    if sys.argv[1] == "late":
        late = system_of("deeplab", "timm/test_resnet")
        assert isinstance(late, OpenSystem)
        trained(Regularised(late, {"late": Late(late)}), Few(late))
    else:
        work(Path(sys.argv[1]))
