"""Saliency maps: the explicit backward pass against autograd, against numbers made by hand, and without a gradient."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.localisation.saliency import saliency, saliency_autograd
from segcore.networks.classifiers import Activations, Classifier, FullyConnectedHead
from segcore.networks.trunk import Features
from tests.networks import N_TAGS, fully_connected, squares, tiny_classifier

SUBSETS = [(0, [1]), (0, [1, 3]), (0, [0, 1, 2, 3, 4]), (1, [4]), (1, []), (2, [0, 2]), (0, [2])]
"""Pairs of an image and some of its tags (from 0): several of one image, out of order, one of them empty."""


def head_of(classifier: Classifier) -> FullyConnectedHead:
    assert isinstance(classifier.head, FullyConnectedHead)
    return classifier.head


def pairs(activations: Activations) -> tuple[Tensor, Tensor]:
    """The values and images of `SUBSETS`, the values as DecoupledNet has them."""
    values = torch.zeros(len(SUBSETS), N_TAGS, dtype=activations.scores.dtype)
    for row, (image, tags) in enumerate(SUBSETS):
        values[row, tags] = activations.decision[image, tags].detach().sigmoid()
    return values, torch.tensor([image for image, _ in SUBSETS])


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", "resnet18", "timm/test_resnet", "timm/test_convnext"])
def test_the_explicit_pass_is_what_autograd_gives(name: str) -> None:
    classifier = tiny_classifier(name).double()
    activations = classifier(squares(3, 128).images.double())
    assert activations.scores.shape[2:] == (3, 3)
    values, image = pairs(activations)
    explicit = saliency(head_of(classifier), activations, values, image)
    automatic = saliency_autograd(head_of(classifier), activations, values, image)
    assert explicit.shape == (len(SUBSETS), classifier.trunk.channels, 4, 4)
    assert not explicit.requires_grad
    assert not automatic.requires_grad
    scale = automatic.abs().max()
    assert scale > 0
    assert ((explicit - automatic) / scale).abs().max() < 1e-10
    assert not explicit[4].any(), "no tag, no saliency"
    assert not torch.equal(explicit[0], explicit[6]), "tags differ in their maps"


def test_padding_and_normalisation_of_the_head_go_back_too() -> None:
    classifier = tiny_classifier("vgg16_bn", kernel=3, padding=1, batch_norm=True).double()
    head = head_of(classifier)
    for norm in (head.norm6, head.norm7):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for value, low, high in ((norm.weight, -1, 2), (norm.bias, -1, 1), (norm.running_mean, -0.1, 0.1)):
            nn.init.uniform_(value, low, high)
        nn.init.uniform_(norm.running_var, 0.1, 2)
    activations = classifier(squares(3, 128).images.double())
    assert activations.scores.shape[2:] == (4, 4)
    values, image = pairs(activations)
    explicit = saliency(head_of(classifier), activations, values, image)
    automatic = saliency_autograd(head_of(classifier), activations, values, image)
    torch.testing.assert_close(explicit, automatic, rtol=1e-10, atol=1e-12)
    assert explicit.any()


def test_autograd_through_the_whole_network_gives_the_same() -> None:
    """Against the plain statement of equation 3, one image and one subset at a time."""
    classifier = tiny_classifier().double()
    images = squares(3, 128).images.double()
    activations = classifier(images)
    values, image = pairs(activations)
    explicit = saliency(head_of(classifier), activations, values, image)
    for row in range(len(SUBSETS)):
        alone = classifier(images[image[row]][None])
        score = (values[row] * alone.scores.flatten(2).max(2).values[0]).sum()
        (expected,) = torch.autograd.grad(score, alone.features.top)
        torch.testing.assert_close(explicit[row], expected[0], rtol=0, atol=1e-10 * float(expected.abs().max() + 1))


@torch.no_grad()
def test_maps_add_up_over_tags() -> None:
    classifier = tiny_classifier().double()
    activations = classifier(squares(1).images.double())
    values = torch.eye(N_TAGS, dtype=torch.float64)
    alone = saliency(head_of(classifier), activations, values, torch.zeros(N_TAGS, dtype=torch.int64))
    together = saliency(head_of(classifier), activations, values.sum(0)[None], torch.tensor([0]))
    torch.testing.assert_close(alone.sum(0), together[0])


def test_a_network_small_enough_to_do_by_hand() -> None:
    """One channel on a 1x3 map, a 1x1 head of two hidden units, two tags."""
    params = fully_connected(width=2, kernel=1)
    head = FullyConnectedHead(1, 2, params)
    set_to(head.fc6, [[2.0], [-1.0]], [0.0, 2.0])
    set_to(head.fc7, [[1.0, 1.0], [3.0, -10.0]], [0.0, 0.0])
    set_to(head.score, [[1.0, 0.0], [-1.0, 5.0]], [0.0, 0.0])
    top = torch.tensor([[[[0.0, 1.0, 3.0]]]])
    # place                         0        1        2
    # fc6 = relu(2x, 2 - x)      (0, 2)   (2, 1)   (6, 0)
    # fc7 = relu(a+b, 3a-10b)    (2, 0)   (3, 0)   (6, 18)
    # score = (c, 5d - c)        (2, -2)  (3, -3)  (6, 84)
    fc6, fc7, scores = head(top)
    assert fc6.flatten(2)[0].T.tolist() == [[0, 2], [2, 1], [6, 0]]
    assert fc7.flatten(2)[0].T.tolist() == [[2, 0], [3, 0], [6, 18]]
    assert scores.flatten(2)[0].T.tolist() == [[2, -2], [3, -3], [6, 84]]
    activations = Activations(Features((top,), (None,)), fc6, fc7, scores)
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.25]])
    maps = saliency(head, activations, values, torch.tensor([0, 0, 0]))
    # Both are greatest at place 2, where b = 0 is cut off and a = 2x: d c/dx = 2, d(5d - c)/dx = 5 * 3 * 2 - 2 = 28.
    assert maps.flatten(1).tolist() == [[0, 0, 2], [0, 0, 28], [0, 0, 0.5 * 2 + 0.25 * 28]]


def set_to(layer: nn.Conv2d, weight: list[list[float]], bias: list[float]) -> None:
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight)[:, :, None, None])
        layer.bias.copy_(torch.tensor(bias))


def test_a_linear_head_would_explain_every_place_alike() -> None:
    """Why the head has hidden layers: average pooling and a linear layer give the same gradient everywhere."""
    top = tiny_classifier()(squares(1).images).features.top.detach().requires_grad_()
    weight = torch.randn(N_TAGS, top.shape[1], 1, 1)
    score = F.conv2d(top, weight).mean((2, 3))[0, 2]
    (flat,) = torch.autograd.grad(score, top)
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))
    classifier = tiny_classifier()
    activations = classifier(squares(1).images)
    ours = saliency(head_of(classifier), activations, torch.eye(N_TAGS)[2:3], torch.tensor([0]))
    assert ours.std((2, 3)).max() > 0.1 * ours.abs().max()


def test_no_gradient_passes_back_through_the_map() -> None:
    classifier = tiny_classifier()
    activations = classifier(squares(2).images)
    values = activations.strongest.sigmoid()
    assert values.requires_grad
    for way in (saliency, saliency_autograd):
        assert not way(head_of(classifier), activations, values, torch.tensor([0, 1])).requires_grad
    assert all(parameter.grad is None for parameter in classifier.parameters())
