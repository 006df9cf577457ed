"""Scores against values computed by hand, against torchmetrics and against brute force."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from segcore.evaluation.metrics import (
    BoundaryScore,
    ConfusionMatrix,
    boundary_f_score,
)
from segcore.evaluation.numbers import rounded
from segcore.evaluation.tags import average_precision, tag_metrics

TRUTH = np.array([[0, 0, 1, 1], [0, 2, 2, 255]], dtype=np.uint8)
PREDICTION = np.array([[0, 1, 1, 1], [0, 2, 0, 2]], dtype=np.uint8)


def filled(n_classes: int, *pairs: tuple[np.ndarray, np.ndarray]) -> ConfusionMatrix:
    confusion = ConfusionMatrix(n_classes)
    for truth, prediction in pairs:
        confusion.update(truth, prediction)
    return confusion


def labels_of(*row: int) -> np.ndarray:
    return np.array([row], dtype=np.uint8)


def random_labels(seed: int, n_classes: int, ignore: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    labels = random.integers(0, n_classes, (37, 53)).astype(np.uint8)
    labels[random.random(labels.shape) < ignore] = 255
    return labels


def test_confusion_matrix_by_hand() -> None:
    confusion = filled(4, (TRUTH, PREDICTION))
    assert confusion.counts.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(confusion.iou, [2 / 4, 2 / 3, 1 / 2, math.nan])
    np.testing.assert_allclose(confusion.accuracy, [2 / 3, 1, 1 / 2, math.nan])
    assert confusion.mean_iou == pytest.approx((2 / 4 + 2 / 3 + 1 / 2) / 3)
    assert confusion.mean_iou_foreground == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert confusion.pixel_accuracy == pytest.approx(5 / 7)
    assert confusion.mean_accuracy == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    """DSRG's script drops classes without a hit from the mean, which flatters poor models."""
    truth = np.zeros((1, 4), dtype=np.uint8)
    assert filled(3, (truth, np.array([[0, 0, 1, 1]], dtype=np.uint8))).iou.tolist()[:2] == [0.5, 0.0]


def test_one_matrix_over_the_set_is_not_the_mean_of_images() -> None:
    whole = filled(2, (labels_of(1, 1, 1, 1), labels_of(1, 1, 1, 1)), (labels_of(1), labels_of(0)))
    assert whole.iou[1] == pytest.approx(4 / 5)


def test_shards_merge_to_the_whole() -> None:
    pairs = [(random_labels(seed, 5, 0.1), random_labels(seed + 50, 5)) for seed in range(4)]
    merged = filled(5, *pairs[::2]) + filled(5, *pairs[1::2])
    np.testing.assert_array_equal(merged.counts, filled(5, *pairs).counts)
    assert merged.counts.dtype == np.int64


@pytest.mark.parametrize(("truth", "prediction"), [(7, 0), (0, 7), (0, 255)])
def test_a_class_that_does_not_exist_is_an_error(truth: int, prediction: int) -> None:
    with pytest.raises(ValueError, match=r"holds class .*; allowed are 0\.\.6"):
        filled(7, (np.full((2, 2), truth, np.uint8), np.full((2, 2), prediction, np.uint8)))


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        filled(2, (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)))


def test_nothing_scored_is_nan() -> None:
    empty = filled(3, (np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8)))
    assert math.isnan(empty.mean_iou)
    assert math.isnan(empty.pixel_accuracy)


@pytest.mark.parametrize("seed", range(3))
def test_iou_agrees_with_torchmetrics(seed: int) -> None:
    truth, prediction = random_labels(seed, 21, 0.2), random_labels(seed + 9, 21)
    theirs = MulticlassJaccardIndex(21, ignore_index=255, average="none")
    expected = theirs(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    np.testing.assert_allclose(filled(21, (truth, prediction)).iou, expected.numpy(), atol=1e-6)


def square(top: int, left: int, side: int, index: int = 1, border: int = 0) -> np.ndarray:
    labels = np.zeros((60, 80), dtype=np.uint8)
    if border:
        labels[top - border : top + side + border, left - border : left + side + border] = 255
    labels[top + border : top + side - border, left + border : left + side - border] = index
    return labels


def test_boundary_of_a_perfect_prediction() -> None:
    scores = boundary_f_score(square(10, 10, 20), square(10, 10, 20), 3, 0.0075)
    np.testing.assert_allclose(scores, [1, 1, math.nan])


def test_boundary_within_and_beyond_the_tolerance() -> None:
    """A square shifted by 2 pixels of a 100 pixel diagonal."""
    truth, shifted = square(10, 10, 20), square(10, 12, 20)
    assert boundary_f_score(truth, shifted, 2, 0.02)[1] == 1
    # Of 76 pixels, 19 of the top, 19 of the bottom and the two ends of the inner side lie within a pixel.
    assert boundary_f_score(truth, shifted, 2, 0.01)[1] == pytest.approx(40 / 76)


def test_boundary_by_hand() -> None:
    """Truth changes after column 3, the prediction after column 5, within one pixel: nothing matches."""
    truth, prediction = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    truth[:, 4:], prediction[:, 6:] = 1, 1
    np.testing.assert_allclose(boundary_f_score(truth, prediction, 2, 0.1), [0, 0])
    # Half of the rows right: of the 7 predicted pixels (6 rows and the step's own edge) 3 match 3 of the 6 true ones.
    prediction[:3] = truth[:3]
    assert boundary_f_score(truth, prediction, 2, 0.01)[1] == pytest.approx(2 * (3 / 7) * (3 / 6) / (3 / 7 + 3 / 6))


def test_boundary_of_a_missed_or_invented_class_is_zero() -> None:
    scores = boundary_f_score(square(10, 10, 20, index=1), square(10, 10, 20, index=2), 4, 0.01)
    np.testing.assert_allclose(scores, [1, 0, 0, math.nan])


def test_a_class_that_fills_the_picture_has_no_boundary() -> None:
    assert np.isnan(boundary_f_score(np.ones((8, 8), np.uint8), np.ones((8, 8), np.uint8), 2, 0.01)).all()


def test_the_outline_runs_in_the_middle_of_the_unknown_band() -> None:
    truth = square(20, 20, 20, border=2)
    np.testing.assert_allclose(boundary_f_score(truth, square(20, 20, 20), 2, 0.015), [1, 1])
    assert boundary_f_score(truth, square(14, 14, 32), 2, 0.015)[1] == 0


def test_boundaries_deep_in_an_unknown_region_do_not_count() -> None:
    truth = np.zeros((60, 80), dtype=np.uint8)
    truth[:, 30:] = 255
    inside = np.zeros_like(truth)
    inside[20:40, 50:70] = 1
    assert np.isnan(boundary_f_score(truth, inside, 2, 0.01)).all()
    assert np.isnan(boundary_f_score(np.full_like(truth, 255), inside, 2, 0.01)).all()


def test_boundary_score_is_a_mean_of_images_then_of_classes() -> None:
    first, second = BoundaryScore(3, 0.01), BoundaryScore(3, 0.01)
    first.update(square(10, 10, 20, 1), square(10, 10, 20, 1))
    second.update(square(10, 10, 20, 1), square(10, 10, 20, 2))
    whole = first + second
    np.testing.assert_allclose(whole.per_class, [1, 0.5, 0])
    assert whole.mean == pytest.approx(0.5)
    assert whole.images.tolist() == [2, 2, 1]


def test_average_precision_by_hand() -> None:
    """Ranked: hit, miss, hit, miss; precision 1 at recall 1/2, 2/3 at recall 1."""
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    assert average_precision(scores, np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.full(4, 0.5), np.array([True, False, False, False])) == pytest.approx(1 / 4)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_agrees_with_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, positives = random.integers(0, 12, 80) / 12, random.random(80) < 0.3
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = [bool(positive) for score, positive in zip(scores, positives, strict=True) if score >= threshold]
        recall = sum(chosen) / sum(positives)
        area += (recall - recall_before) * sum(chosen) / len(chosen)
        recall_before = recall
    assert average_precision(scores, positives) == pytest.approx(area)


def test_tag_metrics_by_hand() -> None:
    scores = np.array([[0.9, 0.2, 0.6], [0.4, 0.7, 0.1]])
    tags = np.array([[True, False, False], [True, True, False]])
    found = tag_metrics(scores, tags, ["cat", "dog", "sheep"])
    assert found["average_precision"] == pytest.approx({"cat": 1, "dog": 1, "sheep": math.nan}, nan_ok=True)
    assert found["classes_without_positives"] == ["sheep"]
    assert found["mean_average_precision"] == 1
    assert found["f1_micro"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize(("scores", "names"), [(np.array([[0.5, 2.0]]), ["a", "b"]), (np.array([[0.5, 0.5]]), ["a"])])
def test_tag_metrics_refuses_what_it_cannot_score(scores: np.ndarray, names: list[str]) -> None:
    with pytest.raises(ValueError, match="probabilities|do not agree"):
        tag_metrics(scores, np.array([[True, False]]), names)


def test_rounded_is_json() -> None:
    assert rounded({"a": math.nan, "b": [np.float64(0.123456)], "c": np.int64(3), "d": "x"}) == {
        "a": None,
        "b": [0.1235],
        "c": 3,
        "d": "x",
    }
