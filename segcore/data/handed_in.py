"""What a user hands in beside the pictures and is used long after: checked before the first training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from segcore.config.labels import LabelsFromFile, LabelsFromMaps, LabelsParams, Saliency
from segcore.data import saliency_maps
from segcore.data.manifest import Record
from segcore.data.pseudo_labels import CuesFile
from segcore.errors import Problem, Problems


def check(
    entries: Mapping[str, LabelsParams], images: Mapping[str, Sequence[Record]], names: Sequence[str], data: Path
) -> None:
    """See that the cues and saliency maps of all entries of `pseudo_labels` are those of the images.

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
                CuesFile(data / entry.input).check(images[entry.images], names, entry.input_size)
            elif isinstance(entry, LabelsFromMaps) and isinstance(entry.background, Saliency):
                saliency_maps.check(Path(entry.background.root).expanduser(), images[entry.images])
        except Problems as found:
            problems += [f"pseudo_labels.{name}: {problem}" for problem in found.problems]
        except Problem as found:
            problems.append(f"pseudo_labels.{name}: {found}")
    if problems:
        raise Problems("what was handed in for pseudo-labels does not fit the images:", problems)
