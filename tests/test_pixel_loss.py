"""Losses of labels of pixels: Lovasz beside a slow reference, Dice and weighted cross-entropy by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from segcore.data.batches import Mixed
from segcore.data.samples import LabelledImages, TaggedImages
from segcore.errors import Problem
from segcore.losses import lovasz_softmax, pixel_cross_entropy, pixel_dice
from segcore.systems._pixel_loss import PixelLoss, PixelLossParams, inverse_weights
from tests.devkit import make_record
from tests.networks import batch_of, build, tiny_classifier

PLAIN = {"cross_entropy": 1.0, "dice": 0.0, "lovasz": 0.0, "class_weights": {"kind": "none"}}


def some(count: int = 3, classes: int = 4, side: int = 5) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes - 1, (count, side, side), generator=random)
    labels[0, :2] = 255
    return torch.randn(count, classes, side, side, generator=random), labels


def jaccard(found: set[int], wanted: set[int]) -> float:
    return 1 - len(found & wanted) / len(found | wanted) if found | wanted else 0.0


def slow_lovasz(p: Tensor, labels: Tensor) -> float:
    """Of one image, from the definition: the Lovasz extension of the Jaccard loss as a function of the mispredicted.

    With errors in falling order, the sum of each error times how much the loss grows when its pixel is mispredicted
    beside those before it.
    """
    known = [i for i in range(labels.numel()) if labels[i] != 255]
    costs = []
    for c in sorted({int(labels[i]) for i in known}):
        wanted = {i for i in known if labels[i] == c}
        errors = {i: abs(float(i in wanted) - float(p[c, i])) for i in known}
        order = sorted(known, key=lambda i: -errors[i])
        total, wrong = 0.0, set()
        for i in order:
            before = jaccard(wanted ^ wrong, wanted)
            wrong = wrong | {i}
            total += errors[i] * (jaccard(wanted ^ wrong, wanted) - before)
        costs.append(total)
    return sum(costs) / len(costs)


def test_lovasz_is_its_definition() -> None:
    scores, labels = some()
    term = lovasz_softmax(scores, labels)
    p = scores.double().softmax(1).flatten(2)
    slow = [slow_lovasz(p[i], labels[i].flatten()) for i in range(3)]
    assert term.weight == 3
    assert term.total.item() == pytest.approx(sum(slow), rel=1e-5)


def test_lovasz_of_what_is_certain_is_the_mean_of_1_minus_iou() -> None:
    labels = torch.tensor([[[0, 0, 1, 1, 255]]])
    found = torch.tensor([[[0, 1, 1, 1, 0]]])
    scores = 100 * F.one_hot(found, 3).permute(0, 3, 1, 2).float()
    assert lovasz_softmax(scores, labels).total.item() == pytest.approx((1 / 2 + 1 / 3) / 2, abs=1e-4)
    assert lovasz_softmax(100 * F.one_hot(labels % 255, 3).permute(0, 3, 1, 2).float(), labels).total < 1e-4


def test_dice_is_the_mean_over_the_classes_of_an_image() -> None:
    scores, labels = some()
    p = scores.softmax(1)
    costs = []
    for image in range(3):
        known = labels[image] != 255
        classes = [c for c in range(4) if (labels[image] == c).any()]
        of = []
        for c in classes:
            q = (labels[image] == c)[known].float()
            own = p[image, c][known]
            of.append(1 - (2 * (own * q).sum() + 1) / (own.sum() + q.sum() + 1))
        costs.append(torch.stack(of).mean())
    torch.testing.assert_close(pixel_dice(scores, labels).total, torch.stack(costs).sum())


@pytest.mark.parametrize("loss", [pixel_dice, lovasz_softmax])
def test_images_do_not_depend_on_each_other_and_unknown_ones_cost_nothing(loss: Any) -> None:
    scores, labels = some()
    alone = [loss(scores[i : i + 1], labels[i : i + 1]).total for i in range(3)]
    torch.testing.assert_close(loss(scores, labels).total, torch.stack(alone).sum())
    scores = scores.requires_grad_()
    nothing = loss(scores, torch.full_like(labels, 255))
    assert nothing.total.item() == 0
    nothing.total.backward()
    assert scores.grad is not None
    assert (scores.grad == 0).all()


def test_weighted_cross_entropy_is_that_of_torch() -> None:
    scores, labels = some()
    weights = torch.tensor([1.0, 2.0, 5.0, 3.0])
    term = pixel_cross_entropy(scores, labels, weights)
    torch.testing.assert_close(term.over(term.weight), F.cross_entropy(scores, labels, weights, ignore_index=255))


def test_weights_are_inverse_shares_up_to_a_cap() -> None:
    assert inverse_weights(torch.tensor([100, 50, 2, 0]), 5.0).tolist() == [1, 2, 5, 1]


def test_absent_and_plain_are_the_cross_entropy_bit_for_bit() -> None:
    scores, labels = some()
    expected = pixel_cross_entropy(scores, labels)
    for params in (None, PixelLossParams.model_validate(PLAIN)):
        terms = PixelLoss(params, 4)(scores, labels)
        assert list(terms) == ["segmentation"]
        assert torch.equal(terms["segmentation"].total, expected.total)
        assert torch.equal(terms["segmentation"].weight, expected.weight)


def test_every_part_has_its_factor() -> None:
    scores, labels = some()
    params = PixelLossParams.model_validate(PLAIN | {"cross_entropy": 0.5, "dice": 2.0, "lovasz": 3.0})
    terms = PixelLoss(params, 4)(scores, labels)
    parts = {"segmentation": pixel_cross_entropy, "dice": pixel_dice, "lovasz": lovasz_softmax}
    for (name, loss), factor in zip(parts.items(), (0.5, 2.0, 3.0), strict=True):
        torch.testing.assert_close(terms[name].total, factor * loss(scores, labels).total)
    only = PixelLossParams.model_validate(PLAIN | {"cross_entropy": 0.0, "lovasz": 1.0})
    assert list(PixelLoss(only, 4)(scores, labels)) == ["lovasz"]
    with pytest.raises(ValidationError, match="nothing would teach"):
        PixelLossParams.model_validate(PLAIN | {"cross_entropy": 0.0})


def test_classes_are_counted_in_the_labels_of_the_samples(tmp_path: Path) -> None:
    labels = np.zeros((10, 10), dtype=np.uint8)
    labels[0], labels[1, :5], labels[9] = 1, 2, 255
    Image.fromarray(labels).save(tmp_path / "one.png")
    record = make_record("one", tmp_path / "one.jpg", None, 10, 10, (1,), "train")
    masked = LabelledImages([record], [tmp_path / "one.png"], 3, 33)
    weights = {"kind": "inverse", "cap": 10.0}
    loss = PixelLoss(PixelLossParams.model_validate(PLAIN | {"class_weights": weights}), 4)
    for samples in (masked, Mixed(TaggedImages([record], 3, None, 33), masked)):
        loss.weights.fill_(0)
        loss.begin(samples)
        assert loss.weights.tolist() == [1, 7.5, 10, 1]
    assert "weights" not in loss.state_dict()
    with pytest.raises(Problem, match="no files of labels to count classes in"):
        loss.begin(TaggedImages([record], 3, None, 33))


@pytest.mark.parametrize("module", ["deeplab", "fpn", "swsss", "mean_teacher", "prototypes"])
def test_systems_that_learn_from_masks_take_it(module: str) -> None:
    from segcore.networks import dropout

    changes = {"pixel_loss": PLAIN | {"dice": 0.5, "lovasz": 0.5}}
    plain, more = build(module, tiny_classifier()), build(module, tiny_classifier(), **changes)
    batch = batch_of(plain, 4)
    for system in (plain, more):
        dropout.set_key(system.train(), 0, rank=0, world=1)
    first, second = plain.losses(batch), more.losses(batch)
    assert {*second} - {*first} == {"dice", "lovasz"}
    torch.testing.assert_close(first["segmentation"].total, second["segmentation"].total)
    with pytest.raises((Problem, TypeCheckError, AttributeError)):
        build(module, tiny_classifier(), pixel_loss={"dice": 1.0})
