"""Memory of large pictures: twenty of 24 megapixels and 21 classes: `python -m benchmarks.large_pictures`.

Measures the greatest memory that the stage `evaluate` takes (bar: 1.5 GB) with `evaluation.batch_size` 16, and that of
pseudo-labels from its predictions. The system is a small one that nobody trained: what is measured is what becomes of
its scores. `--pictures 3` is a shorter look at the same.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.data.pictures import write_labels
from tests.devkit import PROJECT, voc_section
from tests.tiny import tiny_params

WIDTH, HEIGHT = 6000, 4000
CLASSES = 20
BAR_GB = 1.5
SYSTEM, CLASSIFIER, LABELS = "deeplab", "decoupled_str", "again"
MEASURED = """
import resource, sys
from importlib import import_module
from pathlib import Path
stage, *options = sys.argv[1:]
options = dict(option.split("=", 1) for option in options)
import_module(f"stages.{stage}").main(**{k: v if k in ("name", "system") else Path(v) for k, v in options.items()})
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=20)
    pictures = parser.parse_args().pictures
    with tempfile.TemporaryDirectory(prefix="large-") as name:
        folder = Path(name)
        draw(folder / "voc", pictures)
        write_params(folder / "params.yaml")
        known = {"manifest": "data/manifest.parquet", "classes": "data/classes.json", "split": "split"}
        run(folder, "prepare", out="data")
        run(folder, "split", manifest=known["manifest"], classes=known["classes"], out="split", masks="masks")
        run(folder, "train_classifier", **known, name=CLASSIFIER, out="classifier")
        run(folder, "train_segmenter", **known, system=SYSTEM, labels="masks", start="classifier", out="segmenter")
        evaluation = run(folder, "evaluate", **known, system=SYSTEM, model="segmenter/model", out="results")
        labels = run(folder, "extract_pseudo_labels", **known, name=LABELS, input="segmenter", out="labels")
    print(f"{pictures} pictures of {WIDTH} x {HEIGHT} pixels, {CLASSES + 1} classes, batch_size 16:")
    for what, peak in (("evaluate", evaluation), ("pseudo-labels", labels)):
        print(f"  {what}: {peak:.2f} GB (bar: <= {BAR_GB} GB)")
    return 0 if max(evaluation, labels) <= BAR_GB else 1


def draw(root: Path, pictures: int) -> None:
    """A data set of VOC's layout: small pictures to train on, large ones to validate and to label."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"c{number}" for number in range(CLASSES)]
    (root / "classes.txt").write_text("\n".join(["background", *names]) + "\n")
    small = [(f"small_{number}", 90, 60, number) for number in range(CLASSES)]
    large = [(f"large_{number}", WIDTH, HEIGHT, number % CLASSES) for number in range(pictures)]
    weak = [(f"weak_{number}", WIDTH, HEIGHT, number % CLASSES) for number in range(pictures)]
    for name, width, height, number in [*small, *large, *weak]:
        rng = np.random.default_rng([width, number])
        image = np.full((height, width, 3), 40, np.uint8)
        labels = np.zeros((height, width), np.uint8)
        inside = np.s_[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
        image[inside], labels[inside] = rng.integers(90, 256, 3), number + 1
        image[: height // 8, : width // 8] = rng.integers(0, 256, 3)  # no two are copies of each other
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg", quality=80)
        write_labels(root / f"SegmentationClass/{name}.png", labels)
    for split, some in (("train", [*small, *weak]), ("val", large)):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name, *_ in some))
    (root.parent / "strong.txt").write_text("".join(f"{name}\n" for name, *_ in small))


def write_params(path: Path) -> None:
    labels = {
        "images": "weak", "source": "segmenter", "input": f"segmenters/{SYSTEM}", "input_size": 65, "batch_size": 16,
        "views": "single", "restrict_to_tags": True, "crf": None,
    }  # fmt: skip
    tiny_params(
        path,
        **{
            "dataset": voc_section("voc") | {"duplicates": "allow"},
            "split.strong": {"kind": "list", "file": "strong.txt"},
            "evaluation.batch_size": 16,
            f"pseudo_labels.{LABELS}": labels,
        },
    )


def run(folder: Path, stage: str, **options: str) -> float:
    """Run a stage in a process of its own; its greatest memory in GB."""
    command = [sys.executable, "-c", MEASURED, stage, *(f"{key}={value}" for key, value in options.items())]
    environment = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{stage} failed:\n{done.stdout}\n{done.stderr}")
    return float(done.stdout.rpartition("peak ")[2])


if __name__ == "__main__":
    sys.exit(main())
