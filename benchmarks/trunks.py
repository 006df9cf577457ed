"""What of timm can be a trunk: `python -m benchmarks.trunks`, which prints the table of docs/trunks.md.

Every model is made with random weights, as a trunk of the smallest stride that it has, and run on a picture of 224
pixels by one thread. What refuses is in the table, with what it says. Models are the smallest of their families.
"""

import statistics
import sys
import time
from collections.abc import Iterator

import timm
import torch

from segcore.config.networks import TIMM, BackboneParams, TimmParams
from segcore.errors import Problem
from segcore.networks import backbones
from segcore.networks.trunk import Trunk

MODELS = (
    "resnet18", "resnet50", "resnext50_32x4d", "regnety_002", "hrnet_w18_small", "convnext_atto", "convnextv2_atto",
    "efficientnet_lite0", "tf_efficientnet_lite2", "efficientnet_b0", "mobilenetv3_small_100", "mobilenetv4_conv_small",
    "densenet121", "vgg11", "mambaout_femto", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224",
    "maxvit_tiny_tf_224", "pvt_v2_b0", "hiera_tiny_224", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "deit3_small_patch16_224", "vit_small_patch32_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "beit_base_patch16_224",
)  # fmt: skip
STRIDES = (8, 14, 16, 32)
SIZE, OTHERS = 224, (161, 256, 320)
TURNS = 5
COLUMNS = ("model", "strides", "levels", "channels", "parameters, M", "ms", "mean of its colours", "other sizes")


def main() -> int:
    torch.set_num_threads(1)
    print(
        f"timm {timm.__version__}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|" + " --- |" * len(COLUMNS))
    for name in MODELS:
        print(f"| `{name}` | " + " | ".join(row(name)) + " |", flush=True)
    return 0


def row(name: str) -> Iterator[str]:
    """The cells of a model's line."""
    trunks, refusals = {}, []
    for stride in STRIDES:
        made = built(name, stride)
        if isinstance(made, Trunk):
            trunks[stride] = made
        else:
            refusals.append(made)
    if not trunks:
        yield f"none: {refusals[-1]}"
        yield from [""] * (len(COLUMNS) - 2)
        return
    trunk = next(iter(trunks.values())).eval()
    yield ", ".join(map(str, trunks))
    yield ", ".join(map(str, trunk.level_strides))
    yield ", ".join(map(str, trunk.level_channels))
    yield f"{sum(value.numel() for value in trunk.parameters()) / 1e6:.1f}"
    yield f"{1000 * seconds(trunk):.0f}"
    yield ", ".join(f"{value / 255:.3g}" for value in dict.fromkeys(trunk.mean.flatten().tolist()))
    takes = [str(size) for size in OTHERS if isinstance(built(name, trunk.stride, size), Trunk)]
    yield "all tried" if len(takes) == len(OTHERS) else ", ".join(takes) or "none"


def built(name: str, stride: int, size: int = SIZE) -> Trunk | str:
    """The trunk, or why there is none that takes pictures of this size."""
    try:
        params = backbone(name, stride)
        with torch.device("meta"):
            trunk = backbones.build(params).eval()
            trunk(torch.zeros(1, 3, size, size))
        return backbones.build(params) if size == SIZE else trunk
    except Problem as problem:
        return str(problem).split(";")[0]
    except Exception as error:  # timm's networks refuse in a dozen ways
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"


def backbone(name: str, stride: int) -> BackboneParams:
    values = {"name": TIMM + name, "weights": "random", "width": 1.0, "frozen_norm": True, "finer": "dilated"}
    return TimmParams.model_validate(values | {"stride": stride, "normalisation": "timm"})


@torch.inference_mode()
def seconds(trunk: Trunk) -> float:
    """The median of some passes over one picture, after one that warms up."""
    image, times = torch.rand(1, 3, SIZE, SIZE) * 255, []
    for _ in range(TURNS + 1):
        begin = time.perf_counter()
        trunk(image)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


if __name__ == "__main__":
    sys.exit(main())
