"""ImageNet networks as trunks, by their names."""

from collections.abc import Collection

from torch import Tensor, nn

from segcore.config.networks import TIMM, BackboneParams, TimmParams
from segcore.errors import Problem
from segcore.networks import pretrained
from segcore.networks.resnet import RESNETS, ResNet
from segcore.networks.timm_models import is_transformer
from segcore.networks.timm_trunk import Timm
from segcore.networks.trunk import Trunk
from segcore.networks.vgg import VGG16
from segcore.networks.vit import VisionTransformer


def build(params: BackboneParams) -> Trunk:
    """The trunk with its initial weights.

    Raises:
        Problem: unknown name; a small version of a network that has none; weights missing or of another network.
    """
    if problem := pretrained.check(params):
        raise Problem(problem)
    name = params.name
    if params.width != 1 and not name.startswith("vgg16"):
        raise Problem(f"width: found {params.width} for {name}; only vgg16 and vgg16_bn have small versions")
    if params.stride == 14 and not name.startswith(TIMM):
        raise Problem(f"stride: found 14 for {name}, which can be had at 8, 16 and 32; set the network's stride to one")
    if name in ("vgg16", "vgg16_bn"):
        trunk: Trunk = VGG16(params.width, name == "vgg16_bn", params.frozen_norm, params.stride)
    elif name in RESNETS:
        trunk = ResNet(name, params.frozen_norm, params.stride)
    elif name.startswith(TIMM):
        trunk = _of_timm(params)
    else:
        allowed = ", ".join(("vgg16", "vgg16_bn", *RESNETS, "timm/<model>"))
        raise Problem(f"name: found '{name}'; allowed are {allowed}")
    if (weights := pretrained.weights_of(params)) is not None:
        _load_into(trunk, weights, params)
    return trunk


def _of_timm(params: BackboneParams) -> Timm | VisionTransformer:
    name, download = params.name.removeprefix(TIMM), params.weights == "imagenet"
    if is_transformer(name):
        trunk = VisionTransformer(name, download, params.frozen_norm, params.stride)
    else:
        trunk = Timm(name, download, params.frozen_norm, params.stride, params.finer == "cut")
    if isinstance(params, TimmParams) and params.normalisation == "timm":
        own = trunk.body.pretrained_cfg
        trunk.normalise_as(own["mean"], own["std"])
    return trunk


def restride(params: BackboneParams, trunk: Trunk, stride: int) -> Trunk:
    """A new trunk with copies of the weights of `trunk`, which was made from `params`, at another stride.

    Raises:
        Problem: this network cannot be had at that stride.
    """
    twin = build(params.model_copy(update={"weights": "random", "stride": stride}))
    own = trunk.state_dict()
    if beyond := [key for key in twin.state_dict() if key not in own]:
        raise Problem(f"finer: cut leaves no layers for stride {stride}; {len(beyond)} arrays are missing")
    twin.load_state_dict({key: own[key] for key in twin.state_dict()})
    return twin.to(trunk.mean.device, trunk.mean.dtype).train(trunk.training)


def _load_into(trunk: Trunk, weights: dict[str, Tensor], params: BackboneParams) -> None:
    """Copy what belongs to the trunk; its keys are torchvision's (VGG: `features.*`, ResNet: without `body.`), or
    timm's."""
    target: nn.Module = trunk.body if isinstance(trunk, ResNet | Timm | VisionTransformer) else trunk
    wanted = target.state_dict()
    if isinstance(trunk, Timm):
        weights = {_as_taken_apart(key, wanted): value for key, value in weights.items()}
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    differing = [k for k, v in wanted.items() if k in weights and weights[k].shape != v.shape]
    typed = [k for k, v in wanted.items() if k in weights and weights[k].is_floating_point() != v.is_floating_point()]
    if missing or differing or typed:
        raise Problem(
            f"weights: {params.weights} is not of {params.name} at width {params.width}: "
            f"{len(missing)} arrays are missing {missing[:3]}, {len(differing)} have another shape {differing[:3]}, "
            f"{len(typed)} another type {typed[:3]}"
        )
    target.load_state_dict({key: weights.get(key, value) for key, value in wanted.items()})


def _as_taken_apart(key: str, wanted: Collection[str]) -> str:
    """`stages.0.blocks.1.norm.weight` as `stages_0.blocks...`: so timm joins names of nested layers for its maps."""
    parts = key.split(".")
    names = ("_".join(parts[:joined]) + "." + ".".join(parts[joined:]) for joined in range(1, min(4, len(parts))))
    return next((name for name in names if name in wanted), key)
