"""Memory of `segcore predict` on pictures of 24 megapixels: `python -m benchmarks.predict_memory`.

Each line is a process of its own: batches of 1 and of 8, whole, and in windows. A batch holds squares of the network's
size, and photographs of this size are decoded one by one, so its peak may not grow with the batch (bar: 1.1 times).
DeepLab on EfficientNet-Lite0 with 21 classes, as the profile `own` has it, with random weights.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.prediction import random_model
from segcore import memory
from segcore.prediction import listing, run
from segcore.prediction.model import load
from segcore.prediction.tiles import Tiles

WIDTH, HEIGHT, PICTURES = 6000, 4000, 8
WINDOWS = Tiles(900, 225)
BAR = 1.1


def main() -> int:
    if len(sys.argv) > 1:
        folder, batch, pictures, windows = sys.argv[1:]
        predict(Path(folder), int(batch), int(pictures), windows == "windows")
        return 0
    with tempfile.TemporaryDirectory(prefix="large-") as name:
        folder = Path(name)
        draw(folder / "photos")
        random_model(folder / "model")
        alone, together = measured(folder, 1, PICTURES, "whole"), measured(folder, 8, PICTURES, "whole")
        parts = measured(folder, 8, 2, "windows")
    print(f"{WIDTH} x {HEIGHT} pixels, 21 classes, one thread:")
    print(f"  {PICTURES} pictures whole: batches of 1 {alone:.2f} GB, of 8 {together:.2f} GB (bar: {BAR:g}x)")
    print(f"  2 pictures in windows of {WINDOWS.size} that share {WINDOWS.overlap}: {parts:.2f} GB")
    return 0 if together <= BAR * alone else 1


def draw(folder: Path) -> None:
    folder.mkdir()
    for number in range(PICTURES):
        noise = np.random.default_rng(number).integers(0, 256, (50, 75, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")


def measured(folder: Path, batch: int, pictures: int, how: str) -> float:
    """The greatest memory of a process that predicts so, in GB."""
    command = [sys.executable, "-m", "benchmarks.predict_memory", str(folder), str(batch), str(pictures), how]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def predict(folder: Path, batch: int, pictures: int, in_windows: bool) -> None:
    memory.keep()
    model = load(folder / "model")
    if in_windows:
        model.in_windows(WINDOWS)
    photos = listing.photos([str(folder / "photos")])[:pictures]
    wanted = run.Wanted(False, False, batch, 0, 1, None)
    with tempfile.TemporaryDirectory() as out:
        for _ in run.predict_folder(model, folder / "model/model.safetensors", photos, Path(out), wanted):
            pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    sys.exit(main())
