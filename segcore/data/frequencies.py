"""How often classes are there among training samples: in their labels, and in their tags."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from segcore.data.addresses import Address
from segcore.data.batches import Mixed, Samples
from segcore.data.order import WithTags
from segcore.data.pictures import IGNORE, read_labels
from segcore.data.samples import known
from segcore.errors import Problem


@runtime_checkable
class Labelled(Protocol):
    """Samples with a file of labels each."""

    labels: Sequence[Address | None]


def labelled_pixels(samples: Samples, n_classes: int) -> Int64[Tensor, " K"]:
    """How many pixels of each class the labels of all samples have, uncut and at their own size.

    Raises:
        Problem: no sample has a file of labels, or one is broken.
    """
    counts, files = np.zeros(n_classes, dtype=np.int64), _files(samples)
    if not files:
        raise Problem("class_weights: these samples have no files of labels to count classes in; set kind: none")
    for path in files:
        labels = known(read_labels(path), n_classes - 1, path)
        counts += np.bincount(labels[labels != IGNORE], minlength=n_classes)
    return torch.from_numpy(counts)


def _files(samples: Samples) -> list[Address]:
    if isinstance(samples, Mixed):
        return [path for one in samples.sets for path in _files(one)]
    if not isinstance(samples, Labelled):
        return []
    return [path for path in samples.labels if path is not None]


def tag_table(samples: Samples, n_tags: int) -> Bool[np.ndarray, "N L"]:
    """Which tags each sample has.

    Raises:
        Problem: these samples do not say.
    """
    if not isinstance(samples, WithTags):
        raise Problem("these samples do not say their tags beforehand; set class_weights to kind: none")
    table = np.zeros((len(samples), n_tags), dtype=bool)
    for index in range(len(samples)):
        table[index, [tag - 1 for tag in samples.tags_of(index)]] = True
    return table


def tag_weights(tags: Bool[np.ndarray, "N L"], cap: float) -> np.ndarray:
    """How often a sample counts for a tag that it has: until both sides balance, at most `cap` times."""
    have = tags.sum(0)
    return np.minimum((len(tags) - have) / np.maximum(have, 1), cap)
