"""What the systems with DeepLab's network share: its start, the way from a grid to an image, cues and their CRF."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from segcore.config.labels import CueLossParams
from segcore.config.networks import GridParams
from segcore.config.systems import Training
from segcore.data import pseudo_labels
from segcore.data.addresses import Address
from segcore.data.batches import Batch
from segcore.data.geometry import Grid
from segcore.data.manifest import Record
from segcore.data.samples import CueSamples
from segcore.errors import Problem
from segcore.localisation import crf
from segcore.networks import pretrained
from segcore.networks.deeplab import DeepLab, colours_at_cells, enlarged
from segcore.networks.origin import Origin
from segcore.networks.trunk import Trunk
from segcore.networks.vgg import VGG16
from segcore.systems.contract import Inputs, OpenSystem, Outputs


class GridTraining(Training):
    """What the `training` of all systems with DeepLab's network has."""

    network: GridParams


class CueTraining(GridTraining):
    """What the `training` of systems that learn from cues has."""

    cues: CueLossParams


SMALLEST_TRAINING: dict[str, Any] = {
    "recipe": "segmenter",
    "network": {
        "kind": "grid",
        "stride": 8,
        "branches": [1, 2],
        "kernel": 3,
        "width": 24,
        "dropout": 0.3,
        "input_size": 97,
    },
}
SMALLEST_PREDICTION: dict[str, Any] = {"views": {"scales": [1.0], "flip": False}, "crf": None}
SMALLEST_CUES: dict[str, Any] = {
    "crf": {
        "iterations": 2,
        "appearance_weight": 10.0,
        "appearance_xy": 80.0,
        "appearance_rgb": 13.0,
        "smoothness_weight": 3.0,
        "smoothness_xy": 3.0,
        "stride": 1,
    },
    "crf_scale": 8.0,
    "unary": "log",
    "boundary_ratio": None,
    "growing": None,
}
"""Parts of entries, as cheap as can be."""


class GridSystem(OpenSystem):
    """A system whose network is DeepLab's: scores on a grid, enlarged to the image."""

    square = "stretch"
    smallest_input = 33
    input_offset = 1

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...], params: GridTraining) -> None:
        super().__init__()
        self.params = params
        self.network = network
        self.input_step = network.stride
        self.pretrained = ("network.trunk.", *(f"network.{prefix}" for prefix in borrowed))

    @property
    def trunk(self) -> Trunk:
        return self.network.trunk

    def forward(self, batch: Batch) -> Outputs:
        features = self.network.trunk(batch.images)
        return Outputs(features.levels, self.network.scores(features.top))

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        height, width = images.shape[2:]
        return enlarged(self.network(images).float(), (height, width), self.network.stride)


class CueSystem(GridSystem):
    """A segmenter that learns from cues and from what a CRF makes of its own probabilities."""

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...], params: CueTraining) -> None:
        super().__init__(network, borrowed, params)
        self.label_stride = network.stride
        self.cues = params.cues

    def scores(self, batch: Batch, outputs: Outputs) -> Float[Tensor, "B K h w"]:
        """Scores of the grid in full precision, whatever the network computes in.

        Raises:
            Problem: the batch's cues are of another grid.
        """
        scores = outputs.scores.float()
        if scores.shape[2:] != batch.labels.shape[1:]:
            raise Problem(
                f"the network has a grid of {tuple(scores.shape[2:])} cells, the cues one of "
                f"{tuple(batch.labels.shape[1:])}; make input_size that of the pseudo-labels"
            )
        return scores

    @torch.no_grad()
    def refined(
        self, probabilities: Float[Tensor, "B K h w"], images: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B K h w"]:
        """The probabilities after the CRF; they carry no gradient."""
        params = self.cues
        unary = -probabilities.log() if params.unary == "log" else -probabilities
        colours = colours_at_cells(images.float(), self.network.stride)
        return crf.mean_field(unary, colours, params.crf, params.crf_scale)


def network_of(params: GridParams, origin: Origin) -> tuple[DeepLab, tuple[str, ...]]:
    """The network with its initial weights, and the prefixes of the layers that are VGG-16's own fc6 and fc7."""
    trunk = origin.trunk(params.stride)
    network = DeepLab(trunk, origin.n_tags + 1, params.branches, params.kernel, params.width, params.dropout)
    weights = pretrained.weights_of(origin.backbone) if isinstance(trunk, VGG16) else None
    return network, network.borrow(weights or {})


def masks_of(records: Sequence[Record]) -> list[Address]:
    """The masks of some images.

    Raises:
        Problem: an image has none.
    """
    masks = [record.labels for record in records if record.labels is not None]
    if without := [record.image_id for record in records if record.labels is None]:
        raise Problem(
            f"{len(without)} of {len(records)} images have no mask, {without[0]} first; "
            "a system that learns from masks needs `images: strong`, or `labels` with pseudo-labels"
        )
    return masks


def cue_samples(network: GridParams, inputs: Inputs) -> CueSamples:
    """All images that the folder of pseudo-labels lists, with their cues.

    Raises:
        Problem: no such folder, an image that the manifest lacks, cues that are missing or of another grid.
    """
    ids, side = pseudo_labels.listed(inputs.labels), Grid(network.input_size, network.stride).cells
    inputs.check(ids, {*inputs.strong, *inputs.weak})
    files = [pseudo_labels.cue_file(inputs.labels, image_id) for image_id in ids]
    for file in files:
        if not file.is_file():
            raise Problem(f"{file} is missing; extract the pseudo-labels again")
        with Image.open(file) as image:
            if image.size != (side, side):
                raise Problem(
                    f"{file} has {image.size[0]} x {image.size[1]} cells, the network {side} x {side} at input_size "
                    f"{network.input_size} and stride {network.stride}; make both sizes equal"
                )
    return CueSamples(inputs.of(ids), files, inputs.n_tags, network.input_size, side)
