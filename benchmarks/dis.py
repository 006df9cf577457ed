"""A step of DIS's inference against one forward pass of its trunk: `python -m benchmarks.dis`.

ResNet-101 at stride 8 and 353 pixels, 21 classes, random weights: what `profiles/voc2012.yaml` trains. A step is the
difference between inferences of `MANY` steps and of one, over their number, so that what is done once an image (the
features written in the basis of what the subnets see) is told apart. The best of several turns counts.
"""

import sys
import time
from collections.abc import Callable

import torch

from segcore.config.networks import BackboneParams
from segcore.losses import reconstruction_costs
from segcore.networks import backbones
from segcore.networks.dual import Dual, Responses
from segcore.networks.dual_inference import infer

BAR = 0.05
SIDE = 353
CLASSES = 21
MANY = 11
TURNS = 5


def main() -> int:
    share, _ = compared("resnet101", SIDE)
    print(f"    (bar: <= {100 * BAR:g} % a step)")
    return 0 if share <= BAR else 1


@torch.no_grad()
def compared(trunk: str, side: int) -> tuple[float, float]:
    """The time of a step, and that of what is done once, over the time of the trunk."""
    torch.manual_seed(0)
    backbone = BackboneParams(name=trunk, weights="random", width=1.0, frozen_norm=True, stride=8, finer="dilated")
    network = Dual(backbones.build(backbone), CLASSES, 1).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(1, 3, side, side).mul(255).contiguous(memory_format=torch.channels_last)
    # Random weights of so many layers give maps of any size; these are of the order of 1, as of a trained trunk.
    u1 = network.trunk(image).top
    u1 = u1 / u1.std()
    v1, seen = network.vector_of(u1), network.seen(image, (u1.shape[2], u1.shape[3]))

    def unlike(responses: Responses) -> torch.Tensor:
        return reconstruction_costs(network.reconstructed(responses.labelmap), seen)

    forward, one, many = best_seconds(
        lambda: network.trunk(image),
        lambda: infer(network, u1, v1, unlike, 1, 0.01),
        lambda: infer(network, u1, v1, unlike, MANY, 0.01),
    )
    step = (many - one) / (MANY - 1)
    once = one - step
    print(
        f"DIS, {trunk}, {side}x{side} pixels, {CLASSES} classes, CPU, {torch.get_num_threads()} threads: trunk "
        f"{forward:.3f} s, a step {1000 * step:.1f} ms ({100 * step / forward:.2f} %), "
        f"once an image {1000 * once:.1f} ms ({100 * once / forward:.2f} %)"
    )
    return step / forward, once / forward


def best_seconds(*ways: Callable[[], object]) -> list[float]:
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
