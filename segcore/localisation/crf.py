"""Fully connected CRFs: mean field with two Gaussian kernels (Kraehenbuehl and Koltun, NIPS 2011), computed exactly.

From energies U, mean field repeats Q_i = softmax(-U_i + sum_m w_m sum_j k_m(i, j) Q_j) (Algorithm 1 with the Potts
model, whose messages of unequal labels differ from these by a constant). The appearance kernel falls with the distance
of two pixels and of their colours, the smoothness kernel with their distance alone. As in the authors' code, each
kernel K is normalised to D^-1/2 K D^-1/2 with the row sums D, and K keeps its diagonal: a pixel sends a message to
itself, which the paper leaves out.

Theirs filters in a permutohedral lattice, an approximation. Here the smoothness kernel is a product of a Gaussian over
rows and one over columns, hence two small matrix products; the appearance kernel of a training grid is held as a
matrix, and that of a whole picture is computed anew in every step, block by block, as attention is.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from segcore.config.labels import CRFParams
from segcore.errors import Problem

FLOOR = 1e-5
"""Least probability that a whole picture's labels are taken to have."""
MASS = 1e-3
"""A label that reaches this probability nowhere in a picture takes no part in its CRF."""
FAR = -50.0
"""Least exponent of a kernel: what is further off adds nothing, but its denormal numbers would be ten times as slow."""
CPU_BLOCK, GPU_BLOCK = 512, 8192
"""Side of the blocks of a kernel: one fits a core's cache, or keeps a GPU busy."""

MOST_PLACES = 400_000
"""Places whose appearance kernel is computed: their square is its cost, here some ten minutes a picture on a core."""
MOST_BYTES = 4e9
"""Memory of the maps of a picture's labels."""
MAPS_HELD = 6
"""Maps of every label that a step of mean field holds: energies, probabilities, messages and what they are made of."""

Filter = Callable[[Tensor], Tensor]
"""Multiplies maps (B K H W), flattened over places, by a kernel matrix."""


@torch.no_grad()
def mean_field(
    unary: Float[Tensor, "B K h w"], images: Float[Tensor, "B 3 h w"], params: CRFParams, scale: float = 1.0
) -> Float[Tensor, "B K h w"]:
    """Probabilities of each label at each place, for grids small enough to hold h w x h w numbers an image.

    `unary` are energies, such as -log of probabilities; `images` are RGB in 0..255 at the size of the grid. `scale` is
    how many pixels lie between two places: it divides both deviations in space (12 on the published training grid of
    41x41). `params.stride` is not used. Computes in float32 or wider, whatever the precision around it.
    """
    with torch.autocast(unary.device.type, enabled=False):
        energies = _wide(unary)
        xy = params.appearance_xy / scale
        left, right = _factors(_features(images.to(energies.dtype), xy, params.appearance_rgb).flatten(2).mT)
        kernel = _gaussian(left, right)
        appearance = _normalised(lambda maps: (maps.flatten(2) @ kernel).view_as(maps), energies)
        smoothness = _normalised(_separable(energies, params.smoothness_xy / scale), energies)
        return _iterate(energies, appearance, smoothness, params)


@torch.no_grad()
def refine(
    probabilities: Float[Tensor, "K H W"], image: UInt8[np.ndarray, "H W 3"], params: CRFParams
) -> Float[Tensor, "K H W"]:
    """Probabilities of a picture's labels at its full size, refined where `probabilities` are.

    They are taken to be at least 1e-5, and labels below 1e-3 in the whole picture come out as 0 everywhere. The kernel
    is never held: N pixels cost N^2 kernel values a step, at stride s a share s^-4 of that. Only appearance messages
    are strided: those of every s-th pixel each way reach the pixels between as a mean over the nine nearest such
    pixels, weighted by likeness of colour, so that they stop at edges; energies, smoothness and the probabilities that
    come out are those of all pixels. At stride 1 nothing is approximated.

    Raises:
        Problem: the picture is too large for it.
    """
    wide = _wide(probabilities)
    strong = (wide.flatten(1).amax(1) >= MASS).nonzero().flatten()
    _check_size(image.shape[1], image.shape[0], len(strong), params.stride)
    refined = torch.zeros_like(wide)
    with torch.autocast(wide.device.type, enabled=False):
        energies = -wide[strong].clamp(min=FLOOR).log()[None]
        picture = torch.tensor(image, dtype=wide.dtype, device=wide.device).permute(2, 0, 1)[None]
        features = _features(picture, params.appearance_xy, params.appearance_rgb)
        appearance = _strided(features, energies, params.stride)
        smoothness = _normalised(_separable(energies, params.smoothness_xy), energies)
        refined[strong] = _iterate(energies, appearance, smoothness, params)[0]
    return refined


def _check_size(width: int, height: int, labels: int, stride: int) -> None:
    """Refuse what would take hours, or more memory than there may be, before it is begun."""
    picture = f"a CRF of a picture of {width}x{height} pixels"
    if (places := math.ceil(height / stride) * math.ceil(width / stride)) > MOST_PLACES:
        wanted = math.ceil(math.sqrt(width * height / MOST_PLACES))
        raise Problem(
            f"{picture} at stride {stride} has {places:,} places and would take hours (at most {MOST_PLACES:,}): set "
            f"its stride in `crfs` to {wanted} or more, or crf: null"
        )
    if (needed := 4 * MAPS_HELD * labels * width * height) > MOST_BYTES:
        raise Problem(
            f"{picture} with {labels} likely classes needs {needed / 1e9:.0f} GB (at most {MOST_BYTES / 1e9:.0f}); "
            "give smaller pictures, or set crf: null"
        )


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _iterate(
    energies: Float[Tensor, "B K H W"], appearance: Filter, smoothness: Filter, params: CRFParams
) -> Float[Tensor, "B K H W"]:
    probabilities = (-energies).softmax(1)
    for _ in range(params.iterations):
        messages = params.appearance_weight * appearance(probabilities)
        messages += params.smoothness_weight * smoothness(probabilities)
        probabilities = messages.sub_(energies).softmax(1)
    return probabilities


def _normalised(kernel: Filter, like: Float[Tensor, "B K H W"]) -> Filter:
    """The filter of D^-1/2 K D^-1/2, with the row sums D of K."""
    norm = kernel(torch.ones_like(like[:, :1])).rsqrt()
    return lambda maps: norm * kernel(norm * maps)


def _features(images: Float[Tensor, "B 3 H W"], xy: float, rgb: float) -> Float[Tensor, "B 5 H W"]:
    """Position and colour of each pixel over their standard deviations, about their mean so that rounding is least."""
    height, width = images.shape[2:]
    rows = torch.arange(height, dtype=images.dtype, device=images.device) - (height - 1) / 2
    columns = torch.arange(width, dtype=images.dtype, device=images.device) - (width - 1) / 2
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(images), -1, -1, -1)
    colours = images - images.mean((2, 3), keepdim=True)
    return torch.cat([places / xy, colours / rgb], dim=1)


def _factors(features: Float[Tensor, "B n 5"]) -> tuple[Float[Tensor, "B n 7"], Float[Tensor, "B n 7"]]:
    """l and r such that l_i . r_j = -|f_i - f_j|^2 / 2: the exponents of a kernel are one matrix product."""
    half = features.square().sum(2, keepdim=True) / -2
    one = torch.ones_like(half)
    return torch.cat([features, half, one], dim=2), torch.cat([features, one, half], dim=2)


def _gaussian(left: Float[Tensor, "B n 7"], right: Float[Tensor, "B m 7"]) -> Float[Tensor, "B n m"]:
    return (left @ right.mT).clamp_(FAR, 0).exp_()


def _separable(like: Float[Tensor, "B K H W"], xy: float) -> Filter:
    """The Gaussian kernel of the distance between pixels: over rows, then over columns."""

    def matrix(size: int) -> Tensor:
        places = torch.arange(size, dtype=like.dtype, device=like.device) / xy
        return ((places[:, None] - places).square() / -2).clamp(min=FAR).exp()

    rows, columns = matrix(like.shape[2]), matrix(like.shape[3])
    return lambda maps: rows @ maps @ columns


def _streamed(features: Float[Tensor, "1 5 H W"]) -> Filter:
    """The kernel of these features, in square blocks that are made, used and dropped.

    The kernel is symmetric: a block off the diagonal serves for its mirror image, too.
    """
    left, right = _factors(features.flatten(2).mT)
    block = CPU_BLOCK if features.device.type == "cpu" else GPU_BLOCK
    blocks = [slice(begin, begin + block) for begin in range(0, left.shape[1], block)]

    def multiply(maps: Tensor) -> Tensor:
        values = maps.flatten(2)
        total = torch.zeros_like(values)
        for number, rows in enumerate(blocks):
            for columns in blocks[number:]:
                kernel = _gaussian(left[:, rows], right[:, columns])
                total[..., columns] += values[..., rows] @ kernel
                if columns is not rows:
                    total[..., rows] += values[..., columns] @ kernel.mT
        return total.view_as(maps)

    return multiply


def _strided(features: Float[Tensor, "1 5 H W"], like: Float[Tensor, "1 K H W"], stride: int) -> Filter:
    """Messages of the normalised appearance kernel between every `stride`-th pixel, brought to the pixels between.

    Those weigh the messages of the nine around them by the kernel itself: likeness of colour decides.
    """
    if stride == 1:
        return _normalised(_streamed(features), like)
    (first_row, rows), (first_column, columns) = (
        _nearest(size, stride, features.device) for size in features.shape[2:]
    )
    chosen = (..., slice(first_row, None, stride), slice(first_column, None, stride))
    nine = [(..., row[:, None], column) for row in rows for column in columns]
    kept = features[chosen]
    exponents = [(features - kept[one]).square().sum(1, keepdim=True) / -2 for one in nine]
    likeness = torch.stack(exponents).softmax(0)
    message = _normalised(_streamed(kept), like[chosen])

    def multiply(maps: Tensor) -> Tensor:
        sent = message(maps[chosen])
        received = torch.zeros_like(maps)
        for weight, one in zip(likeness, nine, strict=True):
            received.addcmul_(weight, sent[one])
        return received

    return multiply


def _nearest(size: int, stride: int, device: torch.device) -> tuple[int, list[Int64[Tensor, " H"]]]:
    """The first of every `stride`-th of `size` places, and for all places the number of the nearest such one, of the
    one before it and of the one behind it."""
    first = min(stride // 2, size - 1)
    last = (size - 1 - first) // stride
    nearest = ((torch.arange(size, device=device) - first) / stride).round().long()
    return first, [(nearest + offset).clamp(0, last) for offset in (-1, 0, 1)]
