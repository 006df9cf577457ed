"""What each image adds to a system's scores, as a small table: what is needed to draw other sets of images."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64

from segcore.errors import Problem
from segcore.evaluation.metrics import ConfusionMatrix
from segcore.files import write_atomically

FILE = "images.parquet"
PARTS = ("intersection", "truth", "predicted")
"""Pixels of a class that are right, that the masks show, that the system predicts; 255 in the mask is left out."""

TAGS_ALONE = "tags"
"""What `measured` in metrics.json says where no image has a mask, so that all of these counts are 0."""

CRF = "_crf"
"""Ends the name of a column that counts what a CRF made of the predictions."""


@dataclass(frozen=True)
class ImageCounts:
    """Pixels by image, part (see `PARTS`) and class. The sum over images is the diagonal, the row sums and the column
    sums of the confusion matrix, and so gives the IoU of every class over any choice of images."""

    ids: tuple[str, ...]
    counts: Int64[np.ndarray, "N 3 K"]

    @classmethod
    def of(cls, image_id: str, confusion: ConfusionMatrix) -> "ImageCounts":
        """One image's, from its own confusion matrix."""
        counted = confusion.labelled
        parts = np.stack([np.diag(counted), confusion.counts.sum(1), counted.sum(0)])
        return cls((image_id,), parts[None])

    @classmethod
    def merged(cls, parts: "Sequence[ImageCounts]") -> "ImageCounts":
        """All of some images, ordered by id, so that shares of any number of processes give the same."""
        counts = {i: count for part in parts for i, count in zip(part.ids, part.counts, strict=True)}
        ids = sorted(counts)
        return cls(tuple(ids), np.stack([counts[image_id] for image_id in ids]))

    @property
    def mean_iou(self) -> float:
        """Over all classes and images, as `ConfusionMatrix.mean_iou`."""
        return float(mean_iou(self.counts.sum(0)))


def mean_iou(sums: Float[np.ndarray, "*sets 3 K"] | Int64[np.ndarray, "*sets 3 K"]) -> Float[np.ndarray, "*sets"]:
    """Mean over the classes of I / (T + P - I), of one or many sets of images; a class in neither is left out."""
    hits, truth, predicted = np.moveaxis(np.asarray(sums, dtype=np.float64), -2, 0)
    union = truth + predicted - hits
    with np.errstate(invalid="ignore"):  # 0 / 0 where there is nothing to score
        iou = np.where(union > 0, hits / union, 0.0)
        return np.asarray(iou.sum(-1) / (union > 0).sum(-1))


def write(
    folder: Path, images: Sequence[ImageCounts], refined: Sequence[ImageCounts] | None, names: Sequence[str]
) -> None:
    """A row for every image and class that the mask or a prediction shows; two more columns for what a CRF refined."""
    plain = ImageCounts.merged(images)
    columns = dict(zip(PARTS, np.moveaxis(plain.counts, 1, 0), strict=True))
    if refined is not None:
        hits, _, predicted = np.moveaxis(ImageCounts.merged(refined).counts, 1, 0)
        columns |= {f"intersection{CRF}": hits, f"predicted{CRF}": predicted}
    shown = np.any([column > 0 for column in columns.values()], axis=0)
    # An image without a known pixel has a row, too: how many images there are must be told.
    shown[~shown.any(1), 0] = True
    image, index = np.nonzero(shown)
    table = pd.DataFrame(
        {
            "image_id": pd.Categorical.from_codes(image, list(plain.ids)),
            "class": pd.Categorical.from_codes(index, list(names)),
        }
        | {name: column[shown].astype(np.int32) for name, column in columns.items()}
    )
    file = io.BytesIO()
    table.to_parquet(file, index=False, compression="zstd")
    write_atomically(folder / FILE, file.getvalue())


def read(folder: Path, names: Sequence[str], with_crf: bool = False) -> ImageCounts:
    """The counts in the folder of a result, with or without the CRF, for classes in the order of `names`.

    Raises:
        Problem: the file is damaged, of other classes, or has no CRF's.
    """
    file = folder / FILE
    try:
        table = pd.read_parquet(file)
    except (ValueError, OSError) as error:
        raise Problem(f"{file} cannot be read ({error}); evaluate the system again", made_by="evaluate") from None
    end = CRF if with_crf else ""
    parts = (f"intersection{end}", "truth", f"predicted{end}")
    if missing := {"image_id", "class", *parts} - {*table.columns}:
        raise Problem(f"{file}: it lacks {', '.join(sorted(missing))}; evaluate the system again", made_by="evaluate")
    ids = table["image_id"].astype(str).unique().tolist()
    rows = pd.Index(ids).get_indexer(pd.Index(table["image_id"].astype(str)))
    columns = pd.Index(list(names)).get_indexer(pd.Index(table["class"].astype(str)))
    if (columns < 0).any():
        raise Problem(f"{file} is of other classes than the data set; evaluate the system again", made_by="evaluate")
    counts = np.zeros((len(ids), len(PARTS), len(names)), dtype=np.int64)
    for place, part in enumerate(parts):
        counts[rows, place, columns] = table[part].to_numpy()
    return ImageCounts(tuple(ids), counts)
