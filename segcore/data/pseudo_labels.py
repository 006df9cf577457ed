"""Pseudo-labels on disk: what is known of the pixels of images that have tags only.

A folder of them has `images.txt` (one image id a line), `cues/<id>.png` (the classes at the cells of the grid) and
`labels/<id>.png` (the same at the size of the image, as `geometry.Grid` has it); both are indexed PNGs, 255 where
nothing is known.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segcore.data.manifest import Record, read_ids, wrong_ids
from segcore.data.pictures import BROKEN, IGNORE, kind_of
from segcore.errors import Problem, Problems, some
from segcore.files import regular

STRIDE = 8
"""Pixels of an input to a cell of published cues: 321 give 41."""

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
    return read_ids(path)


def _reason(path: Path, error: BaseException) -> str:
    try:
        with regular(path).open("rb") as file:
            kind = kind_of(file.read(512))
    except OSError as closed:
        return closed.strerror or str(closed)
    known = kind not in ("of no known kind", "a ZIP archive")
    return f"it is {kind}" if known else str(error) or type(error).__name__


class CuesFile:
    """Somebody's cues: an .npz file with `image_ids` (n) and `labels` (n x h x w, uint8, 255 where unknown)."""

    def __init__(self, path: Path) -> None:
        """Read all of it.

        Raises:
            Problem: not such a file.
        """
        self.path = path
        try:
            with np.load(regular(path), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except FileNotFoundError:
            raise Problem(f"{path} is no readable .npz file of cues: there is none; put it there") from None
        except (*BROKEN, AttributeError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
            # zipfile and NumPy raise a dozen types for what is damaged.
            raise Problem(f"{path} is no readable .npz file of cues ({_reason(path, error)})") from error
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
        if wrong := wrong_ids(map(str, ids)):
            raise Problems(f"{path} cannot be used:", [f"{path}: its image_ids: {one}" for one in wrong])
        self._labels: UInt8[np.ndarray, "n h w"] = labels

    def check(self, records: Sequence[Record], names: Sequence[str], input_size: int) -> None:
        """See that the cues are those of these images: there, on this grid, of the classes that the tags name.

        Args:
            names: of the classes, background first.
            input_size: side of the square that images are stretched to, in pixels.

        Raises:
            Problems: all that is not so.
        """
        there = [record for record in records if record.image_id in self._rows]
        missing = [record.image_id for record in records if record.image_id not in self._rows]
        problems = [f"{self.path} lacks {len(missing)} of {len(records)} images: {some(missing)}"] if missing else []
        height, width = self._labels.shape[1:]
        cells = -(-input_size // STRIDE)
        if (height, width) != (cells, cells):
            problems.append(
                f"{self.path}: found cues of {width} x {height} cells; an input_size of {input_size} has "
                f"{cells} x {cells}; set input_size to {STRIDE * height - 7}"
            )
        shown = {record.image_id: self._classes(record.image_id) for record in there}
        for image_id, classes in shown.items():
            if beyond := [one for one in classes if one >= len(names)]:
                problems.append(
                    f"{self.path}: {image_id} has label {beyond[0]}; allowed are 0..{len(names) - 1} and {IGNORE}"
                )
                break
        problems += self._against_tags(there, shown, names)
        if problems:
            raise Problems(f"{self.path} cannot be used:", problems)

    def _classes(self, image_id: str) -> list[int]:
        """The classes that the cues of an image show, without the background."""
        return [int(one) for one in np.unique(self.labels(image_id)) if one not in (0, IGNORE)]

    def _against_tags(
        self, records: Sequence[Record], shown: Mapping[str, list[int]], names: Sequence[str]
    ) -> Iterator[str]:
        odd = [record for record in records if set(shown[record.image_id]) - set(record.tags)]
        if odd:
            first = odd[0]
            has, tags = (
                ", ".join(names[one] if one < len(names) else str(one) for one in of) or "nothing"
                for of in (shown[first.image_id], first.tags)
            )
            yield (
                f"{self.path}: the cues of {len(odd)} of {len(records)} images show classes that the images' tags "
                f"lack: {first.image_id} has cues of {has}, its tags name {tags}; 0 is background, 1 is {names[1]}"
                + self._one_off(odd, names)
            )
        if records and not any(shown.values()):
            yield f"{self.path}: no image has a cue of any class; 0 is background, 1 is {names[1]}"

    def _one_off(self, odd: Sequence[Record], names: Sequence[str]) -> str:
        """What the numbers look like, where all images tell the same."""
        for off, why in ((1, "one too low, as without background"), (-1, "one too high")):
            if all({one + off for one in self._classes(r.image_id)} - {0} <= {*r.tags} for r in odd):
                return f": they look numbered {why}"
        return ""

    def labels(self, image_id: str) -> UInt8[np.ndarray, "h w"]:
        """The cues of one image."""
        if image_id not in self._rows:
            raise Problem(f"{self.path} has no cues of {image_id}")
        return self._labels[self._rows[image_id]]
