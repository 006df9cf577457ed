"""The cells of a grid: labels, predictions, training and cues agree where they lie."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segcore.data.geometry import Grid, resized, resized_labels
from segcore.networks.deeplab import at_cells, enlarged

SHAPES = [(375, 500), (500, 333), (97, 97), (60, 90), (33, 41), (720, 1280)]
"""Heights and widths, few of them square."""
GRIDS = [Grid(321, 8), Grid(97, 8), Grid(65, 16), Grid(96, 8)]


def labels_of(height: int, width: int) -> np.ndarray:
    """Classes in patches of some pixels, and unknown ones."""
    patches = np.random.default_rng(height).choice(np.array([0, 1, 2, 3, 255], np.uint8), (height // 5, width // 5))
    return resized_labels(patches, width, height)


def test_321_pixels_are_41_cells_from_border_to_border() -> None:
    grid = Grid(321, 8)
    assert grid.cells == 41
    assert grid.pixels(321).tolist() == list(range(0, 321, 8))
    assert grid.nearest(321)[[0, 3, 4, 11, 12, 316, 317, 320]].tolist() == [0, 0, 1, 1, 2, 40, 40, 40]
    assert np.bincount(grid.nearest(321)).tolist() == [4] + [8] * 39 + [5], "half a share at the borders"
    assert Grid(320, 8).cells == 40
    assert Grid(33, 16).cells == 3


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_picture_is_read_where_training_on_it_reads(grid: Grid, shape: tuple[int, int]) -> None:
    """Training stretches the picture to the square, then takes every n-th pixel."""
    labels = labels_of(*shape)
    square = resized_labels(labels, grid.size, grid.size)
    expected = at_cells(torch.from_numpy(square)[None].long(), grid.stride)[0].numpy()
    np.testing.assert_array_equal(grid.at_cells(labels), expected)
    colours = np.stack([labels] * 3, axis=2)
    np.testing.assert_array_equal(grid.at_cells(colours), np.stack([expected] * 3, axis=2))


@pytest.mark.parametrize(("grid", "shape"), [(grid, shape) for grid in GRIDS for shape in SHAPES if min(shape) > 41])
def test_what_goes_from_cells_to_pixels_comes_back(grid: Grid, shape: tuple[int, int]) -> None:
    """In a picture that has at least as many pixels as the grid has cells."""
    cells = np.random.default_rng(1).integers(0, 256, (grid.cells, grid.cells), dtype=np.uint8)
    pixels = grid.at_pixels(cells, *shape)
    assert pixels.shape == shape
    np.testing.assert_array_equal(grid.at_cells(pixels), cells)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_cell_is_that_of_prediction(grid: Grid, shape: tuple[int, int]) -> None:
    """Scores that tell their own cell's place, enlarged to the square and then to the picture as prediction does."""
    places = grid.stride * torch.arange(grid.cells, dtype=torch.float64)
    for axis, length in enumerate(shape):
        ramp = (places[:, None] if axis == 0 else places[None, :]).expand(grid.cells, grid.cells)
        square = enlarged(ramp[None, None].contiguous(), (grid.size, grid.size), grid.stride)
        picture = F.interpolate(square, shape, mode="bilinear")[0, 0]
        place = (picture[:, 0] if axis == 0 else picture[0]).numpy()
        nearest = grid.nearest(length)
        assert (np.abs(place - grid.stride * nearest) <= grid.stride / 2 + 1e-9).all()
        assert (np.diff(nearest) >= 0).all()
        assert np.abs(place[grid.pixels(length)] - places.numpy()).max() <= max(0.5 * grid.size / length, 0.5) + 1e-9


def test_an_edge_stays_where_it_is() -> None:
    """A vertical edge of a picture, read at the cells and written back: right to half a cell, and not to one side."""
    grid, width = Grid(321, 8), 500
    shifts = []
    for edge in range(40, 460):
        labels = np.zeros((375, width), dtype=np.uint8)
        labels[:, edge:] = 1
        back = grid.at_pixels(grid.at_cells(labels), 375, width)
        shifts.append(int((back[0] == 0).sum()) - edge)
    half = grid.stride / 2 * width / grid.size
    assert np.abs(shifts).max() <= half + 1
    assert abs(np.mean(shifts)) < 0.6


def test_cells_of_the_picture_itself_are_its_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (65, 65, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Grid(65, 8).at_cells(image), image[::8, ::8])
    np.testing.assert_array_equal(resized(image, 65, 65), image)


def test_cells_of_another_grid_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"found \(40, 41\) cells, but Grid\(size=321, stride=8\) has 41 a side"):
        Grid(321, 8).at_pixels(np.zeros((40, 41), dtype=np.uint8), 375, 500)
