"""DeepLab: class scores on the fine grid of a dilated trunk, added up over branches that look further and further.

Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015 (one branch
over VGG-16: LargeFOV, and the small field of view that WSSL compares it with), and "DeepLab", PAMI 2018 (version 2:
four branches). FickleNet and DSRG train this network.

Cell i of the grid lies at pixel `stride` * i of the image, as every reduction on the way is centred on the first
pixel: labels are read and scores are enlarged by that rule, whatever the size. `geometry.Grid` is the same rule for
pictures that are yet to be stretched.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.networks.dropout import KeyedDropout
from segcore.networks.trunk import Trunk
from segcore.networks.vgg import VGG16

KEPT_PLACES = {3: (0, 3, 6), 4: (0, 2, 4, 6), 7: tuple(range(7))}
"""Rows and columns of VGG-16's 7x7 fc6 that become an fc6 of that side."""

VGG16_SCALE = 16.0
"""Root mean square of what ImageNet's VGG-16 gives at its top for photographs (measured; a ResNet-18's: 2)."""


class LargeFov(nn.Module):
    """A branch over VGG-16: the fully connected layers as a dilated and two 1x1 convolutions.

    A kernel of 3 at dilation 12 sees 224 pixels, the large field of view; one of 4 at dilation 4 sees 128, the small.
    """

    def __init__(self, channels: int, width: int, n_classes: int, dilation: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Conv2d(channels, width, kernel, padding=_centred(kernel, dilation), dilation=dilation)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.fc8 = nn.Conv2d(width, n_classes, 1)
        self.drop6 = KeyedDropout(dropout)
        self.drop7 = KeyedDropout(dropout)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        _start_as_published(self.fc8)

    def forward(self, top: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        hidden = self.drop6(F.relu(self.fc6(top)))
        return self.fc8(self.drop7(F.relu(self.fc7(hidden))))


class DeepLab(nn.Module):
    """A trunk that keeps a fine grid, and branches whose scores are summed.

    Over VGG-16 the branches are LargeFOV's, behind pool5 and an average pooling that keep the size. Over any other
    trunk they are version 2's: one dilated convolution each, straight to the classes; `width` and `dropout` then have
    nothing to act on.

    Args:
        trunk: of stride 8 or 16.
        branches: the dilation of each branch, in cells of the grid: (12,) for LargeFOV, (6, 12, 18, 24) for version 2.
        kernel: side of each dilated convolution (published: 3; 4 with branches (4,) for the small field of view).
        width: channels of fc6 and fc7 (published: 1024; 4096 for the small field of view).
        dropout: rate behind fc6 and fc7 (published: 0.5).
    """

    def __init__(
        self, trunk: Trunk, n_classes: int, branches: tuple[int, ...], kernel: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.stride = trunk.stride
        self.pools: nn.Module = nn.Identity()
        if isinstance(trunk, VGG16):
            self.pools = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), nn.AvgPool2d(3, 1, padding=1))
            heads: list[nn.Module] = [
                LargeFov(trunk.channels, width, n_classes, dilation, kernel, dropout) for dilation in branches
            ]
        else:
            heads = [
                nn.Conv2d(trunk.channels, n_classes, kernel, padding=_centred(kernel, dilation), dilation=dilation)
                for dilation in branches
            ]
            for head in heads:
                _start_as_published(head)
        self.branches = nn.ModuleList(heads)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K h w"]:
        return self.scores(self.trunk(images).top)

    def scores(self, top: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        """The scores of each class from the trunk's top map."""
        top = self.pools(top)
        scores = self.branches[0](top)
        for branch in self.branches[1:]:
            scores = scores + branch(top)
        return scores

    def borrow(self, weights: dict[str, Tensor]) -> tuple[str, ...]:
        """Start fc6 and fc7 of every branch from VGG-16's own, thinned out, where the shapes allow it.

        Of fc6's 7x7 places 3x3 (or 4x4) are kept, and of the channels of fc6 and fc7 every n-th, so that `width` are
        left: what the published initial weights `vgg16_20M` (and `vgg16_128`) were made by.

        Returns:
            Prefixes of the parameters that were filled; none if there is nothing to fill them from, as in a file that
            has VGG-16's convolutions only: fc6 and fc7 then start at random and learn as fast as new layers do. A
            random fc6 keeps the size of a map, and of scores 16 times as large as they should be a softmax is
            saturated before anything is learned, for good where a loss has a floor under probabilities (SEC); so it
            starts that much smaller.
        """
        branches = [branch for branch in self.branches if isinstance(branch, LargeFov)]
        if not weights or not branches:
            return ()
        published = self._thinned(weights, branches[0].fc6)
        with torch.no_grad():
            for branch in branches:
                if published:
                    branch.load_state_dict(published, strict=False)
                else:
                    branch.fc6.weight /= VGG16_SCALE
        return tuple(f"branches.{i}.{layer}." for i in range(len(branches)) for layer in ("fc6", "fc7") if published)

    def _thinned(self, weights: dict[str, Tensor], into: nn.Conv2d) -> dict[str, Tensor]:
        """VGG-16's fc6 and fc7 as those of a branch with such an fc6; none where shapes do not allow it."""
        if "classifier.0.weight" not in weights:
            return {}
        fc6, fc7 = weights["classifier.0.weight"].unflatten(1, (-1, 7, 7)), weights["classifier.3.weight"]
        width, kernel = into.out_channels, into.kernel_size[0]
        if fc6.shape[1] != self.trunk.channels or len(fc6) % width or kernel not in KEPT_PLACES:
            return {}
        every, places = len(fc6) // width, torch.tensor(KEPT_PLACES[kernel])
        return {
            "fc6.weight": fc6[::every][:, :, places][:, :, :, places],
            "fc6.bias": weights["classifier.0.bias"][::every],
            "fc7.weight": fc7[::every, ::every, None, None],
            "fc7.bias": weights["classifier.3.bias"][::every],
        }


def _centred(kernel: int, dilation: int) -> int:
    """The zeros around a map by which a dilated kernel keeps its size: an even kernel needs an even dilation."""
    return dilation * (kernel - 1) // 2


def _start_as_published(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def at_cells(labels: Int64[Tensor, "B H W"], stride: int) -> Int64[Tensor, "B h w"]:
    """The label of the pixel that each cell lies at: the nearest, not a blend, so 255 stays unknown."""
    return labels[:, ::stride, ::stride]


def colours_at_cells(images: Float[Tensor, "B 3 H W"], stride: int) -> Float[Tensor, "B 3 h w"]:
    """The colour of the pixel that each cell lies at: bilinear interpolation with aligned corners reads just these."""
    return images[:, :, ::stride, ::stride]


def enlarged(scores: Float[Tensor, "B K h w"], size: tuple[int, int], stride: int) -> Float[Tensor, "B K H W"]:
    """Scores at the size of the image, bilinear between the pixels that the cells lie at.

    For a side of `stride` * k + 1 pixels this is interpolation with aligned corners (Caffe's). Pixels of other sizes
    that lie beyond the last cell take its value.
    """
    rows, columns = (stride * (side - 1) + 1 for side in scores.shape[2:])
    scores = F.interpolate(scores, (rows, columns), mode="bilinear", align_corners=True)
    beyond = (0, max(0, size[1] - columns), 0, max(0, size[0] - rows))
    scores = _repeated(scores, beyond) if any(beyond) else scores
    return scores[:, :, : size[0], : size[1]]


def _repeated(maps: Float[Tensor, "B _ _ _"], beyond: tuple[int, int, int, int]) -> Float[Tensor, "B _ _ _"]:
    """Maps with their outermost values repeated beyond their sides, in the precision that they have.

    On a CPU autocast would have it done in float32: three more passes over the finest maps of a training, for nothing.
    """
    if maps.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return cast(Tensor, _Repeated.apply(maps, beyond))
    return F.pad(maps, beyond, mode="replicate")


class _Repeated(torch.autograd.Function):
    """The padding itself, outside of autocast; gradients of an edge are added up in float32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, beyond: tuple[int, int, int, int]) -> Tensor:
        ctx.last = (maps.shape[2] - 1, maps.shape[3] - 1)
        with torch.autocast("cpu", enabled=False):
            return F.pad(maps, beyond, mode="replicate")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        row, column = ctx.last
        own = gradient[:, :, : row + 1, : column + 1].clone()
        below = gradient[:, :, row:].float().sum(2)
        own[:, :, row, :column] = below[:, :, :column]
        own[:, :, :row, column] = gradient[:, :, :row, column:].float().sum(3)
        own[:, :, row, column] = below[:, :, column:].sum(2)
        return own, None
