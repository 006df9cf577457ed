"""The CRF in training and at full size: `python -m benchmarks.crf`.

Training: forward and backward pass of the boundary loss, its CRF included, for 10 images at 41x41, as a share of the
training step of VGG-16 DeepLab-LargeFOV (one branch) on as many images of 321x321. On a GPU both run whole, the network
in bf16, for 21 labels; on a CPU the network runs on one image, whose time counts ten times, and 4 labels have the bar.

Full size: a 500x375 picture with 3 labels. At stride 1 on a CPU, a cut of it is timed and scaled by the square of the
number of pixels, which the cost follows. Beside it `pydensecrf2`, where it is installed.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from segcore.config.labels import CRFParams
from segcore.config.networks import BackboneParams
from segcore.localisation import crf
from segcore.losses import boundary_loss, floored_softmax, pixel_cross_entropy
from segcore.networks import backbones
from segcore.networks.deeplab import DeepLab

BAR_CPU, BAR_GPU = 0.15, 0.05
IMAGES, SIDE, GRID, CLASSES = 10, 321, 41, 21
SCALE = 12.0
HEIGHT, WIDTH, LABELS = 375, 500, 3
CUT_HEIGHT, CUT_WIDTH = 125, 100
TURNS = 3
PARAMS = CRFParams(
    iterations=10,
    appearance_weight=10.0,
    appearance_xy=80.0,
    appearance_rgb=13.0,
    smoothness_weight=3.0,
    smoothness_xy=3.0,
    stride=1,
)


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"Fully connected CRF, 10 iterations, {kind}:")
    met = training(device)
    full_size(device)
    return 0 if met else 1


def training(device: torch.device) -> bool:
    """Print what the boundary loss costs beside a training step; whether the share is within the bar."""
    is_cpu = device.type == "cpu"
    step = network_seconds(device) * (IMAGES if is_cpu else 1)
    how = "one image's time, ten times" if is_cpu else "in bf16"
    print(f"  training step of VGG-16 DeepLab-LargeFOV, {IMAGES} images: {1000 * step:.1f} ms ({how})")
    labels, bar = (4, BAR_CPU) if is_cpu else (CLASSES, BAR_GPU)
    shares = {}
    for n_labels in (4, CLASSES):
        seconds = boundary_seconds(n_labels, device)
        shares[n_labels] = seconds / step
        limit = f" (bar: <= {bar:.0%})" if n_labels == labels else ""
        print(
            f"  boundary loss with its CRF, {n_labels} labels: {1000 * seconds:.1f} ms, "
            f"{shares[n_labels]:.2%} of that step{limit}"
        )
    return shares[labels] <= bar


def network_seconds(device: torch.device) -> float:
    """Forward and backward pass of the network and a pixel loss; on a CPU of one image only."""
    backbone = BackboneParams(name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=8, finer="dilated")
    network = DeepLab(backbones.build(backbone), CLASSES, branches=(12,), kernel=3, width=1024, dropout=0.0)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(1 if device.type == "cpu" else IMAGES, 3, SIDE, SIDE, device=device).mul(255)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(images), GRID, GRID, dtype=torch.int64, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            scores = network(images)
        term = pixel_cross_entropy(scores, labels)
        (term.total / term.weight).backward()

    return best_seconds(step, device)


def boundary_seconds(n_labels: int, device: torch.device) -> float:
    """Softmax, CRF, loss and the gradient of the scores."""
    scores = torch.randn(IMAGES, n_labels, GRID, GRID, device=device, requires_grad=True)
    images = torch.rand(IMAGES, 3, GRID, GRID, device=device).mul(255)

    def step() -> None:
        probabilities = floored_softmax(scores)
        refined = crf.mean_field(-probabilities.detach().log(), images, PARAMS, SCALE)
        term = boundary_loss(probabilities, refined, (0.05, 20.0))
        (term.total / term.weight).backward()

    return best_seconds(step, device)


def full_size(device: torch.device) -> None:
    """Print what a whole picture costs and how its labels agree with those of the lattice."""
    picture, probabilities = scene()
    probabilities = probabilities.to(device)
    print(f"  {WIDTH}x{HEIGHT} pixels, {LABELS} labels, refined in full size:")
    theirs, lattice = lattice_of(picture, probabilities)
    found = "not installed, nothing to compare with" if theirs is None else f"{lattice:.2f} s (one CPU thread)"
    print(f"    pydensecrf2: {found}")
    whole = device.type == "cuda"
    rows, columns = (slice(0, HEIGHT), slice(0, WIDTH)) if whole else (slice(0, CUT_HEIGHT), slice(0, CUT_WIDTH))
    cut, image = probabilities[:, rows, columns], np.ascontiguousarray(picture[rows, columns])
    ratio = HEIGHT * WIDTH / cut[0].numel()
    exact, seconds = timed(lambda: crf.refine(cut, image, PARAMS), device)
    how = "whole" if whole else f"{1000 * seconds:.0f} ms for a cut of {CUT_WIDTH}x{CUT_HEIGHT}, times {ratio:g}^2"
    report("stride 1", seconds * ratio**2, how, exact, lattice_of(image, cut)[0], lattice)
    for stride in (2, 4, 8):
        params = PARAMS.model_copy(update={"stride": stride})
        refined, seconds = timed(lambda params=params: crf.refine(probabilities, picture, params), device)
        report(f"stride {stride}", seconds, "whole", refined, theirs, lattice)


def report(title: str, seconds: float, how: str, ours: Tensor, theirs: Tensor | None, lattice: float) -> None:
    line = f"    {title}: {seconds:.2f} s ({how})"
    if theirs is not None:
        agreement = (ours.argmax(0).cpu() == theirs).double().mean().item()
        line += f", {seconds / lattice:.1f} times pydensecrf2's time; {agreement:.2%} of the labels are the same"
    print(line)


def scene() -> tuple[np.ndarray, Tensor]:
    """Two ellipses of their own colours over textured ground, and coarse, noisy probabilities of the three."""
    draw = np.random.default_rng(0)
    texture = cv2.GaussianBlur(draw.normal(0, 120, (HEIGHT, WIDTH, 3)), (0, 0), 4) + draw.normal(
        0, 6, (HEIGHT, WIDTH, 3)
    )
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    cv2.ellipse(labels, (90, 70), (80, 55), 20.0, 0, 360, 1, -1)
    cv2.ellipse(labels, (330, 220), (110, 90), -30.0, 0, 360, 2, -1)
    colours = np.array([[110, 130, 100], [150, 110, 90], [90, 110, 150]])[labels]
    picture = (colours + texture).round().clip(0, 255).astype(np.uint8)
    planes = (np.arange(LABELS)[:, None, None] == labels).astype(np.float32)
    grid = [cv2.resize(plane, (GRID, GRID), interpolation=cv2.INTER_AREA) for plane in planes]
    coarse = 3 * np.stack(grid) + draw.normal(0, 0.8, (LABELS, GRID, GRID))
    scores = np.stack([cv2.resize(one, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for one in coarse])
    return picture, torch.from_numpy(scores).float().softmax(0)


def lattice_of(picture: np.ndarray, probabilities: Tensor) -> tuple[Tensor | None, float]:
    """The labels that `pydensecrf2` finds and the seconds it takes, or None where it is not installed."""
    try:
        import pydensecrf.densecrf as installed  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None, 0.0
    densecrf: Any = installed
    height, width = picture.shape[:2]
    energies = -probabilities.clamp(min=crf.FLOOR).log().flatten(1).cpu().numpy()

    def infer() -> Tensor:
        lattice = densecrf.DenseCRF2D(width, height, LABELS)
        lattice.setUnaryEnergy(energies)
        lattice.addPairwiseGaussian(sxy=PARAMS.smoothness_xy, compat=PARAMS.smoothness_weight)
        xy, rgb, weight = PARAMS.appearance_xy, PARAMS.appearance_rgb, PARAMS.appearance_weight
        lattice.addPairwiseBilateral(sxy=xy, srgb=rgb, rgbim=picture, compat=weight)
        return torch.tensor(np.array(lattice.inference(PARAMS.iterations))).argmax(0).view(height, width)

    return timed(infer, torch.device("cpu"))


def timed(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """What it gives and the seconds of its only turn."""
    synchronise(device)
    begin = time.perf_counter()
    result = work()
    synchronise(device)
    return result, time.perf_counter() - begin


def best_seconds(step: Callable[[], None], device: torch.device) -> float:
    """The best of several turns, after one that does not count."""
    seconds = []
    for _ in range(TURNS + 1):
        synchronise(device)
        begin = time.perf_counter()
        step()
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
