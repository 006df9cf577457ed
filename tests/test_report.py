"""The report on a tree of invented results: a page that stands alone and a table that is deterministic."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from segcore.cli import provenance
from segcore.config import reading
from segcore.errors import Problems
from segcore.reporting import charts
from segcore.reporting.page import SCORES, read_timings, supervision
from stages import report
from tests.devkit import PARAMS, write_params
from tests.invented import NAMES, NOISE, invented_results, write_json

PANELS = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_results(tmp_path_factory.mktemp("results"), panels=PANELS)


@pytest.fixture
def project(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to run the stage in."""
    shutil.copytree(results.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_report(params: Path = PARAMS) -> str:
    report.main(out=Path("data/report"), params=params)
    return Path("data/report/index.html").read_text()


def test_the_page_stands_alone_and_holds_every_part(project: Path) -> None:
    page = write_report()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:image/webp;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert len([source for source in sources if source.startswith("data:")]) == len(NOISE) * PANELS + 1 + 2
    for part in (
        "systems",
        "pictures",
        "classes",
        "confusion",
        "learning",
        "tags",
        "pseudo-labels",
        "crops",
        "data",
        "run",
    ):
        assert f'<section id="{part}"' in page
    assert page.count('<svg class="chart"') == 3
    assert "not recorded on this machine" in page
    assert "1:15 min" in page
    assert "strong_per_class: 5" in page
    assert "not comparable" in page
    assert "in<br>the paper" not in page


def test_the_table_is_deterministic_and_the_best_comes_first(project: Path) -> None:
    write_report()
    first = Path("data/report/systems.csv").read_bytes()
    page = write_report()
    assert Path("data/report/systems.csv").read_bytes() == first
    table = pd.read_csv("data/report/systems.csv", dtype={"masks_per_class": str}, keep_default_na=False)
    assert table["system"].tolist() == list(NOISE)
    assert table["tagged_images"].tolist() == [1000, 0, 0, 0, 1000, 1000, 1000, 1000]
    assert table["strong_images"].tolist() == [50, 50, 50, 50, 0, 0, 0, 50]
    assert table["masks_per_class"].tolist() == ["5", "5", "5", "5", "none", "none", "none", "5"]
    assert (
        table.loc[0, "mean_iou"] == json.loads(Path("data/results/decouplednet/metrics.json").read_text())["mean_iou"]
    )
    assert page.index("</span>decouplednet<") < page.index("</span>deconvnet<")


def test_the_papers_numbers_stand_beside_ours_on_voc(project: Path) -> None:
    Path("voc.yaml").write_text(PARAMS.read_text().replace("layout: shapes ", "layout: voc "))
    page = write_report(Path("voc.yaml"))
    assert "in<br>the paper" in page
    assert all(f"<td>{number}</td>" in page for number in (53.1, 32.7, 15.3, 61.2, 59.0, 50.7))


RETRAINED = {
    "pseudo_labels.deterministic.source": "segmenter",
    "pseudo_labels.deterministic.input": "data/segmenters/ficklenet_semi/model",
}


@pytest.mark.parametrize(
    ("system", "changes", "masks", "by_tags"),
    [
        ("decouplednet", {}, 5, True),
        ("decouplednet", {"split.strong": "all"}, "all", True),
        ("decouplednet_str", {}, 5, False),
        ("deconvnet", {"split.strong": "list", "split.strong_list": "own.txt"}, "own list", False),
        ("deeplab", {}, 5, False),
        ("deeplab", {"systems.deeplab.start": "data/classifiers/decoupled/model"}, 5, True),
        (
            "deeplab",
            {"systems.deeplab.start": "data/classifiers/decoupled/model", "systems.deeplab.encoder": "backbone"},
            *(5, False),
        ),
        ("sec", {}, None, True),
        ("dsrg", {}, None, True),
        ("ficklenet", {}, None, True),
        ("ficklenet", {"systems.ficklenet.encoder": "backbone"}, None, True),
        ("ficklenet_semi", {}, 5, True),
        # a weight of 0 sees no masks, whatever images are named
        ("ficklenet_semi", {"systems.ficklenet_semi.full_weight": 0.0}, None, True),
        # somebody's cues of the strong images are neither our masks nor our tags
        (
            "deeplab",
            {
                "systems.deeplab.labels": "data/pseudo_labels/ficklenet",
                "pseudo_labels.ficklenet.images": "strong",
                "pseudo_labels.ficklenet.source": "cues_file",
            },
            *(None, False),
        ),
        # trained again on what a system predicts that had seen masks, or from its weights
        ("sec", RETRAINED, 5, True),
        ("sec", {"systems.sec.start": "data/segmenters/ficklenet_semi/model"}, 5, True),
        ("sec", RETRAINED | {"systems.ficklenet_semi.full_weight": 0.0}, None, True),
        ("deeplab", {"systems.deeplab.start": "data/segmenters/ficklenet/model"}, 5, True),
    ],
)
def test_masks_and_tags_are_traced_to_where_they_came_in(
    system: str, changes: dict[str, Any], masks: int | str | None, by_tags: bool, tmp_path: Path
) -> None:
    settings = reading.load(write_params(tmp_path / "params.yaml", changes))
    assert supervision(system, settings) == (masks, by_tags)


def test_a_column_with_the_crf_where_one_was_scored(project: Path) -> None:
    assert "with CRF" not in write_report()
    file = Path("data/results/sec/metrics.json")
    write_json(file, json.loads(file.read_text()) | {"with_crf": dict.fromkeys(SCORES, 0.6789)})
    page = write_report()
    assert page.count("with CRF") == 1
    assert page.count("<td>67.9</td>") == 1


def test_without_pseudo_labels_the_page_has_no_such_part(project: Path) -> None:
    systems = reading.load(PARAMS).raw["systems"]
    kept = {name: systems[name] for name in ("decouplednet", "deconvnet")}
    write_params(Path("fewer.yaml"), {"pseudo_labels": {}, "systems": kept})
    page = write_report(Path("fewer.yaml"))
    assert "seudo-label" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert set(pd.read_csv("data/report/systems.csv")["system"]) == set(kept)


def test_missing_pseudo_labels_name_the_stage_to_run(project: Path) -> None:
    Path("data/pseudo_labels/ficklenet/quality.json").unlink()
    with pytest.raises(Problems, match="dvc repro extract_pseudo_labels@ficklenet"):
        write_report()


def test_what_users_wrote_is_escaped(project: Path) -> None:
    Path("own.yaml").write_text(PARAMS.read_text() + "# <script>alert(1)</script>\n")
    assert "<script>" not in write_report(Path("own.yaml"))


def test_missing_results_name_the_stage_to_run(project: Path) -> None:
    shutil.rmtree("data/results/deconvnet")
    Path("data/crops/crops.json").unlink()
    with pytest.raises(Problems, match="dvc repro evaluate@deconvnet") as caught:
        write_report()
    assert "dvc repro make_crops" in str(caught.value)
    assert not Path("data/report").exists()


def test_a_system_without_any_score_still_has_a_row(project: Path) -> None:
    file = Path("data/results/deconvnet/metrics.json")
    metrics = json.loads(file.read_text())
    write_json(file, metrics | dict.fromkeys(SCORES) | {"iou": dict.fromkeys(NAMES)})
    assert "deconvnet" in write_report()


def test_a_score_that_no_system_has_is_no_best_one(project: Path) -> None:
    for file in Path("data/results").glob("*/metrics.json"):
        write_json(file, json.loads(file.read_text()) | dict.fromkeys(SCORES))
    assert "deconvnet" in write_report()


def test_curves_of_every_kind_are_drawn() -> None:
    step = np.arange(1000.0)
    for values in (np.zeros(1000), np.full(1000, 3.0), np.exp(-step / 100), -step, np.where(step > 5, np.nan, step)):
        chart = charts.line_chart({"<a>": (step, values)}, "step", "loss", {"<a>": 9})
        assert chart.startswith("<svg")
        assert "nan" not in chart
        assert "<a>" not in chart
        assert 's1"' in chart
    assert charts.line_chart({"a": (step, step * np.nan)}, "step", "loss", {"a": 0}) == ""
    assert charts.line_chart({"a": (step[:1], step[:1])}, "step", "loss", {"a": 0}).startswith("<svg")


def test_smoothing_keeps_lines_but_for_the_end() -> None:
    line = np.linspace(3.0, 9.0, 161)
    np.testing.assert_allclose(charts.smoothed(line)[:151], line[:151])
    assert line[150] < charts.smoothed(line)[-1] < line[160]
    assert charts.smoothed(np.array([5.0]))[0] == 5


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.13, 7.0, [0.1, 0.2, 0.5, 1, 2, 5, 10]),
        (0.002, 4.0, [0.001, 0.01, 0.1, 1, 10]),
        (1e-9, 1.0, [1e-9, 1e-7, 1e-5, 1e-3, 0.1, 10]),
        (1.0, 100.0, [1, 2, 5, 10, 20, 50, 100]),
    ],
)
def test_logarithmic_axes_are_tight_and_sparse(low: float, high: float, ticks: list[float]) -> None:
    assert charts._log_ticks(low, high) == pytest.approx(ticks)


def test_run_times_are_read_where_run_writes_them(project: Path) -> None:
    assert set(read_timings(provenance.TIMINGS)) == {
        "prepare",
        "train_classifier@decoupled",
        "evaluate@deconvnet",
    }
