"""Pre-trained weights, downloaded or from a local file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from segcore.config.networks import NAMED_WEIGHTS as NAMED
from segcore.config.networks import TIMM, BackboneParams
from segcore.data.pictures import kind_of
from segcore.errors import Problem, hint, some
from segcore.files import regular
from segcore.networks.package_weights import package_weights, without_package
from segcore.networks.timm_models import unknown


def weights_of(params: BackboneParams) -> dict[str, Tensor] | None:
    """The pre-trained weights that `backbone.weights` names, float32, with torchvision's keys; None for random ones.

    Raises:
        Problem: they cannot be read or downloaded; they are nested, or not all are numbers.
    """
    if params.weights == "random" or (params.weights == "imagenet" and params.name.startswith(TIMM)):
        return None
    if params.weights == "imagenet":
        return _download(params.name)
    if params.weights == "package":
        return package_weights(params.name)
    path = Path(params.weights).expanduser()
    read: Callable[[Path], Any] = load_file if path.suffix == ".safetensors" else _read_pth
    try:
        stored = read(regular(path))
    except Exception as error:  # torch and safetensors raise a dozen types
        raise Problem(f"weights: {path} is not a readable weights file ({_reason(path, error)})") from error
    if (wrong := _not_plain(stored)) is not None:
        raise Problem(f"weights: {path} {wrong}")
    return {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}


def _reason(path: Path, error: Exception) -> str:
    try:
        with regular(path).open("rb") as file:
            kind = kind_of(file.read(512))
    except OSError as closed:
        return closed.strerror or str(closed)
    if kind not in ("of no known kind", "a ZIP archive"):
        return f"it is {kind}"
    if "weights_only" in str(error).lower() or "Unsupported" in str(error):
        return "it holds more than arrays, which is not run; save the state_dict alone"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _not_plain(stored: Any) -> str | None:
    """What keeps the content of a file from being the weights of a network, by name."""
    if not isinstance(stored, Mapping) or not stored:
        return f"holds no arrays by name but a {type(stored).__name__} of {len(stored) if stored else 0}"
    nested = [key for key, value in stored.items() if isinstance(value, Mapping)]
    if nested:
        return f"has its arrays under {some(nested)}; save that part alone, as a file of its own"
    others = [key for key, value in stored.items() if not isinstance(value, Tensor)]
    if others:
        return f"holds {some(others)}, which are no arrays; save the state_dict alone"
    if all(str(key).startswith("module.") for key in stored):
        return "has 'module.' before every name, as DataParallel saves them; take that off and save it anew"
    odd = [key for key, value in stored.items() if value.is_floating_point() and not value.isfinite().all()]
    return f"holds NaN or infinite numbers, in {some(odd)}; take an intact copy" if odd else None


def check(params: BackboneParams) -> str | None:
    """What is wrong with the name of the network or of its weights, as far as that shows without reading them."""
    if params.name.startswith(TIMM) and (problem := unknown(params.name.removeprefix(TIMM))):
        return problem
    if params.weights == "package":
        return without_package(params.name)
    if params.weights not in NAMED and not Path(params.weights).expanduser().is_file():
        return (
            f"weights: found '{params.weights}'; it must be {', '.join(NAMED)} or an existing file "
            f"(.safetensors, or a .pth that holds weights only){hint(params.weights, NAMED)}"
        )
    return None


def _read_pth(path: Path) -> Any:
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
