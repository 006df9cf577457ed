"""The deconvolution network: its size and channels, unpooling, trunks without switches, merged layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.networks import backbones
from segcore.networks.deconvolution import Deconvolution, Level, OutputStride
from segcore.systems.decouplednet import Bridge
from tests.networks import backbone, build, parameters, published_classifier, squares

PUBLISHED = (64, 128, 256, 512, 512)


def channels(net: Deconvolution) -> list[list[int]]:
    """Output channels of the transposed convolutions, coarsest level first."""
    levels = [level for level in net.levels if isinstance(level, Level)]
    return [
        [layer.out_channels for layer in level.layers.modules() if isinstance(layer, nn.ConvTranspose2d)]
        for level in levels
    ]


def block(inputs: int, outputs: int, kernel: int = 3) -> int:
    """Parameters of a convolution with bias and batch normalisation."""
    return outputs * inputs * kernel**2 + outputs + 2 * outputs


DECODER = (
    *(block(512, 512) for _ in range(5)),
    block(512, 256) + 2 * block(256, 256) + block(256, 128),
    block(128, 128) + block(128, 64) + 2 * block(64, 64),
)
BRIDGE = 4 * 512 + block(1024, 2048, 7) + block(2048, 2048, 1) + block(2048, 512, 7)
ENCODER = (
    block(3, 64) + block(64, 64) + block(64, 128) + block(128, 128) + block(128, 256) + 2 * block(256, 256),
    block(256, 512) + 5 * block(512, 512) + block(512, 4096, 7) + block(4096, 4096, 1) + block(4096, 512, 7),
)
DECOUPLED = sum(DECODER) + BRIDGE + 2 * 64 + 2
DECONV = sum(DECODER) + sum(ENCODER) + 21 * 64 + 21


def test_bridge_and_segmentation_network_have_173_million_parameters() -> None:
    with torch.device("meta"):
        bridge = Bridge(512, 1.0, 7, 0, 512)
        net = Deconvolution(PUBLISHED, 1.0, 2, 1)
    assert parameters(bridge, net) == DECOUPLED
    assert round(DECOUPLED / 1e6, 1) == 173.1
    assert channels(net) == [[512, 512, 512], [512, 512, 256], [256, 256, 128], [128, 64], [64, 64]]
    assert tuple(net.score.weight.shape) == (2, 64, 1, 1)
    shapes = {name: tuple(parameter.shape) for name, parameter in bridge.named_parameters()}
    assert shapes["fc6.0.weight"] == (2048, 1024, 7, 7)
    assert shapes["fc6_deconv.0.weight"] == (2048, 512, 7, 7)


@pytest.mark.parametrize(("module", "count"), [("decouplednet", 173.1), ("deconvnet", 251.8)])
def test_the_published_systems_have_their_size(module: str, count: float) -> None:
    classifier = published_classifier()
    with torch.device("meta"):
        own = {"kernel": 7} if module == "deconvnet" else {}
        system = build(module, classifier, network={"width": 1.0}, **own)
    theirs = parameters(classifier) if module == "decouplednet" else 0
    assert parameters(system) - theirs == {"decouplednet": DECOUPLED, "deconvnet": DECONV}[module]
    assert round((parameters(system) - theirs) / 1e6, 1) == count


def test_new_layers_start_as_published() -> None:
    torch.manual_seed(0)
    for layer in Deconvolution((8, 16, 32, 32, 32), 1.0, 2, 1).modules():
        if isinstance(layer, nn.ConvTranspose2d | nn.Conv2d):
            assert layer.bias is not None
            assert not layer.bias.any()
            assert abs(layer.weight.mean()) < 2e-3
            assert layer.weight.numel() < 100 or 0.009 < layer.weight.std() < 0.011
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.001))


@torch.no_grad()
def test_a_level_puts_values_where_the_maxima_were() -> None:
    """Each level unpools with the switches of its own level of the trunk, the coarsest first."""
    trunk = backbones.build(backbone())
    features = trunk(squares(2).images)
    net = Deconvolution(trunk.switch_channels, 1.0, 2, 1)
    net.levels = nn.ModuleList([Unpool() for _ in range(5)])
    seen: list[Tensor] = []
    net.score = Remember(seen)  # type: ignore[assignment]
    net(features.top, features.switches, (96, 96))
    maps = seen[0]
    assert maps.shape[2:] == (96, 96)
    # Pooling the map with the trunk's own pooling gives back each level exactly, down to the top.
    for _ in range(5):
        maps = F.max_pool2d(maps, 2)
    assert torch.equal(maps, features.top)


class Unpool(nn.Module):
    """A level without its convolutions; the channels that a finer level lacks are left out."""

    def forward(self, x: Tensor, switches: Tensor) -> Tensor:
        kept = switches.repeat(1, -(-x.shape[1] // switches.shape[1]), 1, 1)[:, : x.shape[1]]
        return F.max_unpool2d(x, kept, [2, 2])


class Remember(nn.Module):
    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
@pytest.mark.parametrize("stride", [1, 2, 4])
@torch.no_grad()
def test_scores_have_the_size_of_the_image(name: str, stride: OutputStride) -> None:
    trunk = backbones.build(backbone(name)).eval()
    images = squares(2, 64).images[:, :, :, :32]
    features = trunk(images)
    net = Deconvolution(trunk.switch_channels, 1 / 32, 3, stride).eval()
    x = torch.rand(2, net.inputs, 2, 1)
    scores = net(x, features.switches, (64, 32))
    assert scores.shape == (2, 3, 64, 32)
    assert len(net.levels) == 6 - stride.bit_length()
    expected = (4, 8, 16, 32, 32) if name == "vgg16" else (2, 4, 8, 16, 16)
    coarsest = [level[0] for level in channels(net)]
    assert coarsest == [*reversed(expected)][: len(coarsest)]


def test_sides_that_are_no_multiples_of_32_are_refused() -> None:
    trunk = backbones.build(backbone())
    features = trunk(torch.zeros(1, 3, 100, 100))
    net = Deconvolution(trunk.switch_channels, 1.0, 2, 1)
    with pytest.raises(ValueError, match="multiples of 32"):
        net(features.top, features.switches, (100, 100))


def test_unpooling_without_switches_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the switches"):
        Level(4, [4, 4], has_switches=True)(torch.zeros(1, 4, 2, 2), None)


@pytest.mark.parametrize("has_switches", [True, False])
@torch.no_grad()
def test_merged_layers_of_inference_give_what_the_layers_give(has_switches: bool) -> None:
    torch.manual_seed(0)
    level = Level(6, [6, 4], has_switches).double()
    for layer in level.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                assert values is not None
                values.copy_(torch.rand_like(values) + 0.1)
        if isinstance(layer, nn.ConvTranspose2d):
            assert layer.bias is not None
            layer.bias.copy_(torch.randn_like(layer.bias))
    level.eval()
    x, switches = F.max_pool2d(torch.rand(2, 6, 8, 10).double(), 2, return_indices=True)
    larger = F.max_unpool2d(x, switches, [2, 2]) if has_switches else level.upsample(x)  # type: ignore[misc]
    merged = level(x, switches if has_switches else None)
    torch.testing.assert_close(merged, level.layers(larger), rtol=1e-12, atol=1e-12)
    assert merged.shape == (2, 4, 8, 10)
    assert (merged > 0).any()
