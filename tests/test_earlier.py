"""Today's results beside those of another commit: the workspace stays as it is, chance is told."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from segcore.cli import looks
from segcore.commands import compare
from segcore.config import reading
from segcore.config.settings import load
from segcore.errors import Problem
from segcore.reporting import earlier, kept
from segcore.reporting.results import Results
from tests.devkit import PARAMS, write_params
from tests.invented import SYSTEMS, invented_results, write_json

DATA = Path("data/shapes")
FIRST, SECOND, LAST = SYSTEMS[0], SYSTEMS[1], SYSTEMS[-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    invented_results(root, images=12, panels=1)
    shutil.copy(PARAMS, root / "params.yaml")
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(shutil.copytree(made, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def then(made: Path, tmp_path: Path) -> Path:
    """What another commit is laid out as."""
    return Path(shutil.copytree(made, tmp_path / "then"))


def beside(then: Path) -> earlier.Earlier:
    return earlier.beside(Results(DATA, load(Path("params.yaml"))), "abc then", then)


def changes(then: Path) -> Mapping[str, earlier.Change]:
    return {change.system: change for change in beside(then).changes}


def result(root: Path, system: str) -> Path:
    return root / DATA / "results" / system


def exchange(root: Path, system: str, by: str) -> None:
    """Give a system the scores of another one; what it says it was made of stays."""
    for name in ("metrics.json", "images.parquet", "confusion_counts.csv"):
        shutil.copy(result(root, by) / name, result(root, system) / name)


def test_the_same_results_are_level(here: Path, then: Path) -> None:
    found = beside(then)
    assert {change.system for change in found.changes} == {*SYSTEMS}
    assert found.params == []
    for change in found.changes:
        assert change.over is not None
        assert (change.over.estimate, change.over.low, change.over.high) == (0, 0, 0)
        assert change.then == change.now
        assert {*change.classes.values()} == {0.0}


def test_a_difference_has_its_interval_and_its_sign(here: Path, then: Path) -> None:
    """The first was as bad as the last: it has become better since."""
    exchange(then, FIRST, LAST)
    change = changes(then)[FIRST]
    assert change.over is not None
    scores = [json.loads((result(root, FIRST) / "metrics.json").read_text()) for root in (then, here)]
    assert change.over.estimate == pytest.approx(scores[1]["mean_iou"] - scores[0]["mean_iou"], abs=2e-4)
    assert change.over.low > 0
    assert change.over.images == 12
    assert change.now is not None
    assert change.then is not None
    assert change.over.estimate == pytest.approx(change.now - change.then)
    for name, grown in change.classes.items():
        assert grown == pytest.approx(scores[1]["iou"][name] - scores[0]["iou"][name])
    assert changes(then)[SECOND].over.level  # type: ignore[union-attr]


def test_what_one_of_them_lacks_is_told(here: Path, then: Path) -> None:
    shutil.rmtree(result(then, FIRST))
    shutil.rmtree(result(here, SECOND))
    (result(then, LAST) / "images.parquet").unlink()
    found = changes(then)
    assert (found[FIRST].then, found[FIRST].why) == (None, "not there then")
    assert (found[SECOND].now, found[SECOND].why) == (None, "no current result")
    assert found[LAST].over is None
    assert "neither in Git nor in DVC's cache" in found[LAST].why
    assert found[LAST].then == json.loads((result(then, LAST) / "metrics.json").read_text())["mean_iou"]


def test_other_images_and_other_seeds_are_not_compared(here: Path, then: Path) -> None:
    table = pd.read_parquet(result(then, FIRST) / "images.parquet")
    table[table["image_id"] != "000"].to_parquet(result(then, FIRST) / "images.parquet")
    assert (changes(then)[FIRST].over, changes(then)[FIRST].why) == (None, "other images")
    write_params(then / "params.yaml", {"seed": 7})
    found = beside(then)
    assert {change.why for change in found.changes} == {"other seeds"}
    assert found.params == [("seed", "7", str(load(PARAMS).seed))]


def test_without_a_known_pixel_there_is_nothing_to_compare(here: Path, then: Path) -> None:
    for root in (here, then):
        file = result(root, FIRST) / "images.parquet"
        table = pd.read_parquet(file)
        table.assign(intersection=0, truth=0, predicted=0).to_parquet(file)
    change = changes(then)[FIRST]
    assert (change.then, change.now, change.over, change.why) == (None, None, None, "no validation image has a mask")


def test_other_seeds_of_both_are_paired(here: Path, then: Path) -> None:
    """Two seeds now and then: the interval is over both; a third one that only today has does not count."""
    settings = load(PARAMS)
    for root, seeds in ((here, (1, 2)), (then, (1,))):
        for seed in seeds:
            folder = result(root, FIRST) / "seeds" / str(seed)
            folder.mkdir(parents=True)
            for name in ("metrics.json", "images.parquet"):
                shutil.copy(result(root, FIRST) / name, folder / name)
            write_json(folder / "split.json", {})
            run = kept.run_of(kept.changed(settings, {"seed": seed}), FIRST)
            origin = json.loads((result(root, FIRST) / "made_of.json").read_text())
            write_json(folder / "made_of.json", origin | {"run": run})
    over = changes(then)[FIRST].over
    assert over is not None
    assert over.seeds == 2


def test_a_commit_of_other_parameters_than_todays_code_knows(here: Path, then: Path) -> None:
    given = reading.read(PARAMS)
    (then / "params.yaml").write_text(json.dumps({"seed": given["seed"], "old": {"key": [1, 2], "empty": {}}}))
    found = beside(then)
    assert all(change.over is not None for change in found.changes)
    told = {key: (old, new) for key, old, new in found.params}
    assert told["old.key"] == ("[1, 2]", "")
    assert told["old.empty"] == ("{}", "")
    assert told["dataset.name"] == ("", "shapes")
    assert "seed" not in told


def test_a_commit_without_results_is_refused(here: Path, then: Path) -> None:
    shutil.rmtree(then / "data")
    with pytest.raises(Problem, match="commit abc then has no results in data/shapes"):
        beside(then)


GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")


def git(*arguments: str) -> str:
    return subprocess.run([*GIT, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def history(here: Path) -> Path:
    """A repository with DVC: a commit of worse results, whose counts lie in DVC's cache, and today's files over it."""
    exchange(here, FIRST, LAST)
    git("init", "--quiet")
    Path(".gitignore").write_text("/data/*/report/index.html\n")
    from dvc.repo import Repo

    with Repo.init(".") as repo:
        for system in SYSTEMS:
            repo.add(str(result(here, system) / "images.parquet"))  # type: ignore[arg-type]
    git("add", "--all")
    git("commit", "--quiet", "--message", "Worse <b>results</b>")
    return here


def files_of(root: Path) -> dict[Path, bytes]:
    kept_apart = {root / ".git", root / ".dvc", root / DATA / "report"}
    found = (path for path in root.rglob("*") if path.is_file() and not kept_apart & {*path.parents})
    return {path: path.read_bytes() for path in found}


def test_the_page_tells_of_another_commit_and_changes_nothing(
    history: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("metrics.json", "images.parquet", "confusion_counts.csv"):
        shutil.copy(result(made, FIRST) / name, result(history, FIRST) / name)
    before, status = files_of(history), git("status", "--short")
    compare.written("HEAD")
    assert files_of(history) == before
    assert git("status", "--short") == status
    page = (DATA / "report/index.html").read_text()
    part = page[page.index('<section id="earlier"') :].partition("</section>")[0]
    commit = git("log", "-1", "--format=%h")
    assert f"<h2>Since {commit}</h2>" in part
    assert "Worse &lt;b&gt;results&lt;/b&gt;" in part
    assert "All parameters are the same." in part
    assert 'class="left better"' in part
    said = capsys.readouterr().out
    assert f"since {commit} Worse" in said
    (line,) = [line for line in said.splitlines() if line.startswith(f"  {FIRST}: ")]
    assert line.startswith(f"  {FIRST}: +")
    assert "level" not in line


def test_the_page_keeps_the_early_looks(history: Path) -> None:
    place = DATA / "segmenters" / FIRST
    write_json(looks.file_of(place), {"training": "of today", "curve": [[2, 0.1], [4, 0.2]]})
    write_json(place / "model/model.json", {"made_of": {"training": "of today"}})
    compare.written("HEAD")
    assert "<h3>Early looks</h3>" in (DATA / "report/index.html").read_text()


def test_counts_that_no_cache_holds_are_told(history: Path) -> None:
    shutil.rmtree(history / ".dvc/cache")
    compare.written("HEAD")
    page = (DATA / "report/index.html").read_text()
    assert page.count("neither in Git nor in DVC&#39;s cache") == len(SYSTEMS)


@pytest.mark.parametrize("revision", ["nonsense", "--all", "HEAD~9", ""])
def test_what_names_no_commit_is_refused(revision: str, history: Path) -> None:
    with pytest.raises(Problem, match=f"found the revision '{revision}', which names no commit"):
        compare.written(revision)


def test_a_folder_without_git_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(here.parent))
    with pytest.raises(Problem, match="names no commit"):
        compare.written("HEAD")
