"""What the systems that learn from combinatorial crops share."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from segcore.data.manifest import wrong_ids
from segcore.data.pictures import LONGEST_SIDE
from segcore.data.samples import COLUMNS, INDEX, CropSamples
from segcore.errors import Problem
from segcore.systems.contract import Inputs

FARTHEST = 2 * LONGEST_SIDE
"""Pixels from the corner of its picture that a box may end at."""

SMALLEST: dict[str, Any] = {
    "start": "classifiers/any",
    "images": "strong",
    "labels": "crops",
    "training": {
        "recipe": "segmenter",
        "network": {
            "kind": "deconvolution",
            "width": 1 / 64,
            "output_stride": 1,
            "norm_batches": 2,
            "norm_batch_size": 4,
        },
    },
    "prediction": {"views": {"scales": [1.0], "flip": False}, "crf": None},
}
"""The part of all entries with a deconvolution network, as cheap as can be."""


def crop_samples(inputs: Inputs) -> CropSamples:
    """Training samples from the crop index.

    Raises:
        Problem: `labels` is no folder with a crop index, or one of other images than the strong ones.
    """
    file = inputs.labels / INDEX
    advice = "this system learns from combinatorial crops; set its `labels` to crops"
    if inputs.crops is None or not file.is_file():
        raise Problem(f"{inputs.labels} holds no crop index; {advice}")
    try:
        index = pq.read_table(file, page_checksum_verification=True).to_pandas()
    except (OSError, ValueError, NotImplementedError) as error:  # what Arrow raises is one of them
        raise Problem(f"{file} is no crop index ({error}); {advice}") from error
    if missing := {*COLUMNS} - {*index.columns}:
        raise Problem(f"{file} is no crop index, it lacks the columns {sorted(missing)}; {advice}")
    if (wrong := _wrong(index, inputs.n_tags)) is not None:
        raise Problem(f"{file} is no crop index: {wrong}; make the crops again")
    inputs.check(sorted({*index["image_id"]}), inputs.strong)
    return CropSamples(index, inputs.records, inputs.n_tags, inputs.crops.warp, inputs.crops.input_size)


def _wrong(index: pd.DataFrame, n_tags: int) -> str | None:
    """What cannot be in an index that `make_crops` wrote."""
    if index.empty:
        return "it is empty"
    if wrong := wrong_ids(index["image_id"].unique()):
        return wrong[0]
    boxes = index[list(COLUMNS[2:])]
    if not all(boxes[side].dtype.kind == "i" for side in boxes.columns):
        return "its boxes are no whole numbers"
    sides = np.stack([boxes["x2"] - boxes["x1"], boxes["y2"] - boxes["y1"]])
    if sides.min() < 1 or boxes.abs().to_numpy().max() > FARTHEST:
        return f"it has boxes that no picture can have, {boxes.iloc[int(sides.min(0).argmin())].tolist()} say"
    subsets = {label for subset in index["labels"] for label in (subset if isinstance(subset, np.ndarray) else [None])}
    odd = [label for label in subsets if not (isinstance(label, int | np.integer) and 0 < label <= n_tags)]
    return f"it has the label {odd[0]}; allowed are 1..{n_tags}" if odd else None
