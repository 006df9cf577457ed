"""Self-Regulation: its losses against numbers made by hand, who teaches whom, when, and what is left of it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dvc.utils.hydra import apply_overrides
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from segcore import regularisers
from segcore.config import settings
from segcore.config.reading import section
from segcore.config.systems import SystemEntry
from segcore.data.batches import Batch, Moment
from segcore.errors import Problem, Problems
from segcore.losses import binary_distillation_loss, distillation_loss, pixel_cross_entropy, tag_cross_entropy
from segcore.networks.exits import Exit, reduced, tag_scorer
from segcore.regularisers import self_regulation
from segcore.regularisers.contract import regularised
from segcore.regularisers.self_regulation import Params, SelfRegulation
from segcore.systems.contract import OpenSystem, Outputs
from tests.devkit import PROJECT
from tests.loop import same
from tests.networks import N_TAGS, batch_of, entry, laid, squares, system_of
from tests.test_regularisers import Few, trained

LAST = Moment(99, 100)


def params(**changes: Any) -> Params:
    """Small ones, with others laid over them."""
    return section({"these": laid(self_regulation.smallest(), changes)}, "these", Params)


def open_system(module: str = "deeplab", trunk: str = "timm/test_resnet") -> OpenSystem:
    system = system_of(module, trunk)
    assert isinstance(system, OpenSystem)
    return system


def built(system: OpenSystem, **changes: Any) -> SelfRegulation:
    torch.manual_seed(3)
    return self_regulation.build(params(**changes), system, N_TAGS)


class TestLosses:
    """On 2x2 places, by hand."""

    def test_distillation(self) -> None:
        """Two channels at tau = 2: a teacher of (2 ln 3, 0) is (3/4, 1/4), a student of (0, 0) is (1/2, 1/2)."""
        teacher, student = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
        teacher[0, 0, 0] = 2 * math.log(3)
        student[0, 0, 0, 0] = 2 * math.log(3)
        alike = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        places = [alike, math.log(2), math.log(2), math.log(2)]
        term = distillation_loss(teacher, student, 2.0)
        torch.testing.assert_close(float(term.total), 4 * sum(places) / 4)
        assert term.weight == 1

    def test_distillation_of_scores_of_tags(self) -> None:
        """No places: each image counts once. At tau = 1 it is the plain cross-entropy of two distributions."""
        teacher, student = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [math.log(3), 0]])
        expected = math.log(2) - 0.5 * (math.log(0.75) + math.log(0.25))
        term = distillation_loss(teacher, student, 1.0)
        torch.testing.assert_close(float(term.total), expected)
        assert term.weight == 2

    def test_distillation_by_sigmoids(self) -> None:
        """The teacher says 3/4 and 1/2, the student 1/2 and 3/4, at tau = 2."""
        high = 2 * math.log(3)
        term = binary_distillation_loss(torch.tensor([[high, 0.0]]), torch.tensor([[0.0, high]]), 2.0)
        first, second = math.log(2), -0.5 * (math.log(0.75) + math.log(0.25))
        torch.testing.assert_close(float(term.total), 4 * (first + second) / 2)
        assert term.weight == 1

    def test_tags(self) -> None:
        scores, tags = torch.tensor([[math.log(3), math.log(3)]]), torch.tensor([[1.0, 0.0]])
        term = tag_cross_entropy(scores, tags)
        torch.testing.assert_close(float(term.total), -(math.log(0.75) + math.log(0.25)) / 2)
        assert term.weight == 1

    @pytest.mark.parametrize("loss", [distillation_loss, binary_distillation_loss])
    def test_the_teacher_takes_no_gradient(self, loss: Any) -> None:
        teacher, student = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
        loss(teacher, student, 2.0).total.backward()
        assert teacher.grad is None
        assert student.grad is not None
        assert student.grad.any()

    @pytest.mark.parametrize("loss", [distillation_loss, binary_distillation_loss])
    def test_a_student_like_its_teacher_has_nothing_to_learn(self, loss: Any) -> None:
        teacher = torch.randn(2, 3)
        student = teacher.clone().requires_grad_()
        loss(teacher, student, 3.0).total.backward()
        assert student.grad is not None
        torch.testing.assert_close(student.grad, torch.zeros(2, 3), atol=1e-6, rtol=0)

    def test_half_precision_is_summed_in_single(self) -> None:
        teacher, student = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        assert distillation_loss(teacher.bfloat16(), student.bfloat16(), 2.0).total.dtype == torch.float32
        assert distillation_loss(teacher.double(), student.double(), 2.0).total.dtype == torch.float64


def test_a_level_is_reduced_around_the_places_of_the_grid() -> None:
    """Cell i lies at pixel stride * i: a ramp keeps its values there, but where half a window is left."""
    ramp = torch.arange(17.0).expand(1, 1, 17, 17)
    found = reduced(ramp, 4, (5, 5))[0, 0, 2]
    torch.testing.assert_close(found, torch.tensor([1.0, 4.0, 8.0, 12.0, 15.0]))
    assert reduced(ramp, 1, (16, 16)).shape == (1, 1, 16, 16)
    assert torch.equal(reduced(torch.ones(1, 1, 18, 18), 8, (3, 3)), torch.ones(1, 1, 3, 3))


def test_tags_are_scored_by_their_own_class_at_first() -> None:
    scores = torch.tensor([[7.0, 1.0, 2.0, 3.0]])
    assert tag_scorer(3)(scores).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("trunk", "first", "levels"),
    [("resnet18", 2, [0, 1, 2, 3]), ("resnet18", 4, [1, 2, 3]), ("resnet18", 8, [2, 3]), ("vgg16", 4, [1, 2, 3])],
)
def test_the_first_exit_is_the_finest_level_of_a_stride(trunk: str, first: int, levels: list[int]) -> None:
    system = open_system(trunk=trunk)
    made = built(system, first_exit=first)
    assert made.levels == levels
    assert [head.body[0].in_channels for head in made.heads] == [system.trunk.level_channels[n] for n in levels]  # type: ignore[index, union-attr]


def test_a_trunk_without_such_a_level_is_a_problem() -> None:
    system = open_system()
    system.trunk.level_strides = (2, 4, 8)
    with pytest.raises(Problem, match="first_exit: found 8; this trunk has levels of strides 2, 4, 8.*at most 4"):
        built(system, first_exit=8)


class Given(nn.Module):
    """Stands for a head: the features and scores that it was given."""

    def __init__(self, features: Tensor, scores: Tensor) -> None:
        super().__init__()
        self.features, self.scores = features.requires_grad_(), scores.requires_grad_()

    def forward(self, level: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return self.features, self.scores


class Case:
    """Three exits on a grid of 2x2 cells, one of them the system; labels at every second pixel of 4x4."""

    def __init__(self, **changes: Any) -> None:
        torch.manual_seed(0)
        self.top = torch.randn(2, 6, 2, 2, requires_grad=True)
        self.scores = torch.randn(2, 4, 2, 2, requires_grad=True)
        self.made = SelfRegulation(params(**changes), [0, 1], (3, 5, 6), (4, 8, 8), 4, 3)
        self.heads = [Given(torch.randn(2, 8, 2, 2), torch.randn(2, 4, 2, 2)) for _ in range(2)]
        self.made.heads = nn.ModuleList(self.heads)
        labels = torch.full((2, 4, 4), 3)
        labels[:, ::2, ::2] = torch.tensor([[[0, 1], [2, 255]], [[255, 255], [255, 255]]])
        tags = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        self.batch = Batch(("a", "b"), torch.zeros(2, 3, 16, 16), tags, labels, when=LAST)
        self.outputs = Outputs((torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2), self.top), self.scores)
        self.labels = labels[:, ::2, ::2]

    @property
    def exits(self) -> list[Tensor]:
        return [*(head.scores for head in self.heads), self.scores]

    @property
    def logits(self) -> list[Tensor]:
        return [scores.mean((2, 3))[:, 1:] for scores in self.exits]

    def total(self, term: str) -> Tensor:
        return self.made.terms(self.batch, self.outputs)[term].total

    def moved(self, term: str) -> list[bool]:
        """Which of features 1, 2, scores 1, 2, 3 and the top map a term has a gradient for, that is not zero."""
        values = [*(h.features for h in self.heads), *self.exits, self.top]
        for value in values:
            value.grad = None
        self.total(term).backward()
        return [value.grad is not None and bool(value.grad.any()) for value in values]


class TestSums:
    """Every loss over the exits that the source says."""

    def test_labels_teach_all_exits_but_the_last_whose_loss_is_the_systems(self) -> None:
        case = Case(exits={"weight": 0.5, "pixels": 0.25})
        expected = sum(pixel_cross_entropy(scores, case.labels).total.item() for scores in case.exits[:-1])
        term = case.made.terms(case.batch, case.outputs)["pixels"]
        assert term.total.item() == pytest.approx(0.125 * expected, rel=1e-5)
        assert term.weight == 3, "known pixels; 255 is unknown"
        assert case.moved("pixels") == [False, False, True, True, False, False]
        assert not case.heads[0].scores.grad[1].any(), "the second image has no labels"  # type: ignore[index]
        assert not case.heads[0].scores.grad[0, :, 1, 1].any()  # type: ignore[index]

    def test_tags_teach_all_exits(self) -> None:
        case = Case(exits={"weight": 0.5, "tags": 0.25})
        expected = sum(tag_cross_entropy(logits, case.batch.tags).total.item() for logits in case.logits)
        term = case.made.terms(case.batch, case.outputs)["tags"]
        assert term.total.item() == pytest.approx(0.125 * expected, rel=1e-5)
        assert term.weight == 2
        assert case.moved("tags") == [False, False, True, True, True, False]

    def test_the_last_exits_tags_can_be_read_from_features(self) -> None:
        """The top map learns them then, and the system's scores are left alone; shallow exits still learn from them."""
        case = Case(exits={"weight": 1.0, "tags": 1.0, "last": "features"})
        scorer = case.made.tags[-1]
        assert isinstance(scorer, nn.Linear)
        assert scorer.weight.shape == (3, 6)
        last = scorer(case.top.mean((2, 3)))
        logits = [*case.logits[:-1], last]
        expected = sum(tag_cross_entropy(each, case.batch.tags).total.item() for each in logits)
        assert case.total("tags").item() == pytest.approx(expected, rel=1e-5)
        assert case.moved("tags") == [False, False, True, True, False, True]
        taught = sum(binary_distillation_loss(last, student, 2.0).total.item() for student in case.logits[:-1])
        assert case.total("logits").item() == pytest.approx(taught, rel=1e-5)
        assert case.moved("logits") == [False, False, True, True, False, False]

    def test_shallow_features_teach_exits_2_to_n(self) -> None:
        case = Case(features={"weight": 3.0, "temperature": 2.0})
        assert case.made.projection is not None
        first, second = (head.features for head in case.heads)
        students = [second, case.made.projection(case.top)]
        expected = sum(distillation_loss(first, student, 2.0).total.item() for student in students)
        assert case.total("features").item() == pytest.approx(3 * expected, rel=1e-5)
        assert case.moved("features") == [False, True, False, False, False, True]

    def test_shallow_labels_teach_exits_2_to_n_in_the_demos_way(self) -> None:
        case = Case(features=None)
        case.made.params = params().model_copy(update={"features": self_regulation.Hard(kind="hard", weight=3.0)})
        labels = case.heads[0].scores.argmax(1)
        expected = sum(F.cross_entropy(scores, labels, reduction="sum").item() for scores in case.exits[1:])
        term = case.made.terms(case.batch, case.outputs)["features"]
        assert term.total.item() == pytest.approx(3 * expected, rel=1e-5)
        assert term.weight == 8, "of every pixel, whether its label is known or not"
        assert case.moved("features") == [False, False, False, True, True, False]
        assert case.made.projection is None

    @pytest.mark.parametrize(("kind", "loss"), [("softmax", distillation_loss), ("sigmoid", binary_distillation_loss)])
    def test_deep_tags_teach_exits_1_to_n_minus_1(self, kind: str, loss: Any) -> None:
        case = Case(logits={"kind": kind, "weight": 3.0, "temperature": 4.0})
        *students, teacher = case.logits
        expected = sum(loss(teacher, student, 4.0).total.item() for student in students)
        assert case.total("logits").item() == pytest.approx(3 * expected, rel=1e-5)
        assert case.moved("logits") == [False, False, True, True, False, False]

    def test_what_is_null_is_not_there(self) -> None:
        case = Case(features=None, logits=None)
        assert list(case.made.terms(case.batch, case.outputs)) == ["pixels", "tags"]
        assert case.made.projection is None


@pytest.mark.parametrize("step", [0, 24, 25, 99])
def test_the_exits_warm_up_alone(step: int) -> None:
    system = open_system()
    made, batch = built(system, warmup=0.25), batch_of(system, 2).at(Moment(step, 100))
    terms = made.terms(batch, system(batch))
    values = {name: term.total.item() > 0 for name, term in terms.items()}
    taught = step >= 25
    assert values == {"pixels": True, "tags": True, "features": taught, "logits": taught}
    torch.stack([term.total for term in terms.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


@pytest.mark.parametrize("module", ["deeplab", "dsrg"])
def test_the_features_teach_the_trunk(module: str) -> None:
    """Up to the top map; the head of the first exit, which is the teacher, learns nothing by them."""
    system = open_system(module)
    made, batch = built(system), batch_of(system, 2).at(LAST)
    outputs = system(batch)
    for level in outputs.levels:
        level.retain_grad()
    made.terms(batch, outputs)["features"].total.backward()
    assert outputs.levels[-1].grad is not None
    assert outputs.levels[-1].grad.any()
    first = next(p for name, p in made.named_parameters() if name.startswith("heads.0."))
    assert first.grad is None or not first.grad.any(), "the teacher is left alone"


OFF: dict[str, Any] = {
    "exits": {"weight": 0.0}, "features": {"weight": 0.0}, "logits": {"weight": 0.0},
}  # fmt: skip


def test_weights_of_zero_train_the_plain_system() -> None:
    """Not one bit differs, so the ablation's baseline needs no entry of its own."""
    plain, beside = open_system(), open_system()
    losses = trained(plain, Few(plain))
    entries = {"self_regulation": laid(self_regulation.smallest(), OFF)}
    steps = trained(regularised(beside, entries, N_TAGS), Few(beside))
    assert [{k: v for k, v in step.items() if "/" not in k} for step in steps] == losses
    assert same(plain, beside)
    regulated = open_system()
    trained(regularised(regulated, {"self_regulation": self_regulation.smallest()}, N_TAGS), Few(regulated))
    assert not same(plain, regulated)


def test_a_regulated_system_predicts_by_as_many_operations() -> None:
    """Names of its arrays and its layers are compared for every regulariser in `test_regularisers`."""
    counts = []
    for entries in ({}, {"self_regulation": self_regulation.smallest()}):
        system = open_system()
        trained(regularised(system, entries, N_TAGS), Few(system))
        with FlopCounterMode(display=False) as counter:
            system.eval().predict(squares(1).images)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_the_width_is_that_of_the_heads_alone() -> None:
    system = open_system()
    small, large = (sum(p.numel() for p in built(system, width=width).parameters()) for width in (8, 16))
    assert large > 2 * small
    assert isinstance(built(system, width=16).heads[0], Exit)


def checked(values: dict[str, Any]) -> None:
    content = entry("deeplab", training={"regularisers": {"self_regulation": values}})
    regularisers.check({"mine": SystemEntry.model_validate(content)})


WHERE = "systems.mine.training.regularisers.self_regulation"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"widht": 8}, f"{WHERE}.widht: unknown key, found 8; .*did you mean 'width'"),
        ({"first_exit": 3}, f"{WHERE}.first_exit: found 3; must be 2, 4 or 8"),
        ({"warmup": 1.0}, f"{WHERE}.warmup: found 1.0; must be less than 1"),
        ({"exits": None}, f"{WHERE}.exits: found None"),
        ({"exits": {"weight": -1.0}}, f"{WHERE}.exits.weight: found -1.0; must be greater than or equal to 0"),
        ({"exits": {"last": "top"}}, f"{WHERE}.exits.last: found 'top'; must be 'scores' or 'features'"),
        ({"features": {"kind": "soft"}}, f"{WHERE}.features.kind: found 'soft'; allowed are distilled, hard"),
        ({"features": {"temperature": 0.0}}, f"{WHERE}.features.temperature: found 0.0; must be greater than 0"),
        ({"features": {"kind": "hard"}}, f"{WHERE}.features.temperature: unknown key, found 2.0; .*drop it"),
        ({"logits": {"kind": "tanh"}}, f"{WHERE}.logits.kind: found 'tanh'; must be 'softmax' or 'sigmoid'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_where_it_stands(changes: dict[str, Any], said: str) -> None:
    checked(self_regulation.smallest())
    with pytest.raises(Problems, match=said) as caught:
        checked(laid(self_regulation.smallest(), changes))
    assert len(caught.value.problems) == 1


def ablations() -> Iterator[Any]:
    """What `dvc exp run` is told for each row of the source's ablation, and for the demo's variants, and which weights
    (exits, features, logits) are then above 0."""
    off = {name: f"{name}.weight=0" for name in ("exits", "features", "logits")}
    yield pytest.param([*off.values()], (False, False, False), id="baseline")
    yield pytest.param([off["features"], off["logits"]], (True, False, False), id="MEA")
    yield pytest.param([off["logits"]], (True, True, False), id="+SR-F")
    yield pytest.param([off["features"]], (True, False, True), id="+SR-L")
    yield pytest.param([], (True, True, True), id="all")
    yield pytest.param(["features.kind=hard", "~features.temperature"], (True, True, True), id="hard labels")
    yield pytest.param(["first_exit=2", "logits.kind=softmax"], (True, True, True), id="conv1, softmax")
    yield pytest.param(["features=null"], (True, False, True), id="without")


@pytest.mark.parametrize("row", ["deeplab_sr", "ficklenet_sr"])
@pytest.mark.parametrize(("options", "counting"), ablations())
def test_the_ablation_is_a_matter_of_options(
    options: list[str], counting: tuple[bool, ...], row: str, tmp_path: Path
) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes((PROJECT / "profiles/shapes.yaml").read_bytes())
    place = f"systems.{row}.training.regularisers.self_regulation"
    changes = [f"~{place}.{text[1:]}" if text.startswith("~") else f"{place}.{text}" for text in options]
    if changes:
        apply_overrides(file, changes)
    read = settings.load(file).systems
    regularisers.check(read)
    found = section({"these": read[row].training["regularisers"]["self_regulation"]}, "these", Params)
    parts = found.exits, found.features, found.logits
    assert tuple(part is not None and part.weight > 0 for part in parts) == counting
