"""What a share of the images adds up to, as files in memory: for shares that other processes counted, at other times.

Counts are arrays of numpy, which are read without unpickling; predictions are the PNGs that they are.
"""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segcore.config.labels import EvaluationParams
from segcore.evaluation.metrics import BoundaryScore, ConfusionMatrix
from segcore.evaluation.per_image import ImageCounts
from segcore.evaluation.scoring import ScoredImage, Scores

COUNTS, REFINED, IMAGES = "counts.npz", "counts_crf.npz", "images.npz"


def packed(scores: Scores) -> dict[str, bytes]:
    """The scores by file name; `unpacked` gives the same back."""
    images = scores.images
    arrays: dict[str, Any] = {
        "ids": np.array([image.image_id for image in images], dtype=np.str_),
        "mean_iou": np.array([image.mean_iou for image in images], dtype=np.float64),
    }
    if images and images[0].found is not None:
        arrays |= {"found": np.stack([image.found for image in images if image.found is not None])}
        arrays |= {"tags": np.stack([image.tags for image in images if image.tags is not None])}
    files = {COUNTS: _counts(scores), IMAGES: _npz(arrays)}
    files |= {REFINED: _counts(scores.with_crf)} if scores.with_crf is not None else {}
    return files | {f"{place}.png": image.prediction for place, image in enumerate(images)}


def unpacked(files: Mapping[str, bytes], n_classes: int, params: EvaluationParams) -> Scores:
    """The scores that `packed` made files of.

    Raises:
        KeyError, ValueError, OSError: they are no such files.
    """
    arrays = _arrays(files[IMAGES])
    with_tags = "found" in arrays
    images = [
        ScoredImage(
            image_id,
            float(arrays["mean_iou"][place]),
            files[f"{place}.png"],
            arrays["found"][place] if with_tags else None,
            arrays["tags"][place] if with_tags else None,
        )
        for place, image_id in enumerate(arrays["ids"].tolist())
    ]
    scores = _scores(files[COUNTS], n_classes, params)
    scores.images = images
    scores.with_crf = _scores(files[REFINED], n_classes, params) if REFINED in files else None
    return scores


def _counts(scores: Scores) -> bytes:
    per_image = scores.per_image
    return _npz(
        {
            "confusion": scores.confusion.counts,
            "boundary_sums": scores.boundary.sums,
            "boundary_images": scores.boundary.images,
            "ids": np.array([image_id for counts in per_image for image_id in counts.ids], dtype=np.str_),
            "per_image": np.concatenate([counts.counts for counts in per_image]),
        }
    )


def _scores(content: bytes, n_classes: int, params: EvaluationParams) -> Scores:
    arrays = _arrays(content)
    confusion, boundary = ConfusionMatrix(n_classes), BoundaryScore(n_classes, params.boundary_tolerance)
    if arrays["confusion"].shape != confusion.counts.shape:
        raise ValueError(f"counts of shape {arrays['confusion'].shape}, not of {n_classes} classes")
    confusion.counts += arrays["confusion"]
    boundary.sums += arrays["boundary_sums"]
    boundary.images += arrays["boundary_images"]
    per_image = [
        ImageCounts((image_id,), counts[None])
        for image_id, counts in zip(arrays["ids"].tolist(), arrays["per_image"], strict=True)
    ]
    return Scores(confusion, boundary, per_image, [])


def _npz(arrays: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def summed(shares: Iterable[Scores]) -> Scores:
    """The scores of many shares together, of which there is at least one; they go into the first."""
    rest = iter(shares)
    total = next(rest)
    for share in rest:
        _add(total, share)
        if total.with_crf is not None and share.with_crf is not None:
            _add(total.with_crf, share.with_crf)
    return total


def _add(total: Scores, share: Scores) -> None:
    """Add to what is there: with `+`, thousands of shares would be copied thousands of times."""
    total.confusion += share.confusion
    total.boundary += share.boundary
    total.per_image += share.per_image
    total.images += share.images
