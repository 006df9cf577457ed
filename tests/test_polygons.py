"""Outlines drawn back are the masks that they are of."""

import json
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as untyped

from segcore.prediction import polygons
from segcore.prediction.polygons import Per, Ring

coco_masks: Any = untyped
NAMES = ("background", "cup", "spoon")
SURE = np.array([0.5, 0.9, 0.8])
FINE = 4
"""Times the size at which polygons are filled, so that centres of pixels lie on no edge."""


def filled(rings: list[Ring], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres an even number of rings does not enclose."""
    canvas = np.zeros((FINE * shape[0], FINE * shape[1]), np.uint8)
    cv2.fillPoly(canvas, [FINE * np.asarray(ring, np.int32) for ring in rings], 1)
    return canvas[FINE // 2 :: FINE, FINE // 2 :: FINE].astype(bool)


def masks() -> dict[str, np.ndarray]:
    ring = np.zeros((12, 14), np.uint8)
    ring[2:10, 2:12], ring[4:8, 5:9], ring[5:7, 6:8] = 1, 0, 1
    two = ring.copy()
    two[5, 10] = 0
    diagonal = np.zeros((6, 6), np.uint8)
    diagonal[1, 1] = diagonal[2, 2] = diagonal[3, 1] = diagonal[2, 0] = 1
    noise = (np.random.default_rng(0).random((40, 33)) < 0.6).astype(np.uint8)
    smooth = cv2.GaussianBlur(np.random.default_rng(1).random((90, 120)), (0, 0), 4)
    classes = np.digitize(smooth, [0.48, 0.52]).astype(np.uint8)
    return {
        "pixel": np.pad(np.ones((1, 1), np.uint8), 2), "full": np.ones((5, 7), np.uint8), "ring": ring, "two": two,
        "diagonal": diagonal, "noise": noise, "classes": classes, "nothing": np.zeros((4, 4), np.uint8),
    }  # fmt: skip


@pytest.mark.parametrize("per", ["component", "class"])
@pytest.mark.parametrize("name", masks())
def test_geojson_drawn_back_is_the_mask(name: str, per: Per) -> None:
    labels = masks()[name]
    features = json.loads(polygons.geojson(labels, NAMES, SURE, per))["features"]
    drawn = np.zeros_like(labels)
    for feature in features:
        geometry = feature["geometry"]
        shapes = geometry["coordinates"] if per == "class" else [geometry["coordinates"]]
        assert geometry["type"] == ("MultiPolygon" if per == "class" else "Polygon")
        area = 0
        for shape in shapes:
            assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in shape)
            inside = filled([ring[:-1] for ring in shape], labels.shape)
            assert not drawn[inside].any()
            drawn[inside] = feature["properties"]["index"]
            area += int(inside.sum())
        assert feature["properties"]["area"] == area
        assert feature["properties"]["class"] == NAMES[feature["properties"]["index"]]
    assert np.array_equal(drawn, labels)
    if per == "component":
        count = sum(cv2.connectedComponents((labels == k).astype(np.uint8), connectivity=4)[0] - 1 for k in (1, 2))
        assert len(features) == count


@pytest.mark.parametrize("per", ["component", "class"])
@pytest.mark.parametrize("name", masks())
def test_coco_drawn_back_by_its_own_tools_is_the_mask(name: str, per: Per) -> None:
    labels = masks()[name]
    annotations = json.loads(polygons.coco(labels, NAMES, SURE, per))["annotations"]
    drawn = np.zeros_like(labels)
    for one in annotations:
        runs = coco_masks.merge(coco_masks.frPyObjects(one["segmentation"], *labels.shape))
        inside = coco_masks.decode(runs).astype(bool)
        assert inside.sum() == one["area"]
        rows, columns = np.nonzero(inside)
        x, y, width, height = one["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        drawn[inside] = one["category_id"]
    assert np.array_equal(drawn, labels)


def test_a_hole_is_a_ring_of_its_own() -> None:
    found = [*polygons.outlines(masks()["ring"] == 1)]
    assert [(len(one.holes), one.area) for one in found] == [(1, 64), (0, 4)]
    assert sorted(map(tuple, found[0].holes[0])) == [(5, 4), (5, 8), (9, 4), (9, 8)]
