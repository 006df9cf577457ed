"""What a user gets wrong at the command line ends in one clear sentence, exit code 2, and no half-written output."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from segcore.cli import command
from segcore.commands import check_params, show
from segcore.errors import Problem
from stages import (
    evaluate,
    extract_pseudo_labels,
    make_crops,
    prepare,
    report,
    split,
    train_classifier,
    train_segmenter,
)
from tests.devkit import PROJECT, make_devkit, voc_section, write_params

MANIFEST = ["--manifest", "data/prepared/manifest.parquet"]
CLASSES = ["--classes", "data/prepared/classes.json"]
SPLIT = ["--split", "data/split"]
NOTHING_THERE = ["--model", "data/segmenters/deconvnet/model"]

STAGES: dict[ModuleType, list[str]] = {
    prepare: ["--out", "out"],
    split: [*MANIFEST, *CLASSES, "--out", "out", "--masks", "out"],
    train_classifier: ["--name", "decoupled", *MANIFEST, *CLASSES, *SPLIT, "--out", "out"],
    make_crops: [*MANIFEST, *CLASSES, *SPLIT, "--out", "out"],
    extract_pseudo_labels: [
        *("--name", "ficklenet", *MANIFEST, *CLASSES, *SPLIT),
        *("--input", "data/classifiers/ficklenet", "--out", "out"),
    ],
    train_segmenter: [
        *("--system", "deconvnet", *MANIFEST, *CLASSES, *SPLIT, "--labels", "data/crops"),
        *("--start", "data/classifiers/decoupled_str", "--out", "out"),
    ],
    evaluate: ["--system", "deconvnet", *MANIFEST, *CLASSES, *SPLIT, *NOTHING_THERE, "--out", "out"],
    report: ["--data", "data/none"],
}
CHECKED: dict[ModuleType, list[str]] = {check_params: ["--data", "out"], **STAGES}
"""Those that read params.yaml: the command that DVC runs first, and the stages, which a person may run by hand."""

Fails = Callable[..., str]


def changed(values: dict[str, Any]) -> None:
    kit: dict[str, Any] = {"dataset": voc_section("kit"), "split.strong.images": 1}
    write_params(Path("params.yaml"), kit | values)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of which `prepare` and `split` have run."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_devkit(folder / "kit")
        changed({})
        prepare.main(out=Path("data/prepared"))
        split.main(manifest=Path(MANIFEST[1]), classes=Path(CLASSES[1]), out=Path(SPLIT[1]), masks=Path("data/masks"))
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to run stages in and to spoil."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a stage as the command line does; returns what is said, once it has failed as it must."""

    def go(stage: ModuleType, *options: str) -> str:
        before = files(project)
        monkeypatch.setattr(sys, "argv", [stage.__name__, *(options or CHECKED[stage])])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command.start(stage.main)
        said = "".join(capsys.readouterr())
        assert ended.value.code == 2, said
        assert "Traceback" not in said
        assert files(project) == before
        return said

    return go


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".scratch" not in path.parts}


def name_of(stage: ModuleType) -> str:
    return stage.__name__.rpartition(".")[2]


@pytest.mark.parametrize("stage", CHECKED, ids=name_of)
def test_a_mistake_in_any_section_stops_every_stage(fails: Fails, stage: ModuleType) -> None:
    changed({"recipes.segmenter.learnin_rate": 0.1, "systems.decouplednet.prediction.threshold": "0.5"})
    said = fails(stage)
    assert said.startswith("error: params.yaml has a mistake:")
    assert "recipes.segmenter.learnin_rate: unknown key" in said
    assert "did you mean 'learning_rate'?" in said


@pytest.mark.parametrize("stage", CHECKED, ids=name_of)
def test_a_mistake_in_a_systems_own_part_stops_every_stage(fails: Fails, stage: ModuleType) -> None:
    changed({"systems.decouplednet.prediction.threshold": "0.5"})
    assert "systems.decouplednet.prediction.threshold: found '0.5'; must be a valid number" in fails(stage)


def test_as_a_process_too(project: Path) -> None:
    changed({"recipes.segmenter.learnin_rate": 0.1})
    command = [sys.executable, "-m", "stages.split", *STAGES[split]]
    path = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "HOME": str(project)}
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, env=path)
    assert ended.returncode == 2
    assert ended.stderr == ""
    assert ended.stdout.startswith("error: params.yaml has a mistake:\n  - recipes.segmenter.learnin_rate: unknown key")


@pytest.mark.parametrize("stage", CHECKED, ids=name_of)
def test_params_yaml_is_missing(fails: Fails, stage: ModuleType) -> None:
    Path("params.yaml").unlink()
    assert "error: there is no parameters file params.yaml; start from one of profiles/*.yaml" in fails(stage)


@pytest.mark.parametrize("stage", list(STAGES)[1:-1], ids=name_of)
def test_an_input_is_missing(fails: Fails, stage: ModuleType) -> None:
    shutil.rmtree("data")
    said = fails(stage)
    assert said.startswith("error: ")
    assert "data/" in said
    assert "dvc repro" in said or "run the stage that trains it" in said


@pytest.mark.parametrize("stage", [split, train_classifier, make_crops, extract_pseudo_labels, evaluate])
def test_the_manifest_is_broken(fails: Fails, stage: ModuleType) -> None:
    Path(MANIFEST[1]).write_bytes(Path(MANIFEST[1]).read_bytes()[:-40])
    said = fails(stage)
    assert f"{MANIFEST[1]} is no manifest" in said
    assert "run `dvc repro prepare`" in said


@pytest.mark.parametrize("content", ['["background", "circ', "{}", '["background", 3]'])
@pytest.mark.parametrize("stage", [split, train_classifier, make_crops, extract_pseudo_labels, evaluate])
def test_the_class_names_are_broken(fails: Fails, stage: ModuleType, content: str) -> None:
    Path(CLASSES[1]).write_text(content)
    assert re.search(rf"{CLASSES[1]} (is damaged|holds no list).*; run `dvc repro prepare`", fails(stage))


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_validation_images_are_never_trained_on(fails: Fails, name: str) -> None:
    shutil.copy("data/split/val.txt", f"data/split/{name}.txt")
    stage = {"weak": train_classifier, "strong": make_crops}[name]
    assert "validation image" in fails(stage)


def test_a_picture_that_was_damaged_since(project: Path) -> None:
    """A validation image, which is read only after all steps."""
    (measured, *_) = Path("data/split/val.txt").read_text().split()
    picture = Path(f"kit/JPEGImages/{measured}.jpg")
    picture.write_bytes(picture.read_bytes()[:-50])
    changed({"recipes.classifier.steps": 1, "recipes.classifier.batch_size": 2})
    with pytest.raises(Problem, match=f"{picture} cannot be read"):
        train_classifier.main(
            name="decoupled",
            manifest=Path(MANIFEST[1]),
            classes=Path(CLASSES[1]),
            split=Path(SPLIT[1]),
            out=Path("out"),
        )
    assert not Path("out/model").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("weights", "imagenett", "found 'imagenett'; it must be random, imagenet, package or an existing file"),
        ("weights", "imagenett", "did you mean 'imagenet'?"),
        ("weights", "gone.safetensors", "found 'gone.safetensors'"),
        ("name", "timm/resnt18", "timm has no model 'resnt18'; near it are "),
    ],
)
def test_no_classifier_is_trained_before_another_s_network_is_found(
    fails: Fails, key: str, value: str, said: str
) -> None:
    small = {"backbones.vgg_fine.width": 1.0, "backbones.vgg_fine.normalisation": "timm"} if key == "name" else {}
    changed({f"backbones.vgg_fine.{key}": value, **small})
    found = fails(train_classifier)
    assert f"backbones.vgg_fine.{key}: " in found
    assert said in found


@pytest.mark.parametrize("stage", [check_params, split, report], ids=name_of)
def test_only_the_first_process_writes(project: Path, stage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", [stage.__name__, *CHECKED[stage]])
    before = files(project)
    with pytest.raises(SystemExit) as ended:
        command.start(stage.main)
    assert ended.value.code == 0
    assert files(project) == before


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("nowhere", "dataset.root: nowhere: there is no such folder"),
        (".", "dataset.root: .: it has no folder JPEGImages/; did you mean kit?"),
        ("kit/classes.txt", "dataset.root: kit/classes.txt: there is no such folder"),
    ],
)
def test_the_data_set_is_elsewhere(fails: Fails, root: str, said: str) -> None:
    changed({"dataset.root": root})
    assert said in fails(prepare)


def test_a_list_of_strong_images_is_missing(fails: Fails) -> None:
    changed({"split.strong": {"kind": "list", "file": "mine.txt"}})
    assert "split.strong.file: mine.txt cannot be read" in fails(split)


def test_there_are_not_enough_masks(fails: Fails) -> None:
    changed({"split.strong.images": 50})
    said = fails(split)
    assert "circle" in said
    assert "50" in said


def test_names_that_params_yaml_does_not_have(fails: Fails) -> None:
    options = STAGES[train_classifier][2:]
    said = fails(train_classifier, "--name", "decuopled", *options)
    assert "there is no classifier 'decuopled' in params.yaml; it has decoupled, decoupled_str" in said
    said = fails(evaluate, "--system", "unet", *STAGES[evaluate][2:])
    assert "there is no system 'unet' in params.yaml; it has deconvnet, decouplednet" in said
    said = fails(train_segmenter, "--system", "unet", *STAGES[train_segmenter][2:])
    assert "there is no system 'unet' in params.yaml" in said
    said = fails(extract_pseudo_labels, "--name", "fickelnet", *STAGES[extract_pseudo_labels][2:])
    assert "there is no pseudo-label set 'fickelnet' in params.yaml; it has deterministic, ficklenet" in said


def test_there_is_no_model(fails: Fails) -> None:
    assert "data/classifiers/decoupled_str/model holds no model" in fails(train_segmenter)
    assert "data/segmenters/deconvnet/model holds no model" in fails(evaluate)
    assert "data/classifiers/ficklenet: not there; `dvc repro` makes what a stage needs" in fails(extract_pseudo_labels)


def test_a_list_names_an_image_that_the_manifest_lacks(fails: Fails) -> None:
    for name in ("weak", "strong", "val"):
        with Path(f"data/split/{name}.txt").open("a") as file:
            file.write("stranger\n")
    for stage in (train_classifier, make_crops, extract_pseudo_labels):
        said = fails(stage)
        assert "stranger" in said
        assert "dvc repro split" in said


def test_there_are_no_images_to_train_on(fails: Fails) -> None:
    Path("data/split/weak.txt").write_text("")
    assert "there are no training samples; check the split" in fails(train_classifier)
    assert "the list of weak images is empty; run `dvc repro split`" in fails(extract_pseudo_labels)


def test_nothing_to_report_and_nothing_to_show(fails: Fails) -> None:
    for stage, *options in ((report,), (show, "--params", "params.yaml")):
        said = fails(stage, *options)
        assert "holds no results of any system yet" in said
        assert "run `dvc repro evaluate@" in said


def test_an_option_is_missing_or_unknown(fails: Fails) -> None:
    assert "Missing option '--manifest'" in fails(split, "--out", "out")
    assert "No such option: --ouy" in fails(prepare, "--ouy", "x")


def test_the_output_cannot_be_written(fails: Fails) -> None:
    Path("out").write_text("a file in the way")
    for stage in (prepare, split):
        assert "out" in fails(stage)
