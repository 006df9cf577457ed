"""DeconvNet: where its encoder comes from, its loss and its statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from segcore.data.batches import Batch
from segcore.errors import Problems
from segcore.networks import backbones, classifiers
from segcore.systems.deconvnet import DeconvNet
from tests.networks import backbone, build, fully_connected, squares, tiny_classifier, vgg16_file


def test_frozen_statistics_of_an_encoder_are_not_estimated_anew() -> None:
    classifier = tiny_classifier()
    classifier.trunk = backbones.build(backbone("timm/test_resnet", frozen_norm=True))
    system = build("deconvnet", classifier)
    before = {key: value.clone() for key, value in system.state_dict().items() if "running" in key}
    system.finish([squares(2)])
    changed = {key for key, value in before.items() if not torch.equal(system.state_dict()[key], value)}
    assert changed
    assert not any(key.startswith("encoder.") for key in changed)


def deconv(**changes: Any) -> tuple[DeconvNet, backbones.Trunk]:
    classifier = tiny_classifier()
    system = build("deconvnet", classifier, **changes)
    assert isinstance(system, DeconvNet)
    return system, classifier.trunk


def test_the_encoder_starts_from_the_classifier_or_from_the_backbone() -> None:
    for start, same in (("classifier", True), ("backbone", False)):
        system, trunk = deconv(encoder=start)
        kinds = [type(layer) for layer in system.encoder.modules()]
        assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.Conv2d) == 13, "VGG-16 gets batch normalisation"
        ours = next(layer for layer in system.encoder.modules() if isinstance(layer, nn.Conv2d))
        theirs = next(layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d))
        assert torch.equal(ours.weight, theirs.weight) == same
        assert all(p.requires_grad for p in system.parameters())


def test_a_fresh_vgg16_brings_its_own_fc6_and_fc7(tmp_path: Path) -> None:
    """Noh et al. 2015: the encoder, down to fc7, starts from a VGG-16 trained on ImageNet."""
    vgg16_file(tmp_path / "vgg16.safetensors", 24)
    params = backbone(weights=str(tmp_path / "vgg16.safetensors"))
    classifier = classifiers.build(params, fully_connected(width=24, kernel=7), 5)
    state = load_file(tmp_path / "vgg16.safetensors")
    for start, hidden, taken in (("backbone", 24, True), ("classifier", 24, False), ("backbone", 16, False)):
        system = build("deconvnet", classifier, encoder=start, width=hidden / 4096)
        assert isinstance(system, DeconvNet)
        layers = dict(system.named_parameters())
        same = layers["fc7.0.weight"].flatten().equal(state["classifier.3.weight"].flatten())
        assert same == taken
        assert layers["fc6.0.bias"].equal(state["classifier.0.bias"]) == taken
        assert system.pretrained == (("encoder.", "fc6.0.", "fc7.0.") if taken else ("encoder.",))


def test_deconvnet_learns_all_classes_at_once() -> None:
    system, _ = deconv()
    batch = squares(2)
    term = system.train().losses(batch)["segmentation"]
    scores = system(batch.images).detach()
    expected = F.cross_entropy(scores, batch.labels, ignore_index=255)
    torch.testing.assert_close(term.total / term.weight, expected, rtol=1e-4, atol=1e-5)
    other = Batch(batch.ids, batch.images, 1 - batch.tags, batch.labels)
    torch.testing.assert_close(system.losses(other)["segmentation"].total, term.total, rtol=1e-4, atol=1e-5)


def test_deconvnet_asks_for_proposals_where_its_parameters_do() -> None:
    assert deconv()[0].proposals == 0
    assert deconv(proposals=7)[0].proposals == 7
    with pytest.raises(Problems, match="systems.tested.proposals: found -1"):
        deconv(proposals=-1)
