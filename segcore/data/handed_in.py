"""What a user hands in beside the pictures and is used long after: checked before the first training."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from segcore.config.labels import LabelsFromFile, LabelsFromMaps, LabelsParams, Saliency
from segcore.data import agreement, saliency_maps
from segcore.data.geometry import Grid, resized_labels
from segcore.data.manifest import Record
from segcore.data.pictures import read_labels
from segcore.data.pseudo_labels import STRIDE, CuesFile
from segcore.data.records import ids_of
from segcore.errors import Problem, Problems

COMPARED = 200
"""Images whose masks are compared with what was handed in, at most."""
SIDE = 64
"""Pixels of the squares on which saliency maps and masks are compared."""


def check(
    entries: Mapping[str, LabelsParams], images: Mapping[str, Sequence[Record]], names: Sequence[str], data: Path
) -> None:
    """See that the cues and saliency maps of all entries of `pseudo_labels` are those of the images.

    They must also lie as the masks of the strong images do, as far as these are among the images of an entry.

    Args:
        images: the records of the lists `strong` and `weak`.
        names: of the classes, background first.
        data: the data set's folder, which has the cues.

    Raises:
        Problems: all that is wrong with any of them.
    """
    problems: list[str] = []
    for name, entry in entries.items():
        try:
            if isinstance(entry, LabelsFromFile):
                cues = CuesFile(data / entry.input)
                cues.check(images[entry.images], names, entry.input_size)
                _check_cues(cues, _masked(images, entry.images), entry.input_size)
            elif isinstance(entry, LabelsFromMaps) and isinstance(entry.background, Saliency):
                root = Path(entry.background.root).expanduser()
                saliency_maps.check(root, images[entry.images])
                _check_saliency(root, _masked(images, entry.images))
        except Problems as found:
            problems += [f"pseudo_labels.{name}: {problem}" for problem in found.problems]
        except Problem as found:
            problems.append(f"pseudo_labels.{name}: {found}")
    if problems:
        raise Problems("what was handed in for pseudo-labels does not fit the images:", problems)


def _masked(images: Mapping[str, Sequence[Record]], chosen: str) -> list[Record]:
    """Strong images with masks that are among the chosen ones, a few of them."""
    wanted = {*ids_of(images[chosen])}
    masked = (record for record in images["strong"] if record.image_id in wanted and record.labels is not None)
    return list(islice(masked, COMPARED))


def _check_cues(cues: CuesFile, masked: Sequence[Record], input_size: int) -> None:
    grid = Grid(input_size, STRIDE)
    pairs = ((cues.labels(r.image_id), grid.at_cells(read_labels(r.labels))) for r in masked if r.labels is not None)
    if (how := agreement.cues_lie_otherwise(pairs)) is not None:
        raise Problem(
            f"{cues.path}: on {len(masked)} images with a mask, the cues agree with the masks much better when they "
            f"are {how}; give them as the pictures are seen, row by row from the top"
        )


def _check_saliency(root: Path, masked: Sequence[Record]) -> None:
    pairs = (
        (
            resized_labels(saliency_maps.read(saliency_maps.file_of(root, record.image_id)), SIDE, SIDE),
            resized_labels(read_labels(record.labels), SIDE, SIDE),
        )
        for record in masked
        if record.labels is not None
    )
    if (how := agreement.saliency_lies_otherwise(pairs)) is not None:
        raise Problem(
            f"the saliency maps in background.root: {root}: on {len(masked)} images with a mask, objects stand out "
            f"much better when the maps are {how}; give them as the pictures are seen, bright where something is"
        )
