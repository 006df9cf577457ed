"""Pre-trained weights, downloaded or from a local file."""

import difflib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from segcore.config.networks import NAMED_WEIGHTS as NAMED
from segcore.config.networks import BackboneParams
from segcore.errors import Problem, hint
from segcore.networks.package_weights import package_weights


def weights_of(params: BackboneParams) -> dict[str, Tensor] | None:
    """The pre-trained weights that `backbone.weights` names, float32, with torchvision's keys; None for random ones."""
    if params.weights == "random" or (params.weights == "imagenet" and params.name.startswith("timm/")):
        return None
    if params.weights == "imagenet":
        return _download(params.name)
    if params.weights == "package":
        return package_weights(params.name.removeprefix("timm/"))
    path = Path(params.weights)
    read: Callable[[Path], dict[str, Tensor]] = load_file if path.suffix == ".safetensors" else _read_pth
    try:
        return {key: value.float() if value.is_floating_point() else value for key, value in read(path).items()}
    except Exception as error:
        raise Problem(f"weights: {path} is not a readable weights file ({error})") from error


def check(params: BackboneParams) -> str | None:
    """What is wrong with the name of the network or of its weights, as far as that shows without reading them."""
    if params.name.startswith("timm/"):
        import timm  # here, as it takes seconds to load

        name = params.name.removeprefix("timm/")
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
            return f"name: timm has no model '{name}'; near it are {', '.join(close)}"
    if params.weights not in NAMED and not Path(params.weights).is_file():
        return (
            f"weights: found '{params.weights}'; it must be {', '.join(NAMED)} or an existing file "
            f"(.safetensors, or a .pth that holds weights only){hint(params.weights, NAMED)}"
        )
    return None


def _read_pth(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _download(name: str) -> dict[str, Tensor]:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise Problem(
            f"weights: the ImageNet weights of {name} could not be downloaded ({error}); "
            "download them elsewhere and name the file in backbone.weights"
        ) from error
