"""timm's networks as trunks: those whose maps get coarser from level to level. `vit.py` has those with one grid."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.errors import Problem
from segcore.networks.timm_models import created, refusal, twin
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
