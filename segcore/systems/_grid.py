"""What the systems with DeepLab's network share: its parameters, its start, and the way from a grid to an image."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from segcore.config.sections import Count, GridSize, Rate, SystemEntry
from segcore.data.manifest import Record
from segcore.errors import Problem
from segcore.networks import backbones, pretrained
from segcore.networks.classifiers import Classifier
from segcore.networks.deeplab import DeepLab, enlarged
from segcore.systems.contract import System


class NetworkParams(SystemEntry):
    """What the entries of all systems with DeepLab's network have."""

    model_config = {"extra": "forbid"}

    encoder: Literal["classifier", "backbone"]
    """Start from the trunk that the classifier trained, or from the backbone's own initial weights."""
    stride: Literal[8, 16]
    """Pixels of the image to a cell of the grid of scores."""
    branches: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Dilations, in cells, of the branches whose scores are summed: (12,) or (6, 12, 18, 24)."""
    width: Count
    """Channels of fc6 and fc7 over VGG-16 (published: 1024); other trunks have none."""
    dropout: Rate
    """Behind fc6 and fc7."""
    input_size: GridSize
    """Side of the training images."""

    @model_validator(mode="after")
    def _cells_fit(self) -> "NetworkParams":
        if (self.input_size - 1) % self.stride:
            below = self.input_size - (self.input_size - 1) % self.stride
            raise ValueError(
                f"input_size {self.input_size} must be a multiple of stride {self.stride} and one more, such as "
                f"{below} or {below + self.stride}"
            )
        return self


class GridSystem(System):
    """A system whose network is DeepLab's: scores on a grid, enlarged to the image."""

    square = "stretch"
    smallest_input = 33
    input_offset = 1

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.input_step = network.stride
        self.pretrained = ("network.trunk.", *(f"network.{prefix}" for prefix in borrowed))

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        height, width = images.shape[2:]
        return enlarged(self.network(images).float(), (height, width), self.network.stride)


def network_of(params: NetworkParams, classifier: Classifier) -> tuple[DeepLab, tuple[str, ...]]:
    """The network with its initial weights, and the prefixes of the layers that are VGG-16's own fc6 and fc7."""
    backbone = classifier.backbone
    if params.encoder == "classifier":
        trunk = backbones.restride(backbone, classifier.trunk, params.stride)
    else:
        trunk = backbones.build(backbone.model_copy(update={"stride": params.stride}))
    network = DeepLab(trunk, classifier.n_tags + 1, params.branches, params.width, params.dropout)
    weights = pretrained.weights_of(backbone) if isinstance(trunk, backbones.VGG16) else None
    return network, network.borrow(weights or {})


def masks_of(records: list[Record]) -> list[Path]:
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
