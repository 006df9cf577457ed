"""Pre-trained weights, downloaded or from a local file."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from segcore.network_sections import BackboneParams
from segcore.problems import Problem


def weights_of(params: BackboneParams) -> dict[str, Tensor] | None:
    """The pre-trained weights that `backbone.weights` names, float32, with torchvision's keys; None for random ones."""
    if params.weights == "random" or (params.weights == "imagenet" and params.name.startswith("timm/")):
        return None
    if params.weights == "imagenet":
        return _download(params.name)
    path = Path(params.weights)
    if not path.is_file():
        raise Problem(
            f"backbone.weights: found '{params.weights}'; it must be 'random', 'imagenet' or an existing file "
            "(.safetensors, or a .pth that holds weights only)"
        )
    read: Callable[[Path], dict[str, Tensor]] = load_file if path.suffix == ".safetensors" else _read_pth
    try:
        return {key: value.float() if value.is_floating_point() else value for key, value in read(path).items()}
    except Exception as error:
        raise Problem(f"backbone.weights: {path} is not a readable weights file ({error})") from error


def _read_pth(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _download(name: str) -> dict[str, Tensor]:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise Problem(
            f"backbone.weights: the ImageNet weights of {name} could not be downloaded ({error}); "
            "download them elsewhere and name the file in backbone.weights"
        ) from error
