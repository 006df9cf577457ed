"""What draws maps and labels to borders: PAMR by its definition, the walk by hand, the net of boundaries, a CRF."""

from functools import partial

import numpy as np
import pytest
import torch

from segcore.config.refinements import (
    AffinityParams,
    CRFParams,
    LabelCRFParams,
    NetParams,
    NoRefinement,
    PAMRParams,
)
from segcore.data.geometry import Grid
from segcore.data.pictures import IGNORE
from segcore.localisation import affinity, boundary, refinement
from segcore.localisation.cells import cells_of, enlarged, moved
from segcore.localisation.pamr import LEAST, SHARPNESS, pamr
from segcore.localisation.refinement import Learned
from segcore.networks.trunk import Trunk
from tests.networks import squares
from tests.test_classifiers import stochastic_classifier

CRF = CRFParams(
    iterations=5, appearance_weight=10.0, appearance_xy=20.0, appearance_rgb=10.0, smoothness_weight=1.0,
    smoothness_xy=2.0, stride=1,
)  # fmt: skip
SMALL = NetParams(width=8, steps=60, batch_size=4, learning_rate=0.02, examples=100)


def slow_pamr(maps: np.ndarray, image: np.ndarray, dilations: tuple[int, ...], iterations: int) -> np.ndarray:
    """Pixel by pixel, as the formula stands."""
    height, width = maps.shape[1:]

    def neighbours(i: int, j: int) -> list[tuple[int, int]]:
        around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        places = [(i + d * y, j + d * x) for d in dilations for y, x in around]
        return [(min(max(y, 0), height - 1), min(max(x, 0), width - 1)) for y, x in places]

    for _ in range(iterations):
        after = np.empty_like(maps)
        for i in range(height):
            for j in range(width):
                near = np.array([image[:, y, x] for y, x in neighbours(i, j)])
                own = image[:, i, j]
                deviation = np.concatenate([near, np.repeat(own[None], len(dilations), 0)]).std(0, ddof=1)
                exponents = -(np.abs(near - own) / (LEAST + SHARPNESS * deviation)).mean(1)
                weights = np.exp(exponents - exponents.max())
                weights /= weights.sum()
                values = np.array([maps[:, y, x] for y, x in neighbours(i, j)])
                after[:, i, j] = weights @ values
        maps = after
    return maps


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 9)])
def test_pamr_is_its_definition(dilations: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    maps, image = rng.random((2, 6, 8)), rng.integers(0, 256, (3, 6, 8)).astype(np.float64)
    found = pamr(torch.from_numpy(maps), torch.from_numpy(image), dilations, 3)
    np.testing.assert_allclose(found.numpy(), slow_pamr(maps, image, dilations, 3), atol=1e-9)


def test_pamr_fills_a_patch_of_one_colour_and_stops_at_its_border() -> None:
    image = torch.zeros(3, 20, 20)
    image[:, :, 10:] = 200.0
    image += torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    maps = torch.zeros(1, 20, 20)
    maps[0, 8:12, 2:5] = 1.0
    found = pamr(maps, image, (1, 2, 4), 10)[0]
    assert found[:, :10].sum() > 0.9 * maps.sum() * (found.sum() / maps.sum())
    assert found[10, 7] > 20 * found[10, 13]


def test_a_wall_stops_the_walk() -> None:
    """4 x 4 cells, a wall in the third column: nothing gets to the fourth, and the rest is the dense formula."""
    wall = np.zeros((4, 4), dtype=np.float32)
    wall[:, 2] = 1.0
    maps = np.zeros((1, 4, 4), dtype=np.float32)
    maps[0, 0, 0] = 1.0
    found = affinity.walk(maps, wall, radius=3, beta=2.0, steps=3)
    assert (found[0, :, 2:] == 0).all()
    assert (found[0, :, :2] > 0).all()
    open_field = affinity.walk(maps, np.zeros_like(wall), radius=3, beta=2.0, steps=3)
    assert (open_field > 0).all()


@pytest.mark.parametrize(("radius", "beta"), [(2, 1.0), (3, 8.0)])
def test_the_walk_is_the_dense_formula(radius: int, beta: float) -> None:
    """Every pair of cells within the radius, the greatest boundary on the line between them, T = D^-1 A^beta."""
    rng = np.random.default_rng(1)
    wall, maps = rng.random((4, 5)).astype(np.float32) * 0.8, rng.random((2, 4, 5)).astype(np.float32)
    akin = np.eye(20)
    for one in range(20):
        for other in range(20):
            (y, x), (v, u) = divmod(one, 5), divmod(other, 5)
            if one >= other or (v - y) ** 2 + (u - x) ** 2 >= radius**2:
                continue
            n = max(abs(v - y), abs(u - x))
            line = [wall[y + round((v - y) * k / n), x + round((u - x) * k / n)] for k in range(n + 1)]
            akin[one, other] = akin[other, one] = (1 - max(line)) ** beta
    step = akin / akin.sum(1, keepdims=True)
    expected = (np.linalg.matrix_power(step, 4) @ (maps * (1 - wall)).reshape(2, -1).T).T.reshape(2, 4, 5)
    expected /= expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(affinity.walk(maps, wall, radius, beta, 4), expected, rtol=1e-4)
    np.testing.assert_allclose(affinity.transitions(wall, radius, beta).toarray().sum(1), 1, rtol=1e-5)


def test_averages_keep_their_size_where_the_published_walk_divides() -> None:
    """Two objects behind a wall: what a map has on each side stays there, and an even map stays as it is."""
    wall = np.zeros((5, 9), dtype=np.float32)
    wall[:, 4] = 1.0
    maps = np.stack([np.full((5, 9), 0.3), np.where(np.arange(9) < 4, 0.6, 0.1) * np.ones((5, 1))]).astype(np.float32)
    found = affinity.averaged(maps, wall, radius=3, beta=2.0, steps=20)
    np.testing.assert_allclose(found[0], 0.3, rtol=1e-5)
    np.testing.assert_allclose(found[1], maps[1], rtol=1e-5)
    uneven = np.random.default_rng(0).random((1, 5, 9)).astype(np.float32)
    found = affinity.averaged(uneven, wall, radius=3, beta=2.0, steps=200)
    for side in (slice(0, 4), slice(5, 9)):
        assert np.ptp(found[0, :, side]) < 0.01
        assert uneven[0, :, side].min() < found[0, 2, side].mean() < uneven[0, :, side].max()
    assert affinity.walk(uneven, wall, radius=3, beta=2.0, steps=200).max() == 1


def test_the_joint_walk_takes_objects_along() -> None:
    """The walk of each alone, by hand; IRN's leaves objects as the net has them."""
    rng = np.random.default_rng(0)
    picture, grid = np.zeros((65, 65, 3), dtype=np.uint8), Grid(65, 4)
    wall, objects = (rng.random((17, 17)).astype(np.float32) for _ in range(2))
    scores = torch.from_numpy(rng.random((2, 17, 17)).astype(np.float32))
    how = AffinityParams(kind="joint_affinity", radius=3, boundary=SMALL, beta=5.0, steps=4)
    learned = Learned((wall, grid), (objects, grid))
    found = refinement.at_pixels(scores, grid, how, picture, learned)
    expected = affinity.averaged(np.concatenate([scores.numpy(), objects[None]]), wall, 3, 5.0, 4)
    assert found.objects is not None
    together = torch.cat([found.maps, found.objects[None]])
    torch.testing.assert_close(together, enlarged(torch.from_numpy(expected), grid, 65, 65))
    alone = refinement.at_pixels(scores, grid, how, picture, Learned((wall, grid), None))
    assert alone.objects is None
    torch.testing.assert_close(alone.maps, found.maps)
    published = refinement.at_pixels(scores, grid, how.model_copy(update={"kind": "affinity"}), picture, learned)
    assert published.objects is not None
    torch.testing.assert_close(published.objects, enlarged(torch.from_numpy(objects)[None], grid, 65, 65)[0])
    assert not torch.allclose(published.objects, found.objects)


def test_a_walk_of_nothing_is_nothing() -> None:
    wall = np.full((4, 4), 0.5, dtype=np.float32)
    assert affinity.walk(np.zeros((0, 4, 4), np.float32), wall, 3, 1.0, 2).shape == (0, 4, 4)
    assert not affinity.walk(np.zeros((1, 4, 4), np.float32), wall, 3, 1.0, 2).any()


def test_paths_end_where_their_pairs_lie() -> None:
    for offset in affinity.offsets(5):
        line = affinity.path(offset)
        assert (line[0], line[-1]) == ((0, 0), offset)
        assert all(max(abs(a - c), abs(b - d)) == 1 for (a, b), (c, d) in zip(line, line[1:], strict=False))
    assert len(affinity.offsets(5)) == 34, "as published"


def by_hand(logits: torch.Tensor, classes: np.ndarray) -> float:
    """IRN's loss over all pairs of a row of cells that touch, radius 2."""
    sums: dict[str, list[float]] = {"ground": [], "object": [], "apart": []}
    for place in range(len(classes) - 1):
        one, other = classes[place], classes[place + 1]
        if IGNORE in (one, other):
            continue
        greatest = max(float(logits[place]), float(logits[place + 1]))
        kind = "apart" if one != other else "ground" if one == 0 else "object"
        sums[kind].append(float(np.log1p(np.exp(-greatest if kind == "apart" else greatest))))
    means = {kind: np.mean(values) if values else 0.0 for kind, values in sums.items()}
    return float(means["ground"] / 2 + means["object"] / 2 + means["apart"])


def test_the_loss_of_boundaries_by_hand() -> None:
    classes = np.array([[0, 0, 0, 2, 2, IGNORE, 1, 1]], dtype=np.uint8)
    logits = torch.tensor([[-1.0, 0.5, 2.0, -2.0, 0.3, 5.0, -0.7, 1.0]])
    term = boundary.loss(logits[None], torch.from_numpy(classes)[None], radius=2)
    assert float(term.total / term.weight) == pytest.approx(by_hand(logits[0], classes[0]), rel=1e-5)


def trunk_and_grid() -> tuple[Trunk, Grid]:
    trunk = stochastic_classifier("vgg16", stride=8).trunk
    return trunk, boundary.grid_of(trunk, 65)


def scenes(trunk: Trunk, grid: Grid, count: int) -> tuple[list[list[torch.Tensor]], list[np.ndarray]]:
    """Pictures of a bright rectangle on black, their levels and the classes at the cells."""
    rng = np.random.default_rng(0)
    levels, classes = [], []
    net = boundary.CellNet(trunk.level_channels, trunk.level_strides, grid, 4)
    for _ in range(count):
        top, left = rng.integers(5, 25, 2)
        bottom, right = rng.integers(35, 60, 2)
        image, mask = torch.zeros(1, 3, 65, 65), np.zeros((65, 65), dtype=np.uint8)
        image[:, :, top:bottom, left:right] = 255.0
        mask[top:bottom, left:right] = 1
        with torch.no_grad():
            levels.append([level[0].half() for level in net.prepared(trunk(image).levels)])
        classes.append(grid.at_cells(mask))
    return levels, classes


def test_a_net_learns_boundaries_from_masks_and_is_a_function_of_the_seed() -> None:
    trunk, grid = trunk_and_grid()
    assert (grid.stride, grid.cells) == (4, 17)
    levels, classes = scenes(trunk, grid, 12)
    nets = [
        boundary.learn(levels[:10], classes[:10], trunk, grid, partial(boundary.loss, radius=4), SMALL, seed)
        for seed in (0, 0, 1)
        if torch.manual_seed(seed + 50)
    ]
    new = boundary.CellNet(trunk.level_channels, trunk.level_strides, grid, 8).eval()
    truth = torch.from_numpy(np.stack(classes[10:]))
    batch = [torch.stack([one[k] for one in levels[10:]]).float() for k in range(len(levels[0]))]
    with torch.no_grad():
        before, after = (boundary.loss(net(batch), truth, 4).total for net in (new, nets[0]))
    assert after < 0.5 * before, "on pictures that it has not seen"
    first, again, other = (net.probability(levels[11]) for net in nets)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert ((first >= 0) & (first <= 1)).all()
    alone = torch.from_numpy(first)[None]
    torch.testing.assert_close(nets[0](batch)[1:].sigmoid(), alone, rtol=1e-4, atol=1e-5)


def test_cells_are_read_where_the_grid_has_them() -> None:
    """A ramp over the picture stays that ramp from any grid to any other, mirrored or not, and at its pixels."""

    def ramp(grid: Grid, base: int) -> torch.Tensor:
        pixels = (torch.arange(grid.cells) * grid.stride + 0.5) * base / grid.size - 0.5
        return pixels.float().expand(1, grid.cells, -1)

    base, other = Grid(65, 8), Grid(97, 8)
    inside = slice(1, -1)  # beyond the outermost cells a map goes on as it is
    found = moved(ramp(other, 65), base, other)
    torch.testing.assert_close(found[..., inside], ramp(base, 65)[..., inside])
    mirrored = cells_of(base, other, mirrored=True)
    assert mirrored is not None
    torch.testing.assert_close((ramp(other, 65)[0, 0] @ mirrored.mT)[inside], (64 - ramp(base, 65))[0, 0, inside])
    assert cells_of(base, base) is None
    flipped = cells_of(base, base, mirrored=True)
    assert flipped is not None
    assert torch.equal(flipped, torch.eye(9).flip(0)), "of one size, cells lie upon cells"
    large = enlarged(ramp(base, 65), base, 40, 130)
    assert large.shape == (1, 40, 130)
    expected = (torch.arange(130) + 0.5) * 65 / 130 - 0.5
    torch.testing.assert_close(large[0, 0, 1:-1], expected[1:-1])


def test_a_crf_on_labels_fills_what_is_unknown_up_to_the_border() -> None:
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, 30:] = 220
    labels = np.full((40, 60), IGNORE, dtype=np.uint8)
    labels[15:25, 5:20] = 0
    labels[15:25, 40:55] = 7
    params = LabelCRFParams(kind="crf", crf=CRF, confidence=0.7, long_side=30)
    found = refinement.labels_by_crf(labels, picture, (7,), params)
    assert (found[:, :28] == 0).all()
    assert (found[:, 32:] == 7).all()
    assert (refinement.labels_by_crf(labels, picture, (), params) == 0).all(), "without tags all is background"


@pytest.mark.parametrize(
    "how",
    [
        NoRefinement(kind="none"),
        PAMRParams(kind="pamr", dilations=(1, 2), iterations=2, long_side=32),
        AffinityParams(kind="affinity", radius=3, boundary=SMALL, beta=5.0, steps=4),
        AffinityParams(kind="joint_affinity", radius=3, boundary=SMALL, beta=5.0, steps=4),
    ],
    ids=lambda how: how.kind,
)
def test_every_refinement_gives_maps_of_the_picture(how: refinement.Refinement) -> None:
    picture = squares(1, 65).images[0].byte().permute(1, 2, 0).numpy()[:50]
    grid, finer = Grid(65, 8), Grid(65, 4)
    wall = np.full((17, 17), 0.1, dtype=np.float32)
    for tags in (0, 2):
        learned = Learned((wall, finer), (wall, finer))
        found = refinement.at_pixels(torch.rand(tags, 9, 9), grid, how, picture, learned)
        assert found.maps.shape == (tags, 50, 65)
        assert ((found.maps >= 0) & (found.maps <= 1)).all()
        assert found.objects is not None
        torch.testing.assert_close(found.objects, torch.full((50, 65), 0.1))


def test_a_trunk_that_pads_its_pictures_has_cells_to_cut_off() -> None:
    """129 pixels become 144 for stride 16: 18 cells of stride 8, of which 17 lie on the picture."""
    grid = Grid(129, 4)
    net = boundary.CellNet((3, 4, 5, 6), (2, 4, 8, 16), grid, 4)
    padded = [torch.rand(1, c, n, n) for c, n in ((3, 72), (4, 36), (5, 18), (6, 9))]
    cut = [level[..., :n, :n] for level, n in zip(padded, (65, 33, 17, 9), strict=True)]
    assert net(padded).shape == (1, 33, 33)
    assert torch.equal(net(padded), net(cut))
    once = net.prepared(padded)
    assert all(torch.equal(a, b) for a, b in zip(once, net.prepared(once), strict=True))


def test_a_net_learns_what_is_an_object() -> None:
    trunk, grid = trunk_and_grid()
    levels, classes = scenes(trunk, grid, 12)
    net = boundary.learn(levels[:10], classes[:10], trunk, grid, boundary.object_loss, SMALL, 0)
    found = net.probability(levels[11])
    assert ((found > 0.5) == (classes[11] > 0)).mean() > 0.9, "on a picture that it has not seen"


def test_the_loss_of_objects_leaves_out_what_is_unknown() -> None:
    logits = torch.tensor([[[2.0, -1.0, 5.0]]])
    term = boundary.object_loss(logits, torch.tensor([[[3, 0, IGNORE]]], dtype=torch.uint8))
    assert float(term.total) == pytest.approx(np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0)), rel=1e-5)
    assert float(term.weight) == 2
