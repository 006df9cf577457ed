"""What the settings of pseudo-labels buy: label mIoU of tagged images under several entries, with its interval.

`python -m benchmarks.labels --set NAME [--set NAME ...] [--images N] [--params FILE] [--data FOLDER] [--out FILE]`, in
a project whose classifiers are trained. Images are drawn evenly from those of W that are not in S; their masks measure
and nothing else. Of each set: precision, recall and coverage of its labels, mean IoU with the interval over images, its
difference from the first set on the same images, what preparing took (nets, calibration) and seconds an image.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from segcore.config import plan as plans
from segcore.config.labels import MapsEntry
from segcore.config.settings import Settings, load
from segcore.data import seen_tags
from segcore.data.manifest import Record, listed, read_class_names, read_manifest
from segcore.data.pictures import read_labels
from segcore.evaluation import labelling
from segcore.evaluation.per_image import ImageCounts
from segcore.evaluation.quality import Quality
from segcore.processes import Runtime
from segcore.reporting.chance import Difference, Scored, difference

BATCH = 8


def main(
    set: Annotated[list[str] | None, typer.Option()] = None,
    images: int = 600,
    params: Path = Path("params.yaml"),
    data: Path | None = None,
    out: Path | None = None,
) -> None:
    """Print a line a set, best read at a width of 140; `--out` writes them as a CSV too."""
    settings = load(params)
    data = data or Path("data") / settings.dataset.name
    names = set or [name for name, entry in settings.pseudo_labels.items() if isinstance(entry, MapsEntry)]
    absent = [name for name in names if not (data / settings.pseudo_labels[name].input / "model").is_dir()]
    if absent or not names:
        print(f"skipped: no trained classifiers of {', '.join(absent) or 'any set'} in {data}")
        return
    classes = read_class_names(data / "prepared/classes.json")
    records = read_manifest(data / "prepared/manifest.parquet")
    strong = [records[i] for i in listed(data / "split/strong.txt", records)]
    weak = listed(data / "split/weak.txt", records)
    seen = seen_tags.as_training_sees(records, weak, data / "split", classes)
    apart = {record.image_id for record in strong}
    rest = [seen[i] for i in weak if i not in apart and seen[i].labels]
    places = np.linspace(0, len(rest) - 1, min(images, len(rest))).round().astype(int)
    chosen = [rest[place] for place in places]
    print(f"{len(chosen)} images of W, none of the {len(strong)} of S:", flush=True)
    lines: list[dict[str, Any]] = []
    first: Scored | None = None
    for name in names:
        scored, line = measured(settings, name, data, classes, chosen, strong)
        first = first or scored
        line["mean_iou"] = _shown(difference({0: scored}, {0: _unlabelled(scored)}))
        line["difference"] = "" if scored is first else _shown(difference({0: scored}, {0: first}))
        lines.append(line)
        print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    if out:
        pd.DataFrame(lines).to_csv(out, index=False)


def measured(
    settings: Settings, name: str, data: Path, classes: list[str], chosen: list[Record], strong: list[Record]
) -> tuple[Scored, dict[str, Any]]:
    """One set's counts of every image, and what is told of it."""
    plan = plans.extract_pseudo_labels(settings, name)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source = labelling.source(plan, data / plan.entry.input, classes, chosen, strong, Runtime())
        told = source.prepare(Path(folder))
    prepared = time.perf_counter() - begin
    whole, counts = Quality(len(classes)), []
    begin = time.perf_counter()
    for place in range(0, len(chosen), BATCH):
        batch = chosen[place : place + BATCH]
        for record, (_, labels) in zip(batch, source.extract(batch), strict=True):
            assert record.labels is not None
            own = Quality(len(classes))
            own.update(read_labels(record.labels), labels)
            whole.counts += own.counts
            counts.append(ImageCounts.of(record.image_id, own))
    seconds = (time.perf_counter() - begin) / len(chosen)
    summary = whole.summary(classes)
    line: dict[str, Any] = {"set": name}
    line |= {key: f"{100 * summary[key]:.1f}" for key in ("precision", "recall", "coverage")}
    line |= {"prepared_s": f"{prepared:.0f}", "seconds_an_image": f"{seconds:.2f}"}
    if told["calibrate"]:
        line["chosen"] = f"{told['chosen']} ({100 * told['mean_iou_of_folds_apart']:.1f} on folds apart)"
    return Scored(ImageCounts.merged(counts), "labels"), line


def _unlabelled(scored: Scored) -> Scored:
    """The same images without a label: the difference from it is a set's own mean IoU, with its interval."""
    counts = scored.counts.counts * np.array([0, 1, 0])[:, None]  # the truth stays
    return Scored(ImageCounts(scored.counts.ids, counts), scored.pictures)


def _shown(found: Difference | None) -> str:
    assert found is not None
    return f"{100 * found.estimate:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


if __name__ == "__main__":
    typer.run(main)
