"""What each image adds: its sum is the confusion matrix, and any choice of images can be scored by it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from segcore.config import settings
from segcore.errors import Problem
from segcore.evaluation import per_image, scoring
from segcore.evaluation.metrics import ConfusionMatrix
from segcore.evaluation.per_image import ImageCounts
from segcore.evaluation.reading import Pictures
from tests.devkit import PARAMS
from tests.invented import NAMES, predictor, scenes

K = len(NAMES)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[scoring.Scores, Path]:
    """Twelve images in two shares, with what a CRF might have made of them, and the files of the result."""
    folder = tmp_path_factory.mktemp("scored")
    records = scenes(folder / "scenes", 12)
    rough, fine = (predictor(records, noise) for noise in (0.9, 0.2))

    def both(images: Pictures) -> list[scoring.Prediction]:
        return [scoring.Prediction(a.labels, b.labels) for a, b in zip(rough(images), fine(images), strict=True)]

    params = settings.load(PARAMS).evaluation
    shares = [scoring.score(some, both, K, params, True) for some in (records[:7], records[7:])]
    scores = shares[1] + shares[0]
    scoring.write_results(scores, NAMES, folder / "out")
    return scores, folder / "out"


def test_the_sum_over_images_is_the_confusion_matrix(scored: tuple[scoring.Scores, Path]) -> None:
    scores, folder = scored
    assert scores.with_crf is not None
    for with_crf, confusion in ((False, scores.confusion), (True, scores.with_crf.confusion)):
        images = per_image.read(folder, NAMES, with_crf)
        hits, truth, predicted = images.counts.sum(0)
        np.testing.assert_array_equal(hits, np.diag(confusion.counts))
        np.testing.assert_array_equal(truth, confusion.counts.sum(1))
        np.testing.assert_array_equal(predicted, confusion.counts.sum(0))
        assert images.mean_iou == pytest.approx(confusion.mean_iou, abs=1e-12)
        assert images.ids == tuple(sorted(image.image_id for image in scores.images))
    assert scores.with_crf.confusion.mean_iou > scores.confusion.mean_iou


def test_each_image_is_counted_alone(scored: tuple[scoring.Scores, Path]) -> None:
    scores, folder = scored
    images = per_image.read(folder, NAMES)
    own = per_image.mean_iou(images.counts)
    assert dict(zip(images.ids, own.tolist(), strict=True)) == pytest.approx(
        {image.image_id: image.mean_iou for image in scores.images}
    )


def test_the_table_is_small_and_says_what_it_lacks(scored: tuple[scoring.Scores, Path], tmp_path: Path) -> None:
    _, folder = scored
    table = pd.read_parquet(folder / per_image.FILE)
    assert len(table) < 12 * K
    table.drop(columns="predicted_crf").to_parquet(tmp_path / per_image.FILE)
    with pytest.raises(Problem, match="it lacks predicted_crf"):
        per_image.read(tmp_path, NAMES, with_crf=True)
    with pytest.raises(Problem, match="of other classes"):
        per_image.read(folder, ["background", "zebra"])
    (tmp_path / per_image.FILE).write_bytes(b"PAR1 no more")
    with pytest.raises(Problem, match=r"images.parquet cannot be read"):
        per_image.read(tmp_path, NAMES)


def test_an_image_without_a_known_pixel_is_an_image_still(tmp_path: Path) -> None:
    empty = ImageCounts.of("b", ConfusionMatrix(2))
    full = ImageCounts.of("a", ConfusionMatrix(2, np.array([[3, 1], [0, 4]], dtype=np.int64)))
    per_image.write(tmp_path, [empty, full], None, ["background", "cat"])
    read = per_image.read(tmp_path, ["background", "cat"])
    assert read.ids == ("a", "b")
    np.testing.assert_array_equal(read.counts, [[[3, 4], [4, 4], [3, 5]], [[0, 0], [0, 0], [0, 0]]])
    assert read.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)
