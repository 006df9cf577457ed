"""What a system supplies, and what it is handed."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from segcore.config.sections import CropsParams
from segcore.data.batches import Batch
from segcore.data.manifest import Record
from segcore.losses import Term


@dataclass(frozen=True)
class Inputs:
    """What a system may make its training samples from.

    `images` are the ids of the entry's list of the split; `labels` is what its entry names: the crop index, the
    manifest (the masks themselves) or a folder of pseudo-labels.
    """

    records: dict[str, Record]
    images: list[str]
    labels: Path
    n_tags: int
    crops: CropsParams


class System(nn.Module, ABC):
    """What a method supplies; training and evaluation ask for nothing else.

    A module of this package has `Params` (its entry in `params.yaml`), a subclass of this class,
    `build(params, classifier) -> System` and `samples(params, inputs) -> SizedSamples`.
    """

    pretrained: tuple[str, ...] = ()
    """Prefixes of the parameters that start from a pre-training and learn `trunk_multiplier` times as fast."""

    proposals: int = 0
    """Object proposals an image is predicted by; 0 predicts it whole."""

    smallest_input: int = 32
    """Side of the smallest image it can predict, in pixels."""

    square: Literal["pad", "stretch"] = "pad"
    """How an image becomes the square that it predicts: black below and to the right, or its aspect given up."""

    input_step: int = 32
    input_offset: int = 0
    """Its squares have sides of `input_step` * k + `input_offset` pixels."""

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Term]:
        """The terms to sum and minimise, by the name they are logged under.

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

    def probabilities(self, scores: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
        """The probability of each class, from scores as `predict` gives them or means of such."""
        return scores.softmax(1)

    def finish(self, batches: Iterable[Batch]) -> None:
        """Called once after training, in the precision of `predict`, with training batches on the system's device."""

    def finishing_batches(self) -> tuple[int, int]:
        """How many batches of how many samples `finish` asks for."""
        return 0, 0
