"""DSRG and FickleNet: a segmenter from cues that grow while it learns, with or without some masks.

Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing", CVPR 2018; Lee et al.,
"FickleNet", CVPR 2019, section 3.3, trains the same network by the same losses: the two differ in the cues that they
start from. Departures from the published code: the CRF's result takes no gradient; its unary is -log of the
probability unless `unary: probability` asks for theirs.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segcore.config.section import NotNegative
from segcore.config.systems import Prediction
from segcore.data.batches import Batch, Mixed
from segcore.data.pictures import IGNORE
from segcore.data.samples import CueSamples, LabelledImages
from segcore.errors import Problem
from segcore.localisation import region_growing
from segcore.losses import Term, balanced_seed_loss, boundary_loss, floored_softmax, pixel_cross_entropy
from segcore.networks.deeplab import DeepLab
from segcore.networks.origin import Origin
from segcore.systems._grid import (
    SMALLEST_CUES,
    SMALLEST_PREDICTION,
    SMALLEST_TRAINING,
    CueSystem,
    CueTraining,
    cue_samples,
    masks_of,
    network_of,
)
from segcore.systems.contract import Inputs, Outputs, Supervision


class Training(CueTraining):
    """What training a system with `module: dsrg` depends on; `cues.growing: null` leaves the cues as they are."""

    full_weight: NotNegative
    """Alpha, the weight of the loss of the masks of `images` (published: 2); at 0 the system sees tags only."""


__all__ = ["Prediction", "Training"]


class DSRG(CueSystem):
    """The network and its losses: balanced seed, boundary, and full where there are masks."""

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...], params: Training) -> None:
        super().__init__(network, borrowed, params)
        self.full_weight = params.full_weight

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """Seed and boundary loss of the weak samples, each averaged over them, and the full loss of the strong ones.

        A batch, or one process's share of it, may have samples of one kind only; the others' terms then weigh nothing.
        """
        scores = self.scores(batch, outputs)
        weak = (~batch.strong).nonzero().flatten()
        with torch.autocast(scores.device.type, enabled=False):
            probabilities = floored_softmax(scores[weak])
            refined = self.refined(probabilities, batch.images[weak])
            cues = self._grown(batch.labels[weak], refined, batch.tags[weak])
            terms = {
                "seed": balanced_seed_loss(probabilities, cues),
                "boundary": boundary_loss(probabilities, refined, self.cues.boundary_ratio),
            }
            if self.full_weight:
                masks = batch.labels.masked_fill(~batch.strong[:, None, None], IGNORE)
                full = pixel_cross_entropy(scores, masks)
                terms["full"] = Term(full.total * self.full_weight, full.weight)
        return terms

    def _grown(
        self, cues: Int64[Tensor, "B h w"], refined: Float[Tensor, "B K h w"], tags: Float[Tensor, "B L"]
    ) -> Int64[Tensor, "B h w"]:
        growing = self.cues.growing
        if growing is None:
            return cues
        return region_growing.grow_batch(cues, refined, tags, growing.theta_foreground, growing.theta_background)


def build(params: Training, origin: Origin) -> DSRG:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    return DSRG(*network_of(params.network, origin), params)


def samples(params: Training, inputs: Inputs) -> CueSamples | Mixed:
    """All images that the folder of pseudo-labels lists; with masks in play, as many strong images beside them.

    An image may be both: its cues then teach as those of a weak one, its mask as that of a strong one.
    """
    weak = cue_samples(params.network, inputs)
    if not params.full_weight:
        return weak
    records = inputs.chosen
    if not records:
        raise Problem("there are no strong images; full_weight: 0.0 learns from tags alone")
    masks, network = masks_of(records), params.network
    return Mixed(weak, LabelledImages(records, masks, inputs.n_tags, network.input_size, every=network.stride))


def supervision(params: Training, labels: str) -> Supervision:
    """Cues and tags, by which the cues grow; masks too, unless their loss weighs nothing."""
    return Supervision(masks=params.full_weight > 0, tags=True)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    cues = SMALLEST_CUES | {
        "boundary_ratio": [0.05, 20.0],
        "growing": {"theta_foreground": 0.85, "theta_background": 0.99},
    }
    training = SMALLEST_TRAINING | {"cues": cues, "full_weight": 2.0}
    sources = {"start": "classifiers/any", "images": "strong", "labels": "pseudo_labels/any"}
    return {"module": "dsrg", **sources, "training": training, "prediction": SMALLEST_PREDICTION}
