"""What only `params.yaml` names is followed: edited, the stages that read it are handed something else."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel

from segcore.commands import check_params, outside_files
from segcore.config import data as data_sections
from segcore.config import labels, networks, outside, systems, training
from segcore.errors import Problem
from tests.devkit import make_devkit, voc_section, write_params

DATA = Path("data/tiny")
NO_PATHS = {
    "root",  # of the data set: DVC's own dependency
    "shards",  # of the data set: their sums stand in the index, which lies in the root
    "train_list", "val_list",  # names of lists in that root
    "name", "images", "input", "start", "labels", "module", "recipe", "optimizer",
}  # fmt: skip
"""Keys with a text that names no file; `input` does for cues, which lie in the data set's folder."""


def sections(room: Any) -> Iterator[type[BaseModel]]:
    return (one for one in vars(room).values() if isinstance(one, type) and issubclass(one, BaseModel))


def is_text(annotation: Any) -> bool:
    return annotation is str or (get_origin(annotation) is not None and any(map(is_text, get_args(annotation))))


def test_every_key_with_a_text_is_a_path_that_is_followed_or_none() -> None:
    """A new key that names a file must be one of `PLACES`."""
    rooms = (data_sections, labels, networks, systems, training)
    found = {
        key
        for room in rooms
        for section in sections(room)
        for key, field in section.model_fields.items()
        if is_text(field.annotation) and get_origin(field.annotation) is not dict
    }
    assert found - NO_PATHS == {key for _, key in outside.PLACES} - {"input", "root"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose parameters name one file of each kind."""
    monkeypatch.chdir(tmp_path)
    make_devkit(Path("kit"))
    for name in ("tags.csv", "strong.txt", "forest.yml", "vgg.pth"):
        Path(name).write_text(name)
    for folder in ("maps", "sbd/cls", "sbd/img", "data/tiny/cues"):
        Path(folder).mkdir(parents=True)
    for file in ("maps/a.png", "sbd/cls/a.mat", "sbd/img/a.jpg", "data/tiny/cues/theirs.npz"):
        Path(file).write_text(file)
    write_params(Path("params.yaml"), CHANGES)
    return tmp_path


CUES = {"source": "cues_file", "input": "cues/theirs.npz", "input_size": 97, "batch_size": 2, "images": "weak"}
CHANGES: dict[str, Any] = {
    "dataset": voc_section("kit") | {"tags": {"kind": "csv", "file": "tags.csv"}, "sbd_root": "sbd"},
    "split.strong": {"kind": "list", "file": "strong.txt"},
    "crops.edges": {"kind": "structured", "model": "forest.yml", "max_fraction": 0.1},
    "backbones.vgg.weights": "vgg.pth",
    "pseudo_labels.ficklenet.background": {"kind": "saliency", "root": "maps", "threshold": 0.1},
    "pseudo_labels.theirs": CUES,
    "systems.deconvnet.prediction.proposals": 5,
    "systems.deeplab.start": "backbones/vgg",
}


def written() -> dict[str, str]:
    """Everything that the two commands write, by its path."""
    outside_files.main(data=DATA)
    check_params.main(data=DATA)
    return {file.as_posix(): file.read_text() for file in DATA.rglob("*.json")}


CLASSIFIERS = {f"data/tiny/params/train_classifier/{name}.json" for name in ("decoupled", "decoupled_str")}
EDITED = {
    "tags.csv": {"data/tiny/params/prepare.json"},
    "sbd/cls/a.mat": {"data/tiny/params/prepare.json"},
    "strong.txt": {"data/tiny/params/split.json"},
    "forest.yml": {"data/tiny/params/make_crops.json", "data/tiny/params/evaluate/deconvnet.json"},
    "vgg.pth": {"data/tiny/backbones/vgg/model/model.json", *CLASSIFIERS},
    "maps/a.png": {"data/tiny/params/split.json", "data/tiny/params/extract_pseudo_labels/ficklenet.json"},
    "data/tiny/cues/theirs.npz": {
        "data/tiny/params/split.json", "data/tiny/params/extract_pseudo_labels/theirs.json",
    },
}  # fmt: skip


def test_who_is_handed_something_else(project: Path) -> None:
    before = written()
    assert written() == before
    for file, handed in EDITED.items():
        text = Path(file).read_text()
        Path(file).write_text(text.upper())
        after = written()
        assert {name for name in after if after[name] != before[name]} == handed | {"data/tiny/outside_files.json"}, (
            file
        )
        Path(file).unlink()
        gone = written()
        assert {name for name in gone if gone[name] != after[name]} == handed | {"data/tiny/outside_files.json"}, file
        Path(file).write_text(text)
        assert written() == before, "the same content is the same file"
    Path("sbd/img/a.jpg").write_text("of no use")
    assert written() == before


def test_a_table_in_the_root_counts_too(project: Path) -> None:
    before = written()
    Path("kit/tags.csv").write_text("nearer")
    assert written()["data/tiny/params/prepare.json"] != before["data/tiny/params/prepare.json"]


def test_large_files_are_read_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written()

    def never(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("segcore.config.outside.hashlib.file_digest", never)
    assert written() == before
    os.utime("vgg.pth", ns=(1, 1))
    with pytest.raises(AssertionError, match="read again"):
        written()


def test_a_damaged_note_is_no_harm(project: Path) -> None:
    before = written()
    for file in Path(".scratch/outside_files").iterdir():
        file.write_text("[1")
    assert written() == before


def test_parameters_that_are_none_are_judged_by_the_check(project: Path) -> None:
    """All mistakes at once, in its words."""
    write_params(Path("params.yaml"), CHANGES | {"dataset": 3, "split.strong": "all", "backbones.vgg.weights": 7})
    outside_files.main(data=DATA)
    with pytest.raises(
        Problem, match=r"(?s)dataset: found 3.*split.strong: found 'all'.*backbones.vgg.weights: found 7"
    ):
        check_params.main(data=DATA)


def test_the_embedded_set_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"), {})
    outside_files.main(data=DATA)
    assert json.loads((DATA / outside.FILE).read_text()) == {}
    check_params.main(data=DATA)
    assert "files" not in json.loads((DATA / "params/prepare.json").read_text())
    np.testing.assert_equal(sorted(file.name for file in DATA.iterdir()), ["backbones", "outside_files.json", "params"])
