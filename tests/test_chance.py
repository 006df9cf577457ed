"""What chance may explain: known differences, equal systems, and intervals that hold the truth as often as they say."""

import numpy as np
import pytest

from segcore.evaluation.per_image import ImageCounts, mean_iou
from segcore.reporting import chance
from segcore.reporting.chance import Difference, Scored, difference
from segcore.reporting.comparison import Entry, compared, notes, told

PICTURES = "tiny"


def scored(counts: np.ndarray, pictures: str = PICTURES) -> Scored:
    return Scored(ImageCounts(tuple(f"{i:04d}" for i in range(len(counts))), counts), pictures)


def truth(rng: np.random.Generator, n: int, k: int = 4) -> np.ndarray:
    """Pixels of each class in each image; background is everywhere, the others in a third of the images."""
    pixels = rng.integers(50, 400, (n, k)) * (rng.random((n, k)) < 0.33)
    pixels[:, 0] = 1000
    return pixels


def predicted(rng: np.random.Generator, pixels: np.ndarray, quality: float, hard: np.ndarray) -> np.ndarray:
    """Counts of a system that is right by its quality, the hardness of the image, and chance."""
    right = 1 / (1 + np.exp(-(quality + hard + rng.normal(0, 0.7, pixels.shape))))
    hits = rng.binomial(pixels, right)
    missed = pixels - hits
    found = hits.copy()
    found[:, 0] += missed[:, 1:].sum(1)
    found[:, 1] += missed[:, 0]
    return np.stack([hits, pixels, found], axis=1)


def test_mean_iou_of_many_sets_by_hand() -> None:
    one = np.array([[2, 0, 0], [4, 2, 0], [3, 1, 0]])
    np.testing.assert_allclose(mean_iou(np.stack([one, 2 * one])), [(2 / 5 + 0) / 2] * 2)


def test_a_known_difference_on_images_that_are_all_alike() -> None:
    """Every draw is the same, so that nothing is left to chance."""
    better = np.tile([[8, 4], [10, 5], [9, 6]], (20, 1, 1))
    worse = np.tile([[6, 2], [10, 5], [9, 6]], (20, 1, 1))
    found = difference({0: scored(better)}, {0: scored(worse)})
    expected = (8 / 11 + 4 / 7) / 2 - (6 / 13 + 2 / 9) / 2
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((expected,) * 3)
    assert (found.seeds, found.images, found.level) == (1, 20, False)


def test_a_system_is_level_with_itself() -> None:
    rng = np.random.default_rng(0)
    by_seed = {seed: scored(predicted(rng, truth(rng, 30), 1.0, np.zeros((30, 1)))) for seed in range(3)}
    assert difference(by_seed, dict(by_seed)) == Difference(0.0, 0.0, 0.0, 3, 30)
    assert Difference(0.0, 0.0, 0.0, 3, 30).level


def test_the_same_images_are_drawn_for_both() -> None:
    """What makes images hard is no difference: paired, the interval is much shorter."""
    rng = np.random.default_rng(1)
    pixels, hard = truth(rng, 200), rng.normal(0, 2, (200, 1))
    a, b = (predicted(rng, pixels, quality, hard) for quality in (0.6, 0.3))
    found = difference({0: scored(a)}, {0: scored(b)})
    apart = difference({0: scored(a)}, {0: scored(b[rng.permutation(200)])})
    assert found is not None
    assert apart is not None
    assert found.estimate == pytest.approx(apart.estimate)
    assert found.high - found.low < 0.7 * (apart.high - apart.low)
    assert not found.level
    assert difference({0: scored(a)}, {0: scored(b)}) == found


def test_only_seeds_that_both_have_are_compared() -> None:
    rng = np.random.default_rng(2)
    results = [scored(predicted(rng, truth(rng, 25), 1.0, np.zeros((25, 1)))) for _ in range(4)]
    found = difference({0: results[0], 1: results[1]}, {1: results[2], 2: results[3]})
    assert found is not None
    assert found.seeds == 1
    assert found.estimate == pytest.approx(results[1].mean_iou - results[2].mean_iou)
    assert difference({0: results[0]}, {1: results[1]}) is None


def test_a_seed_of_other_images_is_left_out() -> None:
    counts = np.ones((5, 3, 2), dtype=np.int64)
    for other in (scored(counts[:4]), scored(counts, "others")):
        assert difference({0: scored(counts)}, {0: other}) is None
        both = difference({0: scored(counts), 1: scored(counts)}, {0: other, 1: scored(counts)})
        assert both == difference({1: scored(counts)}, {1: scored(counts)})


def with_unknown(unknown: int, known: int, share: float) -> np.ndarray:
    """Counts of images, the first ones without a known pixel, the others with this share of each class right."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(50, 100, (unknown + known, 3))
    counts = np.stack([(pixels * share * rng.uniform(0.9, 1.0, pixels.shape)).astype(int), pixels, pixels], axis=1)
    counts[:unknown] = 0
    return counts


@pytest.mark.parametrize(("unknown", "known"), [(1, 2), (2, 2), (5, 5), (1, 9)])
def test_an_image_without_a_known_pixel_changes_no_interval(unknown: int, known: int) -> None:
    whole, only = (
        difference(
            {0: scored(with_unknown(unknown, known, 0.8)[skip:])}, {0: scored(with_unknown(unknown, known, 0.6)[skip:])}
        )
        for skip in (0, unknown)
    )
    assert whole is not None
    assert whole == only
    assert whole.low < whole.estimate < whole.high
    assert whole.images == known


@pytest.mark.parametrize("unknown", [0, 1])
@pytest.mark.parametrize("seeds", [1, 2])
def test_one_known_image_makes_no_interval_and_no_significance(unknown: int, seeds: int) -> None:
    mine, others = ({s: scored(with_unknown(unknown, 1, q)) for s in range(seeds)} for q in (0.8, 0.4))
    found = difference(mine, others)
    assert found is not None
    assert found.estimate > 0.2
    assert found.level
    assert np.isnan([found.low, found.high]).all()
    assert told(found) == f"{100 * found.estimate:+.1f} (too few images for an interval)"


def test_without_any_known_pixel_there_is_no_difference() -> None:
    assert difference({0: scored(with_unknown(3, 0, 0.8))}, {0: scored(with_unknown(3, 0, 0.6))}) is None


def test_two_seeds_that_err_by_as_much_to_opposite_sides_are_level() -> None:
    one, other = (np.array([[[a], [10], [10]], [[b], [10], [10]]]) for a, b in ((9, 5), (5, 9)))
    found = difference({0: scored(one), 1: scored(other)}, {0: scored(other), 1: scored(one)})
    assert found is not None
    assert found.level
    assert found.low < 0 < found.high


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.15)])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    seeds: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 95 of 100 experiments; 85 is what percentiles of the draws would reach with three seeds."""
    monkeypatch.setattr(chance, "DRAWS", 200)
    big = np.random.default_rng(9)
    pixels, hard = truth(big, 20000), big.normal(0, 0.8, (20000, 1))

    def population(quality: float) -> float:
        """mIoU on all images there are, over the seeds there may be."""
        qualities = quality + spread * np.linspace(-1.8, 1.8, 9 if spread else 1)
        weights = np.exp(-((qualities - quality) ** 2) / 2 / max(spread, 1e-9) ** 2)
        return float(np.average([mean_iou(predicted(big, pixels, q, hard).sum(0)) for q in qualities], weights=weights))

    expected = population(0.8) - population(0.5)
    rng = np.random.default_rng(3)
    held, runs = 0, 150
    for _ in range(runs):
        some, hardness = truth(rng, 80), rng.normal(0, 0.8, (80, 1))
        mine, others = (
            {s: scored(predicted(rng, some, q + rng.normal(0, spread), hardness)) for s in range(seeds)}
            for q in (0.8, 0.5)
        )
        found = difference(mine, others)
        assert found is not None
        held += found.low <= expected <= found.high
    assert 0.91 <= held / runs <= 0.995


def test_rows_are_compared_with_the_best_of_masks_only_and_with_the_next() -> None:
    rng = np.random.default_rng(4)
    pixels, hard = truth(rng, 150), rng.normal(0, 1, (150, 1))

    def entry(name: str, quality: float, masks_only: bool, seeds: int = 1) -> Entry:
        results = {s: scored(predicted(rng, pixels, quality + 0.1 * s, hard)) for s in range(seeds)}
        return Entry(name, results, masks_only)

    first, masks, fewer = entry("first", 2.0, False, 3), entry("masks", 0.5, True, 2), entry("fewer", 0.0, True)
    rows = compared([fewer, first, masks])
    assert list(rows) == ["first", "masks", "fewer"]
    assert rows["first"].over_masks == rows["first"].over_next == difference(first.by_seed, masks.by_seed)
    assert rows["masks"].over_masks is None
    assert rows["masks"].over_next == difference(masks.by_seed, fewer.by_seed)
    assert rows["fewer"].over_next is None
    assert rows["fewer"].over_masks == difference(fewer.by_seed, masks.by_seed)
    values = [result.mean_iou for result in first.by_seed.values()]
    assert (rows["first"].mean, rows["first"].std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert rows["fewer"].std is None


def of_one_class(*shares: float, pictures: str = PICTURES) -> dict[int, Scored]:
    """By seed, the same share of the pixels of every image right."""
    return {
        s: scored(np.tile([[1000 * share], [1000], [1000]], (9, 1, 1)).astype(int), pictures)
        for s, share in enumerate(shares)
    }


def test_rows_are_ranked_over_the_seeds_that_all_of_them_have() -> None:
    """The first has a lucky seed alone; over it the second is better, and it is the best of masks only."""
    lucky, better = Entry("lucky", of_one_class(0.60), True), Entry("better", of_one_class(0.62, 0.4, 0.4), True)
    rows = compared([lucky, better])
    assert list(rows) == ["better", "lucky"]
    assert rows["better"].mean < rows["lucky"].mean
    assert rows["better"].shared_mean == of_one_class(0.62)[0].mean_iou
    assert rows["better"].over_masks is None
    over = rows["better"].over_next
    assert over is not None
    assert over.estimate > 0


def test_a_seed_of_other_images_ranks_no_row_and_is_told() -> None:
    mine, other = of_one_class(0.5, 0.5), of_one_class(0.6) | {1: of_one_class(0.1, pictures="others")[0]}
    rows = compared(
        [Entry("mine", mine, False), Entry("other", other, False), Entry("third", of_one_class(0.1), False)]
    )
    assert list(rows) == ["other", "mine", "third"]
    assert {name: row.apart for name, row in rows.items()} == {"other": (1,), "mine": (), "third": ()}
    assert rows["other"].over_next == difference(of_one_class(0.6), of_one_class(0.5))
    _, left_out = notes({name: row.apart for name, row in rows.items()}, {})
    assert left_out == "Left out of differences, as the other row saw other images: seed 1 of other."


def test_a_difference_is_told_in_points() -> None:
    assert told(Difference(0.047, 0.0312, 0.0631, 3, 200)) == "+4.7 (+3.1 to +6.3)"
    assert told(Difference(-0.001, -0.02, 0.018, 1, 200)) == "-0.1 (-2.0 to +1.8), level"
    assert told(None) == ""
