"""WSSL: both E-steps by hand, what the losses see, samples. `torchrun -m tests.test_wssl FILE` is two processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segcore import losses
from segcore.data.batches import Batch, Mixed, Moment, Stream
from segcore.data.order import Order
from segcore.data.samples import TaggedImages
from segcore.errors import Problem, Problems
from segcore.localisation.expectation import adaptive_bias, fixed_bias, visiting_order
from segcore.networks.deeplab import LargeFov, at_cells
from segcore.processes import Runtime
from segcore.systems import wssl
from segcore.systems.contract import Supervision
from segcore.systems.wssl import WSSL, Adapt, Fixed
from segcore.training.fit import Fit
from tests import warm
from tests.devkit import PROJECT
from tests.loop import recipe
from tests.networks import batch_of, laid, params_of, squares, system_of
from tests.test_deeplab import mask_folder
from tests.test_regularisers import Few
from tests.test_sec import STILL, inputs
from tests.test_sec import part as part_of

SCORES = torch.tensor([[[[4.0, 1], [0, 2]], [[1, 3], [1, 0]], [[0, 0], [5, 1]]]])
"""Of the background and two tags at four cells."""

FIRST = torch.tensor([[1.0, 0]])
"""The first tag alone."""

ADAPT = Adapt(kind="adapt", background_share=0.4, foreground_share=0.2, rounds=5, suppress_margin=1.0)
FIXED = Fixed(kind="fixed", background=3.0, foreground=5.0, exclude_absent=True)


def system(expectation: Fixed | Adapt = FIXED, trunk: str = "vgg16", **changes: Any) -> WSSL:
    made = system_of("wssl", trunk, **laid(STILL, changes)).train()
    assert isinstance(made, WSSL)
    made.params = made.params.model_copy(update={"expectation": expectation})
    return made


def part(batch: Batch, index: Tensor) -> Batch:
    """The samples at `index`, at the same moment."""
    return part_of(batch, index).at(batch.moment)


class TestFixed:
    """The same biases everywhere."""

    @pytest.mark.parametrize(
        ("tags", "exclude_absent", "labels"),
        [
            ([1.0, 0], False, [[0, 1], [2, 0]]),  # 5 | 3, 2 | 5, 1 | 3 | 5 without a bias, 3 | 2
            ([1.0, 0], True, [[0, 1], [1, 0]]),
            ([1.0, 1], True, [[0, 1], [2, 0]]),
            ([0.0, 0], True, [[0, 0], [0, 0]]),
        ],
    )
    def test_by_hand(self, tags: list[float], exclude_absent: bool, labels: list[list[int]]) -> None:
        pushed = fixed_bias(SCORES, torch.tensor([tags]), 1.0, 2.0, exclude_absent)
        assert pushed.argmax(1).tolist() == [labels]

    def test_biases_are_added_to_the_present_and_to_nothing_else(self) -> None:
        pushed = fixed_bias(SCORES, FIRST, 1.0, 2.0, exclude_absent=False)
        assert (pushed - SCORES).tolist() == [[[[bias] * 2] * 2 for bias in (1.0, 2.0, 0.0)]]

    @pytest.mark.parametrize("background", [5.0, 6.0])
    def test_the_foreground_must_be_pushed_harder(self, background: float) -> None:
        with pytest.raises(Problems, match=rf"expectation.*: foreground 5.0 must be more than background {background}"):
            params_of("wssl", expectation={"background": background, "foreground": 5.0})

    def test_no_bias_may_be_nothing(self) -> None:
        with pytest.raises(Problems, match=r"expectation.*background: found 0.0"):
            params_of("wssl", expectation={"background": 0.0})


class TestAdapt:
    """Biases by which classes win shares of an image."""

    @staticmethod
    def pushed(rounds: int = 1, margin: float | None = 0.5) -> Tensor:
        return adaptive_bias(SCORES, FIRST, torch.rand(1, rounds, 2), 0.5, 0.25, margin)

    @pytest.mark.parametrize("rounds", [1, 2])
    def test_by_hand(self, rounds: int) -> None:
        """Step by step for the first tag, by shares of two cells and one.

        1. The lowest of what is present is 1, 1 | 0, 0: the second tag is put at -0.5 in both cells below.
        2. m is 4, 3 | 1, 2.
        3. The background lacks 0, 2 | 1, 0 of it; sorted 0, 0, 1, 2, of which the place 2 (from 0) says 1: it becomes
           5, 2 | 1, 3, and m 5, 3 | 1, 3. The tag lacks 4, 0 | 0, 3; place 1 says 0. Nor does a second round.
        4. The mean of m was 2.5 and is 3: all go down by 0.5.
        """
        expected = [[[4.5, 1.5], [0.5, 2.5]], [[0.5, 2.5], [0.5, -0.5]], [[-0.5, -0.5], [-1, -1]]]
        assert self.pushed(rounds).tolist() == [expected]

    def test_without_a_margin_the_absent_stay_where_they_are(self) -> None:
        pushed = self.pushed(margin=None)
        assert torch.equal(pushed[:, 2], SCORES[:, 2] - 0.5)
        assert pushed.argmax(1)[0, 1, 0] == 2

    @pytest.mark.parametrize("margin", [0.5, None])
    def test_as_the_published_loops_do(self, margin: float | None) -> None:
        torch.manual_seed(2)
        scores, order = 3 * torch.randn(4, 6, 7, 5, dtype=torch.float64), torch.rand(4, 3, 5)
        tags = torch.tensor([[1.0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
        found = adaptive_bias(scores, tags, order, 0.4, 0.2, margin)
        for number in range(4):
            expected = loops(scores[number].numpy(), tags[number].numpy(), order[number].numpy(), margin)
            np.testing.assert_allclose(found[number].numpy(), expected, atol=1e-12)

    def test_shares_are_reached_and_the_absent_win_nowhere(self) -> None:
        torch.manual_seed(1)
        scores, tags = torch.randn(8, 6, 41, 41), torch.tensor([[1.0, 0, 0, 1, 0]]).expand(8, -1)
        # What nobody would find unasked: a tag far below, an absent class far above.
        scores += torch.tensor([2.0, -6, 4, 0, 0, 0])[:, None, None]
        labels = adaptive_bias(scores, tags, torch.rand(8, 5, 5), 0.4, 0.2, 0.1).argmax(1)
        shares = torch.stack([(labels == label).float().mean((1, 2)) for label in range(6)], dim=1)
        assert (shares[:, 0] > 0.35).all()
        assert (shares[:, [1, 4]] > 0.17).all()
        assert (shares[:, [2, 3, 5]] == 0).all()

    def test_images_without_tags_are_background(self) -> None:
        pushed = adaptive_bias(SCORES, torch.zeros(1, 2), torch.rand(1, 2, 2), 0.4, 0.2, 0.5)
        assert (pushed.argmax(1) == 0).all()

    def test_the_greatest_scores_keep_their_mean(self) -> None:
        torch.manual_seed(1)
        scores, tags = torch.randn(3, 4, 9, 9), torch.ones(3, 3)
        pushed = adaptive_bias(scores, tags, torch.rand(3, 2, 3), 0.4, 0.2, None)
        torch.testing.assert_close(pushed.amax(1).mean((1, 2)), scores.amax(1).mean((1, 2)))


def loops(scores: np.ndarray, tags: np.ndarray, order: np.ndarray, margin: float | None) -> np.ndarray:
    """One image, cell by cell and class by class."""
    scores = scores.reshape(len(scores), -1).copy()
    n_classes, cells = scores.shape
    present = [0, *(label for label in range(1, n_classes) if tags[label - 1])]
    if margin is not None:
        for cell in range(cells):
            lowest = min(scores[label, cell] for label in present)
            for label in {*range(n_classes)} - {*present}:
                if scores[label, cell] > lowest:
                    scores[label, cell] = lowest - margin
    before = scores[present].max(0).mean()
    for ranks in order:
        for label in [0, *sorted(present[1:], key=lambda label: ranks[label - 1])]:
            lacking = np.sort(scores[present].max(0) - scores[label])
            scores[label] += lacking[int((0.4 if label == 0 else 0.2) * cells)]
    return (scores + before - scores[present].max(0).mean()).reshape(n_classes, 7, 5)


@pytest.mark.parametrize("step", [FIXED, ADAPT], ids=["fixed", "adapt"])
def test_images_together_are_labelled_as_one_by_one(step: Fixed | Adapt) -> None:
    """The order in which tags are visited is random, but of the image and the moment alone."""
    made = system(step)
    batch, scores = batch_of(made, 5), torch.randn(5, 6, 12, 12)
    weak = (~batch.strong).nonzero().flatten()
    together = made.expected(batch, scores)
    assert len(together) == len(weak) == 2
    for number, index in enumerate(weak):
        alone = made.expected(part(batch, index[None]), scores[index[None]])
        assert torch.equal(alone[0], together[number])


def test_the_order_of_the_tags_changes_with_image_and_step() -> None:
    ids = squares(2).ids
    now, later = (visiting_order("wssl", ids, step, rounds=3, n_tags=5) for step in (0, 1))
    assert now.shape == (2, 3, 5)
    assert torch.equal(now, visiting_order("wssl", ids, 0, rounds=3, n_tags=5))
    assert not torch.equal(now, later)
    assert not torch.equal(now[0], now[1])


@pytest.mark.parametrize("step", [FIXED, ADAPT], ids=["fixed", "adapt"])
def test_biases_are_in_the_labels_and_never_in_the_loss(step: Fixed | Adapt) -> None:
    """The terms and their gradients are those of the plain cross-entropy with labels that are given."""
    made = system(step)
    batch = batch_of(made, 5)
    terms = made.losses(batch)
    weak = part(batch, torch.tensor([1, 3]))
    scores = made.network(weak.images)
    labels = made.expected(weak, scores)
    assert not torch.equal(labels, scores.argmax(1)), "biases change something"
    plain = losses.pixel_cross_entropy(scores, labels)
    assert terms["weak"].weight == plain.weight == 2 * 12 * 12
    torch.testing.assert_close(terms["weak"].total, 0.3 * plain.total)
    branch = made.network.branches[0]
    assert isinstance(branch, LargeFov)
    found, expected = (torch.autograd.grad(t, [branch.fc8.weight])[0] for t in (terms["weak"].total, plain.total))
    torch.testing.assert_close(found, 0.3 * expected)


def test_each_kind_pays_by_its_own_labels() -> None:
    made = system()
    batch = batch_of(made, 5)
    strong = part(batch, torch.tensor([0, 2, 4]))
    full = losses.pixel_cross_entropy(made.network(strong.images).detach(), at_cells(strong.labels, 8))
    term = made.losses(batch)["strong"]
    assert term.weight == full.weight > 0
    torch.testing.assert_close(term.total.detach(), 0.7 * full.total)
    unmasked = Batch(batch.ids, batch.images, batch.tags, torch.full_like(batch.labels, 255), batch.strong, batch.when)
    assert torch.equal(made.losses(unmasked)["weak"].total, made.losses(batch)["weak"].total), "labels are not read"


def test_weights_weigh_and_a_warm_up_waits() -> None:
    made = system(strong_weight=1.4, weak_weight=0.6, warm_up=0.5)
    batch, plain = batch_of(made, 4), system()
    whole = plain.losses(batch)
    for step, factor in ((0, 0.0), (49, 0.0), (50, 2.0), (99, 2.0)):
        terms = made.losses(batch.at(Moment(step, 100)))
        torch.testing.assert_close(terms["strong"].total, 2 * whole["strong"].total)
        torch.testing.assert_close(terms["weak"].total, factor * whole["weak"].total)
        assert terms["background"].weight > 0, "watched from the first step on"


def test_tags_alone_see_no_mask() -> None:
    made = system(strong_weight=0.0)
    terms = made.losses(batch_of(made, 4))
    assert list(terms) == ["weak", "background"]
    assert terms["weak"].weight == 4 * 12 * 12
    assert wssl.supervision(made.params, "masks") == Supervision(masks=False, tags=True)
    assert wssl.supervision(params_of("wssl"), "masks") == Supervision(masks=True, tags=True)
    with pytest.raises(Problems, match=r"warm_up 0.1 must be 0.0 where strong_weight is 0.0"):
        params_of("wssl", strong_weight=0.0, warm_up=0.1)


def test_the_share_of_background_is_watched_and_carries_no_gradient() -> None:
    made = system(ADAPT)
    batch = batch_of(made, 4)
    terms = made.losses(batch)
    labels = made.expected(batch, made.network(batch.images))
    assert (terms["background"].total, terms["background"].weight) == ((labels == 0).sum(), 2 * 12 * 12)
    masks = at_cells(batch.labels[::2], 8)
    of_masks = terms["background_of_masks"]
    assert (of_masks.total, of_masks.weight) == ((masks == 0).sum(), (masks != 255).sum())
    assert not any(terms[name].total.requires_grad for name in ("background", "background_of_masks"))


@pytest.mark.parametrize(
    ("kind", "silent"), [(True, ["weak", "background"]), (False, ["strong", "background_of_masks"])]
)
@pytest.mark.parametrize("step", [FIXED, ADAPT], ids=["fixed", "adapt"])
def test_a_batch_of_one_kind_leaves_the_other_terms_without_weight(
    step: Fixed | Adapt, kind: bool, silent: list[str]
) -> None:
    """As a process may hold strong samples alone: every term is there and every parameter has a gradient."""
    made = system(step)
    batch = batch_of(made, 4)
    terms = made.losses(part(batch, (batch.strong == kind).nonzero().flatten()))
    assert [name for name, term in terms.items() if term.weight == 0] == silent
    torch.stack([term.total for term in terms.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_samples_are_weak_and_strong_in_turns(tmp_path: Path) -> None:
    given = inputs(tmp_path, mask_folder(tmp_path / "masks"), ["one", "two"])
    samples = wssl.samples(params_of("wssl"), given)
    assert isinstance(samples, Mixed)
    assert (samples.parts, samples.input_size) == ((3, 2), 97)
    (batch,) = next(Stream(samples, Order.of(samples, 6, 1, seed=0), workers=0).steps(0, 1))
    assert batch.strong.tolist() == [False, True] * 3
    assert {*batch.ids[::2]} == {"bare", "one", "two"}
    assert {*batch.ids[1::2]} == {"one", "two"}
    assert (batch.labels[::2] == 255).all()
    assert (batch.labels[1::2] != 255).any()
    weak = next(batch for batch in (samples.sample(1, seed) for seed in range(3)) if batch.image_id == "one")
    strong = [samples.sample(3, seed) for seed in range(8)]
    assert any(torch.equal(weak.image, one.image) for one in strong), "both are stretched"


def test_samples_of_tags_alone_read_no_mask(tmp_path: Path) -> None:
    params = params_of("wssl", strong_weight=0.0)
    given = inputs(tmp_path, tmp_path / "nowhere", [], images="weak")
    samples = wssl.samples(params, given)
    assert isinstance(samples, TaggedImages)
    assert len(samples) == 3
    sample = samples.sample(0, 0)
    assert (sample.strong, sample.image.shape, sample.labels.unique().tolist()) == (False, (3, 97, 97), [255])
    with pytest.raises(Problem, match="no strong images; strong_weight: 0"):
        wssl.samples(params_of("wssl"), inputs(tmp_path, tmp_path / "nowhere", []))


def trained(runtime: Runtime) -> list[dict[str, float]]:
    """EM-Adapt in double precision, a warm-up that ends on the way."""
    made = system(ADAPT, "timm/test_resnet", warm_up=0.5).double()
    changes = {"steps": 4, "learning_rate": 0.001, "warmup_steps": 0, "multipliers": {"pretrained": 1.0}}
    runs = Fit(made, Few(made), recipe(**changes), 1, runtime, None)
    return [progress.losses for progress in runs]


def test_two_processes_learn_and_watch_what_one_does(tmp_path: Path) -> None:
    file = tmp_path / "two.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        ["python", *launcher, "-m", "tests.test_wssl", str(file)],
        cwd=PROJECT, env=warm.environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = trained(Runtime()), json.loads(file.read_text())
    assert [*one[0]] == ["weak", "watched/background", "strong", "watched/background_of_masks"]
    assert [step["weak"] > 0 for step in one] == [False, False, True, True]
    assert all(0 < step["watched/background"] < 1 for step in one)
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)


class Fickle(WSSL):
    """A term that is a loss in the first step and watched in the second."""

    def losses(self, batch: Batch) -> dict[str, losses.Term]:
        terms = super().losses(batch)
        if batch.moment.step:
            terms["weak"] = losses.Term(terms["weak"].total.detach(), terms["weak"].weight)
        return terms


def test_a_term_is_minimised_or_watched_from_step_0_on() -> None:
    made = system()
    samples = Few(made)
    made.__class__ = Fickle
    with pytest.raises(Problem, match=r"step 1: terms of the loss joined or left \(watched/weak, weak\)"):
        list(Fit(made, samples, recipe(steps=2), 1, Runtime(), None))


if __name__ == "__main__":
    found = trained(process := Runtime())
    if process.is_main:
        Path(sys.argv[1]).write_text(json.dumps(found))
    process.wait()
