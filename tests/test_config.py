"""Every mistake in params.yaml names the key, what was found and what is allowed, and all are told at once."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from segcore import systems
from segcore.config import reading, sections
from segcore.errors import Problem, Problems

PROJECT = Path(__file__).parents[1]
PARAMS = PROJECT / "profiles/shapes.yaml"
GONE = object()
"""Stands for a key that is taken away."""


def changed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The default parameters with other values at dotted keys."""
    params = copy.deepcopy(reading.read(PARAMS))
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = params
        for name in sections:
            place = place[name]
        if value is GONE:
            del place[last]
        else:
            place[last] = value
    return params


def problems_of(changes: Mapping[str, Any]) -> list[str]:
    """What is said about a file with these changes, by the same two checks that every stage makes first."""
    params = changed(changes)
    with pytest.raises(Problems) as caught:
        systems.check(reading.Settings(params).raw["systems"])
    return caught.value.problems


def test_the_projects_own_parameters_are_in_order() -> None:
    systems.check(reading.load(PROJECT / "params.yaml").raw["systems"])
    settings = reading.load(PARAMS)
    assert set(settings.raw) == set(reading.Settings.KEYS)
    assert settings.seed == settings.raw["seed"]
    assert settings.classifier_of("decouplednet") in settings.classifiers
    assert isinstance(settings.evaluation.scales, tuple)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        # unknown
        ("recipes.classifier.learnin_rate", 0.1, ["unknown key", "0.1", "steps", "did you mean 'learning_rate'?"]),
        ("split.strong_per_clas", 5, ["unknown key", "did you mean 'strong_per_class'?"]),
        ("dataset.shapes.colour", "red", ["unknown key", "'red'", "train_images"]),
        ("systems.deconvnet.treshold", 0.5, ["unknown key", "norm_batches"]),
        ("systems.decouplednet.treshold", 0.5, ["unknown key", "did you mean 'threshold'?"]),
        ("evaluatoin", {}, ["unknown section", "allowed are seed, dataset", "did you mean 'evaluation'?"]),
        # missing
        ("recipes.classifier.steps", GONE, ["this key is missing"]),
        ("classifiers.decoupled.backbone.width", GONE, ["this key is missing"]),
        ("systems.deconvnet.encoder", GONE, ["this key is missing"]),
        ("systems.deconvnet.module", GONE, ["this key is missing"]),
        ("crops", GONE, ["this section is missing"]),
        # of another type
        ("recipes.classifier.learning_rate", "1e-4", ["found '1e-4'", "must be a valid number"]),
        ("recipes.classifier.steps", 400.0, ["found 400.0", "must be a valid integer"]),
        ("recipes.classifier.steps", "400", ["found '400'", "must be a valid integer"]),
        ("recipes.classifier.steps", True, ["found True", "must be a valid integer"]),
        ("recipes.classifier.channels_last", "yes", ["found 'yes'", "must be a valid boolean"]),
        ("recipes.classifier.compile", 0, ["found 0", "must be a valid boolean"]),
        ("dataset.root", 7, ["found 7", "must be a valid string"]),
        ("evaluation.scales", 1.0, ["found 1.0", "must be a valid"]),
        ("dataset", None, ["found None", "must be an object"]),
        ("classifiers.decoupled.head", [1], ["found [1]", "must be an object"]),
        ("systems.deconvnet", "deconvnet", ["found 'deconvnet'", "must be an object"]),
        ("seed", 1.5, ["found 1.5", "a whole number, 0 or more"]),
        ("seed", True, ["found True", "a whole number, 0 or more"]),
        ("systems", None, ["found None", "at least one named entry"]),
        ("recipes", {}, ["found {}", "at least one named entry"]),
        # out of range
        ("seed", -1, ["found -1", "0 or more"]),
        ("recipes.segmenter.steps", 0, ["found 0", "must be greater than or equal to 1"]),
        ("recipes.segmenter.learning_rate", -0.1, ["found -0.1", "must be greater than 0"]),
        ("recipes.segmenter.learning_rate", float("inf"), ["found inf", "must be a finite number"]),
        ("recipes.segmenter.weight_decay", float("nan"), ["found nan", "must be a finite number"]),
        ("recipes.classifier.momentum", 1.0, ["found 1.0", "must be less than 1"]),
        ("classifiers.decoupled.head.dropout", 1.0, ["found 1.0", "must be less than 1"]),
        ("classifiers.decoupled.input_size", 100, ["input_size 100", "a multiple of 32"]),
        ("crops.min_overlap", 1.5, ["found 1.5", "must be less than or equal to 1"]),
        ("dataset.shapes.classes", 21, ["found 21", "must be less than or equal to 20"]),
        ("systems.decouplednet.threshold", 50, ["found 50", "must be less than or equal to 1"]),
        ("systems.deconvnet.proposals", -1, ["found -1", "must be greater than or equal to 0"]),
        ("evaluation.scales", [], ["found []", "at least 1 item"]),
        ("evaluation.scales", [1.0, 0.0], ["scales.1", "found 0.0", "must be greater than 0"]),
        # not one of the choices
        ("dataset.layout", "coco", ["found 'coco'", "must be 'shapes' or 'voc'"]),
        ("recipes.classifier.optimizer", "adam", ["found 'adam'", "must be 'sgd' or 'adamw'"]),
        ("classifiers.decoupled.backbone.name", "vgg19", ["found 'vgg19'", "vgg16, vgg16_bn", "timm/<model>"]),
        ("systems.deconvnet.encoder", "own", ["found 'own'", "must be 'classifier' or 'backbone'"]),
        # a name that nothing has
        ("classifiers.decoupled.recipe", "clasifier", ["found 'clasifier'", "allowed are", "mean 'classifier'?"]),
        ("systems.deconvnet.recipe", "quick", ["found 'quick'", "allowed are classifier", "segmenter"]),
        (
            "systems.deconvnet.start",
            "data/classifiers/decoupled_st/model",
            ["found 'decoupled_st'", "mean 'decoupled_str'?"],
        ),
        (
            "systems.deconvnet.start",
            "decoupled",
            ["found 'decoupled'", "match pattern"],
        ),
        ("systems.ficklenet.labels", "data/pseudo_labels/ficklnet", ["found 'ficklnet'", "mean 'ficklenet'?"]),
        ("systems.dsrg.start", "data/segmenters/dsrg/model", ["found a circle, dsrg starts from dsrg"]),
        ("pseudo_labels.ficklenet.input", "data/classifiers/ficklnet/model", ["found 'ficklnet'", "'ficklenet'?"]),
        ("pseudo_labels.ficklenet.input", "cues.npz", ["source: classifier needs input", "found 'cues.npz'"]),
        ("pseudo_labels.ficklenet.source", "segmenter", ["needs input data/segmenters/<name>/model", "found 'data/cl"]),
        ("pseudo_labels.ficklenet.passes", 0, ["found 0", "must be greater than or equal to 1"]),
        ("pseudo_labels.ficklenet.theta", 0.0, ["found 0.0", "must be greater than 0"]),
        ("pseudo_labels.ficklenet.theta", 1.0, ["found 1.0", "must be less than 1"]),
        ("pseudo_labels.ficklenet.background", "saliency", ["needs saliency_root"]),
        ("pseudo_labels", None, ["found None", "at least one named entry"]),
        ("evaluation.crf", {"iterations": 10}, ["this key is missing"]),
        ("classifiers.ficklenet.head.kind", "conv", ["found 'conv'", "fully_connected, stochastic"]),
        ("classifiers.ficklenet.head.kernel", 4, ["kernel 4 must be odd"]),
        ("classifiers.ficklenet.head.width", 4, ["unknown key", "kernel, kind, rate"]),
        ("classifiers.ficklenet.backbone.stride", 4, ["found 4", "must be 8, 16 or 32"]),
        ("classifiers.decoupled.backbone.stride", 8, ["must be 32 under a fully connected head"]),
        ("systems.deconvnet.module", "unet", ["found 'unet'", "allowed are", "deconvnet, decouplednet, deeplab"]),
        ("systems.deconvnet.module", "../evil", ["found '../evil'", "match pattern"]),
        # a rule over several keys
        ("dataset.tags", "csv", ["tags: csv needs tags_file", "image_id,tags"]),
        ("split.strong", "list", ["strong: list needs strong_list"]),
        ("recipes.segmenter.accumulate", 7, ["batch_size", "must be a multiple of accumulate 7"]),
        ("classifiers.decoupled.resize", 32, ["resize 32 must be at least input_size"]),
        ("classifiers.decoupled.head.kernel", 90, ["head.kernel 90 exceeds"]),
        ("crops.warp", 33, ["warp 33 must be at least input_size"]),
        ("crops.edges", "structured", ["needs edge_model"]),
    ],
)
def test_a_mistake_names_the_key_what_was_found_and_what_is_allowed(key: str, value: Any, said: list[str]) -> None:
    problems = problems_of({key: value})
    parts = key.split(".")
    # A rule over several keys is told of the section that holds them.
    places = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    about = [p for p in problems if p.startswith(f"{key}.") or p.partition(": ")[0] in places]
    assert about, problems
    for words in said:
        assert any(words in problem for problem in about), (words, problems)


def test_only_vgg_has_small_versions() -> None:
    backbone = {"name": "resnet18", "weights": "random", "width": 0.5, "frozen_norm": False, "stride": 32}
    (problem,) = problems_of({"classifiers.decoupled.backbone": backbone})
    assert problem.startswith("classifiers.decoupled.backbone: width 0.5 must be 1.0 for resnet18")


def test_crops_must_hold_the_kernel_of_a_systems_classifier() -> None:
    """Those of the systems that learn from crops, not of others."""
    unpadded = {f"classifiers.{name}.head.padding": 0 for name in ("decoupled", "decoupled_str")}
    problems = problems_of({"crops.input_size": 32, "crops.warp": 40, **unpadded})
    learners = [name for name, system in reading.load(PARAMS).systems.items() if system.labels == reading.CROPS]
    assert [problem.partition(": ")[0] for problem in problems] == [f"systems.{name}" for name in learners]
    assert 0 < len(learners) < len(reading.load(PARAMS).systems)
    assert problems[0].startswith("systems.decouplednet: classifiers.decoupled.head.kernel")
    assert "exceeds the 1 cells of the top map at crops.input_size 32" in problems[0]


def test_a_systems_classifier_is_that_at_the_beginning_of_its_chain() -> None:
    chain = {"sec.start": "data/segmenters/dsrg/model", "dsrg.start": "data/segmenters/deeplab/model"}
    settings = reading.Settings(changed({f"systems.{key}": start for key, start in chain.items()}))
    assert [settings.classifier_of(name) for name in ("sec", "dsrg", "deeplab")] == ["decoupled_str"] * 3
    assert settings.classifier_of("ficklenet") == "ficklenet"
    circle = {f"systems.{key}": start for key, start in chain.items()}
    problems = problems_of(circle | {"systems.deeplab.start": "data/segmenters/sec/model"})
    assert "systems.sec.start: found a circle, sec starts from dsrg starts from deeplab starts from sec" in problems


@pytest.mark.parametrize("name", ["My System", "../../etc", "", "a.b", "a@b", "-rf", "Ä", 3])
def test_names_become_folders_and_stages(name: Any) -> None:
    entry = reading.read(PARAMS)["systems"]["deconvnet"]
    (problem,) = problems_of({"systems": {name: entry}})
    assert problem == f"systems: found the name {name!r}; allowed are names like 'my_name_2'"


def test_all_mistakes_of_all_sections_are_told_at_once() -> None:
    changes = {
        "seed": "0",
        "dataset.shapes.size": 50,
        "split.strong_per_class": 0,
        "crops.warp": 1.5,
        "evaluation.flip": "no",
        "recipes.classifier.stepz": 1,
        "classifiers.decoupled_str.images": "all",
        "systems.deconvnet.recipe": 3,
    }
    problems = problems_of(changes)
    assert len(problems) == len(changes)
    for key in changes:
        assert any(problem.startswith(f"{key}: ") for problem in problems), (key, problems)


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = PARAMS.read_text()
    for written, read in [("1e-4", 1e-4), ("1E-05", 1e-5), ("2", 2.0)]:
        first = text.index("learning_rate: ")
        line = text[first : text.index("\n", first)]
        (tmp_path / "params.yaml").write_text(text.replace(line, f"learning_rate: {written}", 1))
        rate = reading.load(tmp_path / "params.yaml").recipes["classifier"].learning_rate
        assert rate == read
        assert isinstance(rate, float)
    (tmp_path / "params.yaml").write_text(text.replace(line, 'learning_rate: "1e-4"', 1))
    with pytest.raises(Problems, match=r"recipes.classifier.learning_rate: found '1e-4'; must be a valid number"):
        reading.load(tmp_path / "params.yaml")


def test_yes_and_no_are_words_in_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS.read_text().replace("flip: false", "flip: no"))
    with pytest.raises(Problems, match=r"evaluation.flip: found 'no'; must be a valid boolean"):
        reading.load(tmp_path / "params.yaml")


def test_settings_are_frozen() -> None:
    settings = reading.load(PARAMS)
    for section, key in [
        (settings.dataset, "root"),
        (settings.dataset.shapes, "size"),
        (settings.recipes["classifier"], "steps"),
        (settings.systems["decouplednet"], "module"),
    ]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, "other")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must hold sections, found NoneType"),
        (b"- 1\n", "must hold sections, found"),
        (b"seed: [1\n", "is not valid YAML"),
        (b"seed: 0\nseed: 1\n", "is not valid YAML"),
        (b"seed: \xff\xfe\n", "is not valid YAML"),
        (b"seed: !!python/object:os.system 1\n", "is not valid YAML"),
        (b"a: &a [*a]\n", "unknown section"),
    ],
)
def test_what_is_no_parameters_file_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(Problem, match=said):
        reading.load(path)


def test_a_parameters_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"there is no parameters file .*nowhere.yaml; start from one of profiles"):
        reading.load(tmp_path / "nowhere.yaml")
    with pytest.raises(Problem, match="cannot be read"):
        reading.load(tmp_path)


def test_what_json_lacks_is_told_too(tmp_path: Path) -> None:
    date = YAML(typ="safe", pure=True).load("2012-05-11")
    (problem,) = problems_of({"dataset.shapes.train_images": date})
    assert problem.startswith("dataset.shapes.train_images: found '2012-05-11'; must be a valid integer")


def test_a_key_that_is_no_text_is_told(tmp_path: Path) -> None:
    """YAML takes a date for a key; JSON, by way of which sections are checked, does not."""
    date = YAML(typ="safe", pure=True).load("2012-05-11")
    (problem,) = problems_of({"dataset.shapes": {date: 3}})
    assert problem.startswith("dataset: found a key that is no text")


def test_a_section_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(Problem, match=r"'nowhere' is missing; here are \['deconvnet', 'decouplednet'"):
        reading.section(reading.read(PARAMS), "systems.nowhere", sections.SystemEntry)
