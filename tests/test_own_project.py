"""A project of a person's own, from nothing to masks of other photographs, by the command line alone."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as untyped
from ruamel.yaml import YAML
from typer.testing import CliRunner

import segcore
from segcore import projects
from segcore.commands.main import app
from segcore.commands.new import RECOMMENDED
from segcore.config.reading import parsed
from segcore.config.settings import Settings
from segcore.data.pictures import read_labels
from segcore.errors import Problem
from tests import warm
from tests.devkit import PROJECT, changed, draw

coco_masks: Any = untyped
TINY: dict[str, Any] = {
    "crops.per_subset": 2, "crops.warp": 72, "crops.input_size": 64, "recipes.common.warmup_steps": 0,
    "recipes.grid.steps": 3, "recipes.grid.batch_size": 2, "networks.grid.width": 8, "networks.grid.input_size": 65,
    "backbones.lite.weights": "random", "evaluation.panels": 3,
}  # fmt: skip
SIZE = (72, 56)
DATA = "data/cups"


def run(folder: Path, *command: str, code: int = 0) -> str:
    """What a command of this Python says in the folder, and ends with the code."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
    environment = own | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "DVC_NO_ANALYTICS": "1", "CUDA_VISIBLE_DEVICES": "",
        "DVC_SITE_CACHE_DIR": str(folder / ".." / "site"), "COLUMNS": "200",
        "PATH": warm.path(),
    }  # fmt: skip
    done = subprocess.run(
        ["python", "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def cli(folder: Path, *arguments: str, code: int = 0) -> str:
    """What a command of segcore says in the folder, in this process: torch is imported once."""
    with contextlib.chdir(folder), patch.object(sys, "executable", str(warm.folder() / "python")):
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def coco_data_set(folder: Path, count: int = 14) -> None:
    """photos/ and instances.json: every third photograph shows two things, the last one nothing that anybody told."""
    (folder / "photos").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        shown = [1 + number % 2] if number % 3 else [1, 2]
        picture, labels = draw(SIZE, shown, np.random.default_rng([7, number]))
        Image.fromarray(picture).save(folder / f"photos/IMG {number:04d}.JPG", quality=95)
        size = {"width": SIZE[0], "height": SIZE[1]}
        images.append({"id": number, "file_name": f"IMG {number:04d}.JPG"} | size)
        for index in shown if number < count - 1 else []:
            runs = coco_masks.encode(np.asfortranarray((labels == index).astype(np.uint8)))
            segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": 10 * index, "iscrowd": 0,
                 "area": int((labels == index).sum()), "segmentation": segmentation}
            )  # fmt: skip
    categories = [{"id": 10, "name": "cup"}, {"id": 20, "name": "tea spoon"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `segcore new`, `segcore import` and `dvc repro report`."""
    top = tmp_path_factory.mktemp("own")
    coco_data_set(top)
    run(top, "segcore", "new", "cups", "--systems", "deeplab", "--name", "cups")
    folder = top / "cups"
    YAML().dump(changed(TINY, folder / "params.yaml"), folder / "params.yaml")
    run(folder, "segcore", "import", "coco", "../instances.json", "--into", "images", "--val", "0.25")
    run(folder, "dvc", "repro", "report")
    return folder


def test_the_pipeline_runs_to_its_end_and_not_again(project: Path) -> None:
    table = pd.read_csv(project / DATA / "report/systems.csv")
    assert table["system"].tolist() == ["deeplab"]
    assert (project / DATA / "report/index.html").is_file()
    card = json.loads((project / DATA / "prepared/dataset.json").read_text())
    assert card["images"]["train"] + card["images"]["val"] == 13
    assert re.findall(r"Running stage '(.+)':", run(project, "dvc", "repro", "report")) == [
        "outside_files"
    ]  # which always runs
    ignored = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True).stdout
    assert not re.search(r"images/|\.safetensors|\.parquet", ignored)


class TestPredict:
    def test_photographs_become_masks_of_their_size(self, project: Path, tmp_path: Path) -> None:
        model, photos = f"{DATA}/segmenters/deeplab", project.parent / "photos"
        out = tmp_path / "out"
        said = cli(project, "predict", model, str(photos), "--out", str(out), "--overlay", "--confidence")
        assert "14 pictures predicted" in said
        labels = read_labels(out / "masks/IMG 0003.png")
        assert labels.shape == SIZE[::-1]
        assert labels.max() <= 2
        assert np.array_equal(labels, segcore.load(project / model).predict(photos / "IMG 0003.JPG"))
        table = pd.read_csv(out / "predictions.csv")
        assert len(table) == 14
        shares = table.filter(like="share:")
        assert np.allclose(shares.sum(axis=1), 1, atol=1e-4)
        row = table[table["image"] == "IMG 0003.JPG"].iloc[0]
        assert row["share:background"] == pytest.approx((labels == 0).mean(), abs=1e-5)
        probabilities = table.filter(like="probability:").to_numpy()
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        with Image.open(out / "overlays/IMG 0003.jpg") as image, Image.open(out / "confidence/IMG 0003.png") as sure:
            assert image.size == sure.size == SIZE

    def test_a_bad_picture_is_told_and_the_rest_done_once(self, project: Path, tmp_path: Path) -> None:
        model, photos = f"{DATA}/segmenters/deeplab", project.parent / "photos"
        folder = tmp_path / "in"
        for number in range(5):
            place = folder / f"day {number % 2}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((photos / f"IMG {number:04d}.JPG").read_bytes())
        (folder / "broken.png").write_bytes(b"\x89PNG no")
        command = ("predict", model, str(folder), "--out", str(tmp_path / "out"), "--batch", "2")
        said = cli(project, *command, code=1)
        assert re.search(r"left out: .*broken\.png", said)
        assert "5 pictures predicted, 1 left out" in said
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/masks").rglob("*.png")}
        assert len(times) == 5
        (tmp_path / "out/masks/day 1/3.png").unlink()
        said = cli(project, *command, code=1)
        assert re.search(r"\d pictures predicted, \d were there already, 1 left out", said)
        assert len([*(tmp_path / "out/masks").rglob("*.png")]) == 5
        assert (tmp_path / "out/masks/day 0/0.png").stat().st_mtime_ns == times[tmp_path / "out/masks/day 0/0.png"]

    def test_shards_give_what_one_run_gives(self, project: Path, tmp_path: Path) -> None:
        model, photos = f"{DATA}/segmenters/deeplab", str(project.parent / "photos")
        command = ("predict", model, photos, "--batch", "3", "--out")
        cli(project, *command, str(tmp_path / "whole"))
        for shard in ("1/2", "2/2"):
            cli(project, *command, str(tmp_path / "parts"), "--shard", shard)
        for file in ("predictions.csv", *(f"masks/IMG {number:04d}.png" for number in range(14))):
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()

    def test_tags_limit_what_is_found(self, project: Path, tmp_path: Path) -> None:
        (tmp_path / "tags.csv").write_text("image_id,tags\nIMG 0000,cup\nIMG 0001,\n")
        photos = [str(project.parent / f"photos/IMG {number:04d}.JPG") for number in (0, 1)]
        command = ("predict", f"{DATA}/segmenters/deeplab", *photos, "--tags", str(tmp_path / "tags.csv"))
        cli(project, *command, "--out", str(tmp_path / "out"))
        assert 2 not in read_labels(tmp_path / "out/masks/IMG 0000.png")
        assert not read_labels(tmp_path / "out/masks/IMG 0001.png").any()
        assert "other options" in cli(project, *command[:-2], "--out", str(tmp_path / "out"), code=2)

    @pytest.mark.parametrize("kind", ["coco", "geojson"])
    def test_outlines_are_those_of_the_masks(self, project: Path, tmp_path: Path, kind: str) -> None:
        photos, out = str(project.parent / "photos"), tmp_path / "out"
        command = ("predict", f"{DATA}/segmenters/deeplab", photos, "--out", str(out), "--polygons", kind)
        cli(project, *command)
        labels = read_labels(out / "masks/IMG 0003.png")
        areas = {index: int((labels == index).sum()) for index in (1, 2) if (labels == index).any()}
        if kind == "geojson":
            features = json.loads((out / "polygons/IMG 0003.geojson").read_text())["features"]
            found = [(one["properties"]["index"], one["properties"]["area"]) for one in features]
        else:
            whole = json.loads((out / "polygons.json").read_text())
            ids = {one["file_name"]: one["id"] for one in whole["images"]}
            assert len(ids) == 14
            assert [one["id"] for one in whole["annotations"]] == [*range(1, len(whole["annotations"]) + 1)]
            assert [one["name"] for one in whole["categories"]] == ["cup", "tea_spoon"]
            own = [one for one in whole["annotations"] if one["image_id"] == ids["IMG 0003.JPG"]]
            found = [(one["category_id"], one["area"]) for one in own]
        assert {index: sum(area for k, area in found if k == index) for index, _ in found} == areas
        again = cli(project, *command)
        assert "0 pictures predicted, 14 were there already" in again
        changed = cli(project, *command, "--per", "class")
        assert "14 pictures predicted, 0 left out" in changed or not areas

    def test_large_pictures_are_predicted_in_windows(self, project: Path, tmp_path: Path) -> None:
        model = f"{DATA}/segmenters/deeplab"
        photos = [str(project.parent / f"photos/IMG {number:04d}.JPG") for number in (0, 1)]
        command = ("predict", model, *photos, "--out")
        cli(project, *command, str(tmp_path / "whole"))
        cli(project, *command, str(tmp_path / "fits"), "--tile", str(max(SIZE)))
        cli(project, *command, str(tmp_path / "parts"), "--tile", "40", "--overlap", "12", "--confidence")
        mask = "masks/IMG 0000.png"
        assert (tmp_path / "whole" / mask).read_bytes() == (tmp_path / "fits" / mask).read_bytes()
        assert read_labels(tmp_path / "parts" / mask).shape == SIZE[::-1]
        assert "other options" in cli(project, *command, str(tmp_path / "parts"), "--tile", "own", code=2)
        for wrong, said in (
            (("--tile", "big"), "own for the network's own 65"),
            (("--tile", "40", "--overlap", "21"), "0 to half"),
            (("--overlap", "4"), "give --tile"),
            (("--polygons", "svg"), "coco or geojson"),
            (("--polygons", "coco", "--per", "pixel"), "component or class"),
        ):
            assert said in cli(project, *command, str(tmp_path / "never"), *wrong, code=2)

    def test_predictions_go_to_an_annotator(self, project: Path, tmp_path: Path) -> None:
        photos = str(project.parent / "photos")
        cli(project, "predict", f"{DATA}/segmenters/deeplab", photos, "--out", str(tmp_path / "out"))
        cli(project, "export", "label-studio", str(tmp_path / "out"), "--out", str(tmp_path / "tasks.json"))
        tasks = json.loads((tmp_path / "tasks.json").read_text())
        assert [len(task["predictions"]) for task in tasks] == [1] * 14
        assert (tmp_path / "tasks.xml").read_text().startswith("<View>")

    def test_a_model_outside_of_its_project_needs_to_be_told_how(self, project: Path, tmp_path: Path) -> None:
        model = project / DATA / "segmenters/deeplab/model"
        (tmp_path / "a/b/model").mkdir(parents=True)
        for file in model.iterdir():
            (tmp_path / "a/b/model" / file.name).write_bytes(file.read_bytes())
        with pytest.raises(Problem, match="nothing says how 'deeplab' predicts"):
            segcore.load(tmp_path / "a/b/model")
        how = project / DATA / "params/evaluate/deeplab.json"
        (tmp_path / "a/b/model/prediction.json").write_text(how.read_text())
        photo = project.parent / "photos/IMG 0000.JPG"
        assert np.array_equal(segcore.load(tmp_path / "a/b/model").predict(photo), segcore.load(model).predict(photo))


class TestProject:
    def test_a_project_of_another_segcore_is_refused_until_it_is_upgraded(self, project: Path) -> None:
        stamp = project / projects.STAMP
        before = stamp.read_text()
        stamp.write_text(before.replace("code", "kode"))
        try:
            assert "there are check_params" in run(project, "segcore", "stage", "train", code=2)
            said = run(project, "segcore", "stage", "split", code=2)
            assert "segcore upgrade" in said
            run(project, "segcore", "upgrade")
            assert stamp.read_text() == before
        finally:
            stamp.write_text(before)

    def test_no_stage_depends_on_source_files(self) -> None:
        text = projects.dvc_yaml()
        stages = YAML(typ="safe", pure=True).load(text)["stages"]
        own = YAML(typ="safe", pure=True).load((PROJECT / "dvc.yaml").read_text())["stages"]
        assert stages.keys() == own.keys()
        for name, stage in stages.items():
            stage, other = stage.get("do", stage), own[name].get("do", own[name])
            if name == "outside_files":  # it always runs
                assert "deps" not in stage
                continue
            assert stage["deps"].count(projects.STAMP) == (name == "check_params")
            kept = [dep for dep in other["deps"] if not dep.startswith(("segcore", "stages"))]
            assert [dep for dep in stage["deps"] if dep != projects.STAMP] == kept
            assert stage["cmd"].startswith(f"python -m segcore stage {name} ")
            assert {key: value for key, value in stage.items() if key not in ("deps", "cmd")} == {
                key: value for key, value in other.items() if key not in ("deps", "cmd")
            }

    @pytest.mark.parametrize("trunk", projects.TRUNKS)
    @pytest.mark.parametrize(
        "systems", [(RECOMMENDED,), ("deeplab",), ("decouplednet", "ficklenet_semi"), ("deconvnet",)]
    )
    def test_what_is_asked_for_is_a_valid_params_yaml(self, trunk: str, systems: tuple[str, ...]) -> None:
        text = projects.params_yaml(projects.Wishes("mine", "pictures", trunk, True, systems))
        settings = Settings(parsed(text, "params.yaml"))
        assert {*settings.systems} == {*systems}
        assert (settings.dataset.name, settings.dataset.root) == ("mine", "pictures")
        used = {settings.origin_of(name)[1] for name in systems} | {*settings.classifiers}
        assert {*settings.classifiers} <= used
        assert trunk in settings.backbones or systems == ("deconvnet",)

    def test_systems_of_tags_alone_need_no_mask(self) -> None:
        def needing(*systems: str) -> list[str]:
            text = projects.params_yaml(projects.Wishes("mine", "pictures", "lite", False, systems))
            return Settings(parsed(text, "params.yaml")).needing_masks

        assert needing("wssl_tags", "sec", "ficklenet") == []
        assert needing("wssl_tags", "deeplab", "decouplednet") == ["systems.decouplednet", "systems.deeplab"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("new", "."), "not empty"),
            (("new", "x", "--trunk", "resnet5"), "did you mean 'resnet50'"),
            (("new", "x", "--systems", "deeplap"), "did you mean 'deeplab'"),
            (("predict", "nowhere", "x.jpg", "--out", "o"), "holds no model"),
            (("import", "coco", "nothing.json", "--into", "o"), "there is no such file"),
            (("export", "coco", ".", "--out", "o"), "neither a data set"),
        ],
    )
    def test_mistakes_are_one_message_and_code_two(self, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
        (tmp_path / "something").touch()
        told = cli(tmp_path, *arguments, code=2)
        assert said in told
        assert "Traceback" not in told

    @pytest.mark.parametrize("command", ["new", "upgrade", "import", "predict", "export"])
    def test_every_command_shows_an_example(self, tmp_path: Path, command: str) -> None:
        assert re.search(rf"Example:\n +segcore {command} ", cli(tmp_path, command, "--help"))
