"""Pictures have the colours, sizes and legends that they promise."""

import numpy as np
import pytest

from segcore.reporting import panels

NAMES = ["background", "aeroplane", "bicycle", "potted plant"]


def scene(height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    truth, prediction = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    truth[: height // 2, : width // 2] = 1
    truth[0] = 255
    prediction[height // 4 :, width // 4 :] = 2
    return image, truth, prediction


def test_labels_wear_the_colours_of_voc() -> None:
    colours = panels.colour_labels(np.array([[0, 1, 2, 15, 20, 255]], dtype=np.uint8))
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]
    assert colours[0].tolist() == expected


def test_error_map_tells_the_kinds_apart() -> None:
    image = np.full((1, 5, 3), 100, np.uint8)
    truth, prediction = np.array([[1, 0, 1, 1, 255]], np.uint8), np.array([[0, 1, 2, 1, 1]], np.uint8)
    picture = panels.error_map(image, truth, prediction)[0]
    assert [tuple(pixel) for pixel in picture[:3].tolist()] == list(panels.ERRORS.values())
    assert len(set(picture[3].tolist())) == 1
    assert picture[4].tolist() == [224, 224, 192]


def test_a_pixel_without_a_pseudo_label_is_no_error() -> None:
    image, truth = np.full((1, 2, 3), 100, np.uint8), np.array([[1, 0]], np.uint8)
    picture = panels.error_map(image, truth, np.array([[255, 255]], np.uint8))[0]
    assert all(len(set(pixel)) == 1 for pixel in picture.tolist()), "faded grey"


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (500, 30), (30, 500), (1, 1)])
def test_panels_of_any_shape(size: tuple[int, int]) -> None:
    page = panels.panel(*scene(*size), NAMES, "a title " * 40)
    assert page.mode == "RGB"
    assert page.width >= 4 * panels.TILE // 2


def test_a_panel_is_the_same_every_time() -> None:
    first, second = (panels.panel(*scene(), NAMES, "x") for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_the_legend_names_what_occurs_and_fits() -> None:
    _, truth, prediction = scene()
    chips = panels._chips(truth, prediction, NAMES)
    assert [name for name, _ in chips[:4]] == ["background", "aeroplane", "bicycle", "unknown"]
    rows = panels._legend_rows(chips, 260)
    assert len(rows) > 1
    assert [chip for row in rows for _, chip in row] == chips
    ends = [left + 22 + panels._font(14).getlength(name) for row in rows for left, (name, _) in row]
    assert max(ends) <= 260 + panels.GAP
