"""Labels from localisation maps: of a classifier, with what is learned and chosen on masks of S."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from pydantic import TypeAdapter
from safetensors.torch import load, save
from torch import Tensor

from segcore.config.labels import (
    AggregationParams,
    BackgroundParams,
    CalibratedLabels,
    LabelsFromMaps,
    Objects,
    ObjectsCandidates,
    Quantile,
)
from segcore.config.refinements import AffinityCandidates, AffinityParams, NetParams, RefinementParams
from segcore.data.geometry import Grid, stretched_square
from segcore.data.manifest import Record
from segcore.data.pictures import read_image, read_labels
from segcore.errors import Problem
from segcore.evaluation import calibration
from segcore.files import write_atomically
from segcore.localisation import boundary as boundaries
from segcore.localisation.boundary import CellNet, Lesson
from segcore.localisation.deciding import Found, Way, labels_of
from segcore.localisation.labeller import PseudoLabeller
from segcore.localisation.refinement import Boundary, Learned
from segcore.networks.classifiers import Classifier
from segcore.processes import Runtime
from segcore.seeds import derived_seed

Labels = UInt8[np.ndarray, "_ _"]

CALIBRATION = "calibration.json"
"""What lies beside labels and says by which settings they were made."""
BOUNDARY, OBJECTS = "boundary", "objects"
"""What nets learn; `<name>.safetensors` lies in the scratch folder until all images are labelled."""

Nets = dict[str, CellNet]


class MapLabels:
    """Labels images from the maps of a classifier; `prepare` first.

    Args:
        entry: of `pseudo_labels`.
        classifier: on the device of `runtime`.
        strong: the images of S, if `learns_from_masks(entry)`.
        n_classes: with the background.
        seed: of the run.
    """

    def __init__(
        self,
        entry: LabelsFromMaps | CalibratedLabels,
        classifier: Classifier,
        strong: Sequence[Record],
        n_classes: int,
        seed: int,
        runtime: Runtime,
    ) -> None:
        self.entry, self.strong, self.n_classes, self.seed, self.runtime = entry, strong, n_classes, seed, runtime
        calibrated = isinstance(entry, CalibratedLabels)
        aggregations = entry.candidates.aggregations if calibrated else (entry.aggregation,)
        self.lessons = _lessons_of(entry)
        self.labeller = PseudoLabeller(
            classifier,
            entry,
            None if calibrated else entry.background,
            derived_seed(seed, "pseudo-labels"),
            runtime.device,
            bins=any(isinstance(how, Quantile) for how in aggregations),
            levels=bool(self.lessons),
        )
        self.trunk = classifier.trunk
        self.grid = Grid(entry.input_size, self.trunk.stride)
        self.finer = boundaries.grid_of(self.trunk, entry.input_size) if self.lessons else None
        self._way: Way | None = None
        self._nets: Nets = {}

    def prepare(self, kept: Path) -> dict[str, Any]:
        """Learn and choose what the masks of S say, or read it where that is done; gives what `CALIBRATION` holds.

        One process does it for all, in the folder `kept`.

        Raises:
            Problem: fewer images in S than folds.
        """
        if self.runtime.is_main and not (kept / CALIBRATION).is_file():
            nets, told = self._learned()
            for name, net in nets.items():
                weights = {key: value.cpu().contiguous() for key, value in net.state_dict().items()}
                write_atomically(kept / f"{name}.safetensors", save(weights))
            write_atomically(kept / CALIBRATION, (json.dumps(told, indent=2) + "\n").encode())
        self.runtime.wait()
        told = json.loads((kept / CALIBRATION).read_text())
        self._way = way_of(told["chosen"])
        for name in _needed(self._way):
            net = self.new_net(name)
            net.load_state_dict(load((kept / f"{name}.safetensors").read_bytes()))
            self._nets[name] = net.to(self.runtime.device).eval()
        return told

    def __call__(self, records: Sequence[Record]) -> Iterator[tuple[Labels, Labels]]:
        """The cues at the grid and the labels at full size of some images, one after the other."""
        assert self._way is not None, "prepare first"
        pictures = [read_image(record.image) for record in records]
        for found, picture in zip(self.found(records, pictures), pictures, strict=True):
            yield labels_of(found, self._way, self.grid, picture, _seen(found, self._nets))

    def found(self, records: Sequence[Record], pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Found]:
        """What the maps of some images say."""
        images = [
            torch.stack([stretched_square(picture, size) for picture in pictures]).float().to(self.runtime.device)
            for size in self.labeller.sizes
        ]
        return self.labeller(images, [record.tags for record in records], [record.image_id for record in records])

    def new_net(self, name: str) -> CellNet:
        """A net that has learned nothing."""
        assert self.finer is not None
        _, params = self.lessons[name]
        return CellNet(self.trunk.level_channels, self.trunk.level_strides, self.finer, params.width)

    def _learned(self) -> tuple[Nets, dict[str, Any]]:
        """The nets of all of S that are needed, and the settings."""
        entry = self.entry
        if isinstance(entry, LabelsFromMaps):
            way = Way(entry.aggregation, entry.theta, entry.background, entry.refinement)
            told = {"calibrate": None, "chosen": calibration.plain(way)}
            return (Lessons(self, self.strong).nets("all", _needed(way)) if self.lessons else {}), told
        if len(self.strong) < entry.folds:
            raise Problem(
                f"folds: found {entry.folds}, but S has {len(self.strong)} images to calibrate on; set folds to fewer"
            )
        candidates = calibration.ways(entry.candidates)
        fold = calibration.folds([record.image_id for record in self.strong], entry.folds, self.seed)
        counts = np.zeros((len(self.strong), len(candidates), 3, self.n_classes), dtype=np.int64)
        lessons = Lessons(self, self.strong) if self.lessons else None
        for number in range(entry.folds):
            nets = {} if lessons is None else lessons.nets(f"fold {number}", (*self.lessons,), fold != number)
            for place in np.flatnonzero(fold == number).tolist():
                counts[place] = self._tried(self.strong[place], candidates, nets)
        choice = calibration.choose(candidates, counts, fold, entry)
        return ({} if lessons is None else lessons.nets("all", _needed(choice.way))), choice.told

    def _tried(self, record: Record, candidates: Sequence[Way], nets: Nets) -> Int64[np.ndarray, "ways 3 K"]:
        assert record.labels is not None
        picture, truth = read_image(record.image), read_labels(record.labels)
        (found,) = self.found([record], [picture])
        return calibration.counted(found, candidates, self.grid, picture, truth, _seen(found, nets), self.n_classes)


class Lessons:
    """What nets learn from: levels of the trunk in half precision, classes at the cells."""

    def __init__(self, labels: MapLabels, strong: Sequence[Record]) -> None:
        self.labels = labels
        most = max(params.examples for _, params in labels.lessons.values())
        order = calibration.shuffled([record.image_id for record in strong], labels.seed)
        self.places = sorted(order[:most])
        """Which of S."""
        net = labels.new_net(next(iter(labels.lessons)))
        self.grid = net.grid
        self.levels: list[list[Tensor]] = []
        self.classes: list[Labels] = []
        for place in self.places:
            record = strong[place]
            assert record.labels is not None
            square = stretched_square(read_image(record.image), labels.entry.input_size)[None].float()
            with torch.no_grad():
                levels = net.prepared(labels.trunk(square.to(labels.runtime.device)).levels)
            self.levels.append([level[0].half().cpu() for level in levels])
            self.classes.append(self.grid.at_cells(read_labels(record.labels)))

    def nets(self, name: str, wanted: Sequence[str], chosen: Bool[np.ndarray, " strong"] | None = None) -> Nets:
        """Nets for the images of S that are `chosen`, or for all; the seeds go by `name`."""
        mine = [i for i, place in enumerate(self.places) if chosen is None or chosen[place]]
        levels, classes = [self.levels[i] for i in mine], [self.classes[i] for i in mine]
        found: Nets = {}
        for what in wanted:
            lesson, params = self.labels.lessons[what]
            seed = derived_seed(self.labels.seed, what, name)
            found[what] = boundaries.learn(levels, classes, self.labels.trunk, self.grid, lesson, params, seed)
        return found


def _seen(found: Found, nets: Nets) -> Learned:
    """What nets find in one image."""

    def of(name: str) -> Boundary | None:
        if name not in nets:
            return None
        assert found.levels is not None
        return nets[name].probability(found.levels), nets[name].grid

    return Learned(of(BOUNDARY), of(OBJECTS))


def _needed(way: Way) -> tuple[str, ...]:
    """The nets without which a way cannot go."""
    walks, counts = isinstance(way.refinement, AffinityParams), isinstance(way.background, Objects)
    return (*((BOUNDARY,) if walks else ()), *((OBJECTS,) if counts else ()))


def _lessons_of(entry: LabelsFromMaps | CalibratedLabels) -> dict[str, tuple[Lesson, NetParams]]:
    """What nets of the entry's refinements and backgrounds learn, and how."""
    calibrated = isinstance(entry, CalibratedLabels)
    found: dict[str, tuple[Lesson, NetParams]] = {}
    for walk in entry.candidates.refinements if calibrated else (entry.refinement,):
        if isinstance(walk, AffinityParams | AffinityCandidates):
            found[BOUNDARY] = (partial(boundaries.loss, radius=walk.radius), walk.boundary)
    for how in entry.candidates.backgrounds if calibrated else (entry.background,):
        if isinstance(how, Objects | ObjectsCandidates):
            found[OBJECTS] = (boundaries.object_loss, how.net)
    return found


def way_of(chosen: dict[str, Any]) -> Way:
    """What `calibration.plain` has written."""
    return Way(
        TypeAdapter(AggregationParams).validate_json(json.dumps(chosen["aggregation"])),
        chosen["theta"],
        TypeAdapter(BackgroundParams).validate_json(json.dumps(chosen["background"])),
        TypeAdapter(RefinementParams).validate_json(json.dumps(chosen["refinement"])),
    )
