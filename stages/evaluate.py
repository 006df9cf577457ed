"""Score one system on the validation images: metrics, tables for `dvc plots`, and panels to look at.

Predictions are compared with the official labels at the images' own size. Under torchrun every process scores a share
of the images, and the first one writes what all of them counted.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.progress import track

from segcore.cli import command, console, provenance
from segcore.data.manifest import read_class_names, read_manifest
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.evaluation.scoring import Prediction, score, validation_records, write_results
from segcore.models.systems import load_system
from segcore.processes import Runtime
from segcore.reporting.prediction_panels import write_panels


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
        shares = runtime.gather(score(mine, predict, len(names), settings.evaluation, _watched))
        if runtime.is_main:
            scores = sum(shares[1:], start=shares[0])
            write_results(scores, names, out)
            write_panels(scores.images, {r.image_id: r for r in records}, names, settings.evaluation.panels, out)
            console.say(f"{system}: mIoU {scores.confusion.mean_iou:.4f} on {len(scores.images)} images, in {out}")


def _watched(places: Sequence[int]) -> Iterable[int]:
    quiet = not (console.is_main_process() and console.console.is_terminal)
    return track(places, "scoring", console=console.console, disable=quiet, transient=True)


if __name__ == "__main__":
    command.start(main)
