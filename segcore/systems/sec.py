"""SEC: a segmenter from cues, by three losses: seed, expand and constrain to boundaries.

Kolesnikov and Lampert, "Seed, Expand and Constrain: Three Principles for Weakly-Supervised Image Segmentation", ECCV
2016. Departures: images are mirrored half of the time; the CRF is exact where the published one is approximate, and no
gradient passes through it (as in the authors' last version of their code).
"""

import torch

from segcore.data.batches import Batch
from segcore.data.samples import CueSamples
from segcore.losses import Term, boundary_loss, expand_loss, floored_softmax, seed_loss
from segcore.networks.classifiers import Classifier
from segcore.systems._cues import CueParams, CueSystem, cue_samples
from segcore.systems._grid import network_of
from segcore.systems.contract import Inputs


class Params(CueParams):
    """An entry of `systems` with `module: sec`."""


class SEC(CueSystem):
    """The network and SEC's three losses."""

    def losses(self, batch: Batch) -> dict[str, Term]:
        scores = self.scores(batch)
        with torch.autocast(scores.device.type, enabled=False):
            probabilities = floored_softmax(scores)
            return {
                "seed": seed_loss(probabilities, batch.labels),
                "expand": expand_loss(probabilities, batch.tags),
                "boundary": boundary_loss(
                    probabilities, self.refined(probabilities, batch.images), self.cue_params.boundary_ratio
                ),
            }


def build(params: Params, classifier: Classifier) -> SEC:
    """The system with the trunk of a trained classifier, or a fresh one, whatever the classifier's head."""
    return SEC(*network_of(params, classifier), params)


def samples(params: Params, inputs: Inputs) -> CueSamples:
    """All images that the folder of pseudo-labels lists, with their cues."""
    return cue_samples(params, inputs)
