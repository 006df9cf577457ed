"""Pictures of the best, the median and the worst predictions."""

import io
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.data.manifest import Record
from segcore.data.pictures import read_image, write_png
from segcore.evaluation.scoring import ScoredImage, chosen, read_truth
from segcore.files import fresh_folder
from segcore.reporting import panels


def write_panels(
    images: Sequence[ScoredImage], records: Mapping[str, Record], names: Sequence[str], n_panels: int, out: Path
) -> None:
    """out/panels/: image, truth, prediction and errors of the best, median and worst images."""
    folder, new = out / "panels", out / ".panels.partial"
    fresh_folder(new)
    try:
        for number, (kind, scored) in enumerate(chosen(images, n_panels)):
            record = records[scored.image_id]
            prediction = np.asarray(Image.open(io.BytesIO(scored.prediction)))
            title = f"{kind}: {scored.image_id}"
            title += "" if math.isnan(scored.mean_iou) else f", mIoU {scored.mean_iou:.3f} of its classes"
            page = panels.panel(read_image(record.image), read_truth(record, len(names)), prediction, names, title)
            write_png(new / f"{number:02d}_{kind}_{scored.image_id.replace('/', '_')}.png", page)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
