"""Train one system on the combinatorial crops of S, around its classifier.

Reads the manifest, the crop index and the classifier that the system's entry names; writes `model/` and `training/`
(dvclive) (Hong et al. 2015, section 5).
"""

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from segcore import models, runtime, systems
from segcore.batches import Batch, Order, Stream
from segcore.config import section
from segcore.samples import read_manifest
from segcore.sections import RecipeParams
from segcore.systems import System
from segcore.training import Fit
from segcore.transforms import CropSamples
from stages import run, training


def main(
    *, system: str, manifest: Path, crops: Path, classifier: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    settings = run.settings(params)
    entry = settings.raw["systems"][run.chosen(system, settings.systems, "system")]
    module = systems.load(entry["module"])
    method_params = section(settings.raw, f"systems.{system}", module.Params)
    recipe = settings.recipes[settings.systems[system].recipe]
    device = runtime.Runtime(recipe.precision)

    with run.timed(f"train_segmenter@{system}"):
        trained, _, tags = models.load_classifier(classifier, torch.device("cpu"))
        torch.manual_seed(runtime.derived_seed(settings.seed, "segmenter", "initial weights"))
        model: System = module.build(method_params, trained)
        size = settings.crops.input_size
        samples = CropSamples(pd.read_parquet(crops), read_manifest(manifest), len(tags), settings.crops.warp, size)
        run_key = [system, settings.seed, entry, recipe.model_dump(), settings.crops.model_dump(), device.world]
        inputs = [manifest, crops, classifier / "model.json"]
        scratch = training.scratch_file(f"segmenter-{system}", run_key, inputs, model)
        seed = runtime.derived_seed(settings.seed, "segmenter")
        last_batches = finishing_batches(model, samples, recipe, seed, device)
        fit = Fit(model, samples, recipe, seed, device, scratch)
        training.announce(f"segmenter {system}", model, recipe, len(samples), fit)
        training.follow(f"segmenter {system}", fit, out / "training")
        with device.autocast():
            model.finish(last_batches)
        if device.is_main:
            models.save_system(out / "model", system, entry, models.classifier_card(classifier), size, model)
        fit.finish()


def finishing_batches(
    model: System, samples: CropSamples, recipe: RecipeParams, seed: int, device: runtime.Runtime
) -> Iterator[Batch]:
    """The training batches that the system asks for at the end, drawn after those of the last step."""
    count, size = model.finishing_batches()
    if not count:
        return iter(())
    # Made before training, as it checks whether the processes can share a batch.
    order = Order(len(samples), size, 1, seed, device.rank, device.world)
    first = math.ceil(recipe.steps * recipe.batch_size / size)
    steps = Stream(samples, order, recipe.workers).steps(first, first + count)
    return (batch.to(device.device, recipe.channels_last) for step in steps for batch in step)


if __name__ == "__main__":
    run.start(main)
