"""Whether `segcore next` chooses better than chance, and why: `python -m benchmarks.next_frozen --weights FILE`.

`benchmarks.next` trains a system for each seed and arm, which takes hours. Here a frozen ResNet looks at every image
once, and what is trained is a layer of its cells (`next_parts.frozen_cells`): a second. The rest is the command's own:
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
from pathlib import Path

import numpy as np

from benchmarks.next_parts import frozen_cells
from benchmarks.next_parts.arms import ARMS, COST, Start
from benchmarks.next_parts.frozen_cells import Looked
from segcore.commands.next import seconds_of
from segcore.data.manifest import Record, read_class_names, read_ids, read_manifest
from segcore.data.splits import per_class
from segcore.evaluation.per_image import ImageCounts
from segcore.reporting import comparison
from segcore.reporting.chance import Scored, difference
from segcore.seeds import derived_seed

FOLDS = 4


@dataclass(frozen=True)
class Outcome:
    """What a layer scores, and the classes of each image that was chosen for it."""

    counts: ImageCounts
    chosen: list[tuple[int, ...]]

    @classmethod
    def merged(cls, parts: "Sequence[Outcome]") -> "Outcome":
        return cls(
            ImageCounts.merged([part.counts for part in parts]), [some for part in parts for some in part.chosen]
        )

    @property
    def classes(self) -> float:
        """How many classes, as frequent as each other, would be as mixed: exp of the entropy of their shares."""
        _, counts = np.unique([tag for some in self.chosen for tag in some], return_counts=True)
        shares = counts / counts.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))


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
    ) -> dict[tuple[str, float], Outcome]:
        """By arm and budget; the start has the budget 0."""
        shown = {record.image_id: record.label_classes for record in pool if record.label_classes}
        ids = {i for some in per_class(shown, self.classes, self.start, seed) for i in some}
        known = sorted((record for record in pool if record.image_id in ids), key=lambda record: record.image_id)
        wanting = [record for record in pool if record.image_id in shown.keys() - ids and record.tags]
        tags = frozen_cells.of_tags(self.data, pool, len(self.classes))
        start = Start(self.data, wanting, known, frozen_cells.of_masks(self.data, [*ids], len(self.classes)), seed)
        apart = self.data.of([record.image_id for record in measured])
        say = frozen_cells.said(tags, apart)

        def counts(some: set[str]) -> ImageCounts:
            named = "|".join([*sorted(some), "on", *apart.place, str(at_cells), f"{tags.bias.sum():.6f}"])
            file = self.keep / f"{hashlib.sha256(named.encode()).hexdigest()[:24]}.npz"
            if not file.is_file():
                layer = frozen_cells.of_masks(self.data, [*some], len(self.classes))
                scores = frozen_cells.scores(layer, say, apart)
                new = (
                    frozen_cells.counted(apart, scores)
                    if at_cells
                    else frozen_cells.counted_at_pixels(scores, measured)
                )
                np.savez_compressed(file, ids=np.array(new.ids), counts=new.counts)
            with np.load(file) as kept:
                return ImageCounts(tuple(kept["ids"].tolist()), kept["counts"])

        found = {("start", 0.0): Outcome(counts(ids), [])}
        shows = {record.image_id: record.tags for record in pool}
        for arm in arms:
            for seconds in self.budgets:
                more = start.chosen(arm, seconds)
                assert len(more) == int(seconds / COST.of("masks", True) + 1e-9)
                found[arm, seconds] = Outcome(counts(ids.union(more)), [shows[image_id] for image_id in more])
        return found


def folds(records: Sequence[Record], seed: int) -> dict[str, int]:
    """The fold of each image: each has as many, but for one, of the images by their rarest tag."""
    names, counts = np.unique([tag for record in records for tag in record.tags], return_counts=True)
    count = dict(zip(names.tolist(), counts.tolist(), strict=True))
    order = sorted(records, key=lambda record: derived_seed("fold", seed, record.image_id))
    order.sort(key=lambda record: min(((count[tag], tag) for tag in record.tags), default=(0, 0)))
    return {record.image_id: number % FOLDS for number, record in enumerate(order)}


def on_folds(trial: Trial, train: Sequence[Record], arms: Sequence[str], seed: int) -> dict[tuple[str, float], Outcome]:
    """As of one set of images: each was measured by layers that saw other folds alone."""
    fold = folds(train, seed)
    parts = []
    for number in range(FOLDS):
        pool = [record for record in train if fold[record.image_id] != number]
        apart = [record for record in train if fold[record.image_id] == number]
        parts.append(trial.run(pool, apart, arms, seed, at_cells=True))
    return {key: Outcome.merged([part[key] for part in parts]) for key in parts[0]}


class OverBudgets(Scored):
    """The mean over budgets of one arm and seed, which share their start: as one result."""

    def __init__(self, some: Sequence[Scored]) -> None:
        super().__init__(some[0].counts, some[0].pictures)
        self.mean_iou = float(np.mean([one.mean_iou for one in some]))
        self.drawn = np.mean([one.drawn for one in some], axis=0)


def told(found: Mapping[int, Mapping[tuple[str, float], Outcome]], budgets: Sequence[float]) -> bool:
    """Print the table, the best arm first; whether the bar is met."""
    arms = [arm for arm in ARMS if all((arm, budgets[0]) in one for one in found.values())]
    keys = next(iter(found.values()))
    means = {key: 100 * float(np.mean([one[key].counts.mean_iou for one in found.values()])) for key in keys}
    every = {
        arm: {s: OverBudgets([Scored(one[arm, b].counts, "these") for b in budgets]) for s, one in found.items()}
        for arm in arms
    }
    over = {arm: difference(every[arm], every["random"]) for arm in arms}
    print(f"start: {means['start', 0.0]:.1f}; budgets " + ", ".join(f"{b / 3600:g} h" for b in budgets))
    for arm in sorted(arms, key=lambda arm: -sum(means[arm, b] for b in budgets)):
        row = " ".join(f"{means[arm, b]:5.1f}" for b in budgets)
        most = [one[arm, budgets[-1]] for one in found.values()]
        mixed = np.mean([one.classes for one in most])
        each = np.mean([len(some) for one in most for some in one.chosen])
        told_over = f"{comparison.told(over[arm])}; {mixed:.1f} classes, {each:.2f} an image"
        print(f"{arm:>22} {row}   over random: {told_over}; {ARMS[arm]}".rstrip("; "), flush=True)
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
