"""Networks that are rewritten to predict faster give what they gave before."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from segcore import systems
from segcore.models.systems import load_system
from segcore.networks import backbones
from segcore.networks.fusion import SamePadded, fuse
from tests.networks import N_TAGS, backbone, entry, squares
from tests.test_models import saved_system

CPU = torch.device("cpu")


def trained(network: nn.Module) -> nn.Module:
    """With statistics, factors, and shifts as training leaves them: of every channel its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@torch.no_grad()
def fused(network: nn.Module, *images: Tensor) -> nn.Module:
    """A fused copy, which gives the same for these images."""
    network = trained(network)
    own = copy.deepcopy(network)
    fuse(own, lambda: own(*images))
    expected = network(*images)
    torch.testing.assert_close(own(*images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    return own


@pytest.mark.parametrize("module", systems.names())
@pytest.mark.parametrize("trunk", ["vgg16_bn", "timm/test_efficientnet"])
@torch.no_grad()
def test_a_system_predicts_the_same(tmp_path: Path, module: str, trunk: str) -> None:
    saved_system(tmp_path, module, trunk)
    how = entry(module)["prediction"]
    (old, _), (new, _) = (load_system(tmp_path / "system", how, CPU, as_trained=plain) for plain in (True, False))
    assert norms(new) < norms(old)
    images = squares(2, seed=7).images
    scores = old.predict(images)
    torch.testing.assert_close(new.predict(images), scores, rtol=1e-3, atol=1e-3 * float(scores.abs().max()))
    if getattr(systems.load(module), "TAKES_TAGS", False):
        tags = torch.ones(2, N_TAGS)
        torch.testing.assert_close(
            new.predict_given(images, tags), old.predict_given(images, tags), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet18", "resnet50", "timm/test_resnet", "timm/tf_efficientnet_lite0"])
def test_a_trunk_keeps_no_normalisation_after_a_convolution(name: str) -> None:
    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = backbones.build(backbone(name))

        def forward(self, images: Tensor) -> Tensor:
            return self.trunk(images).top

    torch.manual_seed(0)
    assert norms(fused(Top(), squares(1).images)) == 0


def test_layers_of_each_kind() -> None:
    torch.manual_seed(0)
    for layer in (
        nn.Conv2d(3, 6, 3, bias=False),
        nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3),
        nn.ConvTranspose2d(3, 6, 2, stride=2),
    ):
        for norm in (nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), BatchNormAct2d(6)):
            whole = fused(nn.Sequential(layer, norm, nn.ReLU(inplace=True)), torch.randn(2, 3, 9, 9))
            assert norms(whole) == 0
    grouped = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4))
    assert norms(fused(grouped, torch.randn(2, 4, 5, 5))) == 1, "its weights are in another order"


class Wired(nn.Module):
    """A convolution and a normalisation that are not only each other's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        given = self.one(x)
        if self.kind == "also added":
            return self.norm(given) + given
        if self.kind == "also in a list":
            return torch.cat([self.norm(given), given], dim=1)
        if self.kind == "two convolutions":
            return self.norm(given) + self.norm(self.two(x))
        if self.kind == "two normalisations":
            return self.norm(given) + self.other(self.one(x))
        if self.kind == "something between":
            return self.norm(F.relu(given))
        return self.norm(x)  # not after the convolution at all


@pytest.mark.parametrize(
    "kind",
    ["also added", "also in a list", "two convolutions", "two normalisations", "something between", "beside"],
)
def test_what_others_take_too_is_left_alone(kind: str) -> None:
    torch.manual_seed(0)
    assert norms(fused(Wired(kind), torch.randn(2, 3, 5, 5))) == 2


def test_what_did_not_run_is_left_alone() -> None:
    torch.manual_seed(0)
    network = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fuse(network, lambda: None)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_type_that_is_not_known_is_left_alone() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    torch.manual_seed(0)
    assert norms(fused(nn.Sequential(nn.Conv2d(3, 3, 1), Doubled(3)), torch.randn(2, 3, 5, 5))) == 1


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
@torch.no_grad()
def test_the_padding_same(kernel: int, stride: int) -> None:
    """For sides of every remainder: 0 to 3 zeros, alike on both sides or not."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"stride": stride, "groups": 2}
    padded: Any = Conv2dSame(4, 4, kernel, **options)
    own = SamePadded(padded)
    for height in range(8, 13):
        for width in range(8, 13):
            maps = torch.randn(2, 4, height, width)
            expected = padded(maps)
            assert own(maps).shape == expected.shape
            torch.testing.assert_close(own(maps), expected)


def test_dilated_same_padding_is_left_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Conv2dSame(3, 4, 3, dilation=2), Conv2dSame(4, 4, 3, stride=2))
    kinds = [type(module) for module in fused(network, torch.randn(1, 3, 12, 12))]  # type: ignore[arg-type]
    assert kinds == [Conv2dSame, SamePadded]
