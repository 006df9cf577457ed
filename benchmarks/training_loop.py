"""Our training loop against a bare torch loop: `python -m benchmarks.training_loop`.

Same network (the classifier on VGG-16 with batch normalisation at a quarter of the width), same batches of 32 at 96
pixels from tensors in memory, same optimiser. The two take turns, a step each; their median steps are compared.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from segcore.config import settings
from segcore.config.networks import BackboneParams
from segcore.config.training import RecipeParams
from segcore.data.batches import Sample
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier
from segcore.processes import Runtime
from segcore.training.fit import Fit
from segcore.training.optimisation import optimiser

BAR = 0.95
TAGS, SIZE, IMAGES = 10, 96, 256
WARM_UP, STEPS = 3, 24


class InMemory:
    """Pictures that cost nothing to load."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        self.tags = torch.randint(0, 2, (IMAGES, TAGS), generator=generator).float()
        self.unknown = torch.full((SIZE, SIZE), 255, dtype=torch.uint8)

    def __len__(self) -> int:
        return IMAGES

    def sample(self, index: int, seed: int) -> Sample:
        return Sample(str(index), self.images[index], self.tags[index], self.unknown)


class Bare:
    """What one would write without any of the machinery."""

    def __init__(self, model: Classifier, samples: InMemory, recipe: RecipeParams, device: torch.device) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.samples = samples
        self.device = device
        self.optimiser = optimiser(model, recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate

    def step(self, chosen: torch.Tensor) -> float:
        images = self.samples.images[chosen].to(self.device).float().to(memory_format=torch.channels_last)
        tags = self.samples.tags[chosen].to(self.device)
        for layer in (self.model.head.drop6, self.model.head.drop7):
            layer.key = 0
        self.optimiser.zero_grad(set_to_none=True)
        scores = self.model(images).decision
        loss = F.binary_cross_entropy_with_logits(scores, tags, reduction="sum") / len(chosen)
        loss.backward()
        self.optimiser.step()
        return loss.item()


def main() -> int:
    runtime = Runtime()
    samples = InMemory()
    recipe = settings.load(Path("params.yaml")).recipes["classifier"]
    steps = WARM_UP + STEPS
    recipe = recipe.model_copy(update={"steps": steps, "batch_size": 32, "accumulate": 1, "channels_last": True})
    ours = iter(Fit(network(), samples, recipe, 0, runtime, None))
    bare = Bare(network(), samples, recipe, runtime.device)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for chosen in torch.randint(0, IMAGES, (steps, 32), generator=torch.Generator().manual_seed(0)):
        begin = time.perf_counter()
        bare.step(chosen)
        between = time.perf_counter()
        next(ours)
        seconds["bare"].append(between - begin)
        seconds["ours"].append(time.perf_counter() - between)
    images = {name: 32 / statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
    ratio = images["ours"] / images["bare"]
    print(f"Training loop, vgg16_bn at width 0.25, {SIZE} pixels, batches of 32, {runtime.device}:")
    print(f"  ours {images['ours']:.1f} images/s, bare torch {images['bare']:.1f}: ratio {ratio:.3f} (bar: >= {BAR})")
    return 0 if ratio >= BAR else 1


def network() -> Classifier:
    torch.manual_seed(0)
    entry = settings.load(Path("params.yaml")).classifiers["decoupled"]
    backbone = BackboneParams(
        name="vgg16_bn", weights="random", width=0.25, frozen_norm=True, stride=entry.backbone.stride, finer="dilated"
    )
    return classifiers.build(backbone, entry.head.model_copy(update={"width": 256, "kernel": 3}), TAGS)


if __name__ == "__main__":
    sys.exit(main())
