"""Prototypes: responsibilities by hand, planted clusters found again, and the parts of a run."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.data.batches import Batch, Moment
from segcore.systems.contract import Outputs
from segcore.systems.prototypes import Prototypes, responsibilities
from tests.networks import N_TAGS, build, tiny_classifier

PLACES = 12
"""Cells a side."""


def system(**changes: Any) -> Prototypes:
    made = build("prototypes", tiny_classifier(), **changes)
    assert isinstance(made, Prototypes)
    return made.train()


def test_responsibilities_by_hand() -> None:
    z = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    means = torch.tensor([[0.0, 2.0], [3.0, 0.0], [1.0, 1.0], [9.0, 1.0]])
    e = (torch.tensor([0.0, 1.0, 2**-0.5]) / 0.5).exp()
    found = responsibilities(z, means, torch.tensor([[1.0, 1.0, 0.0]]), 0.5).flatten()
    torch.testing.assert_close(found, torch.cat([e / e.sum(), torch.zeros(1)]))


def test_a_class_that_nothing_has_shown_yet_wins_no_cell() -> None:
    z = F.normalize(torch.randn(2, 4, 3, 3), dim=1)
    means = torch.randn(4, 4)
    means[2] = 0
    found = responsibilities(z, means, torch.ones(2, 3), 0.1)
    assert (found[:, 2] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2, 3, 3))
    assert responsibilities(z, torch.zeros(4, 4), torch.ones(2, 3), 0.1).isfinite().all()


class Planted:
    """Cells of each class lie around a direction of their own; masks show few and askew, tagged images many."""

    def __init__(self, made: Prototypes) -> None:
        self.channels = made.means.shape[1]
        self.random = torch.Generator().manual_seed(0)
        self.truth = F.normalize(torch.randn(N_TAGS + 1, self.channels, generator=self.random), dim=1)
        self.askew = F.normalize(self.truth + 0.15 * torch.randn(self.truth.shape, generator=self.random), dim=1)

    def outputs(self, labels: Tensor, strong: Tensor) -> Outputs:
        centres = torch.where(strong[:, None, None, None], self.askew[labels], self.truth[labels])
        noise = 0.02 * torch.randn(centres.shape, generator=self.random)
        maps = (centres + noise).permute(0, 3, 1, 2)
        scores = torch.zeros(len(labels), N_TAGS + 1, PLACES, PLACES, requires_grad=True)
        return Outputs([maps], scores)

    def batch(self, step: int, steps: int) -> tuple[Batch, Outputs, Tensor]:
        tag = torch.arange(4) % N_TAGS + 1 + step % 2
        labels = torch.zeros(4, PLACES, PLACES, dtype=torch.int64)
        labels[:, :6] = tag[:, None, None]
        strong = torch.tensor([[True] * 4, [True, False] * 2, [False, True] * 2][step % 3])
        tags = F.one_hot(tag, N_TAGS + 1)[:, 1:].float()
        pixels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
        pixels = pixels.masked_fill(~strong[:, None, None], 255)
        size = 8 * PLACES
        batch = Batch(tuple("abcd"), torch.zeros(4, 3, size, size), tags, pixels, strong, Moment(step, steps))
        return batch, self.outputs(labels, strong), labels


def test_they_find_planted_clusters_again() -> None:
    """Those of the tagged images, though those of the masks lie askew; cells are labelled right."""
    made = system(rounds=3)
    planted, steps, before = Planted(made), 40, made.means
    for step in range(steps):
        terms = made.terms(*planted.batch(step, steps)[:2])
        if step < steps // 4:
            assert terms["prototypes"].total == terms["prototypes"].weight == 0, "the first part learns masks alone"
        if step == steps // 4:
            before = made.means.clone()
    batch, outputs, labels = planted.batch(steps - 1, steps)
    cosines = [(means * planted.truth).sum(1) for means in (F.normalize(before, dim=1), made.means)]
    assert (cosines[1] > cosines[0] + 0.02).all(), "halfway from the masks to the tagged images"
    weak = ~batch.strong
    z = F.normalize(outputs.levels[-1], dim=1)[weak]
    found = responsibilities(z, made.means, batch.tags[weak], made.params.temperature).argmax(1)
    assert torch.equal(found, labels[weak])


def test_parts_of_the_run_are_counted_once() -> None:
    """Whatever the number of micro-batches of a step; and a run goes on from its state."""
    whole, parts, resumed = system(rounds=1), system(rounds=1), system(rounds=1)
    planted = Planted(whole)
    for step in range(6):
        batch, outputs, _ = planted.batch(3 * step, 18)
        whole.terms(batch, outputs)
        for half in (slice(2), slice(2, 4)):
            some = Batch(
                batch.ids[half],
                batch.images[half],
                batch.tags[half],
                batch.labels[half],
                batch.strong[half],
                batch.when,
            )
            parts.terms(some, Outputs([outputs.levels[0][half]], outputs.scores[half]))
        if step == 3:
            resumed.load_state_dict(whole.state_dict())
        if step > 3:
            resumed.terms(batch, outputs)
    torch.testing.assert_close(parts.means, whole.means)
    torch.testing.assert_close(parts.sums, whole.sums, rtol=1e-4, atol=1e-4)
    assert torch.equal(resumed.sums, whole.sums)
    assert whole.means.any()


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_loss_is_the_cross_entropy_of_responsibilities(weight: float) -> None:
    made = system(rounds=1, weak_weight=weight)
    planted = Planted(made)
    made.means.copy_(planted.truth)
    made.part.step.fill_(1)
    batch, outputs, _ = planted.batch(10, 18)
    z = F.normalize(outputs.levels[-1], dim=1)
    r = responsibilities(z, made.means, batch.tags, 0.1)[~batch.strong]
    with torch.no_grad():
        outputs.scores.copy_(torch.randn(outputs.scores.shape))
    by_hand = -(r * outputs.scores[~batch.strong].log_softmax(1)).sum(1).mean() * weight
    term = made.terms(batch, outputs)["prototypes"]
    torch.testing.assert_close(term.over(term.weight), by_hand)
