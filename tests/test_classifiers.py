"""Classifiers of both kinds of head: their size, grids, pooling, loss, and VGG-16's own fc6 and fc7."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from segcore.config import settings
from segcore.config.classifiers import StochasticParams
from segcore.config.networks import BackboneParams
from segcore.networks import classifiers, dropout
from segcore.networks.classifiers import Classifier, FullyConnectedHead, TagScores
from segcore.networks.stochastic_head import StochasticHead
from segcore.training.optimisation import parameter_groups
from tests.devkit import PARAMS
from tests.networks import (
    N_TAGS,
    SIZE,
    backbone,
    fully_connected,
    parameters,
    published_classifier,
    squares,
    tiny_classifier,
    vgg16_file,
)
from tests.test_backbones import SWITCHLESS


def test_the_published_classifier_has_134_million_parameters() -> None:
    classifier = published_classifier()
    assert parameters(classifier) == 134_342_484
    with torch.device("meta"):
        activations = classifier(torch.zeros(2, 3, 320, 320))
    assert activations.features.top.shape == (2, 512, 10, 10)
    assert activations.fc6.shape == activations.fc7.shape == (2, 4096, 4, 4)
    assert activations.scores.shape == (2, 20, 4, 4)
    assert activations.decision.shape == activations.strongest.shape == (2, 20)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", *SWITCHLESS])
@torch.no_grad()
def test_decision_is_the_mean_and_strongest_the_maximum(name: str) -> None:
    activations = tiny_classifier(name)(squares(2).images)
    grid = activations.scores.flatten(2)
    assert grid.shape[2] == 4
    torch.testing.assert_close(activations.decision, grid.mean(2))
    assert torch.equal(activations.strongest, grid.max(2).values)
    assert (activations.fc6 >= 0).all()
    assert (activations.fc7 >= 0).all()


def test_the_loss_is_summed_over_tags_and_averaged_over_images() -> None:
    classifier, batch = tiny_classifier(), squares(3)
    term = classifier.losses(batch)["tags"]
    p = classifier(batch.images).decision.sigmoid().double()
    by_hand = -(batch.tags * p.log() + (1 - batch.tags) * (1 - p).log()).sum()
    torch.testing.assert_close(term.total.double(), by_hand, rtol=1e-5, atol=1e-6)
    assert term.weight == 3


def test_a_few_steps_teach_it_the_tags() -> None:
    classifier, batch = tiny_classifier(dropout=0.2).train(), squares(4)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        dropout.set_key(classifier, step, rank=0, world=1)
        term = classifier.losses(batch)["tags"]
        optimiser.zero_grad()
        (term.total / term.weight).backward()
        optimiser.step()
        losses.append(term.total.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("width", "kernel", "fits"), [(24, 7, True), (16, 7, False), (24, 3, False)])
def test_fully_connected_layers_of_vgg16_serve_where_they_fit(
    tmp_path: Path, width: int, kernel: int, fits: bool
) -> None:
    state = vgg16_file(tmp_path / "vgg16.safetensors", 24)
    params = backbone(weights=str(tmp_path / "vgg16.safetensors"))
    classifier = classifiers.build(params, fully_connected(width=width, kernel=kernel), 5).eval()
    if not fits:
        assert classifier.pretrained == ("trunk.",)
        return
    assert classifier.pretrained == ("trunk.", "head.fc6.", "head.fc7.")
    # On a map of 7x7 the convolutions are the fully connected layers.
    top = classifier.trunk(torch.rand(2, 3, 224, 224) * 255).top
    fc6, fc7, _ = classifier.head(top)
    as_trained = torch.relu(top.flatten(1) @ state["classifier.0.weight"].T + state["classifier.0.bias"])
    torch.testing.assert_close(fc6.flatten(1), as_trained, rtol=1e-4, atol=as_trained.max().item() * 1e-5)
    as_trained = torch.relu(as_trained @ state["classifier.3.weight"].T + state["classifier.3.bias"])
    torch.testing.assert_close(fc7.flatten(1), as_trained, rtol=1e-4, atol=as_trained.max().item() * 1e-5)


def test_what_is_pre_trained_learns_at_the_rate_of_the_trunk(tmp_path: Path) -> None:
    vgg16_file(tmp_path / "vgg16.safetensors", 24)
    head = fully_connected(width=24, kernel=7)
    classifier = classifiers.build(backbone(weights=str(tmp_path / "vgg16.safetensors")), head, 5)
    recipe = settings.load(PARAMS).recipes["classifier"]
    groups = parameter_groups(
        classifier, recipe.model_copy(update={"multipliers": {"pretrained": 0.1}, "bias_multiplier": 2.0})
    )
    rates = {id(p): (group["multiplier"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert isinstance(classifier.head, FullyConnectedHead)
    assert rates[id(classifier.head.fc7.weight)] == (0.1, recipe.weight_decay)
    assert rates[id(classifier.head.fc7.bias)] == (0.2, 0.0)
    assert rates[id(classifier.head.score.weight)] == (1.0, recipe.weight_decay)
    assert len(rates) == len(list(classifier.parameters()))


def test_a_head_that_fits_the_map_of_the_input_size() -> None:
    params = BackboneParams(name="vgg16", weights="random", width=1 / 16, frozen_norm=False, stride=32, finer="dilated")
    classifier = classifiers.build(params, fully_connected(width=8, kernel=3), 2).eval()
    assert classifier(torch.zeros(1, 3, SIZE, SIZE)).scores.shape == (1, 2, 1, 1)


def stochastic_classifier(name: str = "vgg16", stride: Literal[8, 16, 32] = 8, **changes: Any) -> Classifier:
    """A random classifier with a stochastic head in eval mode."""
    values = {"kind": "stochastic", "kernel": 5, "selection": "stochastic", "rate": 0.8, "rescale": True}
    params = StochasticParams.model_validate(values | {"form": "factorised"} | changes)
    torch.manual_seed(0)
    return classifiers.build(backbone(name, stride=stride), params, N_TAGS).eval()


def test_the_published_stochastic_classifier_adds_one_kernel_a_tag() -> None:
    params = StochasticParams(
        kind="stochastic", kernel=9, selection="stochastic", rate=0.9, rescale=False, form="factorised"
    )
    with torch.device("meta"):
        trunk = BackboneParams(name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=8, finer="dilated")
        classifier = classifiers.build(trunk, params, 20).eval()
        found = classifier(torch.zeros(1, 3, 321, 321))
    assert isinstance(classifier.head, StochasticHead)
    assert parameters(classifier.head) == 20 * 512 * 81 + 20
    assert classifier.n_tags == 20
    assert classifier.pretrained == ("trunk.",)
    assert isinstance(found, TagScores)
    assert found.features.top.shape == (1, 512, 41, 41)
    assert found.decision.shape == (1, 20)


@pytest.mark.parametrize("selection", ["stochastic", "general", "deterministic"])
def test_the_stochastic_classifier_learns_the_tags(selection: str) -> None:
    classifier, batch = stochastic_classifier(selection=selection).train(), squares(4, 65)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        dropout.set_key(classifier, step, rank=0, world=1)
        term = classifier.losses(batch)["tags"]
        optimiser.zero_grad()
        (term.total / term.weight).backward()
        assert all(parameter.grad is not None for parameter in classifier.parameters())
        optimiser.step()
        losses.append(term.total.item())
    assert losses[-1] < 0.7 * losses[0]
    batch_of_two = classifier.eval()(batch.images[:2]).decision
    torch.testing.assert_close(batch_of_two, classifier(batch.images).decision[:2], rtol=1e-4, atol=1e-4)
