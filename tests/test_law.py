"""The law of annotation: found again where it is known, an interval that holds the gain, advice that follows."""

import numpy as np
import pytest

from segcore.errors import Problem
from segcore.reporting import law
from segcore.reporting.law import Cost, Gain, Law, advice, fitted, gains

COST = Cost(tag=20.0, mask=239.7)
MASKS = np.array([20.0, 40, 100, 200, 500, 1000] * 2 + [100.0] * 6)
TAGS = np.array([1700.0] * 12 + [100.0, 400, 900] * 2)
STEEP_IN_MASKS = Law(a=0.1, g_c=0.02, b_c=0.01, g_s=0.08, b_s=0.02)
STEEP_IN_TAGS = Law(a=0.1, g_c=0.15, b_c=0.0005, g_s=0.01, b_s=0.02)


def gain_of(one: Law, tags: float, masks: float) -> float:
    """From 1,700 images with tags and 100 with masks."""
    before, after = one(np.array([1700.0, 1700.0 + tags]), np.array([100.0, 100.0 + masks]))
    return float(after - before)


@pytest.mark.parametrize("true", [STEEP_IN_MASKS, STEEP_IN_TAGS], ids=["masks", "tags"])
def test_a_known_law_is_found_again(true: Law) -> None:
    found = fitted(TAGS, MASKS, true(TAGS, MASKS))
    np.testing.assert_allclose(found(TAGS, MASKS), true(TAGS, MASKS), atol=2e-3)
    for tags, masks in ((180, 0), (0, 15)):
        assert gain_of(found, tags, masks) == pytest.approx(gain_of(true, tags, masks), rel=0.25)


def test_the_law_never_falls() -> None:
    found = fitted(TAGS, MASKS, 0.5 - 1e-4 * MASKS)
    assert found.g_s == 0


def test_what_was_not_varied_has_no_part() -> None:
    found = fitted(TAGS[:6], MASKS[:6], STEEP_IN_MASKS(TAGS[:6], MASKS[:6]))
    assert (found.g_c, found.b_c) == (0, 0)
    assert law.varied(TAGS[:6], MASKS[:6]) == ["masks"]


def test_tags_that_masks_leave_were_not_varied() -> None:
    """Each image with a mask is one fewer with tags: nothing tells the two apart, until tags are varied alone."""
    left = 1700 - MASKS[:6]
    found = fitted(left, MASKS[:6], STEEP_IN_MASKS(left, MASKS[:6]))
    assert law.varied(left, MASKS[:6]) == ["masks"]
    assert (found.g_c, found.b_c) == (0, 0)
    assert law.varied(np.append(left, 400), np.append(MASKS[:6], 100)) == ["tags", "masks"]


@pytest.mark.parametrize(("true", "kind"), [(STEEP_IN_MASKS, "masks"), (STEEP_IN_TAGS, "tags")])
def test_the_advice_is_what_gains_more(true: Law, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(law, "DRAWS", 60)
    rng = np.random.default_rng(0)
    seen = true(TAGS, MASKS) + rng.normal(0, 0.004, len(MASKS))
    found = gains(TAGS, MASKS, seen, seen + rng.normal(0, 0.003, (60, len(MASKS))), (1700, 100), COST)
    assert [(gain.kind, gain.images) for gain in found] == [("tags", 180), ("masks", 15)]
    assert all(gain.low <= gain.expected <= gain.high for gain in found)
    assert advice("x", found).startswith(f"x, the next hour: {180 if kind == 'tags' else 15} images with {kind}, ")


def test_the_interval_holds_the_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """In most of twenty experiments, and it shrinks with the noise."""
    monkeypatch.setattr(law, "DRAWS", 60)
    tags, masks = TAGS[:12], MASKS[:12]
    expected, widths, held = gain_of(STEEP_IN_MASKS, 0, 15), [], 0
    for noise in (0.02, 0.005):
        rng, width = np.random.default_rng(1), []
        for _ in range(20):
            seen = STEEP_IN_MASKS(tags, masks) + rng.normal(0, noise, 12)
            (gain,) = gains(tags, masks, seen, np.tile(seen, (60, 1)), (1700, 100), COST)
            held += gain.low <= expected <= gain.high
            width.append(gain.high - gain.low)
        widths.append(np.mean(width))
    assert held >= 32
    assert widths[1] < 0.5 * widths[0]


def test_the_interval_of_few_points_holds_the_gain_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 95 of 100 experiments with five points; percentiles of the refits reach 77."""
    monkeypatch.setattr(law, "DRAWS", 20)
    monkeypatch.setattr(law, "RATES", 6)
    tags, masks, rng = TAGS[:5], MASKS[:5], np.random.default_rng(0)
    expected, held, runs = gain_of(STEEP_IN_MASKS, 0, 15), 0, 60
    for _ in range(runs):
        seen = STEEP_IN_MASKS(tags, masks) + rng.normal(0, 0.015, 5)
        (gain,) = gains(tags, masks, seen, seen + rng.normal(0, 0.003, (20, 5)), (1700, 100), COST)
        held += gain.low <= expected <= gain.high
    assert held >= 0.9 * runs


def test_too_few_points_are_told() -> None:
    seen = STEEP_IN_MASKS(TAGS[:3], MASKS[:3])
    with pytest.raises(Problem, match=r"3 points leave a law with 3 numbers no degree of freedom, so no interval"):
        gains(TAGS[:3], MASKS[:3], seen, seen[None], (1700, 100), COST)


def test_draws_without_a_miou_are_left_out() -> None:
    tags, masks = TAGS[:6], MASKS[:6]
    seen = STEEP_IN_MASKS(tags, masks)
    drawn = seen + np.random.default_rng(0).normal(0, 0.003, (9, 6))
    holed = np.insert(drawn, 4, [0.1, np.nan, 0.2, 0.2, 0.3, 0.3], axis=0)
    assert gains(tags, masks, seen, holed, (1700, 100), COST) == gains(tags, masks, seen, drawn, (1700, 100), COST)
    with pytest.raises(Problem, match="too few validation images have masks"):
        gains(tags, masks, seen, np.full((9, 6), np.nan), (1700, 100), COST)


def test_where_an_hour_pays_for_no_image_the_hours_of_one_are_told() -> None:
    tags, masks = TAGS[:6], MASKS[:6]
    seen = STEEP_IN_MASKS(tags, masks)
    found = gains(tags, masks, seen, np.tile(seen, (9, 1)), (1700, 100), Cost(tag=20.0, mask=4000.0))
    assert [(gain.images, round(gain.hours, 2)) for gain in found] == [(1, 1.11)]
    assert advice("x", found).startswith("x, the next 1.11 hours: 1 image with masks, expected +0.")


def test_the_sentence() -> None:
    found = [Gain("tags", 180, 0.002, -0.001, 0.005), Gain("masks", 15, 0.0091, 0.004, 0.0142)]
    assert advice("dis", found) == (
        "dis, the next hour: 15 images with masks, expected +0.91 points (+0.40 to +1.42); "
        "180 images with tags +0.20 points (-0.10 to +0.50)."
    )
    assert advice("dis", found[1:]).endswith("; tags were not varied.")
    dear = Gain("masks", 1, 0.0021, 0.001, 0.0032, hours=1.25)
    assert advice("dis", [found[0], dear]) == (
        "dis, the next hour: 180 images with tags, expected +0.20 points (-0.10 to +0.50); "
        "1 image with masks in 1.25 hours +0.21 points (+0.10 to +0.32)."
    ), "gains are compared by the hour"
