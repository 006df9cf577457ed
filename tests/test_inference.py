"""From pictures to labels at their own size: padding, scales, flips and proposals, with predictors made by hand."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segcore.config.labels import CRFParams
from segcore.config.section import Views
from segcore.config.systems import Prediction
from segcore.data.batches import Batch
from segcore.errors import Problem
from segcore.evaluation import inference, score_maps
from segcore.evaluation.score_maps import ScoreMaps, winners
from segcore.losses import Term
from segcore.systems.contract import System
from tests.networks import CRF, EDGES, views

STEP = 50
ONCE = views()
MIRRORED = views(flip=True)


class ByColour(System):
    """Class c is where red is c * STEP; remembers the batches that it was shown."""

    def __init__(self, n_classes: int = 6, proposals: int = 0) -> None:
        super().__init__()
        self.levels = nn.Parameter(STEP * torch.arange(n_classes).float())
        self.windows = proposals
        self.seen: list[Tensor] = []

    @property
    def proposals(self) -> int:
        return self.windows

    def losses(self, batch: Batch) -> dict[str, Term]:
        raise NotImplementedError

    def predict(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return 100 - (images[:, :1] - self.levels.view(1, -1, 1, 1)).abs()


def predicted(system: System, pictures: list[np.ndarray], size: int, at: Views = ONCE) -> list[np.ndarray]:
    """What the system's own `prediction` makes of pictures."""
    system.prediction = Prediction(views=at, crf=None)
    return inference.predict(system, pictures, size, EDGES)


def blocks(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A picture of coloured blocks of 16 pixels, and the class of each pixel."""
    coarse = np.random.default_rng(seed).integers(0, 6, (-(-height // 16), -(-width // 16)), dtype=np.uint8)
    labels = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.stack([labels * STEP, labels * 0 + 7, labels * 0 + 9], axis=2), labels


def inner(labels: np.ndarray, margin: int) -> np.ndarray:
    """Where no other class is nearer than `margin` pixels."""
    same = np.ones(labels.shape, dtype=bool)
    for axis in (0, 1):
        for shift in (*range(-margin, 0), *range(1, margin + 1)):
            same &= np.roll(labels, shift, axis) == labels
    edge = np.zeros_like(same)
    edge[margin:-margin, margin:-margin] = True
    return same & edge


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(96, 96), (96, 61), (33, 96)])
def test_a_picture_of_the_input_size_is_recovered_exactly(size: tuple[int, int], flip: bool) -> None:
    picture, labels = blocks(*size)
    system = ByColour()
    (found,) = predicted(system, [picture], 96, views(flip=flip))
    np.testing.assert_array_equal(found, labels)
    (image,) = system.seen[0]
    assert torch.equal(image[:, : size[0], : size[1]], torch.from_numpy(picture).permute(2, 0, 1).float())
    assert not image[:, size[0] :].any()
    assert not image[:, :, size[1] :].any()
    assert len(system.seen) == 1 + flip
    if flip:
        assert torch.equal(system.seen[1], system.seen[0].flip(3))


@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0, 1.5)])
def test_pictures_of_any_size_in_one_batch_come_back_in_place(scales: tuple[float, ...]) -> None:
    sizes = [(131, 77), (50, 90), (201, 140), (65, 65), (48, 199)]
    pictures, labels = zip(*(blocks(*size, seed) for seed, size in enumerate(sizes)), strict=True)
    system = ByColour()
    found = predicted(system, list(pictures), 96, views(*scales, flip=True))
    for ours, truth in zip(found, labels, strict=True):
        assert ours.dtype == np.uint8
        assert ours.shape == truth.shape
        sure = inner(truth, 5)
        assert sure.mean() > 0.05
        np.testing.assert_array_equal(ours[sure], truth[sure])
    sides = [batch.shape for batch in system.seen[::2]]
    assert sides == [(5, 3, side, side) for side in ([96] if len(scales) == 1 else [64, 96, 128])]


def test_scores_of_both_directions_are_averaged() -> None:
    """A predictor that favours the left sees, with flips, both sides alike."""

    class Left(ByColour):
        def predict(self, images: Tensor) -> Tensor:
            across = torch.linspace(1, -1, images.shape[3]).expand(len(images), 1, images.shape[2], -1)
            return torch.cat([torch.full_like(across, -0.01), across], dim=1)

    picture, _ = blocks(64, 64)
    (one_way,) = predicted(Left(), [picture], 64)
    assert (one_way[:, :32] == 1).all()
    assert (one_way[:, 33:] == 0).all()
    (both,) = predicted(Left(), [picture], 64, views(flip=True))
    assert (both == 1).all(), "0 on average, which is more than -0.01"


class BySize(ByColour):
    """Scores that tell the size of the input, so that one sees what was averaged."""

    def predict(self, images: Tensor) -> Tensor:
        super().predict(images)
        return torch.full((len(images), 2, *images.shape[2:]), float(images.shape[3]))


class Stretching(ByColour):
    """A network that takes 8 k + 1 pixels each way and gives up the aspect, as DeepLab does."""

    square = "stretch"
    smallest_input = 33
    input_step = 8
    input_offset = 1


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((1.0,), True), ((0.5, 1.0, 1.5), True)])
def test_scores_are_means_whatever_the_number_of_passes(scales: tuple[float, ...], flip: bool) -> None:
    """Sums would make the probabilities that a CRF starts from ever surer."""
    picture, _ = blocks(50, 70)
    (maps,) = inference.score_maps(BySize(), [picture], 64, views(*scales, flip=flip), None)
    scores = maps.whole()
    assert scores.shape == (2, 50, 70)
    torch.testing.assert_close(scores, torch.full((2, 50, 70), 64.0))


@pytest.mark.parametrize("size", [(97, 97), (60, 131), (131, 48)])
def test_a_stretched_picture_comes_back_at_its_own_aspect(size: tuple[int, int]) -> None:
    picture, labels = blocks(*size)
    system = Stretching()
    (scores,) = inference.score_maps(system, [picture], 97, ONCE, None)
    assert scores.whole().shape == (6, *size)
    assert system.seen[0].shape == (1, 3, 97, 97)
    assert system.seen[0][0, :, -1, -1].tolist() == pytest.approx(picture[-1, -1].tolist(), abs=1), "no black border"
    sure = inner(labels, 4)
    np.testing.assert_array_equal(scores.winners()[sure], labels[sure])


@pytest.mark.parametrize(
    ("system", "sides"),
    [(ByColour(), {0.1: 32, 0.75: 64, 1.0: 96, 1.5: 160}), (Stretching(), {0.34: 33, 0.75: 73, 1.0: 97, 1.5: 145})],
    ids=["multiples of 32", "one more than multiples of 8"],
)
def test_inputs_have_the_nearest_size_that_a_system_takes(system: ByColour, sides: dict[float, int]) -> None:
    system.seen.clear()
    picture, _ = blocks(40, 40)
    inference.score_maps(system, [picture], 97, views(*sides), None)
    assert [batch.shape[3] for batch in system.seen] == list(sides.values())


def test_a_size_below_the_smallest_is_a_problem() -> None:
    picture, _ = blocks(40, 40)
    with pytest.raises(Problem, match=r"scales: 0.1 of 97 makes images of 9 pixels; this system needs at least 33"):
        inference.score_maps(Stretching(), [picture], 97, views(1.0, 0.1), None)


class Given(ScoreMaps):
    """Scores as they are."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__(*scores.shape)
        self.scores = scores

    def of(self, classes: slice) -> Tensor:
        return self.scores[classes]


def halves() -> tuple[np.ndarray, Tensor]:
    """A picture that changes colour in the middle, and scores of three classes that change two pixels further right.

    The third class is nowhere the greatest, but everywhere the second.
    """
    picture = np.full((20, 24, 3), 30, np.uint8)
    picture[:, 12:] = 220
    scores = torch.zeros(3, 20, 24)
    scores[0, :, :14], scores[1, :, 14:], scores[2] = 1.0, 1.0, 0.5
    return picture, scores


def test_a_crf_draws_borders_to_those_of_the_picture() -> None:
    picture, scores = halves()
    found = inference.refined(ByColour(), Given(scores), picture, CRF)
    assert (winners(scores)[:, 12:14] == 0).all()
    np.testing.assert_array_equal(found, np.arange(24)[None].repeat(20, 0) >= 12)
    assert found.dtype == np.uint8


def test_a_crf_starts_from_what_the_system_calls_probabilities() -> None:
    class Own(ByColour):
        def probabilities(self, scores: Tensor) -> Tensor:
            return scores.flip(1).softmax(1)

    picture, scores = halves()
    turned = inference.refined(Own(), Given(scores.flip(0)), picture, CRF)
    np.testing.assert_array_equal(turned, inference.refined(ByColour(), Given(scores), picture, CRF))


@pytest.mark.parametrize("crf", [None, CRF])
@pytest.mark.parametrize("allowed", [[0, 1, 2], [0, 2], [2, 1], [1]])
def test_only_allowed_classes_win(allowed: list[int], crf: CRFParams | None) -> None:
    picture, scores = halves()
    found = inference.restricted(ByColour(), Given(scores), allowed, picture, crf)
    border = 12 if crf else 14
    left, right = (next(c for c in order if c in allowed) for order in ([0, 2, 1], [1, 2, 0]))
    assert found.dtype == np.uint8
    assert (found[:, :border] == left).all()
    assert (found[:, border:] == right).all()


def with_boxes(monkeypatch: pytest.MonkeyPatch, boxes: list[tuple[int, int, int, int]]) -> list[int]:
    asked: list[int] = []

    def edge_boxes(image: np.ndarray, edges: object, maximum: int) -> np.ndarray:
        asked.append(maximum)
        return np.array(boxes, dtype=np.int32).reshape(-1, 4)

    monkeypatch.setattr(inference, "edge_boxes", edge_boxes)
    return asked


def test_windows_are_cut_where_the_proposals_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole picture and two large proposals; one is too small and one too many."""
    with_boxes(monkeypatch, [(0, 0, 64, 48), (10, 10, 40, 100), (32, 16, 120, 80), (0, 0, 64, 64)])
    picture, labels = blocks(100, 130)
    system = ByColour(proposals=2)
    (found,) = predicted(system, [picture], 64)
    assert [batch.shape for batch in system.seen] == [(1, 3, 64, 64)] * 3
    assert system.seen[1][0, 0, 2, 2] == picture[1, 2, 0]
    sure = inner(labels, 5)
    np.testing.assert_array_equal(found[sure], labels[sure])


def test_windows_are_mirrored_but_never_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    with_boxes(monkeypatch, [(0, 0, 64, 48)])
    picture, labels = blocks(100, 130)
    system = ByColour(proposals=2)
    (found,) = predicted(system, [picture], 64, views(flip=True))
    assert len(system.seen) == 4
    assert torch.equal(system.seen[1], system.seen[0].flip(3))
    sure = inner(labels, 5)
    np.testing.assert_array_equal(found[sure], labels[sure])
    with pytest.raises(Problem, match=r"found \[0.5, 1.0\] for a system with proposals"):
        predicted(system, [picture], 64, views(0.5, 1.0))


def test_overlapping_windows_keep_the_greatest_score_from_zero_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with_boxes(monkeypatch, [(0, 0, 40, 40), (20, 20, 60, 60)])
    scores = iter([[-1.0, -2.0, 0.5], [0.2, -3.0, 0.1], [-9.0, 4.0, 0.1]])

    def constant(images: Tensor) -> Tensor:
        return torch.tensor(next(scores)).view(1, 3, 1, 1).expand(1, 3, *images.shape[2:])

    picture, _ = blocks(60, 80)
    best = inference.by_proposals(constant, picture, 64, 50, EDGES).whole()
    assert best.shape == (3, 60, 80)
    expected = {(50, 70): [0, 0, 0.5], (5, 5): [0.2, 0, 0.5], (30, 30): [0.2, 4, 0.5], (50, 50): [0, 4, 0.5]}
    for (row, column), scores_there in expected.items():
        torch.testing.assert_close(best[:, row, column], torch.tensor(scores_there, dtype=torch.float32))


def test_without_a_proposal_the_whole_picture_is_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    with_boxes(monkeypatch, [])
    picture, labels = blocks(64, 64)
    (found,) = predicted(ByColour(proposals=5), [picture], 64)
    np.testing.assert_array_equal(found, labels)


def test_real_proposals_of_a_small_picture() -> None:
    picture, labels = blocks(80, 112)
    (found,) = predicted(ByColour(proposals=4), [picture], 64)
    sure = inner(labels, 5)
    np.testing.assert_array_equal(found[sure], labels[sure])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "system", [ByColour(21), Stretching(21), ByColour(21, proposals=3)], ids=["padded", "stretched", "windows"]
)
def test_scores_of_a_large_picture_are_the_same_class_by_class(
    system: ByColour, flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what they are as one tensor, at sizes that no scale divides."""
    with_boxes(monkeypatch, [(0, 0, 64, 48), (32, 16, 105, 90), (7, 9, 74, 103)])
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((131, 157), (203, 110))]
    at = views(flip=flip) if system.proposals else views(0.75, 1.0, 1.5, flip=flip)
    expected = list(inference.score_maps(system, pictures, 97, at, EDGES))
    wholes = [scores.whole() for scores in expected]
    assert all(scores.small for scores in expected)
    monkeypatch.setattr(score_maps, "AT_ONCE", 60_000)
    for scores, whole in zip(inference.score_maps(system, pictures, 97, at, EDGES), wholes, strict=True):
        assert not scores.small
        np.testing.assert_array_equal(scores.winners(), winners(whole))
        assert torch.equal(scores.whole(), whole)
        for allowed in ([0, 4, 7], [20, 3]):
            found = inference.restricted(system, scores, allowed, None, None)
            np.testing.assert_array_equal(found, inference.restricted(system, Given(whole), allowed, None, None))


def test_of_equal_scores_the_first_class_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.zeros(3, 8, 9)
    scores[1, :4], scores[2, 2:] = 1.0, 1.0
    expected = winners(scores)
    monkeypatch.setattr(score_maps, "AT_ONCE", 8)
    np.testing.assert_array_equal(Given(scores).winners(), expected)


def test_each_picture_is_asked_for_once() -> None:
    """So that no more than one is in memory, and none is read for each scale."""

    class Counted(list[np.ndarray]):
        asked = 0

        def __iter__(self) -> Iterator[np.ndarray]:
            for picture in super().__iter__():
                Counted.asked += 1
                yield picture

    pictures = Counted([blocks(40, 50)[0], blocks(60, 30)[0]])
    inference.score_maps(ByColour(), pictures, 64, views(0.5, 1.0, flip=True), None)
    assert Counted.asked == 2


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("last", [False, True])
def test_classes_that_win_nowhere_are_left_out_and_no_other(
    seed: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of a large image are those of all its scores, bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(1, 9, 3 + seed % 3, 4, generator=generator)
    coarse = torch.nn.functional.interpolate(grid, (33, 33), mode="bilinear", align_corners=True)
    if seed % 3 == 0:
        coarse = (4 * coarse).round()  # ties, which the first class wins
    if seed % 4 == 0:
        coarse[:, 4:] -= 20
    coarse = coarse.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    maps = score_maps.Mean(60, 90, (60, 90) if seed % 2 else (90, 90), 9, 2)
    maps.add(coarse)
    expected = np.stack([maps.of(slice(k, k + 1))[0].numpy() for k in range(9)]).argmax(0)
    monkeypatch.setattr(score_maps, "AT_ONCE", 0)
    contenders = maps.contenders(list(range(9)))
    assert {*np.unique(expected).tolist()} <= {*contenders}
    assert len(contenders) <= (4 if seed % 4 == 0 else 9)
    assert np.array_equal(maps.winners(), expected)
    among = [0, 3, 5, 8]
    limited = np.stack([maps.of(slice(k, k + 1))[0].numpy() for k in among]).argmax(0)
    assert np.array_equal(maps.winners(among), np.asarray(among, dtype=np.uint8)[limited])


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_labels_of_planes_in_turn_are_those_of_all_bit_for_bit(seed: int, passes: int) -> None:
    """Where planes are looked at one by one: random scores, ties, near ties, constants."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(1, 9, 40, 40, generator=generator) * torch.tensor(10.0) ** (seed % 5 - 2)
    if seed % 2:  # smooth, as scores are
        small = grid[:, :, :4, :4]
        grid = torch.nn.functional.interpolate(small, (40, 40), mode="bilinear", align_corners=True)
    if seed % 3 == 0:
        grid[:, 3:] = grid[:, 3:].clamp(max=0) - grid.abs().max()  # few classes win
    if seed % 4 == 0:
        grid = grid.round()
    if seed % 4 == 1:
        grid[:, 1] = grid[:, 0] * (1 + 2**-23)  # apart by a rounding
    if seed % 6 == 5:
        grid[:, 2:] = grid[:, 2:3]
    maps = score_maps.Mean(110, 90, (110, 90) if seed % 2 else (110, 110), 9, passes)
    maps.add(grid)
    assert maps.small
    assert maps.in_planes
    assert np.array_equal(maps.winners(), winners(maps.ranked(slice(0, 9))))
    among = [7, 0, 3, 1]
    whole = winners(maps.ranked(slice(0, 9))[among])
    assert np.array_equal(maps.winners(among), np.asarray(among, dtype=np.uint8)[whole])
