"""What refining the labels of one picture takes: `python -m benchmarks.refinement`.

A picture of 320 x 240 pixels with two tags, maps at stride 8 of a square of 321, on one core. The walks have the 81 x
81 cells of stride 4; the joint one takes a third map along. The bar holds for the walks and for the CRF; processor
time, so that a busy machine changes little.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from segcore.config.refinements import AffinityParams, CRFParams, LabelCRFParams, NetParams, PAMRParams
from segcore.data.geometry import Grid
from segcore.localisation import refinement
from segcore.localisation.refinement import Learned

BAR = 0.25
TAGS, TURNS = 2, 5
CRF = CRFParams(
    iterations=10, appearance_weight=10.0, appearance_xy=80.0, appearance_rgb=13.0, smoothness_weight=3.0,
    smoothness_xy=3.0, stride=1,
)  # fmt: skip
NET = NetParams(width=32, steps=1, batch_size=1, learning_rate=0.01, examples=2)


def main() -> int:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (240, 320, 3)).astype(np.uint8)
    labels = rng.integers(0, 1 + TAGS, (240, 320)).astype(np.uint8)
    maps, grid = torch.from_numpy(rng.random((TAGS, 41, 41)).astype(np.float32)), Grid(321, 8)
    walls = rng.random((81, 81)).astype(np.float32) / 2, Grid(321, 4)
    learned = Learned(walls, walls)
    print(f"refining a picture of 320 x 240 pixels with {TAGS} tags, one core:")
    met = True
    for kind in ("affinity", "joint_affinity"):
        for steps in (16, 64, 128):
            walk = AffinityParams(kind=kind, radius=5, boundary=NET, beta=10.0, steps=steps)
            taken = seconds(lambda walk=walk: refinement.at_pixels(maps, grid, walk, picture, learned))
            print(f"  {kind}, {steps} steps over 81 x 81 cells: {taken:.3f} s (bar: <= {BAR} s)")
            met &= taken <= BAR
    for side in (60, 80):
        crf = LabelCRFParams(kind="crf", crf=CRF, confidence=0.7, long_side=side)
        taken = seconds(lambda crf=crf: refinement.labels_by_crf(labels, picture, (1, 2), crf))
        print(f"  a CRF at a long side of {side}: {taken:.3f} s (bar: <= {BAR} s)")
        met &= taken <= BAR
    pamr = PAMRParams(kind="pamr", dilations=(1, 2, 4, 8, 12, 24), iterations=10, long_side=160)
    taken = seconds(lambda: refinement.at_pixels(maps, grid, pamr, picture, learned))
    print(f"  PAMR at a long side of 160: {taken:.3f} s")
    return 0 if met else 1


def seconds(work: Callable[[], object]) -> float:
    """The least processor time of some turns."""
    least = float("inf")
    for _ in range(TURNS):
        begin = time.process_time()
        work()
        least = min(least, time.process_time() - begin)
    return least


if __name__ == "__main__":
    raise SystemExit(main())
