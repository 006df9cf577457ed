"""Labels from localisation maps: of a classifier, with what is learned and chosen on masks of S."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from pydantic import TypeAdapter
from safetensors.torch import load, save
from torch import Tensor

from segcore.config.labels import AggregationParams, BackgroundParams, CalibratedLabels, LabelsFromMaps, Quantile
from segcore.config.refinements import AffinityCandidates, AffinityParams, BoundaryParams, RefinementParams
from segcore.data.geometry import Grid, stretched_square
from segcore.data.manifest import Record
from segcore.data.pictures import read_image, read_labels
from segcore.errors import Problem
from segcore.evaluation import calibration
from segcore.files import write_atomically
from segcore.localisation import boundary as boundaries
from segcore.localisation.boundary import BoundaryNet
from segcore.localisation.deciding import Found, Way, labels_of
from segcore.localisation.labeller import PseudoLabeller
from segcore.localisation.refinement import Boundary
from segcore.networks.classifiers import Classifier
from segcore.processes import Runtime
from segcore.seeds import derived_seed

Labels = UInt8[np.ndarray, "_ _"]

CALIBRATION = "calibration.json"
"""What lies beside labels and says by which settings they were made."""
NET = "boundary.safetensors"
"""What lies in the scratch folder until all images are labelled."""


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
        self.boundary = _boundary_of(entry)
        self.labeller = PseudoLabeller(
            classifier,
            entry,
            None if calibrated else entry.background,
            derived_seed(seed, "pseudo-labels"),
            runtime.device,
            bins=any(isinstance(how, Quantile) for how in aggregations),
            levels=self.boundary is not None,
        )
        self.trunk = classifier.trunk
        self.grid = Grid(entry.input_size, self.trunk.stride)
        self.finer = boundaries.grid_of(self.trunk, entry.input_size) if self.boundary else None
        self._way: Way | None = None
        self._net: BoundaryNet | None = None

    def prepare(self, kept: Path) -> dict[str, Any]:
        """Learn and choose what the masks of S say, or read it where that is done; gives what `CALIBRATION` holds.

        One process does it for all, in the folder `kept`.

        Raises:
            Problem: fewer images in S than folds.
        """
        if self.runtime.is_main and not (kept / CALIBRATION).is_file():
            net, told = self._learned()
            if net is not None:
                write_atomically(kept / NET, save({k: v.cpu().contiguous() for k, v in net.state_dict().items()}))
            write_atomically(kept / CALIBRATION, (json.dumps(told, indent=2) + "\n").encode())
        self.runtime.wait()
        told = json.loads((kept / CALIBRATION).read_text())
        self._way = way_of(told["chosen"])
        if isinstance(self._way.refinement, AffinityParams):
            self._net = self.new_net()
            self._net.load_state_dict(load((kept / NET).read_bytes()))
            self._net.to(self.runtime.device).eval()
        return told

    def __call__(self, records: Sequence[Record]) -> Iterator[tuple[Labels, Labels]]:
        """The cues at the grid and the labels at full size of some images, one after the other."""
        assert self._way is not None, "prepare first"
        pictures = [read_image(record.image) for record in records]
        for found, picture in zip(self.found(records, pictures), pictures, strict=True):
            yield labels_of(found, self._way, self.grid, picture, self._boundary(found, self._net))

    def found(self, records: Sequence[Record], pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Found]:
        """What the maps of some images say."""
        images = [
            torch.stack([stretched_square(picture, size) for picture in pictures]).float().to(self.runtime.device)
            for size in self.labeller.sizes
        ]
        return self.labeller(images, [record.tags for record in records], [record.image_id for record in records])

    def _boundary(self, found: Found, net: BoundaryNet | None) -> Boundary | None:
        if net is None:
            return None
        assert found.levels is not None
        return net.probability(found.levels), net.grid

    def new_net(self) -> BoundaryNet:
        """A net of boundaries that has learned nothing."""
        assert self.boundary is not None
        assert self.finer is not None
        return BoundaryNet(self.trunk.level_channels, self.trunk.level_strides, self.finer, self.boundary[1].width)

    def _learned(self) -> tuple[BoundaryNet | None, dict[str, Any]]:
        """The net of boundaries of all of S, if any is needed, and the settings."""
        entry = self.entry
        if isinstance(entry, LabelsFromMaps):
            way = Way(entry.aggregation, entry.theta, entry.background, entry.refinement)
            told = {"calibrate": None, "chosen": calibration.plain(way)}
            return (Lessons(self, self.strong).net("all") if self.boundary else None), told
        if len(self.strong) < entry.folds:
            raise Problem(
                f"folds: found {entry.folds}, but S has {len(self.strong)} images to calibrate on; set folds to fewer"
            )
        candidates = calibration.ways(entry.candidates)
        fold = calibration.folds([record.image_id for record in self.strong], entry.folds, self.seed)
        counts = np.zeros((len(self.strong), len(candidates), 3, self.n_classes), dtype=np.int64)
        lessons = Lessons(self, self.strong) if self.boundary else None
        for number in range(entry.folds):
            net = None if lessons is None else lessons.net(f"fold {number}", fold != number)
            for place in np.flatnonzero(fold == number).tolist():
                counts[place] = self._tried(self.strong[place], candidates, net)
        choice = calibration.choose(candidates, counts, fold, entry)
        needed = lessons is not None and isinstance(choice.way.refinement, AffinityParams)
        return (lessons.net("all") if needed and lessons else None), choice.told

    def _tried(
        self, record: Record, candidates: Sequence[Way], net: BoundaryNet | None
    ) -> Int64[np.ndarray, "ways 3 K"]:
        assert record.labels is not None
        picture, truth = read_image(record.image), read_labels(record.labels)
        (found,) = self.found([record], [picture])
        return calibration.counted(
            found, candidates, self.grid, picture, truth, self._boundary(found, net), self.n_classes
        )


class Lessons:
    """What nets of boundaries learn from: levels of the trunk in half precision, classes at the cells."""

    def __init__(self, labels: MapLabels, strong: Sequence[Record]) -> None:
        assert labels.boundary is not None
        self.labels = labels
        self.radius, self.params = labels.boundary
        order = calibration.shuffled([record.image_id for record in strong], labels.seed)
        self.places = sorted(order[: self.params.examples])
        """Which of S."""
        net = labels.new_net()
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

    def net(self, name: str, chosen: Bool[np.ndarray, " strong"] | None = None) -> BoundaryNet:
        """A net for the images of S that are `chosen`, or for all; the seed goes by `name`."""
        mine = [i for i, place in enumerate(self.places) if chosen is None or chosen[place]]
        return boundaries.learn(
            [self.levels[i] for i in mine],
            [self.classes[i] for i in mine],
            self.labels.trunk,
            self.grid,
            self.radius,
            self.params,
            derived_seed(self.labels.seed, "boundaries", name),
        )


def _boundary_of(entry: LabelsFromMaps | CalibratedLabels) -> tuple[int, BoundaryParams] | None:
    """The radius and the net of boundaries of the refinements, if any walks."""
    hows = entry.candidates.refinements if isinstance(entry, CalibratedLabels) else (entry.refinement,)
    return next(((h.radius, h.boundary) for h in hows if isinstance(h, AffinityParams | AffinityCandidates)), None)


def way_of(chosen: dict[str, Any]) -> Way:
    """What `calibration.plain` has written."""
    return Way(
        TypeAdapter(AggregationParams).validate_json(json.dumps(chosen["aggregation"])),
        chosen["theta"],
        TypeAdapter(BackgroundParams).validate_json(json.dumps(chosen["background"])),
        TypeAdapter(RefinementParams).validate_json(json.dumps(chosen["refinement"])),
    )
