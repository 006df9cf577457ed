"""What a random selection of units buys: the quality of pseudo-labels by selection and number of maps.

`python -m benchmarks.selection --set NAME --classifier FOLDER [--classifier FOLDER ...] [--images N] [--seeds N]`, in
a project whose classifiers are trained. For each classifier (trained with whatever selection), for each selection at
inference and each number of maps N: precision, recall, coverage and mean IoU against the masks of the weak images,
with their standard deviation over seeds of the mask bank. Everything else is as the set NAME of params.yaml has it.
The masks only measure; nothing is chosen by them here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from segcore.config.labels import LabelsFromMaps
from segcore.config.settings import load
from segcore.data.geometry import Grid, stretched_square
from segcore.data.manifest import Record, read_manifest
from segcore.data.pictures import read_image, read_labels
from segcore.evaluation.quality import Quality
from segcore.localisation.deciding import Way
from segcore.localisation.labeller import PseudoLabeller
from segcore.models.classifiers import load_classifier

MEASURES = ("precision", "recall", "coverage", "foreground_coverage", "mean_iou")
BATCH = 8


def main(
    classifier: Annotated[list[Path] | None, typer.Option()] = None,
    set: str = "ficklenet",
    images: int = 400,
    seeds: int = 3,
    passes: Annotated[list[int] | None, typer.Option()] = None,
    out: Path | None = None,
) -> None:
    """Print the table, best read at a width of 120; `--out` writes it as a CSV too."""
    if not classifier:
        print("skipped: name trained classifiers by --classifier data/<data set>/classifiers/<name>/model")
        return
    settings = load(Path("params.yaml"))
    params = settings.pseudo_labels[set]
    if not isinstance(params, LabelsFromMaps):
        raise SystemExit(f"pseudo_labels.{set} is of source: {params.source}; this compares localisation maps")
    data = Path("data") / settings.dataset.name
    names = json.loads((data / "prepared/classes.json").read_text())
    records = [r for r in read_manifest(data / "prepared/manifest.parquet").values() if r.split == "train" and r.labels]
    places = np.linspace(0, len(records) - 1, min(images, len(records))).round().astype(int)
    chosen = [records[place] for place in places]
    lines = []
    for folder in classifier:
        for line in measured(folder, chosen, names, params, seeds, passes or [1, 10, 100, 200]):
            lines.append(line)
            print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    if out:
        pd.DataFrame(lines).to_csv(out, index=False)


def measured(
    folder: Path, records: list[Record], names: list[str], params: LabelsFromMaps, seeds: int, passes: list[int]
) -> Iterator[dict[str, object]]:
    """A line per selection and number of maps; features and background are computed once for all of them."""
    model, trained, _ = load_classifier(folder, torch.device("cpu"))
    variants = [("deterministic", 1, 1)]
    variants += [(selection, n, seeds) for selection in ("general", "stochastic") for n in passes]
    labellers = {
        (selection, n, seed): PseudoLabeller(
            model,
            params.model_copy(update={"selection": selection, "passes": n}),
            params.background,
            seed,
            torch.device("cpu"),
        )
        for selection, n, count in variants
        for seed in range(count)
    }
    quality = {key: Quality(len(names)) for key in labellers}
    grid = Grid(params.input_size, model.trunk.stride)
    way = Way(params.aggregation, params.theta, params.background, params.refinement)
    for first in range(0, len(records), BATCH):
        batch = records[first : first + BATCH]
        squares = torch.stack([stretched_square(read_image(r.image), params.input_size) for r in batch]).float()
        truths = [read_labels(r.labels) for r in batch if r.labels is not None]
        any_labeller = next(iter(labellers.values()))
        levels, cues = any_labeller.features(squares, [r.image_id for r in batch])
        for key, labeller in labellers.items():
            views = [labeller.view(levels[-1], grid, grid, mirrored=False)]
            found = labeller.found(views, cues, None, [r.tags for r in batch])
            for truth, one in zip(truths, found, strict=True):
                quality[key].update(truth, grid.at_pixels(one.labels_at_cells(way).numpy(), *truth.shape))
    for selection, n, count in variants:
        runs = [quality[selection, n, seed].summary(names) for seed in range(count)]
        line: dict[str, object] = {"trained": getattr(trained.head, "selection", "?"), "selection": selection, "N": n}
        for measure in MEASURES:
            values = 100 * np.array([run[measure] for run in runs], dtype=float)
            line[measure] = f"{values.mean():.2f}" + (f"±{values.std(ddof=1):.3f}" if count > 1 else "")
        yield line


if __name__ == "__main__":
    typer.run(main)
