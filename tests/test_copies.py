"""A small copy of the project with a system of its own, really run by DVC: reported, by another seed, another split."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from segcore.cli.experiments import Copies
from segcore.config.settings import load
from segcore.errors import Problem
from segcore.reporting import kept
from tests import warm
from tests.devkit import make_devkit, voc_section, write_params
from tests.test_new_system import ENTRY, PROJECT, TINY, TOY, run

pytestmark = pytest.mark.slow

KIT = "data/VOCdevkit/VOC2012"
DATA = "data/tiny"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy, in Git, which holds its data set without the pictures; what `dvc repro` said lies beside it."""
    folder = tmp_path_factory.mktemp("copies") / "project"
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
    run(folder, "dvc", "add", "--quiet", f"{KIT}/JPEGImages")
    commit = ("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "Small")
    for command in (("add", "--all"), commit):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder.parent / "repro.log").write_text(run(folder, "dvc", "repro"))
    return folder


def test_a_new_entry_is_trained_scored_and_reported(project: Path) -> None:
    """A system is one file and one entry: its stages come from the entry."""
    stages = re.findall(r"Running stage '(.+)':", (project.parent / "repro.log").read_text())
    assert {"check_params", "prepare", "split", "train_segmenter@toy", "evaluate@toy", "report"} <= {*stages}
    data = project / DATA
    given = json.loads((data / "params/train_segmenter/toy.json").read_text())
    assert given["entry"]["training"] == ENTRY["training"]
    table = pd.read_csv(data / "report/systems.csv")
    assert table["system"].tolist() == ["toy"]
    score = json.loads((data / "results/toy/metrics.json").read_text())["mean_iou"]
    assert table["mean_iou"].tolist() == pytest.approx([score], abs=1e-3)


def test_another_seed_runs_in_a_copy_and_leaves_the_workspace_alone(project: Path) -> None:
    data, params = project / DATA, (project / "params.yaml").read_bytes()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert "toy with seed=1: kept in" in run(project, "segcore.commands.seeds", "--seeds", "1", "--systems", "toy")
    assert (project / "params.yaml").read_bytes() == params
    assert all(path.read_bytes() == content for path, content in before.items())
    mine, other = (json.loads((data / "results/toy" / place / "metrics.json").read_text()) for place in ("", "seeds/1"))
    assert not any((project / ".scratch/experiments").iterdir())
    assert "done before\n" in run(project, "segcore.commands.seeds", "--seeds", "1")
    run(project, "dvc", "repro", "report")
    table = pd.read_csv(data / "report/systems.csv", dtype={"seeds": str})
    assert table["seeds"].tolist() == ["0 1"]
    assert table["mean_over_seeds"].tolist() == pytest.approx([(mine["mean_iou"] + other["mean_iou"]) / 2], abs=1e-4)
    assert run(project, "dvc", "status", "report").strip() == "Data and pipelines are up to date."


def test_a_point_of_the_curve_is_trained_by_its_own_split(project: Path) -> None:
    curve = project / DATA / "curve"
    said = run(project, "segcore.commands.curve", "--systems", "toy", "--masks", "0", "--tagged", "5")
    assert "no point masks_0: it needs masks" in said
    split = json.loads((curve / "toy/tagged_5/0/split.json").read_text())
    assert (split["strong"], split["weak"]) == (6, 5)
    assert pd.read_csv(curve / "curve.csv")["point"].tolist() == ["tagged_5"]
    assert "one amount of annotation tells nothing of another" in (curve / "advice.txt").read_text()


def test_what_failed_is_told_with_the_last_lines_of_dvc(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are not so many masks; the copy stays, for the next try."""
    monkeypatch.setattr(sys, "executable", str(warm.folder() / "python"))
    copies = Copies(project, project / "params.yaml")
    changes = {"seed": 0, "split.strong": {"kind": "per_class", "images": 9}}
    wanted = kept.Experiment("toy", changes, project / DATA / "curve/toy/masks_9/0")
    (failed,) = copies.perform([wanted], load(project / "params.yaml"), None, keep_copies=False, anew=False)
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
