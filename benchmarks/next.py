"""Whether `segcore next` chooses better than chance: `python -m benchmarks.next --system deeplab --budget 4h`.

In a project (bar: on the small VOC, `make use PROFILE=voc-mini`, more than 0 with its interval): for each seed the
system is trained on `--start` masks a class; then, for the same budget, images are chosen by `next` or at random among
the same candidates, their masks are added, and the system is trained again from the beginning. Told are the mIoU of
each, and the difference of `next` and of random with its interval over seeds and images.

Everything runs by `dvc repro` in copies of the project that share its cache, so that the workspace stays as it is and a
run that was killed goes on. Training images alone are chosen from; what is kept lies in `.scratch/next/`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segcore.acquisition.choice import Candidate, Cost, Known, choose
from segcore.acquisition.looking import Looker
from segcore.acquisition.pool import Pool, pool
from segcore.cli import command
from segcore.cli.experiments import Copies
from segcore.commands.next import seconds_of
from segcore.config.settings import Settings
from segcore.data.addresses import seen_from
from segcore.data.pictures import read_image
from segcore.errors import Problem
from segcore.files import write_atomically
from segcore.prediction.model import load
from segcore.reporting import comparison, kept
from segcore.reporting.chance import difference
from segcore.reporting.reading import read_scores
from segcore.reporting.results import scored_by_seed
from segcore.seeds import derived_seed

FOLDER = Path(".scratch/next")
ARMS = ("next", "random")


@dataclass(frozen=True)
class Trial:
    """A system and what is spent on it, in a project."""

    copies: Copies
    root: Path
    system: str
    start: int
    seconds: float
    cost: Cost

    def run(self, seed: int) -> dict[str, Path]:
        """The results of the start and of both arms, by name: the folder of each."""
        changes: dict[str, Any] = {"seed": seed, "split.strong": {"kind": "per_class", "images": self.start}}
        results = {"start": self.result(changes)}
        data = results["start"].parents[1]
        images = pool(data, "masks")
        chosen = dict(zip(ARMS, (self.by_next(data, images), self.at_random(images, seed)), strict=True))
        for arm in ARMS:
            ids = sorted({*(record.image_id for record in images.known), *chosen[arm]})
            file = (self.root / FOLDER / f"{arm}_{self.system}_{seed}.txt").resolve()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, "".join(f"{image_id}\n" for image_id in ids).encode())
            print(f"seed {seed}: {arm} adds {len(ids) - len(images.known)} masks to {len(images.known)}", flush=True)
            results[arm] = self.result({"seed": seed, "split.strong": {"kind": "list", "file": str(file)}})
        return results

    def result(self, changes: dict[str, Any]) -> Path:
        return self.copies.run(kept.Experiment(self.system, changes, Path()))

    def by_next(self, data: Path, images: Pool) -> list[str]:
        """As the command chooses, with the model that was trained on the start."""
        looker = Looker(load(data / "segmenters" / self.system))
        root = data.parents[1]
        known = [
            Known(images.shown(r), looker(read_image(seen_from(root, r.image)), r.tags or None).features)
            for r in images.known
        ]
        candidates = []
        for record in images.wanting:
            seen = looker(read_image(seen_from(root, record.image)), record.tags or None)
            price = self.cost.of("masks", bool(record.tags))
            candidates.append(Candidate(record.image_id, seen.uncertainty, price, seen.features, seen.classes))
        return [one.candidate.image_id for one in choose(candidates, known, self.seconds)]

    def at_random(self, images: Pool, seed: int) -> list[str]:
        """As many as the budget pays for, in an order that is a function of seed and ids."""
        order = sorted(images.wanting, key=lambda record: derived_seed("next", seed, record.image_id))
        taken, left = [], self.seconds
        for record in order:
            price = self.cost.of("masks", bool(record.tags))
            if price <= left:
                taken.append(record.image_id)
                left -= price
        return taken


def told(results: dict[int, dict[str, Path]]) -> tuple[list[str], bool]:
    """The table, and whether `next` is better than chance may explain."""
    lines = [f"{'seed':>6} {'start':>7} {'random':>7} {'next':>7}"]
    names: Sequence[str] = []
    for seed, folders in results.items():
        scores = {arm: read_scores(folder / "metrics.json") for arm, folder in folders.items()}
        names = list(scores["start"]["iou"])
        lines.append(
            f"{seed:>6} " + " ".join(f"{100 * scores[a]['mean_iou']:7.1f}" for a in ("start", "random", "next"))
        )
    by_arm = {arm: scored_by_seed(((s, f[arm]) for s, f in results.items()), [*names]) for arm in ("start", *ARMS)}
    for mine, other in (("next", "random"), ("next", "start"), ("random", "start")):
        over = difference(by_arm[mine], by_arm[other])
        assert over is not None
        lines.append(f"{mine} over {other}: {comparison.told(over)} points of mIoU, {over.seeds} seeds")
    best = difference(by_arm["next"], by_arm["random"])
    return lines, best is not None and best.low > 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="deeplab")
    parser.add_argument("--budget", default="4h", help="a person's time, such as 30m or 4h")
    parser.add_argument("--start", type=int, default=2, help="masks a class to begin with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--tag-seconds", type=float, default=20.0)
    parser.add_argument("--mask-seconds", type=float, default=239.7)
    given = parser.parse_args(arguments)
    try:
        settings: Settings = command.settings(given.params)
        kept.chosen_systems(settings, [given.system])
        copies, cost = Copies(given.params.parent, given.params), Cost(given.tag_seconds, given.mask_seconds)
        trial = Trial(copies, given.params.parent, given.system, given.start, seconds_of(given.budget), cost)
        lines, is_better = told({seed: trial.run(seed) for seed in given.seeds})
    except Problem as problem:
        print(f"error: {problem}")
        return 2
    print("\n".join(lines))
    return 0 if is_better else 1


if __name__ == "__main__":
    sys.exit(main())
