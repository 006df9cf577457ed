"""Combinatorial crops: every label subset of a strong image, many boxes for each (Hong et al. 2015, section 5).

An image with L classes in its mask has 2^L - 1 non-empty label subsets P. For each, the network is shown sub-images
around the foreground of P and must outline it alone. Beside them stand the whole images, one sample each, with all of
their labels: N_s strong images and N_p boxes a subset are N_t = N_s + N_p sum_i (2^L_i - 1) samples. Boxes are stored;
pixels are cut while loading.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int, Int32, UInt8

from segcore.config.data import CropsParams
from segcore.data import manifest, pictures, proposals
from segcore.data.samples import COLUMNS
from segcore.errors import Problem
from segcore.seeds import derived_seed

MAX_PROPOSALS = 2000
"""Boxes asked of EdgeBoxes per image; more find hardly another object."""

PROPOSAL_SHARE = 0.5
"""At most this share of a subset's boxes are proposals, so that there is variety around a well-found object too."""

LEAST_IOU = 0.3
"""A proposal overlaps the tight box of the subset at least so far; below, it shows the subset by chance."""

SMALLEST_SIDE = 1 / 16
"""Of the longer image side: the least side of a box, so that a speck is not blown up to a blur."""


@dataclass(frozen=True)
class ImageCrops:
    """The crops of one strong image: `boxes` [s, n] shows the label subset `subsets[s]`, in pixels of the image.

    `classes` are those of its mask, in order, and `whole` is the box of the whole image, which reaches beyond it.
    `possible` counts the non-empty subsets before the cap. Of each subset, the first `proposed` boxes are proposals,
    and `nearest_iou` is the IoU of its tight box with the proposal nearest to that.
    """

    image_id: str
    classes: tuple[int, ...]
    whole: tuple[int, int, int, int]
    subsets: list[tuple[int, ...]]
    boxes: Int32[np.ndarray, "S N 4"]
    possible: int
    proposed: list[int]
    nearest_iou: list[float]


def image_crops(record: manifest.Record, params: CropsParams, seed: int) -> ImageCrops:
    """All crops of a strong image: a function of the image, its labels, the parameters and the seed alone.

    The classes are those of the mask; a tag that the mask lacks has no foreground to enclose.

    Raises:
        Problem: the image has no labels.
    """
    if record.labels is None:
        raise Problem(f"{record.image_id}: a strong image needs labels, found none in the manifest")
    labels = pictures.read_labels(record.labels)
    classes = [int(label) for label in np.unique(labels) if label not in (0, pictures.IGNORE)]
    rng = np.random.default_rng(derived_seed(seed, "crops", record.image_id))
    subsets = label_subsets(classes, params.max_subsets, rng)
    boxes = np.zeros((len(subsets), params.per_subset, 4), dtype=np.int32)
    proposed, nearest = [], []
    found = proposals.edge_boxes(pictures.read_image(record.image), params.edges, MAX_PROPOSALS)
    for row, subset in enumerate(subsets):
        foreground = np.isin(labels, subset)
        boxes[row], chosen = crop_boxes(foreground, params, found, rng)
        proposed.append(chosen)
        nearest.append(float(box_iou(found, tight_box(foreground)).max(initial=0.0)))
    possible = 2 ** len(classes) - 1
    return ImageCrops(record.image_id, tuple(classes), whole_box(labels), subsets, boxes, possible, proposed, nearest)


def index(images: Iterable[ImageCrops]) -> pa.Table:
    """A row a sample, by image id: `image_id`, `labels` (the subset), and the box `x1`, `y1`, `x2`, `y2`.

    The first row of an image is the whole of it, with all of its labels: none, where it shows no object.
    """
    images = sorted(images, key=lambda image: image.image_id)
    ids: list[str] = []
    subsets: list[tuple[int, ...]] = []
    boxes = [np.zeros((0, 4), dtype=np.int32)]
    for image in images:
        crops = image.boxes.reshape(-1, 4)
        ids += [image.image_id] * (1 + len(crops))
        subsets += [image.classes, *(subset for subset in image.subsets for _ in range(image.boxes.shape[1]))]
        boxes += [np.array([image.whole], dtype=np.int32), crops]
    columns: list[pa.Array] = [pa.array(ids, pa.string()), pa.array(subsets, pa.list_(pa.int16()))]
    columns += [pa.array(side, pa.int32()) for side in np.concatenate(boxes).T]
    return pa.Table.from_arrays(columns, names=list(COLUMNS))


def label_subsets(classes: Sequence[int], maximum: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """The non-empty subsets of `classes`, at most `maximum`: the smaller first, then by class index.

    Where all do not fit, those kept are the single classes, the full set and a uniform sample of the others, in this
    order of precedence; where not even the single classes fit, a sample of these.
    """
    classes = sorted(set(classes))
    if 2 ** len(classes) - 1 <= maximum:
        sizes = range(1, len(classes) + 1)
        return [subset for size in sizes for subset in itertools.combinations(classes, size)]
    kept = [(classes[index],) for index in rng.permutation(len(classes))] + [tuple(classes)]
    kept = kept[:maximum]
    have = set(kept)
    while len(have) < maximum:  # 2^L may be large: drawn one by one, never listed
        member = rng.integers(2, size=len(classes))
        if member.any():
            have.add(tuple(label for label, is_in in zip(classes, member, strict=True) if is_in))
    return sorted(have, key=lambda subset: (len(subset), subset))


def crop_boxes(
    foreground: Bool[np.ndarray, "H W"], params: CropsParams, found: Int[np.ndarray, "M 4"], rng: np.random.Generator
) -> tuple[Int32[np.ndarray, "N 4"], int]:
    """Exactly `params.per_subset` boxes around the foreground, and how many of them are proposals.

    First the proposals that hold the foreground, best first, at most half; then random boxes that enclose it. `found`
    are the proposals of the image; the foreground must not be empty. Boxes are half-open, perhaps beyond the image.
    """
    chosen = enclosing_proposals(foreground, params.min_overlap, found)[: int(PROPOSAL_SHARE * params.per_subset)]
    height, width = foreground.shape
    random = enclosing_boxes(tight_box(foreground), width, height, params.per_subset - len(chosen), rng)
    return np.concatenate([chosen.astype(np.int32), random]), len(chosen)


def enclosing_proposals(
    foreground: Bool[np.ndarray, "H W"], min_overlap: float, found: Int[np.ndarray, "M 4"]
) -> Int[np.ndarray, "K 4"]:
    """The proposals that hold `min_overlap` of the foreground and fit its tight box, by falling IoU with that."""
    total = cv2.integral(foreground.astype(np.uint8))
    x1, y1, x2, y2 = found.T
    held = (total[y2, x2] - total[y1, x2] - total[y2, x1] + total[y1, x1]) / total[-1, -1]
    iou = box_iou(found, tight_box(foreground))
    order = np.argsort(-iou, kind="stable")
    return found[order[((held >= min_overlap) & (iou >= LEAST_IOU))[order]]]


def whole_box(labels: UInt8[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """The whole picture as inference frames it: a square that reaches beyond it to the right or below."""
    side = max(labels.shape)
    return 0, 0, side, side


def tight_box(foreground: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """The smallest x1, y1, x2, y2 (half-open) around the foreground, which must not be empty."""
    rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_iou(boxes: Int[np.ndarray, "M 4"], box: tuple[int, int, int, int]) -> Float[np.ndarray, " M"]:
    """Intersection over union of each of `boxes` with `box`."""
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    wide = np.maximum(np.minimum(x2, box[2]) - np.maximum(x1, box[0]), 0)
    high = np.maximum(np.minimum(y2, box[3]) - np.maximum(y1, box[1]), 0)
    union = (x2 - x1) * (y2 - y1) + (box[2] - box[0]) * (box[3] - box[1]) - wide * high
    return wide * high / union


def enclosing_boxes(
    tight: tuple[int, int, int, int], width: int, height: int, count: int, rng: np.random.Generator
) -> Int32[np.ndarray, "N 4"]:
    """Random boxes around `tight`, from nearly tight to the whole picture squared, as inference frames it.

    The size is log-uniform between the two, with some freedom for each axis as the warp distorts anyway; the place is
    uniform where the box still encloses `tight` and at most a tenth of it more than needed lies beyond the image.
    """
    frame = max(width, height)
    zoom = rng.uniform(0, 1, size=(count, 1)) + rng.uniform(-0.15, 0.15, size=(count, 2))
    size = np.array([tight[2] - tight[0], tight[3] - tight[1]], dtype=np.float64)
    least = np.maximum(size, SMALLEST_SIDE * frame)
    side = np.ceil(least * (np.maximum(frame, 1.1 * least) / least) ** np.clip(zoom, 0, 1))

    image = np.array([width, height], dtype=np.float64)
    low = np.maximum(np.array(tight[2:]) - side, np.minimum(0, image - side) - 0.1 * side)
    high = np.minimum(np.array(tight[:2]), np.maximum(0, image - side) + 0.1 * side)
    low, high = np.ceil(low), np.floor(high)
    corner = np.floor(low + rng.uniform(0, 1, size=(count, 2)) * (high - low + 1))
    return np.concatenate([corner, corner + side], axis=1).astype(np.int32)
