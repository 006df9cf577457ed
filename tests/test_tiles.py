"""Large pictures in windows: seamless where the network sees enough, and never more than a band of scores at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.systems import Prediction
from segcore.data.batches import Batch
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.losses import Term
from segcore.prediction import tiles
from segcore.prediction.tiles import Tiles
from segcore.systems.contract import System
from tests.networks import views

REACH = 4
"""Pixels that the network below sees to each side."""


class Convolutions(System):
    """Fully convolutional, at full resolution; each class is what two filters of 5 x 5 say."""

    smallest_input, input_step = 1, 1

    def __init__(self, square: str = "pad", classes: int = 3) -> None:
        super().__init__()
        self.square = square  # type: ignore[assignment]
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 3, 5, 5, generator=generator) / 255)
        self.second = nn.Parameter(torch.randn(classes, 4, 5, 5, generator=generator))
        self.prediction = Prediction(views=views(), crf=None)
        self.shown: list[int] = []

    def losses(self, batch: Batch) -> dict[str, Term]:
        raise NotImplementedError

    def predict(self, images: Tensor) -> Tensor:
        self.shown.append(len(images))
        return F.conv2d(F.conv2d(images, self.first, padding=2).tanh(), self.second, padding=2)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_windows(system: System, photo: np.ndarray, some: Tiles, batch: int = 4) -> Tensor:
    return put_together([*tiles.blocks(system, photo, some, some.size, system.prediction.views, batch)], photo)


def put_together(blocks: list[tiles.Block], photo: np.ndarray) -> Tensor:
    """Scores of the whole picture; each pixel must be handed out once."""
    scores = torch.full((len(blocks[0].scores), *photo.shape[:2]), torch.nan)
    for block in blocks:
        place = scores[:, block.rows, block.columns]
        assert place.isnan().all()
        place.copy_(block.scores)
    assert not scores.isnan().any()
    return scores


def whole(system: System, photo: np.ndarray) -> Tensor:
    """Scores at the picture's own scale, of the picture as one square."""
    (maps,) = inference.score_maps(system, [photo], max(photo.shape[:2]), views(), None)
    return maps.whole()


@pytest.mark.parametrize("square", ["pad", "stretch"])
@pytest.mark.parametrize("size", [(150, 150), (97, 150), (150, 64)])
def test_windows_that_share_enough_give_what_the_whole_picture_gives(square: str, size: tuple[int, int]) -> None:
    system, photo = Convolutions(square), picture(*size)
    found = in_windows(system, photo, Tiles(64, 4 * REACH))
    one = Convolutions("pad")
    expected = whole(one, photo)
    # Beyond the picture's own edge a stretched window repeats the edge, the whole picture is followed by black.
    inside = np.s_[:, : size[0] - REACH, : size[1] - REACH]
    assert found.shape == expected.shape
    assert (found - expected)[inside].abs().max() < 1e-4


def test_windows_that_share_too_little_show_seams() -> None:
    system, photo = Convolutions(), picture(150, 150)
    assert (in_windows(system, photo, Tiles(64, 0)) - whole(system, photo)).abs().max() > 0.01


def test_a_picture_that_fits_is_one_window() -> None:
    system, photo = Convolutions(), picture(64, 50)
    assert Tiles(64, 16).fits(64, 50)
    assert torch.allclose(in_windows(system, photo, Tiles(64, 16)), whole(system, photo), atol=1e-5)
    assert system.shown == [1, 1]


def test_scores_come_in_blocks_and_windows_in_batches() -> None:
    system, photo = Convolutions(), picture(300, 150)
    some = Tiles(64, 16)
    found = [*tiles.blocks(system, photo, some, 64, views(), 2)]
    assert max(block.scores.shape[1] for block in found) <= 64
    assert max(block.scores.shape[2] for block in found) <= 64
    put_together(found, photo)
    assert max(system.shown) == 2


@pytest.mark.parametrize("size", [(300, 150), (150, 64), (64, 150), (131, 97)])
@pytest.mark.parametrize("overlap", [0, 13, 32])
def test_blocks_are_bit_for_bit_what_sums_over_the_whole_picture_give(size: tuple[int, int], overlap: int) -> None:
    system, photo, some = Convolutions(), picture(*size), Tiles(64, overlap)
    total = torch.zeros(4, *size)
    for top in some.starts(size[0]):
        for left in some.starts(size[1]):
            window = np.s_[top : top + 64, left : left + 64]
            (maps,) = inference.score_maps(system, [photo[window]], 64, views(), None)
            weights = np.outer(some.weights(top, size[0]), some.weights(left, size[1]))
            total[:, *window] += (
                torch.cat([maps.whole(), torch.ones(1, *weights.shape)]) * torch.tensor(weights).float()
            )
    assert torch.equal(in_windows(system, photo, some, 1), total[:-1] / total[-1])


@pytest.mark.parametrize("overlap", [0, 1, 7, 16, 32])
@pytest.mark.parametrize("length", [64, 65, 100, 128, 1000])
def test_every_pixel_counts_and_neighbours_share_what_was_asked_for(length: int, overlap: int) -> None:
    some = Tiles(64, overlap)
    starts = some.starts(length)
    total = np.zeros(length)
    for start in starts:
        total[start : start + 64] += some.weights(start, length)
    assert starts[0] == 0
    assert starts[-1] + 64 == length
    assert all(a + 64 - b >= overlap for a, b in zip(starts[:-1], starts[1:], strict=True))
    assert total.min() >= 1 - 1e-9


def test_windows_that_share_more_than_half_are_refused() -> None:
    with pytest.raises(Problem, match="0 to half"):
        Tiles(64, 33)
