"""Train a classifier on the tags of W (or of S) and measure its tags on the validation images.

Reads the manifest, the class names and the split; writes `model/`, `training/` (dvclive), `metrics.json` and
`made_of.json` (Hong et al. 2015, section 4.1). One with a pooled head is fitted to features that are computed once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from segcore import files, made_of, processes, seeds
from segcore.cli import command, console, meeting, progress, provenance, scratch
from segcore.config import fingerprints
from segcore.config import plan as plans
from segcore.config.settings import Settings
from segcore.data import seen_tags
from segcore.data.frequencies import tag_table, tag_weights
from segcore.data.geometry import padded_square
from segcore.data.manifest import Record, data_set_fingerprint, listed, read_class_names, read_manifest
from segcore.data.pictures import read_image
from segcore.data.records import ids_of
from segcore.data.samples import TaggedImages, tag_vector
from segcore.errors import Problems
from segcore.evaluation.numbers import rounded
from segcore.evaluation.tags import tag_metrics
from segcore.features.store import FeatureStore
from segcore.features.views import views_of
from segcore.fitting.tags import fit_head, sigmoid
from segcore.models.classifiers import save_classifier
from segcore.networks import classifiers, pretrained
from segcore.networks.classifiers import Classifier
from segcore.networks.pooled_head import PooledHead
from segcore.training.fit import Fit


@dataclass(frozen=True)
class Images:
    """What is learned from, with its tags as training sees them, and what is measured on."""

    seen: Sequence[Record]
    val: Sequence[Record]
    tags: list[str]


def main(
    *, name: str, manifest: Path, classes: Path, split: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    settings = command.settings(params)
    plan = plans.train_classifier(settings, name)
    check_networks(settings)
    names = read_class_names(classes)
    records = read_manifest(manifest)
    ids = listed(split / f"{plan.entry.images}.txt", records)
    seen = seen_tags.as_training_sees(records, ids, split, names)
    val = records.of_split("val")
    images = Images(seen.of(ids), val, names[1:])
    with provenance.timed(f"train_classifier@{name}", out):
        torch.manual_seed(seeds.derived_seed(plan.seed, "classifier", "initial weights"))
        model = classifiers.build(plan.entry.backbone, plan.entry.head, len(images.tags))
        if isinstance(plan, plans.FitClassifier):
            fit, device = None, processes.Runtime("fp32")
            measured = fitted(name, plan, model, images, device, out / "training")
        else:
            device = processes.Runtime(plan.recipe.precision, meeting.run_name())
            fit = trained(name, plan, model, images, device, [manifest, split / made_of.TAGS_FILE], out / "training")
            measured = measure(model, device, val, images.tags, plan.entry.test_size)
        if device.is_main:
            origin = {
                "data_set": data_set_fingerprint(records.values(), names),
                "images": files.fingerprint(ids, ()),
                "tags": made_of.tags(split),
                "training": fingerprints.of(plan),
            }
            save_classifier(out / "model", name, plan.entry, images.tags, model, origin)
            made_of.write(out, origin)
            files.write_atomically(out / "metrics.json", json.dumps(rounded(measured), indent=2).encode())
        if fit is not None:
            progress.finish(fit)
    score = rounded(measured)["mean_average_precision"]
    console.say(f"classifier {name}: tag mAP {score} on {len(val)} validation images")


def check_networks(settings: Settings) -> None:
    """Every backbone's network and weights are there, so that a later one's mistake does not wait for the first.

    Raises:
        Problems: names that are unknown, files that are missing.
    """
    found = {name: pretrained.check(backbone) for name, backbone in settings.backbones.items()}
    if problems := [f"backbones.{name}.{problem}" for name, problem in found.items() if problem]:
        raise Problems("params.yaml has a mistake:", problems)


def trained(
    name: str, plan: plans.TrainClassifier, model: Classifier, images: Images, device: processes.Runtime,
    inputs: list[Path], log: Path,
) -> Fit:  # fmt: skip
    """Train step by step; the finished training, whose checkpoint goes once the result is safe on disk."""
    entry, recipe = plan.entry, plan.recipe
    samples = TaggedImages(images.seen, len(images.tags), entry.resize, entry.input_size)
    if entry.class_weights is not None:
        model.weigh(tag_weights(tag_table(samples, len(images.tags)), entry.class_weights.cap))
    ids = ids_of(images.seen)
    run_key = [name, plan.seed, entry.model_dump(), recipe.model_dump(), ids]
    checkpoint = progress.scratch_file(f"classifier-{name}", run_key, inputs, model, device)
    fit = Fit(model, samples, recipe, seeds.derived_seed(plan.seed, "classifier"), device, checkpoint)
    progress.announce(f"classifier {name}", model, recipe, len(samples), fit)
    progress.follow(f"classifier {name}", fit, log)
    return fit


@torch.inference_mode()
def measure(
    model: Classifier, device: processes.Runtime, val: Sequence[Record], tags: list[str], size: int
) -> dict[str, Any]:
    """Tag metrics of the classifier on images padded to a square, as the segmenter's inference sees them."""
    model.eval()
    scores, batch = [], 16
    mine = device.shard(val, batch)
    for first in range(0, len(mine), batch):
        squares = [padded_square(read_image(record.image), size) for record in mine[first : first + batch]]
        pictures = torch.stack(squares).float().to(device.device)
        with device.autocast():
            scores += list(model(pictures).decision.float().sigmoid().cpu().numpy())
    return tag_metrics(np.stack(device.merge(scores, batch)), truth(val, tags), tags)


def fitted(
    name: str, plan: plans.FitClassifier, model: Classifier, images: Images, device: processes.Runtime, log: Path
) -> dict[str, Any]:
    """Fit the head to features of all views, log the strengths that were tried, and return the tag metrics."""
    head = model.head
    assert isinstance(head, PooledHead)  # as its entry says
    model.to(device.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    store = FeatureStore(scratch.FOLDER / "features", model.trunk, device)
    pooled, top = mean_features(f"classifier {name}", store, images.seen, head, device)
    val, _ = mean_features(f"classifier {name}, validation", store, images.val, head, device)
    found = fit_head(head.cpu(), pooled, top, truth(images.seen, images.tags), plan.entry.fit)
    with progress.logged(log) as write:
        for step, tried in enumerate(found.path):
            numbers = {"strength": tried.strength, "loss/tags": round(tried.loss, 6)}
            write(step, numbers | {"mean_average_precision": round(tried.mean_average_precision, 6)})
    best = max(tried.mean_average_precision for tried in found.path)
    console.say(f"classifier {name}: tag mAP {best:.3f} on images left out, at strength {found.strength:g}")
    logits = head.of_pooled(torch.from_numpy(val)).numpy()
    return tag_metrics(sigmoid(logits), truth(images.val, images.tags), images.tags, head.thresholds.numpy())


def truth(records: Sequence[Record], tags: list[str]) -> Bool[np.ndarray, "N L"]:
    """Which tags the images have."""
    return np.stack([tag_vector(record.tags, len(tags)).bool().numpy() for record in records])


def mean_features(
    name: str, store: FeatureStore, records: Sequence[Record], head: PooledHead, device: processes.Runtime
) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N C"]]:
    """What the head sees of each image, and the mean of the top map, both the mean over all views.

    A linear head's mean logit over the views is its logit of that.
    """

    def of(record: Record) -> tuple[np.ndarray, ...]:
        views = [store.pooled(record, view, head) for view in views_of(head)]
        return tuple(np.mean([view[part] for view in views], axis=0) for part in ("pooled", "top"))

    mine = device.shard(records)
    found = device.merge([of(record) for record in progress.counted(name, mine, len(mine))])
    pooled, top = (np.stack(part) for part in zip(*found, strict=True))
    return pooled, top


if __name__ == "__main__":
    command.start(main)
