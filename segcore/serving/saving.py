"""New masks, and new photographs with them, saved into a data set.

`prepare` takes the folder as it is after every single step: pictures come before lists, tags before the masks that need
them. A mask that was there before goes to `replaced/`, where no stage looks.
"""

import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.ExifTags import Base

from segcore.data.manifest import wrong_id
from segcore.data.pictures import BROKEN, IGNORE, labels_png
from segcore.errors import Problem
from segcore.files import write_atomically
from segcore.importers.folders import PICTURE_ENDINGS, Folder, one_form
from segcore.serving import tagging
from segcore.serving.data_set import LISTS, DataSet

REPLACED = "replaced"
UNLABELLED = "unlabelled"
"""The list of pictures that `segcore import` found no annotation of."""

Labels = UInt8[np.ndarray, "H W"]


@dataclass(frozen=True)
class Saved:
    """What became of a mask."""

    mask: Path
    replaced: Path | None
    """Where the mask is that was there before."""
    listed: str | None
    """The list that the image was added to."""
    tags: tuple[str, ...]
    """All that the image is known to show now."""


class Saver:
    """Saves into a data set, one mask after the other; safe for threads.

    Args:
        correct_val: whether masks that results are measured by may be replaced.
    """

    def __init__(self, data_set: DataSet, correct_val: bool) -> None:
        self.data_set, self.root, self.correct_val = data_set, data_set.root, correct_val
        self._lock = threading.Lock()

    def save(
        self, image_id: str, labels: Labels, tags: Collection[str], picture: tuple[bytes, str] | None = None
    ) -> Saved:
        """Make `labels` the mask of an image.

        Args:
            labels: a class at each pixel of the picture as a person sees it; 255 is unknown.
            tags: names of classes that the image is known to show beside those that the mask does.
            picture: content and ending of the file of a new image; None for one that is there.

        Raises:
            Problem: the id, the labels or the image are not allowed, or a file could not be read or written; what was
                there is as it was.
        """
        with self._lock:
            self._check(image_id, labels, new=picture is not None)
            made: list[Path] = []
            try:
                return self._saved(image_id, labels, tags, picture, made)
            except Problem:
                for path in made:
                    path.unlink(missing_ok=True)
                raise
            finally:
                self.data_set.forget()

    def _saved(
        self,
        image_id: str,
        labels: Labels,
        tags: Collection[str],
        picture: tuple[bytes, str] | None,
        made: list[Path],
    ) -> Saved:
        """Write all files; `made` takes those that a failure on the way has to take back."""
        classes = self.data_set.listing.classes
        known = self.data_set.members.get(image_id)
        shown = {classes[k] for k in np.unique(labels).tolist() if 0 < k < IGNORE}
        former = {classes[k] for k in (known.tags or ())} if known is not None else set()
        final = [name for name in classes[1:] if name in shown or name in tags]
        table = tagging.Tags(self.root, self.data_set.params, classes, image_id, former, labels)
        mask = self.root / "SegmentationClass" / f"{image_id}.png"
        mask.parent.mkdir(exist_ok=True)
        if picture is not None:
            place = self.root / "JPEGImages" / f"{image_id}{picture[1]}"
            made += [place, mask]
            write_atomically(place, picture[0])
        replaced = self._keep_former(image_id)
        made += [replaced] if replaced is not None else []
        # The former mask may show what the new one does not, and stays until the new one is there.
        table.write([name for name in classes[1:] if name in final or name in former])
        write_atomically(mask, labels_png(labels))
        if replaced is not None:
            made.remove(replaced)
        if not former <= {*final}:
            table.write(final)
        listed = self._enlist(image_id) if known is None or known.place == "unlisted" else None
        return Saved(mask, replaced, listed, tuple(final))

    def _check(self, image_id: str, labels: Labels, new: bool) -> None:
        if (wrong := wrong_id(image_id)) is not None:
            raise Problem(f"The name cannot be used: {wrong}.")
        if Path(image_id).suffix.lower() in PICTURE_ENDINGS:
            raise Problem("The name cannot be used: write it without the ending of a picture.")
        if new:
            self._check_new(image_id)
        else:
            self._check_known(image_id, labels)
        counts, most = np.bincount(labels.ravel(), minlength=256), len(self.data_set.listing.classes) - 1
        if wrong_labels := [value for value in range(most + 1, IGNORE) if counts[value]]:
            raise Problem(f"Found the label {wrong_labels[0]}; allowed are 0 to {most}, and {IGNORE} for unknown.")
        for folder in ("JPEGImages", "SegmentationClass", LISTS, REPLACED):
            place = (self.root / folder).resolve()
            if not place.is_relative_to(self.root.resolve()):
                raise Problem(f"{self.root / folder} leads to {place}, outside of the data set; nothing is written.")

    def _check_known(self, image_id: str, labels: Labels) -> None:
        member = self.data_set.member(image_id)
        if member.place == "val" and not self.correct_val:
            raise Problem(
                f"{image_id} is a validation image, by whose mask results are measured; it stays as it is. To correct "
                "such masks, start the page with --correct-validation."
            )
        if seen_size(member.picture) != labels.shape[::-1]:
            raise Problem(f"The picture of {image_id} has changed since it was opened; open it again.")

    def _check_new(self, image_id: str) -> None:
        taken = {*self.data_set.members, *(entry.image_id for entry in self.data_set.listing.entries)}
        for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug"):
            taken |= {*Folder(self.root / folder, []).files}
        # Some file systems take names for one that differ in capitals or in their Unicode form.
        if one_form(image_id).casefold() in {one_form(name).casefold() for name in taken}:
            raise Problem(f"The data set has a picture or a mask '{image_id}' already; give this photo another name.")

    def _keep_former(self, image_id: str) -> Path | None:
        """A copy of the mask that the image has, if it has one, under a name that nothing has yet."""
        problems: list[str] = []
        former = Folder(self.root / "SegmentationClass", problems).mask(image_id, problems, wanted=False)
        if problems:
            raise Problem(f"{problems[0]}; nothing was saved")
        if former is None:
            return None
        folder, number = self.root / REPLACED, 1
        folder.mkdir(exist_ok=True)
        while (kept := folder / f"{image_id}.{number}.png").exists():
            number += 1
        write_atomically(kept, former.read_bytes())
        return kept

    def _enlist(self, image_id: str) -> str:
        """Add the image to those that are trained on, and take it off those that nobody had labelled."""
        name = self.data_set.params.train_list
        path = self.root / LISTS / f"{name}.txt"
        text = path.read_bytes()
        end = b"\r\n" if b"\r\n" in text else b"\n"
        gap = b"" if not text or text.endswith((b"\n", b"\r")) else end
        write_atomically(path, text + gap + image_id.encode() + end)
        unlabelled = self.root / LISTS / f"{UNLABELLED}.txt"
        if unlabelled.is_file():
            lines = unlabelled.read_bytes().splitlines(keepends=True)
            left = [line for line in lines if line.strip() != image_id.encode()]
            if left != lines:
                write_atomically(unlabelled, b"".join(left))
        return name


def seen_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as a person sees it; its pixels are not decoded.

    Raises:
        Problem: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            (width, height), turned = image.size, image.getexif().get(Base.Orientation, 1) in (5, 6, 7, 8)
            return (height, width) if turned else (width, height)
    except BROKEN as error:
        raise Problem(f"{path} cannot be read ({error}); nothing was saved") from error
