"""What is asked of timm itself: whether it has a model, what the model's maps are, and the model."""

import difflib
from typing import Any

import torch

from segcore.errors import Problem


def unknown(name: str) -> str | None:
    """What is wrong with the name of a timm model, without the `timm/` before it."""
    import timm  # here, as it takes seconds to load

    if timm.is_model(name):
        return None
    close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
    return f"name: timm has no model '{name}'; near it are {', '.join(close)}"


def created(name: str, pretrained: bool, **options: Any) -> Any:
    """The model as timm makes it, for its feature maps unless `features_only` is False.

    Raises:
        Problem: it gives none, or its weights could not be downloaded.
    """
    import timm

    try:
        whole: dict[str, Any] = {"features_only": True} | options
        return timm.create_model(name, pretrained=pretrained, **whole)
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


def is_transformer(name: str) -> bool:
    """Whether a model has one grid, that of its patches, from the first layer to the last.

    Raises:
        Problem: it gives no feature maps.
    """
    return len({layer["reduction"] for layer in twin(name).feature_info.info}) == 1


def refusal(size: tuple[int, ...], error: Exception) -> Problem:
    """What is said of a picture whose size a model does not take."""
    return Problem(
        f"name: this timm model does not take pictures of {size[0]}x{size[1]} pixels ({error}); set input_size, "
        "test_size and views to sizes that it takes, which check_params names, or choose another trunk"
    )
