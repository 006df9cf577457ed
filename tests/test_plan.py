"""A change of a value runs only that again which is a function of it: the other stages are handed what they were."""

import json
from pathlib import Path
from typing import Any

import pytest

from segcore.commands import check_params
from segcore.config import plan, profiles
from segcore.config.settings import Settings, load
from segcore.errors import Problem
from segcore.reporting import code_behind
from segcore.sources import Code
from tests.devkit import PARAMS, PROJECT, changed, voc_section, write_params

CROP_LEARNERS = {f"train_segmenter/{name}" for name in ("decouplednet", "decouplednet_str", "deconvnet")}
GRID = ("deeplab", "sec", "dsrg", "ficklenet", "ficklenet_semi", "wssl", "wssl_tags")
BEFORE = load(PARAMS)


def of(stage: str, *names: str) -> set[str]:
    return {f"{stage}/{name}" for name in names}


def every(stage: str, settings: Settings = BEFORE) -> set[str]:
    return {file for file, _ in plan.files(settings) if file.startswith(f"{stage}/")}


def differing(before: Settings, after: Settings) -> set[str]:
    """The stages that are handed something else, the report aside, which tells all parameters."""
    one, other = dict(plan.files(before)), dict(plan.files(after))
    assert one["report"] != other["report"], "the change is none"
    return {file for file in one.keys() | other.keys() if one.get(file) != other.get(file)} - {"report"}


PROPOSALS = {"systems.deconvnet.prediction.proposals": 50}
SEEDED = every("train_classifier") | every("train_segmenter") | every("extract_pseudo_labels")


@pytest.mark.parametrize(
    ("changes", "handed_else"),
    [
        ({"seed": 7}, SEEDED | {"prepare", "split", "make_crops"}),
        ({"dataset.train_images": 7}, {"prepare"}),
        ({"dataset": voc_section("kit")}, {"prepare"}),
        ({"split.strong.images": 7}, {"split"}),
        ({"split.weak_includes_strong": False}, {"split"}),
        ({"split.tag_noise": {"drop": 0.2, "add": 0.05}}, {"split"}),
        ({"split.weak_images": 7}, {"split"}),
        # crops: which boxes there are is a matter of make_crops, how they are cut one of those who learn from them, too
        ({"crops.per_subset": 7}, {"make_crops"}),
        ({"crops.min_overlap": 1.0}, {"make_crops"}),
        ({"crops.edges.max_fraction": 0.07}, {"make_crops"}),
        ({"crops.warp": 144}, {"make_crops"} | CROP_LEARNERS),
        # recipes
        ({"recipes.stochastic.steps": 7}, of("train_classifier", "ficklenet")),
        ({"recipes.segmenter.steps": 7}, CROP_LEARNERS),
        ({"recipes.grid.steps": 7}, of("train_segmenter", *GRID)),
        ({"recipes.common.momentum": 0.7}, every("train_classifier") | every("train_segmenter")),
        ({"recipes.common.workers": 7}, set()),
        ({"recipes.grid.workers": 7}, set()),
        ({"recipes.common.checkpoint_every": 7}, set()),
        # networks: what starts from a backbone or a classifier has it by its start
        ({"backbones.vgg_fine.width": 0.25}, of("train_classifier", "ficklenet")),
        ({"backbones.vgg.frozen_norm": True}, of("train_classifier", "decoupled", "decoupled_str")),
        ({"networks.mirror.width": 0.25}, CROP_LEARNERS),
        ({"networks.grid.dropout": 0.25}, of("train_segmenter", *GRID)),
        ({"classifiers.decoupled.head.dropout": 0.25}, of("train_classifier", "decoupled")),
        # labels
        ({"crfs.grid.iterations": 7}, of("train_segmenter", "sec", "dsrg", "ficklenet", "ficklenet_semi")),
        ({"cue_losses.sec.crf_scale": 7.0}, of("train_segmenter", "sec")),
        ({"cue_losses.dsrg.growing": None}, of("train_segmenter", "dsrg", "ficklenet", "ficklenet_semi")),
        ({"pseudo_labels.ficklenet.theta": 0.25}, of("extract_pseudo_labels", "ficklenet")),
        # systems: training and prediction are two things
        ({"systems.dsrg.training.full_weight": 1.0}, of("train_segmenter", "dsrg")),
        ({"systems.decouplednet.prediction.threshold": 0.25}, of("evaluate", "decouplednet")),
        ({"systems.decouplednet.prediction.crf": "grid"}, of("evaluate", "decouplednet")),
        (PROPOSALS, of("evaluate", "deconvnet")),
        ({"systems.sec.start": "backbones/vgg_fine"}, of("train_segmenter", "sec")),
        ({"systems.deeplab.labels": "pseudo_labels/ficklenet"}, of("train_segmenter", "deeplab")),
        ({"views.single.flip": True}, every("evaluate") | every("extract_pseudo_labels")),
        ({"evaluation.boundary_tolerance": 0.01}, every("evaluate")),
        ({"evaluation.panels": 7}, every("evaluate")),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_change_reaches_those_that_use_it(changes: dict[str, Any], handed_else: set[str]) -> None:
    assert differing(BEFORE, Settings(changed(changes))) == handed_else


def test_edges_matter_to_those_that_predict_by_proposals() -> None:
    edges = {"crops.edges": {"kind": "structured", "model": "forest.yml.gz", "max_fraction": 0.12}}
    without = differing(BEFORE, Settings(changed(edges)))
    assert without == {"make_crops"}
    proposed = differing(Settings(changed(PROPOSALS)), Settings(changed(PROPOSALS | edges)))
    assert proposed == {"make_crops", "evaluate/deconvnet"}


AGAIN = {
    "images": "weak", "source": "segmenter", "input": "segmenters/decouplednet", "input_size": 97, "batch_size": 2,
    "views": "single", "restrict_to_tags": True, "crf": None,
}  # fmt: skip


def test_a_segmenter_whose_predictions_are_labels_predicts_by_its_own_parameters() -> None:
    """But for its views and its CRF, which the entry has itself."""
    again = {"pseudo_labels.again": AGAIN}
    both = of("evaluate", "decouplednet") | of("extract_pseudo_labels", "again")
    for key, value, handed_else in (
        ("threshold", 0.25, both),
        ("weigh_by_probability", True, both),
        ("crf", "grid", of("evaluate", "decouplednet")),
        ("views", {"scales": [0.5], "flip": False}, of("evaluate", "decouplednet")),
    ):
        after = Settings(changed(again | {f"systems.decouplednet.prediction.{key}": value}))
        assert differing(Settings(changed(again)), after) == handed_else, key
    after = Settings(changed({"pseudo_labels.again": AGAIN | {"crf": "grid"}}))
    assert differing(Settings(changed(again)), after) == of("extract_pseudo_labels", "again")


def test_a_crf_of_pictures_matters_to_predictions_and_labels_alone(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(profiles.compose(PROJECT / "profiles", "voc2012"))
    before = load(tmp_path / "params.yaml")
    after = Settings(changed({"crfs.picture.iterations": 7}, tmp_path / "params.yaml"))
    picture = before.crfs["picture"].model_dump(mode="json")
    refined = [name for name, system in before.systems.items() if system.prediction["crf"] == picture]
    assert "ficklenet" in refined
    assert "deeplab" not in refined, "it has a CRF of its own"
    assert differing(before, after) == of("evaluate", *refined) | of("extract_pseudo_labels", "ficklenet_retrain")


def test_a_new_entry_changes_no_other() -> None:
    entry = changed({})["systems"]["deeplab"]
    assert differing(BEFORE, Settings(changed({"systems.mine": entry}))) == {"train_segmenter/mine", "evaluate/mine"}


def test_pictures_that_are_somebodys_need_no_seed() -> None:
    voc = {"dataset": voc_section("kit")}
    assert "prepare" not in differing(Settings(changed(voc)), Settings(changed(voc | {"seed": 7})))


def test_a_name_that_params_yaml_lacks_is_told_with_those_it_has() -> None:
    with pytest.raises(Problem, match="there is no system 'unet' in params.yaml; it has deconvnet, decouplednet, "):
        plan.evaluate(BEFORE, "unet")
    with pytest.raises(Problem, match="there is no classifier 'unet' in params.yaml; it has decoupled, "):
        plan.train_classifier(BEFORE, "unet")


class TestCheckParams:
    """What DVC runs first."""

    def test_it_writes_what_every_stage_is_handed(self, tmp_path: Path) -> None:
        check_params.main(data=tmp_path / "data", params=PARAMS)
        written = {
            file.relative_to(tmp_path / "data/params").with_suffix("").as_posix(): json.loads(file.read_text())
            for file in (tmp_path / "data/params").rglob("*.json")
        }
        code = {name: content.pop("code") for name, content in written.items()}
        assert written == json.loads(json.dumps(dict(plan.files(BEFORE))))
        known = Code()
        assert code == {name: known.fingerprints(*code_behind.roots(BEFORE, name)) for name in written}
        assert all(code.values())
        cards = {
            file.parts[-3]: json.loads(file.read_text()) for file in tmp_path.glob("data/backbones/*/model/*.json")
        }
        assert {name: card["params"] for name, card in cards.items()} == changed({})["backbones"]

    def test_the_same_values_are_the_same_bytes(self, tmp_path: Path) -> None:
        """Wherever in the file they stand, and named or written out."""
        whole = {name: recipe.model_dump(mode="json") for name, recipe in BEFORE.recipes.items()}
        own = changed({})["backbones"]["vgg"]
        same = write_params(tmp_path / "params.yaml", {"recipes": whole, "classifiers.decoupled.backbone": own})
        for folder, params in (("one", PARAMS), ("other", same)):
            check_params.main(data=tmp_path / folder, params=params)
        for file in (file for file in (tmp_path / "one").rglob("*.json") if file.name != "report.json"):
            assert file.read_bytes() == (tmp_path / "other" / file.relative_to(tmp_path / "one")).read_bytes(), file

    def test_a_mistake_writes_nothing(self, tmp_path: Path) -> None:
        check_params.main(data=tmp_path / "data", params=PARAMS)
        before = {file: file.read_bytes() for file in (tmp_path / "data").rglob("*.json")}
        wrong = write_params(tmp_path / "params.yaml", {"systems.sec.training.full_weight": 1.0, "seed": 7})
        with pytest.raises(Problem, match="systems.sec.training.full_weight: unknown key"):
            check_params.main(data=tmp_path / "data", params=wrong)
        assert {file: file.read_bytes() for file in (tmp_path / "data").rglob("*.json")} == before
