"""SEC: a segmenter from cues, by three losses: seed, expand and constrain to boundaries.

Kolesnikov and Lampert, "Seed, Expand and Constrain: Three Principles for Weakly-Supervised Image Segmentation", ECCV
2016. Departures: images are mirrored half of the time; the CRF is exact where the published one is approximate, and no
gradient passes through it (as in the authors' last version of their code).
"""

from typing import Any

import torch

from segcore.config.systems import Prediction
from segcore.data.batches import Batch
from segcore.data.samples import CueSamples
from segcore.losses import Term, boundary_loss, expand_loss, floored_softmax, seed_loss
from segcore.networks.origin import Origin
from segcore.systems._grid import (
    SMALLEST_CUES,
    SMALLEST_PREDICTION,
    SMALLEST_TRAINING,
    CueSystem,
    CueTraining,
    cue_samples,
    network_of,
)
from segcore.systems.contract import Inputs, Outputs, Supervision


class Training(CueTraining):
    """What training a system with `module: sec` depends on."""


__all__ = ["Prediction", "Training"]


class SEC(CueSystem):
    """The network and SEC's three losses."""

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        scores = self.scores(batch, outputs)
        with torch.autocast(scores.device.type, enabled=False):
            probabilities = floored_softmax(scores)
            return {
                "seed": seed_loss(probabilities, batch.labels),
                "expand": expand_loss(probabilities, batch.tags),
                "boundary": boundary_loss(
                    probabilities, self.refined(probabilities, batch.images), self.cues.boundary_ratio
                ),
            }


def build(params: Training, origin: Origin) -> SEC:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    return SEC(*network_of(params.network, origin), params)


def samples(params: Training, inputs: Inputs) -> CueSamples:
    """All images that the folder of pseudo-labels lists, with their cues."""
    return cue_samples(params.network, inputs)


def supervision(params: Training, labels: str) -> Supervision:
    """Cues and tags."""
    return Supervision(masks=False, tags=True)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    training = SMALLEST_TRAINING | {"cues": SMALLEST_CUES}
    sources = {"start": "classifiers/any", "images": "weak", "labels": "pseudo_labels/any"}
    return {"module": "sec", **sources, "training": training, "prediction": SMALLEST_PREDICTION}
