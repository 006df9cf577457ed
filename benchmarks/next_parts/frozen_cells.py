"""A segmenter that is trained in a second: a layer over what a frozen trunk makes of cells, and a layer of tags.

For benchmarks that train hundreds of times. Each image is looked at once; the maps of the trunk's last two levels are
kept with fewer channels (principal components, of unit spread). Masks of some images teach a class a cell; the tags of
all images teach which classes an image shows, and the logarithm of that is added to the scores, as DecoupledNet's idea
is: tags say what, masks say where. Without it a class of many masks is found everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from segcore.config.networks import BackboneParams
from segcore.data.geometry import padded_square
from segcore.data.manifest import Record
from segcore.data.pictures import IGNORE, read_image, read_labels
from segcore.evaluation.metrics import ConfusionMatrix
from segcore.evaluation.per_image import ImageCounts
from segcore.evaluation.score_maps import Mean
from segcore.networks import backbones

SIZE, STRIDE = 320, 16
CELLS = SIZE // STRIDE
CHANNELS = (64, 128)
"""Kept of the last level but one, and of the last."""
SOME = 120
"""Training images that the components are of."""
DECAY, TAG_DECAY = 0.01, 0.02
ITERATIONS, TAG_ITERATIONS = 40, 60


@dataclass(frozen=True)
class Looked:
    """Cells by image, the class of each (255 where it is not known), and which lie in the picture."""

    place: dict[str, int]
    cells: Float[Tensor, "N P C"]
    labels: Int64[Tensor, "N P"]
    inside: Bool[Tensor, "N P"]

    def of(self, ids: Sequence[str]) -> "Looked":
        """The same of some images."""
        at = [self.place[image_id] for image_id in ids]
        place = {image_id: number for number, image_id in enumerate(ids)}
        return Looked(place, self.cells[at], self.labels[at], self.inside[at])

    def means(self) -> Float[Tensor, "N C"]:
        """Mean values of an image."""
        inside = self.inside[..., None]
        return (self.cells * inside).sum(1) / inside.sum(1)

    def pooled(self) -> Float[Tensor, "N 2C"]:
        """Mean and greatest values of an image."""
        return torch.cat([self.means(), self.cells.masked_fill(~self.inside[..., None], -1e4).amax(1)], dim=1)


def looked(records: Sequence[Record], trunk: str, weights: Path, keep: Path) -> Looked:
    """Look at each image once; what lies in `keep` is read. The components are of training images alone."""
    file, done = keep / "cells.npy", keep / "labels.npy"
    if not done.is_file():
        keep.mkdir(parents=True, exist_ok=True)
        look = _eyes(trunk, weights)
        train = [record for record in records if record.split == "train"]
        some = [train[n] for n in np.random.default_rng(0).permutation(len(train))[:SOME]]
        maps = [[level[_inside(record)] for level in look(record)] for record in some]
        bases = [
            _components(torch.cat(level), count) for level, count in zip(zip(*maps, strict=True), CHANNELS, strict=True)
        ]
        cells = np.lib.format.open_memmap(file, "w+", np.float16, (len(records), CELLS**2, sum(CHANNELS)))
        for number, record in enumerate(records):
            parts = [(level - mean) @ base for level, (mean, base) in zip(look(record), bases, strict=True)]
            cells[number] = torch.cat(parts, dim=1).numpy()
        cells.flush()
        np.save(done, np.stack([_at_cells(record) for record in records]))
    place = {record.image_id: number for number, record in enumerate(records)}
    labels = torch.from_numpy(np.load(done).astype(np.int64))
    inside = torch.stack([_inside(record) for record in records])
    return Looked(place, torch.from_numpy(np.load(file).astype(np.float32)), labels, inside)


def _eyes(name: str, weights: Path) -> Callable[[Record], list[Float[Tensor, "P _"]]]:
    """What a trunk makes of the cells of an image at its last two levels."""
    params = BackboneParams(
        name=name, weights=str(weights), width=1.0, frozen_norm=True, stride=STRIDE, finer="dilated"
    )  # fmt: skip
    trunk = backbones.build(params).eval()
    trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def look(record: Record) -> list[Float[Tensor, "P _"]]:
        picture = padded_square(read_image(record.image), SIZE)[None].float()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            levels = trunk(picture.to(memory_format=torch.channels_last)).levels[-len(CHANNELS) :]
        return [level[0, :, :CELLS, :CELLS].flatten(1).T.float() for level in levels]

    return look


def _components(cells: Float[Tensor, "N C"], count: int) -> tuple[Float[Tensor, " C"], Float[Tensor, "C c"]]:
    """The mean, and the greatest principal components, divided by their spread."""
    mean = cells.mean(0)
    values, vectors = torch.linalg.eigh(((cells - mean).T @ (cells - mean) / len(cells)).double())
    return mean, (vectors[:, -count:] / (values[-count:].sqrt() + 1e-3)).float()


def _at_cells(record: Record) -> np.ndarray:
    """The class in the middle of each cell; 255 beyond the picture and where there is no mask."""
    found = np.full((CELLS, CELLS), IGNORE, dtype=np.uint8)
    if record.labels is None:
        return found.ravel()
    truth = read_labels(record.labels)
    at = ((np.arange(CELLS) + 0.5) * max(truth.shape) / CELLS).astype(int)
    rows, columns = at[at < truth.shape[0]], at[at < truth.shape[1]]
    found[: len(rows), : len(columns)] = truth[np.ix_(rows, columns)]
    return found.ravel()


def _inside(record: Record) -> Bool[Tensor, " P"]:
    """Which cells lie in the picture."""
    middle = (torch.arange(CELLS) + 0.5) * max(record.height, record.width) / CELLS
    return ((middle < record.height)[:, None] & (middle < record.width)[None]).flatten()


@dataclass(frozen=True)
class Linear:
    """A linear layer of standardised features."""

    shift: Float[Tensor, " C"]
    scale: Float[Tensor, " C"]
    weight: Float[Tensor, "C K"]
    bias: Float[Tensor, " K"]

    def __call__(self, features: Float[Tensor, "*_ C"]) -> Float[Tensor, "*_ K"]:
        return ((features - self.shift) / self.scale) @ self.weight + self.bias


def of_masks(data: Looked, ids: Sequence[str], classes: int) -> Linear:
    """Scores of cells, learned from the masks of some images: every second cell, like the squares of a chessboard.

    A class counts by the root of its cells: few show any but background.
    """
    some = data.of(sorted(ids))
    white = (torch.arange(CELLS)[:, None] + torch.arange(CELLS)) % 2 == 0
    known = (some.labels != IGNORE) & white.flatten()
    features, labels = some.cells[known], some.labels[known]
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    weight = counts.rsqrt() / counts.rsqrt()[labels].mean()
    layer = Linear(torch.zeros(features.shape[1]), torch.ones(features.shape[1]), *_zeros(features.shape[1], classes))
    return _fitted(
        layer, lambda one: F.cross_entropy(one(features), labels, weight=weight), DECAY, ITERATIONS
    )  # fmt: skip


def of_tags(data: Looked, records: Sequence[Record], classes: int) -> Linear:
    """Scores of the classes 1..L of an image, learned from the tags of all `records`."""
    features = data.of([record.image_id for record in records]).pooled()
    shows = torch.zeros(len(records), classes - 1)
    for row, record in zip(shows, records, strict=True):
        row[[tag - 1 for tag in record.tags]] = 1
    layer = Linear(features.mean(0), features.std(0) + 1e-6, *_zeros(features.shape[1], classes - 1))

    def loss(one: Linear) -> Tensor:
        return F.binary_cross_entropy_with_logits(one(features), shows, reduction="none").mean(0).sum()

    return _fitted(layer, loss, TAG_DECAY, TAG_ITERATIONS)


def _zeros(channels: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(channels, classes, requires_grad=True), torch.zeros(classes, requires_grad=True)


def _fitted(layer: Linear, loss: Callable[[Linear], Tensor], decay: float, iterations: int) -> Linear:
    some = [layer.weight, layer.bias]
    optimiser = torch.optim.LBFGS(some, max_iter=iterations, history_size=8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = loss(layer) + decay / 2 * layer.weight.square().sum()
        total.backward()
        return total

    optimiser.step(closure)
    return replace(layer, weight=layer.weight.detach(), bias=layer.bias.detach())


@torch.no_grad()
def said(tags: Linear, data: Looked) -> Float[Tensor, "N L"]:
    """The logarithm of each tag's probability."""
    return F.logsigmoid(tags(data.pooled()))


@torch.no_grad()
def scores(masks: Linear, said_of_tags: Float[Tensor, "N L"], data: Looked) -> Float[Tensor, "N P K"]:
    """Of the cells of images: what masks say, and from class 1 on what `said` of the tags."""
    found = masks(data.cells)
    found[..., 1:] += said_of_tags[:, None]
    return found


def counted(data: Looked, found: Float[Tensor, "N P K"]) -> ImageCounts:
    """What scores of cells are worth at the cells."""
    parts = []
    for number, image_id in enumerate(data.place):
        alone = ConfusionMatrix(found.shape[2])
        truth, winners = (some.numpy().astype(np.uint8) for some in (data.labels[number], found[number].argmax(1)))
        alone.update(truth, winners)
        parts.append(ImageCounts.of(image_id, alone))
    return ImageCounts.merged(parts)


def counted_at_pixels(found: Float[Tensor, "N P K"], records: Sequence[Record]) -> ImageCounts:
    """What they are worth at every pixel of the images, which all have masks."""
    parts, classes = [], found.shape[2]
    for scores_of_one, record in zip(found, records, strict=True):
        assert record.labels is not None
        long = max(record.height, record.width)
        maps = Mean(record.height, record.width, (long, long), classes, 1)
        maps.add(scores_of_one.T.reshape(1, classes, CELLS, CELLS))
        alone = ConfusionMatrix(classes)
        alone.update(read_labels(record.labels), maps.winners())
        parts.append(ImageCounts.of(record.image_id, alone))
    return ImageCounts.merged(parts)
