"""One task of `benchmarks.manifest` in its own process: `python -m benchmarks.manifest_task TASK IMAGES FOLDER`."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.manifest import CLASSIFIER, FILES, SYSTEM
from stages import split, train_classifier, train_segmenter


class Opened(Exception):
    """The first batch of a training is there."""


class UntilFirstBatch(train_classifier.Fit):
    """A training whose loop ends as it would begin: network, optimiser and samples are there, and a batch is read."""

    def __iter__(self) -> Iterator[Any]:
        batch = next(self.stream.steps(0, self.recipe.steps))[0]
        print(f"{self.stream.order.n_samples:,} samples, the first batch is of {batch.ids[0]}")
        raise Opened


def open_classifier() -> None:
    """The stage, until its loop would begin."""
    train_classifier.Fit = UntilFirstBatch  # type: ignore[misc]
    train_classifier.main(**FILES, name=CLASSIFIER, split=Path("split"), out=Path("classifier"))


def open_segmenter() -> None:
    """The same of a system that learns from masks and from the tags of all images."""
    train_segmenter.Fit = UntilFirstBatch  # type: ignore[misc]
    paths = {"split": Path("split"), "labels": Path("masks"), "start": Path("start"), "out": Path("segmenter")}
    train_segmenter.main(**FILES, **paths, system=SYSTEM)


def main() -> None:
    task, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    os.chdir(folder)
    match task:
        case "write":
            from benchmarks.manifest_parts.made import (
                write,
            )  # here, as it takes the tests and pytest, which no stage does

            write(count)
        case "split":
            split.main(**FILES, out=Path("split"), masks=Path("masks"))
        case "train_classifier" | "train_segmenter":
            with contextlib.suppress(Opened):
                open_classifier() if task == "train_classifier" else open_segmenter()
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


if __name__ == "__main__":
    main()
