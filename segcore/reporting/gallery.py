"""Every prediction beside its photo and its mask, small enough that a page which stands alone can hold them all.

For each image the page is given a thumbnail of the photo (WebP), and the labels of mask and predictions at the same
size: one byte a pixel, one map after the other, deflated together, from which the browser paints overlays and errors.
Pictures would lose the classes (a canvas may change colours) and hold errors and overlays a second time.

The page stays below `MOST_BYTES`: of many images the thumbnails are smaller, and where the smallest are still too many,
those are shown that lie evenly between the worst and the best.
"""

import base64
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from segcore.data.addresses import is_there
from segcore.data.manifest import Record, read_manifest
from segcore.data.pictures import read_image, read_labels
from segcore.evaluation import per_image
from segcore.evaluation.per_image import ImageCounts
from segcore.evaluation.predictions import FILE, Predictions

MOST_BYTES = 24_000_000
"""Of all pictures in the page together; a page of 100 MB opens in no mail and in few browsers."""

SIDES = (320, 256, 192, 144, 112)
"""Pixels of a thumbnail's longer side; the first with which every image has room is taken. None is enlarged."""

SAMPLE, SAFE = 16, 0.9
"""Images whose size is measured for that, and the share of the room that they may promise to fill."""

QUALITY = 72
"""Of the photos, as WebP."""

Picture = dict[str, Any]
"""An image as the page reads it: `id`, `size` (width, height), `photo`, `labels`, `mean` and `iou` (see `_scores`)."""


@dataclass(frozen=True)
class Gallery:
    """What the page can show: pictures, worst mean first, of how many, and the systems whose predictions are there."""

    pictures: list[Picture]
    n_scored: int
    n_absent: int
    """Images whose photo or mask is not on this disk."""
    side: int
    systems: list[str]
    without: list[str]
    """Systems whose predictions are not there."""


def gallery(
    data: Path, results: Mapping[str, Path], names: Sequence[str], most_bytes: int = MOST_BYTES
) -> Gallery | None:
    """Of the systems whose results lie in these folders; None where there is nothing to show.

    Raises:
        Problem: a file is damaged.
    """
    manifest = data / "prepared/manifest.parquet"
    here = {system: folder for system, folder in results.items() if (folder / FILE).is_file()}
    if not here or not manifest.is_file():
        return None
    counts = {system: per_image.read(folder, names) for system, folder in here.items()}
    shelf = _Shelf(read_manifest(manifest), {s: Predictions(folder) for s, folder in here.items()}, counts)
    if not shelf.ids:
        return None
    side, chosen = _fitting(shelf, most_bytes)
    pictures = list(_until_full((shelf.picture(image_id, side) for image_id in chosen), most_bytes))
    without = [system for system in results if system not in here]
    return Gallery(pictures, shelf.n_scored, shelf.n_scored - len(shelf.ids), side, list(here), without)


class _Shelf:
    """The files of every image that all systems were scored on, worst mean over the systems first."""

    def __init__(
        self, records: Mapping[str, Record], predictions: Mapping[str, Predictions], counts: Mapping[str, ImageCounts]
    ) -> None:
        self.records = records
        self.predictions = predictions
        places = {system: {i: n for n, i in enumerate(counted.ids)} for system, counted in counts.items()}
        shared = set.intersection(*({*place} & predictions[system].ids for system, place in places.items()))
        self.n_scored = len(shared)
        self.counts = {i: {system: counts[system].counts[place[i]] for system, place in places.items()} for i in shared}
        self.ids = sorted((i for i in shared if self._is_here(i)), key=lambda i: (self._mean(i), i))

    def _is_here(self, image_id: str) -> bool:
        record = self.records.get(image_id)
        return record is not None and record.labels is not None and is_there(record.image) and is_there(record.labels)

    def _mean(self, image_id: str) -> float:
        means = np.array([_mean_iou(counts) for counts in self.counts[image_id].values()])
        return float(np.nanmean(means)) if np.isfinite(means).any() else 2.0  # nothing to score: after the best

    def picture(self, image_id: str, side: int) -> Picture:
        record = self.records[image_id]
        assert record.labels is not None
        photo = Image.fromarray(read_image(record.image))
        scale = min(1.0, side / max(photo.size))
        size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
        maps = [read_labels(record.labels), *(found.labels(image_id) for found in self.predictions.values())]
        small = np.stack([_shrunk(labels, size) for labels in maps])
        file = io.BytesIO()
        photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).save(file, format="WEBP", quality=QUALITY)
        return {
            "id": image_id,
            "size": list(size),
            "photo": _data_url("image/webp", file.getvalue()),
            "labels": _data_url("application/zlib", zlib.compress(small.tobytes(), 9)),
            **_scores([*self.counts[image_id].values()]),
        }


def _shrunk(labels: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    return np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _scores(counts: Sequence[Int64[np.ndarray, "3 K"]]) -> dict[str, Any]:
    """By system, in thousandths: `mean`, the mean IoU of the classes that occur (null where none does), and `iou`, that
    of every class which the mask or the system shows; `shown` are the classes of the mask, other than background."""
    tables = []
    for hits, truth, predicted in counts:
        union = truth + predicted - hits
        tables.append({int(k): round(1000 * float(hits[k] / union[k])) for k in np.flatnonzero(union)})
    means = [_mean_iou(some) for some in counts]
    shown = np.flatnonzero(counts[0][1]).tolist()
    return {
        "mean": [None if np.isnan(mean) else round(1000 * mean) for mean in means],
        "iou": tables,
        "shown": [index for index in shown if index],
    }


def _mean_iou(counts: Int64[np.ndarray, "3 K"]) -> float:
    return float(per_image.mean_iou(counts))


def _fitting(shelf: _Shelf, most_bytes: int) -> tuple[int, list[str]]:
    """The side of the thumbnails, and the images that have room with it."""
    ids = shelf.ids
    sample = [ids[place] for place in _evenly(len(ids), SAMPLE)]
    mean = 0.0
    for side in SIDES:
        mean = float(np.mean([_bytes(shelf.picture(image_id, side)) for image_id in sample]))
        if mean * len(ids) <= SAFE * most_bytes:
            return side, ids
    return SIDES[-1], [ids[place] for place in _evenly(len(ids), max(1, int(SAFE * most_bytes / mean)))]


def _evenly(n: int, count: int) -> list[int]:
    """At most `count` of n places, the first and the last among them."""
    places: Float[np.ndarray, " count"] = np.linspace(0, n - 1, min(n, count))
    return np.unique(places.round().astype(int)).tolist()


def _until_full(pictures: Iterator[Picture], most_bytes: int) -> Iterator[Picture]:
    """Those before the page is full: the sample of `_fitting` may have been of smaller ones."""
    total = 0
    for picture in pictures:
        total += _bytes(picture)
        if total > most_bytes:
            return
        yield picture


def _bytes(picture: Picture) -> int:
    return len(picture["photo"]) + len(picture["labels"]) + 12 * sum(map(len, picture["iou"]))
