"""What the systems that learn from cues share: the CRF on the grid and the samples."""

from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import model_validator
from torch import Tensor

from segcore.config.sections import CRFParams, Positive
from segcore.data import pseudo_labels
from segcore.data.batches import Batch
from segcore.data.samples import CueSamples
from segcore.errors import Problem
from segcore.localisation import crf
from segcore.networks.deeplab import DeepLab, cells, colours_at_cells
from segcore.systems._grid import GridSystem, NetworkParams
from segcore.systems.contract import Inputs


class CueParams(NetworkParams):
    """What the entries of systems that learn from cues have."""

    crf: CRFParams
    """Draws the probabilities of the grid to the borders of the image, in every training step."""
    crf_scale: Positive
    """Pixels of the image to a cell, for the distances of the CRF (published: 12 at 41 x 41 cells)."""
    unary: Literal["log", "probability"]
    """What the CRF takes for the energy of a class: -log of its probability, or minus the probability itself, a much
    weaker belief in the network, as DSRG's published code has it."""
    boundary_ratio: tuple[Positive, Positive] | None
    """Bounds of the ratio of refined to predicted probability, beyond which the boundary loss teaches nothing
    (published: 0.05 and 20 in DSRG; null, without bounds, in SEC)."""

    @model_validator(mode="after")
    def _bounds_hold_one(self) -> "CueParams":
        if self.boundary_ratio is not None and not self.boundary_ratio[0] < 1 < self.boundary_ratio[1]:
            raise ValueError(
                f"boundary_ratio {list(self.boundary_ratio)} must be a bound below 1, then one above it, or null"
            )
        return self


class CueSystem(GridSystem):
    """A segmenter that learns from cues and from what a CRF makes of its own probabilities."""

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...], params: CueParams) -> None:
        super().__init__(network, borrowed)
        self.cue_params = params

    def scores(self, batch: Batch) -> Float[Tensor, "B K h w"]:
        """Scores of the grid in full precision, whatever the network computes in.

        Raises:
            Problem: the batch's cues are of another grid.
        """
        scores = self.network(batch.images).float()
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
        params = self.cue_params
        unary = -probabilities.log() if params.unary == "log" else -probabilities
        colours = colours_at_cells(images.float(), self.network.stride)
        return crf.mean_field(unary, colours, params.crf, params.crf_scale)


def cue_samples(params: CueParams, inputs: Inputs) -> CueSamples:
    """All images that the folder of pseudo-labels lists, with their cues.

    Raises:
        Problem: no such folder, an image that the manifest lacks, cues that are missing or of another grid.
    """
    ids, side = pseudo_labels.listed(inputs.labels), cells(params.input_size, params.stride)
    if strange := [image_id for image_id in ids if image_id not in inputs.records]:
        raise Problem(f"{inputs.labels} lists {strange[0]}, which is not in the manifest; extract the labels again")
    files = [pseudo_labels.cue_file(inputs.labels, image_id) for image_id in ids]
    for file in files:
        if not file.is_file():
            raise Problem(f"{file} is missing; extract the pseudo-labels again")
        with Image.open(file) as image:
            if image.size != (side, side):
                raise Problem(
                    f"{file} has {image.size[0]} x {image.size[1]} cells, the network {side} x {side} at input_size "
                    f"{params.input_size} and stride {params.stride}; make both sizes equal"
                )
    return CueSamples([inputs.records[image_id] for image_id in ids], files, inputs.n_tags, params.input_size, side)
