"""What the systems with a pyramid share: how they are trained, and the images with labels that they learn from."""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from segcore.config import systems
from segcore.config.networks import PyramidParams
from segcore.config.section import Positive, Rate, Section
from segcore.data import pseudo_labels
from segcore.data.batches import Mixed
from segcore.data.manifest import Record
from segcore.data.splits import MASKS_FILE
from segcore.data.zoomed import Zoom, ZoomedImages, ZoomedTagged
from segcore.errors import Problem
from segcore.networks.origin import Origin
from segcore.networks.pyramid import PyramidNetwork
from segcore.systems._grid import masks_of
from segcore.systems.contract import Inputs


class ZoomParams(Section):
    """How pictures differ from one time to the next."""

    scales: tuple[Positive, Positive]
    """The least and the greatest length of an image's longer side, over `input_size`, before a square is cut out."""
    brightness: Rate
    """Colours are multiplied by a factor from 1 - brightness to 1 + brightness."""

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> "ZoomParams":
        if self.scales[0] > self.scales[1]:
            raise ValueError(f"scales {list(self.scales)} must be the least factor, then the greatest")
        return self


class PyramidTraining(systems.Training):
    """What the `training` of all systems with a pyramid has."""

    network: PyramidParams
    zoom: ZoomParams


SMALLEST_TRAINING: dict[str, Any] = {
    "recipe": "segmenter",
    "network": {"kind": "pyramid", "top_width": 24, "width": 16, "output_stride": 4, "input_size": 96},
    "zoom": {"scales": [0.7, 1.6], "brightness": 0.2},
}
"""Part of entries, as cheap as can be."""


def network_of(params: PyramidTraining, origin: Origin) -> PyramidNetwork:
    """The network with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    network = params.network
    trunk = origin.trunk(origin.backbone.stride)
    return PyramidNetwork(trunk, origin.n_tags + 1, network.top_width, network.width, network.output_stride)


def zoom_of(params: PyramidTraining) -> Zoom:
    """How its pictures are cut out."""
    return Zoom(params.network.input_size, params.zoom.scales, params.zoom.brightness)


def strong_of(inputs: Inputs) -> tuple[list[Record], list[Path]]:
    """The strong images and their masks.

    Raises:
        Problem: there are none.
    """
    records = [inputs.records[image_id] for image_id in inputs.strong]
    return records, masks_of(records)


def labelled_of(inputs: Inputs) -> tuple[list[Record], list[Path]]:
    """The images that the entry's pseudo-labels are of, and these labels; beside masks, not of images that have one.

    Raises:
        Problem: no folder of pseudo-labels, or one of images that the system may not learn from, or of none.
    """
    ids = pseudo_labels.listed(inputs.labels)
    inputs.check(ids, {*inputs.strong, *inputs.weak})
    if inputs.images == "strong":
        masked = {*inputs.strong}
        ids = [image_id for image_id in ids if image_id not in masked]
    if not ids:
        raise Problem(f"{inputs.labels} has labels of no image without a mask; extract them of the weak images")
    return [inputs.records[i] for i in ids], [pseudo_labels.label_file(inputs.labels, i) for i in ids]


def tagged_and_masked(params: PyramidTraining, inputs: Inputs) -> Mixed:
    """As many images of the weak list, by their tags, as strong ones with their masks; an image may be both.

    Raises:
        Problem: one of the lists is empty, or the entry names another list or other labels.
    """
    if inputs.images != "strong" or not learns_from_masks_alone(inputs):
        raise Problem("this system learns from masks and tags at once; set its `images` to strong, `labels` to masks")
    if not inputs.weak:
        raise Problem("there are no weak images, whose tags this system learns from; a system such as fpn needs none")
    weak = [inputs.records[image_id] for image_id in inputs.weak]
    zoom = zoom_of(params)
    return Mixed(ZoomedTagged(weak, inputs.n_tags, zoom), ZoomedImages(*strong_of(inputs), inputs.n_tags, zoom, True))


def learns_from_masks_alone(inputs: Inputs) -> bool:
    """Whether the entry names the masks of the strong images and no pseudo-labels."""
    return (inputs.labels / MASKS_FILE).is_file()
