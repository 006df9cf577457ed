"""What is written of one picture: mask, overlay, confidence, outlines, and its row of the table."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segcore.data.pictures import labels_png, voc_palette
from segcore.evaluation.score_maps import ScoreMaps
from segcore.files import write_atomically
from segcore.prediction import polygons
from segcore.prediction.listing import Photo
from segcore.prediction.model import Model, Pixels, Predicted
from segcore.prediction.polygons import Polygons
from segcore.prediction.reading import Ready

FAST = 1
"""How hard zlib tries: half the time of its 6, for masks that are an eighth larger."""

OPACITY = 0.5


@dataclass(frozen=True)
class Wanted:
    """What is written beside masks and the table, and how the work is done."""

    overlay: bool
    confidence: bool
    batch_size: int
    shard: int
    shards: int
    tags: Mapping[str, Sequence[int]] | None
    """Classes 1..L that a picture may show, by its name without ending; None where all may."""
    polygons: Polygons | None = None


@dataclass(frozen=True)
class Made:
    """What is to be written of one picture: the contents of files, by their place in the folder, and its row."""

    contents: Mapping[str, bytes]
    row: dict[str, Any]


def made(model: Model, photo: Photo, one: Ready, means: ScoreMaps | Predicted, wanted: Wanted) -> Made:
    """What is to be written of one picture, of which the scores or what they mean is known."""
    needed = wanted.overlay or model.system.prediction.crf is not None
    picture = one.pixels() if needed else None
    allowed = allowed_to(photo, wanted)
    said = means if isinstance(means, Predicted) else model.said(means, picture, allowed, wanted.confidence)
    files = files_of(photo, wanted)
    contents = {"masks": labels_png(said.labels, FAST)}
    if wanted.overlay:
        assert picture is not None
        contents["overlays"] = overlay_jpeg(picture, said.labels)
    if said.confidence is not None:
        contents["confidence"] = _encoded(Image.fromarray(said.confidence), "PNG")
    if wanted.polygons is not None:
        write = polygons.geojson if wanted.polygons.format == "geojson" else polygons.coco
        text = write(said.labels, model.classes, said.probabilities, wanted.polygons.per)
        contents["polygons"] = text.encode()
    found = [index for index in range(1, len(model.classes)) if said.shares[index] > 0]
    outlined = {"polygons": files["polygons"], "per": wanted.polygons.per} if wanted.polygons is not None else {}
    row = outlined | {
        "image": photo.name,
        "path": str(photo.path),
        "stamp": stamp_of(photo.path),
        "files": list(files.values()),
        "mask": files["masks"],
        "width": int(said.labels.shape[1]),
        "height": int(said.labels.shape[0]),
        "tags": found,
        "probabilities": [round(float(value), 4) for value in said.probabilities],
        "shares": [round(float(value), 6) for value in said.shares],
    }
    return Made({files[kind]: content for kind, content in contents.items()}, row)


def stored(what: Made, out: Path) -> dict[str, Any]:
    """Write the files; the row of the picture, which is done then."""
    for place, content in what.contents.items():
        file = out / place
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
    return what.row


def overlay_jpeg(picture: Pixels, labels: UInt8[np.ndarray, "H W"]) -> bytes:
    """The picture with every found object in the colour of its class, half transparent."""
    mixed, palette = picture.copy(), voc_palette()
    for row, own, classes in zip(mixed, picture, labels, strict=True):  # a large one as floats would take gigabytes
        shown = classes > 0
        row[shown] = (own[shown] * (1 - OPACITY) + palette[classes[shown]] * OPACITY).astype(np.uint8)
    return _encoded(Image.fromarray(mixed), "JPEG")


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, quality=90)
    return file.getvalue()


def files_of(photo: Photo, wanted: Wanted) -> dict[str, str]:
    """The files of a picture, by kind, from the folder of the predictions."""
    kinds = {"masks": ".png"}
    kinds |= {"overlays": ".jpg"} if wanted.overlay else {}
    kinds |= {"confidence": ".png"} if wanted.confidence else {}
    kinds |= {"polygons": polygons.ENDINGS[wanted.polygons.format]} if wanted.polygons else {}
    return {kind: f"{kind}/{photo.out}{ending}" for kind, ending in kinds.items()}


def allowed_to(photo: Photo, wanted: Wanted) -> Sequence[int] | None:
    return None if wanted.tags is None else wanted.tags.get(Path(photo.name).stem)


def stamp_of(path: Path) -> list[int]:
    """By what a file is known to be the same; of one that is gone, nothing."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
