"""Fingerprints tell data sets and parameters apart, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segcore import made_of
from segcore.config import fingerprints
from segcore.config.settings import load
from segcore.data.manifest import data_set_fingerprint
from segcore.errors import Problem
from tests.devkit import PARAMS, make_record, write_params

RECORD = make_record("a", Path("here/a.jpg"), Path("here/a.png"), 4, 3, (1,), "train")
NAMES = ["background", "cat", "dog"]


def test_a_data_set_is_its_content_and_not_its_place() -> None:
    first = data_set_fingerprint([RECORD], NAMES)
    assert first == data_set_fingerprint([replace(RECORD, image=Path("/there/a.jpg"))], NAMES)
    others = [replace(RECORD, image_sha256="5"), replace(RECORD, tags=(2,)), replace(RECORD, labels_sha256=None)]
    different = [data_set_fingerprint([other], NAMES) for other in others]
    different += [data_set_fingerprint([RECORD], [*NAMES[:2], "cow"]), data_set_fingerprint([], NAMES)]
    assert len({first, *different}) == len(different) + 1


@pytest.mark.parametrize(
    ("changes", "concerned"),
    [
        ({"recipes.classifier.steps": 5}, {"classifiers/decoupled", "segmenters/decouplednet"}),
        ({"crops.per_subset": 5}, {"crops", "segmenters/decouplednet"}),
        ({"backbones.vgg_fine.width": 0.25}, {"classifiers/ficklenet", "pseudo_labels/ficklenet", "segmenters/sec"}),
        ({"pseudo_labels.ficklenet.passes": 5}, {"pseudo_labels/ficklenet"}),
        ({"systems.sec.prediction.crf": "grid", "evaluation.panels": 3}, set()),
        ({"recipes.common.workers": 3}, set()),
    ],
)
def test_a_result_is_of_all_parameters_behind_it(changes: dict[str, Any], concerned: set[str], tmp_path: Path) -> None:
    paths = ["classifiers/decoupled", "classifiers/ficklenet", "crops", "pseudo_labels/ficklenet"]
    paths += ["segmenters/decouplednet", "segmenters/sec"]
    before, after = load(PARAMS), load(write_params(tmp_path / "params.yaml", changes))
    different = {p for p in paths if fingerprints.expected(before, p) != fingerprints.expected(after, p)}
    assert different == concerned


def test_a_circle_is_refused(tmp_path: Path) -> None:
    again = {
        "images": "weak", "source": "segmenter", "input": "segmenters/sec", "views": "single", "batch_size": 4,
        "input_size": 97, "restrict_to_tags": True, "crf": None,
    }  # fmt: skip
    changes = {"pseudo_labels.again": again, "systems.sec.labels": "pseudo_labels/again"}
    settings = load(write_params(tmp_path / "params.yaml", changes))
    with pytest.raises(Problem, match="segmenters/sec is made from itself"):
        fingerprints.expected(settings, "segmenters/sec")


def test_what_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    assert made_of.read(tmp_path) == {}
    (tmp_path / made_of.FILE).write_text("{")
    assert made_of.read(tmp_path) == {}
    made_of.write(tmp_path / "new", {"training": "5"})
    assert made_of.read(tmp_path / "new") == {"training": "5"}
