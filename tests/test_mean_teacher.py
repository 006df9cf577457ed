"""The mean teacher: its mean over steps, parts and a resumption; labels, boxes and channels of its views."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segcore.data.batches import Sample
from segcore.networks import dropout
from segcore.networks.averaged import Averaged
from segcore.networks.pyramid import shown
from segcore.networks.strong_views import StrongViews
from segcore.processes import Runtime
from segcore.systems.mean_teacher import MeanTeacher, _next_of, halves, kept
from segcore.training.fit import Fit
from tests.loop import recipe
from tests.networks import batch_of, build, squares, tiny_classifier

PLAIN = {"jitter": 0.0, "jitter_share": 0.0, "grey": 0.0, "blur": 0.0, "cutmix": 0.0, "dropout": 0.0}


def system(views: dict[str, float] | None = None, **changes: Any) -> MeanTeacher:
    made = build("mean_teacher", tiny_classifier(), strong_views=views or {}, **changes)
    assert isinstance(made, MeanTeacher)
    return made


def keyed(made: MeanTeacher, key: int = 0) -> MeanTeacher:
    dropout.set_key(made, key, rank=0, world=1)
    return made


class Squares:
    """Every second sample is tagged; a picture is a function of its index alone."""

    input_size = 96
    parts = (3, 3)

    def __init__(self) -> None:
        batch = squares(6)
        self.samples = [
            Sample(batch.ids[i], batch.images[i].byte(), batch.tags[i], batch.labels[i].byte(), strong=i >= 3)
            for i in range(6)
        ]

    def __len__(self) -> int:
        return 6

    def sample(self, index: int, seed: int) -> Sample:
        return self.samples[index]


class TestTheMean:
    """Of weights after steps t = 0, 1, ...: the teacher before step t has seen t of them."""

    def test_its_rate(self) -> None:
        assert [kept(step, 0.996) for step in (0, 1, 2, 4)] == [0, 0, 0.5, 0.75]
        assert kept(1000, 0.996) == 0.996

    def run(self, steps: int, checkpoint: Path | None = None, **changes: Any) -> tuple[MeanTeacher, list[Tensor]]:
        """The system after some steps, and its student's first weights after each."""
        made = system(keep=0.9)
        values = {"steps": 5, "learning_rate": 0.01, "checkpoint_every": 3, "multipliers": {}} | changes
        seen = []
        fit = Fit(made, Squares(), recipe(**values), 1, Runtime(), checkpoint)
        for progress in fit:
            seen.append(made.network.enter[0].weight.detach().clone())  # type: ignore[union-attr]
            if progress.step + 1 == steps:
                break
        return made, seen

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_by_hand(self, accumulate: int) -> None:
        made, weights = self.run(5, accumulate=accumulate)
        mean = weights[0]
        for step in (2, 3, 4):
            keep = min(1 - 1 / step, 0.9)
            mean = keep * mean + (1 - keep) * weights[step - 1]
        own = made.teacher.network.enter[0].weight  # type: ignore[union-attr,index]
        torch.testing.assert_close(own, mean)
        made.finish([])
        torch.testing.assert_close(own, 0.8 * mean + 0.2 * weights[4])
        assert int(made.once.step) == -1

    def test_a_run_that_was_killed_has_the_same_teacher(self, tmp_path: Path) -> None:
        whole, _ = self.run(5)
        self.run(4, tmp_path / "state")
        resumed, _ = self.run(5, tmp_path / "state")
        for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(one, other), name

    def test_a_new_run_starts_with_its_student_as_teacher(self) -> None:
        made = system().train()
        torch.nn.init.constant_(made.network.pyramid.score.bias, 3.0)  # type: ignore[arg-type]
        keyed(made).losses(batch_of(made, 4))
        assert (made.teacher.network.pyramid.score.bias == 3).all()  # type: ignore[union-attr]


def test_the_teacher_is_no_parameter_but_part_of_the_model() -> None:
    made = system().train()
    assert not any(name.startswith("teacher.") for name, _ in made.named_parameters())
    names = {name.removeprefix("network.") for name in made.state_dict() if name.startswith("network.")}
    assert {name.removeprefix("teacher.network.") for name in made.state_dict() if name.startswith("teacher.")} == names
    assert not any(module.training for module in made.teacher.modules())


def test_statistics_follow_as_weights_do() -> None:
    norm = torch.nn.BatchNorm2d(2)
    averaged = Averaged(norm)
    norm(torch.randn(4, 2, 3, 3) + 5)
    before = torch.zeros(2)
    averaged.follow(norm, 0.75)
    assert norm.running_mean is not None
    torch.testing.assert_close(averaged.network.running_mean, 0.75 * before + 0.25 * norm.running_mean)
    assert averaged.network.num_batches_tracked == 1


class TestViews:
    """What the student sees of tagged images."""

    def test_labels_are_among_the_tags_where_the_teacher_is_sure(self) -> None:
        made = keyed(system(PLAIN, threshold=0.3))
        batch = batch_of(made, 4)
        labels, _ = made._labels(batch)
        assert (labels[batch.strong] == 255).all()
        for row in (1, 3):
            allowed = {0, 255, *(batch.tags[row].nonzero().squeeze(1) + 1).tolist()}
            assert {*labels[row].unique().tolist()} <= allowed
        sure, _ = keyed(system(PLAIN, threshold=1.0))._labels(batch)
        assert (sure == 255).all()

    def test_without_changes_both_views_are_the_image(self) -> None:
        made = keyed(system(PLAIN))
        batch = batch_of(made, 4)
        views, confident = made.strong(batch)
        for view in views:
            torch.testing.assert_close(view.images, batch.images[~batch.strong], rtol=0, atol=1e-3)
            assert torch.equal(view.labels, views[0].labels)
            assert view.cells == confident.weight

    def test_a_box_shows_picture_and_labels_of_the_next_tagged_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = keyed(system(PLAIN | {"cutmix": 1.0}))
        batch = batch_of(made, 6)
        weak = ~batch.strong
        known = torch.full((6, 24, 24), 255)
        known[weak] = torch.tensor([1, 2, 3])[:, None, None]
        monkeypatch.setattr(made, "_labels", lambda batch: (known, torch.ones(6, 24, 24, dtype=torch.bool)))
        views, _ = made.strong(batch)
        images, after = batch.images[weak], batch.images[weak].roll(-1, 0)
        mixed = 0
        for view in views:
            for number in range(3):
                own = (view.images[number] - images[number]).abs().amax(0) < 1e-2
                other = (view.images[number] - after[number]).abs().amax(0) < 1e-2
                assert (own | other).all()
                cells = view.labels[number]
                assert torch.equal(cells == number + 1, own[::4, ::4])
                assert torch.equal(cells == (number + 1) % 3 + 1, ~own[::4, ::4])
                mixed += int((~own).sum())
        assert mixed > 0
        assert not torch.equal(views[0].labels, views[1].labels), "each view has boxes of its own"

    def test_what_lies_beyond_an_image_stays_black_and_has_no_label(self) -> None:
        made = keyed(system(threshold=0.0))
        batch = batch_of(made, 4)
        batch.images[:, :, 64:] = 0
        labels, inside = made._labels(batch)
        assert not inside[:, 16:].any()
        assert inside[:, :16].all()
        assert (labels[:, 16:] == 255).all()
        assert (labels[~batch.strong][:, :16] != 255).all()
        pictures, _ = made._changed(batch, [1, 2, 3, 4])
        assert (pictures[:, :, 64:] == 0).all()

    def test_they_are_a_function_of_key_and_place(self) -> None:
        made = system()
        batch = batch_of(made, 4)
        first, again, other = (keyed(made, key).strong(batch)[0][0].images for key in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_what_a_sample_gets_does_not_depend_on_the_part_it_lies_in(self) -> None:
        made = system({"cutmix": 0.0})
        batch = batch_of(made, 4)
        keyed(made, 3)
        whole = made.strong(batch)[0][1].images
        dropout.set_key(made, 3, rank=0, world=1, before=2)
        last = replace(
            batch, ids=batch.ids[2:], images=batch.images[2:], tags=batch.tags[2:], labels=batch.labels[2:],
            strong=batch.strong[2:],
        )  # fmt: skip
        assert torch.equal(made.strong(last)[0][1].images, whole[1:])


def test_the_next_tagged_sample() -> None:
    assert _next_of(torch.tensor([True, False, False, True, False])).tolist() == [2, 4, 1]
    assert _next_of(torch.tensor([False, True])).tolist() == [0]
    assert _next_of(torch.tensor([True, True])).tolist() == []


def test_both_views_share_out_the_channels() -> None:
    first = torch.stack([halves(64, 1.0, seed, 0) for seed in range(20)])
    assert {*first.unique().tolist()} == {0, 2}
    assert 0.4 < (first == 2).float().mean() < 0.6
    assert (halves(64, 0.0, 1, 0) == 1).all()
    whole = [bool((halves(64, 0.5, seed, 0) == 1).all()) for seed in range(200)]
    assert 70 < sum(whole) < 130
    assert not torch.equal(halves(64, 1.0, 1, 0), halves(64, 1.0, 1, 1))
    made = keyed(system({"dropout": 1.0}))
    batch = batch_of(made, 4)
    for factors in made._factors(batch, 2).values():
        assert (factors[:2] == 1).all()
        assert (factors[2:4] + factors[4:] == 2).all()
        assert (factors[2:4] * factors[4:] == 0).all()


def test_the_loss_by_hand() -> None:
    """Without any change and with all cells sure, both views cost the cross-entropy of the teacher's own labels."""
    made = keyed(system(PLAIN, threshold=0.0)).eval()
    batch = batch_of(made, 4)
    terms = made.losses(batch)
    scores = made.network(batch.images)
    labels, _ = made._labels(batch)
    costs = torch.nn.functional.cross_entropy(scores, labels, ignore_index=255)
    for name in ("view_1", "view_2"):
        torch.testing.assert_close(terms[name].over(terms[name].weight), 0.25 * costs, rtol=1e-4, atol=1e-5)
    masks = batch.labels[:, ::4, ::4].masked_fill(~batch.strong[:, None, None], 255)
    costs = torch.nn.functional.cross_entropy(scores, masks, ignore_index=255)
    mask = terms["segmentation"]
    torch.testing.assert_close(mask.over(mask.weight), 0.5 * costs, rtol=1e-4, atol=1e-5)
    assert terms["confident"].over(terms["confident"].weight) == 1


def test_cells_that_are_not_sure_cost_nothing_but_count() -> None:
    made = keyed(system(PLAIN, threshold=1.0)).train()
    term = made.losses(batch_of(made, 4))["view_1"]
    assert term.total == 0
    assert term.weight == 2 * 24 * 24


def test_where_an_image_ends() -> None:
    images = torch.ones(2, 3, 6, 8)
    images[0, :, 4:] = images[1, :, :, 5:] = 0
    images[0, :, 1, 2] = 0  # a black pixel inside
    found = shown(images)
    assert found[0, :4].all()
    assert not found[0, 4:].any()
    assert found[1, :, :5].all()
    assert not found[1, :, 5:].any()
    assert not shown(torch.zeros(1, 3, 4, 4)).any()


class TestStrongViews:
    """One picture at a time."""

    ALL = StrongViews(0.5, 1.0, 1.0, 1.0, 1.0)
    NONE = StrongViews(0.0, 0.0, 0.0, 0.0, 0.0)

    def test_shares(self) -> None:
        image = squares(1).images[0]
        torch.testing.assert_close(self.NONE.changed(image, 3), image, rtol=0, atol=1e-3)
        changed = self.ALL.changed(image, 3)
        torch.testing.assert_close(changed[0], changed[1], rtol=0, atol=1e-2)
        assert 0 <= changed.min() <= changed.max() <= 255
        assert torch.equal(changed, self.ALL.changed(image, 3))
        assert not torch.equal(changed, self.ALL.changed(image, 4))

    def test_boxes(self) -> None:
        boxes = torch.stack([self.ALL.box(60, 90, seed) for seed in range(300)])
        assert not self.NONE.box(60, 90, 1).any()
        areas = boxes.float().mean((1, 2))
        assert areas.min() > 0.015
        assert areas.max() < 0.41
        for box in boxes[:50]:
            rows, columns = np.nonzero(box.any(1).numpy())[0], np.nonzero(box.any(0).numpy())[0]
            assert int(box.sum()) == len(rows) * len(columns)
        half = StrongViews(0.0, 0.0, 0.0, 0.0, 0.5)
        assert 110 < sum(bool(half.box(60, 90, seed).any()) for seed in range(300)) < 190
