"""DeconvNet: where its encoder comes from, its loss and its statistics."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segcore import backbones
from segcore.batches import Batch
from segcore.problems import Problems
from segcore.systems.deconvnet import DeconvNet
from tests.networks import backbone, build, squares, tiny_classifier


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
