"""DecoupledNet: frozen classifier, binary targets, and the published inference, told once more step by step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.data.batches import Batch
from segcore.networks.trunk import Features
from segcore.systems import decouplednet
from segcore.systems.decouplednet import DecoupledNet
from segcore.training.optimisation import parameter_groups
from tests.loop import recipe
from tests.networks import N_TAGS, find_exactly, predicting, squares, system_of, total

FOUND = [[1, 2, 4, 5], [], [3], [2, 5]]
"""Tags that the classifier is made to find in four pictures."""


def decoupled(trunk: str = "vgg16", **changes: Any) -> DecoupledNet:
    system = system_of("decouplednet", trunk, **changes)
    assert isinstance(system, DecoupledNet)
    return system


def test_the_classifier_is_frozen_and_stays_in_eval_mode() -> None:
    system, batch = decoupled("timm/test_resnet"), squares(2)
    before = {key: value.clone() for key, value in system.classifier.state_dict().items()}
    for _ in range(2):
        assert not any(part.training for part in system.classifier.modules())
        system.train()
    assert all(part.training for part in system.segmenter.modules())
    total(system, batch).backward()
    system.finish([batch])
    assert all(p.grad is None and not p.requires_grad for p in system.classifier.parameters())
    assert all(torch.equal(value, before[key]) for key, value in system.classifier.state_dict().items())


def test_normalisation_decays_as_published_and_biases_do_not() -> None:
    """The prototxt gives layers of type BN no weight_decay, so that Caffe's default of 1 holds; biases have 0."""
    system = decoupled()
    norms = {name for name, module in system.segmenter.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {"bridge.spatial_norm", "bridge.saliency_norm", "bridge.fc6.1"} < norms
    names = {id(parameter): name for name, parameter in system.segmenter.named_parameters()}
    for group in parameter_groups(system, recipe(weight_decay=0.01, bias_multiplier=2.0)):
        for name in (names[id(parameter)] for parameter in group["params"]):
            is_bias = name.endswith(".bias") and name.removesuffix(".bias") not in norms
            assert group["weight_decay"] == (0 if is_bias else 0.01), name
            assert group["multiplier"] == (2 if is_bias else 1), name


def test_the_loss_is_the_cross_entropy_of_the_subset_over_known_pixels() -> None:
    system, batch = decoupled().train(), squares(2)
    batch.labels[0, 40:50, 10:20] = 255
    batch.tags[0] = torch.tensor([1, 0, 0, 0, 0])  # the picture also shows class 3, which is then background
    term = system.losses(batch)["segmentation"]

    activations = system.classifier(batch.images)
    values = activations.scores.flatten(2).max(2).values.sigmoid() * batch.tags
    score = (values.detach() * activations.scores.amax((2, 3))).sum()
    with torch.enable_grad():
        top = activations.features.top.detach().requires_grad_()
        score = (values.detach() * system.classifier.head(top)[2].amax((2, 3))).sum()
        (maps,) = torch.autograd.grad(score, top)
    scores = system.segmenter(activations.features, maps, (96, 96)).detach().double()
    by_hand, known = 0.0, 0
    for number, subset in enumerate([[1], [2, 4]]):
        labels = batch.labels[number]
        target = torch.isin(labels, torch.tensor(subset))
        chosen = torch.where(target, scores[number, 1], scores[number, 0])
        cost = scores[number].logsumexp(0) - chosen
        by_hand += float(cost[labels != 255].sum())
        known += int((labels != 255).sum())
    assert (batch.labels == 3).any()
    assert term.weight == known
    assert float(term.total) == pytest.approx(by_hand, rel=1e-4)


def ready(trunk: str, found: list[list[int]], **changes: Any) -> tuple[DecoupledNet, Batch]:
    """A system with statistics, which finds `found` in the pictures of the batch."""
    system, batch = decoupled(trunk, **changes), squares(len(found))
    find_exactly(system.classifier, batch.images, found)
    for module in system.segmenter.modules():  # strong enough for maps that differ from place to place
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.2)
    system.finish([squares(4, seed=1)])
    probabilities = system.classifier(batch.images).decision.sigmoid()
    assert [[i + 1 for i, p in enumerate(row) if p > 0.5] for row in probabilities.tolist()] == found
    return system, batch


def published_inference(system: DecoupledNet, image: Tensor) -> Tensor:
    """The published inference (`DecoupledNet_inference.m`), step by step: a whole pass for each label vector."""
    s = system.classifier(image[None]).scores.mean((2, 3)).sigmoid()[0]
    found = [label for label in range(len(s)) if s[label] > 0.5]
    stack = torch.zeros(len(s) + 1, *image.shape[1:])
    if not found:
        stack[0] = 1
        return stack
    joint = torch.where(s > 0.5, s, torch.zeros(()))
    stack[0] = whole_network(system, image, joint)[0]
    for label in found:
        vector = torch.zeros(len(s))
        vector[label] = s[label]
        stack[label + 1] = whole_network(system, image, vector)[1]
    nowhere = stack.sum(0) == 0
    for row in [0, *(label + 1 for label in found)]:
        stack[row] += nowhere
    return stack / stack.sum(0)


def whole_network(system: DecoupledNet, image: Tensor, vector: Tensor) -> Tensor:
    """Background and foreground probability, layer by layer as the network was trained."""
    activations = system.classifier(image[None])
    with torch.enable_grad():
        top = activations.features.top.detach().requires_grad_()
        (saliency,) = torch.autograd.grad((vector * system.classifier.head(top)[2].amax((2, 3))[0]).sum(), top)
    bridge, net = system.segmenter.bridge, system.segmenter.deconvolution
    both = torch.cat([bridge.spatial_norm(activations.features.top), bridge.saliency_norm(saliency)], 1)
    x = bridge.fc6_deconv(bridge.fc7(bridge.fc6(both)))
    for level, switches in zip(net.levels, reversed(activations.features.switches), strict=True):
        x = level.upsample(x) if switches is None else F.max_unpool2d(x, switches, [2, 2])  # type: ignore[operator]
        x = level.layers(x)  # type: ignore[operator]
    return net.score(x).softmax(1)[0].detach()


@pytest.mark.parametrize("trunk", ["vgg16", "vgg16_bn", "timm/test_resnet"])
@torch.no_grad()
def test_prediction_is_the_published_inference(trunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system, batch = ready(trunk, FOUND)
    maps = system.predict(batch.images)
    for number in range(len(FOUND)):
        expected = published_inference(system, batch.images[number])
        assert (maps[number] - expected).abs().max() < 1e-4
    labels = maps.argmax(1)
    assert len(labels[0].unique()) > 2, "the maps of the tags differ, or this proves nothing"
    monkeypatch.setattr(decouplednet, "PAIRS_AT_ONCE", 3)
    torch.testing.assert_close(system.predict(batch.images), maps, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_maps_sum_to_one_and_only_found_tags_have_one() -> None:
    system, batch = ready("vgg16", FOUND)
    maps = system.predict(batch.images)
    torch.testing.assert_close(maps.sum(1), torch.ones(4, 96, 96))
    for number, found in enumerate(FOUND):
        shown = [row for row in range(N_TAGS + 1) if maps[number, row].any()]
        assert shown == [0, *found]
    assert torch.equal(maps[1, 0], torch.ones(96, 96)), "nothing found: background everywhere"


@torch.no_grad()
def test_where_all_maps_are_zero_background_and_found_tags_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    system, batch = ready("vgg16", [[1, 3]])

    def sure(features: Features, saliency: Tensor, size: tuple[int, int]) -> Tensor:
        """The joint map (first) finds no background, the single ones no foreground, but in the upper half."""
        scores = torch.zeros(len(saliency), 2, *size)
        scores[0, 1] = scores[1:, 0] = 200
        scores[:, :, :48] = 0
        return scores

    monkeypatch.setattr(system.segmenter, "forward", sure)
    maps = system.predict(batch.images)
    torch.testing.assert_close(maps[0, [0, 1, 3]], torch.full((3, 96, 96), 1 / 3))


def test_a_higher_threshold_finds_fewer() -> None:
    system, batch = ready("vgg16", [[1, 2, 5]])
    assert {row for row in range(1, 6) if system.predict(batch.images)[0, row].any()} == {1, 2, 5}
    strict = predicting(system, threshold=0.85)
    shown = {row for row in range(1, 6) if strict.predict(batch.images)[0, row].any()}
    assert shown == {5}, "0.3 + 0.4 * 5 is a probability of 0.91, 0.3 + 0.4 * 2 one of 0.75"


@torch.no_grad()
def test_an_uncertain_tag_counts_less() -> None:
    """Each map times the probability of its tag; FOUND has such of 0.67 (tag 1) to 0.91 (tag 5)."""
    system, batch = ready("vgg16", FOUND)
    published = system.predict(batch.images)
    weighed = predicting(system, weigh_by_probability=True).predict(batch.images)

    logits = torch.tensor([[0.3 + 0.4 * tag for tag in range(1, N_TAGS + 1)]])
    expected = published * torch.cat([torch.ones(1, 1), logits.sigmoid()], 1)[:, :, None, None]
    torch.testing.assert_close(weighed, expected / expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert (weighed.argmax(1) == 0).sum() > (published.argmax(1) == 0).sum(), "the background takes doubtful pixels"
