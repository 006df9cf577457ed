"""Evaluation of known predictions: files, numbers, shares, panels, and what cannot be scored."""

import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from segcore import made_of, systems
from segcore.config import plan, settings
from segcore.config.labels import CRFParams
from segcore.config.reading import section
from segcore.data.pictures import labels_png, read_image, read_labels, write_labels
from segcore.errors import Problem, Problems
from segcore.evaluation import inference, per_image, predictions, scoring
from segcore.evaluation.numbers import rounded
from segcore.evaluation.score_maps import ScoreMaps
from segcore.models.classifiers import save_classifier
from segcore.models.systems import save_system
from segcore.networks import classifiers
from segcore.networks.origin import Origin
from segcore.reporting import page, prediction_panels
from segcore.systems.contract import System
from stages import evaluate
from tests.devkit import PARAMS, make_record, write_params
from tests.invented import NAMES, SHAPES, invented_results, predictor, scenes, write_json
from tests.networks import laid, squares


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_results(tmp_path_factory.mktemp("results"))


def test_evaluation_files(results: Path) -> None:
    folder = results / "results/decouplednet"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {*page.SCORES, "images", "iou"}
    assert list(metrics["iou"]) == NAMES
    assert 0.3 < metrics["mean_iou"] < 1
    assert metrics["mean_iou"] == round(metrics["mean_iou"], 4)
    per_class = pd.read_csv(folder / "per_class.csv")
    assert per_class.columns.tolist() == ["class", "iou", "accuracy", "boundary_f"]
    counts = pd.read_csv(folder / "confusion_counts.csv", index_col="actual")
    assert np.diag(counts).sum() / counts.to_numpy().sum() == pytest.approx(metrics["pixel_accuracy"], abs=1e-4)
    rows = pd.read_csv(folder / "confusion.csv")
    assert set(rows.groupby("actual").size()) == {100}
    panels = sorted(path.name for path in (folder / "panels").iterdir())
    assert len(panels) == 9
    assert panels[0].startswith("00_best_")
    assert panels[8].startswith("08_worst_")


def test_evaluation_is_the_same_in_any_order_of_shares(results: Path, tmp_path: Path) -> None:
    params = settings.load(PARAMS).evaluation
    records = scenes(tmp_path / "scenes", 8)
    shares = [
        scoring.score(records[rank::2], predictor(records[rank::2], 0.0), len(NAMES), params, False)
        for rank in range(2)
    ]
    whole = scoring.score(records, predictor(records, 0.0), len(NAMES), params, False)
    for name, scores in (("two", shares[1] + shares[0]), ("one", whole)):
        scoring.write_results(scores, NAMES, tmp_path / name)
        prediction_panels.write_panels(scores.images, {r.image_id: r for r in records}, NAMES, 4, tmp_path / name)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_every_prediction_is_kept_as_it_was_scored(tmp_path: Path) -> None:
    params = settings.load(PARAMS).evaluation
    records = scenes(tmp_path / "scenes", 5)
    scores = scoring.score(records, predictor(records, 0.4), len(NAMES), params, False)
    scoring.write_results(scores, NAMES, tmp_path / "out")
    kept = predictions.Predictions(tmp_path / "out")
    assert kept.ids == {record.image_id for record in records}
    expected = predictor(records, 0.4)([read_image(record.image) for record in records])
    for record, prediction in zip(records, expected, strict=True):
        np.testing.assert_array_equal(kept.labels(record.image_id), prediction.labels)
    with zipfile.ZipFile(kept.file) as archive, archive.open("000.png") as member, Image.open(member) as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]


@pytest.mark.parametrize("cut", [0.5, 0.02])
def test_damaged_predictions_are_named(cut: float, tmp_path: Path) -> None:
    predictions.write(tmp_path, {"a": labels_png(np.ones((4, 4), np.uint8))})
    file = tmp_path / predictions.FILE
    content = bytearray(file.read_bytes())
    if cut > 0.1:
        file.write_bytes(content[: int(len(content) * cut)])
    else:
        content[60:80] = bytes(20)
        file.write_bytes(content)
    with pytest.raises(Problem, match="predictions.zip is damaged .* evaluate the system again"):
        predictions.Predictions(tmp_path).labels("a")


def test_damage_anywhere_is_told_or_harmless(tmp_path: Path) -> None:
    """Single bytes, whole stretches, cut files: never a traceback, never another prediction than was written."""
    random = np.random.default_rng(0)
    written = {f"i{k}": random.integers(0, 5, (20, 20)).astype(np.uint8) for k in range(4)}
    predictions.write(tmp_path, {image_id: labels_png(labels) for image_id, labels in written.items()})
    whole = (tmp_path / predictions.FILE).read_bytes()
    told = 0
    for _ in range(200):
        content, place = bytearray(whole), int(random.integers(len(whole)))
        stretch = int(random.choice([1, 40, len(whole)]))
        content[place : place + stretch] = b"" if stretch > 40 else bytes(random.integers(0, 256, stretch).tolist())
        (tmp_path / predictions.FILE).write_bytes(content)
        try:
            kept = predictions.Predictions(tmp_path)
            for image_id in kept.ids & written.keys():
                np.testing.assert_array_equal(kept.labels(image_id), written[image_id])
        except Problem as problem:
            told += "predictions.zip is damaged" in str(problem)
    assert told > 150


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The inputs of the stage: eight pictures and two systems with random weights and statistics of a few batches."""
    monkeypatch.chdir(tmp_path)
    given = settings.load(PARAMS)
    params = given.classifiers["decoupled_str"]
    params = params.model_copy(update={"backbone": params.backbone.model_copy(update={"width": 0.0625})})
    torch.manual_seed(0)
    classifier = classifiers.build(params.backbone, params.head, len(SHAPES))
    save_classifier(Path("classifier"), "decoupled_str", params, SHAPES, classifier)
    for name in ("deconvnet", "decouplednet"):
        training = laid(given.systems[name].training, {"network": {"width": 0.0625}})
        module = systems.load(name)
        into = section({"systems": {name: {"training": training}}}, f"systems.{name}.training", module.Training)
        system = module.build(into, Origin(SHAPES, params.backbone, classifier))
        system.finish([squares(3, n_tags=len(SHAPES))])
        card = json.loads(Path("classifier/model.json").read_text())
        save_system(Path(name), name, name, training, card, 96, system)
    rows = [asdict(record) | {"image_sha256": "", "labels_sha256": ""} for record in scenes(Path("scenes"), 8)]
    table = pd.DataFrame(rows).astype({"image": str, "labels": str})
    table.to_parquet("manifest.parquet")
    write_json(Path("classes.json"), NAMES)
    Path("val.txt").write_text("".join(f"{image_id}\n" for image_id in table["image_id"]))
    here = {"manifest": "manifest.parquet", "classes": "classes.json", "split": ".", "model": "deconvnet", "out": "out"}
    return {name: Path(path) for name, path in here.items()}


def test_the_stage_from_a_saved_model_to_its_files(untrained: dict[str, Any]) -> None:
    evaluate.main(system="deconvnet", **untrained, params=PARAMS)
    first = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert len(first) == 7 + 8
    assert json.loads(Path("out/metrics.json").read_text())["images"] == 8
    evaluate.main(system="deconvnet", **untrained, params=PARAMS)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == first


def with_crf(path: Path) -> Path:
    """Our parameters, by which DeconvNet's predictions are also refined."""
    return write_params(path, {"crfs.grid.stride": 4, "systems.deconvnet.prediction.crf": "grid"})


def test_metrics_with_a_crf_stand_beside_those_without(
    untrained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is written without one stays as it is; the numbers with it come from the refined labels alone."""
    refined, plain = inference.refined, read_results(untrained, PARAMS)

    def nothing_but_background(system: System, scores: ScoreMaps, image: np.ndarray, params: CRFParams) -> np.ndarray:
        found = refined(system, scores, image, params)
        assert found.shape == image.shape[:2]
        assert found.dtype == np.uint8
        return np.zeros_like(found)

    monkeypatch.setattr(inference, "refined", nothing_but_background)
    metrics = read_results(untrained, with_crf(Path("crf.yaml")))
    black = metrics["metrics.json"].pop("with_crf")
    assert metrics == plain
    assert list(black) == list(page.SCORES)
    truth = np.concatenate([read_labels(path).ravel() for path in sorted(Path("scenes").glob("*.png"))])
    assert black["pixel_accuracy"] == pytest.approx((truth[truth != 255] == 0).mean(), abs=1e-4)
    assert black["mean_iou_foreground"] == 0


def read_results(untrained: dict[str, Any], params: Path) -> dict[str, Any]:
    """What the stage writes."""
    evaluate.main(system="deconvnet", **untrained, params=params)
    files: dict[str, Any] = {path.name: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    del files[made_of.FILE]  # tells one file of parameters from another
    del files[per_image.FILE]  # has columns of its own for the CRF
    return files | {"metrics.json": json.loads(files["metrics.json"])}


def test_refined_labels_are_scored_as_predictions_are(tmp_path: Path) -> None:
    """In two shares, beside worse predictions."""
    params = settings.load(with_crf(tmp_path / "params.yaml")).evaluation
    records = scenes(tmp_path / "scenes", 6)
    rough, fine = (
        [one.labels for one in predictor(records, noise)([read_image(record.image) for record in records])]
        for noise in (1.0, 0.3)
    )

    def both(rank: int) -> scoring.Scores:
        pairs = iter(list(zip(rough, fine, strict=True))[rank::2])
        return scoring.score(
            records[rank::2],
            lambda images: [scoring.Prediction(*next(pairs)) for _ in images],
            len(NAMES),
            params,
            True,
        )

    scoring.write_results(both(0) + both(1), NAMES, tmp_path / "both")
    written = json.loads((tmp_path / "both/metrics.json").read_text())
    for labels, found in ((rough, written), (fine, written["with_crf"])):
        alone = iter(labels)
        scores = scoring.score(
            records,
            lambda images, alone=alone: [scoring.Prediction(next(alone)) for _ in images],
            len(NAMES),
            params,
            False,
        )
        assert {name: found[name] for name in page.SCORES} == rounded(scoring.summary(scores))
    assert written["mean_iou"] < written["with_crf"]["mean_iou"]


@pytest.mark.parametrize(
    ("system", "changes"),
    [
        ("decouplednet", {"threshold": 0.9}),
        ("decouplednet", {"weigh_by_probability": True}),
        ("deconvnet", {"views": "deep"}),
        ("deconvnet", {"proposals": 3}),
    ],
    ids=str,
)
def test_how_a_system_predicts_changes_without_training_again(
    system: str, changes: dict[str, Any], untrained: dict[str, Any], tmp_path: Path
) -> None:
    """One finished model, two files of parameters, two results; what training is handed is the same in both."""
    deep = {"scales": [0.5, 1.0], "flip": True}
    values = {f"systems.{system}.prediction.{key}": value for key, value in changes.items()}
    usual = {"systems.decouplednet.prediction.threshold": 0.0, "views.deep": deep}
    files = [write_params(tmp_path / f"{i}.yaml", usual | more) for i, more in enumerate(({}, values))]
    tables = []
    for file in files:
        before = {path: path.read_bytes() for path in Path(system).iterdir()}
        evaluate.main(system=system, **dict(untrained, model=Path(system)), params=file)
        assert {path: path.read_bytes() for path in Path(system).iterdir()} == before
        tables.append(Path("out/confusion_counts.csv").read_text())
    assert tables[0] != tables[1]
    trainings, evaluations = (
        [plan.plain(stage(settings.load(file), system)) for file in files]
        for stage in (plan.train_segmenter, plan.evaluate)
    )
    assert trainings[0] == trainings[1]
    assert evaluations[0] != evaluations[1]


def test_a_model_for_other_classes_is_refused(untrained: dict[str, Any]) -> None:
    write_json(untrained["classes"], [*NAMES, "zebra"])
    with pytest.raises(Problem, match="was trained for .* train it again"):
        evaluate.main(system="deconvnet", **untrained, params=PARAMS)


def test_a_system_that_does_not_exist_is_refused(untrained: dict[str, Any]) -> None:
    with pytest.raises(Problem, match="'deconvet'"):
        evaluate.main(system="deconvet", **untrained, params=PARAMS)


@pytest.mark.parametrize(("images", "panels"), [(24, 9), (24, 7), (4, 9), (1, 9), (3, 1), (0, 3)])
def test_panels_are_a_third_each_and_none_twice(images: int, panels: int) -> None:
    scored = [scoring.ScoredImage(f"{number:02d}", number / 30, b"") for number in range(images)]
    chosen = scoring.chosen(scored, panels)
    ids = [image.image_id for _, image in chosen]
    assert len(ids) == len(set(ids)) == min(images, panels)
    if (images, panels) == (24, 9):
        assert [kind for kind, _ in chosen] == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
        assert ids == ["23", "22", "21", "13", "12", "11", "02", "01", "00"]


def test_an_image_that_cannot_be_scored_is_named(tmp_path: Path) -> None:
    known = make_record("a", tmp_path / "a.jpg", None, 4, 4, (), "val")
    (tmp_path / "val.txt").write_text("a\nb\n")
    with pytest.raises(Problems, match=r"a: no labels to compare with") as caught:
        scoring.validation_records({"a": known}, tmp_path / "val.txt")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(("labels", "message"), [(np.zeros((3, 4)), "4x3 pixels"), (np.full((4, 4), 99), "label 99")])
def test_labels_that_do_not_fit_are_named(labels: np.ndarray, message: str, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    write_labels(tmp_path / "labels.png", labels.astype(np.uint8))
    record = make_record("a", tmp_path / "a.png", tmp_path / "labels.png", 4, 4, (), "val")
    with pytest.raises(Problem, match=message):
        scoring.score(
            [record],
            lambda _: [scoring.Prediction(np.zeros((4, 4), np.uint8))],
            3,
            settings.load(PARAMS).evaluation,
            False,
        )
