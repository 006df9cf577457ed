"""Score one system on the validation images: metrics, tables for `dvc plots`, and panels to look at.

Predictions are compared with the official labels at the images' own size. Under torchrun every process scores a share
of the images, and the first one writes what all of them counted.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64, UInt8
from PIL import Image
from rich.progress import track

from segcore.cli import command, console, provenance
from segcore.config.sections import EvaluationParams
from segcore.data.manifest import Record, read_class_names, read_manifest
from segcore.data.pictures import IGNORE, read_image, read_labels
from segcore.errors import Problem, Problems
from segcore.evaluation import inference
from segcore.evaluation.metrics import BoundaryScore, ConfusionMatrix, rounded
from segcore.files import write_atomically
from segcore.models.systems import load_system
from segcore.processes import Runtime
from segcore.reporting import panels

Labels = UInt8[np.ndarray, "H W"]

ROWS_PER_CLASS = 100
"""Rows of confusion.csv for each true class: what the plot shows is their proportions, in per cent."""


@dataclass(frozen=True)
class Prediction:
    """The class of each pixel of an image, and what a CRF made of it, if one was asked for."""

    labels: Labels
    refined: Labels | None = None


Predict = Callable[[list[UInt8[np.ndarray, "H W 3"]]], list[Prediction]]


@dataclass(frozen=True)
class ScoredImage:
    """One image's own mean IoU (of the classes that occur) and its prediction, as the bytes of a PNG."""

    image_id: str
    mean_iou: float
    prediction: bytes


@dataclass
class Scores:
    """What a share of the images adds up to."""

    confusion: ConfusionMatrix
    boundary: BoundaryScore
    images: list[ScoredImage]
    with_crf: "Scores | None" = None
    """The same of what a CRF made of the predictions; without its images."""

    def __add__(self, other: "Scores") -> "Scores":
        with_crf = self.with_crf + other.with_crf if self.with_crf and other.with_crf else None
        images = self.images + other.images
        return Scores(self.confusion + other.confusion, self.boundary + other.boundary, images, with_crf)


def main(
    *,
    system: str,
    manifest: Path,
    classes: Path,
    split: Path,
    model: Path,
    out: Path,
    params: Path = Path("params.yaml"),
) -> None:
    """Score the system in the folder `model` on the images of split/val.txt."""
    settings = command.settings(params)
    command.chosen(system, settings.systems, "system")
    with provenance.timed(f"evaluate@{system}"):
        names: list[str] = read_class_names(classes)
        records = validation_records(read_manifest(manifest), split / "val.txt")
        runtime = Runtime()
        trained, card = load_system(model, runtime.device)
        if (known := card["classifier"]["tags"]) != names[1:]:
            raise Problem(f"{model} was trained for {known}, but {classes} has {names[1:]}; train it again")

        how = settings.evaluation

        def predict(images: list[UInt8[np.ndarray, "H W 3"]]) -> list[Prediction]:
            maps = inference.score_maps(trained, images, card["input_size"], how.scales, how.flip, settings.crops)
            crf = how.crf
            refined = [crf and inference.refined(trained, m, im, crf) for m, im in zip(maps, images, strict=True)]
            return [Prediction(inference.winners(m), r) for m, r in zip(maps, refined, strict=True)]

        mine = runtime.shard(records, settings.evaluation.batch_size)
        shares = runtime.gather(score(mine, predict, len(names), settings.evaluation))
        if runtime.is_main:
            scores = sum(shares[1:], start=shares[0])
            write_results(scores, names, out)
            write_panels(scores.images, {r.image_id: r for r in records}, names, settings.evaluation.panels, out)
            console.say(f"{system}: mIoU {scores.confusion.mean_iou:.4f} on {len(scores.images)} images, in {out}")


def validation_records(manifest: dict[str, Record], val: Path) -> list[Record]:
    """The images to score, in the order of the list.

    Raises:
        Problems: an image is not in the manifest or has no labels to compare with; all of them are listed.
    """
    ids = val.read_text().split()
    problems = [
        f"{image_id}: not in the manifest; run `dvc repro split`" for image_id in ids if image_id not in manifest
    ]
    problems += [
        f"{image_id}: no labels to compare with; add its mask or take it off the validation list"
        for image_id in ids
        if image_id in manifest and manifest[image_id].labels is None
    ]
    if problems:
        raise Problems(f"{len(problems)} images of {val} cannot be scored:", problems)
    if not ids:
        raise Problem(f"{val} names no images; run `dvc repro split`")
    return [manifest[image_id] for image_id in ids]


def score(records: Sequence[Record], predict: Predict, n_classes: int, params: EvaluationParams) -> Scores:
    """Predict and compare, a batch at a time."""

    def empty() -> Scores:
        return Scores(ConfusionMatrix(n_classes), BoundaryScore(n_classes, params.boundary_tolerance), [])

    scores = empty()
    scores.with_crf = empty() if params.crf else None
    for batch in _batches(records, params.batch_size):
        predictions = predict([read_image(record.image) for record in batch])
        for record, prediction in zip(batch, predictions, strict=True):
            truth = _read_truth(record, n_classes)
            alone = ConfusionMatrix(n_classes)
            alone.update(truth, prediction.labels)
            scores.confusion += alone
            scores.boundary.update(truth, prediction.labels)
            scores.images.append(ScoredImage(record.image_id, alone.mean_iou, _png(prediction.labels)))
            if scores.with_crf and prediction.refined is not None:
                scores.with_crf.confusion.update(truth, prediction.refined)
                scores.with_crf.boundary.update(truth, prediction.refined)
    return scores


def _batches(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    quiet = not (console.is_main_process() and console.console.is_terminal)
    for start in track(range(0, len(records), size), "scoring", console=console.console, disable=quiet, transient=True):
        yield records[start : start + size]


def _read_truth(record: Record, n_classes: int) -> Labels:
    assert record.labels is not None
    truth = read_labels(record.labels)
    if truth.shape != (record.height, record.width):
        raise Problem(
            f"{record.labels}: {truth.shape[1]}x{truth.shape[0]} pixels, but its image has "
            f"{record.width}x{record.height}; run `dvc repro prepare`, which checks all files"
        )
    if (beyond := truth[(truth >= n_classes) & (truth != IGNORE)]).size:
        raise Problem(f"{record.labels}: found label {beyond[0]}; allowed are 0..{n_classes - 1} and {IGNORE}")
    return truth


def _png(labels: Labels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(labels).save(file, format="PNG")
    return file.getvalue()


def write_results(scores: Scores, names: Sequence[str], out: Path) -> None:
    """metrics.json, per_class.csv, confusion.csv (for `dvc plots`) and confusion_counts.csv (exact)."""
    out.mkdir(parents=True, exist_ok=True)
    confusion, boundary = scores.confusion, scores.boundary
    metrics = summary(scores)
    metrics |= {"images": len(scores.images), "iou": dict(zip(names, confusion.iou.tolist(), strict=True))}
    if scores.with_crf:
        metrics["with_crf"] = summary(scores.with_crf)
    per_class = pd.DataFrame(
        {"class": names, "iou": confusion.iou, "accuracy": confusion.accuracy, "boundary_f": boundary.per_class}
    )
    counts = pd.DataFrame(confusion.counts, index=pd.Index(names, name="actual"), columns=list(names))
    files: dict[str, Any] = {
        "metrics.json": json.dumps(rounded(metrics), indent=2) + "\n",
        "per_class.csv": per_class.round(4).to_csv(index=False),
        "confusion.csv": _confusion_rows(confusion.counts, names).to_csv(index=False),
        "confusion_counts.csv": counts.to_csv(),
    }
    for name, text in files.items():
        write_atomically(out / name, text.encode())


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


def write_panels(
    images: Sequence[ScoredImage], records: dict[str, Record], names: Sequence[str], n_panels: int, out: Path
) -> None:
    """out/panels/: image, truth, prediction and errors of the best, median and worst images."""
    folder, new = out / "panels", out / ".panels.partial"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for number, (kind, scored) in enumerate(chosen(images, n_panels)):
            record = records[scored.image_id]
            prediction = np.asarray(Image.open(io.BytesIO(scored.prediction)))
            title = f"{kind}: {scored.image_id}, mIoU {scored.mean_iou:.3f} of its classes"
            page = panels.panel(read_image(record.image), _read_truth(record, len(names)), prediction, names, title)
            page.save(new / f"{number:02d}_{kind}_{scored.image_id.replace('/', '_')}.png", format="PNG", optimize=True)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def chosen(images: Sequence[ScoredImage], n_panels: int) -> list[tuple[str, ScoredImage]]:
    """A third each of the best, those around the median, and the worst; none twice, fewer where there are fewer."""
    ranked = sorted((i for i in images if not np.isnan(i.mean_iou)), key=lambda i: (-i.mean_iou, i.image_id))
    n_best, n_median, n_worst = ((n_panels + 2 - part) // 3 for part in range(3))
    best, rest = ranked[:n_best], ranked[n_best:]
    worst = rest[len(rest) - min(n_worst, len(rest)) :]
    between = rest[: len(rest) - len(worst)]
    start = max(0, (len(ranked) - n_median) // 2 - len(best))
    start = min(start, max(0, len(between) - n_median))
    median = between[start : start + n_median]
    return [(kind, i) for kind, some in (("best", best), ("median", median), ("worst", worst)) for i in some]


if __name__ == "__main__":
    command.start(main)
