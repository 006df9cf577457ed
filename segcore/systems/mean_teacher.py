"""A mean teacher that knows the tags: it labels tagged images as they are, its student learns from changed views.

The teacher is a running mean of the student (Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS
2017), of rate min(1 - 1 / (t + 1), 0.996) after step t. It sees an image as it is and finds its tags and the background
alone; where its greatest probability reaches a threshold, the class is the label of two strong views of the image:
other colours, blur, and boxes with a piece of another image, whose labels are cut and pasted alike (CutMix). Of the
trunk's channels one view keeps those that the other drops, both times 2 (UniMatch V2; Yang et al. 2024). With CE over
all cells of an image, those below the threshold costing nothing, as UniMatch counts,

    L = 1/2 (CE on masks + mean over both views of CE on confident labels).

The parts are published; that the teacher is limited to the image's tags is ours. The teacher is what predicts.

The piece in a box is the next tagged image's of the same part of the step, whichever process holds it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import model_validator
from torch import Tensor

from segcore.config.section import Fraction, Rate, Section
from segcore.config.systems import MASKS, Prediction
from segcore.data.batches import Batch, Mixed, SizedSamples
from segcore.data.pictures import IGNORE
from segcore.losses import Term, limited_to_tags, pixel_cross_entropy
from segcore.networks.across import everyones, rank
from segcore.networks.averaged import Averaged
from segcore.networks.deeplab import enlarged
from segcore.networks.dropout import Keyed
from segcore.networks.origin import Origin
from segcore.networks.pyramid import PyramidNetwork, labels_at, shown
from segcore.networks.steps import Once
from segcore.networks.strong_views import StrongViews, pasted
from segcore.networks.trunk import Features
from segcore.seeds import derived_seed
from segcore.systems._grid import SMALLEST_PREDICTION
from segcore.systems._pixel_loss import PixelLoss, PixelLossParams
from segcore.systems._pyramid import SMALLEST_ZOOMED, ZoomedTraining, network_of, tagged_and_masked
from segcore.systems.contract import Inputs, Supervision, System


class StrongViewsParams(Section):
    """How the student's views of tagged images are changed."""

    jitter: Rate
    """Brightness, contrast and saturation change by factors of 1 - jitter to 1 + jitter, the hue by up to half of it
    (published: 0.5)."""
    jitter_share: Fraction
    """Share of the views whose colours change (published: 0.8)."""
    grey: Fraction
    """Share of those without colours (published: 0.2)."""
    blur: Fraction
    """Share of those that are blurred (published: 0.5)."""
    cutmix: Fraction
    """Share of those with a piece of another image (published: 0.5)."""
    dropout: Fraction
    """Share of the images of which each view sees one half of the channels (published: 0.5)."""


class Training(ZoomedTraining):
    """What training a system with `module: mean_teacher` depends on."""

    pixel_loss: PixelLossParams | None = None
    """Of the masks. A key that does not apply does not exist: absent, it is the cross-entropy."""
    keep: Rate
    """Of the teacher from one step to the next, at most (published: 0.996)."""
    threshold: Fraction
    """Least probability of a label (published: 0.95)."""
    strong_views: StrongViewsParams

    @model_validator(mode="after")
    def _views_are_new(self) -> "Training":
        if self.zoom.bank is not None:
            raise ValueError("zoom.bank has no use here: the student's views are new each time; leave it out")
        return self


__all__ = ["Prediction", "Training"]


@dataclass(frozen=True)
class View:
    """One strong view of the tagged images that this process holds.

    `labels` are the teacher's, 255 where it is not sure; `cells` is how many cells lie in images.
    """

    images: Float[Tensor, "V 3 H W"]
    labels: Int64[Tensor, "V h w"]
    cells: Float[Tensor, ""]


class MeanTeacher(System):
    """The student (`network`) and its running mean."""

    pretrained = ("network.trunk.",)
    may_be_missing = ("teacher.", "once.")

    def __init__(self, network: PyramidNetwork, n_classes: int, params: Training) -> None:
        super().__init__()
        self.params = params
        self.network = network
        self.teacher = Averaged(network)
        self.once = Once()
        self.keyed = Keyed()
        self.pixel_loss = PixelLoss(params.pixel_loss, n_classes)
        views = params.strong_views
        self.views = StrongViews(views.jitter, views.jitter_share, views.grey, views.blur, views.cutmix)

    def begin(self, samples: SizedSamples) -> None:
        self.pixel_loss.begin(samples)

    def finish(self, batches: Iterable[Batch]) -> None:
        """The teacher follows the last step, too; a further training begins anew."""
        steps = int(self.once.step) + 1
        if steps:
            self.teacher.follow(self.network, kept(steps, self.params.keep))
        self.once.step.fill_(-1)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Of masks and of both views; watched is the share of the cells of tagged images with a label, `confident`."""
        if self.once.began(batch.moment.step):
            self.teacher.follow(self.network, kept(batch.moment.step, self.params.keep))
        views, confident = self.strong(batch)
        masked = batch.strong.nonzero().squeeze(1)
        factors = self._factors(batch, len(masked))
        images = torch.cat([batch.images[masked], *(view.images for view in views)])
        scores = self.network.scores(_multiplied(self.network.trunk(images), factors))
        by_masks, *by_views = scores.split([len(masked), *(len(view.images) for view in views)])
        masks = labels_at(batch.labels[masked], self.network.stride, (scores.shape[2], scores.shape[3]))
        terms = {name: term.times(0.5) for name, term in self.pixel_loss(by_masks, masks).items()}
        for number, (view, found) in enumerate(zip(views, by_views, strict=True), start=1):
            costs = pixel_cross_entropy(found, view.labels).total
            terms[f"view_{number}"] = Term(costs, view.cells).times(0.25)
        return terms | {"confident": confident}

    @torch.no_grad()
    def strong(self, batch: Batch) -> tuple[list[View], Term]:
        """Both views of this process's tagged images, and how many of their cells have a label."""
        labels, inside = self._labels(batch)
        seeds, weak = self.keyed.seeds(len(batch.ids)), (~batch.strong).nonzero().squeeze(1)
        others = _next_of(batch.strong)
        all_labels, all_inside = everyones(labels)[others], everyones(inside)[others]
        views = []
        for number in range(2):
            pictures, boxes = self._changed(batch, [derived_seed(seed, number) for seed in seeds])
            images = pasted(pictures[weak], everyones(pictures)[others], boxes[weak])
            at_cells = labels_at(boxes[weak].long(), self.network.stride, (labels.shape[1], labels.shape[2])) == 1
            cells = pasted(inside[weak], all_inside, at_cells).sum().to(images.dtype)
            views.append(View(images, pasted(labels[weak], all_labels, at_cells), cells))
        known = (labels[weak] != IGNORE).sum().to(batch.tags.dtype)
        return views, Term(known, inside[weak].sum().to(batch.tags.dtype))

    def _changed(self, batch: Batch, seeds: list[int]) -> tuple[Float[Tensor, "B 3 H W"], Bool[Tensor, "B H W"]]:
        """The pictures, tagged ones with other colours, and where these will show a piece of another one."""
        pictures = batch.images.float().clone()
        boxes = torch.zeros_like(pictures[:, 0], dtype=torch.bool)
        for row in (~batch.strong).nonzero().squeeze(1).tolist():
            pictures[row] = self.views.changed(pictures[row], derived_seed(seeds[row], "colours"))
            box = self.views.box(pictures.shape[2], pictures.shape[3], derived_seed(seeds[row], "box"))
            boxes[row] = box.to(boxes.device)
        # Blur and contrast would light what lies beyond an image.
        return torch.where(shown(batch.images)[:, None], pictures, 0), boxes

    def _labels(self, batch: Batch) -> tuple[Int64[Tensor, "B h w"], Bool[Tensor, "B h w"]]:
        """The teacher's labels of tagged images, 255 where it is not sure and of others, and which cells they cover."""
        weak = ~batch.strong
        found = limited_to_tags(self.teacher(batch.images[weak]), batch.tags[weak]).max(1)
        size = (found.values.shape[1], found.values.shape[2])
        inside = labels_at(shown(batch.images).long(), self.network.stride, size) == 1
        sure = (found.values >= self.params.threshold) & inside[weak]
        labels = torch.full_like(inside, IGNORE, dtype=torch.int64)
        labels[weak] = found.indices.masked_fill(~sure, IGNORE)
        return labels, inside

    def _factors(self, batch: Batch, n_masked: int) -> dict[int, Float[Tensor, "N C"]]:
        """By level, what the channels of masked images and of both views are multiplied by."""
        seeds, weak = self.keyed.seeds(len(batch.ids)), (~batch.strong).nonzero().squeeze(1).tolist()
        trunk, device = self.network.trunk, batch.images.device
        channels = {level: trunk.level_channels[level] for level in {*self.network.pyramid.levels}}
        channels[len(trunk.level_channels) - 1] = trunk.channels
        share = self.params.strong_views.dropout
        factors = {}
        for level, count in sorted(channels.items()):
            drawn = [halves(count, share, derived_seed(seeds[row], "channels"), level) for row in weak]
            first = torch.stack(drawn).to(device) if drawn else torch.ones(0, count, device=device)
            factors[level] = torch.cat([torch.ones(n_masked, count, device=device), first, 2 - first])
        return factors

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        return enlarged(self.teacher(images).float(), (images.shape[2], images.shape[3]), self.network.stride)


def kept(step: int, most: float) -> float:
    """How much of itself the teacher keeps before a step, after `step` steps: after the first it is the student."""
    return min(1 - 1 / step, most) if step else 0.0


def halves(channels: int, share: float, seed: int, level: int) -> Float[Tensor, " C"]:
    """2 for a random half of the channels that the first view keeps and 0 for the others, or 1 for all.

    The second view has 2 minus this. A `share` of the seeds halve, on all levels or on none.
    """
    if np.random.default_rng(seed).random() >= share:
        return torch.ones(channels)
    half = np.random.default_rng(derived_seed(seed, level)).random(channels) < 0.5
    return torch.from_numpy(2.0 * half).float()


def _multiplied(features: Features, factors: dict[int, Float[Tensor, "N C"]]) -> Features:
    levels = [
        maps * factors[level][:, :, None, None].to(maps.dtype) if level in factors else maps
        for level, maps in enumerate(features.levels)
    ]
    return Features(levels, features.switches)


def _next_of(strong: Bool[Tensor, " B"]) -> Int64[Tensor, " V"]:
    """For each tagged sample of this process, the place of the next one among all; after the last comes the first."""
    number, world = rank()
    weak = (~everyones(strong)).nonzero().squeeze(1)
    mine = (~strong).nonzero().squeeze(1) * world + number
    after = torch.searchsorted(weak, mine, right=True) % max(1, len(weak))
    return weak[after]


def build(params: Training, origin: Origin) -> MeanTeacher:
    """The system with the trunk of a trained classifier, whatever its head, or with a fresh one."""
    return MeanTeacher(network_of(params, origin), origin.n_tags + 1, params)


def samples(params: Training, inputs: Inputs) -> Mixed:
    """As many weak images, by their tags, as strong ones with their masks."""
    return tagged_and_masked(params, inputs)


def supervision(params: Training, labels: str) -> Supervision:
    """Masks and tags."""
    return Supervision(masks=True, tags=True)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    views = {"jitter": 0.5, "jitter_share": 0.8, "grey": 0.2, "blur": 0.5, "cutmix": 0.5, "dropout": 0.5}
    training = SMALLEST_ZOOMED | {"keep": 0.996, "threshold": 0.0, "strong_views": views}
    sources = {"start": "classifiers/any", "images": "strong", "labels": MASKS}
    return {"module": "mean_teacher", **sources, "training": training, "prediction": SMALLEST_PREDICTION}
