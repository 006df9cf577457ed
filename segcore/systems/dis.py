"""DIS: a labelmap must explain the colours of its image, so images that have tags alone can be given one.

Luo, Wang, Lin and Wang, "Deep Dual Learning for Semantic Image Segmentation", ICCV 2017; no code was published. The
network stands in `networks/dual.py`, inference in `networks/dual_inference.py`. Each image costs L_map + L_img + L_tag:
softmax cross-entropy of the scores at the cells, squared difference to the small image, sigmoid cross-entropy of the
tags. Training has two stages (section 3): an entry with `weak_update: null` learns from masks alone; a second one
starts from it and sees as many images that have tags alone, whose missing labelmap is filled in by one of the three
ways of the paper's first figure. Targets carry no gradient. Prediction infers by the image alone.

Where the source is silent, we chose:

* what inference does at training: it lowers `weights.image` L_img + `weights.tags` L_tag, with the tags as given;
* the inferred labelmap is the greatest score at each cell, among the cleaned tags and the background; a tag is cleaned
  to 1 if after inference its probability is at least `keep` where it was given and at least `add` where it was not
  (0.5 for both is the plain reading; lower ones find more of the true tags and believe more of the wrong ones); an
  image that would lose all of its tags keeps the likeliest of those given;
* the small image is the mean colour around each cell, normalised as the trunk's input is;
* L_tag and L_img are means over classes, places and channels, so that all three are of the order of 1;
* the tags of a strong sample are the classes that its mask shows, after cutting;
* weak images are those of W that have no mask.

The labelmap of an update may be pushed until it shows every tag (`shares`): the published update takes away what the
tags do not name, and nothing makes a given tag appear, so a first stage that is shy of objects teaches the second one
background (docs/results.md).

Departures: images are mirrored at random, as everywhere here; batch normalisation is frozen if the backbone says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from segcore.config import systems
from segcore.config.networks import DualParams
from segcore.config.section import NotNegative, Positive, Section
from segcore.config.systems import MASKS
from segcore.data.batches import Batch, Mixed
from segcore.data.pictures import IGNORE
from segcore.data.samples import LabelledImages
from segcore.errors import Problem
from segcore.losses import (
    Term,
    over_images,
    pixel_cross_entropy,
    reconstruction_costs,
    tag_costs,
    tag_cross_entropy,
)
from segcore.networks.deeplab import at_cells, enlarged
from segcore.networks.dual import Dual, Responses
from segcore.networks.dual_inference import Inferred, infer
from segcore.networks.dual_unrolled import Unrolled
from segcore.networks.origin import Origin
from segcore.networks.trunk import Trunk
from segcore.systems._grid import SMALLEST_PREDICTION, masks_of
from segcore.systems._weak_update import (
    InferredUpdate,
    NoUpdate,
    Predicted,
    Update,
    cleaned,
    labelmaps,
    shown,
    with_background,
)
from segcore.systems.contract import CleanedTags, Inputs, OpenSystem, Outputs, Supervision


class Weights(Section):
    """Of the three losses; 1 each where the paper says nothing else."""

    labelmap: NotNegative
    image: NotNegative
    tags: NotNegative


class Training(systems.Training):
    """What training a system with `module: dis` depends on."""

    network: DualParams
    scales: tuple[Positive, Positive] | None
    """Images are scaled by a random factor in this range, and a random square is cut out; null stretches them."""
    weights: Weights
    weak_update: Update | None
    """How the labelmap of a weak image is filled in; null learns from masks alone, which is the first stage."""

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> "Training":
        if self.scales is not None and self.scales[0] > self.scales[1]:
            raise ValueError(f"scales {list(self.scales)} must be the least factor, then the greatest")
        return self


class Prediction(systems.Prediction):
    """What predicting depends on: scores are inferred by the image alone."""

    iterations: Annotated[int, Field(ge=0)]
    """Steps of inference; 0 is the plain forward pass."""
    step: Positive


@dataclass(frozen=True)
class DualOutputs(Outputs):
    """With what the subnets say, and the vector of the image."""

    vector: Float[Tensor, "B C"]
    responses: Responses


class DIS(OpenSystem):
    """The network, its three losses, and the targets of images that have none."""

    smallest_input = 33
    input_offset = 1

    def __init__(self, network: Dual, params: Training) -> None:
        super().__init__()
        self.params = params
        self.network = network
        self.input_step = network.stride
        self.square = "stretch" if params.scales is None else "pad"
        self.pretrained = ("network.trunk.",)
        self.cleans_tags = isinstance(params.weak_update, InferredUpdate)

    @property
    def trunk(self) -> Trunk:
        return self.network.trunk

    def forward(self, batch: Batch) -> DualOutputs:
        features = self.network.trunk(batch.images)
        vector = self.network.vector_of(features.top)
        responses = self.network.respond(features.top, vector)
        return DualOutputs(features.levels, self.network.fused(responses), vector, responses)

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """The mean over known cells, and the means over images, of the three losses."""
        found, weights = cast(DualOutputs, outputs), self.params.weights
        image = self.network.reconstructed(found.responses.labelmap)
        seen = self.network.seen(batch.images, _size(image))
        labels, tags = self.targets(batch, found, seen)
        with torch.autocast(image.device.type, enabled=False):
            terms = {
                "labelmap": (pixel_cross_entropy(found.scores, labels), weights.labelmap),
                "image": (over_images(reconstruction_costs(image, seen)), weights.image),
                "tags": (tag_cross_entropy(found.responses.tags, tags), weights.tags),
            }
        return {name: Term(term.total * weight, term.weight) for name, (term, weight) in terms.items()}

    @torch.no_grad()
    def targets(
        self, batch: Batch, found: DualOutputs, seen: Float[Tensor, "B 3 h w"]
    ) -> tuple[Int64[Tensor, "B h w"], Float[Tensor, "B K"]]:
        """Labels of the cells, 255 where unknown, and tags, background first.

        Those of strong samples come from their masks. A weak sample has the tags that it was given, cleaned if its
        update infers them, and the labels that the update gives.
        """
        labels = at_cells(batch.labels, self.network.stride).masked_fill(~batch.strong[:, None, None], IGNORE)
        tags = with_background(torch.where(batch.strong[:, None], shown(batch.labels, batch.tags.shape[1]), batch.tags))
        weak, update = (~batch.strong).nonzero().flatten(), self.params.weak_update
        if len(weak) == 0 or update is None or isinstance(update, NoUpdate):
            return labels, tags
        if isinstance(update, Predicted):
            labels[weak] = labelmaps(batch, weak, found.scores[weak], tags[weak], update.shares)
            return labels, tags
        u1, v1, given = found.levels[-1][weak], found.vector[weak], tags[weak]
        inferred, cleaned = self.explained(u1, v1, seen[weak], given, update)
        scores = self.network.fused(inferred.responses)
        labels[weak] = labelmaps(batch, weak, scores, cleaned, update.shares).to(labels.dtype)
        tags[weak] = cleaned
        return labels, tags

    def explained(
        self,
        u1: Float[Tensor, "B C h w"],
        v1: Float[Tensor, "B C"],
        seen: Float[Tensor, "B 3 h w"],
        given: Float[Tensor, "B K"],
        update: InferredUpdate,
    ) -> tuple[Inferred, Float[Tensor, "B K"]]:
        """What fits images and the tags that they were given, and the tags cleaned by it."""
        weights, unlike = self.params.weights, self._unlike(seen)

        def objective(responses: Responses) -> Float[Tensor, " B"]:
            return weights.image * unlike(responses) + weights.tags * tag_costs(responses.tags, given)

        inferred = infer(self.network, u1, v1, objective, update.iterations, update.step)
        probabilities = inferred.responses.tags.sigmoid()
        return inferred, cleaned(probabilities, given, update.keep, update.add)

    def _unlike(self, seen: Float[Tensor, "B 3 h w"]) -> Callable[[Responses], Float[Tensor, " B"]]:
        """L_img of each image."""
        return lambda responses: reconstruction_costs(self.network.reconstructed(responses.labelmap), seen)

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        height, width = images.shape[2:]
        u1 = self.network.trunk(images).top
        seen, how = self.network.seen(images, _size(u1)), self.prediction
        inferred = infer(self.network, u1, self.network.vector_of(u1), self._unlike(seen), how.iterations, how.step)
        return enlarged(self.network.fused(inferred.responses).float(), (height, width), self.network.stride)

    def exportable(self, tags_at_once: int | None) -> nn.Module:
        super().exportable(tags_at_once)  # refuses what has nothing to act on
        return Unrolled(self.network, self.prediction.iterations, self.prediction.step)

    @torch.no_grad()
    def clean_tags(self, images: Float[Tensor, "B 3 H W"], tags: Float[Tensor, "B L"]) -> CleanedTags:
        update = self.params.weak_update
        assert isinstance(update, InferredUpdate)
        u1, given = self.network.trunk(images).top, with_background(tags)
        seen = self.network.seen(images, _size(u1))
        inferred, kept = self.explained(u1, self.network.vector_of(u1), seen, given, update)
        return CleanedTags(kept[:, 1:], inferred.responses.tags.sigmoid()[:, 1:].float())


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def build(params: Training, origin: Origin) -> DIS:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    network = params.network
    return DIS(Dual(origin.trunk(network.stride), origin.n_tags + 1, network.fusion_kernel), params)


def samples(params: Training, inputs: Inputs) -> LabelledImages | Mixed:
    """The images of the list with their masks, and in the second stage as many of those that have tags alone."""
    records, size = inputs.chosen, params.network.input_size
    strong = LabelledImages(records, masks_of(records), inputs.n_tags, size, params.scales)
    if params.weak_update is None:
        return strong
    with_masks = {record.image_id for record in records}
    weak = inputs.of([image_id for image_id in inputs.weak if image_id not in with_masks])
    if not weak:
        raise Problem(
            "every image has a mask; weak_update: null learns from masks alone, or choose fewer strong images"
        )
    return Mixed(strong, LabelledImages(weak, [None] * len(weak), inputs.n_tags, size, params.scales, strong=False))


def supervision(params: Training, labels: str) -> Supervision:
    """Masks, and in the second stage the tags of the images that have none."""
    return Supervision(masks=True, tags=params.weak_update is not None)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    training = {
        "recipe": "segmenter",
        "network": {"kind": "dual", "stride": 8, "fusion_kernel": 1, "input_size": 97},
        "scales": None,
        "weights": {"labelmap": 1.0, "image": 1.0, "tags": 1.0},
        "weak_update": {"kind": "inferred", "iterations": 2, "step": 0.02, "keep": 0.5, "add": 0.5, "shares": None},
    }
    sources = {"start": "classifiers/any", "images": "strong", "labels": MASKS}
    prediction = SMALLEST_PREDICTION | {"iterations": 2, "step": 0.02}
    return {"module": "dis", **sources, "training": training, "prediction": prediction}
