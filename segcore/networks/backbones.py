"""ImageNet networks as trunks: the maps of all levels, and the max-pool switches on the way where there are any."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.networks import BackboneParams
from segcore.errors import Problem
from segcore.networks import pretrained

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's convolutions, by level: each level ends with a max-pooling."""

LEVELS = len(VGG16_CHANNELS)
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Features:
    """What a trunk hands on.

    `levels` has the last map of each level, finest first; their channels and strides are the trunk's `level_channels`
    and `level_strides`. n pixels give ceil(n / stride) cells (at stride 32 VGG rounds down).
    `switches` has one entry a level, finest (1/2) first: the flat position of each maximum within its plane, or None
    where the trunk reduces the map in another way, as every trunk of a smaller stride than 32 does.
    """

    levels: Sequence[Float[Tensor, "B _ _ _"]]
    switches: tuple[Int64[Tensor, "B _ _ _"] | None, ...]

    @property
    def top(self) -> Float[Tensor, "B C h w"]:
        """The map of the last level, at 1/stride of the input."""
        return self.levels[-1]

    def top_only(self) -> "Features":
        """The same without the other levels: what holds on to features does not hold on to maps that it never reads."""
        return Features((self.top,), self.switches)

    def pick(self, index: Int64[Tensor, " P"]) -> "Features":
        """The features of the images at `index`; an image may be picked several times.

        A level is copied when it is asked for, each time anew: fine maps that nobody reads cost nothing.
        """
        return Features(_Picked(self.levels, index), tuple(None if s is None else s[index] for s in self.switches))


class _Picked(Sequence[Tensor]):
    """Levels of the images at `index`."""

    def __init__(self, levels: Sequence[Tensor], index: Int64[Tensor, " P"]) -> None:
        self.levels = levels
        self.index = index

    def __len__(self) -> int:
        return len(self.levels)

    @overload
    def __getitem__(self, level: int) -> Tensor: ...

    @overload
    def __getitem__(self, level: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, level: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(level, slice):
            return _Picked(self.levels[level], self.index)
        return self.levels[level][self.index]


class Trunk(nn.Module):
    """A network without its head; takes RGB in 0..255 and normalises it itself.

    The weights have the same names and shapes at every stride: at 8 and 16 the last levels are dilated instead of
    reduced, so that each of their units sees what it saw in the pre-training, at more places.

    Attributes:
        channels: channels of the map on top.
        stride: pixels of the image to one cell of that map, 8, 16 or 32.
        level_channels: channels of the maps of all levels, finest first.
        level_strides: pixels of the image to one cell of each of them; never falling, the last is `stride`.
        switch_channels: per level, finest first, the channels of its max-pool switches, or None.
        channels_are_last: whether the layers inside (not the map on top) have the order B h w C.
    """

    channels: int
    level_channels: tuple[int, ...]
    level_strides: tuple[int, ...]
    switch_channels: tuple[int | None, ...]
    channels_are_last = False
    mean: Tensor
    std: Tensor

    def __init__(self, frozen_norm: bool, stride: int) -> None:
        super().__init__()
        self.frozen_norm = frozen_norm
        self.stride = stride
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in 0..255, of any type, as the pre-training saw them."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    @property
    def middle(self) -> nn.Module:
        """The layer halfway up whose output still shows places well: conv4_1 of VGG, else the last level but one."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Trunk":
        """As always, but statistics of a pre-training that are to stay are not touched."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class VGG16(Trunk):
    """VGG-16 to pool5, with the switches of its five max-poolings (Simonyan and Zisserman 2015, column D).

    Its levels are what the poolings give, at 1/2 to 1/32; where there is no pool5, the last one is that of conv5_3.

    Below stride 32 it is the trunk of DeepLab-LargeFOV (Chen et al. 2015): poolings of 3x3, no pool5, and at stride 8
    pool4 does not reduce the map, behind which conv5 is dilated by 2.
    """

    def __init__(self, width: float, batch_norm: bool, frozen_norm: bool, stride: int = 32) -> None:
        super().__init__(frozen_norm, stride)
        layers: list[nn.Module] = []
        inputs = 3
        for number, level in enumerate(VGG16_CHANNELS):
            dilation = 2 if stride == 8 and number == LEVELS - 1 else 1
            for published in level:
                outputs = max(1, round(published * width))
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation))
                layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                inputs = outputs
            if stride == 32:
                layers.append(nn.MaxPool2d(2, return_indices=True))
            elif number < LEVELS - 1:
                layers.append(nn.MaxPool2d(3, 1 if stride == 8 and number == LEVELS - 2 else 2, padding=1))
        self.features = nn.Sequential(*layers)
        self.width = width
        self.channels = inputs
        self.level_channels = tuple(max(1, round(level[-1] * width)) for level in VGG16_CHANNELS)
        self.level_strides = _halved(stride)
        self.switch_channels = self.level_channels if stride == 32 else (None,) * LEVELS
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @property
    def middle(self) -> nn.Module:
        convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
        return convolutions[sum(len(level) for level in VGG16_CHANNELS[:3])]

    def with_batch_norm(self) -> "VGG16":
        """This network with batch normalisation behind every convolution, or itself where it has it already."""
        if any(isinstance(layer, nn.BatchNorm2d) for layer in self.features):
            return self
        # Not frozen, as no pre-training gave the new layers statistics to keep.
        twin = VGG16(self.width, True, False, self.stride)
        convolutions = [[x for x in net.features if isinstance(x, nn.Conv2d)] for net in (self, twin)]
        for ours, theirs in zip(*convolutions, strict=True):
            theirs.load_state_dict(ours.state_dict())
        for layer in twin.features:
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.constant_(layer.bias, 0.001)  # as in the files of DeconvNet
        return twin

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        x = self.normalise(images)
        levels: list[Tensor] = []
        switches: list[Tensor | None] = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                x, switch = layer(x) if self.stride == 32 else (layer(x), None)
                levels.append(x)
                switches.append(switch)
            else:
                x = layer(x)
        if self.stride < 32:  # conv5 has no pooling behind it
            levels.append(x)
            switches.append(None)
        return Features(tuple(levels), tuple(switches))


class ResNet(Trunk):
    """A torchvision ResNet to layer4.

    Its levels are conv1 after its ReLU, at 1/2, and layer1 to layer4, at 1/4 to 1/32.
    Its one max-pooling has overlapping 3x3 windows, two of which may choose the same pixel: there is no one-to-one
    switch to undo it with, so no level has switches.
    """

    def __init__(self, name: str, frozen_norm: bool, stride: int = 32) -> None:
        import torchvision  # here, as it takes longer to load than all of torch, and VGG needs none of it

        super().__init__(frozen_norm, stride)
        self.body: Any = getattr(torchvision.models, name)(weights=None)
        self.channels = self.body.fc.in_features
        self.level_channels = (
            self.body.conv1.out_channels,
            *(self.channels // 2**halvings for halvings in (3, 2, 1, 0)),
        )
        self.level_strides = _halved(stride)
        self.body.fc = nn.Identity()
        self.switch_channels = (None,) * LEVELS
        dilation = 1
        for level in {8: (self.body.layer3, self.body.layer4), 16: (self.body.layer4,), 32: ()}[stride]:
            dilation = _dilate(level, dilation)

    @property
    def middle(self) -> nn.Module:
        return self.body.layer3

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        body = self.body
        stem = x = body.relu(body.bn1(body.conv1(self.normalise(images))))
        x = body.maxpool(x)
        levels = [stem]
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = layer(x)
            levels.append(x)
        return Features(tuple(levels), (None,) * LEVELS)


def _halved(stride: int) -> tuple[int, ...]:
    """The strides of five levels, each half as fine as the one before, down to `stride`."""
    return tuple(min(2 ** (level + 1), stride) for level in range(LEVELS))


def _dilate(level: nn.Module, dilation: int) -> int:
    """Let a level of a ResNet keep the size of its map, whose cells lie `dilation` times as dense as published.

    Its first convolutions see that map as it comes; those behind the former stride see it twice as dense again. So
    every second place each way has what the level gave before. Returns how dense the map is then.
    """
    for module in level.modules():
        if isinstance(module, nn.Conv2d):
            reduces, kernel = module.stride == (2, 2), module.kernel_size[0]
            module.stride = (1, 1)
            if kernel == 3:
                module.dilation = module.padding = (dilation, dilation)
            if reduces and kernel == 3:
                dilation *= 2
    return dilation


class Timm(Trunk):
    """Any `timm` model that gives feature maps, all of which are its levels.

    At a stride below 32 images are padded to a multiple of it with the mean colour of the pre-training.
    """

    def __init__(self, name: str, pretrained: bool, frozen_norm: bool, stride: int = 32) -> None:
        import timm

        super().__init__(frozen_norm, stride)
        options: dict[str, Any] = {} if stride == 32 else {"output_stride": stride}
        try:
            self.body: Any = timm.create_model(
                name,
                pretrained=pretrained,
                features_only=True,
                out_indices=tuple(range(_feature_maps(name, options))),
                **options,
            )
        except (TypeError, AssertionError, NotImplementedError) as error:
            if stride == 32:
                raise
            raise Problem(
                f"backbone.stride: timm/{name} cannot be had at stride {stride}; choose 32 or another trunk"
            ) from error
        except OSError as error:
            raise Problem(
                f"backbone.weights: the ImageNet weights of timm/{name} could not be downloaded ({error}); "
                "download them elsewhere and name the file in backbone.weights"
            ) from error
        except RuntimeError as error:
            raise Problem(f"backbone.name: timm/{name} gives no feature maps or has no weights ({error})") from error
        self.channels_are_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        self.level_channels = tuple(self.body.feature_info.channels())
        self.level_strides = tuple(self.body.feature_info.reduction())
        self.channels = self.level_channels[-1]
        if (reduction := self.level_strides[-1]) != stride:
            raise Problem(
                f"backbone.name: timm/{name} reduces the image by {reduction}; a trunk must reduce it by {stride}"
            )
        self.switch_channels = (None,) * LEVELS

    @property
    def middle(self) -> nn.Module:
        level = self.body.feature_info.info[-2]["module"]
        names = dict(self.body.named_modules())
        # Where timm takes a model apart, it joins the names of nested layers by an underscore.
        found = names.get(level, names.get(level.replace(".", "_")))
        if found is None:
            raise Problem(f"backbone.name: this timm model has no layer {level} of its own; use background: none")
        return found

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        images = self.normalise(images)
        if self.stride < 32:  # models that start with patches would drop what is left over of the image
            height, width = images.shape[2:]
            images = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        levels = self.body(images)
        if self.channels_are_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return Features(tuple(levels), (None,) * LEVELS)


def _feature_maps(name: str, options: dict[str, Any]) -> int:
    """How many feature maps a `timm` model gives.

    timm tells no sooner than it has made a model. This one is made without memory, in milliseconds, and draws no
    random weights, so those of the real one stay what they were.
    """
    import timm

    with torch.device("meta"):
        twin: Any = timm.create_model(name, features_only=True, out_indices=(-1,), **options)
    return len(twin.feature_info.info)


RESNETS = ("resnet18", "resnet50", "resnet101")


def build(params: BackboneParams) -> Trunk:
    """The trunk with its initial weights.

    Raises:
        Problem: unknown name; a small version of a network that has none; weights missing or of another network.
    """
    if problem := pretrained.check(params):
        raise Problem(problem)
    name = params.name
    if params.width != 1 and not name.startswith("vgg16"):
        raise Problem(f"backbone.width: found {params.width} for {name}; only vgg16 and vgg16_bn have small versions")
    if name in ("vgg16", "vgg16_bn"):
        trunk: Trunk = VGG16(params.width, name == "vgg16_bn", params.frozen_norm, params.stride)
    elif name in RESNETS:
        trunk = ResNet(name, params.frozen_norm, params.stride)
    elif name.startswith("timm/"):
        trunk = Timm(name.removeprefix("timm/"), params.weights == "imagenet", params.frozen_norm, params.stride)
    else:
        allowed = ", ".join(("vgg16", "vgg16_bn", *RESNETS, "timm/<model>"))
        raise Problem(f"backbone.name: found '{name}'; allowed are {allowed}")
    if (weights := pretrained.weights_of(params)) is not None:
        _load_into(trunk, weights, params)
    return trunk


def restride(params: BackboneParams, trunk: Trunk, stride: int) -> Trunk:
    """A new trunk with copies of the weights of `trunk`, which was made from `params`, at another stride.

    Raises:
        Problem: this network cannot be had at that stride.
    """
    changes = {"weights": "random", "stride": stride}
    twin = build(BackboneParams.model_validate(params.model_dump() | changes))
    twin.load_state_dict(trunk.state_dict())
    return twin.to(trunk.mean.device, trunk.mean.dtype).train(trunk.training)


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
