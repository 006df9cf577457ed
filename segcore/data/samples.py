"""From a file to a training sample: read, scale, cut, flip, all decided by one seed."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segcore.data import crops
from segcore.data.batches import Sample
from segcore.data.pictures import IGNORE, Record, read_image, read_labels
from segcore.errors import Problem


def tag_vector(tags: tuple[int, ...] | list[int], n_tags: int) -> Float[Tensor, " L"]:
    """Class indices 1..L as 0/1."""
    vector = torch.zeros(n_tags)
    vector[[tag - 1 for tag in tags]] = 1
    return vector


class TaggedImages:
    """Weak training samples: short side scaled to `resize`, a random square cut out, flipped half of the time."""

    def __init__(self, records: list[Record], n_tags: int, resize: int, input_size: int) -> None:
        self.records = records
        self.n_tags = n_tags
        self.resize = resize
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, seed: int) -> Sample:
        record = self.records[index]
        rng = np.random.default_rng(seed)
        image = _random_square(_scaled(read_image(record.image), self.resize), self.input_size, rng)
        if rng.random() < 0.5:
            image = image[:, ::-1]
        size = self.input_size
        unknown = torch.full((size, size), IGNORE, dtype=torch.uint8)
        return Sample(record.image_id, _planes(image), tag_vector(record.tags, self.n_tags), unknown, strong=False)


class CropSamples:
    """Strong training samples: rows of a crop index, cut and warped, then a random square, flipped half of the time.

    The tags of a sample are the label subset that its crop was made for; its labels are all classes of the crop.
    """

    def __init__(
        self, index: pd.DataFrame, records: dict[str, Record], n_tags: int, warp: int, input_size: int
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

    def sample(self, index: int, seed: int) -> Sample:
        record = self.records[self.image_ids[index]]
        if record.labels is None:
            raise ValueError(f"{record.image_id} has crops but no labels")
        rng = np.random.default_rng(seed)
        image, labels = crops.cut(read_image(record.image), read_labels(record.labels), self.boxes[index], self.warp)
        top, left = rng.integers(0, self.warp - self.input_size + 1, size=2)
        window = np.s_[top : top + self.input_size, left : left + self.input_size]
        image, labels = image[window], labels[window]
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        tags = tag_vector(self.subsets[index], self.n_tags)
        return Sample(record.image_id, _planes(image), tags, torch.from_numpy(labels.copy()))


class LabelledImages:
    """Whole images with a class per pixel, made by a person or pseudo-labels, mirrored half of the time.

    Without `scales` image and labels are stretched to the square. With them both are scaled by a random factor in
    that range, and a random square is cut out; what it shows beyond the image is black (0) and unknown (255).

    Args:
        labels: the PNG of each record, of the image's size.
        every: keep the label of every n-th pixel, each way: those at the cells of a network of that stride.
        strong: whether a person made the labels.
    """

    def __init__(
        self,
        records: list[Record],
        labels: list[Path],
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

    def sample(self, index: int, seed: int) -> Sample:
        record, path = self.records[index], self.labels[index]
        image, labels = read_image(record.image), read_labels(path)
        if labels.shape != image.shape[:2]:
            raise Problem(f"{path} has {labels.shape} pixels (height, width), its image has {image.shape[:2]}")
        rng = np.random.default_rng(seed)
        size = self.input_size
        if self.scales is None:
            image, labels = _resized(image, size, size), _resized_labels(labels, size, size)
        else:
            scale = rng.uniform(*self.scales)
            width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
            image, labels = _resized(image, width, height), _resized_labels(labels, width, height)
            image, labels = _random_window(image, labels, size, rng)
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        kept = torch.from_numpy(labels[:: self.every, :: self.every].copy())
        return Sample(record.image_id, _planes(image), tag_vector(record.tags, self.n_tags), kept, self.strong)


class CueSamples:
    """Weak training samples: images stretched to the square, and their cues on a network's grid, mirrored together.

    Args:
        cues: the PNG of each record: `grid` x `grid` class indices, 255 where nothing is known.
    """

    def __init__(self, records: list[Record], cues: list[Path], n_tags: int, input_size: int, grid: int) -> None:
        self.records = records
        self.cues = cues
        self.n_tags = n_tags
        self.input_size = input_size
        self.grid = grid

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, seed: int) -> Sample:
        record, path = self.records[index], self.cues[index]
        cues = read_labels(path)
        if cues.shape != (self.grid, self.grid):
            raise Problem(f"{path} has {cues.shape} cells, the network {self.grid, self.grid}")
        image = _resized(read_image(record.image), self.input_size, self.input_size)
        if np.random.default_rng(seed).random() < 0.5:
            image, cues = image[:, ::-1], cues[:, ::-1]
        tags = tag_vector(record.tags, self.n_tags)
        return Sample(record.image_id, _planes(image), tags, torch.from_numpy(cues.copy()), strong=False)


def stretched_square(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[Tensor, "3 S S"]:
    """Scaled to `size` each way; the aspect is not kept."""
    return _planes(_resized(image, size, size))


def padded_square(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[Tensor, "3 S S"]:
    """Black to the right and below until square, then scaled to `size`, as the authors' inference does."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[:height, :width] = image
    return _planes(_resized(square, size, size))


def _scaled(image: UInt8[np.ndarray, "H W 3"], short: int) -> UInt8[np.ndarray, "h w 3"]:
    height, width = image.shape[:2]
    scale = short / min(height, width)
    return _resized(image, max(short, round(width * scale)), max(short, round(height * scale)))


def _resized(image: UInt8[np.ndarray, "H W 3"], width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _resized_labels(labels: UInt8[np.ndarray, "H W"], width: int, height: int) -> UInt8[np.ndarray, "h w"]:
    # INTER_NEAREST would shift labels against the image by up to a pixel; the exact one shares its pixel centres.
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _random_window(
    image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"], size: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "S S"]]:
    """A square of both, after filling up what is smaller than it below and to the right."""
    height, width = labels.shape
    below, right = max(0, size - height), max(0, size - width)
    image = np.pad(image, ((0, below), (0, right), (0, 0)))
    labels = np.pad(labels, ((0, below), (0, right)), constant_values=IGNORE)
    top = rng.integers(0, labels.shape[0] - size + 1)
    left = rng.integers(0, labels.shape[1] - size + 1)
    window = np.s_[top : top + size, left : left + size]
    return image[window], labels[window]


def _random_square(
    image: UInt8[np.ndarray, "H W 3"], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    top = rng.integers(0, image.shape[0] - size + 1)
    left = rng.integers(0, image.shape[1] - size + 1)
    return image[top : top + size, left : left + size]


def _planes(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
