"""timm's networks as trunks."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.errors import Problem
from segcore.networks.trunk import LEVELS, Features, Trunk


class Timm(Trunk):
    """Any `timm` model that gives feature maps, all of which are its levels.

    Below stride 32 its last levels are dilated, or left out if `cut`: the top map is then that of the level which has
    the stride, knows less, and costs less. Images are padded to a multiple of such a stride with the mean colour of the
    pre-training.
    """

    def __init__(self, name: str, pretrained: bool, frozen_norm: bool, stride: int = 32, cut: bool = False) -> None:
        super().__init__(frozen_norm, stride)
        self.body: Any = _timm_body(name, pretrained, stride, cut)
        self.channels_are_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        self.level_channels = tuple(self.body.feature_info.channels())
        self.level_strides = tuple(self.body.feature_info.reduction())
        self.channels = self.level_channels[-1]
        if (reduction := self.level_strides[-1]) != stride:
            raise Problem(f"name: timm/{name} reduces the image by {reduction}; a trunk must reduce it by {stride}")
        self.switch_channels = (None,) * LEVELS

    @property
    def middle(self) -> nn.Module:
        level = self.body.feature_info.info[-2]["module"]
        names = dict(self.body.named_modules())
        # Where timm takes a model apart, it joins the names of nested layers by an underscore.
        found = names.get(level, names.get(level.replace(".", "_")))
        if found is None:
            raise Problem(f"name: this timm model has no layer {level} of its own; use background: none")
        return found

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        images = self.normalise(images)
        if self.stride < 32:  # models that start with patches would drop what is left over of the image
            height, width = images.shape[2:]
            images = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        try:
            levels = self.body(images)
        except AssertionError as error:  # of those that know one size of picture only
            size = f"{images.shape[2]}x{images.shape[3]}"
            raise Problem(
                f"name: this timm model does not take pictures of {size} pixels ({error}); set input_size, test_size "
                "and views to the size that it was made for, or choose another trunk"
            ) from error
        if self.channels_are_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return Features(tuple(levels), (None,) * LEVELS)


def _timm_body(name: str, pretrained: bool, stride: int, cut: bool) -> Any:
    """The model, with those of its feature maps that a trunk of this stride has.

    Raises:
        Problem: it gives no feature maps, cannot be had at the stride, or its weights could not be downloaded.
    """
    import timm

    options: dict[str, Any] = {} if stride == 32 or cut else {"output_stride": stride}
    try:
        strides = _timm_strides(name, options)
        kept = tuple(number for number, one in enumerate(strides) if one <= stride)
        body: Any = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=kept, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        if stride == 32:
            raise
        raise Problem(f"stride: timm/{name} cannot be had at stride {stride}; choose 32 or another trunk") from error
    except OSError as error:
        raise Problem(
            f"weights: the ImageNet weights of timm/{name} could not be downloaded ({error}); "
            "download them elsewhere and name the file in weights"
        ) from error
    except RuntimeError as error:
        raise Problem(f"name: timm/{name} gives no feature maps or has no weights ({error})") from error
    if cut and hasattr(body, "_stage_out_idx"):  # an EfficientNet keeps, and runs, the blocks above all the same
        body.blocks = body.blocks[: max(body._stage_out_idx)]
    return body


def _timm_strides(name: str, options: dict[str, Any]) -> list[int]:
    """The strides of the feature maps of a `timm` model.

    timm tells no sooner than it has made a model. This one is made without memory, in milliseconds, and draws no
    random weights, so those of the real one stay what they were.
    """
    import timm

    with torch.device("meta"):
        twin: Any = timm.create_model(name, features_only=True, out_indices=(-1,), **options)
    return [level["reduction"] for level in twin.feature_info.info]
