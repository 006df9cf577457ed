"""An early look at validation while a system trains: it shows how the training goes, and changes nothing of it.

`SEGCORE_LOOK=200:100 dvc repro` scores a copy of the system on 100 validation images after every 200 steps. The copy is
finished as the system will be, predicts in one view and without a CRF, and goes again; random states are put back. So
weights, logs and all outputs are the same bytes with and without, and no step is chosen: the last one stays the result.
The curve lies in `.scratch/looks/`, beside times of this machine and outside of DVC and Git; the report shows it.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from segcore.cli import console, looks
from segcore.config.reading import section
from segcore.config.section import Views
from segcore.data.batches import Batch
from segcore.data.manifest import Record
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.evaluation.metrics import ConfusionMatrix
from segcore.evaluation.reading import Pictures
from segcore.evaluation.scoring import read_truth, validation_records
from segcore.files import write_atomically
from segcore.processes import Runtime
from segcore.reporting.reading import read_json
from segcore.systems.contract import System

ONCE = Views(scales=(1.0,), flip=False)
BATCH = 8
"""Images that are predicted at a time."""


@dataclass(frozen=True)
class Trained:
    """What a look needs to know of a training."""

    system: System
    """The one that is trained; only copies of it are touched."""
    module: ModuleType
    prediction: Mapping[str, Any]
    """How it is to predict, as its entry says."""
    finishing: Callable[[System], Iterable[Batch]]
    """Gives the batches that a copy is finished by."""
    input_size: int
    classes: int
    fingerprint: str
    """Of the training; by it the report knows whether a curve is of the model that is there."""


class Look:
    """Called after each step, by every process of the run."""

    def __init__(
        self,
        wanted: looks.Asked,
        trained: Trained,
        manifest: Mapping[str, Record],
        val: Path,
        runtime: Runtime,
        out: Path,
    ) -> None:
        records = validation_records(manifest, val)
        if records[0].labels is None:
            raise Problem(f"{looks.VARIABLE}: no validation image has a mask, so nothing can be scored; leave it out")
        count = min(wanted.images, len(records))
        self.records = [records[place * len(records) // count] for place in range(count)]
        self.every, self.trained, self.runtime, self.name = wanted.every, trained, runtime, out.name
        how = {"prediction": dict(trained.prediction)}
        self.prediction = section(how, "prediction", trained.module.Prediction)
        self.file = looks.file_of(out)
        self.about = {"training": trained.fingerprint, "images": count}

    def __call__(self, steps: int) -> None:
        """Look, if it is time after so many finished steps."""
        if steps % self.every:
            return
        mean_iou = self.score()
        if not self.runtime.is_main:
            return
        content = read_json(self.file)
        known = content["curve"] if all(content.get(key) == value for key, value in self.about.items()) else []
        curve = [*([step, value] for step, value in known if step < steps), [steps, round(mean_iou, 6)]]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, json.dumps(self.about | {"curve": curve}).encode())
        console.say(
            f"{self.name}: a look after {steps} steps: mIoU {mean_iou:.4f} on {len(self.records)} validation images"
        )

    @torch.no_grad()
    def score(self) -> float:
        """mIoU of the system as it would be if it ended here."""
        gpus = [self.runtime.device] if self.runtime.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):
            seen = copy.deepcopy(self.trained.system).eval()
            seen.prediction = self.prediction
            seen.finish(self.trained.finishing(seen))
            counts = ConfusionMatrix(self.trained.classes)
            mine = self.runtime.shard(self.records, BATCH)
            for first in range(0, len(mine), BATCH):
                some = mine[first : first + BATCH]
                pictures = Pictures([record.image for record in some])
                maps = inference.score_maps(seen, pictures, self.trained.input_size, ONCE, None)
                for record, scores in zip(some, maps, strict=True):
                    counts.update(read_truth(record, counts.n_classes), scores.winners())
        shares = self.runtime.gather(counts)
        return sum(shares[1:], start=shares[0]).mean_iou
