"""DeepLab on labels of pixels: masks, or pseudo-labels to train again on.

Chen et al. 2015 (LargeFOV, one branch) and 2018 (version 2, four). With masks it is the row that every table needs;
with the pseudo-labels of a trained segmenter it is the second step of DSRG and FickleNet. Departure: the published loss
over several scales of the input (version 2) is not repeated.
"""

from typing import Literal

from pydantic import model_validator

from segcore.config.sections import Positive
from segcore.data import pseudo_labels
from segcore.data.batches import Batch
from segcore.data.samples import LabelledImages
from segcore.errors import Problem
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks.classifiers import Classifier
from segcore.networks.deeplab import DeepLab, at_cells
from segcore.systems._grid import GridSystem, NetworkParams, masks_of, network_of
from segcore.systems.contract import Inputs


class Params(NetworkParams):
    """An entry of `systems` with `module: deeplab`."""

    geometry: Literal["stretched", "crops"]
    """Images stretched to the square, or random squares cut from them; prediction then stretches or pads."""
    scales: tuple[Positive, Positive]
    """crops: the least and the greatest factor that images are scaled by before."""

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> "Params":
        if self.scales[0] > self.scales[1]:
            raise ValueError(f"scales {list(self.scales)} must be the least factor, then the greatest")
        return self


class DeepLabSystem(GridSystem):
    """The network and the cross-entropy of its scores."""

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...], params: Params) -> None:
        super().__init__(network, borrowed)
        self.square = "stretch" if params.geometry == "stretched" else "pad"

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Softmax cross-entropy at the cells of the grid, over those whose label is known."""
        labels = at_cells(batch.labels, self.network.stride)
        return {"segmentation": pixel_cross_entropy(self.network(batch.images), labels)}


def build(params: Params, classifier: Classifier) -> DeepLabSystem:
    """The system with the trunk of a trained classifier, or a fresh one, whatever the classifier's head."""
    return DeepLabSystem(*network_of(params, classifier), params)


def samples(params: Params, inputs: Inputs) -> LabelledImages:
    """The images of the list, with their masks or with their pseudo-labels at full size."""
    records = [inputs.records[image_id] for image_id in inputs.images]
    scales = None if params.geometry == "stretched" else params.scales
    if inputs.labels.is_file():
        masks = masks_of(records)
        return LabelledImages(records, masks, inputs.n_tags, params.input_size, scales)
    if missing := sorted({*inputs.images} - {*pseudo_labels.listed(inputs.labels)}):
        raise Problem(
            f"{inputs.labels} has no pseudo-labels of {len(missing)} of {len(records)} images, {missing[0]} first; "
            "extract them of the list that this system names in `images`"
        )
    labels = [pseudo_labels.label_file(inputs.labels, image_id) for image_id in inputs.images]
    return LabelledImages(records, labels, inputs.n_tags, params.input_size, scales, strong=False)
