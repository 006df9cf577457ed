"""What the systems that learn from combinatorial crops share."""

import pandas as pd

from segcore.data import crops
from segcore.data.samples import CropSamples
from segcore.errors import Problem
from segcore.networks.classifiers import Classifier, FullyConnectedHead
from segcore.systems.contract import Inputs


def fully_connected(classifier: Classifier) -> FullyConnectedHead:
    """The head of a classifier, for a system that goes on from its layers.

    Raises:
        Problem: it has no such layers.
    """
    if not isinstance(classifier.head, FullyConnectedHead):
        raise Problem(
            "this system goes on from the layers fc6 and fc7 of its classifier, which has none; "
            "set its `start` to a classifier with head.kind: fully_connected"
        )
    return classifier.head


def crop_samples(inputs: Inputs) -> CropSamples:
    """Training samples from the crop index.

    Raises:
        Problem: `labels` is no crop index, or one of other images.
    """
    advice = "this system learns from combinatorial crops; set its `labels` to the index that `make_crops` writes"
    if not inputs.labels.is_file():
        raise Problem(f"{inputs.labels} is no crop index; {advice}")
    try:
        index = pd.read_parquet(inputs.labels)
    except ValueError as error:  # what Arrow raises is one
        raise Problem(f"{inputs.labels} is no crop index ({error}); {advice}") from error
    if missing := {*crops.COLUMNS} - {*index.columns}:
        raise Problem(f"{inputs.labels} is no crop index, it lacks the columns {sorted(missing)}; {advice}")
    if strange := sorted({*index["image_id"]} - {*inputs.records}):
        raise Problem(f"{inputs.labels}: {strange[0]} is not in the manifest; run `dvc repro make_crops`")
    return CropSamples(index, inputs.records, inputs.n_tags, inputs.crops.warp, inputs.crops.input_size)
