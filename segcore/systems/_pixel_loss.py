"""What a system that learns from labels of pixels may minimise: cross-entropy, Dice and Lovasz, classes weighted."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from segcore.config.classifiers import Alike
from segcore.config.section import NotNegative, Section
from segcore.data.batches import SizedSamples
from segcore.data.frequencies import labelled_pixels
from segcore.losses import Term, lovasz_softmax, pixel_cross_entropy, pixel_dice


class Inverse(Section):
    """A class counts by the inverse of its share of the labelled pixels: the commonest once, at most `cap` times."""

    kind: Literal["inverse"]
    cap: Annotated[float, Field(ge=1)]


class PixelLossParams(Section):
    """One loss of labels of pixels; what weighs 0 is not computed."""

    cross_entropy: NotNegative
    dice: NotNegative
    """Of the mean Dice of the classes that an image shows (Milletari et al. 2016)."""
    lovasz: NotNegative
    """Of the Lovasz extension of 1 - IoU of the classes that an image shows (Berman et al. 2018)."""
    class_weights: Annotated[Alike | Inverse, Field(discriminator="kind")]
    """In the cross-entropy; the other two count classes alike by themselves."""

    @model_validator(mode="after")
    def _something_teaches(self) -> "PixelLossParams":
        if not (self.cross_entropy or self.dice or self.lovasz):
            raise ValueError("cross_entropy, dice and lovasz must not all be 0.0: nothing would teach")
        return self


class PixelLoss(nn.Module):
    """The terms of scores beside labels.

    Args:
        params: which; None is the cross-entropy, every class counting alike.
        n_classes: background included.
    """

    weights: Tensor

    def __init__(self, params: PixelLossParams | None, n_classes: int) -> None:
        super().__init__()
        self.params = params
        # Known before every training, and of no use after it: no part of a model or a checkpoint.
        self.register_buffer("weights", torch.ones(n_classes), persistent=False)

    def begin(self, samples: SizedSamples) -> None:
        """Weigh the classes by the labels of the training samples, all of which are read if classes do not count alike.

        Raises:
            Problem: these samples cannot say what their labels are, or a file of them is broken.
        """
        if self.params is not None and isinstance(self.params.class_weights, Inverse):
            counts = labelled_pixels(samples, len(self.weights))
            self.weights.copy_(inverse_weights(counts, self.params.class_weights.cap))

    def forward(self, scores: Float[Tensor, "B K h w"], labels: Int64[Tensor, "B h w"]) -> dict[str, Term]:
        """Terms by name; `labels` are 255 where unknown."""
        params = self.params
        if params is None:
            return {"segmentation": pixel_cross_entropy(scores, labels)}
        terms = {}
        if params.cross_entropy:
            weights = None if isinstance(params.class_weights, Alike) else self.weights
            terms["segmentation"] = (pixel_cross_entropy(scores, labels, weights), params.cross_entropy)
        if params.dice:
            terms["dice"] = (pixel_dice(scores, labels), params.dice)
        if params.lovasz:
            terms["lovasz"] = (lovasz_softmax(scores, labels), params.lovasz)
        return {name: term if factor == 1 else term.times(factor) for name, (term, factor) in terms.items()}


def inverse_weights(counts: Int64[Tensor, " K"], cap: float) -> Float[Tensor, " K"]:
    """min(cap, n_max / n_c) for n_c labelled pixels of class c; 1 for a class that no label shows."""
    shares = counts.max() / counts.clamp(min=1)
    return torch.where(counts > 0, shares.clamp(max=cap), 1.0).float()
