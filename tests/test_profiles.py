"""Every profile is a complete parameters file, and `shapes` is the one that is in place after cloning."""

import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from segcore import config, systems

PROJECT = Path(__file__).parents[1]
PROFILES = sorted((PROJECT / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_in_order(path: Path) -> None:
    settings = config.load(path)
    systems.check(settings.raw["systems"])
    assert {"decouplednet", "decouplednet_str", "deconvnet"} <= set(settings.systems)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_systems_compare_at_the_same_budget(path: Path) -> None:
    """Segmenters exactly; classifiers too, but where the few images of S need fewer steps than those of W."""
    settings = config.load(path)
    assert len({system.recipe for system in settings.systems.values()}) == 1
    recipes = [settings.recipes[classifier.recipe] for classifier in settings.classifiers.values()]
    for recipe in recipes:
        assert recipe == recipes[0].model_copy(update={"steps": recipe.steps})
    if path.stem == "shapes":
        assert len({recipe.steps for recipe in recipes}) == 1
    assert settings.classifiers[settings.systems["decouplednet"].classifier].images == "weak"
    assert settings.classifiers[settings.systems["decouplednet_str"].classifier].images == "strong"
    assert settings.classifiers[settings.systems["deconvnet"].classifier].images == "strong"


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
    settings = config.load(PROJECT / f"profiles/{name}.yaml")
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
        assert (classifier.head.width, classifier.head.kernel, classifier.input_size) == (4096, 7, 320)
    assert (settings.crops.per_subset, settings.crops.warp, settings.crops.input_size) == (200, 350, 320)
    assert {entry["width"] for entry in settings.raw["systems"].values()} == {1.0}
    assert {entry["norm_batches"] for entry in settings.raw["systems"].values()} == {101}


def test_the_default_is_the_profile_shapes() -> None:
    """The committed default, or the one about to be: `make use` and `dvc exp run -S` change the file in place."""
    profile = config.read(PROJECT / "profiles/shapes.yaml")
    if profile == config.read(PROJECT / "params.yaml"):
        return
    try:
        shown = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=PROJECT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"params.yaml holds another profile, and no commit tells the default ({error})")
    assert YAML(typ="safe", pure=True).load(shown.stdout) == profile
