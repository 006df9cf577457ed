"""Train one system on what its entry names: crops or masks of S, pseudo-labels of W, or both.

Reads the manifest, the lists and the tags of the split, the labels (a crop index, the manifest's masks, a folder of
pseudo-labels) and the model that the system starts from; writes `model/` and `training/` (dvclive). A system that
doubts tags leaves them beside its model, cleaned (`cleaned_tags.csv`), and how good they were before and after
(`tags.json`).
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from segcore import files, made_of, processes, seeds, systems
from segcore.cli import command, console, looks, meeting, progress, provenance, scratch
from segcore.config import fingerprints
from segcore.config import plan as plans
from segcore.config.reading import section
from segcore.config.training import RecipeParams
from segcore.data import seen_tags
from segcore.data.batches import Batch, Samples, Stream
from segcore.data.manifest import data_set_fingerprint, listed, read_class_names, read_manifest
from segcore.data.order import Order
from segcore.features.store import FeatureStore
from segcore.models import cards, cleaned_tags
from segcore.models.systems import build_on, save_system
from segcore.networks.origin import Origin
from segcore.networks.trunk import Trunk
from segcore.processes import Runtime
from segcore.regularisers.contract import regularised
from segcore.systems.contract import Inputs, System
from segcore.training.fit import Fit


def main(
    *,
    system: str,
    manifest: Path,
    classes: Path,
    split: Path,
    labels: Path,
    start: Path,
    out: Path,
    params: Path = Path("params.yaml"),
) -> None:
    settings = command.settings(params)
    plan = plans.train_segmenter(settings, system)
    entry, recipe = plan.entry, plan.recipe
    module = systems.load(entry.module)
    training = section({"systems": {system: entry.model_dump()}}, f"systems.{system}.training", module.Training)
    device = Runtime(recipe.precision, meeting.run_name())

    def build(origin: Origin) -> System:
        torch.manual_seed(seeds.derived_seed(plan.seed, "segmenter", "initial weights"))
        return module.build(training, origin)

    with provenance.timed(f"train_segmenter@{system}", out):
        names = read_class_names(classes)
        model, card = build_on(start / "model", names[1:], build)
        inputs = inputs_of(plan, manifest, names, split, labels)
        samples = module.samples(training, inputs)
        model.begin(samples)
        run_key = [system, plans.plain(plan), inputs.strong, inputs.weak]
        sources = [manifest, split / made_of.TAGS_FILE, start / "model/model.json", *provenance.files_in(labels)]
        checkpoint = progress.scratch_file(f"segmenter-{system}", run_key, sources, model, device)
        seed = seeds.derived_seed(plan.seed, "segmenter")
        last_batches = finishing_batches(model, samples, recipe, seed, device)
        trainee = regularised(model, training.regularisers, len(card["tags"]))
        store = looked_up(model, recipe, device, bool(training.regularisers))
        fit = Fit(trainee, samples, recipe, seed, device, checkpoint)
        progress.announce(f"segmenter {system}", model, recipe, len(samples), fit)
        behind = [known.get("training", "") for known in (cards.made_of(start / "model"), made_of.read(labels))]
        trained_by = fingerprints.of(plan, *behind)

        look = None
        if (wanted := looks.asked()) is not None:
            from segcore.cli.looking import Look, Trained  # evaluation, which no training depends on

            how = looks.whole(plans.evaluate(settings, system).prediction)
            finishing = partial(finishing_batches, samples=samples, recipe=recipe, seed=seed, device=device)
            about = Trained(model, module, how, finishing, samples.input_size, len(names), trained_by)
            look = Look(wanted, about, read_manifest(manifest), split / "val.txt", device, out)
        progress.follow(f"segmenter {system}", fit, out / "training", look)
        if store is not None:
            asked, computed = (sum(device.gather(count)) for count in (store.asked, store.computed))
            console.say(f"segmenter {system}: the trunk ran for {computed:,} of {asked:,} views; others were stored")
        model.finish(last_batches)
        doubted = cleaned_tags.doubted(inputs) if model.cleans_tags else []
        cleaned = cleaned_tags.table(model, doubted, inputs.n_tags, samples.input_size, device)
        if device.is_main:
            origin = {
                "data_set": data_set_fingerprint(read_manifest(manifest).values(), names),
                "images": files.fingerprint([list(inputs.strong), list(inputs.weak)], ()),
                "tags": made_of.tags(split),
                "training": trained_by,
            }
            if cleaned:  # before the model, whose card comes last
                tell_cleaned(cleaned_tags.write(out / "model", cleaned, read_manifest(manifest), names), system)
            save_system(out / "model", system, entry.module, entry.training, card, samples.input_size, model, origin)
        progress.finish(fit)


def inputs_of(plan: plans.TrainSegmenter, manifest: Path, names: list[str], split: Path, labels: Path) -> Inputs:
    """What the system may learn from: lists and tags of the split, and masks of the strong images alone."""
    records = read_manifest(manifest)
    strong, weak = (listed(split / f"{name}.txt", records) for name in ("strong", "weak"))
    records = seen_tags.as_training_sees(records, strong.and_also(weak), split, names)
    return Inputs(
        records.with_masks_of(strong), strong, weak, plan.entry.images, labels, len(names) - 1, plan.crops, plan.seed
    )


def looked_up(model: System, recipe: RecipeParams, device: Runtime, every_level: bool) -> FeatureStore | None:
    """The store that the system takes the maps of its trunk from, if it does; called before `Fit`."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format

    def store_of(trunk: Trunk) -> FeatureStore:
        # Named as it will compute: where `Fit` lays it out, before it turns layers into those that processes share.
        trunk.to(device=device.device).to(memory_format=layout)  # type: ignore[call-overload]
        store = FeatureStore(scratch.FOLDER / "features", trunk, device)
        if recipe.compile:  # of which reading files can be no part
            store.maps = torch.compiler.disable(store.maps)  # type: ignore[method-assign]
        return store

    return model.look_up(store_of, every_level)


def tell_cleaned(quality: dict[str, Any], system: str) -> None:
    """Show how good tags were before and after."""
    parts = (
        f"{which} {name} {quality[which][name]}" for name in ("precision", "recall") for which in ("given", "cleaned")
    )
    console.say(f"{system}: tags of {quality['images']} images: {', '.join(parts)}")


def finishing_batches(
    model: System, samples: Samples, recipe: RecipeParams, seed: int, device: processes.Runtime
) -> Iterator[Batch]:
    """The training batches that the system asks for at the end, drawn after those of the last step."""
    count, size = model.finishing_batches()
    if not count:
        return iter(())
    # Made before training, as it checks whether the processes can share a batch.
    order = Order.of(samples, size, 1, seed, device.rank, device.world, recipe.class_power)
    first = math.ceil(recipe.steps * recipe.batch_size / size)
    steps = Stream(samples, order, recipe.workers).steps(first, first + count)
    return (batch.to(device.device, recipe.channels_last) for step in steps for batch in step)


if __name__ == "__main__":
    command.start(main)
