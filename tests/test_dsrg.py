"""DSRG and FickleNet's segmenter: losses of weak and strong samples, growing cues, samples of both kinds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segcore import losses
from segcore.data.batches import Batch, Mixed, SizedSamples, Stream, collate
from segcore.data.order import Order
from segcore.errors import Problem
from segcore.localisation import region_growing
from segcore.networks import dropout
from segcore.networks.deeplab import LargeFov
from segcore.processes import Runtime
from segcore.systems import deeplab, dsrg
from segcore.systems.dsrg import DSRG
from segcore.training.fit import Fit
from tests.loop import recipe
from tests.networks import batch_of, build, laid, params_of, squares, system_of, tiny_classifier
from tests.test_deeplab import mask_folder
from tests.test_sec import STILL, Watched, cue_folder, inputs, part


def system(trunk: str = "vgg16", **changes: Any) -> DSRG:
    made = system_of("dsrg", trunk, **laid(STILL, changes)).train()
    assert isinstance(made, DSRG)
    return made


def test_weak_samples_pay_seed_and_boundary_and_strong_ones_the_full_loss() -> None:
    made = system()
    batch = batch_of(made, 5)
    assert batch.strong.tolist() == [True, False, True, False, True]
    terms = made.losses(batch)
    weak, strong = part(batch, torch.tensor([1, 3])), part(batch, torch.tensor([0, 2, 4]))
    f = losses.floored_softmax(made.network(weak.images).detach())
    refined = made.refined(f, weak.images)
    grown = region_growing.grow_batch(weak.labels, refined, weak.tags, 0.85, 0.99)
    full = losses.pixel_cross_entropy(made.network(strong.images).detach(), strong.labels)
    expected = {
        "seed": losses.balanced_seed_loss(f, grown),
        "boundary": losses.boundary_loss(f, refined, (0.05, 20.0)),
        "full": losses.Term(2 * full.total, full.weight),
    }
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        assert terms[name].weight == term.weight > 0
        torch.testing.assert_close(terms[name].total, term.total)


@pytest.mark.parametrize(("kind", "silent"), [(True, ["seed", "boundary"]), (False, ["full"])])
def test_a_batch_of_one_kind_leaves_the_other_losses_without_weight(kind: bool, silent: list[str]) -> None:
    """As a process may hold strong samples alone: every term is there and every parameter has a gradient."""
    made = system()
    batch = batch_of(made, 4)
    terms = made.losses(part(batch, (batch.strong == kind).nonzero().flatten()))
    assert [name for name, term in terms.items() if term.weight == 0] == silent
    assert all(terms[name].total == 0 for name in silent)
    torch.stack([term.total for term in terms.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_processes_that_share_a_batch_sum_to_the_whole() -> None:
    made = system()
    batch = batch_of(made, 4)
    whole = made.losses(batch)
    parts = [made.losses(part(batch, torch.arange(rank, 4, 2))) for rank in (0, 1)]
    assert parts[0]["seed"].weight == 0, "one holds the strong samples, one the weak"
    for name, term in whole.items():
        assert term.weight == sum(share[name].weight for share in parts)
        torch.testing.assert_close(term.total, parts[0][name].total + parts[1][name].total)


def test_alpha_weighs_the_full_loss_and_at_0_there_is_none() -> None:
    batch = batch_of(system(), 4)
    totals = [system(full_weight=alpha).losses(batch)["full"].total for alpha in (1.0, 3.0)]
    torch.testing.assert_close(3 * totals[0], totals[1])
    tags_only = system(full_weight=0.0)
    terms = tags_only.losses(batch_of(tags_only, 4))
    assert list(terms) == ["seed", "boundary"]
    assert terms["seed"].weight == 4


def certain(made: DSRG, label: int) -> None:
    """Make every pixel of every picture almost surely of one class."""
    with torch.no_grad():
        for branch in made.network.branches:
            assert isinstance(branch, LargeFov)
            assert branch.fc8.bias is not None
            branch.fc8.weight.zero_()
            branch.fc8.bias.copy_(10.0 * torch.eye(6)[label])


@pytest.mark.parametrize(("label", "tagged", "grows"), [(1, True, True), (1, False, False), (0, True, True)])
def test_cues_grow_where_the_network_is_sure(
    label: int, tagged: bool, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cue of the class and one of another: the whole grid but the other cue, if the class may be there at all."""
    seen: list[Tensor] = []
    real = losses.balanced_seed_loss

    def remember(probabilities: Tensor, cues: Tensor) -> losses.Term:
        seen.append(cues)
        return real(probabilities, cues)

    monkeypatch.setattr(dsrg, "balanced_seed_loss", remember)
    made = system()
    certain(made, label)
    cues = torch.full((1, 12, 12), 255)
    cues[0, 3, 4], cues[0, 8, 8] = label, 2
    tags = torch.tensor([[1.0 * tagged, 1, 0, 0, 0]])
    batch = Batch(("one",), squares(1).images, tags, cues, torch.tensor([False]))
    made.losses(batch)
    made.losses(batch)
    expected = torch.full((1, 12, 12), label) if grows else cues.clone()
    expected[0, 8, 8] = 2
    assert torch.equal(seen[0], expected)
    assert torch.equal(seen[1], expected), "every step grows the original cues"
    asleep = system(cues={"growing": None})
    asleep.losses(batch)
    assert torch.equal(seen[2], cues)


def test_neither_the_crf_nor_growing_takes_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, made = Watched(monkeypatch), system(cues={"unary": "probability"})
    batch = batch_of(made, 4)
    terms = made.losses(batch)
    ((energies, images, _, scale),) = watched.calls
    assert len(energies) == len(images) == 2, "the weak ones only"
    assert scale == 8.0
    assert not energies.requires_grad
    f = losses.floored_softmax(made.network(batch.images[1::2]))
    target = made.refined(f.detach(), batch.images[1::2])
    branch = made.network.branches[0]
    assert isinstance(branch, LargeFov)
    (expected,) = torch.autograd.grad(losses.boundary_loss(f, target, (0.05, 20.0)).total, [branch.fc8.weight])
    (found,) = torch.autograd.grad(terms["boundary"].total, [branch.fc8.weight])
    torch.testing.assert_close(found, expected)


def test_losses_are_in_full_precision_where_the_network_is_not() -> None:
    made = system()
    with torch.autocast("cpu", torch.bfloat16):
        terms = made.losses(batch_of(made, 4))
    assert all(term.total.dtype == torch.float32 and term.total.isfinite() for term in terms.values())


def test_retraining_goes_on_from_its_weights() -> None:
    """DeepLab, the second step, has the same parameters by name and shape."""
    made = system()
    second = build("deeplab", tiny_classifier(seed=5))
    second.load_state_dict(made.state_dict())
    images = squares(1, 97).images
    assert torch.equal(second.eval().predict(images), made.eval().predict(images))


def test_without_masks_the_samples_are_all_images_that_the_folder_lists(tmp_path: Path) -> None:
    folder = cue_folder(tmp_path / "made", ["bare", "one"])
    samples = dsrg.samples(params_of("dsrg", full_weight=0.0), inputs(tmp_path, folder, []))
    assert isinstance(samples, SizedSamples)
    assert len(samples) == 2
    assert not samples.sample(0, 0).strong


def test_with_masks_a_batch_is_half_strong_and_half_weak(tmp_path: Path) -> None:
    folder = cue_folder(tmp_path / "made", ["bare", "one", "two"])
    samples = dsrg.samples(params_of("dsrg"), inputs(tmp_path, folder, ["one", "two"]))
    assert isinstance(samples, Mixed)
    assert (samples.parts, samples.input_size) == ((3, 2), 97)
    batches = next(Stream(samples, Order.of(samples, 6, 1, seed=0), workers=0).steps(0, 1))
    batch = batches[0]
    assert batch.strong.tolist() == [False, True] * 3
    assert batch.labels.shape == (6, 13, 13)
    assert {*batch.ids[::2]} == {"bare", "one", "two"}
    assert {*batch.ids[1::2]} == {"one", "two"}
    assert all((labels == 255).any() for labels in batch.labels[::2]), "cues know little"
    assert not (batch.labels[1::2] == 255).any()


def test_masks_are_shrunk_to_the_cells_they_lie_at(tmp_path: Path) -> None:
    folder = cue_folder(tmp_path / "made", ["one"])
    found = inputs(tmp_path, folder, ["two"])
    samples = dsrg.samples(params_of("dsrg"), found)
    whole = deeplab.samples(params_of("deeplab"), inputs(tmp_path, mask_folder(tmp_path / "masks"), ["two"]))
    for seed in range(4):
        shrunk, full = samples.sample(1, seed), whole.sample(0, seed)
        assert torch.equal(shrunk.image, full.image)
        assert torch.equal(shrunk.labels, full.labels[::8, ::8])


def test_strong_images_that_there_are_not(tmp_path: Path) -> None:
    folder = cue_folder(tmp_path / "made", ["one"])
    with pytest.raises(Problem, match="no strong images; full_weight: 0"):
        dsrg.samples(params_of("dsrg"), inputs(tmp_path, folder, []))
    with pytest.raises(Problem, match="have no mask, bare first"):
        dsrg.samples(params_of("dsrg"), inputs(tmp_path, folder, ["one", "bare"]))


def test_training_on_both_kinds(tmp_path: Path) -> None:
    folder = cue_folder(tmp_path / "made", ["bare", "one"])
    samples = dsrg.samples(params_of("dsrg"), inputs(tmp_path, folder, ["one", "two"]))
    made = system(network={"dropout": 0.5})
    steps = list(Fit(made, samples, recipe(steps=3, learning_rate=0.001), 1, Runtime(), None))
    assert len(steps) == 3
    assert all(step.losses.keys() == {"seed", "boundary", "full"} for step in steps)
    assert all(step.losses["full"] > 0 for step in steps)
    assert not made.training
    dropout.set_key(made.train(), 0, 0, 1)
    assert made.losses(collate([samples.sample(i, 0) for i in range(4)]))["full"].weight == 2 * 13 * 13
