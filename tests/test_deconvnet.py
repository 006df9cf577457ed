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
from segcore.networks.normalisation import DecayedBatchNorm2d
from segcore.systems.deconvnet import DeconvNet
from tests.networks import backbone, build, fully_connected, predicting, squares, tiny_classifier, vgg16_file


def test_frozen_statistics_of_an_encoder_are_not_estimated_anew() -> None:
    classifier = tiny_classifier()
    classifier.trunk = backbones.build(backbone("timm/test_resnet", frozen_norm=True))
    system = build("deconvnet", classifier)
    before = {key: value.clone() for key, value in system.state_dict().items() if "running" in key}
    system.finish([squares(2)])
    changed = {key for key, value in before.items() if not torch.equal(system.state_dict()[key], value)}
    assert changed
    assert not any(key.startswith("encoder.") for key in changed)


def deconv(**changes: Any) -> DeconvNet:
    system = build("deconvnet", tiny_classifier(), **changes)
    assert isinstance(system, DeconvNet)
    return system


@pytest.mark.parametrize("start", ["classifier", "backbone"])
def test_the_encoder_starts_from_the_classifier_or_from_the_backbone(start: str) -> None:
    classifier = tiny_classifier()
    system = build("deconvnet", classifier if start == "classifier" else classifier.backbone)
    assert isinstance(system, DeconvNet)
    kinds = [type(layer) for layer in system.encoder.modules()]
    assert kinds.count(DecayedBatchNorm2d) == kinds.count(nn.Conv2d) == 13, "VGG-16 gets batch normalisation"
    ours = next(layer for layer in system.encoder.modules() if isinstance(layer, nn.Conv2d))
    theirs = next(layer for layer in classifier.trunk.modules() if isinstance(layer, nn.Conv2d))
    assert torch.equal(ours.weight, theirs.weight) == (start == "classifier")
    assert all(p.requires_grad for p in system.parameters())


def test_its_own_fc6_has_the_kernel_of_its_parameters() -> None:
    """Whatever the classifier has, which need not even have such layers."""
    for kernel, padding, smallest in ((1, 0, 32), (2, 0, 64), (3, 1, 32)):
        system = deconv(kernel=kernel, padding=padding)
        assert system.fc6[0].weight.shape[2:] == (kernel, kernel)  # type: ignore[union-attr]
        assert system.smallest_input == smallest
        assert system.eval().predict(squares(1).images).shape[2:] == (96, 96)


def test_a_fresh_vgg16_brings_its_own_fc6_and_fc7(tmp_path: Path) -> None:
    """Noh et al. 2015: the encoder, down to fc7, starts from a VGG-16 trained on ImageNet."""
    vgg16_file(tmp_path / "vgg16.safetensors", 24)
    params = backbone(weights=str(tmp_path / "vgg16.safetensors"))
    classifier = classifiers.build(params, fully_connected(width=24, kernel=7), 5)
    state = load_file(tmp_path / "vgg16.safetensors")
    for start, hidden, taken in ((params, 24, True), (classifier, 24, False), (params, 16, False)):
        system = build("deconvnet", start, network={"width": hidden / 4096}, kernel=7)
        assert isinstance(system, DeconvNet)
        layers = dict(system.named_parameters())
        same = layers["fc7.0.weight"].flatten().equal(state["classifier.3.weight"].flatten())
        assert same == taken
        assert layers["fc6.0.bias"].equal(state["classifier.0.bias"]) == taken
        assert system.pretrained == (("encoder.", "fc6.0.", "fc7.0.") if taken else ("encoder.",))


def test_deconvnet_learns_all_classes_at_once() -> None:
    system = deconv()
    batch = squares(2)
    term = system.train().losses(batch)["segmentation"]
    scores = system(batch).scores.detach()
    expected = F.cross_entropy(scores, batch.labels, ignore_index=255)
    torch.testing.assert_close(term.total / term.weight, expected, rtol=1e-4, atol=1e-5)
    other = Batch(batch.ids, batch.images, 1 - batch.tags, batch.labels)
    torch.testing.assert_close(system.losses(other)["segmentation"].total, term.total, rtol=1e-4, atol=1e-5)


def test_deconvnet_asks_for_proposals_where_it_is_told_to_predict_so() -> None:
    system = deconv()
    assert system.proposals == 0
    assert predicting(system, proposals=7).proposals == 7
    with pytest.raises(Problems, match="systems.tested.prediction.proposals: found -1"):
        predicting(system, proposals=-1)
