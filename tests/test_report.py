"""The report and the table on a tree of invented results: what is there, in which state, and nothing of other data."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from segcore import made_of
from segcore.cli import provenance
from segcore.commands import show
from segcore.config import fingerprints, plan
from segcore.config.classifiers import TrainedParams
from segcore.config.settings import load
from segcore.errors import Problem
from segcore.importers import voc
from segcore.reporting import charts
from segcore.reporting.comparison import told
from segcore.reporting.results import SCORES, Results
from segcore.reporting.supervision import supervision
from stages import report
from tests.devkit import PARAMS, voc_section, write_params
from tests.invented import NAMES, SYSTEMS, invented_results, write_json

PANELS = 2
DATA = Path("data/shapes")
FIRST, LAST = SYSTEMS[0], SYSTEMS[-1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    invented_results(root, panels=PANELS)
    return root


@pytest.fixture
def project(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to run the stage in."""
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_report(changes: Mapping[str, Any] | None = None) -> str:
    """The page by parameters in which these values are others."""
    if changes is not None:
        write_params(Path("params.yaml"), changes)
    report.main(data=DATA)
    return (DATA / "report/index.html").read_text()


def table() -> pd.DataFrame:
    return pd.read_csv(DATA / "report/systems.csv", dtype={"masks_per_class": str}, keep_default_na=False)


def states() -> dict[str, str]:
    return {row["system"]: f"{row['state']}: {row['why']}".removesuffix(": ") for row in table().to_dict("records")}


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', page)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show.main()
    return capsys.readouterr().out


def test_the_page_stands_alone_and_holds_every_part(project: Path) -> None:
    page = write_report()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:image/webp;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    n_sets = len(load(PARAMS).pseudo_labels)
    assert len([source for source in sources if source.startswith("data:")]) == 1 + n_sets
    every = ["systems", "pictures", "classes", "confusion", "learning", "tags", "pseudo-labels", "crops", "data", "run"]
    assert sections(page) == every
    assert page.count('<svg class="chart"') == 3
    assert "not recorded on this machine" in page
    assert "1:15 min" in page
    assert "(5 per class)" in page
    assert "not comparable" in page
    assert "in<br>the paper" not in page
    assert "Missing or stale" not in page


def test_the_table_is_deterministic_and_the_best_comes_first(project: Path) -> None:
    page = write_report()
    first = (DATA / "report/systems.csv").read_bytes()
    write_report()
    assert (DATA / "report/systems.csv").read_bytes() == first
    read = table()
    assert read["system"].tolist() == SYSTEMS
    assert set(read["state"]) == {"current"}
    settings, count = load(PARAMS), {True: (1000, 50), False: (0, 0)}
    for row in read.to_dict("records"):
        masks, by_tags = supervision(row["system"], settings)
        expected = count[by_tags][0], count[masks is not None][1], str(masks or "none")
        assert (row["tagged_images"], row["strong_images"], row["masks_per_class"]) == expected
    metrics = json.loads((DATA / f"results/{FIRST}/metrics.json").read_text())
    assert float(read.loc[0, "mean_iou"]) == metrics["mean_iou"]  # type: ignore[arg-type]
    assert page.index(f"</span>{FIRST}<") < page.index(f"</span>{LAST}<")
    assert f'<tr class="lead-row">\n<td><span class="dot s0"></span>{FIRST}<' in page


def test_differences_stand_with_their_intervals(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = write_report()
    read = table().set_index("system").astype(dict.fromkeys(("over_next_low", "over_next_high"), str))
    compared = Results(DATA, load(PARAMS)).compared
    ranked = list(compared)
    over = compared[ranked[0]].over_next
    assert over is not None
    assert over.images == 24
    assert float(read.loc[ranked[0], "over_next_low"]) == pytest.approx(over.low, abs=1e-4)  # type: ignore[arg-type]
    assert read.loc[ranked[-1], "over_next_low"] == ""
    assert told(over) in page
    assert told(over) in shown(capsys)
    masks_only = [name for name in ranked if read.loc[name, "tagged_images"] == 0]
    assert compared[masks_only[0]].over_masks is None
    assert all(compared[name].over_masks is not None for name in ranked if name != masks_only[0])


@pytest.mark.parametrize(
    ("changes", "stale", "why"),
    [
        ({"seed": 1}, None, "other data, another split, other tags, other training"),
        ({"dataset.size": 64}, None, "other data"),
        ({"split.strong.images": 7}, None, "another split, other tags"),
        ({"evaluation.boundary_tolerance": 0.01}, None, "other prediction"),
        ({f"systems.{FIRST}.prediction.crf": "grid"}, {FIRST}, "other prediction"),
        ({"recipes.common.checkpoint_every": 50}, set(), ""),
    ],
)
def test_a_row_says_why_it_is_stale(changes: dict[str, Any], stale: set[str] | None, why: str, project: Path) -> None:
    page = write_report(changes)
    stale = set(SYSTEMS) if stale is None else stale
    assert states() == {name: f"stale: {why}" if name in stale else "current" for name in SYSTEMS}
    assert page.count(f'<span class="mark">stale: {why}') == len(stale)
    assert all(f"dvc repro evaluate@{name}<" in page for name in stale)
    assert ("pictures" in sections(page)) == (len(stale) < len(SYSTEMS))
    for name, stage in (("data", "prepare"), ("split", "split")):
        assert (f"<code>dvc repro {stage}<" in page) == (f"other {name}" in why or f"another {name}" in why)


def test_what_a_system_starts_from_makes_it_stale(project: Path) -> None:
    """Its own entry stays as it is; the classifier's recipe is another."""
    settings = load(PARAMS)
    page = write_report({"recipes.stochastic.steps": 5})
    trained = {name: one for name, one in settings.classifiers.items() if isinstance(one, TrainedParams)}
    starts = {f"classifiers/{name}" for name, classifier in trained.items() if classifier.recipe == "stochastic"}
    stale = {name for name, entry in settings.systems.items() if entry.start in starts}
    assert 0 < len(stale) < len(SYSTEMS)
    assert {name for name, state in states().items() if state == "stale: other training"} == stale
    for name in starts:
        assert f"dvc repro train_{name.replace('classifiers/', 'classifier@')}<" in page
        assert f"</span>{name.removeprefix('classifiers/')}</td><td>weak" not in page


def test_a_stale_row_never_ranks_first(project: Path) -> None:
    page = write_report({f"systems.{FIRST}.prediction.crf": "grid"})
    ranked = [row.system for row in Results(DATA, load(Path("params.yaml"))).ranked]
    assert ranked[-1] == FIRST
    places = [page.index(f"</span>{name}<") for name in ranked]
    assert places == sorted(places)
    assert f"<strong>{ranked[0]}</strong> comes first" in page
    current = page[page.index('<section id="pictures"') : page.index('<section id="data"')]
    assert f"</span>{FIRST}</summary>" not in current
    assert f'"name": "{FIRST}"' not in current


def test_results_of_other_data_under_the_same_name_are_stale(project: Path) -> None:
    card = json.loads((DATA / "prepared/dataset.json").read_text())
    write_json(DATA / "prepared/dataset.json", card | {"fingerprint": "of_other_data"})
    page = write_report()
    assert set(states().values()) == {"stale: other data"}
    assert "No result is of today" in page
    assert sections(page) == ["systems", "data", "run"]


def test_other_tags_make_everything_stale_that_saw_any(project: Path) -> None:
    """Made by today's parameters, of a split that was made anew: the lists are the same, the tags are not."""
    write_report()
    assert set(states().values()) == {"current"}
    (DATA / "split/tags.csv").write_text("image_id,tags\nw0,ring\n")
    write_report()
    assert set(states().values()) == {"stale: other tags"}
    results = Results(DATA, load(Path("params.yaml")))
    stale = {part.path: part.why for part in results.wanting}
    assert stale.keys() == {part.path for part in results.parts} - {"prepared", "split", "crops"}
    assert set(stale.values()) == {"other tags"}


def test_tag_noise_makes_results_stale_before_the_split_is_made_anew(project: Path) -> None:
    write_report({"split.tag_noise": {"drop": 0.2, "add": 0.05}})
    assert set(states().values()) == {"stale: another split, other tags"}


def test_results_without_origin_are_stale(project: Path) -> None:
    (DATA / f"results/{FIRST}" / made_of.FILE).unlink()
    write_report()
    assert states()[FIRST] == "stale: no made_of.json beside it"


def test_the_page_of_one_system_and_nothing_else(project: Path) -> None:
    for folder in ("classifiers", "crops", "pseudo_labels", "segmenters"):
        shutil.rmtree(DATA / folder)
    for name in SYSTEMS[1:]:
        shutil.rmtree(DATA / "results" / name)
    (DATA / f"results/{FIRST}/predictions.zip").unlink()
    page = write_report()
    assert states() == dict.fromkeys(SYSTEMS, "missing: not there") | {FIRST: "current"}
    assert f"<strong>{FIRST}</strong> reaches" in page
    assert "1 system was trained" in re.sub(r"\s+", " ", page)
    assert sections(page) == ["systems", "pictures", "classes", "confusion", "learning", "data", "run"]
    assert "No pictures are here" in page
    assert all(f"dvc repro evaluate@{name}<" in page for name in SYSTEMS[1:])
    for stage in ("make_crops", "train_classifier@", "extract_pseudo_labels@"):
        assert f"dvc repro {stage}" in page


@pytest.mark.parametrize("folder", ["classifiers", "crops", "pseudo_labels"])
def test_what_is_missing_is_named_with_its_stage(folder: str, project: Path) -> None:
    shutil.rmtree(DATA / folder)
    page = write_report()
    stage = {"classifiers": "train_classifier@", "crops": "make_crops", "pseudo_labels": "extract_pseudo_labels@"}
    assert f"<code>dvc repro {stage[folder]}" in page
    assert {"classifiers": "tags", "pseudo_labels": "pseudo-labels"}.get(folder, folder) not in sections(page)
    assert set(states().values()) == {"current"}


def test_a_split_of_other_parameters_is_not_told(project: Path) -> None:
    assert "<h3>Split</h3>" in write_report()
    assert "<h3>Split</h3>" not in write_report({"split.strong.images": 7})


def test_without_any_result_one_error_names_the_command(project: Path) -> None:
    shutil.rmtree(DATA / "results")
    with pytest.raises(Problem, match="data/shapes holds no results of any system yet") as caught:
        write_report()
    assert caught.value.made_by == f"evaluate@{FIRST}"
    assert not (DATA / "report").exists()


def test_results_of_another_data_set_are_not_seen(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report()
    write_params(Path("params.yaml"), {"dataset": voc_section("mine") | {"name": "mine"}})
    with pytest.raises(Problem, match="data/mine holds no results"):
        show.main()
    shutil.copy(PARAMS, "params.yaml")
    assert str(Path(DATA / "report/index.html").resolve()) in shown(capsys)


def test_the_table_on_the_terminal(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "report: data/shapes/report/index.html is not there; `make report` writes it" in shown(capsys)
    write_report()
    said = shown(capsys)
    lines = said.splitlines()
    assert lines[1].split()[:2] == [FIRST, "current"]
    assert {line.split()[0] for line in lines[1 : len(SYSTEMS) + 1]} == {*SYSTEMS}
    assert "make report" not in said
    assert "dvc repro" not in said
    write_params(Path("params.yaml"), {f"systems.{FIRST}.prediction.crf": "grid"})
    shutil.rmtree(DATA / "results" / LAST)
    lines = shown(capsys).splitlines()
    order = [line.split()[0] for line in lines[1 : len(SYSTEMS)]]
    assert order[-1] == FIRST, "a stale one comes last, one without a result not at all"
    assert f"results/{FIRST} is stale: `dvc repro evaluate@{FIRST}`" in lines
    assert f"results/{LAST} is missing: `dvc repro evaluate@{LAST}`" in lines
    assert "older than these results or of other parameters; `make report`" in lines[-2]
    assert "`dvc repro -s report`" in lines[-1]
    for system in SYSTEMS[1:]:
        shutil.rmtree(DATA / "results" / system, ignore_errors=True)
    said = shown(capsys)
    (unrun,) = [line for line in said.splitlines() if line.startswith("not run yet: ")]
    assert {*unrun.removeprefix("not run yet: ").partition(";")[0].split(", ")} == {*SYSTEMS[1:]}
    assert f"results/{LAST} is missing" not in said


@pytest.mark.parametrize("is_voc", [True, False], ids=["VOC's classes", "own classes"])
def test_the_papers_numbers_stand_beside_ours_on_voc(project: Path, is_voc: bool) -> None:
    """Whatever the layout: that of VOC's devkit is used for data of one's own, too."""
    settings = load(write_params(Path("params.yaml"), {"dataset": voc_section("voc") | {"name": "mine"}}))
    data = DATA.rename("data/mine")
    card = json.loads((data / "prepared/dataset.json").read_text())
    write_json(data / "prepared/dataset.json", card | {"parameters": fingerprints.of(plan.prepare(settings))})
    if is_voc:
        write_json(data / "prepared/classes.json", voc.CLASSES)
    report.main(data=data)
    page = (data / "report/index.html").read_text()
    numbers = [f"<td>{number}</td>" in page for number in (53.1, 32.7, 15.3, 61.2, 59.0, 50.7, 38.2)]
    assert numbers == [is_voc] * len(numbers)
    assert ("in<br>the paper" in page) == is_voc
    assert ("The papers' numbers are of PASCAL VOC's classes" in page) != is_voc
    read = pd.read_csv(data / "report/systems.csv")
    assert read["published"].isna().to_numpy().all() != is_voc


def found_by(system: str, iou: Mapping[str, float | None]) -> None:
    """Other IoUs of a system than it has, and the mIoU that they make."""
    file = DATA / f"results/{system}/metrics.json"
    metrics = json.loads(file.read_text())
    metrics["iou"] |= iou
    known = [value for value in metrics["iou"].values() if value is not None]
    write_json(file, metrics | {"mean_iou": float(np.mean(known))})


def test_objects_that_score_nothing_are_told_before_the_numbers(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found_by(FIRST, {NAMES[1]: 0.0, NAMES[2]: None})
    page = write_report()
    said = f"{FIRST} scores 0 on 1 of {len(NAMES) - 2} objects: &#39;{NAMES[1]}&#39;."
    assert said in page
    assert page.index(said) < page.index('<section id="systems"')
    assert f"<strong>{FIRST}</strong> comes first" in page
    assert f"{FIRST} scores 0 on 1 of" in shown(capsys)


def test_no_winner_is_named_that_found_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for system in SYSTEMS:
        found_by(system, dict.fromkeys(NAMES[1:], 0.0))
    page = write_report()
    assert "None of them finds any object" in page
    assert "comes first" not in page
    assert "lead-row" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL)
    assert page.count("finds no object: every class but the background scores 0") == min(8, len(SYSTEMS))
    assert f"{FIRST} finds no object" in shown(capsys)


def test_a_first_row_that_is_level_with_the_second_is_no_clear_winner(project: Path) -> None:
    results = Results(DATA, load(PARAMS))
    first, second = (row.system for row in results.ranked[:2])
    over = results.compared[first].over_next
    assert over is not None
    assert ("level with" in write_report()) == over.level
    for name in ("images.parquet", "metrics.json", "confusion_counts.csv"):
        shutil.copy(DATA / f"results/{first}/{name}", DATA / f"results/{second}/{name}")
    assert f"level with {second}: chance alone may explain the difference" in write_report()


def test_the_classes_stand_in_groups_of_what_was_learned_from(project: Path) -> None:
    page = write_report()
    classes = page[page.index('<section id="classes"') : page.index('<section id="confusion"')]
    table = read_html_rows(classes)
    current = Results(DATA, load(PARAMS)).ranked
    assert [row for row in table if row in {"masks and tags", "masks only", "tags only"}] == list(
        dict.fromkeys(row.learned_from for row in current)
    )
    group, by_group = "", {}
    for row in table:
        group = row if row.startswith(("masks", "tags")) and row not in SYSTEMS else group
        if row in SYSTEMS:
            by_group.setdefault(group, []).append(row)
    assert by_group == {group: [row.system for row in current if row.learned_from == group] for group in by_group}
    assert sum(map(len, by_group.values())) == len(SYSTEMS)
    assert classes.count("data-v=") == len(SYSTEMS) * (len(NAMES) + 1)


def read_html_rows(part: str) -> list[str]:
    """The heads of the rows of a table, without marks."""
    heads = re.findall(r'<th scope="row(?:group)?">(.*?)</th>', part)
    return [re.sub(r"<[^>]*>", "", head) for head in heads]


def test_many_lines_differ_in_colour_and_stroke() -> None:
    inks = [charts.ink(number) for number in range(charts.COLOURS * charts.STROKES)]
    assert len({*inks}) == len(inks)
    assert inks[0] == "s0"
    assert inks[8] == "s0 d1"


RETRAINED = {
    "pseudo_labels.again": {
        "images": "weak", "source": "segmenter", "input": "segmenters/ficklenet_semi", "views": "single",
        "batch_size": 4, "input_size": 97, "restrict_to_tags": True, "crf": None,
    },
    "systems.sec.labels": "pseudo_labels/again",
}  # fmt: skip


WALK = {
    "kind": "affinity", "radius": 5, "beta": 10.0, "steps": 64,
    "boundary": {"width": 8, "steps": 10, "batch_size": 2, "learning_rate": 0.01, "examples": 10},
}  # fmt: skip
CALIBRATED = {
    "images": "weak", "source": "classifier", "input": "classifiers/ficklenet", "input_size": 97, "batch_size": 2,
    "selection": "stochastic", "rate": 0.8, "passes": 4, "form": "factorised", "normalise": "map", "views": "single",
    "calibrate": "strong", "folds": 2,
    "candidates": {"aggregations": [{"kind": "mean"}],
            "backgrounds": [{"kind": "constant", "score": [0.2]}], "refinements": [{"kind": "none"}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("system", "changes", "masks", "by_tags"),
    [
        ("decouplednet", {}, 5, True),
        ("decouplednet", {"split.strong": {"kind": "all"}}, "all", True),
        ("decouplednet_str", {}, 5, False),
        ("deconvnet", {"split.strong": {"kind": "list", "file": "own.txt"}}, "own list", False),
        ("deeplab", {}, 5, False),
        ("deeplab", {"systems.deeplab.start": "classifiers/decoupled"}, 5, True),
        ("deeplab", {"systems.deeplab.start": "backbones/vgg"}, 5, False),
        ("sec", {}, None, True),
        ("ficklenet_semi", {}, 5, True),
        ("wssl", {}, 5, True),
        ("wssl_tags", {}, None, True),
        # a weight of 0 sees no masks, whatever images are named
        ("ficklenet_semi", {"systems.ficklenet_semi.training.full_weight": 0.0}, None, True),
        # labels whose settings were chosen on masks, or whose walk learned boundaries from them
        ("sec", {"pseudo_labels.deterministic": CALIBRATED}, 5, True),
        ("sec", {"pseudo_labels.deterministic.refinement": WALK}, 5, True),
        # trained again on what a system predicts that had seen masks, or from its weights
        ("sec", RETRAINED, 5, True),
        ("sec", {"systems.sec.start": "segmenters/ficklenet_semi"}, 5, True),
        ("deeplab", {"systems.deeplab.start": "segmenters/ficklenet"}, 5, True),
    ],
)
def test_masks_and_tags_are_traced_to_where_they_came_in(
    system: str, changes: dict[str, Any], masks: int | str | None, by_tags: bool, tmp_path: Path
) -> None:
    settings = load(write_params(tmp_path / "params.yaml", changes))
    assert supervision(system, settings) == (masks, by_tags)


def test_a_column_with_the_crf_where_one_was_scored(project: Path) -> None:
    assert "with CRF" not in write_report()
    file = DATA / f"results/{FIRST}/metrics.json"
    write_json(file, json.loads(file.read_text()) | {"with_crf": dict.fromkeys(SCORES, 0.6789)})
    page = write_report()
    assert page.count("with CRF") == 1
    assert page.count("<td>67.9</td>") == 1


def test_what_users_wrote_is_escaped(project: Path) -> None:
    Path("params.yaml").write_text(PARAMS.read_text() + "# <script>alert(1)</script>\n")
    page = write_report()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_system_without_any_score_still_has_a_row(project: Path) -> None:
    file = DATA / f"results/{LAST}/metrics.json"
    metrics = json.loads(file.read_text())
    write_json(file, metrics | dict.fromkeys(SCORES) | {"iou": dict.fromkeys(NAMES)})
    assert LAST in write_report()


def test_a_score_that_no_system_has_is_no_best_one(project: Path) -> None:
    for file in DATA.glob("results/*/metrics.json"):
        write_json(file, json.loads(file.read_text()) | dict.fromkeys(SCORES))
    assert LAST in write_report()
    assert len(Results(DATA, load(PARAMS)).ranked) == len(SYSTEMS)


def test_curves_of_every_kind_are_drawn() -> None:
    step = np.arange(1000.0)
    for values in (np.zeros(1000), np.full(1000, 3.0), np.exp(-step / 100), -step, np.where(step > 5, np.nan, step)):
        chart = charts.line_chart({"<a>": (step, values)}, "step", "loss", {"<a>": 9})
        assert 'data-series="&lt;a&gt;"' in chart
        assert chart.startswith("<svg")
        assert "nan" not in chart
        assert "<a>" not in chart
        assert 's1 d1"' in chart
    assert charts.line_chart({"a": (step, step * np.nan)}, "step", "loss", {"a": 0}) == ""
    assert charts.line_chart({"a": (step[:1], step[:1])}, "step", "loss", {"a": 0}).startswith("<svg")


def test_what_is_watched_stands_side_by_side(project: Path) -> None:
    """The share of background in an E-step beside that in the masks, at the end of training."""
    assert "<h3>Watched</h3>" not in write_report()
    for system, figures in (
        ("wssl", {"background": 0.5, "background_of_masks": 0.75}),
        ("wssl_tags", {"background": 0.25}),
    ):
        for name, value in figures.items():
            values = np.r_[np.zeros(70), np.full(10, value)]
            file = DATA / f"segmenters/{system}/training/plots/metrics/watched/{name}.tsv"
            file.parent.mkdir(exist_ok=True)
            pd.DataFrame({"step": np.arange(80), name: values}).to_csv(file, sep="\t", index=False)
    page = write_report()
    assert "<th>system</th><th>background</th><th>background of masks</th></tr>" in page
    assert "</span>wssl</td><td>0.5</td><td>0.75</td></tr>" in page
    assert "</span>wssl_tags</td><td>0.25</td><td>–</td></tr>" in page
    assert page.count('<svg class="chart"') == 5, "their curves, too"


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


def test_run_times_are_those_of_the_data_set(project: Path) -> None:
    assert set(provenance.timings(DATA)) == {"prepare", "train_classifier@decoupled", f"evaluate@{FIRST}"}
    assert provenance.timings(Path("data/mine")) == {}
