"""timm's networks as trunks: those whose maps get coarser from level to level. `vit.py` has those with one grid."""

import difflib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.networks import TIMM, BackboneParams, TimmParams
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
        self.body: Any = _body(name, pretrained, stride, cut)
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

    def as_map(self, inside: Tensor, top: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B _ _ _"]:
        return inside.permute(0, 3, 1, 2) if self.channels_are_last else inside

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        images = self.normalise(images)
        if self.stride < 32:  # models that start with patches would drop what is left over of the image
            height, width = images.shape[2:]
            images = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        try:
            levels = self.body(images)
        except AssertionError as error:  # of those that know some sizes of picture only
            raise refusal(images.shape[2:], error) from error
        if self.channels_are_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return Features(tuple(levels), (None,) * LEVELS)


def refusal(size: tuple[int, ...], error: Exception) -> Problem:
    """What is said of a picture whose size a model does not take."""
    return Problem(
        f"name: this timm model does not take pictures of {size[0]}x{size[1]} pixels ({error}); set input_size, "
        "test_size and views to sizes that it takes, which check_params names, or choose another trunk"
    )


def unknown(name: str) -> str | None:
    """What is wrong with the name of a timm model, without the `timm/` before it."""
    import timm  # here, as it takes seconds to load

    if timm.is_model(name):
        return None
    close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
    return f"name: timm has no model '{name}'; near it are {', '.join(close)}"


def build(params: BackboneParams) -> Trunk:
    """The trunk of a timm model: a vision transformer, if all its maps have one grid.

    Raises:
        Problem: it gives no feature maps, or cannot be had at the stride; its weights could not be downloaded.
    """
    from segcore.networks.vit import VisionTransformer, is_transformer

    name, download = params.name.removeprefix(TIMM), params.weights == "imagenet"
    trunk: Trunk
    if is_transformer(name):
        trunk = VisionTransformer(name, download, params.frozen_norm, params.stride)
    else:
        trunk = Timm(name, download, params.frozen_norm, params.stride, params.finer == "cut")
    if isinstance(params, TimmParams) and params.normalisation == "timm":
        own: Any = trunk.body
        trunk.normalise_as(own.pretrained_cfg["mean"], own.pretrained_cfg["std"])
    return trunk


def _body(name: str, pretrained: bool, stride: int, cut: bool) -> Any:
    """The model, with those of its feature maps that a trunk of this stride has.

    Raises:
        Problem: it gives no feature maps, cannot be had at the stride, or its weights could not be downloaded.
    """
    options: dict[str, Any] = {} if stride == 32 or cut else {"output_stride": stride}
    try:
        strides = [level["reduction"] for level in twin(name, **options).feature_info.info]
        kept = tuple(number for number, one in enumerate(strides) if one <= stride)
        body = created(name, pretrained, out_indices=kept, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        if stride == 32:
            raise
        raise Problem(f"stride: timm/{name} cannot be had at stride {stride}; choose 32 or another trunk") from error
    if cut and hasattr(body, "_stage_out_idx"):  # an EfficientNet keeps, and runs, the blocks above all the same
        body.blocks = body.blocks[: max(body._stage_out_idx)]
    return body


def created(name: str, pretrained: bool, **options: Any) -> Any:
    """The model as timm makes it, for its feature maps unless `features_only` is False.

    Raises:
        Problem: it gives none, or its weights could not be downloaded.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **{"features_only": True} | options)
    except OSError as error:
        raise Problem(
            f"weights: the ImageNet weights of timm/{name} could not be downloaded ({error}); "
            "download them elsewhere and name the file in weights"
        ) from error
    except RuntimeError as error:
        raise Problem(f"name: timm/{name} gives no feature maps or has no weights ({error})") from error


def twin(name: str, **options: Any) -> Any:
    """The model without memory, for what timm tells no sooner than it has made one: in milliseconds, and without
    random weights, so that those of the real one stay what they were.

    Raises:
        Problem: it gives no feature maps.
    """
    with torch.device("meta"):
        return created(name, pretrained=False, out_indices=(-1,), **options)
