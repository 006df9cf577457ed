"""EdgeBoxes on thin edges: orientation, the guard, structured forests, hard pictures, real photographs."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from segcore.config.data import CropsParams, GradientEdges, StructuredEdges
from segcore.data.crops import box_iou, tight_box
from segcore.data.pictures import read_image, read_labels
from segcore.data.proposals import edge_boxes, edge_map, limit_edges
from segcore.errors import Problem
from tests.devkit import real_voc

EDGES = GradientEdges(kind="gradient", max_fraction=0.12)
PARAMS = CropsParams(
    per_subset=200,
    max_subsets=31,
    edges=EDGES,
    min_overlap=0.7,
    warp=104,
    input_size=96,
)


def structured(model: Path) -> StructuredEdges:
    """Edges by the forest in a file."""
    return StructuredEdges(kind="structured", model=str(model), max_fraction=0.12)


def disc(height: int = 200, width: int = 260, centre: tuple[int, int] = (120, 90), radius: int = 45) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 60, dtype=np.uint8)
    image[np.hypot(x - centre[0], y - centre[1]) < radius] = (200, 180, 40)
    return image


def hard_picture(kind: str, height: int = 375, width: int = 500) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    if kind == "noise":
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    grey = {
        "flat": np.full_like(x, 90),
        "ramp": x // 2,
        "checkerboard": (x // 8 + y // 8) % 2 * 255,
        "stripes": (x + y) // 5 % 2 * 255,
        "rings": (np.hypot(x - 250, y - 180) % 20 * 12).astype(int),
    }[kind]
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def test_edges_are_thin_and_oriented_along_their_normal() -> None:
    edges, orientation = edge_map(disc(), EDGES)
    assert edges.dtype == orientation.dtype == np.float32
    assert 0 < edges.max() <= 1
    y, x = np.nonzero(edges)
    distance = np.hypot(x - 120, y - 90)
    assert np.abs(distance - 45).max() < 2.5, "edges lie on the circle"
    assert len(y) < 1.6 * 2 * np.pi * 45, "one pixel wide, corners aside"
    normal = np.arctan2(y - 90, x - 120)
    off = np.abs(np.mod(orientation[y, x] - normal + np.pi / 2, np.pi) - np.pi / 2)
    assert np.median(off) < 0.1
    assert off.max() < 0.4


def test_an_object_is_among_the_first_boxes() -> None:
    boxes = edge_boxes(disc(), EDGES, 200)
    assert box_iou(boxes[:10], (75, 45, 166, 136)).max() > 0.75


def test_boxes_lie_within_a_large_picture_and_scale_with_it() -> None:
    large = np.kron(disc(), np.ones((8, 8, 1), dtype=np.uint8))
    boxes = edge_boxes(large, EDGES, 200)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= large.shape[1]).all()
    assert (boxes[:, 3] <= large.shape[0]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert box_iou(boxes[:10], (8 * 75, 8 * 45, 8 * 166, 8 * 136)).max() > 0.75


def test_the_guard_keeps_the_strongest_edges() -> None:
    edges = np.linspace(0.2, 1, 100, dtype=np.float32).reshape(10, 10)
    kept = limit_edges(edges, 0.12)
    assert np.count_nonzero(kept) == 12
    assert kept[kept > 0].min() > edges[kept == 0].max()
    assert limit_edges(edges, 1.0) is edges


def test_the_guard_empties_a_map_of_one_strength() -> None:
    assert not limit_edges(np.ones((20, 20), dtype=np.float32), 0.12).any()


@pytest.mark.parametrize("kind", ["noise", "flat", "ramp", "checkerboard", "stripes", "rings"])
def test_no_picture_keeps_edge_boxes_busy(kind: str) -> None:
    begin = time.perf_counter()
    boxes = edge_boxes(hard_picture(kind), EDGES, 1000)
    assert time.perf_counter() - begin < 5, "unthinned maps take minutes"
    assert boxes.shape[1] == 4


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (15, 15), (16, 17), (20, 5000)])
def test_tiny_and_very_long_pictures_do_no_harm(size: tuple[int, int]) -> None:
    boxes = edge_boxes(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8), EDGES, 100)
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_boxes_are_the_same_every_time() -> None:
    np.testing.assert_array_equal(edge_boxes(disc(), EDGES, 100), edge_boxes(disc(), EDGES, 100))


def tiny_forest(path: Path) -> None:
    """A forest of one tree with one question: is the gradient at the centre of the patch strong? Then edge."""
    centre_gradient = 3 * 256 + 8 * 16 + 8  # fourth channel of 16 x 16: gradient magnitude at full scale
    bins = [row * 16 + column for row in (7, 8) for column in (7, 8)] * 32
    options = {
        "stride": 2, "shrinkNumber": 2, "patchSize": 32, "patchInnerSize": 16, "numberOfGradientOrientations": 4,
        "gradientSmoothingRadius": 0, "regFeatureSmoothingRadius": 2, "ssFeatureSmoothingRadius": 8,
        "gradientNormalizationRadius": 4, "selfsimilarityGridSize": 5, "numberOfTrees": 1,
        "numberOfTreesToEvaluate": 1,
    }  # fmt: skip
    lines = ["%YAML:1.0", "---", "options:", *(f"   {key}: {value}" for key, value in options.items())]
    lines += ["childs:", "   - [ 2, 0, 0 ]", "featureIds:", f"   - [ {centre_gradient}, 0, 0 ]"]
    lines += ["thresholds:", "   - [ 0.05, 0., 0. ]", "edgeBoundaries:", f"   - [ 0, 0, 0, {len(bins)} ]"]
    lines += ["edgeBins:", "   - [ " + ", ".join(map(str, bins)) + " ]"]
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))


def test_a_structured_forest_is_used_when_named(tmp_path: Path) -> None:
    tiny_forest(tmp_path / "model.yml.gz")
    params = structured(tmp_path / "model.yml.gz")
    edges, orientation = edge_map(disc(), params)
    y, x = np.nonzero(edges)
    assert len(y) > 50
    assert np.median(np.abs(np.hypot(x - 120, y - 90) - 45)) < 5
    assert ((orientation >= 0) & (orientation <= np.pi)).all()
    assert box_iou(edge_boxes(disc(), params, 200), (75, 45, 166, 136)).max() > 0.6


def test_a_missing_edge_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"no file .*forest.yml.gz.*crops.edges: gradient"):
        edge_map(disc(), structured(tmp_path / "forest.yml.gz"))


# The file's time stamp is part of it, and of the test's name, which all processes of a run must agree on.
OTHER = gzip.compress(b"%YAML:1.0\n---\nother: 1\n", mtime=0)


@pytest.mark.parametrize("content", [b"", b"no yaml", OTHER], ids=["empty", "text", "other"])
def test_a_file_that_is_no_forest_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.yml.gz"
    path.write_bytes(content)
    with pytest.raises(Problem, match="holds no structured forest"):
        edge_map(disc(), structured(path))


def test_a_cut_off_forest_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.yml"
    path.write_text("%YAML:1.0\n---\noptions:\n   numberOfTrees: [ 1, }\n")
    with pytest.raises(Problem, match="could not be read"):
        edge_map(disc(), structured(path))


def test_photographs_are_fast_and_their_objects_found() -> None:
    root = real_voc()
    ids = (root / "ImageSets/Segmentation/train_2007.txt").read_text().split()[:12]
    seconds, nearest = [], []
    for image_id in ids:
        image = read_image(root / f"JPEGImages/{image_id}.jpg")
        labels = read_labels(root / f"SegmentationClass/{image_id}.png")
        begin = time.process_time()
        boxes = edge_boxes(image, EDGES, 2000)
        seconds.append(time.process_time() - begin)
        objects = [label for label in np.unique(labels) if label not in (0, 255)]
        nearest += [box_iou(boxes, tight_box(labels == label)).max() for label in objects]
    assert np.median(seconds) < 1, "0.1 s on an idle core"
    assert np.mean(np.array(nearest) > 0.5) > 0.8
