"""Every mistake in params.yaml names the key, what was found and what is allowed, and all are told at once."""

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from segcore import systems
from segcore.config import reading
from segcore.config.data import EMBEDDED
from segcore.config.labels import LabelsFromMaps, LabelsFromPredictions
from segcore.config.settings import COMMON, Settings, load
from segcore.config.systems import CROPS, SystemEntry
from segcore.errors import Problem, Problems
from tests.devkit import GONE, PARAMS, PROJECT, changed, voc_section


def problems_of(changes: Mapping[str, Any]) -> list[str]:
    """What is said about a file with these changes, by the same two checks that every stage makes first."""
    with pytest.raises(Problems) as caught:
        systems.check(Settings(changed(changes)).systems)
    return caught.value.problems


def only_problem(changes: Mapping[str, Any]) -> str:
    (problem,) = problems_of(changes)
    return problem


def test_the_projects_own_parameters_are_in_order() -> None:
    systems.check(load(PROJECT / "params.yaml").systems)
    settings = load(PARAMS)
    systems.check(settings.systems)
    assert set(settings.given) == set(Settings.KEYS)
    assert settings.seed == settings.given["seed"]
    kind, name = settings.origin_of("decouplednet")
    assert (kind, name in settings.classifiers) == ("classifiers", True)
    assert isinstance(settings.views["single"].scales, tuple)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        # unknown
        ("recipes.classifier.learnin_rate", 0.1, ["unknown key", "0.1", "steps", "did you mean 'learning_rate'?"]),
        ("split.weak_includes_stron", True, ["unknown key", "did you mean 'weak_includes_strong'?"]),
        ("split.strong.image", 5, ["unknown key", "found 5", "did you mean 'images'?"]),
        ("dataset.colour", "red", ["unknown key", "'red'", "train_images"]),
        ("systems.deconvnet.training.treshold", 0.5, ["unknown key", "kernel, network, padding, recipe"]),
        ("systems.decouplednet.prediction.treshold", 0.5, ["unknown key", "did you mean 'threshold'?"]),
        ("systems.deconvnet.treshold", 0.5, ["unknown key", "images, labels, module, prediction, start, training"]),
        ("evaluatoin", {}, ["unknown section", "allowed are seed, dataset", "did you mean 'evaluation'?"]),
        # missing
        ("recipes.classifier.steps", GONE, ["this key is missing"]),
        ("backbones.vgg.width", GONE, ["this key is missing"]),
        ("systems.deconvnet.training.kernel", GONE, ["this key is missing"]),
        ("systems.deconvnet.prediction.proposals", GONE, ["this key is missing"]),
        ("systems.deconvnet.prediction.views", GONE, ["this key is missing"]),
        ("systems.deconvnet.module", GONE, ["this key is missing"]),
        ("systems.deconvnet.training", GONE, ["this key is missing"]),
        ("dataset.layout", GONE, ["this key is missing; allowed are shapes, voc"]),
        ("crops", GONE, ["this section is missing"]),
        # of another type
        ("recipes.classifier.learning_rate", "1e-4", ["found '1e-4'", "must be a valid number"]),
        ("recipes.classifier.steps", 400.0, ["found 400.0", "must be a valid integer"]),
        ("recipes.classifier.steps", "400", ["found '400'", "must be a valid integer"]),
        ("recipes.classifier.steps", True, ["found True", "must be a valid integer"]),
        ("recipes.classifier.channels_last", "yes", ["found 'yes'", "must be a valid boolean"]),
        ("recipes.classifier.compile", 0, ["found 0", "must be a valid boolean"]),
        ("recipes.classifier", 7, ["found 7", "must be an object"]),
        ("recipes.common", "adamw", ["found 'adamw'", "must hold keys of recipes"]),
        ("dataset.root", 7, ["found 7", "must be a valid string"]),
        ("views.single.scales", 1.0, ["found 1.0", "must be a valid"]),
        ("dataset", None, ["found None", "must hold keys, `layout` among them, which is one of shapes, voc"]),
        ("split.strong", "all", ["found 'all'", "must hold keys, `kind` among them", "one of all, list, per_class"]),
        ("classifiers.decoupled.head", [1], ["found [1]", "must hold keys, `kind` among them"]),
        ("crops.edges", "structured", ["found 'structured'", "must hold keys, `kind`", "one of gradient, structured"]),
        ("classifiers.decoupled.backbone", None, ["found None", "must be an object"]),
        ("systems.deconvnet", "deconvnet", ["found 'deconvnet'", "must be an object"]),
        ("systems.deconvnet.training", "mirror", ["found 'mirror'", "must be an object"]),
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
        ("dataset.classes", 21, ["found 21", "must be less than or equal to 20"]),
        ("systems.decouplednet.prediction.threshold", 50, ["found 50", "must be less than or equal to 1"]),
        ("systems.deconvnet.prediction.proposals", -1, ["found -1", "must be greater than or equal to 0"]),
        ("views.single.scales", [], ["found []", "at least 1 item"]),
        ("views.single.scales", [1.0, 0.0], ["scales.1", "found 0.0", "must be greater than 0"]),
        ("pseudo_labels.ficklenet.passes", 0, ["found 0", "must be greater than or equal to 1"]),
        ("pseudo_labels.ficklenet.theta", 0.0, ["found 0.0", "must be greater than 0"]),
        ("pseudo_labels.ficklenet.theta", 1.0, ["found 1.0", "must be less than 1"]),
        # not one of the choices
        ("dataset.layout", "coco", ["found 'coco'; allowed are shapes, voc"]),
        ("dataset.layout", "shape", ["found 'shape'", "did you mean 'shapes'?"]),
        ("split.strong.kind", "some", ["found 'some'; allowed are all, list, per_class"]),
        ("recipes.classifier.schedule", {"kind": "cosine"}, ["schedule.kind: found 'cosine'", "constant, poly, step"]),
        (
            "pseudo_labels.ficklenet.source",
            "masks",
            ["found 'masks'; allowed are classifier, cues_file, decoupled, segmenter"],
        ),
        ("pseudo_labels.ficklenet.background.kind", "saliencies", ["found 'saliencies'", "did you mean 'saliency'?"]),
        (
            "classifiers.ficklenet.head.kind",
            "conv",
            ["found 'conv'", "fully_connected, hidden_stochastic, pooled, stochastic"],
        ),
        (
            "networks.grid.kind",
            "gird",
            ["found 'gird'; allowed are deconvolution, dual, grid, pyramid; did you mean 'grid'?"],
        ),
        ("systems.deeplab.training.geometry.kind", "crop", ["found 'crop'; allowed are crops, stretched"]),
        ("recipes.classifier.optimizer", "adam", ["found 'adam'", "must be 'sgd' or 'adamw'"]),
        ("backbones.vgg.name", "vgg19", ["found 'vgg19'", "vgg16, vgg16_bn", "timm/<model>"]),
        ("backbones.vgg_fine.stride", 4, ["found 4", "must be 8, 14, 16 or 32"]),
        ("systems.deconvnet.images", "all", ["found 'all'", "must be 'strong' or 'weak'"]),
        ("systems.deconvnet.labels", "mask", ["found 'mask'", "crops, masks, pseudo_labels/<name>", "mean 'masks'?"]),
        ("systems.deconvnet.start", "decoupled", ["found 'decoupled'", "backbones/<name>, classifiers/<name>, seg"]),
        (
            "systems.deconvnet.module",
            "unet",
            ["found 'unet'", "allowed are", "deconvnet, decoupled_fpn, decouplednet, deeplab"],
        ),
        ("systems.deconvnet.module", "../evil", ["found '../evil'", "allowed are names like 'my_name_2'"]),
        # a name that nothing has
        ("classifiers.decoupled.recipe", "clasifier", ["found 'clasifier'", "allowed are", "mean 'classifier'?"]),
        ("classifiers.decoupled.recipe", "common", ["found 'common'; allowed are classifier, grid, segmenter, stoch"]),
        ("classifiers.decoupled.backbone", "vgg_fin", ["found 'vgg_fin'; allowed are vgg, vgg_fine", "'vgg_fine'?"]),
        ("systems.deconvnet.training.recipe", "quick", ["found 'quick'", "allowed are classifier", "segmenter"]),
        ("systems.deconvnet.training.network", "miror", ["found 'miror'; allowed are grid, mirror", "'mirror'?"]),
        ("systems.sec.training.cues", "secc", ["found 'secc'; allowed are dsrg, sec; did you mean 'sec'?"]),
        ("systems.sec.prediction.views", "singel", ["found 'singel'; allowed are single; did you mean 'single'?"]),
        ("systems.sec.prediction.crf", "picture", ["found 'picture'; allowed are grid"]),
        ("cue_losses.sec.crf", "gird", ["found 'gird'; allowed are grid; did you mean 'grid'?"]),
        ("systems.deconvnet.start", "classifiers/decoupled_st", ["found 'decoupled_st'", "mean 'decoupled_str'?"]),
        ("systems.deconvnet.start", "backbones/vg", ["found 'vg'; allowed are vgg, vgg_fine; did you mean 'vgg'?"]),
        ("systems.deconvnet.start", "segmenters/sce", ["found 'sce'; allowed are deconvnet", "did you mean 'sec'?"]),
        ("systems.ficklenet.labels", "pseudo_labels/ficklnet", ["found 'ficklnet'", "mean 'ficklenet'?"]),
        ("pseudo_labels.ficklenet.input", "classifiers/ficklnet", ["found 'ficklnet'", "'ficklenet'?"]),
        ("pseudo_labels", None, ["found None", "at least one named entry"]),
        ("systems.dsrg.start", "segmenters/dsrg", ["found a circle, dsrg starts from dsrg"]),
        # what only another kind has
        ("pseudo_labels.ficklenet.input", "cues/a.npz", ["found 'cues/a.npz'; allowed are classifiers/<name>"]),
        ("classifiers.ficklenet.head.width", 4, ["unknown key", "kernel, kind, rate"]),
        ("dataset.train_list", "train", ["unknown key", "allowed here are classes, layout, max_objects"]),
        # a rule over several keys
        ("classifiers.ficklenet.head.kernel", 4, ["kernel 4 must be odd"]),
        ("classifiers.decoupled.backbone", "vgg_fine", ["stride 8 must be 16 or 32 under a fully connected head"]),
        ("recipes.segmenter.accumulate", 7, ["batch_size", "must be a multiple of accumulate 7"]),
        ("classifiers.decoupled.resize", 32, ["resize 32 must be at least input_size"]),
        ("classifiers.decoupled.head.kernel", 90, ["head.kernel 90 exceeds"]),
        ("networks.grid.input_size", 100, ["input_size 100 must be a multiple of stride 8 and one more", "97 or 105"]),
        ("cue_losses.dsrg.boundary_ratio", [2.0, 3.0], ["boundary_ratio [2.0, 3.0] must be a bound below 1"]),
        ("systems.deeplab.training.geometry", {"kind": "crops", "scales": [2.0, 1.0]}, ["scales [2.0, 1.0] must be"]),
        ("crops.warp", 33, ["warp 33 must be at least input_size"]),
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


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("split.strong.file", "ids.txt", "images, kind"),
        ("crops.edges.model", "forest.yml.gz", "kind, max_fraction"),
        ("recipes.classifier.schedule.factor", 0.1, "kind, power"),
        ("systems.deeplab.training.geometry.scales", [0.5, 1.5], "kind"),
    ],
)
def test_a_key_that_does_not_apply_tells_how_to_drop_it(key: str, value: Any, allowed: str) -> None:
    schedule = {"recipes.classifier.schedule": {"kind": "poly", "power": 0.9}}
    problem = only_problem(schedule | {key: value})
    assert problem == (f"{key}: unknown key, found {value!r}; allowed here are {allowed}; drop it (by -S '~{key}')")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("split.strong.kind", "list", ["file: this key is missing", "images: unknown key, found 5"]),
        ("pseudo_labels.ficklenet.source", "cues_file", ["input: found 'classifiers/ficklenet'", "theta: unknown key"]),
        ("pseudo_labels.ficklenet.source", "segmenter", ["restrict_to_tags: this key is missing", "rate: unknown key"]),
        ("pseudo_labels.ficklenet.background.kind", "saliency", ["root: this key is missing", "fraction: unknown key"]),
        (
            "pseudo_labels.ficklenet.background.kind",
            "constant",
            ["score: this key is missing", "fraction: unknown key"],
        ),
        ("pseudo_labels.ficklenet.aggregation.kind", "quantile", ["q: this key is missing"]),
        ("pseudo_labels.ficklenet.refinement.kind", "affinity", ["beta: this key is missing"]),
        ("pseudo_labels.ficklenet.calibrate", "strong", ["candidates: this key is missing", "theta: unknown key"]),
        ("classifiers.ficklenet.head.kind", "hidden_stochastic", ["hidden: this key is missing"]),
        ("classifiers.decoupled.head.kind", "stochastic", ["selection: this key is missing", "dropout: unknown key"]),
    ],
)
def test_another_kind_has_other_keys(key: str, value: str, said: list[str]) -> None:
    section = key.rpartition(".")[0]
    problems = problems_of({key: value})
    for words in said:
        assert any(problem.startswith(f"{section}.{words}") for problem in problems), (words, problems)


def test_what_calibrates_is_told_where_it_stands_in_a_list() -> None:
    assert only_problem({"pseudo_labels.ficklenet.calibrate": "weak"}) == (
        "pseudo_labels.ficklenet.calibrate: found 'weak'; allowed are null, strong"
    )
    walk = {"kind": "affinity", "radius": 5, "beta": [0.0], "steps": [4], "boundary": BOUNDARY}
    crf = {"kind": "crf", "crf": "grids", "confidence": [0.7], "long_side": 60}
    for refinement, said in ((walk, "0.beta.0: found 0.0"), (crf, "0.crf: found 'grids'; allowed are grid")):
        candidates = {
            "aggregations": [{"kind": "mean"}],
            "backgrounds": [{"kind": "constant", "score": [0.2]}],
            "refinements": [refinement],
        }
        own = changed({})["pseudo_labels"]["ficklenet"]
        kept = {
            key: value for key, value in own.items() if key not in ("aggregation", "theta", "background", "refinement")
        }
        entry = kept | {"calibrate": "strong", "folds": 2, "candidates": candidates}
        problem = only_problem({"pseudo_labels.ficklenet": entry})
        assert problem.startswith(f"pseudo_labels.ficklenet.candidates.refinements.{said}")


BOUNDARY = {"width": 8, "steps": 10, "batch_size": 2, "learning_rate": 0.01, "examples": 10}


def test_a_section_of_another_kind_is_told_in_one_sentence() -> None:
    problem = only_problem({"systems.decouplednet.training.network": "grid"})
    assert problem == "systems.decouplednet.training.network.kind: found 'grid'; must be 'deconvolution'"


def test_only_vgg_has_small_versions() -> None:
    problem = only_problem({"backbones.vgg.name": "resnet18"})
    assert problem.startswith("backbones.vgg: width 0.125 must be 1.0 for resnet18")


def test_the_embedded_set_alone_has_its_name() -> None:
    """What is made of a data set lies in data/<name>/."""
    assert "found 'shapes', which is the embedded data set's" in only_problem(
        {"dataset": voc_section("kit") | {"name": EMBEDDED}}
    )
    assert "found 'mine'; the embedded data set is called 'shapes'" in only_problem({"dataset.name": "mine"})
    assert "allowed are names like 'my_name_2'" in only_problem({"dataset.name": "../mine"})
    assert Settings(changed({"dataset": voc_section("kit")})).dataset.name == "tiny"


class TestRecipes:
    """Each is what it says itself over what `common` says."""

    def test_a_recipe_is_completed_by_what_all_share(self) -> None:
        settings = Settings(changed({"recipes.common.learning_rate": 0.5, "recipes.grid.learning_rate": 0.25}))
        assert COMMON not in settings.recipes
        assert {name: recipe.learning_rate for name, recipe in settings.recipes.items()} == {
            "classifier": 0.5, "stochastic": 0.5, "segmenter": 0.5, "grid": 0.25,
        }  # fmt: skip
        assert settings.given["recipes"][COMMON]["learning_rate"] == 0.5, "what was given stays as it was"
        assert "learning_rate" not in settings.given["recipes"]["classifier"]

    def test_there_may_be_no_common_one(self) -> None:
        whole = {name: recipe.model_dump(mode="json") for name, recipe in load(PARAMS).recipes.items()}
        assert Settings(changed({"recipes": whole})).recipes == load(PARAMS).recipes

    def test_but_there_must_be_another_one(self) -> None:
        problems = problems_of({"recipes": {COMMON: {"steps": 3}}})
        assert problems == ["recipes: found nothing beside 'common'; it must hold at least one named entry"]

    def test_a_schedule_is_replaced_whole(self) -> None:
        schedule = {"kind": "step", "every": 7, "factor": 0.5}
        settings = Settings(changed({"recipes.grid.schedule": schedule}))
        assert settings.recipes["grid"].schedule.model_dump() == schedule
        assert only_problem({"recipes.grid.schedule": {"power": 2.0}}) == (
            "recipes.grid.schedule.kind: this key is missing; allowed are constant, poly, step"
        )

    def test_a_mistake_in_common_is_told_once_and_there(self) -> None:
        assert only_problem({"recipes.common.learning_rate": -1}) == (
            "recipes.common.learning_rate: found -1; must be greater than 0"
        )
        problem = only_problem({"recipes.common.power": 0.9})
        assert problem.startswith("recipes.common.power: unknown key, found 0.9; allowed here are accumulate, ")
        assert problem.endswith("; drop it (by -S '~recipes.common.power')")
        assert only_problem({"recipes.common.schedule": {"kind": "poly"}}) == (
            "recipes.common.schedule.power: this key is missing"
        )
        assert problems_of({"recipes.common.batch_size": 0, "recipes.grid.batch_size": 0}) == [
            "recipes.common.batch_size: found 0; must be greater than or equal to 1",
            "recipes.grid.batch_size: found 0; must be greater than or equal to 1",
        ]


class TestSharedSections:
    """An entry that names one has its values, and its mistakes are told where they stand."""

    def test_a_name_stands_for_its_section(self) -> None:
        settings = Settings(changed({"systems.sec.prediction.crf": "grid"}))
        given = settings.given
        assert settings.classifiers["ficklenet"].backbone == settings.backbones["vgg_fine"]
        assert settings.systems["dsrg"].training["network"] == given["networks"]["grid"]
        assert settings.systems["dsrg"].training["cues"] == given["cue_losses"]["dsrg"] | {"crf": given["crfs"]["grid"]}
        assert settings.systems["sec"].prediction["crf"] == given["crfs"]["grid"]
        assert settings.systems["sec"].prediction["views"] == given["views"]["single"]
        assert settings.cue_losses["sec"].crf == settings.crfs["grid"]
        assert given["systems"]["sec"]["training"]["cues"] == "sec", "what was given stays as it was"
        systems.check(settings.systems)

    def test_pseudo_labels_name_views_and_a_crf(self) -> None:
        entry = {
            "images": "weak", "source": "segmenter", "input": "segmenters/ficklenet", "input_size": 97,
            "batch_size": 2, "views": "single", "restrict_to_tags": True, "crf": "grid",
        }  # fmt: skip
        settings = Settings(changed({"pseudo_labels.again": entry}))
        again = settings.pseudo_labels["again"]
        assert isinstance(again, LabelsFromPredictions)
        assert (again.views, again.crf) == (settings.views["single"], settings.crfs["grid"])
        assert isinstance(settings.pseudo_labels["ficklenet"], LabelsFromMaps)
        problems = problems_of({"pseudo_labels.again": entry | {"views": "singel", "crf": "gird"}})
        assert [problem.partition(":")[0] for problem in problems] == [
            "pseudo_labels.again.crf", "pseudo_labels.again.views",
        ]  # fmt: skip
        assert only_problem({"pseudo_labels.again": entry | {"input": "segmenters/fickle"}}) == (
            "pseudo_labels.again.input: found 'fickle'; allowed are deconvnet, decouplednet, decouplednet_str, "
            "deeplab, dsrg, ficklenet, ficklenet_semi, sec, wssl, wssl_tags; did you mean 'ficklenet'?"
        )

    def test_an_entry_may_have_a_section_of_its_own(self) -> None:
        own = changed({})["backbones"]["vgg"] | {"width": 0.5}
        settings = Settings(changed({"classifiers.decoupled.backbone": own}))
        assert settings.classifiers["decoupled"].backbone.width == 0.5
        assert settings.classifiers["decoupled_str"].backbone.width == 0.125
        assert only_problem({"classifiers.decoupled.backbone": own | {"width": 0}}) == (
            "classifiers.decoupled.backbone.width: found 0; must be greater than 0"
        )

    @pytest.mark.parametrize(
        "key",
        [
            *("backbones.vgg.width", "networks.grid.width", "crfs.grid.iterations", "cue_losses.dsrg.crf_scale"),
            *("views.single.flip", "recipes.grid.steps"),
        ],
    )
    def test_its_mistake_is_told_once_and_where_it_stands(self, key: str) -> None:
        assert only_problem({key: "no"}).startswith(f"{key}: found 'no'; must be")

    def test_two_sections_of_one_name_are_kept_apart(self) -> None:
        """`grid` is a recipe, a network and a CRF."""
        changes = {"recipes.grid.steps": 0, "networks.grid.width": 0, "crfs.grid.stride": 0}
        assert {problem.partition(":")[0] for problem in problems_of(changes)} == set(changes)

    def test_sections_that_nothing_names_may_be_missing(self) -> None:
        keep = ("decouplednet", "decouplednet_str", "deconvnet")
        entries = {name: entry for name, entry in changed({})["systems"].items() if name in keep}
        less = {"systems": entries, "pseudo_labels": {}, "cue_losses": {}, "crfs": {}}
        systems.check(Settings(changed(less)).systems)
        assert problems_of({"cue_losses": {}})[0] == "systems.sec.training.cues: found 'sec'; allowed are none"


def test_crops_must_hold_the_kernel_of_a_systems_classifier() -> None:
    """Those of the systems that learn from crops, not of others."""
    unpadded = {f"classifiers.{name}.head.padding": 0 for name in ("decoupled", "decoupled_str")}
    problems = problems_of({"crops.input_size": 32, "crops.warp": 40, **unpadded})
    learners = [name for name, system in load(PARAMS).systems.items() if system.labels == CROPS]
    assert [problem.partition(": ")[0] for problem in problems] == [f"systems.{name}" for name in learners]
    assert 0 < len(learners) < len(load(PARAMS).systems)
    assert problems[0].startswith("systems.decouplednet: classifiers.decoupled.head.kernel")
    assert "exceeds the 1 cells of the top map at crops.input_size 32" in problems[0]


def test_a_systems_origin_is_at_the_beginning_of_its_chain() -> None:
    chain = {"systems.sec.start": "segmenters/dsrg", "systems.dsrg.start": "segmenters/deeplab"}
    settings = Settings(changed(chain))
    origins = [settings.origin_of(name) for name in ("sec", "dsrg", "deeplab")]
    assert origins == [("classifiers", "decoupled_str")] * 3
    assert settings.origin_of("ficklenet") == ("classifiers", "ficklenet")
    assert Settings(changed(chain | {"systems.deeplab.start": "backbones/vgg_fine"})).origin_of("sec") == (
        "backbones", "vgg_fine",
    )  # fmt: skip
    problems = problems_of(chain | {"systems.deeplab.start": "segmenters/sec"})
    assert "systems.sec.start: found a circle, sec starts from dsrg starts from deeplab starts from sec" in problems
    assert {problem.partition(":")[0] for problem in problems} == {
        f"systems.{name}.start" for name in ("sec", "dsrg", "deeplab")
    }


@pytest.mark.parametrize("name", ["My System", "../../etc", "", "a.b", "a@b", "-rf", "Ä", 3])
def test_names_become_folders_and_stages(name: Any) -> None:
    params = changed({})
    assert only_problem({"systems": {name: params["systems"]["deconvnet"]}}) == (
        f"systems: found the name {name!r}; allowed are names like 'my_name_2'"
    )
    assert only_problem({"views": params["views"] | {name: params["views"]["single"]}}) == (
        f"views: found the name {name!r}; allowed are names like 'my_name_2'"
    )


def test_all_mistakes_of_all_sections_are_told_at_once() -> None:
    changes = {
        "seed": "0",
        "dataset.size": 50,
        "split.strong.images": 0,
        "crops.warp": 1.5,
        "views.single.flip": "no",
        "recipes.classifier.stepz": 1,
        "recipes.common.workers": -1,
        "backbones.vgg.stride": 7,
        "classifiers.decoupled_str.images": "all",
        "classifiers.ficklenet.backbone": "vggfine",
        "pseudo_labels.deterministic.passes": 0,
        "systems.deconvnet.images": 3,
        "systems.sec.training.network": "gird",
        "evaluation.panels": 0,
    }
    problems = problems_of(changes)
    assert len(problems) == len(changes), problems
    for key in changes:
        assert any(problem.startswith(f"{key}: ") for problem in problems), (key, problems)


def test_all_mistakes_of_the_systems_modules_are_told_at_once() -> None:
    changes = {
        "systems.decouplednet.prediction.threshold": 2,
        "systems.deconvnet.training.kernel": 0,
        "systems.sec.module": "sek",
        "systems.dsrg.training.full_weight": -1.0,
    }
    assert {problem.partition(":")[0] for problem in problems_of(changes)} == set(changes)


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = PARAMS.read_text()
    for written, read in [("1e-4", 1e-4), ("1E-05", 1e-5), ("2", 2.0)]:
        first = text.index("learning_rate: ")
        line = text[first : text.index("\n", first)]
        (tmp_path / "params.yaml").write_text(text.replace(line, f"learning_rate: {written}", 1))
        rate = load(tmp_path / "params.yaml").recipes["classifier"].learning_rate
        assert rate == read
        assert isinstance(rate, float)
    (tmp_path / "params.yaml").write_text(text.replace(line, 'learning_rate: "1e-4"', 1))
    with pytest.raises(Problems, match=r"recipes.common.learning_rate: found '1e-4'; must be a valid number"):
        load(tmp_path / "params.yaml")


def test_yes_and_no_are_words_in_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS.read_text().replace("flip: false", "flip: no"))
    with pytest.raises(Problems, match=r"views.single.flip: found 'no'; must be a valid boolean"):
        load(tmp_path / "params.yaml")


def test_settings_are_frozen() -> None:
    settings = load(PARAMS)
    for section, key in [
        (settings.dataset, "root"),
        (settings.split.strong, "kind"),
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
        load(path)


def test_a_parameters_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"there is no parameters file .*nowhere.yaml; start from one of profiles"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(Problem, match="cannot be read"):
        load(tmp_path)


def test_what_json_lacks_is_told_too() -> None:
    problem = only_problem({"dataset.train_images": datetime.date(2012, 5, 11)})
    assert problem.startswith("dataset.train_images: found '2012-05-11'; must be a valid integer")


def test_a_key_that_is_no_text_is_told() -> None:
    """YAML takes a date for a key; JSON, by way of which sections are checked, does not."""
    problem = only_problem({"split.strong": {datetime.date(2012, 5, 11): 3}})
    assert problem.startswith("split: found a key that is no text")


def test_a_section_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(Problem, match=r"'nowhere' is missing; here are \['deconvnet', 'decouplednet'"):
        reading.section(reading.read(PARAMS), "systems.nowhere", SystemEntry)


@pytest.mark.parametrize(
    ("key", "found", "most"),
    [
        ("crops.per_subset", 10**9, "10000"),
        ("crops.warp", 10**6, "4096"),
        ("crops.max_subsets", 10**9, "10000"),
        ("pseudo_labels.ficklenet.passes", 10**9, "10000"),
        ("pseudo_labels.ficklenet.batch_size", 10**9, "10000"),
        ("pseudo_labels.ficklenet.input_size", 10**6 + 1, "4097"),
        ("recipes.common.workers", 10**5, "256"),
        ("recipes.common.checkpoint_every", 10**12, "1000000000"),
        ("recipes.classifier.batch_size", 10**9, "10000"),
        ("recipes.classifier.steps", 10**12, "1000000000"),
        ("classifiers.ficklenet.resize", 10**6, "4096"),
        ("classifiers.decoupled.head.kernel", 10**6, "256"),
        ("networks.grid.width", 10**9, "10000"),
        ("networks.mirror.width", 1e9, "16"),
        ("backbones.vgg.width", 1e9, "16"),
        ("systems.deconvnet.prediction.proposals", 10**9, "10000"),
        ("views.single.scales", [1e6], "8"),
        ("evaluation.batch_size", 10**9, "10000"),
        ("dataset.size", 32 * 10**6, "4096"),
    ],
)
def test_a_number_that_no_machine_can_hold_is_refused(key: str, found: Any, most: str) -> None:
    problem, *_ = [problem for problem in problems_of({key: found}) if problem.startswith(key)]
    assert re.search(rf"must be less than or equal to {most}$", problem), problem


def test_pictures_that_fill_a_disk_are_refused() -> None:
    (problem,) = problems_of({"dataset.train_images": 10**8})
    assert re.search(r"^dataset: train_images 100,000,000 and .* would take about [\d,]+ GB; allowed are 20$", problem)
