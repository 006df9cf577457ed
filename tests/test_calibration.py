"""Settings of labels chosen on masks of S: the planted best one is found, and nothing but S is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from segcore.config.labels import CalibratedLabels, Candidates
from segcore.data.geometry import Grid
from segcore.data.manifest import Record
from segcore.errors import Problem
from segcore.evaluation import calibration, map_labels
from segcore.evaluation.map_labels import MapLabels
from segcore.localisation.aggregation import Merged
from segcore.localisation.deciding import Found
from segcore.localisation.labeller import PseudoLabeller
from segcore.localisation.refinement import Learned
from segcore.processes import Runtime
from tests.devkit import make_record
from tests.networks import N_TAGS
from tests.test_classifiers import stochastic_classifier

BOUNDARY = {"width": 4, "steps": 3, "batch_size": 2, "learning_rate": 0.01, "examples": 3}
AFFINITY = {"kind": "affinity", "radius": 3, "beta": [2.0, 8.0], "steps": [2], "boundary": BOUNDARY}
JOINT = AFFINITY | {"kind": "joint_affinity"}
CRF = {
    "kind": "crf", "confidence": [0.6, 0.8], "long_side": 20,
    "crf": {
        "iterations": 2, "appearance_weight": 3.0, "appearance_xy": 20.0, "appearance_rgb": 10.0,
        "smoothness_weight": 1.0, "smoothness_xy": 2.0, "stride": 1,
    },
}  # fmt: skip
CONSTANT = {"kind": "constant", "score": [0.2, 0.4]}
OBJECTS = {"kind": "objects", "net": BOUNDARY, "score": [0.2, 0.4], "share": [0.0, 0.5]}
PAMR = {"kind": "pamr", "dilations": [1, 2], "iterations": [1, 3], "long_side": 32}


def entry(**candidates: Any) -> CalibratedLabels:
    values = {
        "images": "weak", "source": "classifier", "input": "classifiers/any", "input_size": 65, "batch_size": 4,
        "selection": "stochastic", "rate": 0.8, "passes": 4, "form": "factorised", "normalise": "map",
        "views": {"scales": [1.0], "flip": False}, "calibrate": "strong", "folds": 2,
        "candidates": {
            "aggregations": [{"kind": "mean"}],
            "backgrounds": [{"kind": "constant", "score": [0.2, 0.4]}], "refinements": [{"kind": "none"}],
        } | candidates,
    }  # fmt: skip
    return CalibratedLabels.model_validate_json(json.dumps(values))


def test_every_combination_is_tried() -> None:
    candidates: Candidates = entry(
        aggregations=[{"kind": "union"}, {"kind": "quantile", "q": 0.9}], refinements=[AFFINITY, JOINT, CRF, PAMR]
    ).candidates
    tried = calibration.ways(candidates)
    assert len(tried) == 2 * 2 * 8
    assert len({str(calibration.plain(way)) for way in tried}) == len(tried)
    assert all(way.theta == getattr(way.background, "score", None) for way in tried), "no pixel is left unknown"
    assert [map_labels.way_of(calibration.plain(way)) for way in tried] == tried


def test_both_walks_have_one_net() -> None:
    with pytest.raises(ValidationError, match="by one net of boundaries; give both the same radius"):
        entry(refinements=[AFFINITY, JOINT | {"radius": 4}])


def test_folds_are_even_and_depend_on_no_order() -> None:
    ids = [f"image{number}" for number in range(11)]
    found = calibration.folds(ids, 3, 0)
    assert sorted(np.bincount(found).tolist()) == [3, 4, 4]
    turned = calibration.folds(ids[::-1], 3, 0)
    np.testing.assert_array_equal(found, turned[::-1])
    assert (calibration.folds(ids, 3, 1) != found).any()


def planted(score: float) -> tuple[Found, np.ndarray]:
    """An image whose map is right above `score`, and its mask."""
    grid = Grid(65, 8)
    maps = torch.full((1, 9, 9), 0.7 * score)
    maps[:, :, 5:] = min(1.0, 1.3 * score)
    mask = np.zeros((65, 65), dtype=np.uint8)
    mask[:, 36:] = 1
    assert grid.cells == 9
    return Found((1,), Merged(maps, maps, None), None, None), mask


def test_the_planted_best_score_is_chosen_and_what_to_expect_is_told() -> None:
    params = entry(backgrounds=[{"kind": "constant", "score": [0.1, 0.3, 0.5, 0.7]}])
    tried = calibration.ways(params.candidates)
    picture = np.zeros((65, 65, 3), dtype=np.uint8)
    counts = []
    for _ in range(4):
        found, mask = planted(0.5)
        counts.append(calibration.counted(found, tried, Grid(65, 8), picture, mask, Learned(None, None), 2))
    choice = calibration.choose(tried, np.stack(counts), np.array([0, 1, 0, 1]), params)
    assert choice.way.theta == 0.5
    assert choice.told["chosen"]["background"] == {"kind": "constant", "score": 0.5}
    assert choice.told["mean_iou"] > 0.95
    assert choice.told["mean_iou_of_folds_apart"] == choice.told["mean_iou"]
    assert [round(one["theta"], 1) for one in choice.told["tried"]] == [0.1, 0.3, 0.5, 0.7]
    by_score = {one["theta"]: one["mean_iou"] for one in choice.told["tried"]}
    assert max(by_score, key=by_score.__getitem__) == 0.5


def test_what_to_expect_is_worse_where_the_folds_disagree() -> None:
    params = entry(backgrounds=[{"kind": "constant", "score": [0.3, 0.6]}])
    tried = calibration.ways(params.candidates)
    picture = np.zeros((65, 65, 3), dtype=np.uint8)
    counts = []
    for score in (0.3, 0.6):
        found, mask = planted(score)
        counts.append(calibration.counted(found, tried, Grid(65, 8), picture, mask, Learned(None, None), 2))
    told = calibration.choose(tried, np.stack(counts), np.array([0, 1]), params).told
    assert told["mean_iou_of_folds_apart"] < told["mean_iou"]


def records(folder: Path, count: int, name: str) -> list[Record]:
    """Pictures with a bright half, its mask, and one tag or two."""
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = rng.integers(0, 60, (40, 50, 3)).astype(np.uint8)
        picture[:, 25:] += 150
        mask = np.zeros((40, 50), dtype=np.uint8)
        mask[:, 25:] = 1 + number % N_TAGS
        image, labels = folder / f"{name}{number}.jpg", folder / f"{name}{number}.png"
        Image.fromarray(picture).save(image)
        Image.fromarray(mask).save(labels)
        tags = (1 + number % N_TAGS,)
        made.append(make_record(f"{name}{number}", image, labels, 50, 40, tags, "train"))
    return made


def labels_of(params: CalibratedLabels, strong: list[Record], seed: int = 0) -> MapLabels:
    return MapLabels(params, stochastic_classifier(), strong, N_TAGS + 1, seed, Runtime())


@pytest.mark.parametrize("background", [CONSTANT, OBJECTS], ids=["constant", "objects"])
@pytest.mark.parametrize(
    "refinements",
    [[AFFINITY], [JOINT], [{"kind": "none"}, CRF], [PAMR]],
    ids=["affinity", "joint", "crf", "pamr"],
)
def test_it_reads_s_and_nothing_else_and_goes_on_where_it_was(
    refinements: list[dict[str, Any]], background: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks of other images may be anything, as labels are made."""
    strong, others = records(tmp_path, 5, "s"), records(tmp_path, 2, "w")
    for record in others:
        assert isinstance(record.labels, Path)
        record.labels.unlink()
    params = entry(refinements=refinements, backgrounds=[background])
    (tmp_path / "kept").mkdir()
    labels = labels_of(params, strong)
    told = labels.prepare(tmp_path / "kept")
    assert told["images"] == 5
    together = list(labels(others))
    for (cues, full), record in zip(together, others, strict=True):
        assert (cues.shape, full.shape) == ((9, 9), (40, 50))
        assert set(np.unique(full)) <= {0, *record.tags}, "calibrated labels leave nothing unknown"
    monkeypatch.setattr(calibration, "choose", None)  # what was chosen is not chosen again
    again = labels_of(params, strong)
    assert again.prepare(tmp_path / "kept") == told
    for record, (cues, full) in zip(others, together, strict=True):
        ((own_cues, own_full),) = again([record])
        np.testing.assert_array_equal(own_cues, cues, err_msg="batch mates change nothing")
        np.testing.assert_array_equal(own_full, full)


def test_maps_are_made_once_for_all_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    look = PseudoLabeller.__call__

    def watched(self: PseudoLabeller, images: Any, tags: Any, ids: Any = ()) -> list[Found]:
        seen.extend(ids)
        return look(self, images, tags, ids)

    monkeypatch.setattr(PseudoLabeller, "__call__", watched)
    strong = records(tmp_path, 4, "s")
    (tmp_path / "kept").mkdir()
    labels_of(
        entry(backgrounds=[{"kind": "constant", "score": [0.1, 0.2, 0.3]}], refinements=[{"kind": "none"}, PAMR]),
        strong,
    ).prepare(tmp_path / "kept")
    assert sorted(seen) == sorted(record.image_id for record in strong)


def test_too_few_masks_are_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="folds: found 2, but S has 1 images to calibrate on"):
        labels_of(entry(), records(tmp_path, 1, "s")).prepare(tmp_path)
