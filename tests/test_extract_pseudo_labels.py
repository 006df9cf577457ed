"""Pseudo-labels through their stage: what lies in the folder, stops and restarts, sources, and what is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from segcore import files as whole_files
from segcore import made_of
from segcore.data import pseudo_labels
from segcore.data.geometry import Grid, resized_labels
from segcore.data.manifest import read_manifest
from segcore.data.pictures import read_labels
from segcore.errors import Problem, Problems
from segcore.localisation.deciding import Found
from segcore.localisation.labeller import PseudoLabeller
from segcore.models.systems import load_system
from tests.tiny import files, run_stages, tiny_dataset, tiny_params, train_stochastic

CELLS = 9
MANIFEST = Path("data/manifest.parquet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages before have run: two classifiers and a segmenter."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_dataset(folder)
    here = Path.cwd()
    try:
        os.chdir(folder)
        run_stages("prepare", "split", "make_crops", "train_classifier", "train_segmenter")
        train_stochastic()
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(autouse=True)
def inside(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def extract(out: Path, params: Path = Path("params.yaml"), **changes: Any) -> dict[str, bytes]:
    """Run the stage; all that it wrote."""
    run_stages("extract_pseudo_labels", out=out, params=params, **changes)
    return files(out)


def changed(folder: Path, **changes: Any) -> Path:
    """Parameters with other values in the entry."""
    return tiny_params(folder / "params.yaml", **{f"pseudo_labels.ficklenet.{k}": v for k, v in changes.items()})


def replaced(folder: Path, entry: dict[str, Any], **changes: Any) -> Path:
    """Parameters with another entry in its place, and other changes beside."""
    return tiny_params(folder / "params.yaml", **{"pseudo_labels.ficklenet": entry} | changes)


def test_the_folder_holds_cues_labels_list_quality_and_figure(tmp_path: Path) -> None:
    extract(tmp_path / "out")
    weak = Path("split/weak.txt").read_text().split()
    records = read_manifest(MANIFEST)
    assert pseudo_labels.listed(tmp_path / "out") == weak
    seen: set[int] = set()
    for image_id in weak:
        record = records[image_id]
        cues = read_labels(pseudo_labels.cue_file(tmp_path / "out", image_id))
        labels = read_labels(pseudo_labels.label_file(tmp_path / "out", image_id))
        assert cues.shape == (CELLS, CELLS)
        assert labels.shape == (record.height, record.width)
        assert set(np.unique(cues)) <= {0, 255, *record.tags}, "only tagged classes"
        assert set(np.unique(labels)) <= set(np.unique(cues))
        seen |= set(np.unique(cues).tolist())
    assert seen == {0, 1, 2, 3, 255}, "what the tests here compare is no empty page"
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert {"precision", "recall", "coverage", "mean_iou"} <= set(quality)
    assert Image.open(tmp_path / "out/figure.png").width > 400
    assert not list(Path(".scratch").glob("pseudo-labels-*")), "nothing is left behind"


def test_after_a_stop_it_goes_on_with_the_batch_that_it_was_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second batch of two images: the first batch is not labelled again, and the end is the same."""
    whole = extract(tmp_path / "whole")
    weak = Path("split/weak.txt").read_text().split()
    label, write = PseudoLabeller.__call__, whole_files.write_atomically
    labelled: list[str] = []
    written: list[Path] = []

    def watched(self: PseudoLabeller, images: list[Tensor], tags: list[tuple[int, ...]], ids: list[str]) -> list[Found]:
        labelled.extend(ids)
        return label(self, images, tags, ids)

    def until_the_seventh(path: Path, content: bytes) -> None:
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(PseudoLabeller, "__call__", watched)
    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "write_atomically", until_the_seventh)
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "stopped")
    assert labelled == weak[:4]
    assert not (tmp_path / "stopped").exists()
    labelled.clear()
    assert extract(tmp_path / "stopped") == whole
    assert labelled == weak[2:]


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_stop_while_results_are_moved_loses_none(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over an older folder, too; what is there half-way is no folder of pseudo-labels to anybody."""
    out = tmp_path / "out"
    whole = extract(out)
    moved: list[Path] = []

    def some(source: Path, target: Path) -> None:
        if len(moved) == at:
            raise KeyboardInterrupt
        moved.append(target)
        source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", some)
        with pytest.raises(KeyboardInterrupt):
            extract(out)
    with pytest.raises(Problem, match="holds no pseudo-labels"):
        pseudo_labels.listed(out)
    assert extract(out) == whole


def but_for_its_origin(folder: dict[str, bytes]) -> dict[str, bytes]:
    """All files but the one that tells the parameters apart."""
    return {name: content for name, content in folder.items() if name != made_of.FILE}


def test_labels_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    ours, alone = (extract(tmp_path / str(size), changed(tmp_path, batch_size=size)) for size in (4, 1))
    assert but_for_its_origin(ours) == but_for_its_origin(alone)


def test_the_forms_give_the_same_labels(tmp_path: Path) -> None:
    ours, published = (extract(tmp_path / form, changed(tmp_path, form=form)) for form in ("factorised", "expanded"))
    assert but_for_its_origin(ours) == but_for_its_origin(published)


CUES = {"source": "cues_file", "input": "cues/theirs.npz", "input_size": 65, "batch_size": 2, "images": "weak"}
SEGMENTER = {
    "source": "segmenter", "input": "segmenters/decouplednet", "images": "weak", "input_size": 64, "batch_size": 2,
    "views": "single", "restrict_to_tags": True, "crf": None,
}  # fmt: skip


def npz(path: Path, cells: int = CELLS, leave_out: int = 0, label: int | None = None) -> Path:
    """Cues of the first tag of every image, or of one label for all."""
    ids = Path("split/weak.txt").read_text().split()[leave_out:]
    labels = np.full((len(ids), cells, cells), 255, np.uint8)
    records = read_manifest(Path("data/manifest.parquet"))
    for row, image_id in enumerate(ids):
        labels[row, 2:5, 2:5] = records[image_id].tags[0] if label is None else label
    np.savez(path, image_ids=np.array(ids), labels=labels)
    return path


def test_published_cues_are_taken_as_they_are(tmp_path: Path) -> None:
    params = replaced(tmp_path, CUES)
    extract(tmp_path / "out", params, input=npz(tmp_path / "cues.npz"))
    first = pseudo_labels.listed(tmp_path / "out")[0]
    cues = read_labels(pseudo_labels.cue_file(tmp_path / "out", first))
    assert (cues[2:5, 2:5] == 1).all()
    assert (cues == 1).sum() == 9
    labels = read_labels(pseudo_labels.label_file(tmp_path / "out", first))
    np.testing.assert_array_equal(labels, Grid(65, 8).at_pixels(cues, *labels.shape))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cells": 7}, "found cues of 7 x 7 cells; an input_size of 65 has 9 x 9; set input_size to 49"),
        ({"leave_out": 1}, "lacks 1 of 9 images: 'train_000'"),
        ({"label": 1}, r"the cues of \d of 9 images show classes that the images' tags lack: train_"),
        ({"label": 77}, "has label 77"),
    ],
)
def test_cues_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, int], said: str) -> None:
    params = replaced(tmp_path, CUES)
    with pytest.raises(Problem, match=said):
        extract(tmp_path / "out", params, input=npz(tmp_path / "cues.npz", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{}, {"crf": "grid", "views": "deep"}], ids=["plain", "refined"])
def test_a_segmenters_predictions_hold_tagged_classes_only(tmp_path: Path, changes: dict[str, Any]) -> None:
    shared = {"views.deep": {"scales": [1.0, 1.5], "flip": True}, "crfs.grid.stride": 4}
    params = replaced(tmp_path, SEGMENTER | changes, **shared)
    extract(tmp_path / "out", params, input=Path("segmenter"))
    records = read_manifest(MANIFEST)
    for image_id in pseudo_labels.listed(tmp_path / "out"):
        labels = read_labels(pseudo_labels.label_file(tmp_path / "out", image_id))
        assert set(np.unique(labels)) <= {0, *records[image_id].tags}
        cues = read_labels(pseudo_labels.cue_file(tmp_path / "out", image_id))
        square = resized_labels(labels, 64, 64)
        np.testing.assert_array_equal(cues, square[::8, ::8], err_msg="what training on the labels reads at the cells")


def test_a_segmenter_is_trained_again_on_its_own_predictions(tmp_path: Path) -> None:
    """The second step of the paper: cues teach a first one, whose predictions teach another from its weights."""
    second = {
        "module": "deeplab", "start": "segmenters/ficklenet", "images": "weak", "labels": "pseudo_labels/again",
        "training": {"recipe": "grid", "network": "grid", "geometry": {"kind": "stretched"}},
        "prediction": {"views": "single", "crf": None},
    }  # fmt: skip
    labels = SEGMENTER | {"input": "segmenters/ficklenet", "input_size": 65, "views": "deep"}
    values = {"systems.again": second, "pseudo_labels.again": labels}
    values["views.deep"] = {"scales": [1.0, 1.5], "flip": False}
    params = tiny_params(tmp_path / "params.yaml", **values)
    cues, made, predicted, again = (tmp_path / name for name in ("cues", "made", "predicted", "again"))
    extract(cues, params)
    begin = Path("stochastic")
    run_stages("train_segmenter", system="ficklenet", labels=cues, start=begin, out=made, params=params)
    extract(predicted, params, name="again", input=made)
    run_stages("train_segmenter", system="again", labels=predicted, start=made, out=again, params=params)
    once = {"views": {"scales": [1.0], "flip": False}, "crf": None}
    old, its_card = load_system(made / "model", once, torch.device("cpu"))
    new, card = load_system(again / "model", once, torch.device("cpu"))
    assert card["origin"] == its_card["origin"]
    assert (card["origin"]["name"], card["input_size"]) == ("ficklenet", 65)
    assert new.state_dict().keys() == old.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))


def test_a_classifier_without_a_stochastic_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="stochastic"):
        extract(tmp_path / "out", input=Path("classifier"))


def test_a_classifier_of_other_classes_is_refused(tmp_path: Path) -> None:
    names = json.loads(Path("data/classes.json").read_text())
    (tmp_path / "classes.json").write_text(json.dumps([*names[:-1], "zebra"]))
    with pytest.raises(Problem, match=f"has tags that are no classes of the data set, {names[-1]} first"):
        extract(tmp_path / "out", classes=tmp_path / "classes.json")
    split = shutil.copytree("split", tmp_path / "split")
    (split / "tags.csv").write_text((split / "tags.csv").read_text().replace(names[-1], "zebra"))
    with pytest.raises(Problem, match="was trained for .* train it again"):
        extract(tmp_path / "out", classes=tmp_path / "classes.json", split=split)


def test_saliency_maps_that_are_missing_are_all_named(tmp_path: Path) -> None:
    params = changed(tmp_path, background={"kind": "saliency", "root": str(tmp_path), "threshold": 0.06})
    weak = Path("split/weak.txt").read_text().split()
    Image.fromarray(np.full((40, 48), 200, np.uint8)).save(tmp_path / f"{weak[0]}.png")
    with pytest.raises(Problems) as caught:
        extract(tmp_path / "out", params)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{len(weak) - 1} times, {weak[1]}.png, ")
    assert "this map is missing" in problem


def test_an_external_saliency_map_says_what_is_background(tmp_path: Path) -> None:
    params = changed(
        tmp_path, background={"kind": "saliency", "root": str(tmp_path / "maps"), "threshold": 0.06}, theta=0.99
    )
    (tmp_path / "maps").mkdir()
    for image_id in Path("split/weak.txt").read_text().split():
        bright = np.full((40, 48), 200, np.uint8)
        bright[:, :24] = 0
        Image.fromarray(bright).save(tmp_path / f"maps/{image_id}.png")
    extract(tmp_path / "out", params)
    for image_id in pseudo_labels.listed(tmp_path / "out"):
        cues = read_labels(pseudo_labels.cue_file(tmp_path / "out", image_id))
        assert (cues[:, 5:] != 0).all()
        assert (cues[:, :4] != 255).all()


VIEWS = {"scales": [1.0, 1.5], "flip": True}


@pytest.mark.parametrize("aggregation", [{"kind": "mean"}, {"kind": "quantile", "q": 0.8}, {"kind": "union"}])
def test_labels_of_several_views_depend_on_no_batch(aggregation: dict[str, Any], tmp_path: Path) -> None:
    settings = {"aggregation": aggregation, "views": "deep", "background": {"kind": "constant", "score": 0.3}}

    def made(size: int) -> dict[str, bytes]:
        entry = {f"pseudo_labels.ficklenet.{k}": v for k, v in (settings | {"batch_size": size}).items()}
        params = tiny_params(tmp_path / "params.yaml", **{"views.deep": VIEWS}, **entry)
        return extract(tmp_path / str(size), params)

    several = made(4)
    assert but_for_its_origin(several) == but_for_its_origin(made(1))
    assert but_for_its_origin(several) != but_for_its_origin(extract(tmp_path / "published"))
    told = json.loads(several["calibration.json"])
    assert told["calibrate"] is None
    assert told["chosen"]["aggregation"] == aggregation


SMALL = {"width": 4, "steps": 4, "batch_size": 2, "learning_rate": 0.01, "examples": 10}
CALIBRATED = {
    "images": "weak", "source": "classifier", "input": "classifiers/ficklenet", "input_size": 65, "batch_size": 2,
    "selection": "stochastic", "rate": 0.8, "passes": 4, "form": "factorised", "normalise": "map", "views": "single",
    "calibrate": "strong", "folds": 2,
    "candidates": {
        "aggregations": [{"kind": "mean"}, {"kind": "quantile", "q": 0.9}],
        "backgrounds": [{"kind": "constant", "score": [0.2, 0.4]}],
        "refinements": [
            {"kind": "none"},
            {"kind": "crf", "crf": "grid", "confidence": [0.7], "long_side": 24},
            {"kind": "affinity", "radius": 3, "beta": [4.0], "steps": [2, 8], "boundary": SMALL},
        ],
    },
}  # fmt: skip


def test_calibrated_labels_tell_what_was_chosen_and_go_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second try calibrates no more; the masks of other images than S are not opened before quality is measured."""
    params = replaced(tmp_path, CALIBRATED)
    whole = extract(tmp_path / "whole", params)
    told = json.loads(whole["calibration.json"])
    strong = Path("split/strong.txt").read_text().split()
    assert (told["images"], told["folds"], len(told["tried"])) == (len(strong), 2, 2 * 2 * 4)
    assert told["mean_iou"] == max(one["mean_iou"] for one in told["tried"])
    read: list[Path] = []

    def noted(path: Path) -> Any:
        read.append(path)
        return read_labels(path)

    monkeypatch.setattr("segcore.evaluation.map_labels.read_labels", noted)
    write = whole_files.write_atomically
    written: list[Path] = []

    def until_the_first_label(path: Path, content: bytes) -> None:
        if path.suffix == ".png":
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "write_atomically", until_the_first_label)
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "stopped", params)
    assert {path.stem for path in read} <= {*strong}
    assert read
    read.clear()
    assert extract(tmp_path / "stopped", params) == whole
    assert read == []


def test_one_walk_with_given_settings_learns_from_s(tmp_path: Path) -> None:
    walk = {"kind": "affinity", "radius": 3, "beta": 4.0, "steps": 4, "boundary": SMALL}
    changes = {"refinement": walk, "aggregation": {"kind": "mean"}, "background": {"kind": "constant", "score": 0.3}}
    walked, alone = (extract(tmp_path / str(size), changed(tmp_path, **changes, batch_size=size)) for size in (4, 1))
    assert but_for_its_origin(walked) == but_for_its_origin(alone)
    assert json.loads(walked["calibration.json"])["chosen"]["refinement"]["steps"] == 4


def test_there_is_no_such_set(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no pseudo-label set 'fickelnet' .* deterministic, ficklenet"):
        extract(tmp_path / "out", name="fickelnet")
