"""Train a classifier on the tags of W (or of S) and measure its tags on the validation images.

Reads the manifest, the class names and the split; writes `model/`, `training/` (dvclive), `metrics.json` and
`made_of.json` (Hong et al. 2015, section 4.1).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segcore import files, made_of, processes, seeds
from segcore.cli import command, console, progress, provenance
from segcore.config import fingerprints
from segcore.config import plan as plans
from segcore.config.settings import Settings
from segcore.data import splits
from segcore.data.geometry import padded_square
from segcore.data.manifest import Record, data_set_fingerprint, listed, read_class_names, read_manifest
from segcore.data.pictures import read_image
from segcore.data.samples import TaggedImages, tag_vector
from segcore.errors import Problems
from segcore.evaluation.numbers import rounded
from segcore.evaluation.tags import tag_metrics
from segcore.models.classifiers import save_classifier
from segcore.networks import classifiers, pretrained
from segcore.networks.classifiers import Classifier
from segcore.training.fit import Fit


def main(
    *, name: str, manifest: Path, classes: Path, split: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    settings = command.settings(params)
    plan = plans.train_classifier(settings, name)
    entry, recipe = plan.entry, plan.recipe
    check_networks(settings)
    names = read_class_names(classes)
    tags = names[1:]
    records = read_manifest(manifest)
    ids = listed(split / f"{entry.images}.txt", records)
    seen = splits.as_training_sees(records, ids, split, names)
    device = processes.Runtime(recipe.precision)

    with provenance.timed(f"train_classifier@{name}", out):
        torch.manual_seed(seeds.derived_seed(plan.seed, "classifier", "initial weights"))
        model = classifiers.build(entry.backbone, entry.head, len(tags))
        samples = TaggedImages([seen[i] for i in ids], len(tags), entry.resize, entry.input_size)
        run_key = [name, plan.seed, entry.model_dump(), recipe.model_dump(), ids]
        scratch = progress.scratch_file(
            f"classifier-{name}", run_key, [manifest, split / made_of.TAGS_FILE], model, device
        )
        fit = Fit(model, samples, recipe, seeds.derived_seed(plan.seed, "classifier"), device, scratch)
        progress.announce(f"classifier {name}", model, recipe, len(samples), fit)
        progress.follow(f"classifier {name}", fit, out / "training")
        val = [record for record in records.values() if record.split == "val"]
        measured = rounded(measure(model, device, val, tags, entry.test_size))
        if device.is_main:
            origin = {
                "data_set": data_set_fingerprint(records.values(), names),
                "images": files.fingerprint(ids, ()),
                "tags": made_of.tags(split),
                "training": fingerprints.of(plan),
            }
            save_classifier(out / "model", name, entry, tags, model, origin)
            made_of.write(out, origin)
            files.write_atomically(out / "metrics.json", json.dumps(measured, indent=2).encode())
        fit.finish()
    console.say(f"classifier {name}: tag mAP {measured['mean_average_precision']} on {len(val)} validation images")


def check_networks(settings: Settings) -> None:
    """Every backbone's network and weights are there, so that a later one's mistake does not wait for the first.

    Raises:
        Problems: names that are unknown, files that are missing.
    """
    found = {name: pretrained.check(backbone) for name, backbone in settings.backbones.items()}
    if problems := [f"backbones.{name}.{problem}" for name, problem in found.items() if problem]:
        raise Problems("params.yaml has a mistake:", problems)


@torch.inference_mode()
def measure(
    model: Classifier, device: processes.Runtime, val: list[Record], tags: list[str], size: int
) -> dict[str, Any]:
    """Tag metrics of the classifier on images padded to a square, as the segmenter's inference sees them."""
    model.eval()
    scores, batch = [], 16
    mine = device.shard(val, batch)
    for first in range(0, len(mine), batch):
        squares = [padded_square(read_image(record.image), size) for record in mine[first : first + batch]]
        images = torch.stack(squares).float().to(device.device)
        with device.autocast():
            scores += list(model(images).decision.float().sigmoid().cpu().numpy())
    truth = [tag_vector(record.tags, len(tags)).bool().numpy() for record in val]
    return tag_metrics(np.stack(device.merge(scores, batch)), np.stack(truth), tags)


if __name__ == "__main__":
    command.start(main)
