"""Every profile is a complete parameters file once it is composed, and `shapes` is in place after cloning."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from segcore import files, regularisers, systems
from segcore.commands import use_profile
from segcore.config import profiles, reading
from segcore.config.classifiers import FullyConnectedParams, StochasticParams, TrainedParams
from segcore.config.data import StrongAll, StrongList, StrongPerClass, VocParams
from segcore.config.labels import LabelsFromMaps, LabelsFromPredictions
from segcore.config.settings import Settings, load
from segcore.config.training import Poly, RecipeParams, Steps
from segcore.errors import Problem, Problems
from tests.devkit import PROJECT

FOLDER = PROJECT / "profiles"
NAMES = profiles.names(FOLDER)
DECONVOLUTIONS = ("decouplednet", "deconvnet")
GRID = ("deeplab", "sec", "dsrg", "ficklenet", "ficklenet_semi", "wssl", "wssl_tags")


def plain(text: str) -> dict[str, object]:
    return YAML(typ="safe", pure=True).load(text)


def trained(settings: Settings) -> dict[str, TrainedParams]:
    """The classifiers that learn step by step."""
    return {name: one for name, one in settings.classifiers.items() if isinstance(one, TrainedParams)}


@cache
def composed(name: str) -> Settings:
    settings = Settings(plain(profiles.compose(FOLDER, name)))
    systems.check(settings.systems)
    regularisers.check(settings.systems)
    return settings


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_in_order(name: str) -> None:
    assert {*DECONVOLUTIONS, "decouplednet_str", *GRID} <= set(composed(name).systems)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_holds_all_sections_in_one_order_with_comments(name: str) -> None:
    text = profiles.compose(FOLDER, name)
    assert list(plain(text)) == list(plain((FOLDER / "shapes.yaml").read_text()))
    assert profiles.BASED_ON not in text
    own = (FOLDER / f"{name}.yaml").read_text()
    assert text.splitlines()[0] == own.splitlines()[0], "what a profile is for stands at its head"
    assert "# of the 2^L - 1 non-empty label subsets of an image" in text, "a comment of the one below"
    assert not any(line.rstrip() != line for line in text.splitlines())
    assert "\n\n\n" not in text


def test_the_one_that_others_are_based_on_keeps_its_values_and_comments() -> None:
    text, own = profiles.compose(FOLDER, "shapes"), (FOLDER / "shapes.yaml").read_text()
    assert plain(text) == plain(own)
    assert sorted(re.findall(r"# .*", text)) == sorted(re.findall(r"# .*", own))


class TestCompose:
    """How one file is laid over another."""

    BASE = """\
# The base.
seed: 0 # of everything

# What is trained.
recipes:
  common: {steps: 5, schedule: {kind: poly, power: 0.9}}
  slow: {steps: 50}   # never in a hurry
  quick:
    steps: 1          # in a hurry
    rate: 0.5

split:
  strong: {kind: per_class, images: 5}
  views: null
"""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "base.yaml").write_text(self.BASE)
        return tmp_path

    def over(self, folder: Path, text: str, based_on: str = "base", name: str = "over") -> str:
        (folder / f"{name}.yaml").write_text(f"# Over it.\nbased_on: {based_on}\n{text}")
        return profiles.compose(folder, name)

    def test_nothing_over_it_is_the_base(self, folder: Path) -> None:
        text = self.over(folder, "")
        assert plain(text) == plain(self.BASE)
        assert text.startswith("# Over it.\nseed: 0 # of everything\n")

    def test_mappings_are_merged_and_all_else_is_replaced(self, folder: Path) -> None:
        text = self.over(folder, "seed: 7\nrecipes:\n  quick: {rate: 0.25}\n  new: {steps: 3} # mine\n")
        base = plain(self.BASE)
        assert plain(text) == base | {
            "seed": 7,
            "recipes": base["recipes"] | {"quick": {"steps": 1, "rate": 0.25}, "new": {"steps": 3}},  # type: ignore[operator]
        }
        for line in ("  slow: {steps: 50}   # never in a hurry", "# What is trained.", "# in a hurry", "# mine"):
            assert line in text

    def test_null_takes_an_entry_away_and_is_a_value_elsewhere(self, folder: Path) -> None:
        content = plain(self.over(folder, "recipes: {slow: null, quick: {rate: null}}\n"))
        assert content["recipes"] == {
            "common": {"steps": 5, "schedule": {"kind": "poly", "power": 0.9}},
            "quick": {"steps": 1, "rate": None},
        }

    def test_another_kind_replaces_a_mapping_whole(self, folder: Path) -> None:
        content = plain(self.over(folder, "split: {strong: {kind: all}}\nrecipes: {common: {schedule: {power: 2}}}\n"))
        assert content["split"] == {"strong": {"kind": "all"}, "views": None}
        assert content["recipes"]["common"]["schedule"] == {"kind": "poly", "power": 2}  # type: ignore[index]
        assert plain(self.over(folder, "split: {strong: {kind: per_class}}\n")) == plain(self.BASE)

    def test_a_remark_about_a_value_goes_with_it(self, folder: Path) -> None:
        text = self.over(folder, "recipes: {quick: {steps: 9}}\n")
        assert "# in a hurry" not in text
        assert "# in a hurry" in self.over(folder, "recipes: {quick: {rate: 0.25}}\n")
        text = self.over(folder, "recipes:\n  quick:\n    steps: 9 # at leisure\n")
        assert re.search(r"steps: 9 +# at leisure\n", text)

    def test_an_entry_over_lines_is_one_over_lines(self, folder: Path) -> None:
        text = self.over(folder, "recipes:\n  slow:\n    steps: 60 # an hour\n    rate: 0.1\n")
        assert re.search(r"\n  slow:.*\n    steps: 60 +# an hour\n    rate: 0.1\n", text)

    def test_a_profile_may_stand_on_one_that_stands_on_another(self, folder: Path) -> None:
        self.over(folder, "seed: 1\nrecipes: {quick: {rate: 0.1}}\n", name="middle")
        content = plain(self.over(folder, "seed: 2\n", based_on="middle"))
        assert (content["seed"], content["recipes"]["quick"]) == (2, {"steps": 1, "rate": 0.1})  # type: ignore[index]

    def test_a_profile_that_is_not_there_is_told_with_those_that_are(self, folder: Path) -> None:
        with pytest.raises(Problem, match=r"found the profile 'bse'; .* has base, over; did you mean 'base'\?"):
            self.over(folder, "", based_on="bse")
        with pytest.raises(Problem, match=r"found the profile '\.\./base'"):
            profiles.compose(folder, "../base")

    def test_a_circle_is_told(self, folder: Path) -> None:
        self.over(folder, "", based_on="base", name="middle")
        self.over(folder, "", based_on="middle")
        with pytest.raises(Problem, match="middle.yaml: is based on itself, by way of middle, over"):
            self.over(folder, "", based_on="over", name="middle")


class TestUseProfile:
    """The command that puts one in place."""

    def test_it_writes_a_whole_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        use_profile.main(profile="voc2012", folder=FOLDER, params=tmp_path / "params.yaml")
        assert (tmp_path / "params.yaml").read_text() == profiles.compose(FOLDER, "voc2012")
        assert "what is made of it will lie in data/voc2012/" in capsys.readouterr().out
        assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]

    def test_it_refuses_without_touching_what_is_there(self, tmp_path: Path) -> None:
        params, folder = tmp_path / "params.yaml", tmp_path / "profiles"
        params.write_text("mine")
        folder.mkdir()
        (folder / "shapes.yaml").write_text((FOLDER / "shapes.yaml").read_text())
        (folder / "wrong.yaml").write_text("based_on: shapes\nseed: -1\nsystems: {dsrg: {training: {steps: 3}}}\n")
        (folder / "broken.yaml").write_text("based_on: shapes\nseed: [1\n")
        (folder / "list.yaml").write_text("- 1\n")
        for profile, said in (
            ("shapse", "did you mean 'shapes'?"),
            ("wrong", "seed: found -1"),
            ("broken", "is not valid YAML"),
            ("list", "must hold sections"),
        ):
            with pytest.raises(Problem, match=re.escape(said)):
                use_profile.main(profile=profile, folder=folder, params=params)
            assert params.read_text() == "mine", profile
        with pytest.raises(Problems, match="the profile wrong has a mistake:"):
            use_profile.main(profile="wrong", folder=folder, params=params)

    def test_it_is_all_or_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "params.yaml").write_text("mine")

        def failing(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "replace", failing)
        with pytest.raises((OSError, Problem)):
            use_profile.main(profile="shapes", folder=FOLDER, params=tmp_path / "params.yaml")
        assert (tmp_path / "params.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", NAMES)
def test_systems_compare_at_the_same_budget(name: str) -> None:
    """Deconvolution networks exactly, and the rows of DIS; classifiers of a head, too, but where the few images of S
    need fewer steps than those of W. The networks with a fine grid have recipes of their own where each has a paper of
    its own; elsewhere the trunks of some learn along, and nothing else differs."""
    settings = composed(name)
    families: dict[str, set[str]] = {}
    for system in settings.systems.values():
        kind = system.training["network"]["kind"]
        families.setdefault(kind, set()).add(str(system.training["recipe"]))
    assert len(families["deconvolution"]) == len(families["dual"]) == 1
    grids = [settings.recipes[recipe].model_copy(update={"multipliers": {}}) for recipe in families["grid"]]
    assert all(recipe == grids[0] for recipe in grids) or name == "voc2012"
    by_head: dict[str, list[RecipeParams]] = {}
    for classifier in trained(settings).values():
        by_head.setdefault(classifier.head.kind, []).append(settings.recipes[classifier.recipe])
    for recipes in by_head.values():
        for recipe in recipes:
            assert recipe == recipes[0].model_copy(update={"steps": recipe.steps})
    for system, images in (("decouplednet", "weak"), ("decouplednet_str", "strong")):
        kind, classifier = settings.origin_of(system)
        assert (kind, settings.classifiers[classifier].images) == ("classifiers", images)


@pytest.mark.parametrize("name", NAMES)
def test_self_regulation_is_measured_against_its_like(name: str) -> None:
    """By nothing else does a regulated row differ from the plain one, and its trunk, which it teaches, learns."""
    systems = composed(name).systems
    for row, like, alike in (("deeplab_sr", "deeplab", ()), ("ficklenet_sr", "ficklenet", ("recipe",))):
        entries = [systems[key].model_dump() for key in (row, like)]
        assert list(entries[0]["training"].pop("regularisers")) == ["self_regulation"]
        recipe = composed(name).recipes[entries[0]["training"]["recipe"]]
        assert recipe.multipliers["pretrained"] > 0
        for key in alike:
            entries[1]["training"][key] = entries[0]["training"][key]
        assert entries[0] == entries[1]


def test_voc_mini_takes_its_deterministic_cues_as_they_were_published() -> None:
    labels = composed("voc-mini").pseudo_labels["deterministic"]
    assert isinstance(labels, LabelsFromMaps)
    assert (labels.theta, labels.selection) == (0.2, "deterministic")


class TestVocMiniVgg:
    """The papers' own networks, small."""

    SETTINGS = composed("voc-mini-vgg")

    def test_every_trunk_is_a_vgg_that_learns(self) -> None:
        settings = self.SETTINGS
        assert {backbone.name for backbone in settings.backbones.values()} == {"vgg16"}
        assert {backbone.width for backbone in settings.backbones.values()} == {1.0}
        # Those of entries, wherever they start: FickleNet's classifier among them.
        used = {c.recipe for c in trained(settings).values()}
        used |= {system.training["recipe"] for system in settings.systems.values()}
        assert {settings.recipes[name].multipliers["pretrained"] for name in used} == {0.1}

    def test_deconvolution_networks_have_switches(self) -> None:
        for name in ("decouplednet", "decouplednet_str", "deconvnet"):
            entry = self.SETTINGS.systems[name]
            kind, start = self.SETTINGS.origin_of(name)
            starts = {"classifiers": self.SETTINGS.classifiers, "backbones": self.SETTINGS.backbones}[kind]
            backbone = getattr(starts[start], "backbone", starts[start])
            assert backbone.stride == 32, "where max-poolings have switches"
            assert entry.training["network"]["output_stride"] == 1

    def test_systems_on_a_grid_have_a_large_field_of_view_and_wssl_a_small_one_too(self) -> None:
        for name in GRID:
            network = self.SETTINGS.systems[name].training["network"]
            assert (network["branches"], network["kernel"]) == ([6], 3), name
        small = self.SETTINGS.systems["wssl_small"].training
        assert (small["network"]["branches"], small["network"]["kernel"]) == ([2], 4)
        assert small == self.SETTINGS.systems["wssl"].training | {"network": small["network"]}

    def test_its_results_lie_beside_those_of_voc_mini(self) -> None:
        assert self.SETTINGS.dataset.name != composed("voc-mini").dataset.name


class TestVoc2012:
    """The papers' recipes."""

    @staticmethod
    def budget(name: str) -> Settings:
        """The profile as `dvc exp run` changes it by the options at its head."""
        text, head = profiles.compose(FOLDER, "voc2012"), (FOLDER / "voc2012.yaml").read_text().partition("based_on")[0]
        lines = [line.removeprefix("#").strip() for line in head.splitlines()]
        first = next(number for number, line in enumerate(lines) if line.startswith(name))
        options = [lines[first].removeprefix(name)]
        for line in lines[first + 1 :]:
            if not line.startswith("-S"):
                break
            options.append(line)
        overrides = [option for option in shlex.split(" ".join(options)) if option != "-S"]
        assert overrides
        return TestVoc2012.overridden(text, overrides)

    @staticmethod
    def overridden(text: str, overrides: list[str]) -> Settings:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "params.yaml"
            file.write_text(text)
            apply_overrides(file, overrides)
            settings = load(file)
        systems.check(settings.systems)
        return settings

    @pytest.mark.parametrize(
        ("name", "strong", "steps", "every"),
        [
            ("5:", StrongPerClass(kind="per_class", images=5), 5500, 4000),
            (None, StrongPerClass(kind="per_class", images=10), 7500, 10000),
            ("25:", StrongPerClass(kind="per_class", images=25), 15000, 10000),
            ("all:", StrongAll(kind="all"), 17500, 10000),
        ],
        ids=["5", "10", "25", "all"],
    )
    def test_budgets_of_masks(self, name: str | None, strong: object, steps: int, every: int) -> None:
        """Hong et al. 2015, section 6, and the solver files that the authors published."""
        settings = self.budget(name) if name else composed("voc2012")
        assert settings.split.strong == strong
        assert settings.split.weak_includes_strong
        recipe = settings.recipes["segmenter"]
        assert (recipe.steps, recipe.schedule) == (steps, Steps(kind="step", every=every, factor=0.1))

    def test_vocs_own_masks(self) -> None:
        """Lee et al. 2019, table of semi-supervised results."""
        strong = self.budget(
            "Lee et al. (CVPR 2019) give VOC's own 1,464 masks to the semi-supervised row:"
        ).split.strong
        assert isinstance(strong, StrongList)
        assert strong.file.endswith("VOC2012/ImageSets/Segmentation/train.txt")

    def test_decouplednet_is_the_papers(self) -> None:
        """Hong et al. 2015, section 5, and the solver files that the authors published."""
        settings = composed("voc2012")
        assert isinstance(settings.dataset, VocParams)
        assert settings.dataset.train_list == "trainaug"
        segmenter = settings.recipes["segmenter"]
        assert (segmenter.batch_size, segmenter.accumulate) == (64, 16)
        for name in ("classifier", "segmenter"):
            recipe = settings.recipes[name]
            assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 0.0005)
            assert (recipe.learning_rate, recipe.bias_multiplier) == (0.01, 2.0)
        for name in ("decoupled", "decoupled_str"):
            classifier = trained(settings)[name]
            assert (classifier.backbone.name, classifier.backbone.width) == ("vgg16", 1.0)
            assert isinstance(classifier.head, FullyConnectedParams)
            assert (classifier.head.width, classifier.head.kernel, classifier.input_size) == (4096, 7, 320)
        assert (settings.crops.per_subset, settings.crops.warp, settings.crops.input_size) == (200, 350, 320)
        assert settings.crops.min_overlap == 1.0, "sub-images enclose the foreground (section 5)"
        for key in ("decouplednet", "decouplednet_str", "deconvnet"):
            entry = settings.systems[key]
            network = entry.training["network"]
            assert (network["width"], network["output_stride"]) == (1.0, 1)
            assert (network["norm_batches"], network["norm_batch_size"]) == (101, 16)
            assert (entry.prediction["views"], entry.prediction["crf"]) == ({"scales": [1.0], "flip": False}, None)
            if key != "deconvnet":
                assert (entry.prediction["threshold"], entry.prediction["weigh_by_probability"]) == (0.5, False)

    def test_ficklenet_is_the_papers(self) -> None:
        """Lee et al. 2019, and for what it takes from others Huang et al. 2018 (DSRG), Kolesnikov and Lampert 2016."""
        settings = composed("voc2012")
        for name, selection in (("ficklenet", "stochastic"), ("deterministic", "deterministic")):
            classifier = trained(settings)[name]
            backbone = classifier.backbone
            assert (backbone.name, backbone.stride, classifier.input_size) == ("vgg16", 8, 321)
            assert isinstance(classifier.head, StochasticParams)
            assert (classifier.head.selection, classifier.head.kernel, classifier.head.rate) == (selection, 9, 0.9)
        tags = settings.recipes["stochastic"]
        assert (tags.optimizer, tags.learning_rate, tags.weight_decay, tags.batch_size) == ("adamw", 0.001, 0.0, 10)
        assert tags.schedule == Steps(kind="step", every=10582, factor=0.5)
        cues, again = settings.pseudo_labels["ficklenet"], settings.pseudo_labels["ficklenet_retrain"]
        assert isinstance(cues, LabelsFromMaps)
        assert isinstance(again, LabelsFromPredictions)
        assert (cues.passes, cues.theta, cues.rate, cues.selection) == (200, 0.35, 0.9, "stochastic")
        assert [round(321 * scale) for scale in again.views.scales] == [241, 321, 401]
        assert again.crf == settings.crfs["picture"]
        for crf in (settings.crfs["grid"], settings.crfs["picture"]):
            assert (crf.iterations, crf.appearance_weight, crf.appearance_xy, crf.appearance_rgb) == (10, 10, 80, 13)
            assert (crf.smoothness_weight, crf.smoothness_xy) == (3, 3)

    def test_wssl_is_the_papers(self) -> None:
        """Papandreou et al. 2015, and the solver and network files that were published for DeepLab."""
        settings = composed("voc2012")
        for name, branch, kernel, width in (("wssl", 12, 3, 1024), ("wssl_small", 4, 4, 4096)):
            entry = settings.systems[name]
            network, crf = entry.training["network"], settings.crfs["deeplab"]
            found = network["branches"], network["kernel"], network["width"], network["input_size"]
            assert found == ([branch], kernel, width, 321)
            step = {"kind": "fixed", "background": 3.0, "foreground": 5.0, "exclude_absent": False}
            assert entry.training["expectation"] == step
            assert (entry.training["strong_weight"], entry.training["weak_weight"]) == (0.7, 0.3)
            assert entry.prediction["crf"] == crf.model_dump(mode="json")
            assert (crf.appearance_weight, crf.appearance_xy, crf.appearance_rgb) == (5, 50, 10)
            assert (crf.smoothness_weight, crf.smoothness_xy) == (3, 3)
            recipe = settings.recipes[entry.training["recipe"]]
            assert (recipe.batch_size, recipe.steps, recipe.schedule) == (
                30, 6000, Steps(kind="step", every=2000, factor=0.1),
            )  # fmt: skip
        step = settings.systems["wssl_tags"].training["expectation"]
        assert (step["kind"], step["background_share"], step["foreground_share"]) == ("adapt", 0.4, 0.2)

    @pytest.mark.parametrize(
        ("system", "steps", "batch_size", "of_imagenet", "of_new_layers"),
        [
            ("sec", 8000, 15, 0.001, 0.01),
            ("dsrg", 8000, 20, 0.0005, 0.005),
            ("ficklenet", 8000, 20, 0.0005, 0.005),
            ("ficklenet_semi", 8000, 20, 0.0005, 0.005),
            ("ficklenet_retrained", 20000, 10, 0.001, 0.001),
        ],
    )
    def test_segmenters_on_a_grid_are_the_papers(
        self, system: str, steps: int, batch_size: int, of_imagenet: float, of_new_layers: float
    ) -> None:
        settings = composed("voc2012")
        entry = settings.systems[system]
        recipe = settings.recipes[entry.training["recipe"]]
        rates = recipe.learning_rate * recipe.multipliers["pretrained"], recipe.learning_rate
        assert (recipe.steps, recipe.batch_size, *rates) == pytest.approx(
            (steps, batch_size, of_imagenet, of_new_layers)
        )
        assert (recipe.momentum, recipe.weight_decay, recipe.bias_multiplier) == (0.9, 0.0005, 2.0)
        assert entry.prediction["crf"] == settings.crfs["picture"].model_dump()
        network, cues = entry.training["network"], entry.training.get("cues")
        assert (network["branches"], network["width"]) == ([12] if system == "sec" else [6, 12, 18, 24], 1024)
        if cues:
            assert cues["crf_scale"] == 12.0
        if system == "ficklenet_retrained":
            assert recipe.schedule == Poly(kind="poly", power=0.9)
        elif system != "sec":
            assert cues is not None
            assert cues["growing"] == {"theta_foreground": 0.85, "theta_background": 0.99}
            assert entry.training["full_weight"] == (2.0 if system == "ficklenet_semi" else 0.0)


def test_the_default_is_the_profile_shapes() -> None:
    """The committed default, or the one about to be: `make use` and `dvc exp run -S` change the file in place."""
    profile = reading.read(FOLDER / "shapes.yaml")
    if profile == reading.read(PROJECT / "params.yaml"):
        return
    try:
        shown = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=PROJECT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"params.yaml holds another profile, and no commit tells the default ({error})")
    assert plain(shown.stdout.decode()) == profile
