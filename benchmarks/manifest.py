"""A manifest of a million images in shards: `python -m benchmarks.manifest`.

Measures seconds and the greatest memory of writing it, of the stage `split`, of opening a training of a classifier and
of a segmenter, from the start of the process to its first batch (bar: with a million images the whole process, torch
and a small network in it, takes 10 s and 1 GB), at 250,000 images and at a million, each in a process of its own; and
how both grow, by which it tells what ten million would take. Every picture is one of a thousand that are really there,
so batches are really read. `--images 20000` is a shorter look.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAR_SECONDS, BAR_GB = 10.0, 1.0
CLASSES = 20
PICTURES = 1000
"""That are really there."""
MASKED = 100
"""One of so many training images has a mask; one of so many images is to measure on."""
OPENINGS = ("train_classifier", "train_segmenter")
CLASSIFIER, SYSTEM, BACKBONE = "decoupled", "wssl", "vgg_fine"
FILES = {"manifest": Path("data/manifest.parquet"), "classes": Path("data/classes.json")}
TASKS = ("write", "split", *OPENINGS)
FEW = 1000
"""Images that take next to nothing."""
STEP = 4
"""Growth is told from so many times fewer images: of fewer still, the start of a process is all that one sees."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    images = parser.parse_args().images
    found: list[dict[str, tuple[float, float]]] = []
    for count in (FEW, images // STEP, images):
        print(f"{count:,} images:")
        found.append({})
        with tempfile.TemporaryDirectory(prefix="manifest-") as name:
            for task in TASKS:
                seconds, peak = found[-1][task] = measured(Path(name), task, count)
                print(f"  {task:16} {seconds:6.1f} s  {peak:5.2f} GB", flush=True)
            print(f"  the manifest has {(Path(name) / FILES['manifest']).stat().st_size / 1e6:.1f} MB")
    print(f"what {images:,} images take beside what a process with {FEW:,} does, how it grows, and ten times as many:")
    for task in TASKS:
        told = []
        for part, unit in ((0, "s"), (1, "GB")):
            less, more = (max(1e-3, side[task][part] - found[0][task][part]) for side in found[1:])
            power = math.log(more / less, STEP)
            told.append(f"{more:.2f} {unit}, exponent {power:.2f}, {more * 10**power:.1f} {unit}")
        print(f"  {task:16} {'; '.join(told)}")
    openings = [found[-1][task] for task in OPENINGS]
    return 0 if all(seconds <= BAR_SECONDS and peak <= BAR_GB for seconds, peak in openings) else 1


def measured(folder: Path, task: str, count: int) -> tuple[float, float]:
    """Seconds of a whole process, and its greatest memory in GB."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.manifest_task", task, str(count), str(folder)]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return time.perf_counter() - begin, float(done.stdout.rpartition("peak ")[2])


if __name__ == "__main__":
    sys.exit(main())
