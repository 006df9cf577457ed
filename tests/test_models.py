"""Models on disk: what is saved is what is loaded, bit for bit; what is damaged or of another kind is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from segcore import systems
from segcore.config import reading
from segcore.config.networks import BackboneParams, ClassifierParams
from segcore.errors import Problem
from segcore.models.classifiers import load_classifier, save_classifier
from segcore.models.systems import build_on, load_system, save_system
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier
from segcore.systems._grid import GridSystem
from segcore.systems.contract import System
from tests.devkit import PARAMS
from tests.networks import backbone, build, entry, squares

CPU = torch.device("cpu")
TAGS = ["disc", "ring", "square", "star", "moon"]


def small_classifier(name: str = "vgg16_bn") -> tuple[Classifier, ClassifierParams]:
    """A classifier in eval mode and its parameters, which name a file of weights that is long gone."""
    torch.manual_seed(0)
    params = reading.load(PARAMS).classifiers["decoupled"]
    head = params.head.model_copy(update={"width": 16, "kernel": 2})
    model = classifiers.build(backbone(name), head, len(TAGS))
    gone = BackboneParams.model_validate(backbone(name).model_dump() | {"weights": "gone/weights.pth"})
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    model.trunk(squares(2).images)
    return model.eval(), params.model_copy(update={"backbone": gone, "head": head})


def saved_system(folder: Path, module: str, trunk: str = "vgg16_bn", **changes: Any) -> nn.Module:
    """A system with statistics, saved in folder/system and its classifier in folder/classifier."""
    classifier, params = small_classifier(trunk)
    save_classifier(folder / "classifier", "decoupled", params, TAGS, classifier)
    card = json.loads((folder / "classifier/model.json").read_text())
    classifier.backbone = backbone(trunk)
    system = build(module, classifier, **changes).eval()
    system.finish([squares(3)])
    save_system(folder / "system", "tested", entry(module, **changes), card, 96, system)
    return system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["vgg16_bn", "timm/test_resnet"])
@torch.no_grad()
def test_a_classifier_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model, params = small_classifier(name)
    save_classifier(tmp_path / "new/model", "decoupled", params, TAGS, model)
    loaded, their_params, tags = load_classifier(tmp_path / "new/model", CPU)
    assert their_params == params
    assert loaded.backbone == params.backbone, "a system may want a fresh trunk of the same kind"
    assert tags == TAGS
    assert not any(part.training for part in loaded.modules())
    images = squares(2).images
    expected = model.to(memory_format=torch.channels_last)(images)  # type: ignore[call-overload]
    assert torch.equal(loaded(images).scores, expected.scores)


@pytest.mark.parametrize("module", systems.names())
@pytest.mark.parametrize("trunk", ["vgg16_bn", "timm/test_resnet"])
def test_a_system_comes_back_bit_for_bit(tmp_path: Path, module: str, trunk: str) -> None:
    system = saved_system(tmp_path, module, trunk)
    loaded, card = load_system(tmp_path / "system", CPU)
    assert type(loaded) is type(system)
    assert (card["name"], card["input_size"], card["entry"]["module"]) == ("tested", 96, module)
    assert card["classifier"]["tags"] == TAGS
    for key, value in system.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    images = squares(2, seed=7).images
    assert torch.equal(loaded.predict(images), system.predict(images))  # type: ignore[operator]
    assert not any(part.training for part in loaded.modules())


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether they have the same arrays under the same names."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_new_system_starts_from_a_classifier(tmp_path: Path) -> None:
    classifier, params = small_classifier()
    params = params.model_copy(update={"backbone": backbone("vgg16_bn")})
    save_classifier(tmp_path, "decoupled", params, TAGS, classifier)
    system, card = build_on(tmp_path, lambda built: build("deeplab", built))
    assert isinstance(system, GridSystem)
    assert same(system.network.trunk, classifier.trunk)
    assert (card["kind"], card["name"], card["tags"]) == ("classifier", "decoupled", TAGS)


@pytest.mark.parametrize("module", systems.names())
def test_a_new_system_starts_from_one_of_its_kind(tmp_path: Path, module: str) -> None:
    """The weights are all taken over, and the card names the classifier that was the beginning."""
    first = saved_system(tmp_path, module)
    second, card = build_on(tmp_path / "system", lambda built: build(module, built))
    assert same(first, second)
    assert card == json.loads((tmp_path / "classifier/model.json").read_text())
    save_system(tmp_path / "second", "again", entry(module), card, 96, second)
    assert same(load_system(tmp_path / "second", CPU)[0], first)


def test_a_segmenter_goes_on_from_one_that_learned_otherwise(tmp_path: Path) -> None:
    """DSRG and DeepLab have one network: the step that trains again on what a first one predicts."""
    first = saved_system(tmp_path, "dsrg")
    again, _ = build_on(tmp_path / "system", lambda built: build("deeplab", built, encoder="backbone"))
    assert same(first, again)


@pytest.mark.parametrize(
    ("module", "changes"), [("deeplab", {"width": 8}), ("deeplab", {"branches": [1, 2, 3]}), ("decouplednet", {})]
)
def test_a_start_with_other_layers_is_a_problem(tmp_path: Path, module: str, changes: dict[str, Any]) -> None:
    saved_system(tmp_path, "deeplab")
    with pytest.raises(Problem, match=r"model.safetensors is damaged or of another model"):
        build_on(tmp_path / "system", lambda built: build(module, built, **changes))


def test_a_start_that_is_no_model_is_a_problem(tmp_path: Path) -> None:
    def never(_: Classifier) -> System:
        raise AssertionError

    with pytest.raises(Problem, match="holds no model .*run the stage that trains it"):
        build_on(tmp_path, never)
    (tmp_path / "model.json").write_text(json.dumps({"kind": "picture", "format": 1}))
    with pytest.raises(Problem, match="found a picture of format 1; wanted a classifier or a system of format 1"):
        build_on(tmp_path, never)


def test_deconvnet_of_a_fresh_backbone_needs_no_weights_to_be_loaded(tmp_path: Path) -> None:
    system = saved_system(tmp_path, "deconvnet", "vgg16", encoder="backbone", proposals=3)
    loaded, _ = load_system(tmp_path / "system", CPU)
    assert loaded.proposals == 3
    images = squares(1).images
    assert torch.equal(loaded.predict(images), system.predict(images))  # type: ignore[operator]


def test_the_same_model_is_the_same_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        saved_system(tmp_path / folder, "decouplednet")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a/system" / name).read_bytes() == (tmp_path / "b/system" / name).read_bytes()
    assert {path.name for path in (tmp_path / "a/system").iterdir()} == {"model.json", "model.safetensors"}


def test_what_is_no_model_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="holds no model .*run the stage that trains it"):
        load_system(tmp_path, CPU)
    saved_system(tmp_path, "decouplednet")
    with pytest.raises(Problem, match="found a classifier of format 1; wanted a system of format 1"):
        load_system(tmp_path / "classifier", CPU)
    with pytest.raises(Problem, match="found a system of format 1; wanted a classifier"):
        load_classifier(tmp_path / "system", CPU)
    card = json.loads((tmp_path / "system/model.json").read_text())
    (tmp_path / "system/model.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(Problem, match="of format 99"):
        load_system(tmp_path / "system", CPU)


def test_what_is_damaged_is_a_problem(tmp_path: Path) -> None:
    saved_system(tmp_path, "decouplednet")
    weights = tmp_path / "system/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Problem, match="model.safetensors is damaged"):
        load_system(tmp_path / "system", CPU)
    weights.write_bytes((tmp_path / "classifier/model.safetensors").read_bytes())
    with pytest.raises(Problem, match="of another model"):
        load_system(tmp_path / "system", CPU)
    weights.unlink()
    with pytest.raises(Problem, match="model.safetensors"):
        load_system(tmp_path / "system", CPU)
    (tmp_path / "system/model.json").write_text("{")
    with pytest.raises(Problem, match="model.json is damaged"):
        load_system(tmp_path / "system", CPU)


def test_nothing_but_numbers_and_text_is_stored(tmp_path: Path) -> None:
    saved_system(tmp_path, "decouplednet")
    state = load_file(tmp_path / "system/model.safetensors")
    assert any(key.startswith("classifier.") for key in state)
    assert any(key.startswith("segmenter.") for key in state)
    assert json.loads((tmp_path / "system/model.json").read_text())["format"] == 1
