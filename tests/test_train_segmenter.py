"""Training a system through its stage: what it may start from and learn from, and what is refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from segcore.data.manifest import read_manifest
from segcore.data.pictures import write_labels
from segcore.errors import Problem
from segcore.models.systems import load_system
from segcore.processes import Runtime
from tests.tiny import run_stages, tiny_dataset, tiny_params, train_stochastic

VALIDATION, FOREIGN = "val_000", "train_elsewhere"


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, with all that systems start and learn from."""
    folder = tmp_path_factory.mktemp("train_segmenter")
    tiny_dataset(folder)
    here = Path.cwd()
    try:
        os.chdir(folder)
        run_stages("check_params", "prepare", "split", "make_crops", "train_classifier")
        train_stochastic()
        yield folder
    finally:
        os.chdir(here)


def train(out: Path, system: str, **changes: Any) -> dict[str, Any]:
    """Run the stage; the card of what it wrote."""
    run_stages("train_segmenter", system=system, out=out, **changes)
    return json.loads((out / "model/model.json").read_text())


def cues(folder: Path, *more: str) -> Path:
    """Pseudo-labels of the weak images, and of others."""
    ids = [*Path("split/weak.txt").read_text().split(), *more]
    for part in ("cues", "labels"):
        (folder / part).mkdir(parents=True)
    for image_id in ids:
        write_labels(folder / f"cues/{image_id}.png", np.ones((9, 9), dtype=np.uint8))
    (folder / "images.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    return folder


def with_foreign_image(path: Path) -> Path:
    """The manifest with a further training image that is in neither list."""
    table = pd.read_parquet("data/manifest.parquet")
    more = table[table["image_id"] == Path("split/weak.txt").read_text().split()[0]].assign(image_id=FOREIGN)
    pd.concat([table, more]).to_parquet(path)
    return path


@pytest.mark.parametrize("system", ["decouplednet", "deconvnet"])
@pytest.mark.parametrize(
    ("image_id", "found"),
    [
        (VALIDATION, "is a validation image, which is never trained on"),
        (FOREIGN, "is none of the images that this system may learn from"),
        ("gone", "is not in the manifest"),
    ],
)
def test_crops_of_other_than_strong_images_are_refused(image_id: str, found: str, system: str, tmp_path: Path) -> None:
    index = pd.read_parquet("crops/crops.parquet")
    pd.concat([index, index.head(1).assign(image_id=image_id)]).to_parquet(tmp_path / "crops.parquet")
    manifest = with_foreign_image(tmp_path / "manifest.parquet")
    with pytest.raises(Problem, match=f"{image_id} {found}; make these labels anew"):
        train(tmp_path / "out", system, labels=tmp_path, manifest=manifest)
    assert not (tmp_path / "out").exists()


def test_crops_of_weak_images_are_refused(tmp_path: Path) -> None:
    """Of an older split, say: an image that has crops, but is strong no more."""
    strong = Path("split/strong.txt").read_text().split()
    (tmp_path / "strong.txt").write_text("".join(f"{image_id}\n" for image_id in strong[1:]))
    for name in ("weak.txt", "tags.csv"):
        (tmp_path / name).write_text(Path("split", name).read_text())
    with pytest.raises(Problem, match=f"{strong[0]} is none of the images that this system may learn from"):
        train(tmp_path / "out", "decouplednet", split=tmp_path)


@pytest.mark.parametrize("system", ["sec", "dsrg", "ficklenet_semi"])
@pytest.mark.parametrize(
    ("image_id", "found"),
    [
        (VALIDATION, "is a validation image, which is never trained on"),
        (FOREIGN, "is none of the images that this system may learn from"),
        ("gone", "is not in the manifest"),
    ],
)
def test_cues_of_images_in_no_list_are_refused(image_id: str, found: str, system: str, tmp_path: Path) -> None:
    labels, manifest = cues(tmp_path / "labels", image_id), with_foreign_image(tmp_path / "manifest.parquet")
    with pytest.raises(Problem, match=f"{image_id} {found}"):
        train(tmp_path / "out", system, labels=labels, start=Path("stochastic"), manifest=manifest)
    assert not (tmp_path / "out").exists()


def test_weak_images_have_no_mask_to_give(tmp_path: Path) -> None:
    """`images: weak` with `labels: masks`: though the data set has a mask of each, the weak records hold none."""
    params = tiny_params(tmp_path / "params.yaml", **{"systems.deeplab.images": "weak"})
    assert all(record.labels is not None for record in read_manifest(Path("data/manifest.parquet")).values())
    with pytest.raises(Problem, match=r"images have no mask, .*`images: strong`"):
        train(tmp_path / "out", "deeplab", labels=Path("masks"), params=params)
    assert train(tmp_path / "out", "deeplab", labels=Path("masks"))["name"] == "deeplab"


@pytest.mark.parametrize(("system", "labels"), [("deeplab", "masks"), ("deconvnet", "crops"), ("ficklenet_semi", "")])
def test_a_system_starts_from_a_backbone(system: str, labels: str, tmp_path: Path) -> None:
    """What `check_params` wrote of one is a start like any other, and the finished system is one again."""
    params = tiny_params(tmp_path / "params.yaml", **{f"systems.{system}.start": "backbones/vgg"})
    changes = {"labels": Path(labels) if labels else cues(tmp_path / "labels"), "params": params}
    card = train(tmp_path / "out", system, start=Path("backbones/vgg"), **changes)
    origin = card["origin"]
    assert (origin["kind"], origin["name"]) == ("backbone", "vgg")
    assert card["tags"] == origin["tags"] == ["circle", "square", "star"]
    run_stages("evaluate", system=system, model=tmp_path / "out/model", out=tmp_path / "results", params=params)
    assert json.loads((tmp_path / "results/metrics.json").read_text())["images"] == 5
    again = train(tmp_path / "again", system, start=tmp_path / "out", **changes)
    assert again["origin"] == card["origin"]


def test_a_system_that_goes_on_from_a_classifier_says_so(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"fc6 and fc7 of a classifier, but starts from a backbone; set its `start`"):
        train(tmp_path / "out", "decouplednet", start=Path("backbones/vgg"))


def test_how_it_predicts_is_no_part_of_its_training(tmp_path: Path) -> None:
    """The same bytes, whatever `prediction` says; evaluation alone sees a difference."""
    changes = {"threshold": 0.0, "weigh_by_probability": True, "views": "deep"}
    values = {f"systems.decouplednet.prediction.{key}": value for key, value in changes.items()}
    values["views.deep"] = {"scales": [1.0, 1.5], "flip": True}
    params = tiny_params(tmp_path / "params.yaml", **values)
    models = []
    for name, file in (("usual", Path("params.yaml")), ("other", params)):
        train(tmp_path / name, "decouplednet", params=file)
        models.append({path.name: path.read_bytes() for path in (tmp_path / name / "model").iterdir()})
    assert models[0] == models[1]
    given = {"views": {"scales": [1.0, 1.5], "flip": True}, "crf": None, "threshold": 0.0, "weigh_by_probability": True}
    system, _ = load_system(tmp_path / "usual/model", given, Runtime().device)
    assert system.prediction.model_dump(mode="json") == given
