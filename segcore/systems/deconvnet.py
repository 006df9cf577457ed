"""DeconvNet: masks only, one softmax over all classes; the baseline of DecoupledNet's Table 1.

Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015. Trained here on the same
combinatorial crops as DecoupledNet (whose subsets it ignores) for as many steps, so that the two compare; the paper's
two stages of instance crops and proposal windows are not repeated. Whole-image inference by default; `proposals: 50`
predicts by EdgeBoxes windows and takes the maximum, as the paper does.
"""

from collections.abc import Iterable
from typing import Annotated, Any, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segcore.config import systems
from segcore.config.networks import DeconvolutionParams
from segcore.config.section import Cells, Padding
from segcore.data.batches import Batch
from segcore.data.samples import CropSamples
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks import normalisation
from segcore.networks.classifiers import fill_from_vgg16
from segcore.networks.deconvolution import Deconvolution, deconvolution_block
from segcore.networks.origin import Origin
from segcore.networks.trunk import Features, Trunk
from segcore.networks.vgg import VGG16
from segcore.systems._crops import SMALLEST, crop_samples
from segcore.systems.contract import Inputs, OpenSystem, Outputs, Supervision

FC_CHANNELS = 4096


class Training(systems.Training):
    """What training a system with `module: deconvnet` depends on."""

    network: DeconvolutionParams
    kernel: Cells
    """Side of fc6 (published: 7)."""
    padding: Padding
    """Zeros around the top map for fc6; the published network has none."""


class Prediction(systems.Prediction):
    """How a system with `module: deconvnet` predicts."""

    proposals: Annotated[int, Field(ge=0, le=10_000)]
    """EdgeBoxes windows that an image is predicted by (published: 50); 0 predicts it whole."""


class DeconvNet(OpenSystem):
    """An encoder with batch normalisation, fc6 and fc7, and the deconvolution network."""

    pretrained = ("encoder.",)

    prediction: Prediction

    def __init__(self, encoder: Trunk, n_classes: int, params: Training) -> None:
        super().__init__()
        self.params = params
        hidden = max(1, round(FC_CHANNELS * params.network.width))
        self.encoder = encoder
        kernel, padding = params.kernel, params.padding
        self.deconvolution = Deconvolution(
            encoder.switch_channels, params.network.width, n_classes, params.network.output_stride
        )
        self.fc6 = deconvolution_block(nn.Conv2d(encoder.channels, hidden, kernel, padding=padding))
        self.fc7 = deconvolution_block(nn.Conv2d(hidden, hidden, 1))
        back = nn.ConvTranspose2d(hidden, self.deconvolution.inputs, kernel, padding=padding)
        self.fc6_deconv = deconvolution_block(back)
        self.smallest_input = 32 * max(1, kernel - 2 * padding)

    @property
    def proposals(self) -> int:
        return self.prediction.proposals

    @property
    def trunk(self) -> Trunk:
        return self.encoder

    def forward(self, batch: Batch) -> Outputs:
        features = self.encoder(batch.images)
        return Outputs(features.levels, self._scores(features, batch.images))

    def _scores(self, features: Features, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        bottleneck = self.fc6_deconv(self.fc7(self.fc6(features.top)))
        return self.deconvolution(bottleneck, features.switches, (images.shape[2], images.shape[3]))

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """Softmax cross-entropy over all classes and all known pixels."""
        return {"segmentation": pixel_cross_entropy(outputs.scores, batch.labels)}

    def finishing_batches(self) -> tuple[int, int]:
        return self.params.network.norm_batches, self.params.network.norm_batch_size

    def finish(self, batches: Iterable[Batch]) -> None:
        """Re-estimate the statistics of batch normalisation, as the authors did after training."""
        self.train()
        normalisation.reestimate(self, self, batches)
        self.eval()

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        return self._scores(self.encoder(images).top_only(), images).float()


def build(params: Training, origin: Origin) -> DeconvNet:
    """The system with the trunk of a trained classifier, or a fresh one, as its encoder.

    With a fresh VGG-16, fc6 and fc7 start from its own where their shapes fit, as published. DeconvNet has batch
    normalisation behind every convolution; into a VGG-16 without any it is inserted.
    """
    encoder = origin.trunk(32)
    if isinstance(encoder, VGG16):
        encoder = encoder.with_batch_norm()
    system = DeconvNet(encoder, origin.n_tags + 1, params)
    layers = cast(nn.Conv2d, system.fc6[0]), cast(nn.Conv2d, system.fc7[0])
    if origin.classifier is None and fill_from_vgg16(origin.backbone, *layers):
        system.pretrained = ("encoder.", "fc6.0.", "fc7.0.")
    return system


def samples(params: Training, inputs: Inputs) -> CropSamples:
    """Combinatorial crops of the strong images; their subsets play no part."""
    return crop_samples(inputs)


def supervision(params: Training, labels: str) -> Supervision:
    """Masks."""
    return Supervision(masks=True, tags=False)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    training = SMALLEST["training"] | {"kernel": 2, "padding": 0}
    own = {"proposals": 0}
    return SMALLEST | {"module": "deconvnet", "training": training, "prediction": SMALLEST["prediction"] | own}
