"""Other seeds and other splits: run once, kept at once, gone on with after a kill; by a fake, and really by DVC."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from segcore import made_of
from segcore.cli.experiments import Copies
from segcore.config.settings import load
from segcore.errors import Problem
from segcore.reporting import kept
from segcore.reporting.results import Results
from tests.devkit import PARAMS, make_devkit, voc_section, write_params
from tests.invented import DATA_SET, SYSTEMS, invented_results
from tests.test_new_system import PROJECT, TINY, TOY, run

A, B = SYSTEMS[:2]
KIT = "data/VOCdevkit/VOC2012"


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_results(tmp_path_factory.mktemp("invented"), panels=0)


@pytest.fixture
def data(invented: Path, tmp_path: Path) -> Path:
    shutil.copytree(invented, tmp_path / "data/shapes")
    return tmp_path / "data/shapes"


def experiment(data: Path, system: str, seed: int) -> kept.Experiment:
    return kept.Experiment(system, {"seed": seed}, data / "results" / system / kept.SEEDS / str(seed))


class FakeRunner:
    """Gives the results of the workspace as those of any seed, and stops by Ctrl+C where it is told to."""

    def __init__(self, data: Path, stops_at: int = 99) -> None:
        self.data = data
        self.stops_at = stops_at
        self.ran: list[tuple[str, int]] = []

    def __call__(self, wanted: kept.Experiment) -> Path:
        self.ran.append((wanted.system, wanted.changes["seed"]))
        if len(self.ran) == self.stops_at:
            raise KeyboardInterrupt
        folder = self.data / "fresh" / wanted.system
        shutil.copytree(self.data / "results" / wanted.system, folder, dirs_exist_ok=True)
        settings = kept.changed(load(PARAMS), wanted.changes)
        training = kept.fingerprints.expected(settings, f"segmenters/{wanted.system}")
        made_of.write(folder, made_of.read(folder) | {"training": training, "data_set": f"of seed {wanted.changes}"})
        return folder


def perform(data: Path, runner: FakeRunner, seeds: tuple[int, ...] = (1, 2)) -> list[str]:
    wanted = [experiment(data, system, seed) for seed in seeds for system in (A, B)]
    return kept.perform(wanted, load(PARAMS), DATA_SET, runner, lambda _: None)


def test_what_is_kept_is_not_run_again_and_a_killed_one_goes_on(data: Path) -> None:
    first = FakeRunner(data, stops_at=3)
    with pytest.raises(KeyboardInterrupt):
        perform(data, first)
    assert first.ran == [(A, 1), (B, 1), (A, 2)]
    second = FakeRunner(data)
    assert perform(data, second) == []
    assert second.ran == [(A, 2), (B, 2)]
    third = FakeRunner(data)
    perform(data, third)
    assert third.ran == []
    names = {path.name for path in experiment(data, A, 1).folder.iterdir()}
    assert names == {"metrics.json", "images.parquet", "split.json", "made_of.json"}


def test_one_that_fails_does_not_stop_the_others(data: Path) -> None:
    fake = FakeRunner(data)

    def run_but_one(wanted: kept.Experiment) -> Path:
        if wanted.system == A:
            raise Problem("no images")
        return fake(wanted)

    wanted = [experiment(data, system, 1) for system in (A, B)]
    failed = kept.perform(wanted, load(PARAMS), DATA_SET, run_but_one, lambda _: None)
    assert failed == [f"{A} with seed=1: no images"]
    assert fake.ran == [(B, 1)]


def test_a_result_of_other_parameters_is_not_kept(data: Path) -> None:
    settings = kept.changed(load(PARAMS), {"seed": 1})
    with pytest.raises(Problem, match="other parameters"):
        kept.keep(data / "results" / A, experiment(data, A, 1).folder, settings, A)
    assert not experiment(data, A, 1).folder.exists()


def test_the_table_tells_of_all_seeds_and_mixes_none_that_is_stale(data: Path) -> None:
    alone = Results(data, load(PARAMS)).table().set_index("system")
    assert set(alone["seeds"]) == {"0"}
    assert all(map(pd.isna, alone["std_over_seeds"]))
    perform(data, FakeRunner(data))
    table = Results(data, load(PARAMS)).table().set_index("system")
    assert table["seeds"].to_dict() == dict.fromkeys(SYSTEMS, "0") | {A: "0 1 2", B: "0 1 2"}
    assert table.loc[A, "std_over_seeds"] == pytest.approx(0, abs=1e-5)  # all seeds are copies of one
    assert table.loc[A, "mean_over_seeds"] == pytest.approx(table.loc[A, "mean_iou"], abs=1e-4)
    ends = [f"over_next{end}" for end in ("_low", "", "_high")]
    low, middle, high = table.loc[A, ends].tolist()
    assert low < middle < high
    best, second = sorted(table["mean_over_seeds"], reverse=True)[:2]
    assert table.loc[A, ["mean_over_seeds", "over_next"]].tolist() == pytest.approx([best, best - second], abs=1e-4)
    deep = {f"systems.{A}.prediction.views": "deep", "views.deep": {"scales": [0.5, 1.0], "flip": True}}
    changed = write_params(data.parent / "params.yaml", deep)
    stale = Results(data, load(changed)).table().set_index("system")
    assert stale.loc[A, ["state", "seeds"]].tolist() == ["stale", ""]
    assert stale.loc[B, "seeds"] == "0 1 2"


def test_a_kept_result_of_other_data_is_stale(data: Path) -> None:
    perform(data, FakeRunner(data), seeds=(1,))
    folder, settings = experiment(data, A, 1).folder, load(PARAMS)
    assert kept.is_current(folder, kept.changed(settings, {"seed": 1}), A, "any: each seed has its own")
    assert not kept.is_current(folder, settings, A, DATA_SET)
    (folder / "images.parquet").unlink()
    assert not kept.is_current(folder, kept.changed(settings, {"seed": 1}), A, DATA_SET)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the project in Git, whose data set Git ignores, with one system that is evaluated."""
    folder = tmp_path_factory.mktemp("experiments") / "project"
    for name in ("segcore", "stages", "profiles"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(PROJECT / name, folder)
    (folder / "segcore/systems/toy.py").write_text(TOY)
    make_devkit(folder / KIT, n_train=9, n_val=4)
    tiny = {key: value for key, value in TINY.items() if not key.startswith("dataset.")}
    write_params(folder / "params.yaml", tiny | {"dataset": voc_section(KIT)})
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    run(folder, "dvc", "init", "--quiet")
    commit = ("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "Small")
    for command in (("add", "--all"), commit):
        subprocess.run(["git", *command], cwd=folder, check=True)
    run(folder, "dvc", "repro", "evaluate@toy")
    return folder


def test_another_seed_runs_in_a_copy_and_leaves_the_workspace_alone(project: Path) -> None:
    data, params = project / "data/tiny", (project / "params.yaml").read_bytes()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert "toy with seed=1: kept in" in run(project, "segcore.commands.seeds", "--seeds", "1", "--systems", "toy")
    assert (project / "params.yaml").read_bytes() == params
    assert all(path.read_bytes() == content for path, content in before.items())
    mine, other = (json.loads((data / "results/toy" / place / "metrics.json").read_text()) for place in ("", "seeds/1"))
    assert not any((project / ".scratch/experiments").iterdir())
    assert "done before" in run(project, "segcore.commands.seeds", "--seeds", "1")
    run(project, "dvc", "repro", "report")
    table = pd.read_csv(data / "report/systems.csv", dtype={"seeds": str})
    assert table["seeds"].tolist() == ["0 1"]
    assert table["mean_over_seeds"].tolist() == pytest.approx([(mine["mean_iou"] + other["mean_iou"]) / 2], abs=1e-4)
    assert run(project, "dvc", "status", "report").strip() == "Data and pipelines are up to date."


def test_a_point_of_the_curve_is_trained_by_its_own_split(project: Path) -> None:
    curve = project / "data/tiny/curve"
    said = run(project, "segcore.commands.curve", "--systems", "toy", "--masks", "1", "--masks", "0", "--tagged", "5")
    assert "no point masks_0: it needs masks" in said
    assert "no point tagged_5: it sees no tags" in said
    split = json.loads((curve / "toy/masks_1/0/split.json").read_text())
    assert (split["strong"], split["weak"], split["weak_without_mask"]) == (3, 9, 6)
    assert pd.read_csv(curve / "curve.csv")["point"].tolist() == ["masks_1"]
    assert "one amount of annotation tells nothing of another" in (curve / "advice.txt").read_text()


def test_what_failed_is_told_with_the_last_lines_of_dvc(project: Path) -> None:
    """There are not so many masks; the copy stays, for the next try."""
    copies = Copies(project, project / "params.yaml")
    changes = {"seed": 0, "split.strong": {"kind": "per_class", "images": 9}}
    wanted = kept.Experiment("toy", changes, project / "data/tiny/curve/toy/masks_9/0")
    (failed,) = copies.perform([wanted], load(project / "params.yaml"), None, keep_copies=False)
    assert "split.strong.images: 9 images a class" in failed
    assert (copies.folder(changes) / "params.yaml").is_file()
    assert not wanted.folder.exists()


def test_paths_that_a_copy_cannot_reach_are_refused(project: Path, tmp_path: Path) -> None:
    far = "../../../../" + str(project.relative_to(project.parents[3]).parent)
    assert (project / far).exists()
    copies = Copies(project, project / "params.yaml")
    wanted = kept.Experiment("toy", {"dataset.root": far}, tmp_path)
    with pytest.raises(Problem, match="which a copy of the project cannot reach"):
        copies.run(wanted)
