"""DSRG and FickleNet: a segmenter from cues that grow while it learns, with or without some masks.

Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing", CVPR 2018; Lee et al.,
"FickleNet", CVPR 2019, section 3.3, trains the same network by the same losses: the two differ in the cues that they
start from. Departures from the published code: the CRF's result takes no gradient; its unary is -log of the
probability unless `unary: probability` asks for theirs.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segcore.config.sections import NotNegative, Threshold
from segcore.data.batches import Batch, Mixed
from segcore.data.pictures import IGNORE
from segcore.data.samples import CueSamples, LabelledImages
from segcore.errors import Problem
from segcore.localisation import region_growing
from segcore.losses import Term, balanced_seed_loss, boundary_loss, floored_softmax, pixel_cross_entropy
from segcore.networks.classifiers import Classifier
from segcore.networks.deeplab import DeepLab
from segcore.systems._cues import CueParams, CueSystem, cue_samples
from segcore.systems._grid import masks_of, network_of
from segcore.systems.contract import Inputs


class Params(CueParams):
    """An entry of `systems` with `module: dsrg`."""

    grow: bool
    """Whether cues grow; without, the seed loss sees them as they are."""
    theta_foreground: Threshold
    """Probability above which a pixel may join a region of a tag (published: 0.85)."""
    theta_background: Threshold
    """Probability that the background must exceed as well (published: 0.99); below `theta_foreground` idle."""
    full_weight: NotNegative
    """Alpha, the weight of the loss of the masks of `images` (published: 2); at 0 the system sees tags only."""


class DSRG(CueSystem):
    """The network and its losses: balanced seed, boundary, and full where there are masks."""

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...], params: Params) -> None:
        super().__init__(network, borrowed, params)
        self.params = params

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Seed and boundary loss of the weak samples, each averaged over them, and the full loss of the strong ones.

        A batch, or one process's share of it, may have samples of one kind only; the others' terms then weigh nothing.
        """
        scores = self.scores(batch)
        weak = (~batch.strong).nonzero().flatten()
        with torch.autocast(scores.device.type, enabled=False):
            probabilities = floored_softmax(scores[weak])
            refined = self.refined(probabilities, batch.images[weak])
            cues = self._grown(batch.labels[weak], refined, batch.tags[weak])
            terms = {
                "seed": balanced_seed_loss(probabilities, cues),
                "boundary": boundary_loss(probabilities, refined, self.params.boundary_ratio),
            }
            if self.params.full_weight:
                masks = batch.labels.masked_fill(~batch.strong[:, None, None], IGNORE)
                full = pixel_cross_entropy(scores, masks)
                terms["full"] = Term(full.total * self.params.full_weight, full.weight)
        return terms

    def _grown(
        self, cues: Int64[Tensor, "B h w"], refined: Float[Tensor, "B K h w"], tags: Float[Tensor, "B L"]
    ) -> Int64[Tensor, "B h w"]:
        params = self.params
        if not params.grow:
            return cues
        return region_growing.grow_batch(cues, refined, tags, params.theta_foreground, params.theta_background)


def build(params: Params, classifier: Classifier) -> DSRG:
    """The system with the trunk of a trained classifier, or a fresh one, whatever the classifier's head."""
    return DSRG(*network_of(params, classifier), params)


def samples(params: Params, inputs: Inputs) -> CueSamples | Mixed:
    """All images that the folder of pseudo-labels lists; with masks in play, as many strong images beside them.

    An image may be both: its cues then teach as those of a weak one, its mask as that of a strong one.
    """
    weak = cue_samples(params, inputs)
    if not params.full_weight:
        return weak
    records = [inputs.records[image_id] for image_id in inputs.images]
    if not records:
        raise Problem("there are no strong images; full_weight: 0.0 learns from tags alone")
    masks = masks_of(records)
    return Mixed(weak, LabelledImages(records, masks, inputs.n_tags, params.input_size, every=params.stride))
