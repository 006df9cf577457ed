"""DIS: iterative inference and what it may and may not change, targets of weak images, cleaned tags."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from segcore import made_of
from segcore.commands import iterations
from segcore.config.reading import section
from segcore.data.batches import Batch, Mixed, Moment
from segcore.data.manifest import Record, read_manifest
from segcore.data.pictures import IGNORE
from segcore.data.samples import LabelledImages, TaggedImages
from segcore.errors import Problem, Problems
from segcore.evaluation import labelling
from segcore.losses import reconstruction_costs, tag_costs
from segcore.models import cleaned_tags
from segcore.models.cleaned_tags import Row
from segcore.networks import backbones
from segcore.networks.deeplab import at_cells, enlarged
from segcore.networks.dual import Dual, Responses
from segcore.networks.dual_inference import Objective, infer
from segcore.systems import dis
from segcore.systems._weak_update import cleaned, shown, with_background
from segcore.systems.contract import Inputs
from segcore.systems.dis import DIS
from stages import train_classifier
from tests.devkit import make_record
from tests.networks import N_TAGS, backbone, batch_of, origin, params_of, predicting, prediction_of, squares, total
from tests.tiny import run_stages, tiny_dataset, tiny_params

K = N_TAGS + 1
INFERRED = {"kind": "inferred", "iterations": 3, "step": 0.02, "keep": 0.5, "add": 0.5, "shares": None}
PREDICTED = {"kind": "predicted", "shares": None}


def network(trunk: str = "timm/test_resnet", seed: int = 0) -> Dual:
    """With weights that mean something: responses of the order of 1, and tags that reach the scores."""
    torch.manual_seed(seed)
    made = Dual(backbones.build(backbone(trunk, stride=8)), K, 1).eval()
    with torch.no_grad():
        for layer in (made.labelmap, made.tags):
            layer.weight.mul_(10)
        made.fusion.weight.add_(0.1 * torch.randn_like(made.fusion.weight))
    return made


def training(weak_update: dict[str, Any] | None = INFERRED, **changes: Any) -> dis.Training:
    """Of the smallest entry, with another way to fill in, and other values."""
    return params_of("dis", weak_update=None, **changes).model_copy(update={"weak_update": update_of(weak_update)})


def update_of(content: dict[str, Any] | None) -> Any:
    whole = dis.smallest()["training"] | {"weak_update": content}
    return section({"training": whole}, "training", dis.Training).weak_update


def system(weak_update: dict[str, Any] | None = INFERRED, **changes: Any) -> DIS:
    made = dis.build(training(weak_update, **changes), origin(backbone("timm/test_resnet")))
    made.network.load_state_dict(network().state_dict())
    predicting(made)
    return made


def explanation(net: Dual, count: int = 3, with_tags: bool = False) -> tuple[Tensor, Tensor, Objective]:
    """The features of some images, and what is to fall."""
    batch = squares(count)
    with torch.no_grad():
        u1 = net.trunk(batch.images).top
        v1, seen = net.vector_of(u1), net.seen(batch.images, (u1.shape[2], u1.shape[3]))
    tags = with_background(batch.tags)

    def objective(responses: Responses) -> Tensor:
        value = reconstruction_costs(net.reconstructed(responses.labelmap), seen)
        return value + tag_costs(responses.tags, tags) if with_tags else value

    return u1, v1, objective


@pytest.mark.parametrize("with_tags", [False, True])
@pytest.mark.parametrize("trunk", ["vgg16", "timm/test_resnet"])
def test_the_objective_falls_at_every_step(trunk: str, with_tags: bool) -> None:
    """Of a small step: strictly, for every image."""
    net = network(trunk)
    values = infer(net, *explanation(net, with_tags=with_tags), iterations=8, step=0.003).values
    assert values.shape == (9, 3)
    assert (values[1:] < values[:-1]).all(), values


@pytest.mark.parametrize("step", [1.0, 1e3, 1e18, 1e38])
def test_the_objective_never_rises_however_absurd_the_step(step: float) -> None:
    """Steps that lead too far, or out of what numbers can hold, are taken back; half as long, they fit at last."""
    net = network()
    inferred = infer(net, *explanation(net), iterations=160, step=step)
    values = inferred.values
    assert values.isfinite().all()
    assert all(response.isfinite().all() for response in inferred.responses)
    assert (values[1:] <= values[:-1]).all()
    assert (values[-1] < values[0]).all()


def test_a_step_that_is_taken_back_changes_nothing_but_its_length() -> None:
    """An image whose first step was twice too long is, one step later, where half of that step takes it at once."""
    net = network()
    u1, v1, objective = explanation(net, 1)
    step = 1e4
    while not (infer(net, u1, v1, objective, 1, step / 2).values[1] < infer(net, u1, v1, objective, 0, 1.0).values[0]):
        step /= 2
    late, soon = infer(net, u1, v1, objective, 2, step), infer(net, u1, v1, objective, 1, step / 2)
    assert late.values[1] == late.values[0], "the step that was too long"
    assert torch.equal(late.values[2], soon.values[1])
    assert torch.equal(late.responses.labelmap, soon.responses.labelmap)


def by_hand(net: Dual, u1: Tensor, v1: Tensor, objective: Objective, iterations: int, step: float) -> Responses:
    """The same steps over all channels of u1 and v1, none taken back."""
    u, v = u1.clone(), v1.clone()
    for _ in range(iterations):
        u, v = u.detach().requires_grad_(), v.detach().requires_grad_()
        value = objective(net.respond(u, v)).sum()
        moved = []
        for x, gradient in zip((u, v), torch.autograd.grad(value, (u, v)), strict=True):
            length = x.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1) * step
            moved.append(x - length.view(-1, *(1,) * (x.ndim - 1)) * gradient)
        u, v = moved
    return Responses(*(x.detach() for x in net.respond(u, v)))


@pytest.mark.parametrize("n_classes", [2, K])
def test_steps_among_what_is_seen_are_the_steps_among_all(n_classes: int) -> None:
    """In double precision, with fewer rows of weights than channels and with more."""
    torch.manual_seed(2)
    net = Dual(backbones.build(backbone("resnet18", stride=16)), n_classes, 1).eval().double()
    assert (10 * n_classes < net.trunk.channels) or n_classes == K
    if n_classes == K:
        net = network("vgg16").double()
        assert 10 * n_classes > net.trunk.channels
    u1 = torch.rand(2, net.trunk.channels, 6, 5, dtype=torch.float64)
    v1 = net.vector_of(u1).detach()
    seen, tags = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.ones(2, n_classes, dtype=torch.float64)

    def objective(responses: Responses) -> Tensor:
        return reconstruction_costs(net.reconstructed(responses.labelmap), seen) + tag_costs(responses.tags, tags)

    inferred = infer(net, u1, v1, objective, 4, 1e-3)
    assert (inferred.values[1:] < inferred.values[:-1]).all(), "none is taken back, as by hand"
    for ours, theirs in zip(inferred.responses, by_hand(net, u1, v1, objective, 4, 1e-3), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_step_is_the_plain_forward() -> None:
    made, batch = system().eval(), squares(2)
    predicting(made, iterations=0)
    found = made.predict(batch.images)
    assert torch.equal(found, enlarged(made(batch).scores, (96, 96), made.network.stride))
    predicting(made, iterations=3)
    assert not torch.allclose(made.predict(batch.images), found)


def test_images_together_are_inferred_as_one_by_one() -> None:
    """Among them one whose steps are taken back."""
    net = network()
    u1, v1, objective = explanation(net, 3, with_tags=True)
    u1[1] *= 30
    tags = with_background(squares(3).tags)
    seen = net.seen(squares(3).images, (u1.shape[2], u1.shape[3]))
    together = infer(net, u1, v1, objective, 5, 0.4)
    assert (together.values[1:] == together.values[:-1]).any()
    for i in range(3):

        def alone(responses: Responses, i: int = i) -> Tensor:
            value = reconstruction_costs(net.reconstructed(responses.labelmap), seen[i : i + 1])
            return value + tag_costs(responses.tags, tags[i : i + 1])

        found = infer(net, u1[i : i + 1], v1[i : i + 1], alone, 5, 0.4)
        torch.testing.assert_close(found.values[:, 0], together.values[:, i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.responses.labelmap[0], together.responses.labelmap[i], rtol=1e-3, atol=1e-3)


def test_a_reconstruction_that_sees_nothing_moves_nothing() -> None:
    made, images = system().eval(), squares(2).images
    with torch.no_grad():
        for parameter in made.network.image.parameters():
            parameter.zero_()
    predicting(made, iterations=0)
    still = made.predict(images)
    predicting(made, iterations=5, step=10.0)
    torch.testing.assert_close(made.predict(images), still)


def test_iterations_of_training_and_of_prediction_know_nothing_of_each_other() -> None:
    """The number of one is a parameter of training, that of the other of prediction: neither moves the other."""
    batch = batch_of(system(), 4)

    def losses(made: DIS) -> list[float]:
        return [term.total.item() for term in made.losses(batch).values()]

    few, many = (system(weak_update=INFERRED | {"iterations": n}).eval() for n in (1, 20))
    assert losses(few) != losses(many)
    assert torch.equal(few.predict(batch.images), many.predict(batch.images))
    before = losses(few)
    predicting(few, iterations=9)
    assert losses(few) == before
    assert "iterations" not in dis.Training.model_fields


def test_inference_gives_no_gradient_to_the_trunk_or_any_weight() -> None:
    made, batch = system(), batch_of(system(), 4)
    outputs = made(batch)
    labels, tags = made.targets(batch, outputs, made.network.seen(batch.images, (12, 12)))
    assert not labels.requires_grad
    assert not tags.requires_grad
    assert all(parameter.grad is None for parameter in made.parameters())
    features = outputs.levels[-1].detach().requires_grad_()
    u1, v1, objective = features, made.network.vector_of(features), explanation(made.network, 4)[2]
    inferred = infer(made.network, u1, v1, objective, 2, 0.02)
    assert not any(x.requires_grad for x in (*inferred.responses, inferred.values))
    assert features.grad is None


def targets(made: DIS, batch: Batch) -> tuple[Tensor, Tensor]:
    outputs = made(batch)
    size = (outputs.scores.shape[2], outputs.scores.shape[3])
    return made.targets(batch, outputs, made.network.seen(batch.images, size))


def test_strong_samples_teach_by_their_masks_whatever_the_update() -> None:
    for update in (None, {"kind": "none"}, PREDICTED, INFERRED):
        made = system(weak_update=update).eval()
        batch = replace(squares(3), strong=torch.tensor([True, False, True]))
        batch.tags[0] = 1  # of what the mask does not show
        labels, tags = targets(made, batch)
        assert torch.equal(labels[[0, 2]], at_cells(batch.labels, 8)[[0, 2]])
        for i in (0, 2):
            seen = {*batch.labels[i].unique().tolist()} - {IGNORE} | {0}
            assert {*tags[i].nonzero().flatten().tolist()} == seen


def test_ways_to_fill_in_what_a_weak_image_lacks() -> None:
    """Figure 1: (a) nothing, (b) what is predicted among its tags, (c) what is inferred from its colours and tags."""
    batch = replace(squares(3), strong=torch.tensor([True, False, False]))
    found = {}
    for name, update in {"none": {"kind": "none"}, "predicted": PREDICTED, "inferred": INFERRED}.items():
        made = system(weak_update=update).eval()
        found[name] = (made, *targets(made, batch))
    made, labels, tags = found["none"]
    assert (labels[1:] == IGNORE).all()
    assert torch.equal(tags[1:], with_background(batch.tags)[1:])
    made, labels, tags = found["predicted"]
    scores, given = made(batch).scores, with_background(batch.tags)
    assert torch.equal(tags[1:], given[1:])
    for i in (1, 2):
        allowed = given[i].nonzero().flatten()
        assert torch.equal(labels[i], allowed[scores[i, allowed].argmax(0)])
    made, labels, tags = found["inferred"]
    for i in (1, 2):
        assert {*labels[i].unique().tolist()} <= {*tags[i].nonzero().flatten().tolist()}
        assert tags[i, 0] == 1
    assert not torch.equal(labels, found["predicted"][1])


@pytest.mark.parametrize("update", [PREDICTED, INFERRED | {"keep": 0.0, "add": 1.0}], ids=["predicted", "inferred"])
def test_with_shares_every_tag_is_shown(update: dict[str, Any]) -> None:
    """Also those that score below the background everywhere, of which the published update shows nothing."""
    shares = {"background": 0.3, "foreground": 0.2, "rounds": 3}
    batch = replace(squares(4), strong=torch.tensor([True, False, False, False]))
    batch.tags[1:] = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).float()
    shown_by = {}
    for name, chosen in (("published", None), ("shares", shares)):
        made = system(weak_update=update | {"shares": chosen}).eval()
        with torch.no_grad():
            made.network.labelmap.bias[0] += 1000  # type: ignore[index]
        labels, tags = targets(made, batch.at(Moment(3, 9)))
        assert torch.equal(tags[1:], with_background(batch.tags)[1:])
        assert torch.equal(labels[0], at_cells(batch.labels, 8)[0])
        shown_by[name] = [image.flatten().bincount(minlength=K) / image.numel() for image in labels[1:]]
    assert all(share[0] == 1 for share in shown_by["published"])
    for share, given in zip(shown_by["shares"], batch.tags[1:], strict=True):
        assert (share[1:][given == 1] > 0.1).all()
        assert (share[1:][given == 0] == 0).all()
        assert share[0] > 0.2


def test_shares_are_won_by_each_image_alone() -> None:
    """Whatever other images are in the batch: their order is drawn by image and step."""
    made = system(weak_update=PREDICTED | {"shares": {"background": 0.3, "foreground": 0.2, "rounds": 2}}).eval()
    batch = replace(squares(3), strong=torch.tensor([False, False, False])).at(Moment(0, 9))
    batch.tags[:, :3] = 1
    together = targets(made, batch)[0]
    for i in range(3):
        alone = replace(
            batch,
            ids=batch.ids[i : i + 1],
            **{k: getattr(batch, k)[i : i + 1] for k in ("images", "tags", "labels", "strong")},
        )
        assert torch.equal(targets(made, alone)[0][0], together[i])


def test_a_weak_label_is_never_looked_at() -> None:
    made = system()
    batch = replace(squares(3), strong=torch.tensor([True, False, False]))
    hidden = batch.labels.clone()
    hidden[1:] = IGNORE
    for one, other in zip(
        made.losses(batch).values(), made.losses(replace(batch, labels=hidden)).values(), strict=True
    ):
        assert torch.equal(one.total, other.total)


def test_losses_are_means_and_weighted() -> None:
    batch = replace(squares(2), strong=torch.tensor([True, False]))
    made = system(weak_update={"kind": "none"}).eval()
    outputs, terms = made(batch), made.losses(batch)
    given = with_background(batch.tags)
    given[0] = with_background(shown(batch.labels, N_TAGS))[0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs.responses.tags, given)
    torch.testing.assert_close(terms["tags"].over(terms["tags"].weight), expected)
    image = made.network.reconstructed(outputs.responses.labelmap)
    mean = (image - made.network.seen(batch.images, (12, 12))).square().mean()
    torch.testing.assert_close(terms["image"].over(terms["image"].weight), mean)
    heavier = system(weak_update={"kind": "none"}, weights={"image": 3.0, "tags": 0.0}).eval().losses(batch)
    torch.testing.assert_close(heavier["image"].total, 3 * terms["image"].total)
    assert heavier["tags"].total == 0
    assert torch.equal(heavier["labelmap"].total, terms["labelmap"].total)


def test_the_small_image_is_the_mean_colour_around_each_cell() -> None:
    net = network()
    flat = torch.full((1, 3, 97, 97), 130.0)
    normal = net.trunk.normalise(flat)[0, :, 0, 0]
    torch.testing.assert_close(net.seen(flat, (13, 13)), normal[None, :, None, None].expand(1, 3, 13, 13))
    stripes = flat.clone()
    stripes[:, :, :, ::2], stripes[:, :, :, 1::2] = 0, 255
    inner = net.seen(stripes, (13, 13))[:, :, 1:-1, 1:-1]
    mean = net.trunk.normalise(torch.full((1, 3, 1, 1), 127.5))
    torch.testing.assert_close(inner, mean.expand_as(inner), atol=0.15, rtol=0)


def test_tags_are_cleaned_by_what_is_probable() -> None:
    given = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1]]).float()
    likely = torch.tensor([[0.0, 0.6, 0.7, 0.1], [0.9, 0.2, 0.3, 0.1], [0.9, 0.1, 0.2, 0.3], [0.9, 0.4, 0.1, 0.2]])
    even = cleaned(likely, given, keep=0.5, add=0.5)
    assert even.tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1]]
    trusting = cleaned(likely, given, keep=0.2, add=0.9)
    assert trusting.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1]]


def test_a_new_trunk_says_the_same_of_the_image_as_of_its_cells() -> None:
    """At the start scores are subnet 1's own, whatever the tags say."""
    torch.manual_seed(0)
    net = Dual(backbones.build(backbone("resnet18", stride=8)), K, 3)
    u1 = torch.rand(2, net.trunk.channels, 5, 5)
    responses = net.respond(u1, net.vector_of(u1))
    torch.testing.assert_close(net.fused(responses), responses.labelmap)
    assert not torch.allclose(net.vector_of(u1), u1.mean((2, 3)))


def records(folder: Path) -> Inputs:
    """Two images with masks, one without."""
    kept = {
        name: make_record(name, folder / f"{name}.png", folder / f"{name}_labels.png", 90, 60, (1,), "train")
        for name in ("one", "two")
    }
    kept["bare"] = make_record("bare", folder / "bare.png", None, 90, 60, (2,), "train")
    return Inputs(kept, ["one", "two"], ["bare", "one", "two"], "strong", folder, N_TAGS, None, 0)


def test_the_second_stage_sees_images_without_masks(tmp_path: Path) -> None:
    first = dis.samples(params_of("dis", weak_update=None), records(tmp_path))
    assert isinstance(first, LabelledImages)
    second = dis.samples(params_of("dis"), records(tmp_path))
    assert isinstance(second, Mixed)
    strong, weak = (part for part in second.sets if isinstance(part, LabelledImages))
    assert [record.image_id for record in strong.records] == ["one", "two"]
    assert ([record.image_id for record in weak.records], weak.labels, weak.strong) == (["bare"], [None], False)
    alone = replace(records(tmp_path), weak=["one"])
    with pytest.raises(Problem, match="every image has a mask; weak_update: null"):
        dis.samples(params_of("dis"), alone)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scales": [1.5, 0.5]}, "must be the least factor, then the greatest"),
        ({"network": {"fusion_kernel": 2}}, "fusion_kernel 2 must be odd"),
        ({"network": {"input_size": 100}}, "input_size 100 must be a multiple of stride 8 and one more"),
        ({"weak_update": {"kind": "inferd"}}, "found 'inferd'; allowed are inferred, none, predicted"),
        ({"weak_update": {"keep": 1.5}}, "keep"),
    ],
)
def test_parameters_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Problems, match=said):
        params_of("dis", **changes)
    with pytest.raises(Problems, match="iterations"):
        prediction_of("dis", iterations=-1)


def test_random_cuts_train(tmp_path: Path) -> None:
    made = system(scales=[0.5, 1.5])
    assert made.square == "pad"
    total(made, batch_of(made, 2)).backward()


def test_quality_of_tags_counts_all_tags_of_all_images() -> None:
    rows = [Row("a", (1, 2), (1,), (0.9, 0.1, 0.1)), Row("b", (3,), (2, 3), (0.1, 0.8, 0.7))]
    found = cleaned_tags.quality(rows, {"a": (1,), "b": (2, 3)})
    assert found["given"] == {"precision": 0.6667, "recall": 0.6667, "f1": 0.6667}
    assert found["cleaned"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert cleaned_tags.quality([], {})["given"] == {"precision": None, "recall": None, "f1": None}


NETWORK = {"kind": "dual", "stride": 8, "fusion_kernel": 1, "input_size": 65}
ENTRY = {
    "module": "dis",
    "start": "backbones/vgg_fine",
    "images": "strong",
    "labels": "masks",
    "training": {
        "recipe": "segmenter",
        "network": NETWORK,
        "scales": None,
        "weights": {"labelmap": 1.0, "image": 1.0, "tags": 1.0},
        "weak_update": None,
    },
    "prediction": {"views": "single", "crf": None, "iterations": 2, "step": 0.01},
}
SECOND = ENTRY | {"start": "segmenters/dis_masks", "training": ENTRY["training"] | {"weak_update": INFERRED}}  # type: ignore[operator]
ENTRIES = {"systems.dis_masks": ENTRY, "systems.dis": SECOND, "split.tag_noise": {"drop": 0.5, "add": 0.6}}


class TestStages:
    """Both stages of training by way of the pipeline, with tags that have mistakes."""

    @pytest.fixture(scope="class", autouse=True)
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        folder = tmp_path_factory.mktemp("dis")
        tiny_dataset(folder, **ENTRIES)
        here = Path.cwd()
        try:
            os.chdir(folder)
            run_stages("check_params", "prepare", "split")
            masks = {"labels": Path("masks")}
            run_stages(
                "train_segmenter", system="dis_masks", start=Path("backbones/vgg_fine"), out=Path("one"), **masks
            )
            run_stages("train_segmenter", system="dis", start=Path("one"), out=Path("two"), **masks)
            yield folder
        finally:
            os.chdir(here)

    def test_only_a_system_that_doubts_tags_writes_them(self) -> None:
        assert {path.name for path in Path("one/model").iterdir()} == {"model.json", "model.safetensors"}
        names = {"model.json", "model.safetensors", "cleaned_tags.csv", "tags.json"}
        assert {path.name for path in Path("two/model").iterdir()} == names

    def test_cleaned_tags_are_of_images_without_masks_as_training_saw_them(self) -> None:
        with Path("two/model/cleaned_tags.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        strong = Path("split/strong.txt").read_text().split()
        weak = [image_id for image_id in Path("split/weak.txt").read_text().split() if image_id not in strong]
        assert [row["image_id"] for row in rows] == weak
        with Path("split/tags.csv").open(newline="") as lines:
            given = {row["image_id"]: row["tags"] for row in csv.DictReader(lines)}
        assert [row["given"] for row in rows] == [given[image_id] for image_id in weak]
        for row in rows:
            assert row["cleaned"], "no image loses all of its tags"
            assert all(0 <= float(row[name]) <= 1 for name in ("circle", "square", "star"))

    def test_they_are_measured_against_the_truth(self) -> None:
        told = json.loads(Path("two/model/tags.json").read_text())
        noisy = json.loads(Path("split/split.json").read_text())["tags_seen"]
        assert noisy["dropped"] > 0
        assert noisy["added"] > 0
        assert told["images"] == len(Path("two/model/cleaned_tags.csv").read_text().splitlines()) - 1
        assert told["given"]["recall"] < 1
        assert told["given"]["precision"] < 1

    def test_they_are_the_same_every_time(self, tmp_path: Path) -> None:
        before = {path.name: path.read_bytes() for path in Path("two/model").iterdir()}
        run_stages("train_segmenter", system="dis", start=Path("one"), labels=Path("masks"), out=tmp_path / "again")
        assert {path.name: path.read_bytes() for path in (tmp_path / "again/model").iterdir()} == before

    def test_training_sees_mistakes_and_measuring_does_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A classifier, a segmenter, and labels made of a classifier's maps are handed the tags of the split."""
        with Path("split/tags.csv").open(newline="") as lines:
            given = {row["image_id"]: row["tags"] for row in csv.DictReader(lines)}
        names = ["background", "circle", "square", "star"]
        handed: dict[str, dict[str, str]] = {}

        def remember(who: str, records: Iterable[Record]) -> None:
            handed[who] = {r.image_id: "|".join(names[tag] for tag in r.tags) for r in records}

        class Watched(TaggedImages):
            def __init__(self, records: list[Record], *others: Any) -> None:
                remember("classifier", records)
                super().__init__(records, *others)

        real = train_classifier.measure, labelling.source, dis.samples

        def measure(model: Any, device: Any, val: list[Record], *others: Any) -> dict[str, Any]:
            remember("measured", val)
            return real[0](model, device, val, *others)

        def source(plan: Any, path: Path, names: list[str], chosen: Sequence[Record], *others: Any) -> Any:
            remember("labels", chosen)
            return real[1](plan, path, names, chosen, *others)

        def samples(params: dis.Training, inputs: Inputs) -> Any:
            remember("segmenter", (inputs.records[image_id] for image_id in inputs.weak))
            return real[2](params, inputs)

        monkeypatch.setattr(train_classifier, "TaggedImages", Watched)
        monkeypatch.setattr(train_classifier, "measure", measure)
        monkeypatch.setattr(labelling, "source", source)
        monkeypatch.setattr(dis, "samples", samples)
        run_stages("train_classifier", name="ficklenet", out=tmp_path / "classifier")
        run_stages("extract_pseudo_labels", input=tmp_path / "classifier", out=tmp_path / "labels")
        run_stages("train_segmenter", system="dis", start=Path("one"), labels=Path("masks"), out=tmp_path / "three")
        weak = Path("split/weak.txt").read_text().split()
        for who in ("classifier", "labels", "segmenter"):
            assert handed[who] == {image_id: given[image_id] for image_id in weak}, who
        true = {
            i: "|".join(names[tag] for tag in r.tags) for i, r in read_manifest(Path("data/manifest.parquet")).items()
        }
        assert handed["measured"] == {i: tags for i, tags in true.items() if i.startswith("val")}
        assert handed["classifier"] != {image_id: true[image_id] for image_id in weak}

    def test_other_tags_are_told_beside_every_result(self, tmp_path: Path) -> None:
        card = json.loads(Path("two/model/model.json").read_text())
        assert card["made_of"]["tags"] == made_of.tags(Path("split"))
        run_stages("evaluate", system="dis", model=Path("two/model"), out=tmp_path / "results")
        assert made_of.read(tmp_path / "results")["tags"] == card["made_of"]["tags"]

    def test_iterations_of_prediction_train_nothing_again(self, tmp_path: Path) -> None:
        changes = {"systems.dis.prediction.iterations": 5}
        params = tiny_params(tmp_path / "params.yaml", **ENTRIES | changes)
        model = {"system": "dis", "model": Path("two/model")}
        run_stages("evaluate", out=tmp_path / "usual", **model)
        run_stages("evaluate", out=tmp_path / "other", params=params, **model)
        one, other = (json.loads((tmp_path / name / "made_of.json").read_text()) for name in ("usual", "other"))
        assert one["training"] == other["training"]
        assert one["prediction"] != other["prediction"]

    def test_steps_at_training_and_prediction_are_tabled_and_drawn(self, tmp_path: Path) -> None:
        data = Path("data") / "tiny"
        for name, source in (("prepared", "data"), ("split", "split")):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).symlink_to(Path(source).resolve())
        with pytest.raises(Problem, match="holds no finished model of module dis"):
            iterations.main(out=tmp_path)
        iterations.main(out=tmp_path, models="one/model,two/model", iterations="0, 2")
        table = pd.read_csv(tmp_path / "iterations.csv")
        assert table["model"].tolist() == ["dis_masks", "dis_masks", "dis", "dis"]
        assert table["at_training"].tolist() == [0, 0, 3, 3]
        assert table["at_prediction"].tolist() == [0, 2, 0, 2]
        assert table["mean_iou"].between(0, 1).all()
        with Image.open(tmp_path / "iterations.png") as image:
            assert image.size == (720, 480)
        with pytest.raises(Problem, match="found '-1'; give whole numbers from 0 up"):
            iterations.main(out=tmp_path, models="one/model", iterations="-1")
