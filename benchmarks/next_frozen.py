"""Whether `segcore next` chooses better than chance, in minutes: `python -m benchmarks.next_frozen --weights FILE`.

`benchmarks.next` trains a system for each seed and arm, which takes hours. Here a frozen ResNet-18 looks at every image
once, and what is trained is a layer of its cells' classes (logistic regression, from zeros, a fixed number of steps):
seconds. The rest is the command's own: candidates with tags, uncertainty among them, distances of the trunk's mean
maps, a budget in a person's time. Bar: more mIoU than random at the same budget, with its interval over seeds and
images, of the mean over budgets.

Images are chosen from training images alone, and no number here was set by validation images. What was computed stays
in `--keep`, so that a run that was stopped goes on. `--data` is a data set's folder, after `dvc repro split`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from segcore.acquisition.choice import Candidate, Cost, choose
from segcore.commands.next import seconds_of
from segcore.config.networks import BackboneParams
from segcore.data.geometry import padded_square
from segcore.data.manifest import Record, read_class_names, read_ids, read_manifest
from segcore.data.pictures import IGNORE, read_image, read_labels
from segcore.data.splits import per_class
from segcore.evaluation.metrics import ConfusionMatrix
from segcore.evaluation.per_image import ImageCounts
from segcore.evaluation.score_maps import Mean
from segcore.networks import backbones
from segcore.reporting import comparison
from segcore.reporting.chance import Scored, difference
from segcore.seeds import derived_seed

SIZE, STRIDE, STEPS, RATE, DECAY = 240, 16, 300, 0.02, 1e-3
CELLS = SIZE // STRIDE
ARMS = ("next", "random")
COST = Cost(20.0, 239.7)


@dataclass(frozen=True)
class Looked:
    """What a frozen trunk made of images: cells by image, and the class of each, 255 where it is not known."""

    place: dict[str, int]
    cells: Float[np.ndarray, "N C P"]
    labels: Int64[np.ndarray, "N P"]


def looked(records: Sequence[Record], weights: Path, keep: Path) -> Looked:
    """Look at each image once; what is there already is read."""
    file, done = keep / "cells.npy", keep / "labels.npy"
    if not done.is_file():
        params = BackboneParams(
            name="resnet18", weights=str(weights), width=1.0, frozen_norm=True, stride=STRIDE, finer="dilated"
        )
        trunk = backbones.build(params).eval()
        shape = (len(records), trunk.channels, CELLS**2)
        cells = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        labels = np.full((len(records), CELLS**2), IGNORE, dtype=np.uint8)
        for number, record in enumerate(records):
            with torch.no_grad():
                top = trunk(padded_square(read_image(record.image), SIZE)[None].float()).top
            cells[number] = top[0, :, :CELLS, :CELLS].flatten(1).numpy()
            labels[number] = _at_cells(record)
        cells.flush()
        np.save(done, labels)
    place = {record.image_id: number for number, record in enumerate(records)}
    return Looked(place, np.load(file, mmap_mode="r"), np.load(done).astype(np.int64))


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


class Layer:
    """Scores of K classes at the cells of images, learned from the masks of some."""

    def __init__(self, data: Looked, ids: Sequence[str], classes: int) -> None:
        places = [data.place[image_id] for image_id in ids]
        cells = torch.from_numpy(data.cells[places].astype(np.float32)).transpose(1, 2).flatten(0, 1)
        labels = torch.from_numpy(data.labels[places]).flatten()
        known = labels != IGNORE
        cells, labels = cells[known], labels[known]
        self.data, self.mean, self.std = data, cells.mean(0), cells.std(0) + 1e-3
        cells = (cells - self.mean) / self.std
        self.weight = torch.zeros(classes, cells.shape[1], requires_grad=True)
        self.bias = torch.zeros(classes, requires_grad=True)
        optimiser = torch.optim.Adam([self.weight, self.bias], RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(cells @ self.weight.T + self.bias, labels).backward()
            optimiser.step()

    @torch.no_grad()
    def __call__(self, image_id: str) -> Float[Tensor, "K P"]:
        cells = torch.from_numpy(self.data.cells[self.data.place[image_id]].astype(np.float32))
        return self.weight @ ((cells - self.mean[:, None]) / self.std[:, None]) + self.bias[:, None]


def by_next(layer: Layer, wanting: Sequence[Record], known: Sequence[str], seconds: float) -> list[str]:
    """As the command chooses."""
    candidates = []
    for record in wanting:
        among = [0, *record.tags]
        inside = _inside(record.height, record.width)
        p = layer(record.image_id).softmax(0)[among][:, inside].clamp(min=1e-8)
        p = p / p.sum(0, keepdim=True)
        uncertainty = float(-(p * p.log()).sum(0).mean() / np.log(len(among)))
        candidates.append(Candidate(record.image_id, uncertainty, COST.of("masks", True), _mean(layer.data, record)))
    seen = [layer.data.cells[layer.data.place[i]].astype(np.float32).mean(1) for i in known]
    return [one.candidate.image_id for one in choose(candidates, seen, seconds)]


def _mean(data: Looked, record: Record) -> Float[np.ndarray, " C"]:
    return data.cells[data.place[record.image_id]].astype(np.float32).mean(1)


def _inside(height: int, width: int) -> Tensor:
    """Which cells lie in a picture of that size."""
    middle = (torch.arange(CELLS) + 0.5) * max(height, width) / CELLS
    return ((middle < height)[:, None] & (middle < width)[None]).flatten()


def at_random(wanting: Sequence[Record], seed: int, seconds: float) -> list[str]:
    """As many as the budget pays for, in an order that is a function of seed and ids."""
    order = sorted(wanting, key=lambda record: derived_seed("next", seed, record.image_id))
    return [record.image_id for record in order][: int(seconds / COST.of("masks", True) + 1e-9)]


def measured(layer: Layer, val: Sequence[Record], classes: int) -> ImageCounts:
    """What a layer scores on validation images, at their own size."""
    parts = []
    for record in val:
        assert record.labels is not None
        long = max(record.height, record.width)
        maps = Mean(record.height, record.width, (long, long), classes, 1)
        maps.add(layer(record.image_id).view(1, classes, CELLS, CELLS))
        alone = ConfusionMatrix(classes)
        alone.update(read_labels(record.labels), maps.winners())
        parts.append(ImageCounts.of(record.image_id, alone))
    return ImageCounts.merged(parts)


@dataclass(frozen=True)
class Trial:
    """Data, start and budgets; counts of what was measured lie in `keep`."""

    data: Looked
    train: dict[str, Record]
    val: list[Record]
    classes: list[str]
    start: int
    keep: Path

    def run(self, seed: int, budgets: Sequence[float]) -> dict[tuple[str, float], ImageCounts]:
        """By arm and budget; the start has the budget 0."""
        shown = {i: r.label_classes for i, r in self.train.items() if r.label_classes}
        known = sorted(i for some in per_class(shown, self.classes, self.start, seed) for i in some)
        wanting = [r for i, r in sorted(self.train.items()) if i in shown and i not in known and r.tags]
        layer = Layer(self.data, known, len(self.classes))
        found = {("start", 0.0): self._counts(f"{seed}-start", layer)}
        for seconds in budgets:
            chosen = {"next": by_next(layer, wanting, known, seconds), "random": at_random(wanting, seed, seconds)}
            for arm, more in chosen.items():
                assert len(more) == len(chosen["random"])
                name = f"{seed}-{arm}-{seconds:.0f}"
                found[arm, seconds] = self._counts(name, Layer(self.data, [*known, *more], len(self.classes)))
        return found

    def _counts(self, name: str, layer: Layer) -> ImageCounts:
        file = self.keep / f"{name}-{self.start}.npz"
        if not file.is_file():
            counts = measured(layer, self.val, len(self.classes))
            np.savez(file, ids=np.array(counts.ids), counts=counts.counts)
        with np.load(file) as kept:
            return ImageCounts(tuple(kept["ids"].tolist()), kept["counts"])


class OverBudgets(Scored):
    """The mean over budgets of one arm and seed, which share their start: as one result."""

    def __init__(self, some: Sequence[Scored]) -> None:
        super().__init__(some[0].counts, some[0].pictures)
        self.mean_iou = float(np.mean([one.mean_iou for one in some]))
        self.drawn = np.mean([one.drawn for one in some], axis=0)


def told(found: dict[int, dict[tuple[str, float], ImageCounts]], budgets: Sequence[float]) -> bool:
    """Print the table; whether the bar is met."""
    scored = {seed: {key: Scored(one, "val") for key, one in counts.items()} for seed, counts in found.items()}
    print(f"start: {100 * np.mean([one['start', 0.0].mean_iou for one in scored.values()]):.1f}")
    for seconds in budgets:
        arms = {arm: {seed: one[arm, seconds] for seed, one in scored.items()} for arm in ARMS}
        means = {arm: 100 * np.mean([one.mean_iou for one in arms[arm].values()]) for arm in ARMS}
        over = comparison.told(difference(arms["next"], arms["random"]))
        print(f"{seconds / 3600:g} h: random {means['random']:.1f}, next {means['next']:.1f}; next over random: {over}")
    arms = {arm: {s: OverBudgets([one[arm, b] for b in budgets]) for s, one in scored.items()} for arm in ARMS}
    every = difference(arms["next"], arms["random"])
    print(f"mean over budgets: next over random {comparison.told(every)} points of mIoU (bar: above 0)")
    return every is not None and every.low > 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/voc_mini"))
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 of ImageNet, safetensors")
    parser.add_argument("--keep", type=Path, default=Path(".scratch/next_frozen"))
    parser.add_argument("--start", type=int, default=2, help="masks a class to begin with")
    parser.add_argument("--budgets", nargs="+", default=["1h", "2h", "4h"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(arguments)
    given.keep.mkdir(parents=True, exist_ok=True)
    records = read_manifest(given.data / "prepared/manifest.parquet")
    classes = read_class_names(given.data / "prepared/classes.json")
    val = [records[i] for i in read_ids(given.data / "split/val.txt") if records[i].labels is not None]
    train = {i: record for i, record in records.items() if record.split == "train"}
    data = looked([*train.values(), *val], given.weights, given.keep)
    trial = Trial(data, train, val, classes, given.start, given.keep)
    budgets = [seconds_of(text) for text in given.budgets]
    return 0 if told({seed: trial.run(seed, budgets) for seed in given.seeds}, budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
