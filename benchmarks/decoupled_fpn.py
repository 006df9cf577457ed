"""What each found tag costs decoupled_fpn, over its trunk's forward: `python -m benchmarks.decoupled_fpn`.

The network of the profile `voc-mini`: a ResNet-18 (random weights cost the same) at 320 pixels, 20 tags, a decoder of
96 channels, images one by one on one core. The tags are given, so that each turn has as many as it says. Turns of all
alternate, so that a busy machine slows them alike, and the best of each counts, in seconds of this process.
"""

import sys
import time
from collections.abc import Callable

import torch

from segcore.config.classifiers import PooledParams
from segcore.config.networks import BackboneParams, PyramidParams
from segcore.config.section import Views
from segcore.networks import classifiers
from segcore.systems._pyramid import ZoomParams
from segcore.systems.decoupled_fpn import DecoupledFPN, Prediction, Training

FIRST, FURTHER = 2.0, 0.3
"""Bars: prediction with one found tag, and each further tag, over the trunk's forward."""
SIDE, TAGS, TURNS = 320, 20, 7


def main() -> int:
    torch.set_num_threads(1)
    seconds = measured(system(SIDE, 192, 96), SIDE, TURNS)
    trunk, *tags = seconds
    print(f"decoupled_fpn, ResNet-18, one image of {SIDE} pixels on one core: trunk {trunk * 1000:.1f} ms")
    for number, spent in enumerate(tags, 1):
        print(f"  {number} found tag{'s' * (number > 1)}: {spent * 1000:.1f} ms, {spent / trunk:.2f}x the trunk")
    first, further = tags[0] / trunk, (tags[-1] - tags[0]) / (len(tags) - 1) / trunk
    print(f"  one tag {first:.2f}x (bar: <= {FIRST:g}x), each further tag {further:+.2f}x (bar: <= +{FURTHER:g}x)")
    return 0 if first <= FIRST and further <= FURTHER else 1


def system(side: int, top_width: int, width: int) -> DecoupledFPN:
    """A random one that was never trained."""
    torch.manual_seed(0)
    backbone = BackboneParams(
        name="resnet18", weights="random", width=1.0, frozen_norm=True, stride=32, finer="dilated"
    )
    head = PooledParams(
        kind="pooled", input_size=side, levels=1, pools=("mean", "max"), views=Views(scales=(1.0,), flip=False)
    )
    params = Training(
        recipe="none",
        network=PyramidParams(kind="pyramid", top_width=top_width, width=width, output_stride=4, input_size=side),
        zoom=ZoomParams(scales=(0.7, 1.6), brightness=0.2),
        masks=True,
        absent=0.15,
        dice_weight=0.5,
    )
    made = DecoupledFPN(classifiers.build(backbone, head, TAGS), params).eval()
    made.prediction = Prediction(views=head.views, crf=None, threshold=0.5, background=0.5)
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def measured(network: DecoupledFPN, side: int, turns: int) -> list[float]:
    """Seconds of the trunk's forward, and of predictions of 1, 2 and 3 given tags: the best of all turns."""
    image = torch.rand(1, 3, side, side) * 255
    image = image.contiguous(memory_format=torch.channels_last)
    given = torch.zeros(3, 1, TAGS)
    for number in range(3):
        given[number, 0, : number + 1] = 1
    calls: list[Callable[[], object]] = [lambda: network.classifier.trunk(image)]
    calls += [lambda tags=tags: network.predict_given(image, tags) for tags in given]
    best = [float("inf")] * len(calls)
    for turn in range(turns + 1):
        for place, call in enumerate(calls):
            begin = time.process_time()
            call()
            spent = time.process_time() - begin
            if turn:  # the first one warms up
                best[place] = min(best[place], spent)
    return best


if __name__ == "__main__":
    sys.exit(main())
