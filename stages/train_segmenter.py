"""Train one system on the combinatorial crops of S, around its classifier.

Reads the manifest, the crop index and the classifier that the system's entry names; writes `model/` and `training/`
(dvclive) (Hong et al. 2015, section 5).
"""

from pathlib import Path

import pandas as pd
import torch

from segcore import batches, models, runtime, systems
from segcore.config import section
from segcore.samples import read_manifest
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
        inputs = [manifest, crops, classifier / "model.safetensors", classifier / "model.json"]
        scratch = training.scratch_file(f"segmenter-{system}", run_key, inputs)
        fit = Fit(model, samples, recipe, runtime.derived_seed(settings.seed, "segmenter"), device, scratch)
        training.announce(f"segmenter {system}", model, recipe, len(samples), fit)
        training.follow(f"segmenter {system}", fit, out / "training")
        finish(model, samples, fit)
        if device.is_main:
            models.save_system(out / "model", system, entry, models.classifier_card(classifier), size, model)
        fit.finish()


def finish(model: System, samples: CropSamples, fit: Fit) -> None:
    """Hand the system the training batches that it asks for at the end, drawn after those of the last step."""
    count, size = model.finishing_batches()
    order = batches.Order(len(samples), size, 1, fit.seed)
    stream = batches.Stream(samples, order, fit.recipe.workers)
    first = fit.recipe.steps
    micro = (part for parts in stream.steps(first, first + count) for part in parts)
    with fit.runtime.accelerator.autocast():
        model.finish([batch.to(fit.runtime.device, fit.recipe.channels_last) for batch in micro])


if __name__ == "__main__":
    run.start(main)
