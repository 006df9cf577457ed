"""A decoder over all levels of a trunk: from a map at the top's stride down to logits at a stride of 4.

A feature pyramid (Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017) whose levels are joined: each
step goes up by bilinear interpolation, is laid beside a 1x1 projection of the trunk's level, and goes through a 3x3
convolution with normalisation and ReLU.

A convolution over two maps side by side is the sum of one over each. So what the trunk's levels add to every step is
computed once an image (`sides`), and a decoder that is run several times over one image, once a tag, pays each time for
its own maps alone.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.data.pictures import IGNORE
from segcore.networks.deeplab import enlarged
from segcore.networks.trunk import Features, Trunk


def conv1(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution with batch normalisation and ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Pyramid(nn.Module):
    """The decoder: `decode(top, sides(levels))`.

    Args:
        trunk: whose levels are joined: of each stride from `finest` to below the trunk's own, the last one.
        inputs: channels of the map that comes in at the trunk's stride.
        width: channels of every step and projection.
        outputs: channels that come out.
        finest: pixels of the image to a cell of the finest level that may be joined.

    Attributes:
        stride: pixels of the image to a cell of what comes out: that of the finest level joined, or the trunk's own
            where it has no finer ones, as vision transformers.
    """

    def __init__(self, trunk: Trunk, inputs: int, width: int, outputs: int, finest: int) -> None:
        super().__init__()
        self.levels = joined(trunk.level_strides, trunk.stride, finest)
        strides = [trunk.stride, *(trunk.level_strides[level] for level in self.levels)]
        self.ratios = [coarse // fine for coarse, fine in zip(strides, strides[1:], strict=False)]
        self.stride = strides[-1]
        self.enter = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in strides)
        self.steps = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in self.levels)
        self.projections = nn.ModuleList(conv1(trunk.level_channels[level], width) for level in self.levels)
        self.joins = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in self.levels)
        self.score = nn.Conv2d(width, outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def sides(self, levels: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B D _ _"]]:
        """What a trunk's levels, finest first, add to every step, coarsest first: once for each image."""
        chosen = [levels[level] for level in self.levels]
        return [join(project(level)) for join, project, level in zip(self.joins, self.projections, chosen, strict=True)]

    def decode(
        self,
        top: Float[Tensor, "P C h w"],
        sides: Sequence[Float[Tensor, "B D _ _"]],
        image: Int64[Tensor, " P"] | None = None,
    ) -> Float[Tensor, "P n i j"]:
        """Logits at `stride`: a cell lies at every so many pixels of the image.

        Args:
            top: maps at the trunk's stride, of as many images as `sides`, or several of an image.
            sides: of the images.
            image: which image each map of `top` is of; None for the first of the first, and so on.
        """
        x = F.relu_(self.norms[0](self.enter(top)))
        for step, norm, side, ratio in zip(self.steps, self.norms[1:], sides, self.ratios, strict=True):
            x = enlarged(x, (side.shape[2], side.shape[3]), ratio)
            # In place: on a CPU a step's time goes into passes over fine maps as much as into convolutions.
            x = F.relu_(norm(step(x).add_(side if image is None else side[image])))
        return self.score(x)


class PyramidNetwork(nn.Module):
    """A plain segmenter: the trunk, and the decoder over its levels to the scores of all classes.

    Args:
        top_width: channels that the top map is made before the decoder.
        width: channels of every step of the decoder.
        finest: pixels of the image to a cell of the finest level that may be joined.
    """

    def __init__(self, trunk: Trunk, n_classes: int, top_width: int, width: int, finest: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.enter = conv1(trunk.channels, top_width)
        self.pyramid = Pyramid(trunk, top_width, width, n_classes, finest)

    @property
    def stride(self) -> int:
        """Pixels of the image to a cell of the scores."""
        return self.pyramid.stride

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K h w"]:
        """The scores of each class at the cells of the finest level."""
        return self.scores(self.trunk(images))

    def scores(self, features: Features) -> Float[Tensor, "B K h w"]:
        """The same from the trunk's features."""
        return self.pyramid.decode(self.enter(features.top), self.pyramid.sides(features.levels))


def joined(strides: Sequence[int], top: int, finest: int) -> list[int]:
    """The levels that a decoder joins, coarsest first: of each stride from `finest` to below `top`, the last one."""
    last = {stride: level for level, stride in enumerate(strides) if finest <= stride < top}
    return [last[stride] for stride in sorted(last, reverse=True)]


def shown(images: Float[Tensor, "B 3 H W"]) -> Bool[Tensor, "B H W"]:
    """Which pixels of squares lie within their image: beyond it, below and to the right, a square is black."""
    lit = (images > 0).any(1)
    rows, columns = (lit.any(side).flip(1).cummax(1).values.flip(1) for side in (2, 1))
    return rows[:, :, None] & columns[:, None]


def labels_at(labels: Int64[Tensor, "B H W"], stride: int, size: tuple[int, int]) -> Int64[Tensor, "B h w"]:
    """Labels of pixels at the cells of a decoder whose maps have that size: those that lie beyond are unknown."""
    found = labels[:, ::stride, ::stride][:, : size[0], : size[1]]
    beyond = (0, size[1] - found.shape[2], 0, size[0] - found.shape[1])
    return F.pad(found, beyond, value=IGNORE) if any(beyond) else found
