"""The model core: tensors and plain values. It knows no pipeline, prints nothing and reads no environment."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from segcore.prediction.model import Model


def load(path: "str | Path", *, device: str | None = None, how: "str | Path | None" = None) -> "Model":
    """A finished segmenter, ready to predict; works from any folder.

    Args:
        path: the folder that training wrote, `data/<data set>/segmenters/<system>`, or the `model/` in it.
        device: where it runs; a GPU if there is one.
        how: a JSON file with the key `prediction`, for a model outside of its project.

    Raises:
        segcore.errors.Problem: no model there, or nothing says how it predicts.

    >>> import segcore
    >>> model = segcore.load("data/own/segmenters/deeplab")  # doctest: +SKIP
    >>> labels = model.predict("photo.jpg")  # doctest: +SKIP
    """
    from segcore.prediction import model

    return model.load(path, device=device, how=how)
