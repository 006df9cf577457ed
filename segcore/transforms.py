"""From a file to a training sample: read, scale, cut, flip, all decided by one seed."""

import cv2
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segcore import crops
from segcore.batches import Sample
from segcore.samples import IGNORE, Record, read_image, read_labels


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
        return Sample(record.image_id, _planes(image), tag_vector(record.tags, self.n_tags), unknown)


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


def _random_square(
    image: UInt8[np.ndarray, "H W 3"], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    top = rng.integers(0, image.shape[0] - size + 1)
    left = rng.integers(0, image.shape[1] - size + 1)
    return image[top : top + size, left : left + size]


def _planes(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
