"""The pipeline as a user of DVC has it: demo, refused values, another data set, experiments, a queue, another clone.

Takes some minutes: tiny data and networks, but every stage through DVC, in a clone of this project that the tests use
one after the other, each as the one before left it.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from segcore.config import reading
from tests import warm
from tests.devkit import PARAMS, changed, make_devkit, voc_section
from tests.tiny import files, tiny_params

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
DEMO = re.findall(r"\w+", re.findall(r"^DEMO := (.+)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)[0])
RUN = [DEMO[0], "ficklenet"]
"""Of the demo's systems, one of each kind: from crops of masks, from labels that tags gave."""
FIRST = RUN[0]
THRESHOLD = f"systems.{FIRST}.prediction.threshold"
DATA = "data/shapes"


class Clone:
    """A checkout of the project in a folder of its own, with tiny parameters and nothing of its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / DATA
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_", "MAKE"))},
            "PATH": warm.path(),
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
            **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr * fails

    def dvc(self, *arguments: str, fails: bool = False) -> str:
        return self.run("python", "-m", "dvc", *arguments, fails=fails)

    def repro(self, *arguments: str) -> list[str]:
        return ran(self.dvc("repro", *arguments))

    def make(self, *arguments: str) -> str:
        return self.run("make", *arguments, "READY=", f"BIN={warm.folder()}")

    def show(self, fails: bool = False) -> str:
        return self.run("python", "-m", "segcore.commands.show", fails=fails)

    def change(self, changes: dict[str, Any]) -> None:
        YAML().dump(changed(changes, self.folder / "params.yaml"), self.folder / "params.yaml")

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def back(self) -> None:
        """The last commit, its results among the rest."""
        self.run("git", "reset", "--quiet", "--hard")
        self.dvc("checkout", "--force")

    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.data / "report/systems.csv", index_col="system", keep_default_na=False)

    def metrics(self) -> dict[str, Any]:
        return json.loads(self.dvc("metrics", "show", "--json"))[""]["data"]


def ran(output: str) -> list[str]:
    """The stages that ran, but for the one that always does."""
    return [name for name in re.findall(r"Running stage '(.+)':", output) if name != "outside_files"]


def named(section: str, given: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The entries of a section that are named as `<section>/<entry>`."""
    return {name: entry for name, entry in given[section].items() if f"{section}/{name}" in names}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A commit of the project's sources as they are now, with tiny parameters of the demo's systems."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True
    )
    if listing.returncode:
        pytest.skip("the project is no Git checkout, so its sources cannot be told from its data")
    folder = tmp_path_factory.mktemp("pipeline") / "project"
    for name in filter(None, listing.stdout.decode().split("\0")):
        is_data = name.startswith("data/") and not name.startswith(("data/embedded/", "data/.gitignore"))
        if (PROJECT / name).is_file() and not is_data and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    clone = Clone(folder)
    shapes = reading.read(PARAMS)
    small = {"classes": 4, "train_images": 24, "val_images": 8, "size": 64, "max_objects": 2}
    tiny_params(folder / "params.yaml", dataset=shapes["dataset"] | small)
    clone.change({f"recipes.{name}.steps": 2 for name in shapes["recipes"] if name != "common"})
    given = reading.read(folder / "params.yaml")
    systems = {name: given["systems"][name] for name in RUN}
    labels = named("pseudo_labels", given, [entry["labels"] for entry in systems.values()])
    inputs = [entry["input"] for entry in labels.values()]
    classifiers = named("classifiers", given, [*inputs, *(entry["start"] for entry in systems.values())])
    needed = {"systems": systems, "pseudo_labels": labels, "classifiers": classifiers}
    clone.change(needed | {"recipes.common.warmup_steps": 0})
    clone.run("git", "init", "--quiet", "--initial-branch", "main")
    clone.dvc("remote", "add", "--default", "storage", str(folder.parent / "storage"))
    clone.commit("Tiny")
    return clone


def test_the_demo_names_systems_that_there_are() -> None:
    assert {*RUN} < {*DEMO} < reading.read(PARAMS)["systems"].keys()


def test_the_demo_runs_its_systems_and_shows_them(clone: Clone) -> None:
    said = clone.make("demo", f"DEMO={' '.join(RUN)}")
    settings = reading.read(clone.folder / "params.yaml")
    expected = {"check_params", "prepare", "split", "make_crops", "report"}
    expected |= {f"train_classifier@{name}" for name in settings["classifiers"]}
    expected |= {f"extract_pseudo_labels@{name}" for name in settings["pseudo_labels"]}
    expected |= {f"{stage}@{name}" for stage in ("train_segmenter", "evaluate") for name in RUN}
    assert set(ran(said)) == expected
    assert all(re.search(rf"^ *{name} +current ", said, re.MULTILINE) for name in RUN)
    assert f"report: {clone.data / 'report/index.html'}" in said
    assert set(clone.table()["state"]) == {"current"}
    assert "not recorded on this machine" not in (clone.data / "report/index.html").read_text()
    clone.commit("The demo's results")


def test_nothing_is_done_twice(clone: Clone) -> None:
    assert ran(clone.dvc("repro")) == []
    assert clone.run("git", "status", "--porcelain") == ""


def test_metrics_and_plots_are_shown(clone: Clone, tmp_path: Path) -> None:
    metrics = clone.metrics()
    assert 0 <= metrics[f"{DATA}/results/{FIRST}/metrics.json"]["data"]["mean_iou"] <= 1
    clone.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    plots = (tmp_path / "plots/index.html").read_text()
    assert f"{DATA}/results/{FIRST}/per_class.csv".replace("/", "_") in plots.replace("/", "_")


def test_a_wrong_value_is_refused_while_every_result_stays(clone: Clone) -> None:
    def results() -> dict[str, bytes]:
        of_check_params = ("params/", "backbones/")
        return {name: content for name, content in files(clone.data).items() if not name.startswith(of_check_params)}

    before = results()
    clone.change({THRESHOLD: 5})
    assert f"{THRESHOLD}: found 5" in clone.dvc("repro", fails=True)
    assert results() == before
    clone.run("git", "checkout", "params.yaml")  # the value, not the results
    assert clone.repro() == []
    assert clone.run("git", "status", "--porcelain") == ""


def test_an_experiment_runs_what_its_value_concerns(clone: Clone) -> None:
    before = clone.table()
    said = clone.dvc("exp", "run", "--name", "lower", "--set-param", f"{THRESHOLD}=0.3")
    assert ran(said) == ["check_params", f"evaluate@{FIRST}", "report"]
    assert set(clone.table()["state"]) == {"current"}
    assert THRESHOLD in clone.dvc("params", "diff")
    clone.back()
    assert clone.table().equals(before)


def test_an_experiment_that_is_applied_brings_its_results(clone: Clone) -> None:
    clone.dvc("exp", "apply", "lower")
    assert reading.read(clone.folder / "params.yaml")["systems"][FIRST]["prediction"]["threshold"] == 0.3
    said = clone.show()
    assert "stale" not in said
    assert "missing" not in said
    assert "older than these results" in said or "make report" not in said
    assert clone.repro() == []
    clone.back()


def test_another_clone_pulls_what_was_pushed(clone: Clone, tmp_path: Path) -> None:
    clone.dvc("push")
    clone.run("git", "clone", "--quiet", str(clone.folder), str(tmp_path / "other"))
    other = Clone(tmp_path / "other")
    other.dvc("pull")
    assert other.repro() == []
    mine, theirs = files(clone.data), files(other.data)
    assert {name for name in mine if name not in theirs} == {"report/index.html"}
    assert all(mine[name] == content for name, content in theirs.items())
    assert "`make report` writes it" in other.show()


def test_another_data_set_leaves_the_first_one_alone(clone: Clone) -> None:
    before = files(clone.data)
    make_devkit(clone.folder / "data/pictures", n_train=9, n_val=3)
    params = reading.read(clone.folder / "params.yaml")
    start, labels = params["systems"][FIRST]["start"].split("/")[1], "pseudo_labels"
    only = {"systems": {FIRST: params["systems"][FIRST]}, labels: {}}
    only["classifiers"] = {start: params["classifiers"][start]}
    clone.change(only | {"dataset": voc_section("data/pictures") | {"name": "mine"}})
    said = clone.show(fails=True)
    assert "data/mine holds no results of any system yet" in said
    assert f"dvc repro evaluate@{FIRST}" in said
    assert not any("mean_iou" in str(entry.get("data")) for entry in clone.metrics().values())
    stages = {f"train_classifier@{start}", "make_crops", f"train_segmenter@{FIRST}", f"evaluate@{FIRST}"}
    assert set(clone.repro()) == stages | {"check_params", "prepare", "split", "report"}
    assert files(clone.data) == before
    said = clone.show()
    assert [line.split()[:2] for line in said.splitlines()[1:2]] == [[FIRST, "current"]]
    assert not any(name in said for name in RUN[1:])
    assert all(name.startswith("data/mine/") for name in clone.metrics())
    # the two lines of README: what a queue or another clone shall see is DVC's or Git's
    clone.dvc("add", "data/pictures")
    clone.commit("My pictures")


def test_a_queue_runs_with_data_inside_the_repository(clone: Clone) -> None:
    clone.dvc("exp", "run", "--queue", "--name", "queued", "--set-param", f"{THRESHOLD}=0.4")
    clone.dvc("queue", "start")
    log = clone.dvc("queue", "logs", "queued", "--follow")
    status = clone.dvc("queue", "status")
    assert re.search(r"queued.*Success", status), f"{status}\n{log}"
    assert ran(log) == ["check_params", f"evaluate@{FIRST}", "report"]
    clone.dvc("exp", "apply", "queued")
    assert "stale" not in clone.show()
    clone.back()


def test_the_first_data_set_comes_back_with_its_parameters(clone: Clone) -> None:
    clone.run("git", "checkout", "HEAD~1", "--", "params.yaml")
    assert set(clone.repro()) <= {"prepare", "split", "report"}  # what takes long comes from DVC's cache
    said = clone.show()
    assert all(re.search(rf"^ *{name} +current ", said, re.MULTILINE) for name in RUN)
    assert all(name.startswith(f"{DATA}/") for name in clone.metrics())
