"""Losses against numbers made by hand."""

import math
from collections.abc import Callable

import pytest
import torch

from segcore.losses import (
    Term,
    balanced_seed_loss,
    boundary_loss,
    expand_loss,
    floored_softmax,
    over_images,
    pixel_cross_entropy,
    reconstruction_costs,
    seed_loss,
    tag_costs,
)


def test_cross_entropy_by_hand() -> None:
    """Two classes on 2x2 pixels, one unknown: scores ln 1, ln 3 give probabilities 1/4 and 3/4."""
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 1] = math.log(3)
    term = pixel_cross_entropy(scores, torch.tensor([[[0, 1], [1, 255]]]))
    torch.testing.assert_close(float(term.total), math.log(4) + 2 * math.log(4 / 3))
    assert term.weight == 3


def test_unknown_pixels_neither_count_nor_learn() -> None:
    scores = torch.randn(2, 4, 5, 6, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 6))
    labels[1, 2:] = 255
    term = pixel_cross_entropy(scores, labels)
    assert term.weight == 2 * 30 - 18
    (term.total / term.weight).backward()
    assert scores.grad is not None
    assert not scores.grad[1, :, 2:].any()
    expected = (scores.detach().softmax(1)[0] - torch.nn.functional.one_hot(labels[0], 4).permute(2, 0, 1)) / 42
    torch.testing.assert_close(scores.grad[0], expected)


def test_a_batch_without_any_label_costs_nothing() -> None:
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    term = pixel_cross_entropy(scores, torch.full((1, 2, 2), 255))
    assert (term.total, term.weight) == (0, 0)
    term.over(term.weight).backward()
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("weight", [0.001, 0.5, 1.0, 30.0])
def test_a_term_is_divided_by_its_weight_however_small(weight: float) -> None:
    term = Term(torch.tensor(3 * weight), torch.tensor(weight))
    assert float(term.over(term.weight)) == pytest.approx(3)
    assert float(term.over(2 * term.weight)) == pytest.approx(1.5)


def test_half_precision_scores_are_summed_in_single() -> None:
    scores = torch.randn(1, 2, 64, 64)
    labels = torch.randint(0, 2, (1, 64, 64))
    term = pixel_cross_entropy(scores.bfloat16(), labels)
    assert term.total.dtype == torch.float32
    torch.testing.assert_close(term.total, pixel_cross_entropy(scores, labels).total, rtol=5e-3, atol=0)


def place(*probabilities: float) -> torch.Tensor:
    """One place's probabilities, K."""
    return torch.tensor(probabilities, dtype=torch.float64)


def row(*places: torch.Tensor) -> torch.Tensor:
    """An image 1 K 1 w."""
    return torch.stack(places, dim=1)[None, :, None]


THREE = row(place(0.5, 0.25, 0.25), place(0.1, 0.8, 0.1), place(0.2, 0.4, 0.4), place(0.6, 0.2, 0.2))
"""An image of 1x4 places and three classes."""
LAST_UNKNOWN = torch.tensor([[[0, 1, 2, 255]]])


def test_floored_probabilities_by_hand() -> None:
    scores = torch.tensor([0.0, math.log(3), -1e4], dtype=torch.float64).view(1, 3, 1, 1)
    expected = (place(0.25, 0.75, 0) + 1e-4) / 1.0003
    torch.testing.assert_close(floored_softmax(scores).flatten(), expected)
    assert floored_softmax(scores.bfloat16()).dtype == torch.float32


def test_seed_loss_by_hand() -> None:
    term = seed_loss(THREE, LAST_UNKNOWN)
    torch.testing.assert_close(float(term.total), -(math.log(0.5) + math.log(0.8) + math.log(0.4)) / 3)
    assert term.weight == 1


def test_balanced_seed_loss_by_hand() -> None:
    """The background's one cue weighs as much as the two of both tags together."""
    term = balanced_seed_loss(THREE, LAST_UNKNOWN)
    torch.testing.assert_close(float(term.total), -math.log(0.5) - (math.log(0.8) + math.log(0.4)) / 2)
    assert term.weight == 1


def test_costs_of_tags_and_of_a_reconstruction_by_hand() -> None:
    scores, tags = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]]).double(), torch.tensor([[1.0, 0], [1, 1]])
    expected = torch.tensor([-(math.log(0.5) + math.log(0.25)) / 2, -(math.log(0.75) + math.log(0.5)) / 2]).double()
    torch.testing.assert_close(tag_costs(scores, tags), expected)
    assert tag_costs(scores.bfloat16(), tags).dtype == torch.float32
    found, wanted = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[1.0, 4.0]]], [[[1.0, 3.0]]]])
    costs = reconstruction_costs(found, wanted)
    assert costs.tolist() == [2.0, 5.0]
    term = over_images(costs)
    assert (term.total, term.weight) == (7, 2)


def test_each_image_counts_once_however_many_cues_it_has() -> None:
    both = torch.cat([THREE, THREE])
    cues = torch.cat([LAST_UNKNOWN, torch.tensor([[[255, 1, 255, 255]]])])
    for loss in (seed_loss, balanced_seed_loss):
        single = [float(loss(THREE, cues[[n]]).total) for n in (0, 1)]
        torch.testing.assert_close(float(loss(both, cues).total), sum(single))
        assert loss(both, cues).weight == 2


@pytest.mark.parametrize("loss", [seed_loss, balanced_seed_loss])
def test_an_image_without_cues_costs_nothing(loss: Callable[[torch.Tensor, torch.Tensor], Term]) -> None:
    scores = torch.randn(2, 3, 2, 2, requires_grad=True)
    cues = torch.full((2, 2, 2), 255)
    cues[1, 0, 0] = 1
    term = loss(floored_softmax(scores), cues)
    assert term.weight == 2
    term.total.backward()
    assert scores.grad is not None
    assert not scores.grad[0].any()
    assert scores.grad[1, :, 0, 0].all()
    assert scores.grad.isfinite().all()
    assert loss(floored_softmax(scores[:0]), cues[:0]) == (0, 0)


def test_expand_loss_by_hand() -> None:
    """Decay 1/2 for the tag: 0.8, 0.4, 0.25 and 0.2 weigh 8, 4, 2 and 1; decay 1 for the background: its mean."""
    term = expand_loss(THREE, torch.tensor([[1.0, 0.0]]), decay_foreground=0.5, decay_background=1.0)
    tag = (8 * 0.8 + 4 * 0.4 + 2 * 0.25 + 1 * 0.2) / 15
    expected = -math.log(tag) - math.log(1 - 0.4) - math.log((0.5 + 0.1 + 0.2 + 0.6) / 4)
    torch.testing.assert_close(float(term.total), expected)
    assert term.weight == 1


def test_expand_loss_is_a_mean_over_tags_and_over_absent_classes() -> None:
    scores = torch.randn(1, 5, 3, 3, dtype=torch.float64)
    probabilities = floored_softmax(scores)

    def total(*tags: int) -> float:
        return float(expand_loss(probabilities, torch.tensor([tags]).float()).total)

    background = probabilities[:, 0].flatten().sort(descending=True).values
    weights = 0.999 ** torch.arange(9)
    alone = -math.log(float((background * weights).sum() / weights.sum()))
    singles = [total(*(int(n == k) for k in range(4))) - alone for n in range(4)]
    absent = [-math.log(1 - float(probabilities[0, k + 1].max())) for k in range(4)]
    tagged = [singles[n] - (sum(absent) - absent[n]) / 3 for n in range(4)]
    torch.testing.assert_close(total(1, 0, 1, 0), alone + (tagged[0] + tagged[2]) / 2 + (absent[1] + absent[3]) / 2)
    torch.testing.assert_close(total(0, 0, 0, 0), alone + sum(absent) / 4)
    torch.testing.assert_close(total(1, 1, 1, 1), alone + sum(tagged) / 4)


def test_boundary_loss_by_hand() -> None:
    """Two places; at the second, the ratio of class 1 is 0.9 / 0.01 = 90, which counts as 20."""
    refined = row(place(0.5, 0.5), place(0.1, 0.9))
    probabilities = row(place(0.25, 0.75), place(0.99, 0.01))
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.1 * math.log(0.1 / 0.99) + 0.9 * math.log(20)
    term = boundary_loss(probabilities, refined, (0.05, 20.0))
    torch.testing.assert_close(float(term.total), (first + second) / 2)
    assert term.weight == 1
    unbounded = 0.1 * math.log(0.1 / 0.99) + 0.9 * math.log(90)
    torch.testing.assert_close(float(boundary_loss(probabilities, refined, None).total), (first + unbounded) / 2)


def test_boundary_loss_floors_what_the_crf_gives() -> None:
    refined, probabilities = row(place(0.0, 1.0)), row(place(0.5, 0.5))
    low, high = 1e-4 / 1.0001, 1 / 1.0001
    expected = low * math.log(0.05) + high * math.log(high / 0.5)
    torch.testing.assert_close(float(boundary_loss(probabilities, refined, (0.05, 20.0)).total), expected)


def test_boundary_loss_draws_scores_to_the_target_which_stays() -> None:
    """Within the bounds of the ratio, the gradient at a place is (f - Q) over the number of places."""
    scores = (torch.rand(2, 3, 2, 2, dtype=torch.float64) - 0.5).requires_grad_()
    refined = torch.rand(2, 3, 2, 2, dtype=torch.float64).softmax(1).requires_grad_()
    probabilities = scores.softmax(1)
    boundary_loss(probabilities, refined, (0.05, 20.0)).total.backward()
    assert refined.grad is None
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, (probabilities - refined).detach() / 4)


def test_probabilities_that_are_their_own_target_cost_nothing() -> None:
    probabilities = floored_softmax(torch.randn(3, 4, 2, 2, dtype=torch.float64))
    term = boundary_loss(probabilities, probabilities, None)
    assert abs(float(term.total)) < 1e-12
    assert term.weight == 3
