"""ImageNet networks as trunks: the map on top, and the max-pool switches on the way where there are any."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from segcore.problems import Problem
from segcore.sections import BackboneParams

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's convolutions, by level: each level ends with a 2x2 max-pooling."""

LEVELS = len(VGG16_CHANNELS)
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Features:
    """What a trunk hands on.

    `top` is the map at 1/32 of the input. `switches` has one entry a level, finest (1/2) first: the flat position
    of each maximum within its plane, or None where the trunk reduces the map in another way.
    """

    top: Float[Tensor, "B C h w"]
    switches: tuple[Int64[Tensor, "B _ _ _"] | None, ...]

    def pick(self, index: Int64[Tensor, " P"]) -> "Features":
        """The features of the images at `index`; an image may be picked several times."""
        return Features(self.top[index], tuple(None if s is None else s[index] for s in self.switches))


class Trunk(nn.Module):
    """A network without its head; takes RGB in 0..255 and normalises it itself.

    Attributes:
        channels: channels of the map on top.
        switch_channels: per level, finest first, the channels of its max-pool switches, or None.
    """

    channels: int
    switch_channels: tuple[int | None, ...]
    mean: Tensor
    std: Tensor

    def __init__(self, frozen_norm: bool) -> None:
        super().__init__()
        self.frozen_norm = frozen_norm
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in 0..255, of any type, as the pre-training saw them."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def train(self, mode: bool = True) -> "Trunk":
        """As always, but statistics of a pre-training that are to stay are not touched."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class VGG16(Trunk):
    """VGG-16 to pool5, with the switches of its five max-poolings (Simonyan and Zisserman 2015, column D)."""

    def __init__(self, width: float, batch_norm: bool, frozen_norm: bool) -> None:
        super().__init__(frozen_norm)
        layers: list[nn.Module] = []
        inputs = 3
        for level in VGG16_CHANNELS:
            for published in level:
                outputs = max(1, round(published * width))
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                inputs = outputs
            layers.append(nn.MaxPool2d(2, return_indices=True))
        self.features = nn.Sequential(*layers)
        self.width = width
        self.channels = inputs
        self.switch_channels = tuple(max(1, round(level[-1] * width)) for level in VGG16_CHANNELS)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def with_batch_norm(self) -> "VGG16":
        """This network with batch normalisation behind every convolution, or itself where it has it already."""
        if any(isinstance(layer, nn.BatchNorm2d) for layer in self.features):
            return self
        twin = VGG16(self.width, True, frozen_norm=False)  # no pre-training gave the new layers statistics to keep
        convolutions = [[x for x in net.features if isinstance(x, nn.Conv2d)] for net in (self, twin)]
        for ours, theirs in zip(*convolutions, strict=True):
            theirs.load_state_dict(ours.state_dict())
        return twin

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        x, switches = self.normalise(images), []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                x, switch = layer(x)
                switches.append(switch)
            else:
                x = layer(x)
        return Features(x, tuple(switches))


class ResNet(Trunk):
    """A torchvision ResNet to layer4.

    Its one max-pooling has overlapping 3x3 windows, two of which may choose the same pixel: there is no one-to-one
    switch to undo it with, so no level has switches.
    """

    def __init__(self, name: str, frozen_norm: bool) -> None:
        import torchvision  # here, as it takes longer to load than all of torch, and VGG needs none of it

        super().__init__(frozen_norm)
        self.body: Any = getattr(torchvision.models, name)(weights=None)
        self.channels = self.body.fc.in_features
        self.body.fc = nn.Identity()
        self.switch_channels = (None,) * LEVELS

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(self.normalise(images)))))
        return Features(body.layer4(body.layer3(body.layer2(body.layer1(x)))), (None,) * LEVELS)


class Timm(Trunk):
    """The last feature map, at 1/32, of any `timm` model that gives feature maps."""

    def __init__(self, name: str, pretrained: bool, frozen_norm: bool) -> None:
        import timm

        super().__init__(frozen_norm)
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
            raise Problem(f"backbone.name: timm has no model '{name}'; near it are {', '.join(close)}")
        try:
            self.body: Any = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-1,))
        except OSError as error:
            raise Problem(
                f"backbone.weights: the ImageNet weights of timm/{name} could not be downloaded ({error}); "
                "download them elsewhere and name the file in backbone.weights"
            ) from error
        except RuntimeError as error:
            raise Problem(f"backbone.name: timm/{name} gives no feature maps or has no weights ({error})") from error
        self.channels_are_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        self.channels = self.body.feature_info.channels()[-1]
        if (reduction := self.body.feature_info.reduction()[-1]) != 32:
            raise Problem(f"backbone.name: timm/{name} reduces the image by {reduction}; a trunk must reduce it by 32")
        self.switch_channels = (None,) * LEVELS

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        top = self.body(self.normalise(images))[-1]
        return Features(top.permute(0, 3, 1, 2) if self.channels_are_last else top, (None,) * LEVELS)


RESNETS = ("resnet18", "resnet50", "resnet101")


def build(params: BackboneParams) -> Trunk:
    """The trunk with its initial weights.

    Raises:
        Problem: unknown name; a small version of a network that has none; weights missing or of another network.
    """
    name = params.name
    if params.width != 1 and not name.startswith("vgg16"):
        raise Problem(f"backbone.width: found {params.width} for {name}; only vgg16 and vgg16_bn have small versions")
    if name in ("vgg16", "vgg16_bn"):
        trunk: Trunk = VGG16(params.width, name == "vgg16_bn", params.frozen_norm)
    elif name in RESNETS:
        trunk = ResNet(name, params.frozen_norm)
    elif name.startswith("timm/"):
        trunk = Timm(name.removeprefix("timm/"), params.weights == "imagenet", params.frozen_norm)
    else:
        allowed = ", ".join(("vgg16", "vgg16_bn", *RESNETS, "timm/<model>"))
        raise Problem(f"backbone.name: found '{name}'; allowed are {allowed}")
    if (weights := weights_of(params)) is not None:
        _load_into(trunk, weights, params)
    return trunk


def weights_of(params: BackboneParams) -> dict[str, Tensor] | None:
    """The pre-trained weights that `backbone.weights` names, float32, with torchvision's keys; None for random ones."""
    if params.weights == "random" or (params.weights == "imagenet" and params.name.startswith("timm/")):
        return None
    if params.weights == "imagenet":
        return _download(params.name)
    path = Path(params.weights)
    if not path.is_file():
        raise Problem(
            f"backbone.weights: found '{params.weights}'; it must be 'random', 'imagenet' or an existing file "
            "(.safetensors, or a .pth that holds weights only)"
        )
    read: Callable[[Path], dict[str, Tensor]] = load_file if path.suffix == ".safetensors" else _read_pth
    try:
        return {key: value.float() if value.is_floating_point() else value for key, value in read(path).items()}
    except Exception as error:
        raise Problem(f"backbone.weights: {path} is not a readable weights file ({error})") from error


def _read_pth(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _download(name: str) -> dict[str, Tensor]:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise Problem(
            f"backbone.weights: the ImageNet weights of {name} could not be downloaded ({error}); "
            "download them elsewhere and name the file in backbone.weights"
        ) from error


def _load_into(trunk: Trunk, weights: dict[str, Tensor], params: BackboneParams) -> None:
    """Copy what belongs to the trunk; its keys are torchvision's (VGG: `features.*`, ResNet: without `body.`)."""
    target: nn.Module = trunk.body if isinstance(trunk, ResNet | Timm) else trunk
    wanted = target.state_dict()
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    differing = [k for k, v in wanted.items() if k in weights and weights[k].shape != v.shape]
    if missing or differing:
        raise Problem(
            f"backbone.weights: {params.weights} is not of {params.name} at width {params.width}: "
            f"{len(missing)} arrays are missing {missing[:3]}, {len(differing)} have another shape {differing[:3]}"
        )
    target.load_state_dict({key: weights.get(key, value) for key, value in wanted.items()})
