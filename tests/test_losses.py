"""The pixel loss against numbers made by hand."""

import math

import torch

from segcore.losses import pixel_cross_entropy


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
    (term.total / term.weight.clamp(min=1)).backward()
    assert scores.grad is not None
    assert not scores.grad.any()


def test_half_precision_scores_are_summed_in_single() -> None:
    scores = torch.randn(1, 2, 64, 64)
    labels = torch.randint(0, 2, (1, 64, 64))
    term = pixel_cross_entropy(scores.bfloat16(), labels)
    assert term.total.dtype == torch.float32
    torch.testing.assert_close(term.total, pixel_cross_entropy(scores, labels).total, rtol=5e-3, atol=0)
