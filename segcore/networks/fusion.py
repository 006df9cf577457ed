"""A finished network, rewritten so that it gives the same scores with fewer passes over memory.

On a CPU, a light network spends more time on carrying maps to memory and back than on its convolutions. Two trips go:

* a batch normalisation that follows a convolution is, once its statistics stand still, a factor and a shift of each
  channel, which the weights of the convolution can take over;
* TensorFlow's `SAME` padding, which adds one more zero below and to the right in some of timm's networks, copies the
  map; a kernel with a row and a column of zeros before its own gets by with a padding that is alike on all sides.

Scores change by the rounding of the first alone.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

Convolution = nn.Conv2d | nn.ConvTranspose2d

AFTER: Mapping[str, Callable[[Any], nn.Module]] = {
    "torch.nn.modules.batchnorm.BatchNorm2d": lambda norm: nn.Identity(),
    "segcore.networks.normalisation.SharedBatchNorm2d": lambda norm: nn.Identity(),
    "segcore.networks.normalisation.DecayedBatchNorm2d": lambda norm: nn.Identity(),
    "timm.layers.norm_act.BatchNormAct2d": lambda norm: norm.act,
}
"""What is left of a normalisation in eval mode, once its factor and shift are taken over; other types stay.

By name, as this is loaded with every network, and timm takes a second and 40 MB.
"""

SAME = "timm.layers.conv2d_same.Conv2dSame"

LOOKS = ("__get__", "dim", "size")
"""Functions that see the shape or the type of a tensor and take nothing of what it holds."""


def fuse(network: nn.Module, run: Callable[[], object]) -> None:
    """Rewrite a network in eval mode, in place; it cannot be trained any more.

    Which normalisation follows which convolution is not read from names but seen while `run` runs the network once:
    those are fused that take what a convolution gives, if nothing else takes it. What `run` leaves out stays as it is.
    """
    seen = _Seen(network)
    with torch.no_grad(), seen:
        run()
    for convolution, norm in seen.pairs():
        _take_over(convolution, norm)
        _replace(network, norm, AFTER[_kind(norm)](norm))
    for module in [*network.modules()]:
        if isinstance(module, nn.Conv2d) and _kind(module) == SAME and module.dilation == (1, 1):
            _replace(network, module, SamePadded(module))


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


class SamePadded(nn.Conv2d):
    """A convolution that pads by the rule `SAME`, without a padded copy of the map.

    Args:
        like: timm's convolution of this kind, whose weights it takes.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            _two(like.kernel_size),
            _two(like.stride),
            groups=like.groups,
            bias=like.bias is not None,
            device="meta",
        )
        self.weight, self.bias = like.weight, like.bias

    def forward(self, input: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        sides = zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
        rows, columns = (max((ceil(side / step) - 1) * step + kernel - side, 0) for side, kernel, step in sides)
        odd = rows % 2, columns % 2
        if any(odd) and input.device.type != "cpu":  # where kernels of even sizes may be the slow ones
            around = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
            return F.conv2d(F.pad(input, around), self.weight, self.bias, self.stride, 0, 1, self.groups)
        # An odd number of zeros has one more at the end; a zero before the kernel moves it there.
        weight = F.pad(self.weight, (odd[1], 0, odd[0], 0)) if any(odd) else self.weight
        padding = ((rows + 1) // 2, (columns + 1) // 2)
        return F.conv2d(input, weight, self.bias, self.stride, padding, 1, self.groups)


def _two(numbers: Sequence[int]) -> tuple[int, int]:
    rows, columns = numbers
    return rows, columns


class _Seen(TorchFunctionMode):
    """Who gives a tensor to whom, as far as convolutions and normalisations go."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        modules = [*network.modules()]
        self.by_weight = {id(module.weight): module for module in modules if isinstance(module, Convolution)}
        self.by_mean = {
            id(module.running_mean): module
            for module in modules
            if _kind(module) in AFTER and isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        }
        self.given: dict[int, tuple[Convolution, Tensor]] = {}
        self.takers: dict[Convolution, list[nn.BatchNorm2d | None]] = defaultdict(list)
        """Of each convolution all that took what it gave, a normalisation or something else."""
        self.givers: dict[nn.BatchNorm2d, list[Convolution | None]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in LOOKS:
            return given
        norm = self.by_mean.get(id(args[1])) if func is F.batch_norm else None
        for one in _tensors((args, kwargs)):
            giver = self.given.get(id(one), (None, None))[0]
            if giver is not None:
                self.takers[giver].append(norm)
        if norm is not None:
            self.givers[norm].append(self.given.get(id(args[0]), (None, None))[0])
        if func in (torch.conv2d, torch.conv_transpose2d) and (giver := self.by_weight.get(id(args[1]))) is not None:
            self.given[id(given)] = giver, given  # kept, so that no other tensor gets its id
        return given

    def pairs(self) -> list[tuple[Convolution, nn.BatchNorm2d]]:
        """Each convolution with the normalisation that took all that it gave, and took nothing else."""
        found = []
        for convolution, takers in self.takers.items():
            norm = takers[0]
            if norm is None or not _fits(convolution) or any(taker is not norm for taker in takers):
                continue
            if all(giver is convolution for giver in self.givers[norm]):
                found.append((convolution, norm))
        return found


def _tensors(some: Any) -> list[Tensor]:
    """The tensors in nested arguments."""
    if isinstance(some, Tensor):
        return [some]
    if isinstance(some, Mapping):
        some = some.values()
    elif not isinstance(some, (list, tuple)):
        return []
    return [tensor for one in some for tensor in _tensors(one)]


def _fits(convolution: Convolution) -> bool:
    return isinstance(convolution, nn.Conv2d) or convolution.groups == 1


def _take_over(convolution: Convolution, norm: nn.BatchNorm2d) -> None:
    """Put the factor and the shift of each channel into the weights, worked out in float64."""
    parts = (convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, variance, factor, shift = (None if part is None else part.detach().double() for part in parts)
    transposed = isinstance(convolution, nn.ConvTranspose2d)
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, factor, shift, transposed)  # pyright: ignore
    for name, value in zip(("weight", "bias"), fused, strict=True):
        own = convolution.weight
        value = value.detach().to(own.dtype)
        if name == "weight":
            value = value.contiguous(memory_format=torch.channels_last)
        setattr(convolution, name, nn.Parameter(value, requires_grad=own.requires_grad))


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another's place, wherever it stands."""
    for parent in [*network.modules()]:
        for name, child in [*parent.named_children()]:
            if child is old:
                setattr(parent, name, new)
