"""Sampling by class: frequencies, and that it is a function of (seed, step) alone."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from segcore.data.batches import Mixed, Sample
from segcore.data.by_class import blocks
from segcore.data.frequencies import tag_table, tag_weights
from segcore.data.order import Order
from segcore.errors import Problem
from segcore.training.optimisation import Trainable
from tests.loop import Pictures, fit, net
from tests.networks import squares, tiny_classifier

TAGS = [[1]] * 90 + [[2]] * 9 + [[1, 3]]
"""Class 1 has 91 samples, class 2 nine, class 3 one."""


class Tagged:
    """Samples with these tags and no pictures."""

    input_size = 8

    def __init__(self, tags: Sequence[Sequence[int]]) -> None:
        self.tags = tags

    def __len__(self) -> int:
        return len(self.tags)

    def tags_of(self, index: int) -> Sequence[int]:
        return self.tags[index]

    def sample(self, index: int, seed: int) -> Sample:
        square = torch.zeros(8, 8, dtype=torch.uint8)
        return Sample(str(index), square.expand(3, 8, 8), torch.zeros(3), square)


def drawn(power: float, count: int = 50) -> Counter[int]:
    """How often each sample comes in so many blocks."""
    found = blocks(TAGS, power)
    return Counter(int(index) for seed in range(count) for index in found.block(seed))


def test_at_a_power_of_1_classes_come_equally_often() -> None:
    counts = drawn(1.0)
    assert sum(counts.values()) == 50 * 100
    thirds = [sum(counts[i] for i in range(90)), sum(counts[i] for i in range(90, 99)), counts[99]]
    # The last sample is drawn as one of class 3, and as one of the 91 of class 1.
    assert thirds[1] == pytest.approx(5000 / 3, abs=50)
    assert thirds[2] == pytest.approx(5000 / 3 * (1 + 1 / 91), abs=60)
    assert max(counts[i] for i in range(90, 99)) - min(counts[i] for i in range(90, 99)) <= 50


def test_a_power_below_lies_between() -> None:
    counts = drawn(0.5)
    shares = np.sqrt([91, 9, 1]) / np.sqrt([91, 9, 1]).sum()
    assert sum(counts[i] for i in range(90, 99)) == pytest.approx(5000 * shares[1], abs=50)


def test_a_class_goes_through_its_samples_before_one_comes_again() -> None:
    block = Counter(blocks(TAGS, 1.0).block(3).tolist())
    assert max(block[i] for i in range(90)) <= 2  # once each, but that of two classes
    assert {block[i] for i in range(90, 99)} <= {3, 4}


def test_samples_without_tags_come_too() -> None:
    counts = Counter(blocks([[1]] * 9 + [[]], 1.0).block(0).tolist())
    assert counts[9] == 5


def test_more_classes_than_draws_all_come_in_time() -> None:
    found = blocks([[*range(1, 30)], [30]], 1.0)
    assert {index for seed in range(200) for index in found.block(seed)} == {0, 1}


def keys(order: Order, steps: int = 20) -> list[tuple[int, int]]:
    return [key for step in range(steps) for micro in order.micro_batches(step) for key in micro]


def test_the_order_is_a_function_of_seed_and_place() -> None:
    samples = Tagged(TAGS)
    order = Order.of(samples, 8, 1, seed=3, power=1.0)
    assert keys(order) == keys(Order.of(samples, 8, 1, seed=3, power=1.0))
    assert keys(order) != keys(Order.of(samples, 8, 1, seed=4, power=1.0))
    assert keys(order) == keys(Order.of(samples, 8, 4, seed=3, power=1.0))
    assert list(order.micro_batches(17)) == list(Order.of(samples, 8, 1, seed=3, power=1.0).micro_batches(17))
    ranks = [Order.of(samples, 8, 2, seed=3, rank=rank, world=2, power=1.0) for rank in range(2)]
    for step in range(20):
        whole = list(Order.of(samples, 8, 2, seed=3, power=1.0).micro_batches(step))
        for number, micro in enumerate(whole):
            assert [micro[rank::2] for rank in range(2)] == [list(o.micro_batches(step))[number] for o in ranks]


def test_the_seeds_of_augmentation_are_those_of_any_order() -> None:
    samples = Tagged(TAGS)
    one, other = (keys(Order.of(samples, 8, 1, seed=3, power=power)) for power in (None, 1.0))
    assert [seed for _, seed in one] == [seed for _, seed in other]
    assert [index for index, _ in one] != [index for index, _ in other]


def test_each_set_is_drawn_by_its_own_classes() -> None:
    mixed = Mixed(Tagged(TAGS), Tagged([[1], [2], [2], [2]]))
    found = keys(Order.of(mixed, 8, 1, seed=3, power=1.0), 200)
    first, second = (Counter(index for index, _ in found[part::2]) for part in range(2))
    assert max(first) < 100 <= min(second)
    assert first[99] > 5 * first[0]
    assert second[100] == pytest.approx(400, abs=10)
    assert mixed.tags_of(99) == [1, 3]
    assert mixed.tags_of(101) == [2]


def test_samples_that_do_not_say_their_tags_are_a_problem() -> None:
    with pytest.raises(Problem, match="sampling: by_class needs samples that say their tags"):
        Order.of(Pictures(), 4, 1, seed=0, power=1.0)
    with pytest.raises(Problem, match="does not say the tags"):
        Order.of(Mixed(Tagged(TAGS), Silent()), 4, 1, seed=0, power=1.0)


class Silent(Pictures):
    input_size = 16


class TaggedPictures(Pictures):
    def tags_of(self, index: int) -> list[int]:
        return [1] if index else [2]


def test_a_recipe_asks_for_it() -> None:
    seen: list[str] = []

    class Watching(type(net())):  # type: ignore[misc]
        def losses(self, batch):  # type: ignore[no-untyped-def]
            seen.extend(batch.ids)
            return super().losses(batch)

    model = Watching()
    assert isinstance(model, Trainable)
    list(fit(model, samples=TaggedPictures(), steps=20, sampling={"kind": "by_class", "power": 1.0}))
    assert seen.count("picture_0") == 40


def test_the_weights_of_tags_balance_both_sides_up_to_a_cap() -> None:
    table = tag_table(Tagged(TAGS), 3)
    assert table.sum(0).tolist() == [91, 9, 1]
    assert tag_weights(table, 20.0).tolist() == pytest.approx([9 / 91, 91 / 9, 20.0])
    with pytest.raises(Problem, match="do not say their tags"):
        tag_table(Pictures(), 3)


def test_a_classifier_counts_tags_as_it_is_told() -> None:
    classifier = tiny_classifier(n_tags=3)
    batch = squares(2, n_tags=3)
    plain = classifier.losses(batch)["tags"].total
    classifier.weigh(np.array([1.0, 1.0, 1.0]))
    torch.testing.assert_close(classifier.losses(batch)["tags"].total, plain)
    classifier.weigh(np.array([1.0, 4.0, 0.5]))
    scores = classifier(batch.images).decision
    costs = torch.nn.functional.binary_cross_entropy_with_logits(scores, batch.tags, reduction="none")
    factors = torch.where(batch.tags > 0, torch.tensor([1.0, 4.0, 0.5]), 1.0)
    torch.testing.assert_close(classifier.losses(batch)["tags"].total, (costs * factors).sum())
    assert "positive" not in classifier.state_dict()
