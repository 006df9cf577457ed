"""torchvision's ResNets as trunks."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from segcore.networks.trunk import LEVELS, Features, Trunk, halved


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
        self.level_strides = halved(stride)
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


RESNETS = ("resnet18", "resnet50", "resnet101")
