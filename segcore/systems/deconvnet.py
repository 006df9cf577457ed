"""DeconvNet: masks only, one softmax over all classes; the baseline of DecoupledNet's Table 1.

Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015. Trained here on the same
combinatorial crops as DecoupledNet (whose subsets it ignores) for as many steps, so that the two compare; the paper's
two stages of instance crops and proposal windows are not repeated. Whole-image inference by default; `proposals: 50`
predicts by EdgeBoxes windows and takes the maximum, as the paper does.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segcore.config.sections import Count, Positive, SystemEntry
from segcore.data.batches import Batch
from segcore.data.samples import CropSamples
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks import backbones, normalisation
from segcore.networks.classifiers import Classifier, FullyConnectedHead, fill_from_vgg16
from segcore.networks.deconvolution import Deconvolution, OutputStride, deconvolution_block
from segcore.systems._crops import crop_samples, fully_connected
from segcore.systems.contract import Inputs, System

FC_CHANNELS = 4096


class Params(SystemEntry):
    """An entry of `systems` with `module: deconvnet`."""

    model_config = {"extra": "forbid"}

    encoder: Literal["classifier", "backbone"]
    """Start from the trunk that the classifier trained, or from the backbone's own initial weights."""
    width: Positive
    output_stride: OutputStride
    norm_batches: Count
    norm_batch_size: Count
    proposals: Annotated[int, Field(ge=0)]
    """EdgeBoxes windows that an image is predicted by; 0 predicts it whole."""


class DeconvNet(System):
    """An encoder with batch normalisation, fc6 and fc7, and the deconvolution network."""

    pretrained = ("encoder.",)

    def __init__(self, encoder: backbones.Trunk, head: FullyConnectedHead, params: Params) -> None:
        super().__init__()
        hidden = max(1, round(FC_CHANNELS * params.width))
        self.encoder = encoder
        n_classes, kernel, padding = head.score.out_channels + 1, head.kernel, head.padding
        self.deconvolution = Deconvolution(encoder.switch_channels, params.width, n_classes, params.output_stride)
        self.fc6 = deconvolution_block(nn.Conv2d(encoder.channels, hidden, kernel, padding=padding))
        self.fc7 = deconvolution_block(nn.Conv2d(hidden, hidden, 1))
        back = nn.ConvTranspose2d(hidden, self.deconvolution.inputs, kernel, padding=padding)
        self.fc6_deconv = deconvolution_block(back)
        self.params = params
        self.proposals = params.proposals
        self.smallest_input = 32 * head.smallest_map

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        features = self.encoder(images)
        bottleneck = self.fc6_deconv(self.fc7(self.fc6(features.top)))
        return self.deconvolution(bottleneck, features.switches, (images.shape[2], images.shape[3]))

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Softmax cross-entropy over all classes and all known pixels."""
        return {"segmentation": pixel_cross_entropy(self(batch.images), batch.labels)}

    def finishing_batches(self) -> tuple[int, int]:
        return self.params.norm_batches, self.params.norm_batch_size

    def finish(self, batches: Iterable[Batch]) -> None:
        """Re-estimate the statistics of batch normalisation, as the authors did after training."""
        self.train()
        normalisation.reestimate(self, self, (batch.images for batch in batches))
        self.eval()

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        return self(images).float()


def build(params: Params, classifier: Classifier) -> DeconvNet:
    """The system with the trunk of a trained classifier, or a fresh one, as its encoder.

    With a fresh VGG-16, fc6 and fc7 start from its own where their shapes fit, as published.

    DeconvNet has batch normalisation behind every convolution; into a VGG-16 without any it is inserted. Kernel and
    padding of its own fc6 are those of the classifier's head, which must be fully connected.
    """
    head = fully_connected(classifier)
    encoder = classifier.trunk if params.encoder == "classifier" else backbones.build(classifier.backbone)
    if isinstance(encoder, backbones.VGG16):
        encoder = encoder.with_batch_norm()
    system = DeconvNet(encoder, head, params)
    layers = cast(nn.Conv2d, system.fc6[0]), cast(nn.Conv2d, system.fc7[0])
    if params.encoder == "backbone" and fill_from_vgg16(classifier.backbone, *layers):
        system.pretrained = ("encoder.", "fc6.0.", "fc7.0.")
    return system


def samples(params: Params, inputs: Inputs) -> CropSamples:
    """Combinatorial crops of the strong images; their subsets play no part."""
    return crop_samples(inputs)
