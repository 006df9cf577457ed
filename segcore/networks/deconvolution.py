"""The deconvolution network of DeconvNet and DecoupledNet: a trunk in the mirror.

Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.networks import normalisation
from segcore.networks.vgg import VGG16_CHANNELS

OutputStride = Literal[1, 2, 4]


def deconvolution_block(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """A (transposed) convolution with N(0, 0.01) weights, batch normalisation and ReLU."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, normalisation.batch_norm(layer.out_channels), nn.ReLU(inplace=True))


def unpooled(x: Float[Tensor, "B C h w"], switches: Int64[Tensor, "B C h w"]) -> Float[Tensor, "B C 2*h 2*w"]:
    """Each value where the maximum of its 2x2 window was, by `switches`, and zeros around it.

    torch's own unpooling refuses where torch is told to be deterministic, on any device, as two values could go to one
    place. Those of windows of their own cannot: each then stands at all four places, and the switch keeps one.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.max_unpool2d(x, switches, [2, 2])
    height, width = 2 * x.shape[2], 2 * x.shape[3]
    places = torch.arange(height * width, device=x.device).view(height, width)
    value, switch = (
        some[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(*x.shape[:2], height, width)
        for some in (x, switches)
    )
    return torch.where(switch == places, value, 0)


class Level(nn.Module):
    """Twice the resolution, then transposed convolutions.

    With max-pool switches of the trunk a level is upsampled by unpooling: each value goes where the maximum was. On a
    trunk without switches at this level it is upsampled by a learned 2x2 transposed convolution of stride 2.
    """

    def __init__(self, inputs: int, channels: list[int], has_switches: bool) -> None:
        super().__init__()
        self.upsample = None if has_switches else deconvolution_block(nn.ConvTranspose2d(inputs, inputs, 2, stride=2))
        widths = [inputs, *channels]
        self.layers = nn.Sequential(
            *(deconvolution_block(nn.ConvTranspose2d(a, b, 3, padding=1)) for a, b in zip(widths, widths[1:]))  # noqa: B905
        )

    def forward(self, x: Tensor, switches: Tensor | None) -> Tensor:
        if self.upsample is not None:
            x = self.upsample(x)
        elif switches is not None:
            x = unpooled(x, switches)
        else:
            raise ValueError("this level unpools and needs the switches of its trunk")
        for block in self.layers:
            x = block(x) if self.training else _merged(block, x)
        return x


def _merged(block: nn.Module, x: Tensor) -> Tensor:
    """A deconvolution block in eval mode as one convolution: up to a third faster, the same to float rounding.

    Batch normalisation is then a fixed scale and shift, which go into the kernel; and a transposed convolution of
    stride 1 is a convolution with the kernel turned by 180 degrees, for which CPUs have the faster code.
    """
    layer, norm, relu = block.children()
    assert isinstance(layer, nn.ConvTranspose2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    kernel = (layer.weight * scale[:, None, None]).transpose(0, 1).flip(2, 3)
    bias = norm.bias - norm.running_mean * scale
    bias = bias if layer.bias is None else bias + layer.bias * scale
    return relu(F.conv2d(x, kernel, bias, padding=1))


class Deconvolution(nn.Module):
    """Levels from the top map, of `stride` 32, 16 or 8, to the image (five, four, three), then a score for each class.

    The channels mirror VGG-16: the last deconvolution of a level already has the channels of the next finer one, so
    that the switches, which are per channel, fit. With switches the number of channels is the trunk's; `width` scales
    the published numbers on levels without. `output_stride` 1 is the published network; 2 and 4 leave out the finest
    levels, which hold most of the memory traffic and few of the parameters, and upsample the scores bilinearly.

    Attributes:
        inputs: channels of the map that is taken in.
    """

    def __init__(
        self,
        switch_channels: tuple[int | None, ...],
        width: float,
        n_classes: int,
        output_stride: OutputStride,
        stride: int = 32,
    ) -> None:
        super().__init__()
        self.stride = stride
        n_levels = stride.bit_length() - 1
        scaled = [max(1, round(level[-1] * width)) for level in VGG16_CHANNELS]
        at = [scaled[i] if known is None else known for i, known in enumerate(switch_channels[:n_levels])]
        self.inputs = at[-1]
        levels: list[nn.Module] = []
        finest = output_stride.bit_length() - 1
        for i in reversed(range(finest, len(at))):
            finer = at[i - 1] if i > 0 else at[0]
            channels = [at[i]] * (len(VGG16_CHANNELS[i]) - 1) + [finer]
            levels.append(Level(at[i], channels, switch_channels[i] is not None))
        self.levels = nn.ModuleList(levels)
        self.score = nn.Conv2d(at[max(0, finest - 1)], n_classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "B D h w"], switches: tuple[Int64[Tensor, "B _ _ _"] | None, ...], size: tuple[int, int]
    ) -> Float[Tensor, "B K H W"]:
        """Scores at `size`, which must be `stride` times that of `x`."""
        if (x.shape[2] * self.stride, x.shape[3] * self.stride) != size:
            raise ValueError(
                f"a top map of {tuple(x.shape[2:])} is not of an image of {size}; use multiples of {self.stride}"
            )
        for level, switch in zip(self.levels, reversed(switches[: self.stride.bit_length() - 1]), strict=False):
            x = level(x, switch)
        scores = self.score(x)
        return scores if scores.shape[2:] == size else F.interpolate(scores, size, mode="bilinear")
