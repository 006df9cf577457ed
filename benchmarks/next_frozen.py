"""Whether `segcore next` chooses better than chance, and why: `python -m benchmarks.next_frozen --weights FILE`.

`benchmarks.next` trains a system for each seed and arm, which takes hours. Here a frozen ResNet looks at every image
once, and what is trained is a layer of its cells (`benchmarks.frozen_cells`): a second. The rest is the command's own:
candidates with tags, what is expected of them, distances of mean maps, a budget in a person's time, which pays for as
many images in every arm. Arms beside `next` and `random` leave a part of it out, or know the truth.

`--on folds` looks at training images alone: a quarter, each in turn, is kept apart and measured at its cells, while
images are chosen from the rest; choices of ours are made there. `--on val` looks at validation images, at their own
size. Bar: more mIoU than random, with its interval over seeds and images, of the mean over budgets.

`--data` is a data set's folder, after `dvc repro split`. What was computed stays in `--keep`, so that a run that was
stopped goes on; empty it after a change of the layer.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks import frozen_cells
from benchmarks.frozen_cells import Linear, Looked
from segcore.acquisition.choice import Candidate, Cost, Known, choose
from segcore.acquisition.looking import uncertainty
from segcore.commands.next import seconds_of
from segcore.data.manifest import Record, read_class_names, read_ids, read_manifest
from segcore.data.pictures import IGNORE
from segcore.data.splits import per_class
from segcore.evaluation.per_image import ImageCounts
from segcore.reporting import comparison
from segcore.reporting.chance import Scored, difference
from segcore.seeds import derived_seed

FOLDS = 4
COST = Cost(20.0, 239.7)
ARMS = {
    "next": "as the command chooses: entropy, rarity, distance",
    "random": "",
    "entropy, rarity": "",
    "rarity, distance": "",
    "rarity": "",
    "entropy, distance": "the command until now",
    "entropy": "",
    "distance": "greedy k-centre",
    "loss, rarity, distance": "what is expected of the loss within the tags, in place of the entropy",
    "truth, rarity": "the true loss in place of the entropy",
    "truth": "",
}
"""What is multiplied, and what it is."""


@dataclass(frozen=True)
class Start:
    """Images that may be chosen from, some of which have masks, and a layer that learned from these."""

    data: Looked
    wanting: list[Record]
    known: list[Record]
    layer: Linear
    seed: int

    def chosen(self, arm: str, seconds: float) -> list[str]:
        """Ids, as many as the budget pays for."""
        if arm == "random":
            order = sorted(self.wanting, key=lambda record: derived_seed("next", self.seed, record.image_id))
            return [record.image_id for record in order][: int(seconds / COST.of("masks", True) + 1e-9)]
        parts = {*("entropy, rarity, distance" if arm == "next" else arm).split(", ")}
        alone = next(iter(parts & {"entropy", "loss", "truth"}), None)
        unsure = getattr(self, alone) if alone else self._as_drawn()
        rarity, distance = "rarity" in parts, "distance" in parts
        candidates = [
            Candidate(r.image_id, one, COST.of("masks", True), self._at(r, distance), r.tags if rarity else ())
            for r, one in zip(self.wanting, unsure, strict=True)
        ]
        known = [Known((r.label_classes or ()) if rarity else (), self._at(r, distance)) for r in self.known]
        return [one.candidate.image_id for one in choose(candidates, known, seconds)]

    def _at(self, record: Record, matters: bool) -> Float[np.ndarray, " C"]:
        """The mean of the image's cells, or what is as far from everything."""
        features = self._means[self.data.place[record.image_id]]
        return features if matters else np.zeros_like(features)

    @cached_property
    def _means(self) -> Float[np.ndarray, "N C"]:
        inside = self.data.inside[..., None]
        return ((self.data.cells * inside).sum(1) / inside.sum(1)).numpy()

    def _as_drawn(self) -> list[float]:
        """Nothing but who comes first among equals."""
        return (1 + 1e-6 * np.random.default_rng(derived_seed("equals", self.seed)).random(len(self.wanting))).tolist()

    @cached_property
    def entropy(self) -> list[float]:
        return [uncertainty(self._probabilities(record), [0, *record.tags]) for record in self.wanting]

    @cached_property
    def loss(self) -> list[float]:
        """1 - exp(-loss), the truth being one of the tags as often as the layer has it among them."""
        found = []
        for record in self.wanting:
            q = self._probabilities(record)[[0, *record.tags]].clamp(min=1e-8)
            found.append(1 - float(np.exp(float((q / q.sum(0) * q.log()).sum(0).mean()))))
        return found

    @cached_property
    def truth(self) -> list[float]:
        found = []
        for record in self.wanting:
            at = self.data.place[record.image_id]
            loss = F.cross_entropy(self.layer(self.data.cells[at]), self.data.labels[at], ignore_index=IGNORE)
            found.append(1 - float(np.exp(-float(loss))))
        return found

    def _probabilities(self, record: Record) -> Float[Tensor, "K P"]:
        at = self.data.place[record.image_id]
        return self.layer(self.data.cells[at][self.data.inside[at]]).softmax(1).T


@dataclass(frozen=True)
class Trial:
    """Data, start and budgets; counts of what was measured lie in `keep`."""

    data: Looked
    classes: list[str]
    start: int
    budgets: list[float]
    keep: Path

    def run(
        self, pool: Sequence[Record], measured: Sequence[Record], arms: Sequence[str], seed: int, at_cells: bool
    ) -> dict[tuple[str, float], ImageCounts]:
        """By arm and budget; the start has the budget 0."""
        shown = {record.image_id: record.label_classes for record in pool if record.label_classes}
        ids = {i for some in per_class(shown, self.classes, self.start, seed) for i in some}
        known = sorted((record for record in pool if record.image_id in ids), key=lambda record: record.image_id)
        wanting = [record for record in pool if record.image_id in shown.keys() - ids and record.tags]
        tags = frozen_cells.of_tags(self.data, pool, len(self.classes))
        start = Start(self.data, wanting, known, frozen_cells.of_masks(self.data, [*ids], len(self.classes)), seed)
        found = {("start", 0.0): self._counts(ids, tags, measured, at_cells)}
        for arm in arms:
            for seconds in self.budgets:
                more = start.chosen(arm, seconds)
                assert len(more) == int(seconds / COST.of("masks", True) + 1e-9)
                found[arm, seconds] = self._counts(ids.union(more), tags, measured, at_cells)
        return found

    def _counts(self, ids: set[str], tags: Linear, measured: Sequence[Record], at_cells: bool) -> ImageCounts:
        """Of a layer that the masks of `ids` taught."""
        told = "|".join([*sorted(ids), "on", *(r.image_id for r in measured), str(at_cells), f"{tags.bias.sum():.6f}"])
        file = self.keep / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.npz"
        if not file.is_file():
            layer = frozen_cells.of_masks(self.data, [*ids], len(self.classes))
            some = self.data.of([record.image_id for record in measured])
            found = frozen_cells.scores(layer, tags, some)
            counts = frozen_cells.counted(some, found) if at_cells else frozen_cells.counted_at_pixels(found, measured)
            np.savez_compressed(file, ids=np.array(counts.ids), counts=counts.counts)
        with np.load(file) as kept:
            return ImageCounts(tuple(kept["ids"].tolist()), kept["counts"])


def folds(records: Sequence[Record], seed: int) -> dict[str, int]:
    """The fold of each image: each has as many, but for one, of the images by their rarest tag."""
    names, counts = np.unique([tag for record in records for tag in record.tags], return_counts=True)
    count = dict(zip(names.tolist(), counts.tolist(), strict=True))
    order = sorted(records, key=lambda record: derived_seed("fold", seed, record.image_id))
    order.sort(key=lambda record: min(((count[tag], tag) for tag in record.tags), default=(0, 0)))
    return {record.image_id: number % FOLDS for number, record in enumerate(order)}


def on_folds(
    trial: Trial, train: Sequence[Record], arms: Sequence[str], seed: int
) -> dict[tuple[str, float], ImageCounts]:
    """As of one set of images: each was measured by layers that saw other folds alone."""
    fold = folds(train, seed)
    parts = []
    for number in range(FOLDS):
        pool = [record for record in train if fold[record.image_id] != number]
        apart = [record for record in train if fold[record.image_id] == number]
        parts.append(trial.run(pool, apart, arms, seed, at_cells=True))
    return {key: ImageCounts.merged([part[key] for part in parts]) for key in parts[0]}


class OverBudgets(Scored):
    """The mean over budgets of one arm and seed, which share their start: as one result."""

    def __init__(self, some: Sequence[Scored]) -> None:
        super().__init__(some[0].counts, some[0].pictures)
        self.mean_iou = float(np.mean([one.mean_iou for one in some]))
        self.drawn = np.mean([one.drawn for one in some], axis=0)


def told(found: Mapping[int, Mapping[tuple[str, float], ImageCounts]], budgets: Sequence[float]) -> bool:
    """Print the table, the best arm first; whether the bar is met."""
    arms = [arm for arm in ARMS if all((arm, budgets[0]) in counts for counts in found.values())]
    keys = next(iter(found.values()))
    means = {key: 100 * float(np.mean([counts[key].mean_iou for counts in found.values()])) for key in keys}
    every = {
        arm: {s: OverBudgets([Scored(counts[arm, b], "these") for b in budgets]) for s, counts in found.items()}
        for arm in arms
    }
    over = {arm: difference(every[arm], every["random"]) for arm in arms}
    print(f"start: {means['start', 0.0]:.1f}; budgets " + ", ".join(f"{b / 3600:g} h" for b in budgets))
    for arm in sorted(arms, key=lambda arm: -sum(means[arm, b] for b in budgets)):
        row = " ".join(f"{means[arm, b]:5.1f}" for b in budgets)
        print(f"{arm:>18} {row}   over random: {comparison.told(over[arm])}  {ARMS[arm]}", flush=True)
    best = over["next"]
    return best is not None and best.low > 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/voc_mini"))
    parser.add_argument("--weights", type=Path, required=True, help="of ImageNet, safetensors")
    parser.add_argument("--trunk", default="resnet50")
    parser.add_argument("--keep", type=Path, default=Path(".scratch/next_frozen"))
    parser.add_argument("--start", type=int, default=2, help="masks a class to begin with")
    parser.add_argument("--budgets", nargs="+", default=["1h", "2h", "4h"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--on", choices=("folds", "val"), default="folds")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    given = parser.parse_args(arguments)
    records = read_manifest(given.data / "prepared/manifest.parquet")
    classes = read_class_names(given.data / "prepared/classes.json")
    val = [records[i] for i in read_ids(given.data / "split/val.txt") if records[i].labels is not None]
    train = [record for record in records.values() if record.split == "train"]
    data = frozen_cells.looked([*train, *val], given.trunk, given.weights, given.keep)
    budgets = [seconds_of(text) for text in given.budgets]
    trial = Trial(data, classes, given.start, budgets, given.keep)
    arms = [arm for arm in ARMS if arm in {*given.arms, "next", "random"}]
    found = {}
    for seed in given.seeds:
        on_val = given.on == "val"
        found[seed] = trial.run(train, val, arms, seed, False) if on_val else on_folds(trial, train, arms, seed)
        print(f"seed {seed} is measured", flush=True)
    return 0 if told(found, budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
