"""DecoupledNet's inference of a picture with four labels: `python -m benchmarks.inference`.

Against the published way, which runs the whole network once for each label vector: the classifier to find the labels,
then classifier, saliency and segmentation network for all of them together (background) and for each alone. Both use
the same random network of the published size in the same memory layout, and the best of several turns counts.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.config.classifiers import FullyConnectedParams
from segcore.config.networks import BackboneParams, DeconvolutionParams
from segcore.config.section import Views
from segcore.data.batches import Batch
from segcore.localisation.saliency import saliency
from segcore.networks import classifiers
from segcore.networks.deconvolution import Level
from segcore.systems.decouplednet import DecoupledNet, Prediction, Training

BAR_RATIO = 2.0
BAR_DIFFERENCE = 1e-4
SIDE = 320
TAGS = 20
LABELS = 4
TURNS = 3


def main() -> int:
    print(f"DecoupledNet, VGG-16, {SIDE}x{SIDE} pixels, {LABELS} labels, CPU, {torch.get_num_threads()} threads:")
    ratio, difference = compared("the published size", 1.0)
    print(f"    (bars: >= {BAR_RATIO:g}x, <= {BAR_DIFFERENCE:g})")
    compared("a quarter of the width, for comparison", 0.25)
    return 0 if ratio >= BAR_RATIO and difference <= BAR_DIFFERENCE else 1


def compared(title: str, width: float) -> tuple[float, float]:
    """How many times as fast `predict` is, and how far its scores are off."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, SIDE, SIDE).mul(255).contiguous(memory_format=torch.channels_last)
    system = random_system(image, width)
    with torch.inference_mode():
        difference = (system.predict(image) - one_forward_per_label(system, image)).abs().max().item()
        ours, theirs = best_seconds(lambda: system.predict(image), lambda: one_forward_per_label(system, image))
    print(
        f"  {title}: all labels in one batch {ours:.3f} s, one full forward per label {theirs:.3f} s, "
        f"{theirs / ours:.2f}x; scores differ by {difference:.0e}"
    )
    return theirs / ours, difference


def random_system(image: Tensor, width: float) -> DecoupledNet:
    """A network with random weights that finds exactly `LABELS` labels in `image`."""
    backbone = BackboneParams(
        name="vgg16", weights="random", width=width, frozen_norm=False, stride=32, finer="dilated"
    )
    head = FullyConnectedParams(
        kind="fully_connected", width=round(4096 * width), kernel=7, padding=0, batch_norm=False, dropout=0.0
    )
    classifier = classifiers.build(backbone, head, TAGS).eval()
    network = DeconvolutionParams(kind="deconvolution", width=width, output_stride=1, norm_batches=1, norm_batch_size=2)
    system = DecoupledNet(classifier, Training(recipe="any", network=network))
    once = Views(scales=(1.0,), flip=False)
    system.prediction = Prediction(views=once, crf=None, threshold=0.5, weigh_by_probability=False)
    system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        wanted = torch.linspace(-3, -1, TAGS)
        wanted[:LABELS] = torch.linspace(0.5, 3, LABELS)
        score = system.head.score
        assert score.bias is not None
        score.bias += wanted - classifier(image).decision[0]
    images = torch.cat([image, torch.rand_like(image).mul(255)])
    labels = torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    system.finish([Batch(("a", "b"), images, torch.eye(2, TAGS), labels)])
    return system


def one_forward_per_label(system: DecoupledNet, image: Tensor) -> Tensor:
    """The published inference for one picture, step by step; every layer as it was trained."""
    probabilities = system.classifier(image).decision[0].sigmoid()
    found = (probabilities > system.prediction.threshold).nonzero().flatten().tolist()
    maps = torch.zeros(1, len(probabilities) + 1, *image.shape[2:])
    maps[0, 0] = forward(system, image, found)[0]
    for label in found:
        maps[0, label + 1] = forward(system, image, [label])[1]
    return maps / maps.sum(1, keepdim=True)


def forward(system: DecoupledNet, image: Tensor, labels: list[int]) -> Tensor:
    """Background and foreground of some labels: the classifier, the saliency map and the segmentation network."""
    activations = system.classifier(image)
    values = torch.zeros_like(activations.decision)
    values[:, labels] = activations.decision[:, labels].sigmoid()
    explained = saliency(system.head, activations, values, torch.tensor([0]))
    x = system.segmenter.bridge(activations.features.top, explained)
    net = system.segmenter.deconvolution
    for level, switches in zip(net.levels, reversed(activations.features.switches), strict=True):
        assert isinstance(level, Level)
        assert switches is not None
        x = level.layers(F.max_unpool2d(x, switches, [2, 2]))
    return net.score(x).softmax(1)[0]


def best_seconds(*ways: Callable[[], Tensor]) -> list[float]:
    """The least time of each way, their turns alternating so that a busy machine slows all of them alike."""
    least = [float("inf")] * len(ways)
    for _ in range(TURNS):
        for number, way in enumerate(ways):
            begin = time.perf_counter()
            way()
            least[number] = min(least[number], time.perf_counter() - begin)
    return least


if __name__ == "__main__":
    sys.exit(main())
