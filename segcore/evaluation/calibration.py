"""Settings that make labels of maps, chosen on a few masks.

Every combination of an entry's candidates is tried on the images of S and scored by the mean IoU of its labels over all
of them. What nets learn from masks is judged on images that it did not learn from: S is divided
into folds, and each is labelled with nets of the others. The counts of all folds are added up before the IoU is taken,
as a class has a handful of images, of which a fold may hold none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from segcore.config.labels import (
    BackgroundCandidates,
    CalibratedLabels,
    Candidates,
    Constant,
    ConstantCandidates,
    Objects,
)
from segcore.config.refinements import (
    AffinityCandidates,
    AffinityParams,
    LabelCRFCandidates,
    LabelCRFParams,
    NoRefinement,
    PAMRCandidates,
    PAMRParams,
    RefinementCandidates,
)
from segcore.data.geometry import Grid, resized, resized_labels
from segcore.evaluation.metrics import ConfusionMatrix
from segcore.evaluation.per_image import ImageCounts, mean_iou
from segcore.evaluation.quality import Quality
from segcore.localisation.deciding import Found, Way, decided
from segcore.localisation.refinement import Learned, Refinement, at_pixels
from segcore.seeds import derived_seed

LONG_SIDE = 200
"""Pixels of the long side of the pictures and masks that settings are compared on, for a sixth of the time."""


def refinements(candidates: Sequence[RefinementCandidates]) -> Iterator[Refinement]:
    """Every setting, one after the other."""
    for some in candidates:
        values: dict[str, Any] = some.model_dump()
        if isinstance(some, NoRefinement):
            yield some
        elif isinstance(some, PAMRCandidates):
            yield from (PAMRParams.model_validate(values | {"iterations": n}) for n in some.iterations)
        elif isinstance(some, LabelCRFCandidates):
            yield from (LabelCRFParams.model_validate(values | {"confidence": c}) for c in some.confidence)
        elif isinstance(some, AffinityCandidates):
            yield from (
                AffinityParams.model_validate(values | {"beta": b, "steps": n}) for b in some.beta for n in some.steps
            )


def ways(candidates: Candidates) -> list[Way]:
    """Every combination, those of one aggregation and refinement side by side."""
    return [
        Way(aggregation, background.score, background, refinement)
        for aggregation in candidates.aggregations
        for refinement in refinements(candidates.refinements)
        for background in backgrounds(candidates.backgrounds)
    ]


def backgrounds(candidates: Sequence[BackgroundCandidates]) -> Iterator[Constant | Objects]:
    """Every setting, one after the other."""
    for some in candidates:
        if isinstance(some, ConstantCandidates):
            yield from (Constant(kind="constant", score=score) for score in some.score)
        else:
            pairs = ((share, score) for share in some.share for score in some.score)
            yield from (Objects(kind="objects", net=some.net, share=share, score=score) for share, score in pairs)


def shuffled(ids: Sequence[str], seed: int) -> list[int]:
    """The places of images in an order that is a function of the seed and the ids."""
    return sorted(range(len(ids)), key=lambda place: derived_seed(seed, "fold", ids[place]))


def folds(ids: Sequence[str], n: int, seed: int) -> Int64[np.ndarray, " ids"]:
    """The fold of each image, as equal in size as can be; a function of the seed and the ids, not of their order.

    The first few of `shuffled` lie in as many folds, so that no choice of them is in one fold alone.
    """
    found = np.empty(len(ids), dtype=np.int64)
    found[shuffled(ids, seed)] = np.arange(len(ids)) % n
    return found


def counted(
    found: Found,
    candidates: Sequence[Way],
    grid: Grid,
    picture: UInt8[np.ndarray, "H W 3"],
    truth: UInt8[np.ndarray, "H W"],
    learned: Learned,
    n_classes: int,
) -> Int64[np.ndarray, "ways 3 K"]:
    """What one image adds to the score of each way; what is refined is so once for all scores of the background."""
    scale = min(1.0, LONG_SIDE / max(truth.shape))
    height, width = (max(1, round(side * scale)) for side in truth.shape)
    small, mask = resized(picture, width, height), resized_labels(truth, width, height)
    kept: tuple[Any, Any] = (None, None)
    counts = []
    for way in candidates:
        key = (way.aggregation, way.refinement)
        if kept[0] != key:
            kept = key, at_pixels(found.maps.scores(way.aggregation), grid, way.refinement, small, learned)
        confusion: ConfusionMatrix = Quality(n_classes)
        confusion.update(mask, decided(kept[1], found, way, grid, small))
        counts.append(ImageCounts.of("", confusion).counts[0])
    return np.stack(counts)


@dataclass(frozen=True)
class Choice:
    """What was chosen, and by what."""

    way: Way
    told: dict[str, Any]
    """What `calibration.json` holds."""


def choose(
    candidates: Sequence[Way],
    counts: Int64[np.ndarray, "images ways 3 K"],
    fold: Int64[np.ndarray, " images"],
    entry: CalibratedLabels,
) -> Choice:
    """The way of the greatest mean IoU over all images, the first of equals.

    Also told: what to expect on other images, where each fold is scored by the way that was best on the others.
    """
    scores = mean_iou(counts.sum(0))
    best = int(scores.argmax())
    held_out = np.zeros(counts.shape[2:], dtype=np.int64)
    for number in np.unique(fold):
        apart = fold == number
        elsewhere = int(mean_iou(counts[~apart].sum(0)).argmax())
        held_out += counts[apart, elsewhere].sum(0)
    told = {
        "calibrate": entry.calibrate,
        "images": len(counts),
        "folds": len(np.unique(fold)),
        "chosen": plain(candidates[best]),
        "mean_iou": round(float(scores[best]), 4),
        "mean_iou_of_folds_apart": round(float(mean_iou(held_out)), 4),
        "tried": [
            plain(way) | {"mean_iou": round(float(score), 4)} for way, score in zip(candidates, scores, strict=True)
        ],
    }
    return Choice(candidates[best], told)


def plain(way: Way) -> dict[str, Any]:
    """A way as JSON can hold it."""
    return {
        "aggregation": way.aggregation.model_dump(mode="json"),
        "theta": way.theta,
        "background": way.background.model_dump(mode="json"),
        "refinement": way.refinement.model_dump(mode="json"),
    }
