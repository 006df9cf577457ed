"""Train one system on what its entry names: crops or masks of S, pseudo-labels of W, or both.

Reads the manifest, the lists of the split, the labels (a crop index, the manifest's masks, a folder of pseudo-labels)
and the model that the system starts from; writes `model/` and `training/` (dvclive).
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from segcore import processes, seeds, systems
from segcore.cli import command, progress, provenance
from segcore.config.reading import section
from segcore.config.sections import RecipeParams
from segcore.data.batches import Batch, Samples, Stream
from segcore.data.manifest import listed, read_manifest
from segcore.data.order import Order
from segcore.models.systems import build_on, save_system
from segcore.networks.classifiers import Classifier
from segcore.systems.contract import Inputs, System
from segcore.training.fit import Fit


def main(
    *,
    system: str,
    manifest: Path,
    split: Path,
    labels: Path,
    start: Path,
    out: Path,
    params: Path = Path("params.yaml"),
) -> None:
    settings = command.settings(params)
    entry = settings.raw["systems"][command.chosen(system, settings.systems, "system")]
    module = systems.load(entry["module"])
    method_params = section(settings.raw, f"systems.{system}", module.Params)
    recipe = settings.recipes[settings.systems[system].recipe]
    device = processes.Runtime(recipe.precision)

    def build(classifier: Classifier) -> System:
        torch.manual_seed(seeds.derived_seed(settings.seed, "segmenter", "initial weights"))
        return module.build(method_params, classifier)

    with provenance.timed(f"train_segmenter@{system}"):
        model, card = build_on(start, build)
        records = read_manifest(manifest)
        ids = listed(split / f"{entry['images']}.txt", records)
        inputs = Inputs(records, ids, labels, len(card["tags"]), settings.crops)
        samples = module.samples(method_params, inputs)
        dumped = recipe.model_dump(), settings.crops.model_dump()
        run_key = [system, settings.seed, entry, *dumped, ids]
        sources = [manifest, start / "model.json", *provenance.files_in(labels)]
        scratch = progress.scratch_file(f"segmenter-{system}", run_key, sources, model, device)
        seed = seeds.derived_seed(settings.seed, "segmenter")
        last_batches = finishing_batches(model, samples, recipe, seed, device)
        fit = Fit(model, samples, recipe, seed, device, scratch)
        progress.announce(f"segmenter {system}", model, recipe, len(samples), fit)
        progress.follow(f"segmenter {system}", fit, out / "training")
        model.finish(last_batches)
        if device.is_main:
            save_system(out / "model", system, entry, card, samples.input_size, model)
        fit.finish()


def finishing_batches(
    model: System, samples: Samples, recipe: RecipeParams, seed: int, device: processes.Runtime
) -> Iterator[Batch]:
    """The training batches that the system asks for at the end, drawn after those of the last step."""
    count, size = model.finishing_batches()
    if not count:
        return iter(())
    # Made before training, as it checks whether the processes can share a batch.
    order = Order.of(samples, size, 1, seed, device.rank, device.world)
    first = math.ceil(recipe.steps * recipe.batch_size / size)
    steps = Stream(samples, order, recipe.workers).steps(first, first + count)
    return (batch.to(device.device, recipe.channels_last) for step in steps for batch in step)


if __name__ == "__main__":
    command.start(main)
