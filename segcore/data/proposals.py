"""Where objects may be: EdgeBoxes (Zitnick and Dollar 2014) on a thin edge map.

EdgeBoxes groups neighbouring edge pixels of like orientation. On an edge map that was not thinned these groups grow
without bound and one photograph takes minutes, so every map passes non-maximum suppression and a limit on its share
of edge pixels before it comes near EdgeBoxes.
"""

import functools
import gzip
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Int, UInt8

from segcore.config.data import EdgeParams, StructuredEdges
from segcore.errors import Problem

WORKING_SIDE = 500
"""Longest side, in pixels, on which edges are sought: that of PASCAL VOC; larger photographs are shrunk to it."""

SMALLEST_SIDE = 16
"""Pictures with a shorter side than this hold no part worth proposing."""

EDGE_MINIMUM = 0.1
"""Edges weaker than this do not count, the value of EdgeBoxes' authors."""

SMOOTHING = 0.006
"""Standard deviation of the Gaussian as a share of the longest side: 3 pixels in a VOC photograph.

On VOC masks, 1 pixel finds as many objects but takes four times as long over texture.
"""

FULL_STRENGTH = 99
"""Percentile of the gradients on ridges that becomes edge strength 1, so that one glint does not fade all others."""

FAINTEST = 2.0
"""Change of grey level per pixel that at least becomes strength 1: the noise of an even surface is no edge."""

Edges = tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]


def edge_boxes(image: UInt8[np.ndarray, "H W 3"], params: EdgeParams, maximum: int) -> Int[np.ndarray, "N 4"]:
    """At most `maximum` boxes x1, y1, x2, y2 (half-open, pixels, within the image), the likeliest object first.

    About 0.1 s for a VOC photograph.

    Raises:
        Problem: the structured-forest model cannot be read.
    """
    height, width = image.shape[:2]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    small = image
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if min(small.shape[:2]) < SMALLEST_SIDE:
        return np.zeros((0, 4), dtype=np.int32)

    edges, orientation = edge_map(small, params)
    edges = limit_edges(edges, params.max_fraction)
    if not edges.any():
        return np.zeros((0, 4), dtype=np.int32)

    # The toolbox asks for 1000 pixels at VOC's size; the same share of a smaller picture.
    smallest_area = min(1000.0, 0.005 * edges.size)
    finder = cv2.ximgproc.createEdgeBoxes(maxBoxes=maximum, edgeMinMag=EDGE_MINIMUM, minBoxArea=smallest_area)
    found, _ = finder.getBoundingBoxes(edges, orientation)
    x, y, w, h = np.asarray(found, dtype=np.float64).reshape(-1, 4).T
    whole = w * h >= smallest_area  # its refinement leaves slivers in very small pictures
    boxes = np.rint(np.stack([x, y, x + w, y + h], axis=1)[whole] / scale).astype(np.int32)
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.int32))


def edge_map(image: UInt8[np.ndarray, "H W 3"], params: EdgeParams) -> Edges:
    """Thin edges and their orientation.

    Edges are 0 to 1. The orientation is the angle of the edge's normal in 0..pi, from the x axis towards y (down), as
    `EdgeBoxes.getBoundingBoxes` wants it.

    Raises:
        Problem: `params` are of structured edges and name no readable structured-forest file.
    """
    if isinstance(params, StructuredEdges):
        detector = _structured_forest(params.model)
        strength = detector.detectEdges(image.astype(np.float32) / 255)
        orientation = detector.computeOrientation(strength)
        edges = detector.edgesNms(strength, orientation)
        return np.where(edges > EDGE_MINIMUM, edges, 0).astype(np.float32), orientation
    return _gradient_edges(image)


def limit_edges(edges: Float32[np.ndarray, "H W"], max_fraction: float) -> Float32[np.ndarray, "H W"]:
    """The strongest edges that make up at most `max_fraction` of the pixels; the others become 0.

    The guard against maps that would keep EdgeBoxes busy for minutes. Pixels of equal strength go together, so that a
    map of one strength is emptied rather than cut at an arbitrary place.
    """
    allowed = int(max_fraction * edges.size)
    if np.count_nonzero(edges) <= allowed:
        return edges
    threshold = np.partition(edges.ravel(), -allowed - 1)[-allowed - 1]
    return np.where(edges > threshold, edges, 0).astype(np.float32)


def _gradient_edges(image: UInt8[np.ndarray, "H W 3"]) -> Edges:
    height, width = image.shape[:2]
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), max(1.0, SMOOTHING * max(height, width)))
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    # An edge between two colours of equal brightness shows in one channel only: the steepest channel counts.
    steepest = (across**2 + down**2).argmax(axis=2)[..., None]
    across = np.take_along_axis(across, steepest, axis=2)[..., 0]
    down = np.take_along_axis(down, steepest, axis=2)[..., 0]
    strength = np.sqrt(across**2 + down**2)

    orientation = np.mod(np.arctan2(down, across), np.float32(np.pi)).astype(np.float32)
    ridges = _on_ridge(strength, across, down)
    if not ridges.any():
        return np.zeros_like(strength), orientation
    full = max(FAINTEST, float(np.percentile(strength[ridges], FULL_STRENGTH)))
    edges = np.clip(strength / full, 0, 1)
    return np.where(ridges & (edges > EDGE_MINIMUM), edges, 0).astype(np.float32), orientation


def _on_ridge(
    strength: Float32[np.ndarray, "H W"], across: Float32[np.ndarray, "H W"], down: Float32[np.ndarray, "H W"]
) -> np.ndarray:
    """Non-maximum suppression: where the gradient is stronger than one pixel uphill and downhill of it."""
    length = np.maximum(strength, 1e-6)
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in strength.shape[::-1]))
    uphill = cv2.remap(
        strength, x + across / length, y + down / length, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    downhill = cv2.remap(
        strength, x - across / length, y - down / length, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    # Strictly on one side alone: an edge as wide as two equal pixels keeps one of them, a ramp none.
    return (strength > uphill) & (strength >= downhill)


@functools.lru_cache(maxsize=1)
def _structured_forest(path: str) -> "cv2.ximgproc.StructuredEdgeDetection":
    """The edge detector of Dollar and Zitnick 2013; loading takes seconds, so once a process."""
    advice = "name OpenCV's model.yml.gz (opencv_extra, testdata/cv/ximgproc) or set `crops.edges: gradient`"
    path = str(Path(path).expanduser())
    if not Path(path).is_file():
        raise Problem(f"crops.edges.model: there is no file {path}; {advice}")
    # OpenCV divides by the number of trees without a look: a file without it would end the process.
    if not _mentions(path, b"numberOfTrees"):
        raise Problem(f"crops.edges.model: {path} holds no structured forest; {advice}")
    try:
        return cv2.ximgproc.createStructuredEdgeDetection(path)
    except cv2.error as error:
        raise Problem(f"crops.edges.model: {path} could not be read ({error.err}); {advice}") from error


def _mentions(path: str, word: bytes) -> bool:
    compressed = Path(path).suffix == ".gz"
    try:
        with gzip.open(path, "rb") if compressed else Path(path).open("rb") as file:
            return any(word in line for line in file)
    except (OSError, EOFError):
        return False
