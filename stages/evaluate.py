"""Score one system on the validation images: metrics, tables for `dvc plots`, panels to look at, and `made_of.json`.

Predictions are compared with the official labels at the images' own size. Under torchrun every process scores a share
of the images, and the first one writes what all of them counted. With `--shard i/n` the i-th of n parts of the images
is scored, and what it adds is left in `--shard-folder`; a run without it takes what all shards have left there.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from segcore import files, made_of
from segcore.cli import command, console, provenance, shards
from segcore.cli.shards import Members, Piece, Work
from segcore.config import fingerprints
from segcore.config import plan as plans
from segcore.data.manifest import Record, data_set_fingerprint, read_class_names, read_manifest
from segcore.errors import Problem, some
from segcore.evaluation import inference, shares
from segcore.evaluation.reading import Pictures
from segcore.evaluation.scoring import Prediction, Scores, score, tag_scores, validation_records, write_results
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
    shard: str | None = None,
    shard_folder: Path = shards.FOLDER,
) -> None:
    """Score the system in the folder `model` on the images of split/val.txt."""
    one = None if shard is None else shards.shard(shard)
    plan = plans.evaluate(command.settings(params), system)
    with provenance.timed(f"evaluate@{system}", out) if one is None else contextlib.nullcontext():
        names: list[str] = read_class_names(classes)
        known = read_manifest(manifest)
        records = validation_records(known, split / "val.txt")
        runtime = Runtime()
        trained, card = load_system(model, plan.prediction, runtime.device)
        if (tags := card["tags"]) != names[1:]:
            raise Problem(f"{model} was trained for {tags}, but {classes} has {names[1:]}; train it again")
        views, by_tags = trained.prediction.views, records[0].labels is None
        crf = None if by_tags else trained.prediction.crf

        def predict(pictures: Pictures) -> Iterator[Prediction]:
            maps = inference.score_maps(trained, pictures, card["input_size"], views, plan.edges)
            for place, scores in enumerate(maps):
                refined = crf and inference.refined(trained, scores, pictures[place], crf)
                sure = inference.probabilities(trained, scores)[1:] if by_tags else None
                yield Prediction(scores.winners(), refined, sure)

        def scored(some: Sequence[Record]) -> Scores:
            return score(some, predict, len(names), plan.evaluation, crf is not None, _watched)

        def piece(places: Sequence[int]) -> Members:
            return shares.packed(scored([records[place] for place in places]))

        made_from = [manifest, classes, split / "val.txt", *provenance.files_in(model), *provenance.sources()]
        key = files.fingerprint([system, plans.plain(plan), torch.__version__], made_from)
        division = Work(out, shard_folder, key, len(records), plan.evaluation.batch_size)
        if one is not None:
            division.do(one, runtime, piece)
            return
        ready = division.found() if runtime.is_main else []
        if any(runtime.gather(bool(ready))):
            parts = (_read(file, len(names), plan) for file, _ in ready)
        else:
            parts = iter(runtime.gather(scored(runtime.shard(records, plan.evaluation.batch_size))))
        if runtime.is_main:
            scores = shares.summed(parts)
            write_results(scores, names, out)
            if (of_tags := tag_scores(scores, names)) is not None:
                tell_tags(system, of_tags, len(scores.images), out)
            unseen = (
                []
                if by_tags
                else [name for name, count in zip(names, scores.confusion.counts.sum(1), strict=True) if not count]
            )
            if unseen:
                console.say(f"warning: no validation mask shows {some(unseen)}: nothing measures it, its IoU is null")
            made_of.write(out, _origin(card.get("made_of", {}), data_set_fingerprint(known.values(), names), plan))
            write_panels(scores.images, {r.image_id: r for r in records}, names, plan.evaluation.panels, out)
            if ready:
                division.clear()
            if not by_tags:
                console.say(f"{system}: mIoU {scores.confusion.mean_iou:.4f} on {len(scores.images)} images, in {out}")


def _read(file: Path, n_classes: int, plan: plans.Evaluate) -> Scores:
    """What a shard left in one piece."""
    piece = Piece(file)
    return shares.unpacked({name: piece[name] for name in piece.names}, n_classes, plan.evaluation)


def tell_tags(system: str, of_tags: dict[str, Any], images: int, out: Path) -> None:
    """Say that nothing but tags was measured, and how well they are found."""
    console.say(
        f"{system}: tags only, as no validation image has a mask: mean average precision "
        f"{of_tags['mean_average_precision']:.4f} on {images} images, in {out}"
    )


def _origin(of_model: dict[str, str], data_set: str, plan: plans.Evaluate) -> dict[str, str]:
    """What the result is made of: the model's own origin, the data set it was scored on, how it predicted."""
    of_model = {"trained_on": of_model.get("data_set", ""), "images": "", "training": ""} | of_model
    return of_model | {"data_set": data_set, "prediction": fingerprints.of(plan)}


def _watched(places: Sequence[int]) -> Iterable[int]:
    quiet = not (console.is_main_process() and console.console.is_terminal)
    return track(places, "scoring", console=console.console, disable=quiet, transient=True)


if __name__ == "__main__":
    command.start(main)
