"""What a system supplies, and what it is handed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from segcore.config.data import CropsParams
from segcore.data import records
from segcore.data.batches import Batch, SizedSamples
from segcore.data.manifest import Record
from segcore.errors import Problem
from segcore.features.store import FeatureStore
from segcore.losses import Term
from segcore.networks.trunk import Trunk


@dataclass(frozen=True)
class Inputs:
    """What a system may make its training samples from.

    `strong` and `weak` are the ids of the split, `images` says which of the two the entry names; `labels` is what it
    names: a folder with the crop index, of masks, or of pseudo-labels. Only the records of strong images have a mask
    to give. `crops` are given to systems that learn from crops.
    """

    records: Mapping[str, Record]
    strong: Sequence[str]
    weak: Sequence[str]
    images: Literal["strong", "weak"]
    labels: Path
    n_tags: int
    crops: CropsParams | None
    seed: int
    """Of what is drawn once for the whole run, such as a bank of views; augmentation has seeds of its own."""

    @property
    def chosen(self) -> Sequence[Record]:
        """The records of the entry's list."""
        return self.of(self.strong if self.images == "strong" else self.weak)

    def of(self, ids: Sequence[str]) -> Sequence[Record]:
        """The records of some images; each is made when it is asked for."""
        return records.of(self.records, ids)

    def check(self, ids: Iterable[str], allowed: Iterable[str]) -> None:
        """See that labels are of images that may be learned from.

        Raises:
            Problem: an image is not in the manifest, measures what was learned, or is in none of the system's lists.
        """
        ids, known = [*ids], {*allowed}
        for image_id, split in zip(ids, records.splits_of(self.records, ids), strict=True):
            if split is None:
                found = "is not in the manifest"
            elif split != "train":
                found = "is a validation image, which is never trained on"
            elif image_id not in known:
                found = "is none of the images that this system may learn from"
            else:
                continue
            raise Problem(f"{self.labels}: {image_id} {found}; make these labels anew, of the images of this split")


@dataclass(frozen=True)
class Supervision:
    """What an entry learns from, beside what the model that it starts from and its pseudo-labels have seen."""

    masks: bool
    """Masks that people made: of its list of images, or cut into crops."""
    tags: bool
    """The tags of the weak images, by a loss or a step of its own."""


class CleanedTags(NamedTuple):
    """Tags as a system that doubts them takes them, and what it thinks of each."""

    tags: Float[Tensor, "B L"]
    """0 or 1."""
    probabilities: Float[Tensor, "B L"]


class System(nn.Module, ABC):
    """What a method supplies; training and evaluation ask for nothing else.

    A module of this package has

    * `Training` and `Prediction`, the two parts of its entry in `params.yaml`, and a subclass of this class;
    * `build(params, origin) -> System` and `samples(params, inputs) -> SizedSamples`, with `params` a `Training`;
    * `supervision(params, labels) -> Supervision`, what such an entry learns from, `labels` being what it names;
    * `smallest() -> dict[str, Any]`, an entry as cheap as can be, complete: what every test of the contract uses;
    * `TAKES_TAGS = True` if the system segments tags that it is given (`predict_given`), for `source: decoupled`.
    """

    params: Any
    """What it was made from, a `Training` of its module."""

    prediction: Any
    """How it is to predict, a `Prediction` of its module; set when a finished model is loaded."""

    pretrained: tuple[str, ...] = ()
    """Prefixes of the parameters that start from a pre-training: the group `pretrained` of a recipe's multipliers."""

    groups: Mapping[str, tuple[str, ...]] = {}
    """Further groups of parameters with a learning rate of their own, by the prefixes of their names; none overlap."""

    may_be_missing: tuple[str, ...] = ()
    """Prefixes of the parameters and statistics that a system it starts from need not have, such as a further head."""

    label_stride: int = 1
    """Pixels of the image to a label of its training batches, each way: 1, or those to a cell of its grid."""

    smallest_input: int = 32
    """Side of the smallest image it can predict, in pixels."""

    square: Literal["pad", "stretch"] = "pad"
    """How an image becomes the square that it predicts: black below and to the right, or its aspect given up."""

    input_step: int = 32
    input_offset: int = 0
    """Its squares have sides of `input_step` * k + `input_offset` pixels."""

    cleans_tags: bool = False
    """Whether it doubts the tags that it is given: `clean_tags` then says what it makes of them."""

    scores_are_probabilities: bool = False
    """Whether what `predict` gives sums to 1 over the classes already; `probabilities` then leaves it as it is."""

    @property
    def proposals(self) -> int:
        """Object proposals an image is predicted by; 0 predicts it whole."""
        return 0

    def side_near(self, wanted: int | float) -> int:
        """The side of its squares that is nearest: a multiple of `input_step`, and `input_offset` more."""
        steps = round((wanted - self.input_offset) / self.input_step)
        return max(1, steps) * self.input_step + self.input_offset

    def begin(self, samples: SizedSamples) -> None:
        """Called once before training, and again when a run goes on, with what it is trained on: to count classes, say.

        What it sets must be the same each time and in every process.
        """

    def look_up(self, store_of: Callable[[Trunk], FeatureStore], every_level: bool) -> FeatureStore | None:
        """Called once before training: a system whose trunk stands still and sees fixed views, again and again, takes
        their maps out of a store of that trunk, which it then returns; a regulariser reads `every_level`.

        Others return None.
        """
        return None

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Term]:
        """The terms to sum and minimise, by the name they are logged under.

        A term whose total carries no gradient is watched and not minimised, such as a share of pixels: it is logged,
        summed over processes and drawn in the report like the others, as `watched/<name>`.
        `batch.moment` says in which step of how many, for a warm-up or a schedule of weights. Every term is there from
        step 0 on, at a factor of 0 where it does not count yet: processes that share a batch wait for the gradient of
        every parameter in every step, and stop with "Expected to have finished reduction" if one has none.
        """

    @abstractmethod
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """Scores of each class at each pixel, background first; the greatest wins. Images are RGB in 0..255.

        It is called without gradients and returns scores without; what takes gradients on its way, of activations that
        are moved until they fit, asks for them by `torch.enable_grad`. An image's scores do not depend on the other
        images, so a sum or mean over the batch has no part in them.
        """

    def predict_given(self, images: Float[Tensor, "B 3 H W"], tags: Float[Tensor, "B L"]) -> Float[Tensor, "B K H W"]:
        """Scores as `predict` gives them, of images whose tags are known: no class but these and the background wins.

        A class-conditioned system, whose module says `TAKES_TAGS = True`, segments the tags that it is given, 0 or 1,
        instead of those that it finds. Others cannot.

        Raises:
            Problem: this system finds its classes itself.
        """
        raise Problem(
            f"{type(self).__name__} finds the classes of an image itself and takes no tags; labels by known tags "
            "(source: decoupled) need a system that is given one class at a time, such as decouplednet or decoupled_fpn"
        )

    def probabilities(self, scores: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
        """The probability of each class, from scores as `predict` gives them or means of such."""
        return scores.softmax(1)

    def clean_tags(self, images: Float[Tensor, "B 3 H W"], tags: Float[Tensor, "B L"]) -> CleanedTags:
        """The tags of images, RGB in 0..255, as the finished system takes them where these were given; no gradients.

        Called of a system that `cleans_tags` alone.
        """
        raise NotImplementedError

    def exportable(self, tags_at_once: int | None) -> nn.Module:
        """What `segcore export-model` hands on: a module from images to scores, as `predict` has both.

        It gives what `predict` gives, by steps that a graph can hold: the same ones whatever the values are, none of
        which takes a gradient. A system that runs once for each tag it finds runs a fixed number of times instead, and
        counts what is not found as nothing. The module shares the system's weights. A system that nothing of the kind
        can be made of raises a `Problem` that says exactly why.

        Args:
            tags_at_once: for a system that runs once for each tag: only that many, the likeliest, may be found in an
                image; None lets all be found, with the result of `predict`.

        Raises:
            Problem: `tags_at_once` for a system that does not run by tags, or of a number that it cannot run.
        """
        if tags_at_once is not None:
            raise Problem(
                f"--tags-at-once: found {tags_at_once} for a system that scores all classes in one pass; leave it out"
            )
        return _Predicting(self)

    def finish(self, batches: Iterable[Batch]) -> None:
        """Called once after training, in the precision of `predict`, with training batches on the system's device."""

    def finishing_batches(self) -> tuple[int, int]:
        """How many batches of how many samples `finish` asks for."""
        return 0, 0


class _Predicting(nn.Module):
    """A system whose `predict` is a graph as it stands."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        return self.system.predict(images)


@dataclass(frozen=True)
class Outputs:
    """What a network computes on the way to its losses.

    `levels` are its trunk's maps, finest first, with the channels and strides that the trunk says; `scores` are those
    of each class, background first, before the softmax, on the network's own grid.
    """

    levels: Sequence[Float[Tensor, "B _ _ _"]]
    scores: Float[Tensor, "B K h w"]


class OpenSystem(System):
    """A system that shows what its network computes, so that a regulariser may add terms without running it again.

    Its losses are `terms` of what `forward` gives. A system whose scores are not those of all classes, such as
    DecoupledNet, is none, and is trained without regularisers.
    """

    @property
    @abstractmethod
    def trunk(self) -> Trunk:
        """The trunk whose levels `forward` hands out."""

    @abstractmethod
    def forward(self, batch: Batch) -> Outputs:
        """The network's pass over a training batch."""

    @abstractmethod
    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        """The terms of that pass, as `losses` has them."""

    def losses(self, batch: Batch) -> dict[str, Term]:
        return self.terms(batch, self(batch))
