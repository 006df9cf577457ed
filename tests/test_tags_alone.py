"""A data set with tags and no masks: what learns from tags runs to its end, what needs masks is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from segcore.config import settings
from segcore.config.data import VocParams
from segcore.data.manifest import read_manifest
from segcore.errors import Problem, Problems
from segcore.evaluation.scoring import validation_records
from segcore.importers import voc
from stages import report
from tests.devkit import GONE, make_devkit, make_record, voc_section
from tests.tiny import run_stages, tiny_params

SYSTEMS = ("wssl_tags", "sec", "ficklenet")
DATA = Path("data/tiny")
NEED_MASKS = {
    **{f"systems.{name}": GONE for name in ("decouplednet", "decouplednet_str", "deconvnet", "deeplab", "dsrg")},
    **{f"systems.{name}": GONE for name in ("ficklenet_semi", "wssl")},
    **{f"classifiers.{name}": GONE for name in ("decoupled", "decoupled_str")},
}
"""Entries of the tests' parameters that learn from masks, or are made of those; `dsrg` for want of patience."""


def with_tags_alone(root: Path, splits_without: tuple[str, ...] = ("train", "val")) -> dict[str, Any]:
    """A devkit whose tags stand in a table, without the masks of some lists; its section `dataset`."""
    names = ("circle", "square", "star")
    tags = make_devkit(root / "voc", n_train=9, n_val=5, classes=names)
    lines = [f"{image_id},{' '.join(names[tag - 1] for tag in shown)}\n" for image_id, shown in tags.items()]
    (root / "voc/tags.csv").write_text("".join(["image_id,tags\n", *lines]))
    for mask in (root / "voc/SegmentationClass").iterdir():
        if mask.stem.partition("_")[0] in splits_without:
            mask.unlink()
    return voc_section("voc") | {"tags": {"kind": "csv", "file": "tags.csv"}}


def known() -> dict[str, Any]:
    prepared = DATA / "prepared"
    return {"manifest": prepared / "manifest.parquet", "classes": prepared / "classes.json", "split": DATA / "split"}


def begin(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.chdir(root)
    root.joinpath(DATA).mkdir(parents=True)
    tiny_params(root / "params.yaml", **changes)
    run_stages("check_params", data=DATA)
    run_stages("prepare", out=DATA / "prepared")


def divide() -> None:
    files = known()
    run_stages("split", manifest=files["manifest"], classes=files["classes"], out=files["split"], masks=DATA / "masks")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of tags alone, run to its report."""
    root = tmp_path_factory.mktemp("tags_alone")
    with pytest.MonkeyPatch.context() as monkeypatch:
        begin(root, monkeypatch, dataset=with_tags_alone(root), **NEED_MASKS)
        divide()
        files = known()
        classifier = DATA / "classifiers/ficklenet"
        run_stages("train_classifier", **files, name="ficklenet", out=classifier)
        run_stages("make_crops", **files, out=DATA / "crops")
        for name in ("deterministic", "ficklenet"):
            out = DATA / "pseudo_labels" / name
            run_stages("extract_pseudo_labels", **files, name=name, input=classifier, out=out)
        entries = settings.load(Path("params.yaml")).systems
        for name in SYSTEMS:
            made, entry = DATA / "segmenters" / name, entries[name]
            inputs = {"labels": DATA / entry.labels, "start": DATA / entry.start}
            run_stages("train_segmenter", **files, system=name, **inputs, out=made)
            run_stages("evaluate", **files, system=name, model=made / "model", out=DATA / "results" / name)
        report.main(data=DATA)
    return root


def test_prepare_says_that_tags_alone_are_measured(project: Path) -> None:
    card = json.loads((project / DATA / "prepared/dataset.json").read_text())
    assert card["masks"] == {"train": 0, "val": 0}
    assert card["warnings"]["tags_alone"] == 1
    counts = json.loads((project / DATA / "split/split.json").read_text())
    assert (counts["strong"], counts["weak"], counts["val"]) == (0, 9, 5)
    assert json.loads((project / DATA / "crops/crops.json").read_text())["crops"] == 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_of_tags_alone_is_scored_by_its_tags(project: Path, system: str) -> None:
    folder = project / DATA / "results" / system
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["measured"] == "tags"
    assert metrics["mean_iou"] is None
    assert {*metrics["iou"].values()} == {None}
    assert metrics["images"] == 5
    assert 0 < metrics["tags"]["mean_average_precision"] <= 1
    assert {*metrics["tags"]["average_precision"]} == {"circle", "square", "star"}
    assert "with_crf" not in metrics
    assert pd.read_csv(folder / "confusion_counts.csv", index_col="actual").to_numpy().sum() == 0
    assert len([*(folder / "panels").iterdir()]) == 3


def test_the_report_and_the_table_say_tags_only(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(project / DATA / "report/systems.csv", index_col="system")
    assert table["state"].tolist() == ["current"] * 3
    assert np.isnan(table["mean_iou"].to_numpy()).all()
    assert table["tag_mean_average_precision"].to_numpy().min() > 0
    html = (project / DATA / "report/index.html").read_text()
    assert "<strong>Tags only:</strong>" in html
    monkeypatch.chdir(project)
    from segcore.commands import show

    show.main(params=project / "params.yaml")
    said = capsys.readouterr().out
    assert "tags only: no validation image has a mask" in said
    assert all(system in said for system in SYSTEMS)


def test_systems_that_need_masks_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch, dataset=with_tags_alone(tmp_path))
    with pytest.raises(Problem, match="no training image has labels") as raised:
        divide()
    said = str(raised.value)
    for needing in ("classifiers.decoupled_str", "systems.decouplednet", "systems.deeplab", "systems.ficklenet_semi"):
        assert needing in said
    for name in (*SYSTEMS, "dsrg"):
        assert f"systems.{name}," not in said
        assert f"systems.{name};" not in said
    assert not (tmp_path / known()["split"] / "strong.txt").exists()


def test_masks_to_train_on_and_tags_to_measure_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch, dataset=with_tags_alone(tmp_path, ("val",)))
    divide()
    counts = json.loads((tmp_path / DATA / "split/split.json").read_text())
    assert counts["strong"] > 0
    records = validation_records(read_manifest(known()["manifest"]), known()["split"] / "val.txt")
    assert [record.labels for record in records] == [None] * 5


class TestOneMaskThatIsMissing:
    """Is a mistake where others are there."""

    def test_is_told_by_prepare(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset = with_tags_alone(tmp_path, ())
        (tmp_path / "voc/SegmentationClass/val_002.png").unlink()
        with pytest.raises(Problems, match="val_002"):
            begin(tmp_path, monkeypatch, dataset=dataset)

    def test_is_told_by_evaluate(self, tmp_path: Path) -> None:
        (tmp_path / "val.txt").write_text("a\nb\n")
        image = tmp_path / "x.jpg"
        records = {
            name: make_record(name, image, labels, 4, 4, (1,), "val")
            for name, labels in (("a", None), ("b", tmp_path / "b.png"))
        }
        with pytest.raises(Problems, match="a: no labels to compare with"):
            validation_records(records, tmp_path / "val.txt")

    def test_tags_that_come_from_masks_want_them_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with_tags_alone(tmp_path, ("val",))
        with pytest.raises(Problems):
            begin(tmp_path, monkeypatch, dataset=voc_section("voc"))


def test_the_reader_tells_a_list_without_masks(tmp_path: Path) -> None:
    params = VocParams.model_validate(with_tags_alone(tmp_path, ("val",)))
    listing = voc.read(tmp_path / "voc", params)
    assert not listing.problems
    assert [kind for kind, _ in listing.warnings] == ["tags_alone"]
    assert {entry.labels for entry in listing.entries if entry.split == "val"} == {None}
    assert np.all([entry.labels is not None for entry in listing.entries if entry.split == "train"])
