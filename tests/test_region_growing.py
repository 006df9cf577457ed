"""Seeded region growing on grids small enough to draw."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from segcore.localisation.region_growing import grow, grow_batch

FOREGROUND, BACKGROUND = 0.85, 0.99


def grid(*rows: str) -> np.ndarray:
    """Class indices as drawn; a dot is 255."""
    return np.array([[255 if mark == "." else int(mark) for mark in row] for row in rows], np.uint8)


def likely(n_classes: int, *rows: str, probability: float = 0.995) -> np.ndarray:
    """That probability for the class drawn at a pixel, the rest shared; a dot is equal probabilities."""
    drawn = grid(*rows)
    others = (1 - probability) / (n_classes - 1)
    each = np.where(np.arange(n_classes)[:, None, None] == drawn, probability, others)
    return np.where(drawn == 255, 1 / n_classes, each).astype(np.float32)


def grown(cues: np.ndarray, probabilities: np.ndarray, *tags: int) -> np.ndarray:
    return grow(cues, probabilities, tags, FOREGROUND, BACKGROUND)


def test_regions_reach_over_corners_and_need_a_cue() -> None:
    cues = grid("1....", ".....", ".....", "....0")
    probabilities = likely(3, "1...1", ".1..1", "..1..", "000.0")
    np.testing.assert_array_equal(grown(cues, probabilities, 1), grid("1....", ".1...", "..1..", "....0"))


def test_the_background_needs_more_than_the_tags() -> None:
    cues = grid("1..0..")
    between = likely(2, "110000", probability=0.9)
    np.testing.assert_array_equal(grown(cues, between, 1), grid("11.0.."))
    below = likely(2, "110000", probability=0.84)
    np.testing.assert_array_equal(grown(cues, below, 1), cues)
    above = likely(2, "110000", probability=0.995)
    np.testing.assert_array_equal(grown(cues, above, 1), grid("110000"))


def by_the_pixel(
    cues: np.ndarray, probabilities: np.ndarray, tags: tuple[int, ...], foreground: float, background: float
) -> np.ndarray:
    """The published rule one pixel after the other; regions are followed from their cues by a queue."""
    height, width = cues.shape
    present = [0, *sorted(tags)]
    marked = cues.copy()
    for y, x in np.ndindex(height, width):
        best = max(present, key=lambda c: probabilities[c, y, x])
        p = probabilities[best, y, x]
        if p > foreground and (best != 0 or p > background):
            marked[y, x] = best
    grown = cues.copy()
    for c in present:
        queue = [(y, x) for y, x in np.ndindex(height, width) if cues[y, x] == c == marked[y, x]]
        reached = set(queue)
        while queue:
            y, x = queue.pop()
            if cues[y, x] == 255:
                grown[y, x] = c
            for near in ((y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
                if 0 <= near[0] < height and 0 <= near[1] < width and near not in reached and marked[near] == c:
                    reached.add(near)
                    queue.append(near)
    return grown


@pytest.mark.parametrize("foreground", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("background", [0.3, 0.6, 0.85, 0.99])
def test_growing_is_the_published_rule_for_all_thresholds(foreground: float, background: float) -> None:
    draw = np.random.default_rng(1)
    sizes = []
    for tags in ((1, 2, 3), (2,), (), (1, 3)):
        cues = draw.choice(np.array([0, 1, 2, 3, 255], np.uint8), (12, 13), p=[0.05, 0.04, 0.04, 0.02, 0.85])
        smooth = ndimage.gaussian_filter(draw.normal(0, 40, (4, 12, 13)), (0, 1.5, 1.5))
        probabilities = (np.exp(smooth) / np.exp(smooth).sum(0)).astype(np.float32)
        found = grow(cues, probabilities, tags, foreground, background)
        np.testing.assert_array_equal(found, by_the_pixel(cues, probabilities, tags, foreground, background))
        sizes.append((found != cues).sum())
    assert sum(sizes) > 20


def test_the_background_needs_what_the_tags_need_at_least() -> None:
    cues, seventy = grid("0..."), likely(2, "0000", probability=0.7)
    np.testing.assert_array_equal(grow(cues, seventy, (1,), 0.85, 0.5), cues)
    np.testing.assert_array_equal(grow(cues, seventy, (1,), 0.6, 0.5), grid("0000"))


def test_cues_of_other_classes_stay_inside_a_region() -> None:
    cues = grid("1.2.1")
    np.testing.assert_array_equal(grown(cues, likely(3, "11111"), 1, 2), grid("11211"))


def test_a_region_may_pass_through_the_cue_of_another_class() -> None:
    """As published: the pixel joins the region, and is taken out of what it becomes."""
    cues = grid("1.2..")
    np.testing.assert_array_equal(grown(cues, likely(3, "11111"), 1, 2), grid("11211"))


def test_an_overruled_cue_starts_nothing_but_stays() -> None:
    cues = grid("2.1.")
    np.testing.assert_array_equal(grown(cues, likely(3, "1111"), 1, 2), grid("2111"))
    np.testing.assert_array_equal(grown(grid("2..."), likely(3, "1111"), 1, 2), grid("2..."))


def test_classes_that_no_tag_names_do_not_compete() -> None:
    """Class 2 is the most probable of all, class 1 the most probable of the image's, but not sure enough."""
    probabilities = likely(3, "1222")
    np.testing.assert_array_equal(grown(grid("1..."), probabilities, 1), grid("1..."))
    np.testing.assert_array_equal(grown(grid("2..."), probabilities, 1), grid("2..."))


def test_an_image_without_tags_grows_its_background() -> None:
    np.testing.assert_array_equal(grown(grid("0..."), likely(2, "0010")), grid("00.."))


def test_without_cues_nothing_grows() -> None:
    empty = grid("....", "....")
    np.testing.assert_array_equal(grown(empty, likely(2, "1111", "0000"), 1), empty)


def test_what_it_is_handed_stays() -> None:
    cues, probabilities = grid("1..."), likely(2, "1111")
    copies = cues.copy(), probabilities.copy()
    assert (grown(cues, probabilities, 1) == 1).all()
    np.testing.assert_array_equal(cues, copies[0])
    np.testing.assert_array_equal(probabilities, copies[1])


def test_a_batch_is_its_images() -> None:
    draw = np.random.default_rng(0)
    cues = draw.choice(np.array([0, 1, 2, 255], np.uint8), (3, 8, 9), p=[0.1, 0.1, 0.1, 0.7])
    scores = draw.normal(0, 4, (3, 3, 8, 9))
    probabilities = torch.from_numpy(scores).softmax(1).float()
    tags = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    known = torch.from_numpy(cues).long()
    found = grow_batch(known, probabilities, tags, FOREGROUND, BACKGROUND)
    assert found.dtype == torch.int64
    named = [(1, 2), (1,), ()]
    single = [grow(cues[n], probabilities[n].numpy(), named[n], FOREGROUND, BACKGROUND) for n in range(3)]
    np.testing.assert_array_equal(found, np.stack(single))
    assert (known.numpy() == cues).all()
    assert (found != known).any()
    torch.testing.assert_close(torch.where(known != 255, found, known), known)
    empty = grow_batch(known[:0], probabilities[:0], tags[:0], FOREGROUND, BACKGROUND)
    assert empty.shape == (0, 8, 9)
