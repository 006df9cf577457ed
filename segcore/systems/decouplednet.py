"""DecoupledNet: a classifier finds the classes, a two-channel deconvolution network cuts each of them out.

Hong, Noh and Han, "Decoupled Deep Neural Network for Semi-supervised Semantic Segmentation", NIPS 2015. Layers,
constants and inference follow the published prototxts and MATLAB code. Departures: batch normalisation has epsilon
1e-5 (the published 1e-9 stays on the saliency map, whose values are tiny); kernel, widths and input size are
parameters, so that small versions exist; a trunk without max-pool switches is mirrored by learned transposed
convolutions.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config import systems
from segcore.config.networks import DeconvolutionParams
from segcore.config.section import Fraction
from segcore.data.batches import Batch
from segcore.data.samples import CropSamples, binary_labels
from segcore.errors import Problem
from segcore.localisation.saliency import saliency
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks import normalisation
from segcore.networks.classifiers import Activations, Classifier, FullyConnectedHead
from segcore.networks.deconvolution import Deconvolution, OutputStride, deconvolution_block
from segcore.networks.origin import Origin
from segcore.networks.trunk import Features
from segcore.systems._crops import SMALLEST, crop_samples
from segcore.systems.contract import Inputs, Supervision, System

TAKES_TAGS = True
"""It segments by given tags, too."""

BRIDGE_CHANNELS = 2048
PAIRS_AT_ONCE = 32
"""Pairs of image and label that inference runs through the network together: bounds its memory."""


class Training(systems.Training):
    """What training a system with `module: decouplednet` depends on."""

    network: DeconvolutionParams


class Prediction(systems.Prediction):
    """How a system with `module: decouplednet` predicts."""

    threshold: Fraction
    """Probability above which a tag counts as found."""
    weigh_by_probability: bool
    """Multiply the map of a found tag by the tag's probability; the published inference takes found tags as certain."""


class Bridge(nn.Module):
    """The bridging layers: top map and saliency map in, class-specific activation map out (section 4.3)."""

    def __init__(self, channels: int, width: float, kernel: int, padding: int, outputs: int) -> None:
        super().__init__()
        hidden = max(1, round(BRIDGE_CHANNELS * width))
        self.spatial_norm = normalisation.batch_norm(channels)
        # Gradients are tiny: torch's 1e-5 would be more than their variance. The published epsilon stays here.
        self.saliency_norm = normalisation.batch_norm(channels, eps=1e-9)
        self.fc6 = deconvolution_block(nn.Conv2d(2 * channels, hidden, kernel, padding=padding))
        self.fc7 = deconvolution_block(nn.Conv2d(hidden, hidden, 1))
        self.fc6_deconv = deconvolution_block(nn.ConvTranspose2d(hidden, outputs, kernel, padding=padding))

    def forward(self, top: Float[Tensor, "P C h w"], saliency: Float[Tensor, "P C h w"]) -> Float[Tensor, "P D h w"]:
        both = torch.cat([self.spatial_norm(top), self.saliency_norm(saliency)], dim=1)
        return self.fc6_deconv(self.fc7(self.fc6(both)))


class Segmenter(nn.Module):
    """Bridging layers and deconvolution network: background and foreground scores of some tags in an image."""

    def __init__(self, classifier: Classifier, width: float, output_stride: OutputStride) -> None:
        super().__init__()
        trunk = classifier.trunk
        self.deconvolution = Deconvolution(trunk.switch_channels, width, 2, output_stride, trunk.stride)
        head, inputs = classifier.head, self.deconvolution.inputs
        assert isinstance(head, FullyConnectedHead)  # as `build` sees to
        self.bridge = Bridge(trunk.channels, width, head.kernel, head.padding, inputs)

    def forward(
        self, features: Features, saliency: Float[Tensor, "P C h w"], size: tuple[int, int]
    ) -> Float[Tensor, "P 2 H W"]:
        return self.deconvolution(self.bridge(features.top, saliency), features.switches, size)


class DecoupledNet(System):
    """The whole network. The classifier is frozen and always in eval mode."""

    prediction: Prediction
    scores_are_probabilities = True

    def __init__(self, classifier: Classifier, params: Training) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False).eval()
        self.segmenter = Segmenter(classifier, params.network.width, params.network.output_stride)
        self.params = params
        self.smallest_input = classifier.trunk.stride * self.head.smallest_map

    @property
    def head(self) -> FullyConnectedHead:
        """The head of the classifier, which the saliency maps go back through."""
        assert isinstance(self.classifier.head, FullyConnectedHead)  # as `build` sees to
        return self.classifier.head

    def train(self, mode: bool = True) -> "DecoupledNet":
        super().train(mode)
        self.classifier.eval()
        return self

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy of the binary segmentation of each sample's label subset (equation 2)."""
        inputs = self._training_inputs(batch)
        scores = self.segmenter(*inputs)
        return {"segmentation": pixel_cross_entropy(scores, binary_labels(batch.labels, batch.tags))}

    @torch.no_grad()
    def _training_inputs(self, batch: Batch) -> tuple[Features, Tensor, tuple[int, int]]:
        activations = self.classifier(batch.images)
        values = activations.strongest.sigmoid() * batch.tags
        everyone = torch.arange(len(batch.ids), device=values.device)
        maps = saliency(self.head, activations, values, everyone)
        height, width = batch.images.shape[2:]
        return activations.features.top_only(), maps, (height, width)

    def finishing_batches(self) -> tuple[int, int]:
        return self.params.network.norm_batches, self.params.network.norm_batch_size

    def finish(self, batches: Iterable[Batch]) -> None:
        """Re-estimate the statistics of batch normalisation, as the authors did after training."""
        self.train()
        normalisation.reestimate(self.segmenter, self.segmenter, map(self._training_inputs, batches))
        self.eval()

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """One pass for the images, then one batch for the joint map and the map of each found tag.

        The result are the 21 normalised maps of the published inference: P_bg of all found tags together, P_fg of
        each found tag, divided by their sum; where all are 0, background and found tags count alike.

        A departure, if `weigh_by_probability`: P_fg is the probability of a pixel to be of the tag's object given that
        the tag is in the image. Times the probability that it is, a doubtful tag no longer overrides a certain one, nor
        the background.
        """
        activations: Activations = self.classifier(images)
        probabilities = activations.decision.sigmoid()
        found = probabilities > self.prediction.threshold
        maps = self._maps(images, activations, found)
        return _normalised(self.weighed(maps, probabilities), found)

    @torch.no_grad()
    def predict_given(self, images: Float[Tensor, "B 3 H W"], tags: Float[Tensor, "B L"]) -> Float[Tensor, "B K H W"]:
        """The same of given tags, all of which are certain."""
        found = tags > 0
        return _normalised(self._maps(images, self.classifier(images), found), found)

    def _maps(
        self, images: Float[Tensor, "B 3 H W"], activations: Activations, found: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B K H W"]:
        """P_bg and, of each found tag, P_fg; 0 of the others."""
        probabilities = activations.decision.sigmoid()
        image, values, tag = _pairs(probabilities * found, found)
        height, width = images.shape[2:]
        maps = images.new_zeros(len(images), found.shape[1] + 1, height, width)
        maps[~found.any(1), 0] = 1
        for pairs in torch.arange(len(image), device=image.device).split(PAIRS_AT_ONCE):
            at = image[pairs]
            both = self.cut_out(activations, values[pairs], at, (height, width))
            is_tag = (tag[pairs] > 0).long()
            maps[at, tag[pairs]] = both[torch.arange(len(at)), is_tag].to(maps.dtype)
        return maps

    def cut_out(
        self, activations: Activations, values: Float[Tensor, "P L"], image: Int64[Tensor, " P"], size: tuple[int, int]
    ) -> Float[Tensor, "P 2 H W"]:
        """P_bg and P_fg of pairs of an image and the values of its tags."""
        explained = saliency(self.head, activations, values, image)
        return F.softmax(self.segmenter(activations.features.pick(image), explained, size).float(), dim=1)

    def weighed(self, maps: Float[Tensor, "B K H W"], probabilities: Float[Tensor, "B L"]) -> Float[Tensor, "B K H W"]:
        """The maps of tags times their probabilities, if they are to be weighed so."""
        if not self.prediction.weigh_by_probability:
            return maps
        return torch.cat([maps[:, :1], maps[:, 1:] * probabilities[:, :, None, None].to(maps.dtype)], dim=1)

    def exportable(self, tags_at_once: int | None) -> "FixedTags":
        n_tags = self.classifier.n_tags
        if tags_at_once is not None and not 1 <= tags_at_once <= n_tags:
            raise Problem(f"--tags-at-once: found {tags_at_once}; allowed are 1..{n_tags}, the tags of this model")
        return FixedTags(self, tags_at_once or n_tags)

    def probabilities(self, scores: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
        """The maps as they are: they sum to 1 over the classes."""
        return scores


class FixedTags(nn.Module):
    """`DecoupledNet.predict` with as many pairs for every image: the joint one, and one for each of its likeliest tags.

    A tag is found as always, if it is one of these; the pairs of others are run and count for nothing.
    """

    def __init__(self, system: DecoupledNet, tags_at_once: int) -> None:
        super().__init__()
        self.system = system
        self.tags_at_once = tags_at_once

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        system = self.system
        activations: Activations = system.classifier(images)
        probabilities = activations.decision.sigmoid()
        likeliest = probabilities.topk(self.tags_at_once).indices
        each = F.one_hot(likeliest, probabilities.shape[1]).to(probabilities.dtype)  # B n L
        found = (probabilities > system.prediction.threshold) & (each.sum(1) > 0)
        values = torch.cat([torch.ones_like(each[:, :1]), each], dim=1) * (probabilities * found)[:, None]
        image = torch.arange(images.shape[0], device=images.device)[:, None].expand(values.shape[:2])
        both = system.cut_out(activations, values.flatten(0, 1), image.flatten(), (images.shape[2], images.shape[3]))
        both = both.unflatten(0, (images.shape[0], 1 + self.tags_at_once))
        background = torch.where(found.any(1)[:, None, None], both[:, 0, 0], 1.0)
        # One of the n maps, or none, for each tag: a product takes it as it is.
        objects = torch.einsum("bnl,bnhw->blhw", each * found[:, None], both[:, 1:, 1])
        maps = torch.cat([background[:, None], objects], dim=1)
        return _normalised(system.weighed(maps, probabilities), found)


def _normalised(maps: Float[Tensor, "B K H W"], found: Bool[Tensor, "B L"]) -> Float[Tensor, "B K H W"]:
    """The maps over their sum; where all are 0, background and found tags count alike."""
    empty = maps.sum(1, keepdim=True) == 0
    present = torch.cat([torch.ones_like(found[:, :1]), found], dim=1)
    maps = maps + (empty & present[:, :, None, None]).to(maps.dtype)
    return maps / maps.sum(1, keepdim=True)


def _pairs(
    values: Float[Tensor, "B L"], found: Bool[Tensor, "B L"]
) -> tuple[Int64[Tensor, " P"], Float[Tensor, "P L"], Int64[Tensor, " P"]]:
    """What to run: for each image with tags, all of them together (tag 0, the background) and each alone (tag 1..L)."""
    joint = found.any(1).nonzero().flatten()
    image, column = found.nonzero(as_tuple=True)
    single = F.one_hot(column, found.shape[1]).to(values.dtype) * values[image]
    return (
        torch.cat([joint, image]),
        torch.cat([values[joint], single]),
        torch.cat([torch.zeros_like(joint), column + 1]),
    )


def build(params: Training, origin: Origin) -> DecoupledNet:
    """The system around a trained classifier, whose head must be fully connected."""
    return DecoupledNet(origin.fully_connected(), params)


def samples(params: Training, inputs: Inputs) -> CropSamples:
    """Combinatorial crops of the strong images."""
    return crop_samples(inputs)


def supervision(params: Training, labels: str) -> Supervision:
    """Masks; what its classifier knows, which finds the classes, comes with its start."""
    return Supervision(masks=True, tags=False)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    own = {"threshold": 0.5, "weigh_by_probability": False}
    return SMALLEST | {"module": "decouplednet", "prediction": SMALLEST["prediction"] | own}
