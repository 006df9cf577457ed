"""Prototypes: every class is the mean of its unit features; tagged images are labelled by the nearest, a head learns.

On a trunk that does not learn, mu_c is the mean unit feature inside the masks of c. A cell u of a tagged image belongs
to c by r_uc proportional to y_c exp(cos(z_u, mu_c) / T), over the image's tags and the background; mu is estimated
again, the masks staying as they are, several times. A light head, DeepLab's over the same map, learns the masks and r.

It is one training run: the run is cut into `rounds` + 1 equal parts. In the first, features inside masks are summed up
and the head learns masks alone; at the end of every part mu becomes the mean over what the part saw, of masked cells
(with 1 for their class) and of tagged ones (with r). So nothing is passed over twice, memory does not grow with the
images, and a run can be killed. Classes that no mask has shown yet win no cell.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from segcore.config.section import Count, NotNegative, Positive
from segcore.config.systems import MASKS, Prediction
from segcore.data.batches import Batch, Mixed, SizedSamples
from segcore.data.pictures import IGNORE
from segcore.data.samples import LabelledImages, TaggedImages
from segcore.errors import Problem
from segcore.losses import Term
from segcore.networks.across import summed
from segcore.networks.deeplab import DeepLab, at_cells
from segcore.networks.origin import Origin
from segcore.networks.steps import Once
from segcore.systems._grid import SMALLEST_PREDICTION, SMALLEST_TRAINING, GridSystem, GridTraining, masks_of, network_of
from segcore.systems._pixel_loss import PixelLoss, PixelLossParams
from segcore.systems.contract import Inputs, Outputs, Supervision


class Training(GridTraining):
    """What training a system with `module: prototypes` depends on."""

    pixel_loss: PixelLossParams | None = None
    """Of the masks. A key that does not apply does not exist: absent, it is the cross-entropy."""
    temperature: Positive
    """T: the smaller, the more a cell belongs to one class alone."""
    rounds: Count
    """How often the prototypes are estimated again with the tagged images: 3 to 5."""
    weak_weight: NotNegative
    """Of the cross-entropy of r over that of masks."""


__all__ = ["Prediction", "Training"]


class Prototypes(GridSystem):
    """The trunk, the head, and the prototypes."""

    params: Training
    may_be_missing = ("means", "sums", "part.")
    means: Tensor
    sums: Tensor

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...], n_classes: int, params: Training) -> None:
        super().__init__(network, borrowed, params)
        self.part = Once()
        self.pixel_loss = PixelLoss(params.pixel_loss, n_classes)
        self.register_buffer("means", torch.zeros(n_classes, network.trunk.channels))
        self.register_buffer("sums", torch.zeros(n_classes, network.trunk.channels))

    def begin(self, samples: SizedSamples) -> None:
        self.pixel_loss.begin(samples)

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """The cross-entropies of masks and of r; watched is how much of r its greatest class has, `certainty`."""
        z = F.normalize(outputs.levels[-1].detach().to(self.means.dtype), dim=1)
        masks = at_cells(batch.labels, self.network.stride).masked_fill(~batch.strong[:, None, None], IGNORE)
        self._round(batch)
        weak = ~batch.strong[:, None, None].expand_as(masks)
        r = responsibilities(z, self.means, batch.tags, self.params.temperature)
        known = weak & bool(self.means[0].any())
        self._sum(z, masks, r * known[:, None])
        costs = -(r * outputs.scores.to(r.dtype).log_softmax(1)).sum(1) * known
        cells = known.sum().to(costs.dtype)
        by_tags = Term(costs.sum(), cells).times(self.params.weak_weight)
        certainty = Term((r.amax(1) * known).sum(), cells)
        return self.pixel_loss(outputs.scores, masks) | {"prototypes": by_tags, "certainty": certainty}

    @torch.no_grad()
    def _round(self, batch: Batch) -> None:
        """At the beginning of a part of the run, the means of the last one's sums."""
        part = batch.moment.step * (self.params.rounds + 1) // batch.moment.steps
        if self.part.began(part):
            # A class that the part has not seen keeps its mean; only directions count.
            seen = self.sums.abs().sum(1, keepdim=True) > 0
            self.means.copy_(torch.where(seen & (part > 0), F.normalize(self.sums, dim=1), self.means * (part > 0)))
            self.sums.zero_()

    @torch.no_grad()
    def _sum(self, z: Float[Tensor, "B C h w"], masks: Int64[Tensor, "B h w"], r: Float[Tensor, "B K h w"]) -> None:
        """Add this batch's unit features, of all processes, to the classes that they belong to."""
        classes = torch.arange(len(self.sums), device=masks.device)[:, None, None]
        belongs = (masks[:, None] == classes).to(z.dtype) + r
        self.sums += summed(torch.einsum("bkhw,bchw->kc", belongs, z))


def responsibilities(
    z: Float[Tensor, "B C h w"], means: Float[Tensor, "K C"], tags: Float[Tensor, "B L"], temperature: float
) -> Float[Tensor, "B K h w"]:
    """r: how much each cell belongs to each tag of its image and to the background; adds up to 1 over the classes.

    `z` are unit features; a class whose mean is 0, which nothing has shown yet, gets none but where all are so.
    """
    cosines = torch.einsum("bchw,kc->bkhw", z, F.normalize(means, dim=1))
    unseen: Bool[Tensor, "B K"] = ~means.any(1) | F.pad(tags <= 0, (1, 0), value=False)
    return (cosines / temperature).masked_fill(unseen[:, :, None, None], -1e4).softmax(1)


def build(params: Training, origin: Origin) -> Prototypes:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    network, borrowed = network_of(params.network, origin)
    return Prototypes(network, borrowed, origin.n_tags + 1, params)


def samples(params: Training, inputs: Inputs) -> Mixed:
    """The weak images with their tags and as many strong ones with their masks; an image may be both.

    Raises:
        Problem: one of the lists is empty, or the entry names another one.
    """
    if inputs.images != "strong" or not inputs.weak:
        found = "there are no weak images" if inputs.images == "strong" else f"found `images: {inputs.images}`"
        raise Problem(f"prototypes learn from the masks of strong images and the tags of weak ones; {found}")
    size = params.network.input_size
    weak = TaggedImages(inputs.of(inputs.weak), inputs.n_tags, None, size)
    return Mixed(weak, LabelledImages(inputs.chosen, masks_of(inputs.chosen), inputs.n_tags, size))


def supervision(params: Training, labels: str) -> Supervision:
    """Masks and tags."""
    return Supervision(masks=True, tags=True)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    training = SMALLEST_TRAINING | {"temperature": 0.1, "rounds": 3, "weak_weight": 1.0}
    sources = {"start": "classifiers/any", "images": "strong", "labels": MASKS}
    return {"module": "prototypes", **sources, "training": training, "prediction": SMALLEST_PREDICTION}
