"""EdgeBoxes crops of a 500x375 picture on one core: `python -m benchmarks.crops [VOC2012 folder]`.

Times everything from file to boxes as the stage does it, one picture after the other, and prints the median. With a
VOC folder (or SEGCORE_VOC_ROOT) the pictures are its photographs, otherwise cluttered scenes drawn here.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from segcore.config import settings
from segcore.data import crops
from segcore.data.manifest import Record
from segcore.data.pictures import write_labels

BAR_SECONDS = 0.3
PICTURES = 40


def main() -> int:
    cv2.setNumThreads(1)
    params = settings.load(Path("params.yaml")).crops
    root = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SEGCORE_VOC_ROOT")
    with tempfile.TemporaryDirectory() as folder:
        records = photographs(Path(root)) if root else scenes(Path(folder))
        seconds = []
        subsets = 0
        for record in records:
            begin = time.perf_counter()
            made = crops.image_crops(record, params, seed=0)
            seconds.append(time.perf_counter() - begin)
            subsets += len(made.subsets)
    median = statistics.median(seconds)
    kind = "photographs" if root else "drawn scenes"
    print(
        f"EdgeBoxes crops on one core, {len(records)} {kind} of about 500x375, "
        f"{subsets} subsets of {params.per_subset} boxes:"
    )
    print(f"  median {median:.3f} s an image, slowest {max(seconds):.3f} s (bar: median <= {BAR_SECONDS} s)")
    return 0 if median <= BAR_SECONDS else 1


def photographs(root: Path) -> list[Record]:
    """The first VOC photographs with masks whose longer side is 500 pixels."""
    records = []
    for path in sorted((root / "SegmentationClass").glob("*.png")):
        with Image.open(path) as image:
            width, height = image.size
        if max(width, height) == 500 and len(records) < PICTURES:
            picture = root / f"JPEGImages/{path.stem}.jpg"
            records.append(Record(path.stem, picture, path, width, height, (), "train", "", "", ()))
    return records


def scenes(folder: Path) -> list[Record]:
    """Ellipses of every size over textured ground, two classes outlined; harder on EdgeBoxes than most photographs."""
    records = []
    for number in range(PICTURES):
        draw = np.random.default_rng(number)
        ground = draw.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        image = cv2.GaussianBlur(ground, (0, 0), float(draw.uniform(2, 6)))
        labels = np.zeros((375, 500), dtype=np.uint8)
        for shape in range(30):
            centre = (int(draw.integers(500)), int(draw.integers(375)))
            axes = (int(draw.integers(8, 90)), int(draw.integers(8, 90)))
            colour = tuple(int(value) for value in draw.integers(0, 256, 3))
            cv2.ellipse(image, centre, axes, float(draw.uniform(0, 180)), 0, 360, colour, -1)
            cv2.ellipse(labels, centre, axes, 0.0, 0, 360, (shape % 3 == 0) + (shape % 7 == 0), -1)
        records.append(
            Record(
                f"scene_{number}",
                folder / f"{number}.png",
                folder / f"{number}_l.png",
                500,
                375,
                (),
                "train",
                "",
                "",
                (),
            )
        )
        Image.fromarray(image).save(records[-1].image)
        write_labels(folder / f"{number}_l.png", labels)
    return records


if __name__ == "__main__":
    sys.exit(main())
