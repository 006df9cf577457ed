"""Labelled images at random sizes: whole images with their labels, or pairs of an image and one tag.

An image is scaled so that its longer side is a random factor times the side of the network's squares; a random square
is cut out, mirrored half of the time, and made a little darker or brighter. All of that is drawn anew each time, or
once for each view of a bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from segcore.data.addresses import Address
from segcore.data.batches import Sample
from segcore.data.geometry import planes, random_window, resized, resized_labels
from segcore.data.manifest import Record
from segcore.data.pictures import IGNORE, read_image, read_labels
from segcore.data.records import tags_at
from segcore.data.samples import known, tag_vector
from segcore.errors import Problem
from segcore.seeds import derived_seed

Picture = UInt8[np.ndarray, "S S 3"]
Labels = UInt8[np.ndarray, "S S"]


@dataclass(frozen=True)
class Bank:
    """So many fixed views of each image, one of which is shown each time: what a frozen trunk makes of them repeats.

    A view is a function of the seed, the image's id and the view's number.
    """

    views: int
    seed: int

    def view(self, image_id: str, rng: np.random.Generator) -> np.random.Generator:
        """What one of the views, which `rng` chooses, is drawn by."""
        return np.random.default_rng(derived_seed(self.seed, image_id, int(rng.integers(self.views))))


@dataclass(frozen=True)
class Zoom:
    """How pictures differ from one time to the next.

    Attributes:
        input_size: side of the square that is cut out, in pixels.
        scales: least and greatest length of the longer side, over `input_size`.
        brightness: colours are multiplied by a factor from 1 - brightness to 1 + brightness, in 0..1.
        bank: the fixed views that there are of each image; None if every one is new.
    """

    input_size: int
    scales: tuple[float, float]
    brightness: float
    bank: Bank | None = None

    def draws(self, image_id: str, rng: np.random.Generator) -> np.random.Generator:
        """What a square of the image is drawn by: `rng` itself, or that of one of the fixed views, which it chooses."""
        return rng if self.bank is None else self.bank.view(image_id, rng)

    def __call__(
        self, image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"], rng: np.random.Generator
    ) -> tuple[Picture, Labels]:
        """A square of both; what it shows beyond the image is black (0) and unknown (255)."""
        factor = rng.uniform(*self.scales) * self.input_size / max(labels.shape)
        height, width = (max(1, round(side * factor)) for side in labels.shape)
        image, labels = resized(image, width, height), resized_labels(labels, width, height)
        image, labels = random_window(image, labels, self.input_size, rng)
        mirrored = rng.random() < 0.5
        image = brighter(image, rng.uniform(1 - self.brightness, 1 + self.brightness))
        return (image[:, ::-1], labels[:, ::-1]) if mirrored else (image, labels)


def brighter(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Colours times a factor, rounded; a table of the 256 there are is a tenth of the work."""
    table = np.clip(np.rint(np.arange(256, dtype=np.uint8) * np.float32(factor)), 0, 255)
    return cv2.LUT(image, table.astype(np.uint8))


class ZoomedImages:
    """Whole images with a class per pixel.

    Args:
        labels: the PNG of each record, of the image's size.
        strong: whether a person made the labels.
    """

    def __init__(
        self, records: Sequence[Record], labels: Sequence[Address], n_tags: int, zoom: Zoom, strong: bool
    ) -> None:
        self.records = records
        self.labels = labels
        self.n_tags = n_tags
        self.zoom = zoom
        self.input_size = zoom.input_size
        self.strong = strong

    def __len__(self) -> int:
        return len(self.records)

    def tags_of(self, index: int) -> Sequence[int]:
        return tags_at(self.records, index)

    def sample(self, index: int, seed: int) -> Sample:
        image, labels, _ = self._zoomed(index, seed)
        tags = self.records[index].tags
        return self._as_sample(index, image, labels, tags)

    def _zoomed(self, index: int, seed: int) -> tuple[Picture, Labels, np.random.Generator]:
        record, path = self.records[index], self.labels[index]
        image, labels = read_image(record.image), known(read_labels(path), self.n_tags, path)
        if labels.shape != image.shape[:2]:
            raise Problem(f"{path} has {labels.shape} pixels (height, width), its image has {image.shape[:2]}")
        rng = np.random.default_rng(seed)
        return *self.zoom(image, labels, self.zoom.draws(record.image_id, rng)), rng

    def _as_sample(self, index: int, image: Picture, labels: Labels, tags: Sequence[int]) -> Sample:
        kept = torch.from_numpy(labels.copy())
        return Sample(self.records[index].image_id, planes(image), tag_vector([*tags], self.n_tags), kept, self.strong)


class ZoomedTagged:
    """Whole images by their tags: nothing is known of their pixels. What a square shows beyond its image is black."""

    def __init__(self, records: Sequence[Record], n_tags: int, zoom: Zoom) -> None:
        self.records = records
        self.n_tags = n_tags
        self.zoom = zoom
        self.input_size = zoom.input_size

    def __len__(self) -> int:
        return len(self.records)

    def tags_of(self, index: int) -> Sequence[int]:
        return tags_at(self.records, index)

    def sample(self, index: int, seed: int) -> Sample:
        record = self.records[index]
        image = read_image(record.image)
        unknown = np.full(image.shape[:2], IGNORE, np.uint8)
        image, labels = self.zoom(image, unknown, self.zoom.draws(record.image_id, np.random.default_rng(seed)))
        kept = torch.from_numpy(labels.copy())
        return Sample(record.image_id, planes(image), tag_vector(record.tags, self.n_tags), kept, strong=False)


class Pairs(ZoomedImages):
    """Pairs of an image and a tag: the tags of a sample are that one alone, its labels those of all classes.

    A share `absent` of the pairs are of a tag that the image lacks, whose every known pixel is background. Of the
    others, the tag is one of the classes that the square shows, or of the image's where it shows none.
    """

    def __init__(
        self, records: Sequence[Record], labels: Sequence[Address], n_tags: int, zoom: Zoom, strong: bool, absent: float
    ) -> None:
        super().__init__(records, labels, n_tags, zoom, strong)
        self.absent = absent

    def sample(self, index: int, seed: int) -> Sample:
        image, labels, rng = self._zoomed(index, seed)
        there = {*self.records[index].tags}
        shown = [tag for tag in np.unique(labels).tolist() if 0 < tag <= self.n_tags]
        lacking = sorted({*range(1, self.n_tags + 1)} - there - {*shown})
        if lacking and (rng.random() < self.absent or not there):
            tag = lacking[rng.integers(len(lacking))]
        else:
            among = shown or sorted(there) or [*range(1, self.n_tags + 1)]
            tag = among[rng.integers(len(among))]
        return self._as_sample(index, image, labels, [tag])
