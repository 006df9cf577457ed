"""DeepLab on labels of pixels: masks, or pseudo-labels to train again on.

Chen et al. 2015 (LargeFOV, one branch) and 2018 (version 2, four). With masks it is the row that every table needs;
with the pseudo-labels of a trained segmenter it is the second step of DSRG and FickleNet. Departure: the published loss
over several scales of the input (version 2) is not repeated.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segcore.config.section import Positive, Section
from segcore.config.systems import MASKS, PSEUDO_LABELS, Prediction
from segcore.data import pseudo_labels
from segcore.data.batches import Batch, Mixed, SizedSamples
from segcore.data.samples import LabelledImages
from segcore.data.splits import MASKS_FILE
from segcore.errors import Problem
from segcore.losses import Term
from segcore.networks.deeplab import DeepLab, at_cells
from segcore.networks.origin import Origin
from segcore.systems._grid import SMALLEST_PREDICTION, SMALLEST_TRAINING, GridSystem, GridTraining, masks_of, network_of
from segcore.systems._pixel_loss import PixelLoss, PixelLossParams
from segcore.systems.contract import Inputs, Outputs, Supervision


class Stretched(Section):
    """Images are stretched to the square; so is prediction."""

    kind: Literal["stretched"]


class Crops(Section):
    """Random squares are cut from scaled images; prediction pads."""

    kind: Literal["crops"]
    scales: tuple[Positive, Positive]
    """The least and the greatest factor that images are scaled by before."""

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> "Crops":
        if self.scales[0] > self.scales[1]:
            raise ValueError(f"scales {list(self.scales)} must be the least factor, then the greatest")
        return self


class Training(GridTraining):
    """What training a system with `module: deeplab` depends on."""

    geometry: Annotated[Stretched | Crops, Field(discriminator="kind")]
    pixel_loss: PixelLossParams | None = None
    """A key that does not apply does not exist: absent, the loss is the cross-entropy, every class counting alike."""
    tagged_images: bool = False
    """Whether half of every batch are images with tags alone: no loss of pixels sees them, but that of tags of a
    regulariser does (Self-Regulation: of every exit). Not published: the source has labels of all its images."""

    @model_validator(mode="after")
    def _tags_teach(self) -> "Training":
        if self.tagged_images and not self.regularisers:
            raise ValueError("tagged_images: true needs a regulariser that learns tags, as self_regulation does")
        return self


__all__ = ["Prediction", "Training"]


class DeepLabSystem(GridSystem):
    """The network and the losses of its scores."""

    def __init__(self, network: DeepLab, borrowed: tuple[str, ...], params: Training, n_classes: int) -> None:
        super().__init__(network, borrowed, params)
        self.square = "stretch" if isinstance(params.geometry, Stretched) else "pad"
        self.pixel_loss = PixelLoss(params.pixel_loss, n_classes)

    def begin(self, samples: SizedSamples) -> None:
        self.pixel_loss.begin(samples)

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """Softmax cross-entropy, and what the entry names beside it, at the cells of the grid whose label is known."""
        return self.pixel_loss(outputs.scores, at_cells(batch.labels, self.network.stride))


def build(params: Training, origin: Origin) -> DeepLabSystem:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    return DeepLabSystem(*network_of(params.network, origin), params, origin.n_tags + 1)


def samples(params: Training, inputs: Inputs) -> LabelledImages | Mixed:
    """The images of the list, with their masks or with their pseudo-labels at full size.

    With `tagged_images`, as many of the weak list besides: an image may be both, and teaches by its tags and its mask.
    """
    records, size = inputs.chosen, params.network.input_size
    scales = params.geometry.scales if isinstance(params.geometry, Crops) else None
    if (inputs.labels / MASKS_FILE).is_file():
        masked = LabelledImages(records, masks_of(records), inputs.n_tags, size, scales)
        if not params.tagged_images:
            return masked
        weak = inputs.of(inputs.weak)
        return Mixed(LabelledImages(weak, [None] * len(weak), inputs.n_tags, size, scales, strong=False), masked)
    if params.tagged_images:
        raise Problem("tagged_images: true goes with labels: masks; images with pseudo-labels bring their tags along")
    ids = [record.image_id for record in records]
    if missing := sorted({*ids} - {*pseudo_labels.listed(inputs.labels)}):
        raise Problem(
            f"{inputs.labels} has no pseudo-labels of {len(missing)} of {len(records)} images, {missing[0]} first; "
            "extract them of the list that this system names in `images`"
        )
    labels = [pseudo_labels.label_file(inputs.labels, image_id) for image_id in ids]
    return LabelledImages(records, labels, inputs.n_tags, size, scales, strong=False)


def supervision(params: Training, labels: str) -> Supervision:
    """Masks, or the pseudo-labels of another model alone; tags, where tagged images stand beside the masks."""
    return Supervision(masks=not labels.startswith(PSEUDO_LABELS), tags=params.tagged_images)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    training = SMALLEST_TRAINING | {"geometry": {"kind": "stretched"}}
    sources = {"start": "classifiers/any", "images": "strong", "labels": MASKS}
    return {"module": "deeplab", **sources, "training": training, "prediction": SMALLEST_PREDICTION}
