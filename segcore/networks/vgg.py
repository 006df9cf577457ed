"""VGG-16 as a trunk."""

from jaxtyping import Float
from torch import Tensor, nn

from segcore.networks.normalisation import DecayedBatchNorm2d
from segcore.networks.trunk import LEVELS, Features, Trunk, halved

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's convolutions, by level: each level ends with a max-pooling."""


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
        self.level_strides = halved(stride)
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
                nn.init.constant_(layer.bias, 0.001)  # as in the files of DeconvNet,
                layer.__class__ = DecayedBatchNorm2d  # by which they decay, too
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
