"""A plain segmenter with a decoder over all levels of its trunk (Lin et al. 2017, Kirillov et al. 2019).

With masks it is the row beside which tags must show what they add; with pseudo-labels of another system it is what is
trained again, and costs one pass an image; half of every batch then shows strong images with their masks.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segcore.config.systems import MASKS, Prediction
from segcore.data.batches import Batch, Mixed, SizedSamples
from segcore.data.zoomed import ZoomedImages
from segcore.losses import Term
from segcore.networks.deeplab import enlarged
from segcore.networks.origin import Origin
from segcore.networks.pyramid import PyramidNetwork, labels_at
from segcore.networks.trunk import Trunk
from segcore.systems._grid import SMALLEST_PREDICTION
from segcore.systems._pixel_loss import PixelLoss, PixelLossParams
from segcore.systems._pyramid import (
    SMALLEST_TRAINING,
    OverFixedViews,
    PyramidTraining,
    network_of,
    sources,
    zoom_of,
)
from segcore.systems.contract import Inputs, OpenSystem, Outputs, Supervision


class Training(PyramidTraining):
    """What training a system with `module: fpn` depends on."""

    pixel_loss: PixelLossParams | None = None
    """A key that does not apply does not exist: absent, the loss is the cross-entropy, every class counting alike."""


__all__ = ["Prediction", "Training"]


class FPN(OverFixedViews, OpenSystem):
    """The network and the losses of its scores."""

    pretrained = ("network.trunk.",)

    def __init__(self, network: PyramidNetwork, n_classes: int, params: Training) -> None:
        super().__init__()
        self.params = params
        self.network = network
        self.pixel_loss = PixelLoss(params.pixel_loss, n_classes)

    @property
    def trunk(self) -> Trunk:
        return self.network.trunk

    @property
    def joined(self) -> list[int]:
        return self.network.pyramid.levels

    def begin(self, samples: SizedSamples) -> None:
        self.pixel_loss.begin(samples)

    def forward(self, batch: Batch) -> Outputs:
        features = self.seen(batch.images)
        return Outputs(features.levels, self.network.scores(features))

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """Softmax cross-entropy, and what the entry names beside it, at the cells whose label is known."""
        size = (outputs.scores.shape[2], outputs.scores.shape[3])
        return self.pixel_loss(outputs.scores, labels_at(batch.labels, self.network.stride, size))

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        return enlarged(self.network(images).float(), (images.shape[2], images.shape[3]), self.network.stride)


def build(params: Training, origin: Origin) -> FPN:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    return FPN(network_of(params, origin), origin.n_tags + 1, params)


def samples(params: Training, inputs: Inputs) -> ZoomedImages | Mixed:
    """Strong images with their masks, tagged ones with their pseudo-labels, or as many of each."""
    weak, strong = (
        None if of is None else ZoomedImages(*of, inputs.n_tags, zoom_of(params, inputs), is_strong)
        for of, is_strong in zip(sources(params, inputs), (False, True), strict=True)
    )
    both = [one for one in (weak, strong) if one is not None]
    return Mixed(*both) if len(both) > 1 else both[0]


def supervision(params: Training, labels: str) -> Supervision:
    """Masks, unless the pseudo-labels of another model teach alone."""
    return Supervision(masks=params.masks, tags=False)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    sources = {"start": "classifiers/any", "images": "strong", "labels": MASKS}
    return {"module": "fpn", **sources, "training": SMALLEST_TRAINING, "prediction": SMALLEST_PREDICTION}
