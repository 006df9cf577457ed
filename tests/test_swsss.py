"""SWSSS: trust, labels limited to tags, and the running IoU, by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from segcore.data.batches import Batch, Moment, Sample
from segcore.errors import Problem
from segcore.losses import limited_to_tags
from segcore.networks.steps import RunningIoU
from segcore.systems import swsss
from segcore.systems.contract import Inputs
from segcore.systems.swsss import SWSSS, trusted_cross_entropy
from tests.devkit import make_record
from tests.networks import N_TAGS, batch_of, build, params_of, squares, tiny_classifier


def system(**changes: Any) -> SWSSS:
    made = build("swsss", tiny_classifier(), **changes)
    assert isinstance(made, SWSSS)
    return made


def at(batch: Batch, step: int, steps: int = 10) -> Batch:
    return batch.at(Moment(step, steps))


def test_the_softmax_is_over_the_tags_and_the_background() -> None:
    scores = torch.tensor([1.0, 5.0, 2.0, 0.0]).view(1, 4, 1, 1).requires_grad_()
    found = limited_to_tags(scores, torch.tensor([[0.0, 1.0, 1.0]]))
    e = torch.tensor([1.0, 2.0, 0.0]).exp()
    expected = torch.tensor([e[0], 0, e[1], e[2]]) / e.sum()
    torch.testing.assert_close(found.flatten(), expected)
    (gradient,) = torch.autograd.grad(found[0, 2].sum(), scores)
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0


def test_an_image_without_tags_is_background() -> None:
    found = limited_to_tags(torch.randn(1, 4, 2, 2), torch.zeros(1, 3))
    assert (found[:, 0] == 1).all()


class TestRunningIoU:
    """Of two classes and a momentum of 0.5: past is half of what came and half of what was."""

    LABELS = torch.tensor([[[0, 0, 1, 255]]])

    def test_by_hand(self) -> None:
        iou = RunningIoU(2, 0.5)
        iou.begin(0)
        iou.count(torch.tensor([[[0, 1, 1, 1]]]), self.LABELS)  # each class: 1 in both, 2 in either
        assert iou.value.tolist() == [0, 0], "a step does not see itself"
        iou.begin(1)
        assert iou.value.tolist() == [0.5, 0.5]
        iou.count(torch.tensor([[[0, 0, 1, 0]]]), self.LABELS)  # 2 of 2, 1 of 1
        iou.begin(2)
        torch.testing.assert_close(iou.value, torch.tensor([(0.25 + 1) / (0.5 + 1), (0.25 + 0.5) / (0.5 + 0.5)]))

    def test_parts_of_a_step_count_together(self) -> None:
        whole, parts = RunningIoU(2, 0.9), RunningIoU(2, 0.9)
        found, labels = torch.randint(0, 2, (4, 3, 3)), torch.randint(0, 2, (4, 3, 3))
        for step in range(3):
            whole.begin(step)
            whole.count(found, labels)
            for half in (slice(2), slice(2, 4)):
                parts.begin(step)
                parts.count(found[half], labels[half])
        whole.begin(3)
        parts.begin(3)
        assert torch.equal(whole.value, parts.value)
        assert whole.value.gt(0).all()

    def test_it_goes_on_from_its_state(self) -> None:
        one, other = RunningIoU(2, 0.9), RunningIoU(2, 0.9)
        one.begin(0)
        one.count(torch.tensor([[[0, 1, 1, 1]]]), self.LABELS)
        other.load_state_dict(one.state_dict())
        for iou in (one, other):
            iou.begin(1)
            iou.begin(1)
        assert torch.equal(one.value, other.value)
        assert one.value[0] == pytest.approx(0.5)


def test_trust_is_the_least_iou_of_the_tags_to_the_power() -> None:
    made = system(trust_power=2.0)
    made.iou.past[0] = torch.tensor([0.9, 0.5, 0.8, 0.1, 0.0, 0.7])
    made.iou.past[1] = 1
    tags = torch.zeros(4, N_TAGS)
    tags[0, [0, 1]] = tags[1, 1] = tags[2, [1, 3]] = 1
    torch.testing.assert_close(made.trust(tags), torch.tensor([0.25, 0.64, 0.0, 0.81]))


def test_an_image_that_is_trusted_less_teaches_less() -> None:
    scores, labels = torch.randn(2, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]], [[1, 1], [255, 255]]])
    log = scores.log_softmax(1)
    by_hand = -0.5 * (log[0, 0, 0, 0] + log[0, 1, 0, 1] + log[0, 2, 1, 0]) - 0.1 * log[1, 1, 0].sum()
    term = trusted_cross_entropy(scores, labels, torch.tensor([0.5, 0.1]))
    torch.testing.assert_close(term.total, by_hand)
    assert term.weight == 5


def gradients(made: SWSSS, batch: Batch, term: str) -> dict[str, bool]:
    """Which of both networks a term teaches."""
    made.zero_grad(set_to_none=True)
    made.losses(batch)[term].total.backward()

    def learns(prefix: str) -> bool:
        grads = [p.grad for name, p in made.named_parameters() if name.startswith(prefix) and p.grad is not None]
        return any(bool(grad.any()) for grad in grads)

    return {name: learns(f"{name}.") for name in ("network", "peer")}


def test_what_teaches_whom() -> None:
    made = system().train()
    made.iou.past[:] = 1  # all trusted
    made.iou.once.step.fill_(0)
    batch = batch_of(made, 4)
    assert gradients(made, batch, "segmentation") == {"network": True, "peer": False}
    assert gradients(made, batch, "peer") == {"network": False, "peer": True}
    assert gradients(made, batch, "trusted") == {"network": True, "peer": False}
    assert gradients(made, batch, "tags") == {"network": True, "peer": False}


def test_without_trust_the_peer_teaches_nothing() -> None:
    made = system().train()
    terms = made.losses(batch_of(made, 4))
    assert terms["trusted"].total == 0
    assert terms["trust"].total == 0
    assert terms["trusted"].weight > 0
    assert not terms["trust"].total.requires_grad


def test_masks_of_tagged_images_are_never_seen() -> None:
    made, batch = system().train(), squares(4)
    strong = torch.tensor([True, False, True, False])
    other = batch.labels.clone()
    other[1::2] = 3
    found = []
    for labels in (batch.labels, other):
        made.load_state_dict(system().state_dict())
        terms = made.losses(replace(batch, labels=labels, strong=strong))
        found.append({name: term.total.item() for name, term in terms.items()})
    assert found[0] == found[1]


def test_one_trunk_gives_what_two_equal_ones_give(tmp_path: Path) -> None:
    """Where it does not learn; and it is saved once."""
    one, two = system(trunks="one").train(), system(trunks="two").train()
    two.load_state_dict(one.state_dict(), strict=False)
    two.peer.trunk.load_state_dict(one.network.trunk.state_dict())
    assert two.peer.trunk is not two.network.trunk
    batch = batch_of(one, 4)
    a, b = (made.eval().losses(batch) for made in (one, two))
    for name in a:
        torch.testing.assert_close(a[name].total, b[name].total)
    assert not any(name.startswith("peer.trunk") for name in one.state_dict())
    save_file(one.state_dict(), tmp_path / "model.safetensors")  # which refuses what is there twice


def test_tags_seldom_seen_count_more() -> None:
    class Tagged:
        input_size = 96

        def __len__(self) -> int:
            return 10

        def tags_of(self, index: int) -> list[int]:
            return [1] if index else [1, 2]

        def sample(self, index: int, seed: int) -> Sample:
            raise AssertionError

    made = system(tag_class_weights={"kind": "balanced", "cap": 4.0})
    made.begin(Tagged())
    assert isinstance(made.positive, Tensor)
    assert made.positive.tolist()[:2] == [0.0, 4.0]


def test_other_lists_and_labels_are_refused(tmp_path: Path) -> None:
    records = {"one": make_record("one", tmp_path / "one.png", None, 90, 60, (1,), "train")}
    given = Inputs(records, ["one"], [], "strong", tmp_path, N_TAGS, None, 0)
    with pytest.raises(Problem, match="set its `images` to strong, `labels` to masks"):
        swsss.samples(params_of("swsss"), given)
    (tmp_path / "masks.csv").write_text("")
    with pytest.raises(Problem, match="there are no weak images"):
        swsss.samples(params_of("swsss"), given)
