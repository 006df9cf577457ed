"""From a file to a training sample: read, scale, cut, flip, all decided by one seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from segcore.data import geometry
from segcore.data.addresses import Address
from segcore.data.batches import Sample
from segcore.data.geometry import planes, random_square, random_window, resized, resized_labels, scaled
from segcore.data.manifest import Record
from segcore.data.pictures import IGNORE, read_image, read_labels
from segcore.data.records import tags_at
from segcore.errors import Problem

INDEX = "crops.parquet"
"""The crop index in the folder of crops."""

COLUMNS = ("image_id", "labels", "x1", "y1", "x2", "y2")
"""Of the index of crops; `labels` lists the classes of the subset."""


def tag_vector(tags: tuple[int, ...] | list[int], n_tags: int) -> Float[Tensor, " L"]:
    """Class indices 1..L as 0/1."""
    vector = torch.zeros(n_tags)
    vector[[tag - 1 for tag in tags]] = 1
    return vector


def binary_labels(
    labels: Int[Tensor, "B H W"], subset: Bool[Tensor, "B L"] | Float[Tensor, "B L"]
) -> Int[Tensor, "B H W"]:
    """The target z^P: 1 where a pixel's class is in P, 0 for background and every class outside of P, 255 kept.

    Column l - 1 of `subset` is class l (no background); `labels` are 0..255.
    """
    table = labels.new_zeros(len(labels), 256)
    table[:, 1 : subset.shape[1] + 1] = subset.to(table.dtype)
    table[:, IGNORE] = IGNORE
    return table.gather(1, labels.flatten(1).long()).view_as(labels)


def known(labels: UInt8[np.ndarray, "H W"], n_tags: int, path: Address) -> UInt8[np.ndarray, "H W"]:
    """The labels, all of which are classes of the data set or unknown.

    Raises:
        Problem: they are not; the file is another one than was checked.
    """
    if (beyond := labels[(labels > n_tags) & (labels != IGNORE)]).size:
        raise Problem(f"{path}: found label {beyond[0]}; allowed are 0..{n_tags} and {IGNORE}: make it anew")
    return labels


class TaggedImages:
    """Weak training samples: short side scaled to `resize`, a random square cut out, flipped half of the time.

    Without `resize` images are stretched to the square, so that all that their tags name is in it.
    """

    def __init__(self, records: Sequence[Record], n_tags: int, resize: int | None, input_size: int) -> None:
        self.records = records
        self.n_tags = n_tags
        self.resize = resize
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.records)

    def tags_of(self, index: int) -> Sequence[int]:
        """The class indices, 1..L, of a sample's tags."""
        return tags_at(self.records, index)

    def sample(self, index: int, seed: int) -> Sample:
        record = self.records[index]
        rng, size = np.random.default_rng(seed), self.input_size
        image = read_image(record.image)
        if self.resize is None:
            image = resized(image, size, size)
        else:
            image = random_square(scaled(image, self.resize), size, rng)
        if rng.random() < 0.5:
            image = image[:, ::-1]
        unknown = torch.full((size, size), IGNORE, dtype=torch.uint8)
        return Sample(record.image_id, planes(image), tag_vector(record.tags, self.n_tags), unknown, strong=False)


class CropSamples:
    """Strong training samples: rows of a crop index, cut and warped, then a random square, flipped half of the time.

    The tags of a sample are the label subset that its crop was made for, all labels of the image where the crop is the
    whole of it; its labels are all classes of the crop.
    """

    def __init__(
        self, index: pd.DataFrame, records: Mapping[str, Record], n_tags: int, warp: int, input_size: int
    ) -> None:
        self.image_ids = index["image_id"].tolist()
        self.subsets = [[int(label) for label in subset] for subset in index["labels"]]
        self.boxes = index[["x1", "y1", "x2", "y2"]].to_numpy()
        self.records = records
        self.n_tags = n_tags
        self.warp = warp
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.image_ids)

    def tags_of(self, index: int) -> Sequence[int]:
        """The class indices, 1..L, of a sample's tags."""
        return self.subsets[index]

    def sample(self, index: int, seed: int) -> Sample:
        record = self.records[self.image_ids[index]]
        if record.labels is None:
            raise ValueError(f"{record.image_id} has crops but no labels")
        rng = np.random.default_rng(seed)
        labels = known(read_labels(record.labels), self.n_tags, record.labels)
        image, labels = geometry.cut(read_image(record.image), labels, self.boxes[index], self.warp)
        top, left = rng.integers(0, self.warp - self.input_size + 1, size=2)
        window = np.s_[top : top + self.input_size, left : left + self.input_size]
        image, labels = image[window], labels[window]
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        tags = tag_vector(self.subsets[index], self.n_tags)
        return Sample(record.image_id, planes(image), tags, torch.from_numpy(labels.copy()))


class LabelledImages:
    """Whole images with a class per pixel, made by a person or pseudo-labels, mirrored half of the time.

    Without `scales` image and labels are stretched to the square. With them both are scaled by a random factor in
    that range, and a random square is cut out; what it shows beyond the image is black (0) and unknown (255).

    Args:
        labels: the PNG of each record, of the image's size; None where nothing is known of its pixels.
        every: keep the label of every n-th pixel, each way: those at the cells of a network of that stride.
        strong: whether a person made the labels.
    """

    def __init__(
        self,
        records: Sequence[Record],
        labels: Sequence[Address | None],
        n_tags: int,
        input_size: int,
        scales: tuple[float, float] | None = None,
        every: int = 1,
        strong: bool = True,
    ) -> None:
        self.records = records
        self.labels = labels
        self.n_tags = n_tags
        self.input_size = input_size
        self.scales = scales
        self.every = every
        self.strong = strong

    def __len__(self) -> int:
        return len(self.records)

    def tags_of(self, index: int) -> Sequence[int]:
        """The class indices, 1..L, of a sample's tags."""
        return tags_at(self.records, index)

    def sample(self, index: int, seed: int) -> Sample:
        record, path = self.records[index], self.labels[index]
        image = read_image(record.image)
        if path is None:
            labels = np.full(image.shape[:2], IGNORE, dtype=np.uint8)
        else:
            labels = known(read_labels(path), self.n_tags, path)
        if labels.shape != image.shape[:2]:
            raise Problem(f"{path} has {labels.shape} pixels (height, width), its image has {image.shape[:2]}")
        rng = np.random.default_rng(seed)
        size = self.input_size
        if self.scales is None:
            image, labels = resized(image, size, size), resized_labels(labels, size, size)
        else:
            scale = rng.uniform(*self.scales)
            width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
            image, labels = resized(image, width, height), resized_labels(labels, width, height)
            image, labels = random_window(image, labels, size, rng)
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        kept = torch.from_numpy(labels[:: self.every, :: self.every].copy())
        return Sample(record.image_id, planes(image), tag_vector(record.tags, self.n_tags), kept, self.strong)


class CueSamples:
    """Weak training samples: images stretched to the square, and their cues on a network's grid, mirrored together.

    Args:
        cues: the PNG of each record: `grid` x `grid` class indices, 255 where nothing is known.
    """

    def __init__(self, records: Sequence[Record], cues: list[Path], n_tags: int, input_size: int, grid: int) -> None:
        self.records = records
        self.cues = cues
        self.n_tags = n_tags
        self.input_size = input_size
        self.grid = grid

    def __len__(self) -> int:
        return len(self.records)

    def tags_of(self, index: int) -> Sequence[int]:
        """The class indices, 1..L, of a sample's tags."""
        return tags_at(self.records, index)

    def sample(self, index: int, seed: int) -> Sample:
        record, path = self.records[index], self.cues[index]
        cues = known(read_labels(path), self.n_tags, path)
        if cues.shape != (self.grid, self.grid):
            raise Problem(f"{path} has {cues.shape} cells, the network {self.grid, self.grid}")
        image = resized(read_image(record.image), self.input_size, self.input_size)
        if np.random.default_rng(seed).random() < 0.5:
            image, cues = image[:, ::-1], cues[:, ::-1]
        tags = tag_vector(record.tags, self.n_tags)
        return Sample(record.image_id, planes(image), tags, torch.from_numpy(cues.copy()), strong=False)
