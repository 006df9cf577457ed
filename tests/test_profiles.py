"""Every profile is a complete parameters file, and `shapes` is the one that is in place after cloning."""

import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from segcore import systems
from segcore.config import reading
from segcore.config.networks import FullyConnectedParams, StochasticParams
from segcore.config.sections import RecipeParams

PROJECT = Path(__file__).parents[1]
PROFILES = sorted((PROJECT / "profiles").glob("*.yaml"))
DECONVOLUTIONS = ("decouplednet", "deconvnet")
FICKLENET = PROJECT / "profiles/voc2012-ficklenet.yaml"
"""The one profile without DecoupledNet; each of its systems has the recipe of its own paper."""


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_in_order(path: Path) -> None:
    settings = reading.load(path)
    systems.check(settings.raw["systems"])
    rows = {"ficklenet", "dsrg", "sec", "deeplab"} if path == FICKLENET else {"decouplednet_str", *DECONVOLUTIONS}
    assert rows <= set(settings.systems)


@pytest.mark.parametrize("path", [path for path in PROFILES if path != FICKLENET], ids=lambda path: path.stem)
def test_systems_compare_at_the_same_budget(path: Path) -> None:
    """Segmenters of a family exactly; DecoupledNet's classifiers, too, but where the few images of S need fewer steps
    than those of W. The networks with a fine grid have recipes of their own."""
    settings = reading.load(path)
    families: dict[bool, set[str]] = {}
    for system in settings.systems.values():
        families.setdefault(system.module in DECONVOLUTIONS, set()).add(system.recipe)
    assert {len(recipes) for recipes in families.values()} == {1}
    by_head: dict[str, list[RecipeParams]] = {}
    for classifier in settings.classifiers.values():
        by_head.setdefault(classifier.head.kind, []).append(settings.recipes[classifier.recipe])
    for recipes in by_head.values():
        for recipe in recipes:
            assert recipe == recipes[0].model_copy(update={"steps": recipe.steps})
    if path.stem == "shapes":
        assert len({recipe.steps for recipe in by_head["fully_connected"]}) == 1
    assert settings.classifiers[settings.classifier_of("decouplednet")].images == "weak"
    assert settings.classifiers[settings.classifier_of("decouplednet_str")].images == "strong"
    assert settings.classifiers[settings.classifier_of("deconvnet")].images == "strong"


@pytest.mark.parametrize(
    ("name", "strong", "steps", "step_every"),
    [
        ("voc2012-5", ("per_class", 5), 5500, 4000),
        ("voc2012-10", ("per_class", 10), 7500, 10000),
        ("voc2012-25", ("per_class", 25), 15000, 10000),
        ("voc2012-full", ("all", None), 17500, 10000),
    ],
)
def test_voc2012_is_the_papers_recipe(name: str, strong: tuple[str, int | None], steps: int, step_every: int) -> None:
    """Hong et al. 2015, section 5, and the solver files that the authors published."""
    settings = reading.load(PROJECT / f"profiles/{name}.yaml")
    assert settings.dataset.layout == "voc"
    assert settings.dataset.train_list == "trainaug"
    assert settings.split.strong == strong[0]
    assert strong[1] in (None, settings.split.strong_per_class)
    assert settings.split.weak_includes_strong
    segmenter = settings.recipes["segmenter"]
    assert (segmenter.steps, segmenter.step_every, segmenter.schedule) == (steps, step_every, "step")
    assert (segmenter.batch_size, segmenter.accumulate) == (64, 16)
    for recipe in settings.recipes.values():
        assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 0.0005)
        assert (recipe.learning_rate, recipe.bias_multiplier) == (0.01, 2.0)
    for classifier in settings.classifiers.values():
        assert (classifier.backbone.name, classifier.backbone.width) == ("vgg16", 1.0)
        assert isinstance(classifier.head, FullyConnectedParams)
        assert (classifier.head.width, classifier.head.kernel, classifier.input_size) == (4096, 7, 320)
    assert (settings.crops.per_subset, settings.crops.warp, settings.crops.input_size) == (200, 350, 320)
    assert settings.crops.min_overlap == 1, "sub-images enclose the foreground (section 5)"
    assert {entry["width"] for entry in settings.raw["systems"].values()} == {1.0}
    for key, entry in settings.raw["systems"].items():
        assert (entry["norm_batches"], entry["norm_batch_size"], entry["output_stride"]) == (101, 16, 1)
        if key != "deconvnet":
            assert (entry["threshold"], entry["weigh_by_probability"]) == (0.5, False)
    assert (settings.evaluation.scales, settings.evaluation.flip, settings.evaluation.crf) == ((1.0,), False, None)


def test_voc2012_ficklenet_is_the_papers_recipe() -> None:
    """Lee et al. 2019, and for what it takes from others Huang et al. 2018 (DSRG) and Kolesnikov and Lampert 2016."""
    settings = reading.load(FICKLENET)
    assert (settings.dataset.layout, settings.dataset.train_list) == ("voc", "trainaug")
    assert settings.split.strong == "list"
    assert str(settings.split.strong_list).endswith("ImageSets/Segmentation/train.txt")
    for name, classifier in settings.classifiers.items():
        assert (classifier.backbone.name, classifier.backbone.stride, classifier.input_size) == ("vgg16", 8, 321)
        assert isinstance(classifier.head, StochasticParams)
        assert classifier.head.selection == {"ficklenet": "stochastic", "deterministic": "deterministic"}[name]
        assert (classifier.head.kernel, classifier.head.rate) == (9, 0.9)
    tags = settings.recipes["classifier"]
    assert (tags.optimizer, tags.learning_rate, tags.weight_decay, tags.batch_size) == ("adamw", 0.001, 0.0, 10)
    assert (tags.schedule, tags.step_every, tags.step_factor) == ("step", 10582, 0.5)
    cues, again = settings.pseudo_labels["ficklenet"], settings.pseudo_labels["ficklenet_retrain"]
    assert (cues.passes, cues.theta, cues.rate, cues.selection) == (200, 0.35, 0.9, "stochastic")
    assert [round(321 * scale) for scale in again.scales] == [241, 321, 401]
    for crf in (again.crf, settings.evaluation.crf):
        assert crf is not None
        assert (crf.iterations, crf.appearance_weight, crf.appearance_xy, crf.appearance_rgb) == (10, 10, 80, 13)
        assert (crf.smoothness_weight, crf.smoothness_xy) == (3, 3)
    published = {  # steps, batch size, learning rate of what comes from ImageNet, of the last layer
        "sec": (8000, 15, 0.001, 0.01),
        "dsrg": (8000, 20, 0.0005, 0.005),
        "retraining": (20000, 10, 0.001, 0.001),
    }
    for name, numbers in published.items():
        recipe = settings.recipes[name]
        rates = recipe.learning_rate * recipe.trunk_multiplier, recipe.learning_rate
        assert (recipe.steps, recipe.batch_size, *rates) == pytest.approx(numbers)
        assert (recipe.momentum, recipe.weight_decay, recipe.bias_multiplier) == (0.9, 0.0005, 2.0)
    for name in ("dsrg", "ficklenet", "ficklenet_semi"):
        entry = settings.raw["systems"][name]
        assert (entry["recipe"], entry["branches"], entry["width"]) == ("dsrg", [6, 12, 18, 24], 1024)
        assert (entry["theta_foreground"], entry["theta_background"], entry["crf_scale"]) == (0.85, 0.99, 12.0)
        assert entry["full_weight"] == (2.0 if name == "ficklenet_semi" else 0.0)


def test_the_default_is_the_profile_shapes() -> None:
    """The committed default, or the one about to be: `make use` and `dvc exp run -S` change the file in place."""
    profile = reading.read(PROJECT / "profiles/shapes.yaml")
    if profile == reading.read(PROJECT / "params.yaml"):
        return
    try:
        shown = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=PROJECT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"params.yaml holds another profile, and no commit tells the default ({error})")
    assert YAML(typ="safe", pure=True).load(shown.stdout) == profile
