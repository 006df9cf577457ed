"""Pseudo-labels: what is known of the pixels of images that have tags only, and how good it is.

A folder of pseudo-labels has `images.txt` (one image id a line), `cues/<id>.png` (the classes at the cells of the grid)
and `labels/<id>.png` (the same at the size of the image); both are indexed PNGs, 255 where nothing is known.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from segcore.config.sections import PseudoLabelParams
from segcore.data.pictures import IGNORE
from segcore.errors import Problem
from segcore.evaluation.metrics import rounded
from segcore.localisation import background
from segcore.localisation.maps import localise
from segcore.localisation.mask_bank import MaskBank
from segcore.networks.classifiers import Classifier
from segcore.networks.stochastic_head import StochasticHead

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


def full_size(cue: UInt8[np.ndarray, "h w"], height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """Labels of a grid at the size of the image: every pixel has the label of the cell that it lies in."""
    return cv2.resize(cue, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def classes_at(
    members: Bool[Tensor, "T h w"],
    means: Float[Tensor, "T h w"],
    tags: tuple[int, ...],
    background: Bool[Tensor, "h w"] | None = None,
) -> UInt8[Tensor, "h w"]:
    """The class of each place of one image.

    Of the tags (1..L) that a place is a member of, that with the greatest mean map (the first one named, if equal)
    wins; foreground wins over background; 255 where there is neither.
    """
    labels = torch.full(members.shape[1:], IGNORE, dtype=torch.uint8, device=members.device)
    if background is not None:
        labels[background] = 0
    if tags:
        winner = means.masked_fill(~members, -1).argmax(0)
        named = torch.tensor(tags, dtype=torch.uint8, device=members.device)[winner]
        labels = torch.where(members.any(0), named, labels)
    return labels


class PseudoLabeller:
    """Labels images at the cells of a classifier's top map from their tags (Lee et al. 2019, section 3.2).

    An image without tags gets its background cue only. `deterministic` maps are all the same, so that one is made.
    """

    def __init__(self, classifier: Classifier, params: PseudoLabelParams, seed: int, device: torch.device) -> None:
        """`classifier` must be on `device`; it is put into eval mode.

        Raises:
            Problem: its head is not a stochastic one.
        """
        if not isinstance(classifier.head, StochasticHead):
            raise Problem(
                f"{params.input}: a classifier with a fully connected head has no localisation maps of this kind; "
                "name one whose head is of kind: stochastic"
            )
        self.classifier = classifier.eval()
        self.head = classifier.head
        self.params = params
        self.seed = seed
        self.device = device
        self._bank: MaskBank | None = None

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "B 3 S S"], tags: Sequence[tuple[int, ...]], ids: Sequence[str] = ()
    ) -> UInt8[Tensor, "B h w"]:
        """Labels of images in 0..255: class indices, 255 where unknown; `tags` are those of each image, in 1..L.

        `ids` are needed for saliency maps only.

        Raises:
            Problem: a tag that the classifier does not know; an image without a saliency map.
        """
        return self.labels(*self.features(images, ids), tags)

    @torch.no_grad()
    def labels(
        self,
        top: Float[Tensor, "B K h w"],
        cues: Sequence[Bool[Tensor, "h w"] | None],
        tags: Sequence[tuple[int, ...]],
    ) -> UInt8[Tensor, "B h w"]:
        """The labels of images whose `features` are known."""
        params, n_tags = self.params, self.classifier.n_tags
        if unknown := sorted({tag for some in tags for tag in some if not 1 <= tag <= n_tags}):
            raise Problem(f"{params.input}: it knows the tags 1..{n_tags}, but an image has {unknown[0]}")
        image = torch.tensor([i for i, some in enumerate(tags) for _ in some], dtype=torch.int64, device=self.device)
        tag = torch.tensor([tag - 1 for some in tags for tag in some], dtype=torch.int64, device=self.device)
        with torch.autocast(self.device.type, enabled=False):  # thresholds deserve all digits
            members, means = localise(
                self.head, top.float(), image, tag, self._masks(top), params.selection, params.rate, params.form,
                params.theta, params.normalise,
            )  # fmt: skip
        labels, sizes = [], [len(some) for some in tags]
        for some, member, mean, cue in zip(tags, members.split(sizes), means.split(sizes), cues, strict=True):
            labels.append(classes_at(member, mean, some, cue))
        return torch.stack(labels)

    @torch.no_grad()
    def features(
        self, images: Float[Tensor, "B 3 S S"], ids: Sequence[str]
    ) -> tuple[Float[Tensor, "B K h w"], Sequence[Bool[Tensor, "h w"] | None]]:
        """The top map and the background cue of each image."""
        params = self.params
        if params.background == "gradient":
            values, features = background.importance(self.classifier, images)
            return features.top, list(background.lowest(values, params.background_fraction))
        top: Tensor = self.classifier.trunk(images).top
        if params.background == "none":
            return top, [None] * len(images)
        files = [background.saliency_file(Path(params.saliency_root or ""), image_id) for image_id in ids]
        grid = (top.shape[2], top.shape[3])
        cues = [background.saliency_cue(file, grid, params.saliency_threshold) for file in files]
        return top, [torch.from_numpy(cue).to(self.device) for cue in cues]

    def _masks(self, top: Float[Tensor, "B K h w"]) -> MaskBank:
        """The bank of the run; all images have one size."""
        params, grid = self.params, (top.shape[2], top.shape[3])
        if self._bank is None or self._bank.grid != grid:
            offsets = self.head.kernel**2
            passes, rate = (1, 0.0) if params.selection == "deterministic" else (params.passes, params.rate)
            units, centre = (top.shape[1], None) if params.selection == "general" else (offsets, offsets // 2)
            self._bank = MaskBank(self.seed, passes, grid, units, rate, centre).to(self.device)
        return self._bank


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


class Quality:
    """Pseudo-labels against masks: counts of pixels by true class (row) and label (column; the last one: unlabelled).

    Pixels whose truth is 255 count nowhere. An unlabelled pixel is a miss of its class and a false alarm of none.
    """

    def __init__(self, n_classes: int, counts: Int64[np.ndarray, "K _"] | None = None) -> None:
        self.n_classes = n_classes
        self.counts = np.zeros((n_classes, n_classes + 1), dtype=np.int64) if counts is None else counts

    def update(self, truth: UInt8[np.ndarray, "..."], pseudo: UInt8[np.ndarray, "..."]) -> None:
        """Add an image.

        Raises:
            ValueError: the shapes differ, or there is a class beyond those counted.
        """
        if truth.shape != pseudo.shape:
            raise ValueError(f"truth is {truth.shape} but the pseudo-labels are {pseudo.shape}; they must be equal")
        counted = truth != IGNORE
        actual, label = truth[counted].astype(np.int64), pseudo[counted].astype(np.int64)
        label[label == IGNORE] = self.n_classes
        for what, values, last in (("truth", actual, self.n_classes - 1), ("pseudo-label", label, self.n_classes)):
            if values.size and values.max() > last:
                raise ValueError(f"the {what} holds class {values.max()}; allowed are 0..{self.n_classes - 1}")
        width = self.n_classes + 1
        pairs = np.bincount(actual * width + label, minlength=self.n_classes * width)
        self.counts += pairs.reshape(self.n_classes, width)

    def __add__(self, other: "Quality") -> "Quality":
        return Quality(self.n_classes, self.counts + other.counts)

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """What `quality.json` holds, fractions of 1; None where there was nothing to measure on.

        `coverage` is the share of the pixels that have a label, `foreground_coverage` a label other than background.
        `precision` (right among the labelled), `recall` (right among all of the class) and `mean_iou` are means over
        the classes. `per_class` has the same for each class, `coverage` being the share of its pixels with any label.
        """
        hits, of_class, labelled = np.diag(self.counts), self.counts.sum(1), self.counts[:, :-1]
        with np.errstate(invalid="ignore"):  # nothing over nothing is nan
            shares = np.stack([labelled.sum(), labelled[:, 1:].sum()]) / self.counts.sum()
            columns = {
                "coverage": labelled.sum(1) / of_class,
                "precision": hits / labelled.sum(0),
                "recall": hits / of_class,
                "iou": hits / (of_class + labelled.sum(0) - hits),
            }
        means = {key: _mean(column) for key, column in columns.items()}
        overall = {
            "coverage": shares[0],
            "foreground_coverage": shares[1],
            "precision": means["precision"],
            "recall": means["recall"],
            "mean_iou": means["iou"],
        }
        per_class = {name: {key: column[row] for key, column in columns.items()} for row, name in enumerate(names)}
        return rounded({**overall, "per_class": per_class})


def _mean(values: Float[np.ndarray, " K"]) -> float:
    """Mean of the values that are not nan; nan where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan
