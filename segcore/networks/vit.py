"""Vision transformers of timm as trunks: ViT, DeiT, DINOv2 and v3, SigLIP, EVA and their kin.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021. Their maps are read at four depths, as in Ranftl et al.,
"Vision Transformers for Dense Prediction", ICCV 2021; all have the grid of the patches.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.errors import Problem
from segcore.networks.timm_models import created, refusal, twin
from segcore.networks.trunk import LEVELS, Features, Trunk

DEPTHS = 4
"""Levels that are read: behind a quarter, half, three quarters and all of the blocks."""


class VisionTransformer(Trunk):
    """A transformer over the patches of an image, whose position embeddings are stretched to any grid of patches.

    The levels are behind the model's last normalisation, so the top map is what the model itself hands to its head,
    without the tokens that stand for no patch. A larger image has more patches, and so a finer map of its objects: that
    is how a transformer gets a finer grid, as its stride is fixed.

    Where cell i lies is for the size to say. Of k * stride pixels it is patch i, as a network with poolings of 2 x 2
    has it. A square of k * stride + 1 pixels is one of a grid whose cell i lies at pixel i * stride (`geometry.Grid`):
    half a patch of the mean colour goes before it, so that patches are centred there. What else is left over is filled
    up with that colour at the end. n pixels give ceil(n / stride) cells, as in all trunks.
    """

    def __init__(self, name: str, pretrained: bool, frozen_norm: bool, stride: int) -> None:
        super().__init__(frozen_norm, stride)
        layers = twin(name).feature_info.info
        if (patch := layers[-1]["reduction"]) != stride:
            raise Problem(
                f"stride: timm/{name} has patches of {patch} pixels and cannot be had at stride {stride}; "
                f"set stride to {patch}, and that of a network above it, or choose another trunk"
            )
        count = min(DEPTHS, len(layers))
        self.depths = tuple(len(layers) * (level + 1) // count - 1 for level in range(count))
        self.body: Any = _body(name, pretrained)
        self.level_channels = tuple(layers[depth]["num_chs"] for depth in self.depths)
        self.level_strides = (patch,) * count
        self.channels = self.level_channels[-1]
        self.switch_channels = (None,) * LEVELS

    @property
    def middle(self) -> nn.Module:
        return self.body.blocks[self.depths[max(0, len(self.depths) - 2)]]

    def as_map(self, inside: Tensor, top: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B _ _ _"]:
        if inside.ndim == 4:  # of a model that keeps its patches as B h w C
            return inside.permute(0, 3, 1, 2)
        height, width = top.shape[2:]
        patches = inside[:, inside.shape[1] - height * width :]  # what stands for no patch comes first
        return patches.transpose(1, 2).unflatten(2, (height, width))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Features:
        height, width = images.shape[2:]
        padding = (*around(width, self.stride), *around(height, self.stride))
        images = F.pad(self.normalise(images), padding) if any(padding) else self.normalise(images)
        try:
            levels = self.body.forward_intermediates(images, self.depths, norm=True, intermediates_only=True)
        except AssertionError as error:  # of those whose position embeddings cannot be stretched
            raise refusal((height, width), error) from error
        return Features(tuple(levels), (None,) * LEVELS)


def around(side: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side, by which it becomes whole patches."""
    missing = -side % stride
    before = stride // 2 if side % stride == 1 else 0
    return before, missing - before


def _body(name: str, pretrained: bool) -> Any:
    """The model without its head, and with position embeddings for any grid if it can have them."""
    options: dict[str, Any] = {"features_only": False, "num_classes": 0, "dynamic_img_size": True}
    try:
        with torch.device("meta"):
            created(name, False, **options)
    except TypeError:
        del options["dynamic_img_size"]
    body = created(name, pretrained, **options)
    body.prune_intermediate_layers(1, prune_norm=False, prune_head=True)  # such as a pooling by attention
    return body
