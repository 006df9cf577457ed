"""How the images of one `pseudo_labels` entry are labelled: by maps, by a segmenter's predictions, or as in a file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from segcore.config.labels import (
    LabelsFromFile,
    LabelsFromKnownTags,
    LabelsFromMaps,
    LabelsFromPredictions,
    LabelsParams,
    Saliency,
)
from segcore.config.plan import ExtractPseudoLabels
from segcore.data import saliency_maps
from segcore.data.geometry import Grid
from segcore.data.manifest import Record
from segcore.data.pseudo_labels import STRIDE, CuesFile
from segcore.data.samples import tag_vector
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.evaluation.map_labels import MapLabels
from segcore.evaluation.reading import Pictures
from segcore.models.classifiers import load_classifier
from segcore.models.systems import load_system
from segcore.processes import Runtime

Labels = UInt8[np.ndarray, "_ _"]
Extract = Callable[[Sequence[Record]], Iterator[tuple[Labels, Labels]]]
"""The cues at the grid and the labels at full size of some images, one after the other."""


def check(records: Sequence[Record], entry: LabelsParams) -> list[Path]:
    """See what can be wrong before work starts; gives the files of the saliency maps, if such are used.

    Raises:
        Problem: no images, or saliency maps that are missing or of other images.
    """
    if not records:
        raise Problem(f"the list of {entry.images} images is empty", made_by="split")
    if not (isinstance(entry, LabelsFromMaps) and isinstance(entry.background, Saliency)):
        return []
    root = Path(entry.background.root).expanduser()
    saliency_maps.check(root, records)
    return [saliency_maps.file_of(root, record.image_id) for record in records]


@dataclass(frozen=True)
class Source:
    """How an entry labels images.

    Attributes:
        extract: labels some images, once all is prepared.
        prepare: learns and chooses in a folder what comes before the first label, or reads it there; gives what
            `map_labels.CALIBRATION` holds.
    """

    extract: Extract
    prepare: Callable[[Path], dict[str, Any]]


def source(
    plan: ExtractPseudoLabels,
    path: Path,
    names: list[str],
    chosen: Sequence[Record],
    strong: Sequence[Record],
    device: Runtime,
) -> Source:
    """How the entry's source, a file or the folder of a finished model, labels the chosen images.

    `strong` are the images of S, whose masks are read only if the entry learns from masks.

    Raises:
        Problem: no such source, or one of other classes or of another grid.
    """
    entry = plan.entry
    if isinstance(entry, LabelsFromFile):
        return Source(from_cues(CuesFile(path), entry, names, chosen), _nothing)
    if isinstance(entry, LabelsFromPredictions):
        return Source(from_segmenter(plan, entry, path / "model", names, device), _nothing)
    if isinstance(entry, LabelsFromKnownTags):
        return Source(from_known_tags(plan, entry, path / "model", names, device), _nothing)
    path = path / "model"
    classifier, _, tags = load_classifier(path, device.device)
    _same_classes(path, tags, names)
    labels = MapLabels(entry, classifier, strong, len(names), plan.seed, device)
    return Source(labels, labels.prepare)


def _nothing(kept: Path) -> dict[str, Any]:
    return {"calibrate": None, "chosen": None}


def from_cues(file: CuesFile, entry: LabelsFromFile, names: list[str], chosen: Sequence[Record]) -> Extract:
    """Published cues, as they are.

    Raises:
        Problem: an image lacks cues, or they are of another grid or of classes that its tags lack.
    """
    file.check(chosen, names, entry.input_size)
    grid = Grid(entry.input_size, STRIDE)

    def extract(records: Sequence[Record]) -> Iterator[tuple[Labels, Labels]]:
        cues = [file.labels(record.image_id) for record in records]
        return ((c, grid.at_pixels(c, r.height, r.width)) for c, r in zip(cues, records, strict=True))

    return extract


def from_segmenter(
    plan: ExtractPseudoLabels, entry: LabelsFromPredictions, path: Path, names: list[str], device: Runtime
) -> Extract:
    """A system's predictions, refined by a CRF if asked for, restricted to the tags of the image if asked for."""
    system, card = load_system(path, plan.prediction or {}, device.device)
    _same_classes(path, card["tags"], names)
    grid = Grid(entry.input_size, STRIDE)

    def extract(records: Sequence[Record]) -> Iterator[tuple[Labels, Labels]]:
        pictures = Pictures([record.image for record in records])
        maps = inference.score_maps(system, pictures, entry.input_size, entry.views, plan.edges)
        for place, (record, scores) in enumerate(zip(records, maps, strict=True)):
            allowed = [0, *record.tags] if entry.restrict_to_tags else range(len(names))
            picture = pictures[place] if entry.crf else None
            labels = inference.restricted(system, scores, list(allowed), picture, entry.crf)
            yield grid.at_cells(labels), labels

    return extract


def from_known_tags(
    plan: ExtractPseudoLabels, entry: LabelsFromKnownTags, path: Path, names: list[str], device: Runtime
) -> Extract:
    """What a class-conditioned system makes of the tags of the image, its doubtful pixels unknown if asked for.

    Raises:
        Problem: the system takes no tags.
    """
    system, card = load_system(path, plan.prediction or {}, device.device)
    _same_classes(path, card["tags"], names)
    grid = Grid(entry.input_size, STRIDE)

    def extract(records: Sequence[Record]) -> Iterator[tuple[Labels, Labels]]:
        pictures = Pictures([record.image for record in records])
        tags = torch.stack([tag_vector(record.tags, len(names) - 1) for record in records]).to(device.device)
        maps = inference.score_maps(system, pictures, entry.input_size, entry.views, plan.edges, tags)
        for place, (record, scores) in enumerate(zip(records, maps, strict=True)):
            picture = pictures[place] if entry.crf else None
            labels = inference.decided(system, scores, [0, *record.tags], picture, entry.crf, entry.unknown)
            yield grid.at_cells(labels), labels

    return extract


def _same_classes(path: Path, tags: list[str], names: list[str]) -> None:
    if tags != names[1:]:
        raise Problem(f"{path} was trained for {tags}, but the data set has {names[1:]}; train it again")
