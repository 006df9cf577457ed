"""The class-conditioned segmenter: pairs of an image and a tag, its loss, given tags, labels by known tags."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segcore import systems
from segcore.cli import command
from segcore.config.settings import Settings
from segcore.data.batches import Mixed
from segcore.data.manifest import Record
from segcore.data.pictures import IGNORE, read_image, read_labels
from segcore.data.samples import binary_labels
from segcore.data.splits import MASKS_FILE
from segcore.data.zoomed import Pairs, Zoom, ZoomedImages, brighter
from segcore.errors import Problem, Problems
from segcore.evaluation import inference
from segcore.evaluation.score_maps import Enlarged
from segcore.networks.conditioned import linear_of
from segcore.networks.pooled_head import PooledHead
from segcore.networks.pyramid import joined, labels_at
from segcore.networks.trunk import Features
from segcore.systems.contract import Inputs, System
from segcore.systems.decoupled_fpn import NOT_FOUND, DecoupledFPN
from tests.devkit import changed, make_devkit, make_record
from tests.networks import N_TAGS, build, linear_classifier, params_of, predicting, squares, system_of, views
from tests.tiny import run_stages, tiny_dataset


def finished(trunk: str = "vgg16", **prediction: Any) -> DecoupledFPN:
    """A random system in eval mode whose statistics are those of a few pictures."""
    system = system_of("decoupled_fpn", trunk)
    assert isinstance(system, DecoupledFPN)
    for layer in system.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    system.train().losses(squares(4))
    predicting(system, **prediction)
    return system.eval()


def tags_of(*given: tuple[int, ...]) -> Tensor:
    """Tags 1..L of each image, as 0 or 1."""
    tags = torch.zeros(len(given), N_TAGS)
    for row, some in enumerate(given):
        tags[row, [tag - 1 for tag in some]] = 1
    return tags


def test_each_tag_has_a_map_of_its_own() -> None:
    system, images = finished(), squares(1).images
    scores = system.predict_given(images, tags_of((1, 2, 3)))
    maps = scores[0, 1:4] - scores[0, 1:4].mean((1, 2), keepdim=True)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (maps[one] - maps[other]).abs().max() > 0.1 * maps[one].abs().max()


def test_what_a_map_shows_hangs_on_the_classifier_alone() -> None:
    """Two tags that the classifier reads alike get the same map: no layer knows which tag it cuts out."""
    system, images = finished(), squares(2).images
    head = system.classifier.head
    assert isinstance(head, PooledHead)
    head.class_vectors[3], head.class_bias[3] = head.class_vectors[0].clone(), head.class_bias[0]
    scores = system.predict_given(images, tags_of((1, 4), (1, 4)))
    assert torch.equal(scores[:, 1], scores[:, 4])


def test_tags_that_are_not_given_cannot_win() -> None:
    system, images = finished(), squares(3).images
    scores = system.predict_given(images, tags_of((2,), (), (1, 5)))
    assert (scores[:, 0] == 0).all()
    given = {(0, 2), (2, 1), (2, 5)}
    for image in range(3):
        for tag in range(1, N_TAGS + 1):
            assert ((scores[image, tag] == NOT_FOUND).all() == ((image, tag) not in given)).item()
    assert (scores[1].argmax(0) == 0).all()


def test_a_pixel_is_of_its_tag_where_that_is_likelier_than_the_background_must_be() -> None:
    system, images, tags = finished(background=0.5), squares(2).images, tags_of((2,), (1,))
    even = system.predict_given(images, tags)
    predicting(system, background=0.2)
    easy = system.predict_given(images, tags)
    assert torch.equal(even[:, 1:], easy[:, 1:])
    torch.testing.assert_close(easy[:, 0].sigmoid(), torch.full((2, 96, 96), 0.2))
    assert torch.equal(easy.argmax(1)[0] == 2, even[0, 2].sigmoid() > 0.2)


def test_given_tags_of_an_image_do_not_depend_on_the_others() -> None:
    system, images, tags = finished("timm/test_resnet"), squares(3).images, tags_of((2, 3), (1,), (1, 2, 5))
    together = system.predict_given(images, tags)
    for number in range(3):
        alone = system.predict_given(images[number : number + 1], tags[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-4)


def test_the_likeliest_tag_is_always_found_and_others_above_the_threshold() -> None:
    images, system = squares(2).images, finished(threshold=1.0)
    head = system.classifier.head
    assert isinstance(head, PooledHead)
    found = (system.predict(images)[:, 1:] > NOT_FOUND).flatten(2).any(2)
    assert found.sum(1).tolist() == [1, 1]
    decision = system.classifier(images).decision
    assert found.float().argmax(1).tolist() == decision.argmax(1).tolist()
    predicting(system, threshold="classifier")
    head.thresholds.copy_(decision[0].sigmoid() - 1e-4)
    assert (system.predict(images[:1])[0, 1:] > NOT_FOUND).flatten(1).any(1).all()
    head.thresholds[2] = 1.0
    found = (system.predict(images[:1])[0, 1:] > NOT_FOUND).flatten(1).any(1)
    assert found.tolist() == [True, True, decision[0].argmax().item() == 2, True, True]


def test_a_head_sees_the_squares_that_it_was_fitted_to() -> None:
    """At its own size it reads the pass that the decoder reads; at others it asks for one more."""
    system, passes = finished(), list[tuple[int, ...]]()
    system.classifier.trunk.register_forward_hook(lambda _, given, __: passes.append(tuple(given[0].shape[2:])))
    system.predict(squares(1).images)
    assert passes == [(96, 96)]
    passes.clear()
    system.predict(squares(1, size=64).images)
    assert passes == [(64, 64), (96, 96)]


def test_projections_are_computed_once_an_image_however_many_tags_it_has() -> None:
    system, images = finished(), squares(2).images
    rows: dict[str, list[int]] = {}
    for name, layer in system.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, given, __, name=name: rows.setdefault(name, []).append(len(given[0])))
    system.predict_given(images, tags_of((1, 2, 3), (4, 5)))
    for name, seen in rows.items():
        own = name.startswith(("pyramid.enter", "pyramid.steps", "pyramid.score", "conditioned.mixes.product"))
        assert seen == [5 if own or name.endswith("mixes.maps") else 2], name
    assert {name.partition(".")[0] for name in rows} == {"classifier", "conditioned", "pyramid"}


def test_a_batch_of_one_pair_an_image_teaches_the_same_without_copies_of_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    system, batch = finished().train(), replace(squares(3), tags=tags_of((2,), (5,), (1,)))
    decode, asked, learned = system.pyramid.decode, list[bool](), list[list[Tensor]]()
    for always_copied in (False, True):

        def decoded(top: Tensor, sides: list[Tensor], image: Tensor | None, how: bool = always_copied) -> Tensor:
            asked.append(image is None)
            return decode(top, sides, torch.arange(3) if how else image)

        monkeypatch.setattr(system.pyramid, "decode", decoded)
        system.zero_grad()
        terms = system.losses(batch)
        sum(term.total for term in terms.values()).backward()  # type: ignore[union-attr]
        learned.append([p.grad.clone() for p in system.pyramid.parameters() if p.grad is not None])
    assert len(learned[0]) > 9
    assert all(torch.equal(*both) for both in zip(*learned, strict=True))
    system.losses(replace(batch, tags=tags_of((2, 3), (5,), ())))
    assert asked == [True, True, False]


class Fixed(DecoupledFPN):
    """One whose logits are given."""

    given: Tensor

    def logits(self, features: Any, image: Any, tag: Any, all_at_once: bool = False) -> Tensor:
        return self.given[:, None]


NOTHING = Features((), ())
"""What a system whose logits are given makes nothing of."""


def with_logits(given: Tensor) -> DecoupledFPN:
    system = system_of("decoupled_fpn").train()
    system.__class__ = Fixed
    system.given = given  # type: ignore[assignment]
    assert isinstance(system, DecoupledFPN)
    return system


def test_the_loss_of_a_constructed_pair() -> None:
    """2 x 2 cells: the tag with p = 3/4, another class with 1/4, the background with 1/2, an unknown one."""
    logits = torch.tensor([[[np.log(3.0), -np.log(3.0)], [0.0, 50.0]]], dtype=torch.float32)
    labels = torch.full((1, 8, 8), IGNORE)
    labels[0, 0, 0], labels[0, 0, 4], labels[0, 4, 0] = 2, 3, 0
    terms = with_logits(logits).terms(NOTHING, labels, torch.tensor([0]), torch.tensor([1]))
    entropy = -np.log(0.75) - np.log(0.75) - np.log(0.5)
    torch.testing.assert_close(terms["segmentation"].total.item(), entropy, rtol=1e-5, atol=0)
    assert terms["segmentation"].weight == 3
    dice = 1 - (2 * 0.75 + 1) / (0.75 + 0.25 + 0.5 + 1 + 1)
    torch.testing.assert_close(terms["dice"].total.item(), 0.5 * dice, rtol=1e-5, atol=0)
    assert terms["dice"].weight == 1


def test_unknown_pixels_teach_nothing() -> None:
    batch = squares(2)
    batch.labels[:, 30:60] = IGNORE
    image, tag = batch.tags.nonzero(as_tuple=True)
    given = torch.randn(len(image), 24, 24, requires_grad=True)
    terms = with_logits(given).terms(NOTHING, batch.labels, image, tag)
    torch.stack([term.over(term.weight) for term in terms.values()]).sum().backward()
    assert given.grad is not None
    unknown = labels_at(batch.labels, 4, (24, 24))[image] == IGNORE
    assert (given.grad[unknown] == 0).all()
    assert (given.grad[~unknown] != 0).all()
    all_unknown = with_logits(given).terms(NOTHING, torch.full_like(batch.labels, IGNORE), image, tag)
    assert all(term.over(term.weight) == 0 for term in all_unknown.values())


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    tags = make_devkit(tmp_path / "voc", n_train=6, n_val=1)
    root = tmp_path / "voc"
    return [
        make_record(i, root / f"JPEGImages/{i}.jpg", root / f"SegmentationClass/{i}.png", 48, 40, some, "train")
        for i, some in tags.items()
        if i.startswith("train")
    ]


def pairs(records: list[Record], absent: float, scales: tuple[float, float] = (1.0, 1.0)) -> Pairs:
    masks = [record.labels for record in records if record.labels is not None]
    return Pairs(records, masks, 3, Zoom(64, scales, 0.0), strong=True, absent=absent)


def test_a_pair_is_of_a_tag_that_the_square_shows_or_of_one_that_the_image_lacks(records: list[Record]) -> None:
    lacking = shown = 0
    for index, record in enumerate(records):
        for seed in range(40):
            sample = pairs(records, 0.4).sample(index, 1000 * index + seed)
            assert sample.tags.sum() == 1
            tag = int(sample.tags.argmax()) + 1
            target = binary_labels(sample.labels[None].long(), sample.tags[None])
            if tag in record.tags:
                assert (target == 1).any()
                shown += 1
            else:
                assert not (target == 1).any()
                assert (target == 0).any()
                lacking += 1
    assert 0.3 < lacking / (lacking + shown) < 0.5


def test_without_absent_tags_none_are_asked_for(records: list[Record]) -> None:
    for index, record in enumerate(records):
        for seed in range(10):
            assert int(pairs(records, 0.0).sample(index, seed).tags.argmax()) + 1 in record.tags


def test_a_pair_is_a_function_of_its_seed(records: list[Record]) -> None:
    samples = pairs(records, 0.4, (0.7, 1.6))
    one, same, other = (samples.sample(2, seed) for seed in (5, 5, 6))
    assert torch.equal(one.image, same.image)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.image, other.image)
    assert one.image.shape == (3, 64, 64)
    assert one.labels.shape == (64, 64)


def test_pictures_and_labels_are_zoomed_alike() -> None:
    """A picture whose colour is its label, but for what scaling blurs."""
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[10:30, 20:50] = 200
    image = np.repeat(labels[:, :, None], 3, axis=2)
    for seed in range(20):
        picture, found = Zoom(64, (0.7, 1.6), 0.0)(image, labels, np.random.default_rng(seed))
        known = found != IGNORE
        assert (picture[~known] == 0).all()
        differing = np.abs(picture[known][:, 0].astype(int) - found[known]) > 100
        assert differing.mean() < 0.02
    dark = Zoom(64, (1.0, 1.0), 0.5)(image, labels, np.random.default_rng(0))[0]
    assert dark.max() != 200


@pytest.mark.parametrize("factor", [0.0, 0.83, 1.0, 1.137, 2.5])
def test_colours_are_multiplied_rounded_and_kept_in_bounds(factor: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)[3:, 5:]
    expected = np.clip(np.rint(image.astype(np.float32) * np.float32(factor)), 0, 255)
    assert np.array_equal(brighter(image, factor), expected)


def test_a_decoder_joins_the_last_level_of_each_stride() -> None:
    assert joined((2, 4, 8, 16, 32), 32, 4) == [3, 2, 1]
    assert joined((2, 4, 8, 8, 8), 8, 4) == [1]
    assert joined((4, 8, 8, 16), 16, 4) == [2, 0]
    assert joined((14, 14, 14), 14, 4) == []


def test_a_stochastic_head_is_read_by_the_sum_of_its_windows() -> None:
    assert linear_of(linear_classifier().head) is not None
    assert linear_of(nn.Linear(3, 3)) is None


def test_a_threshold_of_the_classifier_needs_a_head_that_has_some() -> None:
    from tests.test_systems import stochastic_classifier

    system = build("decoupled_fpn", stochastic_classifier()).eval()
    predicting(system, threshold="classifier")
    with pytest.raises(Problem, match=r"threshold: found 'classifier'.*set a number"):
        system.predict(squares(1).images)


@pytest.mark.parametrize("module", systems.names())
def test_tags_are_given_to_those_that_take_them_alone(module: str) -> None:
    system, images, tags = system_of(module).eval(), squares(2).images, tags_of((2,), (1, 4))
    if not getattr(systems.load(module), "TAKES_TAGS", False):
        with pytest.raises(Problem, match="takes no tags"):
            system.predict_given(images, tags)
        return
    system.finish([squares(3)])
    winners = system.predict_given(images, tags).argmax(1)
    assert {*winners[0].unique().tolist()} <= {0, 2}
    assert {*winners[1].unique().tolist()} <= {0, 1, 4}


def test_certain_tags_of_decouplednet_are_not_weighed() -> None:
    """Once given, a tag counts in full, however unlikely the classifier thinks it."""
    system = predicting(system_of("decouplednet"), threshold=0.0, weigh_by_probability=False).eval()
    system.finish([squares(3)])
    everything = torch.ones(2, N_TAGS)
    given = system.predict_given(squares(2).images, everything)
    torch.testing.assert_close(given, system.predict(squares(2).images))
    predicting(system, threshold=0.0, weigh_by_probability=True)
    torch.testing.assert_close(given, system.predict_given(squares(2).images, everything))


def test_pixels_of_middling_probability_stay_unknown() -> None:
    system = finished()
    scores = torch.full((N_TAGS + 1, 1, 5), NOT_FOUND)
    scores[0] = 0
    scores[2, 0] = torch.tensor([-3.0, -0.5, 0.5, 3.0, 3.0])
    scores[4, 0, 4] = 3.0
    made = Enlarged(scores)
    assert inference.decided(system, made, [0, 2, 4], None, None, (0.3, 0.7)).tolist() == [[0, 255, 255, 2, 255]]
    assert inference.decided(system, made, [0, 2, 4], None, None, None).tolist() == [[0, 0, 2, 2, 2]]
    assert inference.decided(system, made, [0], None, None, (0.3, 0.7)).tolist() == [[0] * 5]


FPN = {
    "module": "decoupled_fpn",
    "start": "classifiers/linear",
    "images": "strong",
    "labels": "masks",
    "training": {
        "recipe": "segmenter",
        "network": {"kind": "pyramid", "top_width": 16, "width": 8, "output_stride": 4, "input_size": 64},
        "zoom": {"scales": [0.7, 1.6], "brightness": 0.2},
        "masks": True,
        "absent": 0.15,
        "dice_weight": 0.5,
    },
    "prediction": {"views": "single", "crf": None, "threshold": "classifier", "background": 0.5},
}
SECOND = FPN | {"start": "segmenters/decoupled_fpn", "labels": "pseudo_labels/decoupled"}
ENTRIES: dict[str, Any] = {
    "classifiers.linear": {
        "images": "weak",
        "backbone": "vgg",
        "head": {"kind": "pooled", "input_size": 64, "levels": 1, "pools": ["mean", "max"], "views": "single"},
        "fit": {"strengths": [0.1, 1.0], "class_weights": {"kind": "none"}},
    },
    "systems.decoupled_fpn": FPN,
    "systems.decoupled_fpn_2": SECOND,
    "pseudo_labels.decoupled": {
        "images": "weak",
        "source": "decoupled",
        "input": "segmenters/decoupled_fpn",
        "input_size": 64,
        "batch_size": 4,
        "views": "single",
        "crf": None,
        "unknown": [0.3, 0.7],
    },
}


def test_two_rounds_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags, masks, labels of the tagged images by their tags, and a second round on both."""
    tiny_dataset(tmp_path, **ENTRIES)
    monkeypatch.chdir(tmp_path)
    run_stages("prepare", "split")
    run_stages("train_classifier", name="linear", out=Path("linear"))
    first = {"system": "decoupled_fpn", "labels": Path("masks"), "start": Path("linear"), "out": Path("first")}
    run_stages("train_segmenter", **first)
    run_stages("extract_pseudo_labels", name="decoupled", input=Path("first"))
    records = {path.stem: path for path in Path("pseudo_labels/labels").glob("*.png")}
    weak = Path("split/weak.txt").read_text().split()
    assert {*records} == {*weak}
    tags = {path.stem: {*np.unique(read_labels(path)).tolist()} - {0, IGNORE} for path in records.values()}
    truth = {i: {*np.unique(read_labels(Path(f"voc/SegmentationClass/{i}.png"))).tolist()} for i in weak}
    assert all(tags[i] <= truth[i] for i in weak), "no label is of a class that the tags lack"
    for image_id, path in records.items():
        assert read_labels(path).shape == read_image(Path(f"voc/JPEGImages/{image_id}.jpg")).shape[:2]
        assert read_labels(Path(f"pseudo_labels/cues/{image_id}.png")).shape == (8, 8)
    second = {
        "system": "decoupled_fpn_2",
        "labels": Path("pseudo_labels"),
        "start": Path("first"),
        "out": Path("second"),
    }
    run_stages("train_segmenter", **second)
    run_stages("evaluate", system="decoupled_fpn_2", model=Path("second/model"))
    assert Path("results/metrics.json").is_file()


def test_labels_by_known_tags_need_a_system_that_takes_tags() -> None:
    wanted = ENTRIES["pseudo_labels.decoupled"]
    good = {"pseudo_labels.decoupled": wanted | {"input": "segmenters/decouplednet"}}
    command.checked(Settings(changed(good)))
    bad = {"pseudo_labels.decoupled": wanted | {"input": "segmenters/deconvnet"}}
    with pytest.raises(Problems, match=r"pseudo_labels\.decoupled\.input: found 'segmenters/deconvnet'.*decouplednet"):
        command.checked(Settings(changed(bad)))
    odd = {"pseudo_labels.decoupled": good["pseudo_labels.decoupled"] | {"unknown": [0.6, 0.7]}}
    with pytest.raises(Problems, match=r"unknown \[0.6, 0.7\] must be a bound of at most 0.5"):
        Settings(changed(odd))


@pytest.mark.parametrize("threshold", ["clasifier", 1.5])
def test_a_wrong_threshold_is_told_once(threshold: float | str) -> None:
    entry = FPN | {"prediction": {"views": "single", "crf": None, "threshold": threshold, "background": 0.5}}
    with pytest.raises(Problems) as raised:
        command.checked(Settings(changed(ENTRIES | {"systems.decoupled_fpn": entry})))
    assert raised.value.problems == [
        f"systems.decoupled_fpn.prediction.threshold: found {threshold!r}; "
        "must be a probability from 0 to 1, or classifier"
    ]


def test_systems_without_a_linear_classifier_say_so() -> None:
    from tests.networks import tiny_classifier

    with pytest.raises(Problem, match=r"head is not linear; .*head.kind: pooled"):
        build("decoupled_fpn", tiny_classifier())
    assert isinstance(system_of("fpn"), System)
    assert views().scales == (1.0,)


class TestSources:
    """Which images teach, and by which labels."""

    def inputs(self, folder: Path, images: str, labels: str) -> Inputs:
        names = ("one", "two", "three")
        records = {
            i: make_record(
                i, folder / f"{i}.png", folder / f"{i}_mask.png" if i == "one" else None, 9, 9, (1,), "train"
            )
            for i in names
        }
        (folder / "masks").mkdir()
        (folder / "masks" / MASKS_FILE).write_text("")
        (folder / "pseudo").mkdir()
        (folder / "pseudo/images.txt").write_text("".join(f"{i}\n" for i in names))
        return Inputs(records, ["one"], [*names], images, folder / labels, 3, None, 0)  # type: ignore[arg-type]

    @pytest.mark.parametrize("module", ["decoupled_fpn", "fpn"])
    def test_masks_alone(self, tmp_path: Path, module: str) -> None:
        given = self.inputs(tmp_path, "strong", "masks")
        samples = systems.load(module).samples(params_of(module), given)
        assert ([r.image_id for r in samples.records], samples.labels) == (["one"], [tmp_path / "one_mask.png"])
        assert samples.strong
        with pytest.raises(Problem, match=r"set its training\.masks to true"):
            systems.load(module).samples(params_of(module, masks=False), given)

    @pytest.mark.parametrize("module", ["decoupled_fpn", "fpn"])
    def test_masks_beside_the_labels_of_images_that_have_none(self, tmp_path: Path, module: str) -> None:
        given = self.inputs(tmp_path, "strong", "pseudo")
        samples = systems.load(module).samples(params_of(module), given)
        assert isinstance(samples, Mixed)
        weak, strong = samples.sets
        assert isinstance(weak, ZoomedImages)
        assert isinstance(strong, ZoomedImages)
        assert [r.image_id for r in weak.records] == ["two", "three"]
        assert [r.image_id for r in strong.records] == ["one"]
        assert (weak.strong, strong.strong) == (False, True)

    @pytest.mark.parametrize("module", ["decoupled_fpn", "fpn"])
    def test_labels_alone(self, tmp_path: Path, module: str) -> None:
        given = self.inputs(tmp_path, "weak", "pseudo")
        loaded = systems.load(module)
        samples = loaded.samples(params_of(module, masks=False), given)
        assert [r.image_id for r in samples.records] == ["one", "two", "three"]
        assert not loaded.supervision(params_of(module, masks=False), "pseudo_labels/any").masks
        with pytest.raises(Problem, match="set images: strong"):
            loaded.samples(params_of(module), given)

    def test_labels_of_nothing_new_are_refused(self, tmp_path: Path) -> None:
        given = self.inputs(tmp_path, "strong", "pseudo")
        (tmp_path / "pseudo/images.txt").write_text("one\n")
        with pytest.raises(Problem, match="no image without a mask"):
            systems.load("fpn").samples(params_of("fpn"), given)
