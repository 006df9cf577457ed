"""A plain segmenter with a decoder over all levels of its trunk (Lin et al. 2017, Kirillov et al. 2019).

With masks it is the row beside which tags must show what they add; with pseudo-labels of another system it is what is
trained again, and costs one pass an image; half of every batch then shows strong images with their masks.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segcore.config.systems import MASKS, Prediction
from segcore.data.batches import Batch, Mixed
from segcore.data.zoomed import ZoomedImages
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks.deeplab import enlarged
from segcore.networks.origin import Origin
from segcore.networks.pyramid import Pyramid, conv1, labels_at
from segcore.networks.trunk import Features, Trunk
from segcore.systems._grid import SMALLEST_PREDICTION
from segcore.systems._pyramid import (
    SMALLEST_TRAINING,
    PyramidTraining,
    sources,
    zoom_of,
)
from segcore.systems.contract import Inputs, OpenSystem, Outputs, Supervision


class Training(PyramidTraining):
    """What training a system with `module: fpn` depends on."""


__all__ = ["Prediction", "Training"]


class FPN(OpenSystem):
    """The network and the cross-entropy of its scores."""

    pretrained = ("network_trunk.",)

    def __init__(self, trunk: Trunk, n_classes: int, params: Training) -> None:
        super().__init__()
        self.params = params
        network = params.network
        self.network_trunk = trunk
        self.enter = conv1(trunk.channels, network.top_width)
        self.pyramid = Pyramid(trunk, network.top_width, network.width, n_classes, network.output_stride)

    @property
    def trunk(self) -> Trunk:
        return self.network_trunk

    def forward(self, batch: Batch) -> Outputs:
        features = self.network_trunk(batch.images)
        return Outputs(features.levels, self.scores(features))

    def scores(self, features: Features) -> Float[Tensor, "B K h w"]:
        """The scores of each class at the cells of the finest level."""
        return self.pyramid.decode(self.enter(features.top), self.pyramid.sides(features.levels))

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """Softmax cross-entropy at the cells whose label is known."""
        size = (outputs.scores.shape[2], outputs.scores.shape[3])
        return {"segmentation": pixel_cross_entropy(outputs.scores, labels_at(batch.labels, self.pyramid.stride, size))}

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        scores = self.scores(self.network_trunk(images)).float()
        return enlarged(scores, (images.shape[2], images.shape[3]), self.pyramid.stride)


def build(params: Training, origin: Origin) -> FPN:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    return FPN(origin.trunk(origin.backbone.stride), origin.n_tags + 1, params)


def samples(params: Training, inputs: Inputs) -> ZoomedImages | Mixed:
    """Strong images with their masks, tagged ones with their pseudo-labels, or as many of each."""
    weak, strong = (
        None if of is None else ZoomedImages(*of, inputs.n_tags, zoom_of(params), is_strong)
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
