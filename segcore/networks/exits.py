"""Exits: heads that score classes from the maps of a trunk's inner levels, on the grid of its top map.

Zhang et al., "Self-Regulation for Semantic Segmentation", ICCV 2021, in the form of the authors' demo. Departure: a
level is brought to the grid before its head and not behind it, as 3x3 convolutions on maps of stride 2 or 4 would cost
more than the trunk below them.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Exit(nn.Module):
    """Twice a 3x3 convolution, batch normalisation and ReLU, which gives features; then a 1x1 convolution to classes.

    Args:
        channels: of the level that it reads.
        width: channels of its features (the demo: 256).
        reduction: cells of the level to one of the grid, each way.
    """

    def __init__(self, channels: int, width: int, n_classes: int, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.score = nn.Conv2d(width, n_classes, 1)
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(
        self, level: Float[Tensor, "B C _ _"], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "B W h w"], Float[Tensor, "B K h w"]]:
        """Features and scores of the classes, on a grid of `size` cells."""
        features = self.body(reduced(level, self.reduction, size))
        return features, self.score(features)


def reduced(level: Float[Tensor, "B C _ _"], reduction: int, size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Means of a level around the places of a grid that is `reduction` times as coarse, of which `size` is kept.

    Cell i of either lies at pixel stride * i of the image: so windows are centred on every n-th cell and overlap by
    one. What they hold beyond the map does not count.
    """
    if reduction > 1:
        level = F.avg_pool2d(level, reduction + 1, reduction, reduction // 2, count_include_pad=False)
    return level[:, :, : size[0], : size[1]]


def tag_scorer(n_tags: int) -> nn.Linear:
    """From the mean scores of the classes, background first, to a score of each tag: a linear layer.

    It starts as the mean score of the tag's own class, so that what it asks of the scores means something at once.
    """
    layer = nn.Linear(n_tags + 1, n_tags)
    nn.init.zeros_(layer.weight)
    nn.init.eye_(layer.weight[:, 1:])
    nn.init.zeros_(layer.bias)
    return layer
