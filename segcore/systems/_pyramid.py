"""What the systems with a pyramid share: how they are trained, and the images with labels that they learn from."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from segcore.config import systems
from segcore.config.networks import PyramidParams
from segcore.config.section import Count, Positive, Rate, Section
from segcore.data import pseudo_labels
from segcore.data.addresses import Address
from segcore.data.batches import Mixed
from segcore.data.manifest import Record
from segcore.data.splits import MASKS_FILE
from segcore.data.zoomed import Bank, Zoom, ZoomedImages, ZoomedTagged
from segcore.errors import Problem
from segcore.features.store import FeatureStore
from segcore.networks.origin import Origin
from segcore.networks.pyramid import PyramidNetwork
from segcore.networks.trunk import Features, Trunk
from segcore.seeds import derived_seed
from segcore.systems._grid import masks_of
from segcore.systems.contract import Inputs, System

Sources = tuple[Sequence[Record], Sequence[Address]]
"""Images, and the PNG with the labels of each."""


class ZoomParams(Section):
    """How pictures differ from one time to the next."""

    scales: tuple[Positive, Positive]
    """The least and the greatest length of an image's longer side, over `input_size`, before a square is cut out."""
    brightness: Rate
    """Colours are multiplied by a factor from 1 - brightness to 1 + brightness."""
    bank: Count | None = None
    """Fixed views of each image, of which one is shown each time, for a trunk that does not learn: its maps of them are
    computed once and stored. A key that does not apply does not exist: absent, every view is new."""

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> "ZoomParams":
        if self.scales[0] > self.scales[1]:
            raise ValueError(f"scales {list(self.scales)} must be the least factor, then the greatest")
        return self


class ZoomedTraining(systems.Training):
    """What the `training` of all systems with a pyramid has."""

    network: PyramidParams
    zoom: ZoomParams


class PyramidTraining(ZoomedTraining):
    """What that of those has which learn from masks, pseudo-labels, or both."""

    masks: bool
    """Strong images teach by their masks: alone with `labels: masks`, as half of every batch beside pseudo-labels."""


SMALLEST_ZOOMED: dict[str, Any] = {
    "recipe": "segmenter",
    "network": {"kind": "pyramid", "top_width": 24, "width": 16, "output_stride": 4, "input_size": 96},
    "zoom": {"scales": [0.7, 1.6], "brightness": 0.2},
}
SMALLEST_TRAINING: dict[str, Any] = SMALLEST_ZOOMED | {"masks": True}
"""Parts of entries, as cheap as can be."""


def network_of(params: ZoomedTraining, origin: Origin) -> PyramidNetwork:
    """The network with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    network = params.network
    trunk = origin.trunk(origin.backbone.stride)
    return PyramidNetwork(trunk, origin.n_tags + 1, network.top_width, network.width, network.output_stride)


def zoom_of(params: ZoomedTraining, inputs: Inputs) -> Zoom:
    """How its pictures are cut out."""
    zoom = params.zoom
    bank = None if zoom.bank is None else Bank(zoom.bank, derived_seed(inputs.seed, "bank"))
    return Zoom(params.network.input_size, zoom.scales, zoom.brightness, bank)


class OverFixedViews(System):
    """A system whose training batches go through one trunk and then through a pyramid.

    With a bank of views the trunk does not learn, nor do its statistics, and what it makes of a square is looked up.
    """

    store: FeatureStore | None = None
    levels: tuple[int, ...] = ()
    """Those whose maps are looked up."""

    @property
    @abstractmethod
    def trunk(self) -> Trunk:
        """The one that training batches go through."""

    @property
    @abstractmethod
    def joined(self) -> Sequence[int]:
        """The levels below the top that the pyramid reads."""

    def look_up(self, store_of: Callable[[Trunk], FeatureStore], every_level: bool) -> FeatureStore | None:
        if self.params.zoom.bank is not None:
            top = len(self.trunk.level_channels) - 1
            self.levels = tuple(range(top + 1)) if every_level else (*sorted(self.joined), top)
            self.store = store_of(self.trunk.eval())
        return self.store

    def seen(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        """What the trunk makes of the pictures of a training batch."""
        return self.trunk(images) if self.store is None else self.store.maps(images, self.levels)


def sources(params: PyramidTraining, inputs: Inputs) -> tuple[Sources | None, Sources | None]:
    """The tagged images with the entry's pseudo-labels, and the strong ones with their masks, each if it teaches.

    Beside masks, pseudo-labels of images that have one are left out.

    Raises:
        Problem: an entry that names neither, labels that are missing, or of images that may not be learned from.
    """
    if (inputs.labels / MASKS_FILE).is_file():
        if not params.masks:
            raise Problem("labels: masks are all that this system would learn from; set its training.masks to true")
        return None, _strong(inputs)
    ids = pseudo_labels.listed(inputs.labels)
    inputs.check(ids, {*inputs.strong, *inputs.weak})
    masked = {*inputs.strong} if params.masks else set[str]()
    ids = [image_id for image_id in ids if image_id not in masked]
    if not ids:
        raise Problem(f"{inputs.labels} has labels of no image without a mask; extract them of the weak images")
    labels = [pseudo_labels.label_file(inputs.labels, image_id) for image_id in ids]
    return (inputs.of(ids), labels), _strong(inputs) if params.masks else None


def _strong(inputs: Inputs) -> Sources:
    if inputs.images != "strong":
        raise Problem("training.masks: found true, but `images` names the weak images; set images: strong")
    records = inputs.chosen
    return records, masks_of(records)


def tagged_and_masked(params: ZoomedTraining, inputs: Inputs) -> Mixed:
    """As many images of the weak list, by their tags, as strong ones with their masks; an image may be both.

    Raises:
        Problem: one of the lists is empty, or the entry names another list or other labels.
    """
    if inputs.images != "strong" or not (inputs.labels / MASKS_FILE).is_file():
        raise Problem("this system learns from masks and tags at once; set its `images` to strong, `labels` to masks")
    if not inputs.weak:
        raise Problem("there are no weak images, whose tags this system learns from; a system such as fpn needs none")
    weak, zoom = inputs.of(inputs.weak), zoom_of(params, inputs)
    return Mixed(ZoomedTagged(weak, inputs.n_tags, zoom), ZoomedImages(*_strong(inputs), inputs.n_tags, zoom, True))
