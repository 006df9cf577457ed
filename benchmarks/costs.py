"""How cost grows with images, classes and passes: `python -m benchmarks.costs`, about four minutes.

The real stages on data sets of 64-pixel pictures, of three sizes each, doubled: images, classes, and passes of the
localisation maps; each training sees every image twice. CPU time of this process, the least of two turns; an exponent
is the slope of log time over log size. The bar is an exponent of 1.05. Then what 1 M and 100 M images cost on paper.
"""

import contextlib
import io
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.processes import PEAK, SHARE, counted
from tests.devkit import make_devkit
from tests.tiny import RECIPES, STOCHASTIC, run_stages, tiny_params

BAR = 1.05
TURNS, BATCH = 2, 4
SYSTEM = "ficklenet"


@dataclass(frozen=True)
class Size:
    """Of a data set and of what is done with it."""

    images: int = 64
    classes: int = 10
    passes: int = 50


SIZES = {
    "images": [replace(Size(), images=images) for images in (256, 512, 1024)],
    "classes": [replace(Size(), classes=classes) for classes in (5, 10, 20)],
    "passes": [replace(Size(), passes=passes) for passes in (1000, 2000, 4000)],
}
STAGES = ("prepare", "train_classifier", "extract_pseudo_labels", "train_segmenter", "evaluate")

FORWARD = 1 / 3
"""Of the arithmetic of a training step; the rest is the backward pass."""

EPOCHS = {"classifier": 1, "segmenter": 1}
"""How often a training sees every image: at 1 M and more, once."""

BYTES = {"manifest": 168, "tags": 21, "cues": 980, "labels": 2_504, "predictions": 2_332}
"""An image: measured on the small VOC (1,724 and 335 photographs), cues of 41 x 41 cells, masks of 500 x 375 pixels."""


def main() -> int:
    here = Path.cwd()
    met = True
    for what, sizes in SIZES.items():
        seconds = {stage: [math.inf] * len(sizes) for stage in STAGES}
        for _ in range(TURNS):
            for number, size in enumerate(sizes):
                try:
                    for stage, used in measured(size).items():
                        seconds[stage][number] = min(seconds[stage][number], used)
                finally:
                    os.chdir(here)
        numbers = [getattr(size, what) for size in sizes]
        print(f"{what} {', '.join(map(str, numbers))}:", flush=True)
        for stage, times in seconds.items():
            slope = exponent(numbers, times)
            met &= slope <= BAR
            print(f"  {stage:22} {', '.join(f'{t:.2f}' for t in times)} s of CPU: exponent {slope:.2f} (bar: {BAR})")
    on_paper()
    return 0 if met else 1


def measured(size: Size) -> dict[str, float]:
    """CPU seconds of each stage on a data set of that size."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        names = [f"class_{number}" for number in range(size.classes)]
        make_devkit(Path("voc"), n_train=size.images, n_val=size.images, classes=names)
        steps = {f"recipes.{recipe}.steps": 2 * size.images // BATCH for recipe in RECIPES}
        others = {
            f"pseudo_labels.{STOCHASTIC}.passes": size.passes,
            "evaluation.panels": 1,
            "dataset.duplicates": "allow",  # among so many drawn pictures some look alike
        }
        tiny_params(Path("params.yaml"), **steps, **others)
        for stage, changes in {
            "prepare": {},
            "split": {},
            "train_classifier": {"name": STOCHASTIC, "out": Path("stochastic")},
            "extract_pseudo_labels": {},
            "train_segmenter": {"system": SYSTEM, "labels": Path("pseudo_labels"), "start": Path("stochastic")},
            "evaluate": {"system": SYSTEM},
        }.items():
            begin = time.process_time()
            run_stages(stage, **changes)
            seconds[stage] = time.process_time() - begin
    return {stage: seconds[stage] for stage in STAGES}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope of a straight line through log time over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def on_paper() -> None:
    """GPU hours and storage of 1 M and 100 M images."""
    step = counted().flops
    flops = {
        "classifier": EPOCHS["classifier"] * step,
        "pseudo-labels": FORWARD * step,
        "segmenter": EPOCHS["segmenter"] * step,
        "prediction": FORWARD * step,
    }
    print(
        f"On paper, VGG-16 at 321 pixels, {PEAK / 1e12:.0f} TFLOP/s x {SHARE:.0%}, each image seen once a training: "
        f"{sum(flops.values()) / 1e9:.0f} GFLOP and {sum(BYTES.values()):,} bytes an image"
    )
    for images in (10**6, 10**8):
        hours = {stage: images * each / (PEAK * SHARE) / 3600 for stage, each in flops.items()}
        stored = {name: images * each / 1e9 for name, each in BYTES.items()}
        print(f"  {images:,} images: {sum(hours.values()):,.1f} GPU hours, {sum(stored.values()):,.1f} GB")
        print("    hours:", ", ".join(f"{stage} {value:,.2f}" for stage, value in hours.items()))
        print("    GB:", ", ".join(f"{name} {value:,.2f}" for name, value in stored.items()))


if __name__ == "__main__":
    sys.exit(main())
