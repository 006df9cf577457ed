"""The pooled head: what it computes, what is fitted into it, and the stage that fits it."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from segcore.config.classifiers import Alike, Balanced, FitParams, FittedParams, PooledParams
from segcore.config.plan import FitClassifier, train_classifier
from segcore.config.section import Views
from segcore.config.settings import Settings, load
from segcore.errors import Problem
from segcore.evaluation.tags import tag_metrics
from segcore.fitting import tags as fitting
from segcore.fitting.ridge import Standard, image_weights, ridges
from segcore.models.classifiers import load_classifier, save_classifier
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier
from segcore.networks.own_classes import OwnClasses
from segcore.networks.pooled_head import PooledHead
from segcore.networks.trunk import Features
from tests import warm
from tests.devkit import PARAMS, PROJECT, changed
from tests.networks import backbone, squares
from tests.tiny import files, run_stages, tiny_dataset

ENTRY = {
    "images": "weak",
    "backbone": "vgg",
    "head": {"kind": "pooled", "input_size": 64, "levels": 2, "pools": ["mean", "max"], "views": "single"},
    "fit": {"strengths": [0.1, 1.0], "class_weights": {"kind": "none"}},
}
SINGLE = Views(scales=(1.0,), flip=False)
MANY = Views(scales=(1.0, 0.67), flip=True)
NAMES = ["circle", "square"]


def fit_params(**changes: Any) -> FitParams:
    values = {"strengths": [0.01, 1.0], "class_weights": {"kind": "none"}}
    return FitParams.model_validate_json(json.dumps(values | changes))


def pooled_params(levels: int = 2, views: Views = SINGLE) -> PooledParams:
    return PooledParams(kind="pooled", input_size=64, levels=levels, pools=("mean", "max"), views=views)


def filled(levels: int = 2, views: Views = SINGLE, n_tags: int = 2) -> Classifier:
    """A classifier whose buffers hold numbers, as after a fit."""
    torch.manual_seed(3)
    classifier = classifiers.build(backbone("resnet18"), pooled_params(levels, views), n_tags).eval()
    for name, value in classifier.head.named_buffers():
        value.copy_(torch.rand_like(value) + (0.5 if name == "scale" else 0.0))
    return classifier


def head_of(classifier: Classifier) -> PooledHead:
    assert isinstance(classifier.head, PooledHead)
    return classifier.head


def linear_problem(n: int = 400, d: int = 12, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of odd sizes, and tags that a plane through them tells apart, up to noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    scores = x @ rng.normal(size=(d, 2)) + noise * rng.logistic(size=(n, 2)) + np.array([0.5, -2.0])
    return (x * rng.uniform(0.1, 30, d) + rng.uniform(-50, 50, d)).astype(np.float32), scores > 0


def head_for(d: int) -> PooledHead:
    """A head over one level of d channels, of which it takes the mean."""
    return PooledHead((d,), 2, PooledParams(kind="pooled", input_size=64, levels=1, pools=("mean",), views=SINGLE))


def fitted(x: np.ndarray, tags: np.ndarray, **changes: Any) -> tuple[PooledHead, fitting.Fitted]:
    head = head_for(x.shape[1])
    return head, fitting.fit_head(head, x, x, tags, fit_params(**changes))


class TestHead:
    def test_it_pools_the_levels_from_the_finest_of_its_own(self) -> None:
        levels = (torch.rand(2, 4, 6, 6), torch.rand(2, 3, 4, 4), torch.rand(2, 5, 2, 2))
        head = PooledHead((4, 3, 5), 2, pooled_params(levels=2))
        by_hand = [part for x in levels[1:] for part in (x.mean((2, 3)), x.amax((2, 3)))]
        assert torch.equal(head.pooled(Features(levels, (None,) * 3)), torch.cat(by_hand, dim=1))

    def test_classes_are_those_of_windows_that_fit(self) -> None:
        own = OwnClasses(4)
        own.fill({"fc.weight": torch.randn(1000, 4), "fc.bias": torch.randn(1000)}, "nothing")
        top = torch.rand(2, 4, 10, 7)
        windows = torch.stack([top[:, :, i : i + 7].mean((2, 3)) for i in (0, 3)], dim=1)
        p = (windows @ own.weight.T + own.bias).softmax(2)
        torch.testing.assert_close(own(top), torch.cat([p.mean(1), p.amax(1)], dim=1) ** 0.25)
        small = top[:, :, :2, :3]
        alone = (small.mean((2, 3)) @ own.weight.T + own.bias).softmax(1)
        torch.testing.assert_close(own(small), torch.cat([alone, alone], dim=1) ** 0.25)

    def test_classes_come_from_the_weights_of_the_backbone(self, tmp_path: Path) -> None:
        trunk = classifiers.build(backbone("resnet18"), pooled_params(), 2).trunk
        state = {name.removeprefix("body."): value for name, value in trunk.state_dict().items()}
        params = PooledParams(kind="pooled", input_size=64, levels=1, pools=("mean", "classes"), views=SINGLE)
        weights = backbone("resnet18", weights=str(tmp_path / "all.safetensors"))
        save_file(state, weights.weights)
        with pytest.raises(Problem, match=r"classes wants the last layer.*all.safetensors has None and None"):
            classifiers.build(weights, params, 2)
        last = {"fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}
        save_file(state | last, weights.weights)
        head = head_of(classifiers.build(weights, params, 2))
        assert head.classes is not None
        assert torch.equal(head.classes.weight, last["fc.weight"])
        assert head.weight.shape == (2, 512 + 2000)

    def test_a_batch_gives_what_its_images_give_one_by_one(self) -> None:
        classifier, images = filled(views=MANY), squares(3, 64).images
        with torch.no_grad():
            whole, views = classifier(images).decision, classifier.tags(images)
            for i in range(3):
                torch.testing.assert_close(classifier(images[i : i + 1]).decision[0], whole[i], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(classifier.tags(images[i : i + 1])[0], views[i], rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_tags_by_many_views_are_the_mean_of_their_logits(self) -> None:
        classifier, images = filled(views=Views(scales=(1.0,), flip=True)), squares(2, 64).images.float()
        by_hand = (classifier(images).decision + classifier(images.flip(3)).decision) / 2
        torch.testing.assert_close(classifier.tags(images), by_hand)
        smaller = filled(views=Views(scales=(0.5, 0.51, 2.0), flip=False))
        sizes = []
        smaller.trunk.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[2:]))
        smaller.tags(images)
        assert sizes == [(32, 32), (128, 128)]

    @torch.no_grad()
    def test_the_mean_of_a_map_is_the_logit_of_the_mean_pooled_top(self) -> None:
        head, top = head_of(filled()), torch.randn(2, 512, 3, 4)
        logits = top.mean((2, 3)) @ head.class_vectors.T + head.class_bias
        torch.testing.assert_close(head.maps(top).mean((2, 3)), logits)

    def test_no_parameter_of_it_learns(self) -> None:
        assert list(head_of(filled()).parameters()) == []

    def test_it_comes_back_bit_for_bit(self, tmp_path: Path) -> None:
        classifier = filled()
        params = FittedParams(images="weak", backbone=backbone("resnet18"), head=pooled_params(), fit=fit_params())
        save_classifier(tmp_path, "tags", params, NAMES, classifier)
        loaded, theirs, tags = load_classifier(tmp_path, torch.device("cpu"))
        assert (theirs, tags, loaded.n_tags) == (params, NAMES, 2)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in classifier.state_dict().items())


class TestFit:
    def test_it_finds_the_plane_that_made_the_tags(self) -> None:
        x, tags = linear_problem()
        head, found = fitted(x[:300], tags[:300])
        logits = head.of_pooled(torch.from_numpy(x[300:])).numpy()
        assert fitting.mean_average_precision(logits, tags[300:]) > 0.99
        assert ((logits > 0) == tags[300:]).mean() > 0.95
        assert [tried.strength for tried in found.path] == [1.0, 0.01]

    def test_noise_asks_for_a_penalty(self) -> None:
        x, tags = linear_problem(n=60, d=4, noise=0.5)
        x = np.concatenate([x, np.random.default_rng(7).normal(size=(60, 40)).astype(np.float32)], axis=1)
        _, found = fitted(x, tags, strengths=[1e-6, 1.0])
        assert found.strength == 1.0
        assert found.path[0].loss < found.path[1].loss

    @pytest.mark.parametrize("d", [5, 60])
    @pytest.mark.parametrize("cap", [None, 3.0])
    def test_it_says_of_an_image_what_a_fit_without_it_says(self, d: int, cap: float | None) -> None:
        """By both factorisations, with images that count alike and not."""
        x, tags = linear_problem(n=40, d=d, noise=1.0)
        x = Standard.of(x)(x)
        weights = image_weights(tags, Alike(kind="none") if cap is None else Balanced(kind="balanced", cap=cap))
        for ridge in ridges(x, tags, (0.3, 2.0), weights):
            for out in (0, 17):
                rest = np.arange(40) != out
                (without,) = ridges(x[rest], tags[rest], (ridge.strength,), weights[rest])
                np.testing.assert_allclose(
                    ridge.left_out[out], without.linear(x[out : out + 1])[0], rtol=1e-6, atol=1e-8
                )

    @pytest.mark.parametrize("d", [5, 60])
    def test_the_minimum_has_no_slope(self, d: int) -> None:
        x, tags = linear_problem(n=40, d=d, noise=1.0)
        x, targets = Standard.of(x)(x), np.where(tags, 1.0, -1.0)
        weights = image_weights(tags, Balanced(kind="balanced", cap=3.0))
        (ridge,) = ridges(x, tags, (0.5,), weights)
        rest = weights * (ridge.linear(x) - targets)
        np.testing.assert_allclose(rest.sum(0), 0, atol=1e-8)
        np.testing.assert_allclose(rest.T @ x + 0.5 * d * ridge.linear.weight, 0, atol=1e-8)

    def test_standardisation_is_folded_into_the_vectors(self) -> None:
        """The same regression by both ways: over pooled features, and over each cell of a map."""
        x, tags = linear_problem(noise=0.5)
        head, _ = fitted(x, tags)
        by_pooled = head.of_pooled(torch.from_numpy(x))
        cells = torch.from_numpy(x)[:, :, None, None]
        torch.testing.assert_close(head.maps(cells)[:, :, 0, 0], by_pooled, rtol=1e-3, atol=1e-3)

    def test_a_feature_that_never_changes_weighs_nothing(self) -> None:
        x, tags = linear_problem()
        x[:, 3] = 7.0
        head, _ = fitted(x, tags)
        assert head.scale[3] == 1
        assert head.weight[:, 3].abs().max() < 1e-9 < head.weight[:, 2].abs().max()

    def test_images_left_out_have_no_part_in_their_scores(self) -> None:
        """Tags that are drawn by lot are found no better than by chance."""
        rng = np.random.default_rng(1)
        x, tags = rng.normal(size=(300, 100)).astype(np.float32), rng.random((300, 2)) < 0.3
        _, found = fitted(x, tags)
        assert fitting.mean_average_precision(found.left_out, tags) < 0.4

    def test_balanced_images_count_as_much_on_both_sides(self) -> None:
        tags = np.zeros((100, 2), dtype=bool)
        tags[:20, 0], tags[:2, 1] = True, True
        weights = image_weights(tags, Balanced(kind="balanced", cap=10.0))
        assert weights[tags[:, 0], 0].sum() == pytest.approx(weights[~tags[:, 0], 0].sum())
        assert weights[0, 1] == 10  # and not 49
        assert (image_weights(tags, Alike(kind="none")) == 1).all()


class TestProbabilities:
    def test_calibration_finds_what_made_the_tags(self) -> None:
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(20_000, 2)) * 2
        tags = rng.random(logits.shape) < fitting.sigmoid(logits * [0.5, 2.0] + [-1.0, 0.5])
        a, c = fitting.calibration(logits, tags)
        assert a == pytest.approx([0.5, 2.0], rel=0.1)
        assert c == pytest.approx([-1.0, 0.5], abs=0.1)

    def test_a_tag_of_no_image_stays_unlikely(self) -> None:
        logits = np.random.default_rng(0).normal(size=(50, 1))
        a, c = fitting.calibration(logits, np.zeros((50, 1), dtype=bool))
        assert fitting.sigmoid(a * logits + c).max() < 0.1
        assert fitting.thresholds(fitting.sigmoid(logits), np.zeros((50, 1), dtype=bool)).tolist() == [0.5]

    @pytest.mark.parametrize("seed", range(5))
    def test_no_threshold_gives_a_better_f1(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        p, tags = np.round(rng.random((40, 1)), 1), rng.random((40, 1)) < 0.3
        chosen = fitting.thresholds(p, tags)
        best = tag_metrics(p, tags, ["a"], chosen)["f1_macro"]
        assert best == max(tag_metrics(p, tags, ["a"], t)["f1_macro"] for t in np.linspace(0, 1, 201))

    def test_a_tag_of_few_images_follows_the_others(self) -> None:
        """Alone, its one image would have it found from its own probability on."""
        rng = np.random.default_rng(0)
        p = rng.random((500, 6))
        tags = rng.random(p.shape) < p
        tags[:, 5] = False
        tags[np.argmax(p[:, 5]), 5] = True
        many = fitting.thresholds(p, tags)
        assert fitting.thresholds(p[:, 5:], tags[:, 5:])[0] > 0.9
        assert many[5] < 0.9
        assert np.ptp(many[:5]) < 0.3

    def test_a_threshold_a_tag(self) -> None:
        p, tags = np.array([[0.3, 0.3], [0.6, 0.6]]), np.array([[True, False], [True, True]])
        assert tag_metrics(p, tags, NAMES, np.array([0.2, 0.5]))["f1_macro"] == 1.0
        assert tag_metrics(p, tags, NAMES, 0.5)["f1_macro"] < 1.0


class TestEntry:
    def test_keys_of_training_do_not_exist(self) -> None:
        with pytest.raises(Problem, match=r"classifiers\.tags\.recipe: unknown key, found 'classifier'; allowed here"):
            Settings(changed({"classifiers.tags": ENTRY | {"recipe": "classifier"}}))

    def test_an_unknown_head_is_told_with_all_there_are(self) -> None:
        with pytest.raises(
            Problem, match="'poold'; allowed are fully_connected, hidden_stochastic, pooled, stochastic"
        ):
            Settings(changed({"classifiers.decoupled.head.kind": "poold"}))

    def test_views_are_named(self) -> None:
        with pytest.raises(Problem, match=r"classifiers\.tags\.head\.views: found 'sngle'.*did you mean 'single'"):
            Settings(changed({"classifiers.tags": ENTRY | {"head": ENTRY["head"] | {"views": "sngle"}}}))

    def test_classes_are_refused_where_there_are_none(self) -> None:
        head = ENTRY["head"] | {"pools": ["mean", "classes"]}
        with pytest.raises(Problem, match="must be without classes for vgg16_bn with weights random"):
            Settings(changed({"classifiers.tags": ENTRY | {"head": head}}))

    def test_its_plan_has_no_recipe(self) -> None:
        plan = train_classifier(Settings(changed({"classifiers.tags": ENTRY})), "tags")
        assert isinstance(plan, FitClassifier)
        assert not hasattr(plan, "recipe")
        assert "recipe" in train_classifier(load(PARAMS), "decoupled").__dict__


class TestStage:
    def test_it_fits_measures_and_logs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny_dataset(tmp_path, **{"classifiers.tags": ENTRY})
        monkeypatch.chdir(tmp_path)
        run_stages("prepare", "split")
        begin = time.perf_counter()
        run_stages("train_classifier", name="tags", out=Path("tags"))
        first = time.perf_counter() - begin
        made = files(Path("tags"))
        assert {"model/model.json", "model/model.safetensors", "metrics.json", "made_of.json"} < {*made}
        assert made["training/plots/metrics/mean_average_precision.tsv"].count(b"\n") == 3
        measured = json.loads(made["metrics.json"])
        assert measured["mean_average_precision"] > 0.8  # colours tell the classes apart, even to random layers
        state = load_file("tags/model/model.safetensors")
        assert state["head.class_vectors"].shape == (3, 32)
        assert (state["head.thresholds"] != 0.5).any()
        # The second time nothing goes through the trunk, and the same comes out.
        run_stages("train_classifier", name="tags", out=Path("again"))
        assert {name: made[name] for name in made if not name.startswith("training")} == {
            name: content for name, content in files(Path("again")).items() if not name.startswith("training")
        }
        assert first < 30

    def test_two_processes_fit_what_one_does(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny_dataset(tmp_path, **{"classifiers.tags": ENTRY})
        monkeypatch.chdir(tmp_path)
        run_stages("prepare", "split")
        for processes in (1, 2):
            command = ["python", "-m", "stages.train_classifier", "--name", "tags", "--manifest"]
            command += ["data/manifest.parquet", "--classes", "data/classes.json", "--split", "split"]
            command += ["--out", f"out{processes}"]
            torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
            command[2:2] = torchrun if processes > 1 else []
            environment = warm.environment() | {"PYTHONPATH": str(PROJECT)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stdout + done.stderr
            Path(".scratch/features").rename(f"features{processes}")
        assert files(Path("features1")) == files(Path("features2"))
        for name in ("model/model.safetensors", "metrics.json"):
            assert (Path("out1") / name).read_bytes() == (Path("out2") / name).read_bytes()
