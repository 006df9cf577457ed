"""A system's predictions against the masks of a set of images: counted in shards, merged, written as tables."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int64, UInt8

from segcore.config.labels import EvaluationParams
from segcore.data.manifest import Record, read_ids
from segcore.data.pictures import IGNORE, labels_png, read_labels
from segcore.errors import Problem, Problems
from segcore.evaluation import per_image, predictions
from segcore.evaluation.metrics import BoundaryScore, ConfusionMatrix
from segcore.evaluation.numbers import rounded
from segcore.evaluation.per_image import TAGS_ALONE, ImageCounts
from segcore.evaluation.reading import Pictures
from segcore.evaluation.tags import tag_metrics
from segcore.files import as_cell, write_atomically

Labels = UInt8[np.ndarray, "H W"]

ROWS_PER_CLASS = 100
"""Rows of confusion.csv for each true class: what the plot shows is their proportions, in per cent."""


@dataclass(frozen=True)
class Prediction:
    """The class of each pixel of an image, and what a CRF made of it, if one was asked for.

    `probabilities` are those of the tags 1..L, where the image has no mask to compare the labels with.
    """

    labels: Labels
    refined: Labels | None = None
    probabilities: Float[np.ndarray, " L"] | None = None


Predict = Callable[[Pictures], Iterable[Prediction]]


@dataclass(frozen=True)
class ScoredImage:
    """One image's own mean IoU (of the classes that occur) and its prediction, as the bytes of a palette PNG.

    Without a mask the IoU is nan, and `found` and `tags` are the probabilities of tags and which are true.
    """

    image_id: str
    mean_iou: float
    prediction: bytes
    found: Float[np.ndarray, " L"] | None = None
    tags: Bool[np.ndarray, " L"] | None = None


@dataclass
class Scores:
    """What a share of the images adds up to."""

    confusion: ConfusionMatrix
    boundary: BoundaryScore
    per_image: list[ImageCounts]
    images: list[ScoredImage]
    with_crf: "Scores | None" = None
    """The same of what a CRF made of the predictions; without its images."""

    def __add__(self, other: "Scores") -> "Scores":
        with_crf = self.with_crf + other.with_crf if self.with_crf and other.with_crf else None
        return Scores(
            self.confusion + other.confusion,
            self.boundary + other.boundary,
            self.per_image + other.per_image,
            self.images + other.images,
            with_crf,
        )

    def count(self, image_id: str, truth: Labels, prediction: Labels) -> ConfusionMatrix:
        """Add an image; gives its own counts."""
        alone = ConfusionMatrix(self.confusion.n_classes)
        alone.update(truth, prediction)
        self.confusion += alone
        self.boundary.update(truth, prediction)
        self.per_image.append(ImageCounts.of(image_id, alone))
        return alone


def validation_records(manifest: Mapping[str, Record], val: Path) -> list[Record]:
    """The images to score, in the order of the list; where none of them has labels, tags alone are scored.

    Raises:
        Problems: an image is not in the manifest, or has no labels to compare with while others have; all are listed.
    """
    ids = read_ids(val, made_by="split")
    if ids and all(image_id in manifest and manifest[image_id].labels is None for image_id in ids):
        return [manifest[image_id] for image_id in ids]
    problems = [f"{image_id}: not in the manifest" for image_id in ids if image_id not in manifest]
    problems += [
        f"{image_id}: no labels to compare with; add its mask or take it off the validation list"
        for image_id in ids
        if image_id in manifest and manifest[image_id].labels is None
    ]
    if problems:
        raise Problems(f"{len(problems)} images of {val} cannot be scored:", problems, made_by="split")
    if not ids:
        raise Problem(f"{val} names no images", made_by="split")
    if not any(manifest[image_id].label_classes for image_id in ids):
        raise Problem(
            f"no mask of the {len(ids)} images of {val} shows a class, so there is nothing to measure; "
            f"{IGNORE} means unknown: if it was meant as a class, write the index of that class instead",
            made_by="prepare",
        )
    return [manifest[image_id] for image_id in ids]


def score(
    records: Sequence[Record],
    predict: Predict,
    n_classes: int,
    params: EvaluationParams,
    with_crf: bool,
    watched: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Scores:
    """Predict and compare, a batch at a time; with a CRF, what it refined is compared too.

    `watched` may show the first place of each batch as it is dealt out.
    """

    def empty() -> Scores:
        boundary = BoundaryScore(n_classes, params.boundary_tolerance)
        return Scores(ConfusionMatrix(n_classes), boundary, [], [])

    scores = empty()
    scores.with_crf = empty() if with_crf else None
    for first in watched(range(0, len(records), params.batch_size)):
        batch = records[first : first + params.batch_size]
        predictions = predict(Pictures([record.image for record in batch]))
        for record, prediction in zip(batch, predictions, strict=True):
            if record.labels is None:
                scores.images.append(_by_tags(record, prediction, n_classes))
                scores.per_image.append(ImageCounts.of(record.image_id, ConfusionMatrix(n_classes)))
                continue
            truth = read_truth(record, n_classes)
            alone = scores.count(record.image_id, truth, prediction.labels)
            scores.images.append(ScoredImage(record.image_id, alone.mean_iou, labels_png(prediction.labels)))
            if scores.with_crf and prediction.refined is not None:
                scores.with_crf.count(record.image_id, truth, prediction.refined)
    return scores


def _by_tags(record: Record, prediction: Prediction, n_classes: int) -> ScoredImage:
    tags = np.isin(np.arange(1, n_classes), record.tags)
    assert prediction.probabilities is not None
    found = prediction.probabilities.clip(0, 1)  # of which rounding may have made a little more
    return ScoredImage(record.image_id, math.nan, labels_png(prediction.labels), found, tags)


def read_truth(record: Record, n_classes: int) -> Labels:
    """The labels of an image at its own size; all unknown where it has none."""
    if record.labels is None:
        return np.full((record.height, record.width), IGNORE, dtype=np.uint8)
    truth = read_labels(record.labels)
    if truth.shape != (record.height, record.width):
        raise Problem(
            f"{record.labels}: {truth.shape[1]}x{truth.shape[0]} pixels, but its image has "
            f"{record.width}x{record.height}; prepare the data set anew: that checks all files",
            made_by="prepare",
        )
    if (beyond := truth[(truth >= n_classes) & (truth != IGNORE)]).size:
        raise Problem(f"{record.labels}: found label {beyond[0]}; allowed are 0..{n_classes - 1} and {IGNORE}")
    return truth


def write_results(scores: Scores, names: Sequence[str], out: Path) -> None:
    """metrics.json, per_class.csv, confusion.csv (for `dvc plots`), confusion_counts.csv (exact), images.parquet, and
    predictions.zip (without a CRF)."""
    out.mkdir(parents=True, exist_ok=True)
    confusion, boundary = scores.confusion, scores.boundary
    metrics = summary(scores)
    metrics |= {"images": len(scores.images), "iou": dict(zip(names, confusion.iou.tolist(), strict=True))}
    if (by_tags := tag_scores(scores, names)) is not None:
        metrics |= {"measured": TAGS_ALONE, "tags": by_tags}
    if scores.with_crf:
        metrics["with_crf"] = summary(scores.with_crf)
    cells = [as_cell(name) for name in names]
    per_class = pd.DataFrame(
        {"class": cells, "iou": confusion.iou, "accuracy": confusion.accuracy, "boundary_f": boundary.per_class}
    )
    counts = pd.DataFrame(confusion.counts, index=pd.Index(cells, name="actual"), columns=cells)
    files: dict[str, Any] = {
        "metrics.json": json.dumps(rounded(metrics), indent=2) + "\n",
        "per_class.csv": per_class.round(4).to_csv(index=False),
        "confusion.csv": _confusion_rows(confusion.counts, cells).to_csv(index=False),
        "confusion_counts.csv": counts.to_csv(),
    }
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    per_image.write(out, scores.per_image, scores.with_crf.per_image if scores.with_crf else None, names)
    predictions.write(out, {image.image_id: image.prediction for image in scores.images})


def tag_scores(scores: Scores, names: Sequence[str]) -> dict[str, Any] | None:
    """How well the tags of images without masks are found (see `tag_metrics`); None where there are masks."""
    found = [image.found for image in scores.images if image.found is not None]
    true = [image.tags for image in scores.images if image.tags is not None]
    return tag_metrics(np.stack(found), np.stack(true), names[1:]) if found else None


def summary(scores: Scores) -> dict[str, Any]:
    """The scores over all classes; fractions."""
    confusion = scores.confusion
    return {
        "mean_iou": confusion.mean_iou,
        "mean_iou_foreground": confusion.mean_iou_foreground,
        "pixel_accuracy": confusion.pixel_accuracy,
        "mean_accuracy": confusion.mean_accuracy,
        "boundary_f": scores.boundary.mean,
    }


def _confusion_rows(counts: Int64[np.ndarray, "K K"], names: Sequence[str]) -> pd.DataFrame:
    """One row per hundredth of each true class, as `confusion_normalized` counts rows; rounded by largest remainder."""
    rows: list[tuple[str, str]] = []
    for actual, line in zip(names, counts, strict=True):
        if not line.sum():
            continue
        exact = line / line.sum() * ROWS_PER_CLASS
        whole = np.floor(exact).astype(np.int64)
        order = np.argsort(-(exact - whole), kind="stable")
        whole[order[: ROWS_PER_CLASS - whole.sum()]] += 1
        rows += [(actual, predicted) for predicted, times in zip(names, whole, strict=True) for _ in range(times)]
    return pd.DataFrame(rows, columns=["actual", "predicted"])


def chosen(images: Sequence[ScoredImage], n_panels: int) -> list[tuple[str, ScoredImage]]:
    """A third each of the best, those around the median, and the worst; none twice, fewer where there are fewer.

    Of images that have no score, some, spread over them.
    """
    if images and all(np.isnan(image.mean_iou) for image in images):
        some = sorted(images, key=lambda image: image.image_id)
        places = np.linspace(0, len(some) - 1, min(n_panels, len(some)))
        return [("unmeasured", some[round(place)]) for place in places]
    ranked = sorted((i for i in images if not np.isnan(i.mean_iou)), key=lambda i: (-i.mean_iou, i.image_id))
    n_best, n_median, n_worst = ((n_panels + 2 - part) // 3 for part in range(3))
    best, rest = ranked[:n_best], ranked[n_best:]
    worst = rest[len(rest) - min(n_worst, len(rest)) :]
    between = rest[: len(rest) - len(worst)]
    start = max(0, (len(ranked) - n_median) // 2 - len(best))
    start = min(start, max(0, len(between) - n_median))
    median = between[start : start + n_median]
    return [(kind, i) for kind, some in (("best", best), ("median", median), ("worst", worst)) for i in some]
