"""What the systems that learn from combinatorial crops share."""

from typing import Any

import pandas as pd

from segcore.data.samples import COLUMNS, INDEX, CropSamples
from segcore.errors import Problem
from segcore.systems.contract import Inputs

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
        index = pd.read_parquet(file)
    except ValueError as error:  # what Arrow raises is one
        raise Problem(f"{file} is no crop index ({error}); {advice}") from error
    if missing := {*COLUMNS} - {*index.columns}:
        raise Problem(f"{file} is no crop index, it lacks the columns {sorted(missing)}; {advice}")
    inputs.check(sorted({*index["image_id"]}), inputs.strong)
    return CropSamples(index, inputs.records, inputs.n_tags, inputs.crops.warp, inputs.crops.input_size)
