"""A tree of invented results, as the stages before the report leave it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from segcore import made_of
from segcore.config import fingerprints, plan, reading
from segcore.config.settings import Settings, load
from segcore.data.manifest import Record, write_manifest
from segcore.data.pictures import IGNORE, write_labels
from segcore.evaluation import scoring
from segcore.evaluation.numbers import rounded
from segcore.evaluation.quality import Quality
from segcore.evaluation.tags import tag_metrics
from segcore.files import fingerprint
from segcore.reporting import prediction_panels
from tests.devkit import PARAMS, make_record

SHAPES = ["disc", "ring", "square", "frame", "triangle", "star", "cross", "heart", "moon", "arrow"]
NAMES = ["background", *SHAPES]
SYSTEMS = list(reading.read(PARAMS)["systems"])
"""The rows of the table, the best one first."""


def scenes(folder: Path, count: int) -> list[Record]:
    """Pictures of discs with indexed labels in a VOC-like border of unknown pixels."""
    random = np.random.default_rng(7)
    folder.mkdir(parents=True)
    records = []
    for number in range(count):
        width, height = (96, 72) if number % 3 else (64, 96)
        image = Image.fromarray(random.integers(90, 200, (height, width, 3)).astype(np.uint8))
        labels = Image.new("L", (width, height))
        tags = sorted(int(tag) for tag in random.choice(range(1, len(NAMES)), 2, replace=False))
        for tag in tags:
            x, y, r = (int(value) for value in random.integers((20, 20, 12), (width - 15, height - 15, 24)))
            box = (x - r, y - r, x + r, y + r)
            ImageDraw.Draw(image).ellipse(box, fill=tuple(random.integers(0, 256, 3).tolist()))
            ImageDraw.Draw(labels).ellipse(box, fill=tag, outline=255, width=2)
        image.save(folder / f"{number:03d}.jpg", quality=90)
        write_labels(folder / f"{number:03d}.png", np.asarray(labels))
        shown = tuple(tag for tag in tags if (np.asarray(labels) == tag).any())
        paths = folder / f"{number:03d}.jpg", folder / f"{number:03d}.png"
        records.append(make_record(f"{number:03d}", *paths, width, height, shown, "val"))
    return records


def predictor(records: list[Record], noise: float):
    """Predictions of some quality: the truth moved, with objects missed or taken for others."""
    random = np.random.default_rng(int(noise * 100))
    order = iter(records)

    def predict(images: Iterable[np.ndarray]) -> list[scoring.Prediction]:
        predictions = []
        for image in images:
            record = next(order)
            assert isinstance(record.labels, Path)
            labels = np.asarray(Image.open(record.labels)).copy()
            assert labels.shape == image.shape[:2]
            labels[labels == 255] = 0
            for tag in record.tags:
                if random.random() < noise:
                    labels[labels == tag] = random.choice([0, 0, *range(1, len(NAMES))])
            moved = np.roll(labels, tuple(int(8 * noise * d) for d in random.normal(size=2)), (0, 1))
            predictions.append(scoring.Prediction(moved))
        return predictions

    return predict


def write_curves(folder: Path, steps: int, terms: dict[str, float], seed: int) -> None:
    random = np.random.default_rng(seed)
    for name, start in terms.items():
        file = folder / f"{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        step = np.arange(1, steps + 1)
        values = start * (0.05 + np.exp(-step / steps * 4)) * random.lognormal(0, 0.25, steps)
        pd.DataFrame({"step": step, file.stem: values}).to_csv(file, sep="\t", index=False)


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def quality(known: float, right: float) -> dict[str, Any]:
    """What is told of pseudo-labels that know this share of the pixels, and this share of those rightly."""
    random = np.random.default_rng(5)
    measured = Quality(len(NAMES))
    truth = random.integers(0, len(NAMES), (90, 90)).astype(np.uint8)
    labels = np.where(random.random(truth.shape) < right, truth, 0).astype(np.uint8)
    labels[random.random(truth.shape) > known] = IGNORE
    measured.update(truth, labels)
    return measured.summary(NAMES)


DATA_SET = "of_invented_data"


def origin(data: Path, settings: Settings, path: str, images: str | None = None) -> dict[str, str]:
    """What is made of the invented data says of itself; `images` is its list, or it is of both."""
    lists = {"strong": [f"s{i}" for i in range(50)], "weak": [f"w{i}" for i in range(1000)]}
    ids = lists[images] if images else list(lists.values())
    training = fingerprints.expected(settings, path)
    made = {"data_set": DATA_SET, "images": fingerprint(ids, ()), "training": training}
    return made if path == "crops" else made | {"tags": made_of.tags(data / "split")}


def invented_results(root: Path, images: int = 24, panels: int = 9) -> Path:
    """The folder of a data set, `data/shapes`, as the stages before the report leave it: everything is current."""
    settings = load(PARAMS)
    data = root / "data" / settings.dataset.name
    random = np.random.default_rng(1)
    records = scenes(data / "prepared/files", images)
    write_json(data / "prepared/classes.json", NAMES)
    write_manifest(data / "prepared/manifest.parquet", records)
    per_class = {n: {s: {"images": 190 + i, "masks": 190 - i} for s in ("train", "val")} for i, n in enumerate(SHAPES)}
    pictures = {"train": 1000, "val": images}
    card = {"fingerprint": DATA_SET, "parameters": fingerprints.of(plan.prepare(settings))}
    card |= {"layout": "shapes", "tags": "masks", "classes": 10, "images": pictures, "per_class": per_class}
    warnings = {"tag without mask": 2, "mask without tag": 0}
    write_json(data / "prepared/dataset.json", card | {"conversions": {}, "warnings": warnings})
    counts = {"strong": 50, "weak": 1000, "strong_per_class": dict.fromkeys(SHAPES, 5)}
    write_json(data / "split/split.json", {"parameters": fingerprints.of(plan.split(settings))} | counts)
    write_json(data / "crops/crops.json", {"images": 50, "crops": 21800, "subsets_dropped": 0, "median_side": 41.5})
    made_of.write(data / "crops", origin(data, settings, "crops", "strong"))
    (data / "split/strong.txt").write_text("".join(f"s{i}\n" for i in range(50)))
    (data / "split/tags.csv").write_text("image_id,tags\n")
    (data / "split/weak.txt").write_text("".join(f"w{i}\n" for i in range(1000)))
    Image.fromarray(random.integers(0, 256, (200, 900, 3)).astype(np.uint8)).save(data / "crops/figure.png")
    for number, (name, classifier) in enumerate(settings.classifiers.items()):
        tags = random.random((200, len(SHAPES))) < 0.2
        scores = np.clip(tags * (0.6 - 0.3 * number) + random.random((200, len(SHAPES))) * 0.5, 0, 1)
        folder = data / "classifiers" / name
        write_json(folder / "metrics.json", rounded(tag_metrics(scores, tags, SHAPES)))
        write_curves(folder / "training/plots/metrics", 400, {"loss/tags": 0.7}, number)
        made_of.write(folder, origin(data, settings, f"classifiers/{name}", classifier.images))
    for name, entry in settings.pseudo_labels.items():
        folder = data / "pseudo_labels" / name
        write_json(folder / "quality.json", quality(0.4, 0.8))
        Image.fromarray(random.integers(0, 256, (90, 400, 3)).astype(np.uint8)).save(folder / "figure.png")
        made_of.write(folder, origin(data, settings, f"pseudo_labels/{name}", entry.images))
    for number, system in enumerate(settings.systems):
        terms = {"loss/segmentation": 2.0 + number, "learning_rate": 0.002}
        write_curves(data / f"segmenters/{system}/training/plots/metrics", 300, terms, 10 + number)
        noise = 0.1 if not number else 0.3 + 0.5 * number / len(settings.systems)
        scores = scoring.score(records, predictor(records, noise), len(NAMES), settings.evaluation, with_crf=False)
        out = data / "results" / system
        scoring.write_results(scores, NAMES, out)
        prediction_panels.write_panels(scores.images, {r.image_id: r for r in records}, NAMES, panels, out)
        prediction = fingerprints.of(plan.evaluate(settings, system))
        of_model = origin(data, settings, f"segmenters/{system}")
        made_of.write(out, of_model | {"trained_on": DATA_SET, "prediction": prediction})
    for folder, stage in (
        ("prepared", "prepare"),
        ("classifiers/decoupled", "train_classifier@decoupled"),
        (f"results/{SYSTEMS[0]}", f"evaluate@{SYSTEMS[0]}"),
    ):
        machine = {"peak_memory_mb": 812, "machine": "Linux x86_64, 2 cores, no GPU", "versions": {}, "commit": "abc"}
        file = root / ".scratch/timings" / data.relative_to(root) / folder / f"{stage}.json"
        write_json(file, {"stage": stage, "seconds": 75.3, **machine})
    return data
