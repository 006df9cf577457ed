"""FickleNet's head, whose score of a tag is the mean over windows that each see a random selection of their units.

Lee, Kim, Lee, Lee and Yoon, "FickleNet: Weakly and Semi-supervised Semantic Image Segmentation using Stochastic
Inference", CVPR 2019, section 3.1. The published way copies the s x s neighbourhood of every place of the top map x
into a block of its own (map expansion), drops places of the blocks for all channels alike, and convolves with stride s.
It and plain sliding windows are kept here as readable references; what is used by default rests on this:

    S[c] = b[c] + 1/n sum_q sum_o m[q, o] sum_k W[c, k, o] x[k, q + o]       q: the n windows, o: offsets in a window
         = b[c] + sum_o sum_k W[c, k, o] z[k, o]       with z[k, o] = 1/n sum_u m[u - o, o] x[k, u]       u: places
         = b[c] + 1/n sum_u sum_o m[u - o, o] a[c, o, u]       with a[c, o, u] = sum_k W[c, k, o] x[k, u]

as the mask m is shared by the channels and nothing but sums stands between x and S. So training pools x under masks and
then multiplies once by W (the second line), and since x_k dS/dx_k = x_k 1/n sum_o m[u - o, o] W[c, k, o], the
localisation map of a pass (equation 1 of the paper)

    M[c, u] = ReLU(sum_k x[k, u] dS[c]/dx[k, u]) = ReLU(1/n sum_o m[u - o, o] a[c, o, u])

is a masked sum of a, which no pass changes: no expansion, no backward pass. Ordinary dropout of single units, m[k, u],
has the same form with channels in the place of offsets: M[c, u] = ReLU(sum_k m[k, u] x[k, u] dS[c]/dx[k, u]), where the
derivative is that of the score without dropout.

Masks are held by the place that is seen, `kept[o, u] = m[u - o, o]`; windows reach over the border onto zeros.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.classifiers import HiddenStochasticParams, StochasticParams
from segcore.config.labels import Selection
from segcore.networks.dropout import KeyedMask


def inside(kernel: int, grid: tuple[int, int], device: torch.device) -> Bool[Tensor, "U h w"]:
    """Whether there is a window that sees the place at the offset: its centre must lie on the grid."""
    offsets = torch.arange(kernel, device=device)[:, None] - kernel // 2
    rows, columns = (torch.arange(side, device=device) - offsets for side in grid)
    rows, columns = (rows >= 0) & (rows < grid[0]), (columns >= 0) & (columns < grid[1])
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def by_window(kept: Float[Tensor, "B U h w"], kernel: int) -> Float[Tensor, "B U h w"]:
    """m[q, o] from `kept[o, q + o]`; places beyond the border count as kept, as they are zero anyway."""
    h, w = kept.shape[2:]
    padded = F.pad(kept, (kernel // 2,) * 4, value=1.0)
    shifts = [divmod(offset, kernel) for offset in range(kernel**2)]
    return torch.stack([padded[:, o, i : i + h, j : j + w] for o, (i, j) in enumerate(shifts)], dim=1)


def factorised_scores(
    x: Float[Tensor, "B K h w"],
    weight: Float[Tensor, "L K s s"],
    bias: Float[Tensor, " L"],
    kept: Float[Tensor, "#B U h w"],
) -> Float[Tensor, "B L"]:
    """Features pooled under the mask of each offset, then one product with the kernel."""
    h, w = x.shape[2:]
    seen = kept * inside(weight.shape[2], (h, w), x.device)
    pooled = x.flatten(2) @ seen.flatten(2).transpose(1, 2).to(x.dtype) / (h * w)
    return F.linear(pooled.flatten(1), weight.flatten(1), bias)


def expanded_scores(
    x: Float[Tensor, "B K h w"],
    weight: Float[Tensor, "L K s s"],
    bias: Float[Tensor, " L"],
    kept: Float[Tensor, "#B U h w"],
) -> Float[Tensor, "B L"]:
    """As published: the expanded map, K x s h x s w, under its mask, and a convolution of stride s."""
    h, w = x.shape[2:]
    s = weight.shape[2]
    windows = F.unfold(x, s, padding=s // 2).unflatten(1, (-1, s, s)).unflatten(-1, (h, w))
    dropped = windows * by_window(kept, s).unflatten(1, (s, s))[:, None]
    expanded = dropped.permute(0, 1, 4, 2, 5, 3).reshape(*x.shape[:2], h * s, w * s)
    return F.conv2d(expanded, weight, bias, stride=s).mean((2, 3))


def naive_scores(
    x: Float[Tensor, "B K h w"],
    weight: Float[Tensor, "L K s s"],
    bias: Float[Tensor, " L"],
    kept: Float[Tensor, "#B U h w"],
) -> Float[Tensor, "B L"]:
    """One window after the other."""
    h, w = x.shape[2:]
    s = weight.shape[2]
    masks, padded = by_window(kept, s).unflatten(1, (s, s)), F.pad(x, (s // 2,) * 4)
    total = x.new_zeros(len(x), len(weight))
    for i in range(h):
        for j in range(w):
            window = padded[:, :, i : i + s, j : j + s] * masks[:, None, :, :, i, j]
            total = total + torch.einsum("bkst,lkst->bl", window, weight)
    return total / (h * w) + bias


Scores = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
SCORES: dict[str, Scores] = {
    "factorised": factorised_scores,
    "expanded": expanded_scores,
    "naive": naive_scores,
}


class StochasticHead(nn.Module):
    """Scores of the tags of an image from its top map (section 3.1).

    In training every call draws new selections, by the key of the step. In eval mode the scores are their expectation,
    which is deterministic: all units are kept, and multiplied by the rate at which training keeps them where training
    does not divide by it. The maps, which need selections at inference too, are made by `localisation.localise`.
    """

    def __init__(self, channels: int, n_tags: int, params: StochasticParams | HiddenStochasticParams) -> None:
        super().__init__()
        self.params = params
        self.kernel = params.kernel
        width = params.hidden if isinstance(params, HiddenStochasticParams) else channels
        self.hidden = nn.Conv2d(channels, width, 1) if isinstance(params, HiddenStochasticParams) else None
        self.score = nn.Conv2d(width, n_tags, params.kernel, padding=params.kernel // 2)
        self.mask = KeyedMask(params.rate)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        if self.hidden is not None:
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
            nn.init.zeros_(self.hidden.bias)  # type: ignore[arg-type]

    def units(self, top: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        """What the windows select from, and what maps are made of: the top map, or its hidden layer."""
        return top if self.hidden is None else F.relu(self.hidden(top))

    @property
    def smallest_map(self) -> int:
        """Cells a side that a top map must have."""
        return 1

    def weight(self, selection: Selection, rate: float) -> Float[Tensor, "L K s s"]:
        """The kernel, times what kept units are multiplied by under a selection.

        Units that are selected at random are divided by 1 - rate if the head rescales. `deterministic` is the
        expectation over the selections of training, which multiplies them by its keep rate if the head does not.
        """
        params, factor = self.params, 1.0
        selected = params.selection if selection == "deterministic" else selection
        if selection != "deterministic":
            factor = 1 / (1 - rate) if params.rescale else 1.0
        elif selected != "deterministic":
            factor = 1.0 if params.rescale else 1 - params.rate
        factors = torch.full_like(self.score.weight[0, 0], factor)
        if selected == "stochastic":
            factors[self.kernel // 2, self.kernel // 2] = 1  # the centre is always kept
        return self.score.weight * factors

    def forward(self, top: Float[Tensor, "B C h w"]) -> Float[Tensor, "B L"]:
        """The score of every tag, before the sigmoid."""
        params, top = self.params, self.units(top)
        selection = params.selection if self.training and params.rate > 0 else "deterministic"
        kept = top.new_ones(1, self.kernel**2, *top.shape[2:])
        if selection == "general":
            top = top * self.mask(tuple(top.shape), top.device)
        if selection == "stochastic":
            drawn = self.mask((len(top), *kept.shape[1:]), top.device)
            drawn[:, self.kernel**2 // 2] = True
            kept = drawn.to(top.dtype)
        assert self.score.bias is not None
        return SCORES[params.form](top, self.weight(selection, params.rate), self.score.bias, kept)


def terms(
    top: Float[Tensor, "B K h w"],
    weight: Float[Tensor, "L K s s"],
    image: Int64[Tensor, " P"],
    tag: Int64[Tensor, " P"],
    per_channel: bool,
) -> Float[Tensor, "N U P"]:
    """What the map of a pass is the masked sum of, for pairs of an image and a tag (0..L-1), at the N places.

    The units U are the offsets of a window, a[c, o, u] / n, or with `per_channel` the channels, x_k dS/dx_k.
    """
    h, w = top.shape[2:]
    x = top.flatten(2)[image]
    kernel = weight[tag].flatten(2)
    seen = inside(weight.shape[2], (h, w), top.device).flatten(1).to(top.dtype) / (h * w)
    if per_channel:
        return (x * (kernel @ seen)).permute(2, 1, 0).contiguous()
    return (kernel.transpose(1, 2) @ x).mul_(seen).permute(2, 1, 0).contiguous()


def factorised_maps(parts: Float[Tensor, "N U P"], masks: Float[Tensor, "N n U"]) -> Float[Tensor, "N n P"]:
    """The maps of n passes for P pairs, at the N places: a product of small matrices for each place."""
    return torch.bmm(masks, parts).relu_()


def autograd_maps(
    form: str,
    top: Float[Tensor, "B K h w"],
    weight: Float[Tensor, "L K s s"],
    image: Int64[Tensor, " P"],
    tag: Int64[Tensor, " P"],
    masks: Float[Tensor, "N n U"],
    per_channel: bool,
) -> Float[Tensor, "N n P"]:
    """The same as published: for each mask a forward pass of the `expanded` or `naive` form, and one back a pair."""
    h, w = top.shape[2:]
    bias, everything = top.new_zeros(len(weight)), top.new_ones(1, weight[0, 0].numel(), h, w)
    maps = []
    for mask in masks.permute(1, 2, 0).unflatten(2, (h, w)):
        x = top.detach().requires_grad_()
        with torch.enable_grad():
            seen, kept = (x * mask, everything) if per_channel else (x, mask[None])
            scores = SCORES[form](seen, weight, bias, kept)
            pairs = zip(image.tolist(), tag.tolist(), strict=True)
            gradients = [torch.autograd.grad(scores[i, c], x, retain_graph=True)[0][i] for i, c in pairs]
        maps.append((x.detach()[image] * torch.stack(gradients)).sum(1).relu().flatten(1).T)
    return torch.stack(maps, dim=1)
