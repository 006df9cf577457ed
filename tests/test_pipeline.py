"""The whole pipeline runs, repeats nothing that is done, and gives the same hashes in a second clone.

Takes some two minutes: tiny data and tiny networks, but every stage through DVC in clones of this project.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from segcore.config import reading

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
SYSTEMS = ["decouplednet", "deconvnet", "ficklenet_semi"]
CLASSIFIERS = ["decoupled", "decoupled_str", "ficklenet"]
ALL = {"prepare", "split", "make_crops", "extract_pseudo_labels@ficklenet", "report"}
ALL |= {f"train_classifier@{name}" for name in CLASSIFIERS}
ALL |= {f"{stage}@{system}" for stage in ("train_segmenter", "evaluate") for system in SYSTEMS}

TINY = {
    "dataset.shapes": {"classes": 4, "train_images": 30, "val_images": 10, "size": 64, "max_objects": 2},
    "split.strong_per_class": 2,
    "crops.per_subset": 10,
    "crops.warp": 72,
    "crops.input_size": 64,
    "evaluation.panels": 3,
}
TINY_RECIPE = {"steps": 4, "batch_size": 4, "accumulate": 1, "warmup_steps": 1, "compile": False, "workers": 0}
TINY_CLASSIFIER = {"input_size": 64, "resize": 72, "test_size": 64}
TINY_HEADS = {"fully_connected": {"width": 16, "kernel": 2}, "stochastic": {"kernel": 3}}
TINY_SYSTEM = {"width": 0.0625, "norm_batches": 2, "norm_batch_size": 4}
TINY_NET = {"width": 16, "input_size": 65}
TINY_LABELS = {"input_size": 65, "passes": 5, "batch_size": 4}


class Clone:
    """A checkout of the project in a folder of its own, with tiny parameters and nothing of its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
            **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def repro(self) -> list[str]:
        """The stages that ran."""
        return re.findall(r"Running stage '(.+)':", self.dvc("repro"))

    def change(self, changes: dict[str, Any]) -> None:
        params = YAML(typ="safe", pure=True).load(self.folder / "params.yaml")
        for key, value in changes.items():
            *sections, last = key.split(".")
            place = params
            for name in sections:
                place = place[name]
            place[last] = value
        YAML().dump(params, self.folder / "params.yaml")

    def copy(self, folder: Path) -> "Clone":
        shutil.copytree(self.folder, folder)
        return Clone(folder)

    def hashes(self) -> dict[str, Any]:
        """The outputs of every stage as dvc.lock has them."""
        lock = YAML(typ="safe", pure=True).load(self.folder / "dvc.lock")
        return {name: stage["outs"] for name, stage in lock["stages"].items()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A commit of the project's sources as they are now, with tiny parameters."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True
    )
    if listing.returncode:
        pytest.skip("the project is no Git checkout, so its sources cannot be told from its data")
    folder = tmp_path_factory.mktemp("sources") / "project"
    for name in filter(None, listing.stdout.decode().split("\0")):
        is_data = name.startswith("data/") and not name.startswith("data/shapes/") and not name.endswith(".gitkeep")
        if (PROJECT / name).is_file() and not is_data and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    shutil.copy(PROJECT / "profiles/shapes.yaml", folder / "params.yaml")
    clone = Clone(folder)
    settings = reading.load(folder / "params.yaml")
    clone.change(TINY)
    clone.change({"systems": {name: settings.raw["systems"][name] for name in SYSTEMS}})
    clone.change({"pseudo_labels": {"ficklenet": settings.raw["pseudo_labels"]["ficklenet"] | TINY_LABELS}})
    for name in settings.recipes:
        clone.change({f"recipes.{name}.{key}": value for key, value in TINY_RECIPE.items()})
    for name in settings.classifiers:
        clone.change({f"classifiers.{name}.{key}": value for key, value in TINY_CLASSIFIER.items()})
        clone.change({f"classifiers.{name}.backbone.name": "vgg16_bn", f"classifiers.{name}.backbone.width": 0.0625})
        head = TINY_HEADS[settings.classifiers[name].head.kind]
        clone.change({f"classifiers.{name}.head.{key}": value for key, value in head.items()})
    for name in SYSTEMS:
        small = TINY_NET if name == "ficklenet_semi" else TINY_SYSTEM
        clone.change({f"systems.{name}.{key}": value for key, value in small.items()})
    clone.run("git", "init", "--quiet")
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "--quiet", "--message", "Tiny")
    return clone


def cloned(sources: Clone, folder: Path) -> Clone:
    sources.run("git", "clone", "--quiet", str(sources.folder), str(folder))
    return Clone(folder)


@pytest.fixture(scope="module")
def finished(sources: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which everything has run; tests change copies of it."""
    clone = cloned(sources, tmp_path_factory.mktemp("finished") / "project")
    assert set(clone.repro()) == ALL
    return clone


def test_the_pipeline_makes_the_table_and_the_page(finished: Clone) -> None:
    table = pd.read_csv(finished.folder / "data/report/systems.csv")
    assert table["system"].tolist() == SYSTEMS
    assert table["mean_iou"].between(0, 1).all()
    page = (finished.folder / "data/report/index.html").read_text()
    assert "not recorded on this machine" not in page
    shown = finished.run(sys.executable, "-m", "segcore.commands.show")
    assert str(finished.folder / "data/report/index.html") in shown
    assert "ficklenet_semi" in shown


def test_metrics_and_plots_are_shown(finished: Clone, tmp_path: Path) -> None:
    metrics = json.loads(finished.dvc("metrics", "show", "--json"))[""]["data"]
    assert len(metrics) == len(SYSTEMS) + len(CLASSIFIERS) + 1
    assert 0 <= metrics["data/pseudo_labels/ficklenet/quality.json"]["data"]["precision"] <= 1
    assert 0 <= metrics["data/results/decouplednet/metrics.json"]["data"]["mean_iou"] <= 1
    finished.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    plots = (tmp_path / "plots/index.html").read_text()
    named = YAML(typ="safe", pure=True).load(PROJECT / "dvc.yaml")["plots"]
    titles = [title for entry in named if isinstance(entry, dict) for title in entry]
    assert all(title.replace(" ", "_") in plots for title in titles)
    assert plots.count("var spec") == len(titles)
    assert "data_pseudo_labels_ficklenet_figure.png" in plots


def test_nothing_is_done_twice(finished: Clone) -> None:
    assert "Data and pipelines are up to date." in finished.dvc("repro")
    assert finished.run("git", "status", "--porcelain", "--", "segcore", "stages", "dvc.yaml", "params.yaml") == ""


def test_a_systems_parameter_runs_its_two_stages_again(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copy(tmp_path / "project")
    clone.change({"systems.deconvnet.norm_batches": 3})
    assert clone.repro() == ["train_segmenter@deconvnet", "evaluate@deconvnet", "report"]


def test_a_new_system_is_two_new_stages(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copy(tmp_path / "project")
    before = clone.dvc("stage", "list", "--name-only").split()
    shutil.copy(clone.folder / "segcore/systems/deconvnet.py", clone.folder / "segcore/systems/twin.py")
    entry = reading.read(clone.folder / "params.yaml")["systems"]["deconvnet"]
    clone.change({"systems.twin": {**entry, "module": "twin"}})
    after = clone.dvc("stage", "list", "--name-only").split()
    assert set(after) - set(before) == {"train_segmenter@twin", "evaluate@twin"}
    assert clone.repro() == ["train_segmenter@twin", "evaluate@twin", "report"]
    results = [clone.folder / f"data/results/{name}/confusion_counts.csv" for name in ("deconvnet", "twin")]
    assert results[0].read_bytes() == results[1].read_bytes()


def test_a_second_clone_gives_the_same_hashes(sources: Clone, finished: Clone, tmp_path: Path) -> None:
    second = cloned(sources, tmp_path / "elsewhere")
    assert set(second.repro()) == ALL
    assert second.hashes() == finished.hashes()
