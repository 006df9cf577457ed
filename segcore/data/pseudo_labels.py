"""Pseudo-labels on disk: what is known of the pixels of images that have tags only.

A folder of them has `images.txt` (one image id a line), `cues/<id>.png` (the classes at the cells of the grid) and
`labels/<id>.png` (the same at the size of the image, as `geometry.Grid` has it); both are indexed PNGs, 255 where
nothing is known.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segcore.data.pictures import IGNORE
from segcore.errors import Problem

LIST = "images.txt"


def cue_file(folder: Path, image_id: str) -> Path:
    """The labels of an image at the cells of the grid."""
    return folder / "cues" / f"{image_id}.png"


def label_file(folder: Path, image_id: str) -> Path:
    """The labels of an image at its own size."""
    return folder / "labels" / f"{image_id}.png"


def listed(folder: Path) -> list[str]:
    """The ids of the images that `folder` has pseudo-labels of, in its order.

    Raises:
        Problem: it is no folder of pseudo-labels.
    """
    path = folder / LIST
    if not path.is_file():
        raise Problem(f"{folder} holds no pseudo-labels (there is no {LIST}); run the stage that extracts them")
    return [line for line in path.read_text().splitlines() if line]


class CuesFile:
    """Somebody's cues: an .npz file with `image_ids` (n) and `labels` (n x h x w, uint8, 255 where unknown)."""

    def __init__(self, path: Path) -> None:
        """Read all of it.

        Raises:
            Problem: not such a file.
        """
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise Problem(f"{path} is no readable .npz file of cues ({error})") from error
        if missing := {"image_ids", "labels"} - set(arrays):
            raise Problem(f"{path} lacks the arrays {sorted(missing)}; found {sorted(arrays)}")
        ids, labels = arrays["image_ids"], arrays["labels"]
        if ids.ndim != 1 or ids.dtype.kind != "U" or labels.ndim != 3 or len(ids) != len(labels):
            raise Problem(
                f"{path}: found image_ids of shape {ids.shape} ({ids.dtype}) and labels of shape {labels.shape}; "
                "wanted n strings and n x height x width"
            )
        if labels.dtype != np.uint8:
            raise Problem(f"{path}: labels are {labels.dtype}; they must be uint8, 255 where unknown")
        self._rows = {str(image_id): row for row, image_id in enumerate(ids)}
        if len(self._rows) != len(ids):
            raise Problem(f"{path}: {len(ids) - len(self._rows)} image_ids are there twice")
        self._labels: UInt8[np.ndarray, "n h w"] = labels

    def check(self, ids: Sequence[str], n_classes: int) -> None:
        """See that these images are all there and have no other classes than 0..`n_classes` - 1.

        Raises:
            Problem: they have not.
        """
        if missing := [image_id for image_id in ids if image_id not in self._rows]:
            raise Problem(f"{self.path} lacks {len(missing)} of {len(ids)} images: {', '.join(missing[:5])} ...")
        for image_id in ids:
            labels = self.labels(image_id)
            if (beyond := labels[(labels >= n_classes) & (labels != IGNORE)]).size:
                raise Problem(
                    f"{self.path}: {image_id} has label {beyond[0]}; allowed are 0..{n_classes - 1} and {IGNORE}"
                )

    def labels(self, image_id: str) -> UInt8[np.ndarray, "h w"]:
        """The cues of one image."""
        if image_id not in self._rows:
            raise Problem(f"{self.path} has no cues of {image_id}")
        return self._labels[self._rows[image_id]]
