"""Models on disk: what is saved is what is loaded, bit for bit; what is damaged or of another kind is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from segcore import systems
from segcore.config import reading, settings
from segcore.config.classifiers import ClassifierParams, FittedParams
from segcore.config.networks import BackboneParams
from segcore.errors import Problem
from segcore.models.classifiers import load_classifier, save_classifier
from segcore.models.systems import build_on, load_system, save_backbone, save_system
from segcore.networks import backbones, classifiers
from segcore.networks.classifiers import Classifier
from segcore.networks.origin import Origin
from segcore.systems import deeplab
from segcore.systems._grid import GridSystem
from segcore.systems.contract import OpenSystem, System
from segcore.systems.deeplab import DeepLabSystem
from tests.devkit import PARAMS
from tests.networks import backbone, build, entry, linear_classifier, origin, params_of, squares

CPU = torch.device("cpu")
TAGS = ["disc", "ring", "square", "star", "moon"]


def small_classifier(name: str = "vgg16_bn") -> tuple[Classifier, ClassifierParams]:
    """A classifier in eval mode and its parameters, which name a file of weights that is long gone."""
    torch.manual_seed(0)
    params = settings.load(PARAMS).classifiers["decoupled"]
    head = params.head.model_copy(update={"width": 16, "kernel": 2})
    model = classifiers.build(backbone(name), head, len(TAGS))
    gone = backbone(name, weights="gone/weights.pth")
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    model.trunk(squares(2).images)
    return model.eval(), params.model_copy(update={"backbone": gone, "head": head})


def fitted_classifier(name: str) -> tuple[Classifier, FittedParams]:
    """The same with a linear head."""
    model = linear_classifier(name)
    given = {
        "images": "weak",
        "backbone": backbone(name).model_dump(),
        "head": {
            "kind": "pooled",
            "input_size": 96,
            "levels": 1,
            "pools": ["mean", "max"],
            "views": {"scales": [1.0], "flip": False},
        },
        "fit": {"strengths": [0.1], "class_weights": {"kind": "none"}},
    }
    return model, reading.section({"classifiers": {"linear": given}}, "classifiers.linear", FittedParams)


def saved_system(folder: Path, module: str, trunk: str = "vgg16_bn", **changes: Any) -> System:
    """A system with statistics, saved in folder/system and its classifier in folder/classifier."""
    linear = entry(module)["start"] == "classifiers/linear"
    classifier, params = fitted_classifier(trunk) if linear else small_classifier(trunk)
    save_classifier(folder / "classifier", "linear" if linear else "decoupled", params, TAGS, classifier)
    classifier.backbone = backbone(trunk)
    system = build(module, classifier, **changes).eval()
    system.finish([squares(3)])
    save(folder / "system", module, card_in(folder / "classifier"), system, **changes)
    return system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def save(folder: Path, module: str, card: dict[str, Any], system: System, **changes: Any) -> None:
    """Save a system as the stage does."""
    save_system(folder, "tested", module, entry(module, training=changes)["training"], card, 96, system)


def load(folder: Path, module: str, **changes: Any) -> tuple[System, dict[str, Any]]:
    """Load a system to predict as its small entry says, or with changes; its layers as they were trained."""
    return load_system(folder, entry(module, prediction=changes)["prediction"], CPU, as_trained=True)


def card_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def start(folder: Path, module: str, tags: list[str] = TAGS, **changes: Any) -> tuple[System, dict[str, Any]]:
    """A new system that starts from what is in a folder, and the card of its origin."""
    built = params_of(module, **changes)
    return build_on(folder, tags, lambda origin: systems.load(module).build(built, origin))


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
    loaded, card = load(tmp_path / "system", module)
    assert type(loaded) is type(system)
    assert (card["name"], card["input_size"], card["module"]) == ("tested", 96, module)
    assert card["training"] == entry(module)["training"]
    assert card["tags"] == card["origin"]["tags"] == TAGS
    assert loaded.params == system.params
    assert loaded.prediction == system.prediction
    for key, value in system.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    images = squares(2, seed=7).images
    assert torch.equal(loaded.predict(images), system.predict(images))
    assert not any(part.training for part in loaded.modules())


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether they have the same arrays under the same names."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_new_system_starts_from_a_classifier(tmp_path: Path) -> None:
    classifier, params = small_classifier()
    params = params.model_copy(update={"backbone": backbone("vgg16_bn")})
    save_classifier(tmp_path, "decoupled", params, TAGS, classifier)
    system, card = start(tmp_path, "deeplab")
    assert isinstance(system, GridSystem)
    assert same(system.network.trunk, classifier.trunk)
    assert (card["kind"], card["name"], card["tags"]) == ("classifier", "decoupled", TAGS)


@pytest.mark.parametrize("module", sorted({*systems.names()} - {"decouplednet", "decoupled_fpn"}))
def test_a_new_system_starts_from_a_backbone(tmp_path: Path, module: str) -> None:
    """Its weights are those that the backbone names, in the file; once trained, it needs that file no more."""
    weights = backbones.build(backbone("vgg16")).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    params = backbone("vgg16", weights=str(tmp_path / "weights.safetensors"))
    save_backbone(tmp_path / "backbone", "vgg", params)
    assert [path.name for path in (tmp_path / "backbone").iterdir()] == ["model.json"]
    system, card = start(tmp_path / "backbone", module)
    trunk = system.trunk if isinstance(system, OpenSystem) else system.get_submodule("network.trunk")
    ours = [layer.weight for layer in trunk.modules() if isinstance(layer, nn.Conv2d)]
    theirs = [value for name, value in weights.items() if name.endswith(".weight")]
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert (card["kind"], card["name"], card["tags"]) == ("backbone", "vgg", TAGS)
    system.eval().finish([squares(3)])
    save(tmp_path / "system", module, card, system)
    (tmp_path / "weights.safetensors").unlink()
    loaded, _ = load(tmp_path / "system", module)
    assert same(loaded, system)
    # What goes on from it has the same beginning.
    _, again = start(tmp_path / "system", module)
    assert again == card


def test_a_backbone_whose_weights_are_missing_is_a_problem(tmp_path: Path) -> None:
    save_backbone(tmp_path, "vgg", backbone("vgg16", weights=str(tmp_path / "gone.safetensors")))
    with pytest.raises(Problem, match=r"gone\.safetensors"):
        start(tmp_path, "deeplab")


@pytest.mark.parametrize("module", systems.names())
def test_a_new_system_starts_from_one_of_its_kind(tmp_path: Path, module: str) -> None:
    """The weights are all taken over, and the card names the classifier that was the beginning."""
    first = saved_system(tmp_path, module)
    second, card = start(tmp_path / "system", module)
    assert same(first, second)
    assert card == card_in(tmp_path / "classifier")
    save(tmp_path / "second", module, card, second)
    assert same(load(tmp_path / "second", module)[0], first)


@pytest.mark.parametrize("kind", ["classifier", "system"])
def test_a_start_of_other_tags_is_a_problem(kind: str, tmp_path: Path) -> None:
    saved_system(tmp_path, "deeplab")
    for tags in ([*TAGS[:-1], "sun"], TAGS[:-1], TAGS[::-1]):
        with pytest.raises(
            Problem, match=rf"{kind} was trained for \['disc', .* but the data set has .*train it again"
        ):
            start(tmp_path / kind, "deeplab", tags)


def test_a_segmenter_goes_on_from_one_that_learned_otherwise(tmp_path: Path) -> None:
    """DSRG and DeepLab have one network: the step that trains again on what a first one predicts."""
    first = saved_system(tmp_path, "dsrg")
    again, _ = start(tmp_path / "system", "deeplab")
    assert same(first, again)


def test_how_a_system_predicts_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    saved_system(tmp_path, "decouplednet")
    assert "prediction" not in card_in(tmp_path / "system")
    images = squares(2, seed=7).images
    keen, strict = (load(tmp_path / "system", "decouplednet", threshold=t)[0] for t in (0.0, 1.0))
    assert len(keen.predict(images).sum((0, 2, 3)).nonzero()) == len(TAGS) + 1
    assert (strict.predict(images).argmax(1) == 0).all()
    deep = load(tmp_path / "system", "decouplednet", views={"scales": [0.5, 1.0], "flip": True})[0]
    assert (deep.prediction.views.scales, deep.prediction.views.flip) == ((0.5, 1.0), True)
    with pytest.raises(Problem, match=r"systems\.tested\.prediction\.threshold: found 2"):
        load(tmp_path / "system", "decouplednet", threshold=2.0)


@pytest.mark.parametrize(
    ("module", "changes"),
    [("deeplab", {"network": {"width": 8}}), ("deeplab", {"network": {"branches": [1, 2, 3]}}), ("decouplednet", {})],
)
def test_a_start_with_other_layers_is_a_problem(tmp_path: Path, module: str, changes: dict[str, Any]) -> None:
    saved_system(tmp_path, "deeplab")
    with pytest.raises(Problem, match=r"model.safetensors is damaged or of another model"):
        start(tmp_path / "system", module, **changes)


class WithHead(DeepLabSystem):
    """DeepLab with a head that no other system has."""

    may_be_missing = ("head.",)

    def __init__(self, plain: DeepLabSystem, wide: int = 6) -> None:
        assert isinstance(plain.params, deeplab.Training)
        super().__init__(plain.network, plain.pretrained[1:], plain.params, n_classes=6)
        self.head = nn.Sequential(nn.Conv2d(wide, 6, 1), nn.BatchNorm2d(6))


def with_head(origin: Origin, kind: type[WithHead] = WithHead, wide: int = 6) -> WithHead:
    torch.manual_seed(1)
    plain = deeplab.build(params_of("deeplab"), origin)
    assert isinstance(plain, DeepLabSystem)
    return kind(plain, wide)


@pytest.mark.parametrize("trunk", ["vgg16", "timm/test_resnet"])
def test_what_may_be_missing_keeps_its_initial_weights(trunk: str, tmp_path: Path) -> None:
    first = saved_system(tmp_path, "deeplab", trunk)
    second, card = build_on(tmp_path / "system", TAGS, with_head)
    assert isinstance(second, WithHead)
    alone = with_head(origin(small_classifier(trunk)[0]))
    assert same(second.network, first.network)  # type: ignore[arg-type]
    assert same(second.head, alone.head)
    # Where it is there, it is taken over.
    nn.init.constant_(second.head[1].weight, 3.0)  # type: ignore[arg-type]
    save(tmp_path / "second", "deeplab", card, second)
    third, _ = build_on(tmp_path / "second", TAGS, with_head)
    assert same(third, second)


class Strict(WithHead):
    may_be_missing = ()


def test_what_else_is_missing_or_unexpected_is_named(tmp_path: Path) -> None:
    saved_system(tmp_path, "deeplab")
    with pytest.raises(Problem, match=r"model.safetensors is .*lacks: head.0.weight, head.0.bias, .*and 2 more; run"):
        build_on(tmp_path / "system", TAGS, lambda origin: with_head(origin, Strict))
    more, card = build_on(tmp_path / "system", TAGS, with_head)
    save(tmp_path / "second", "deeplab", card, more)
    with pytest.raises(Problem, match=r"it has also: head\.[^;]* and 2 more; run"):
        start(tmp_path / "second", "deeplab")
    with pytest.raises(Problem, match=r"size mismatch for head.0.weight"):
        build_on(tmp_path / "second", TAGS, lambda origin: with_head(origin, wide=8))
    with pytest.raises(Problem, match=r"it has also: head"):
        load(tmp_path / "second", "deeplab")


@pytest.mark.parametrize("module", systems.names())
def test_a_finished_model_lacks_nothing(module: str, tmp_path: Path) -> None:
    """What may be missing at a start may not be when a model is loaded to predict."""
    system = saved_system(tmp_path, module)
    weights = load_file(tmp_path / "system/model.safetensors")
    missable = [name for name in weights if name.startswith(system.may_be_missing or ("-",))]
    for name in dict.fromkeys([*weights][:1] + missable[:2] + missable[-2:]):
        save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "system/model.safetensors")
        with pytest.raises(Problem, match=f"lacks: {name}"):
            load(tmp_path / "system", module)


def test_a_start_that_is_no_model_is_a_problem(tmp_path: Path) -> None:
    def never(_: Origin) -> System:
        raise AssertionError

    with pytest.raises(Problem, match="holds no model .*run the stage that trains it"):
        build_on(tmp_path, TAGS, never)
    (tmp_path / "model.json").write_text(json.dumps({"kind": "picture", "format": 1}))
    with pytest.raises(
        Problem, match="found a picture of format 1; wanted a backbone or a classifier or a system of format 3"
    ):
        build_on(tmp_path, TAGS, never)


def test_the_same_model_is_the_same_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        saved_system(tmp_path / folder, "decouplednet")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a/system" / name).read_bytes() == (tmp_path / "b/system" / name).read_bytes()
    assert {path.name for path in (tmp_path / "a/system").iterdir()} == {"model.json", "model.safetensors"}


def test_what_is_no_model_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="holds no model .*run the stage that trains it"):
        load(tmp_path, "decouplednet")
    saved_system(tmp_path, "decouplednet")
    with pytest.raises(Problem, match="found a classifier of format 3; wanted a system of format 3"):
        load(tmp_path / "classifier", "decouplednet")
    with pytest.raises(Problem, match="found a system of format 3; wanted a classifier"):
        load_classifier(tmp_path / "system", CPU)
    card = card_in(tmp_path / "system")
    (tmp_path / "system/model.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(Problem, match="of format 99"):
        load(tmp_path / "system", "decouplednet")


def test_what_is_damaged_is_a_problem(tmp_path: Path) -> None:
    saved_system(tmp_path, "decouplednet")
    weights = tmp_path / "system/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Problem, match="model.safetensors is damaged"):
        load(tmp_path / "system", "decouplednet")
    weights.write_bytes((tmp_path / "classifier/model.safetensors").read_bytes())
    with pytest.raises(Problem, match="of another model"):
        load(tmp_path / "system", "decouplednet")
    weights.unlink()
    with pytest.raises(Problem, match="model.safetensors"):
        load(tmp_path / "system", "decouplednet")
    (tmp_path / "system/model.json").write_text("{")
    with pytest.raises(Problem, match="model.json is damaged"):
        load(tmp_path / "system", "decouplednet")


def test_nothing_but_numbers_and_text_is_stored(tmp_path: Path) -> None:
    saved_system(tmp_path, "decouplednet")
    state = load_file(tmp_path / "system/model.safetensors")
    assert any(key.startswith("classifier.") for key in state)
    assert any(key.startswith("segmenter.") for key in state)
    assert card_in(tmp_path / "system")["format"] == 3


@pytest.mark.parametrize("key", ["tags", "name", "params", "made_of"])
def test_a_card_that_was_edited_is_refused(tmp_path: Path, key: str) -> None:
    """Other tags in another order would be another model of the same weights."""
    saved_system(tmp_path, "deeplab")
    card = card_in(tmp_path / "classifier")
    card[key] = card[key][::-1] if isinstance(card[key], list | str) else {**card[key], "x": 1}
    (tmp_path / "classifier/model.json").write_text(json.dumps(card))
    with pytest.raises(Problem, match=r"classifier/model.json was edited or damaged since it was written"):
        load_classifier(tmp_path / "classifier", CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value * float("nan"), r"holds NaN or infinite numbers, in "),
        (lambda value: value / 0, r"holds NaN or infinite numbers, in "),
        (lambda value: value.double(), r"has another type of .* \(torch.float64 for torch.float32\)"),
        (lambda value: torch.cat([value, value]), "size mismatch"),
        (lambda value: value + 1, "is not the file that .*model.json was written for"),
    ],
)
def test_weights_that_are_not_the_models(tmp_path: Path, change: Any, said: str) -> None:
    saved_system(tmp_path, "deeplab")
    path = tmp_path / "classifier/model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("weight"))
    save_file(weights | {name: change(weights[name])}, path)
    with pytest.raises(Problem, match=said):
        load_classifier(tmp_path / "classifier", CPU)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, "has its arrays under 'state_dict'; save that part alone"),
        (lambda state: {f"module.{key}": value for key, value in state.items()}, "has 'module.' before every name"),
        (lambda state: state | {"epoch": 3}, "holds 'epoch', which are no arrays"),
        (lambda state: {key: value * float("inf") for key, value in state.items()}, "holds NaN or infinite numbers"),
        (lambda state: {key: value.long() for key, value in state.items()}, "another type"),
        (lambda state: [1], "holds no arrays by name but a list"),
        (lambda state: {"a": BackboneParams}, "it holds more than arrays, which is not run"),
        (lambda state: None, "it is a web page"),
    ],
)
def test_pre_trained_weights_that_are_none(tmp_path: Path, stored: Any, said: str) -> None:
    content = stored(backbones.build(backbone("vgg16")).state_dict())
    torch.save(content, tmp_path / "x.pth")
    if content is None:
        (tmp_path / "x.pth").write_text("<html>")
    with pytest.raises(Problem, match=said):
        backbones.build(backbone("vgg16", weights=str(tmp_path / "x.pth")))
