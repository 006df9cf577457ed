"""The stochastic head and its maps: three forms that give the same, masks that depend on their key alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segcore.config.classifiers import StochasticParams
from segcore.config.labels import Mean, Quantile, Union
from segcore.localisation import mask_bank
from segcore.localisation.aggregation import BINS, Aggregate, Merged, shares_of
from segcore.localisation.maps import View, localise, maps_of
from segcore.localisation.mask_bank import MaskBank
from segcore.networks import dropout, stochastic_head
from segcore.networks.stochastic_head import StochasticHead

CASES = [  # batch, channels, height, width, tags, kernel, rate
    (1, 1, 1, 1, 1, 1, 0.9),
    (2, 3, 4, 6, 2, 3, 0.0),
    (3, 4, 5, 3, 3, 3, 0.5),
    (1, 2, 2, 3, 4, 9, 0.9),
    (2, 5, 7, 6, 3, 5, 0.7),
    (2, 3, 10, 11, 2, 9, 0.9),
]
SELECTIONS = ["stochastic", "general", "deterministic"]
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def head_of(channels: int = 3, n_tags: int = 2, seed: int = 0, **changes: Any) -> StochasticHead:
    """A head in float64 with weights of size 1."""
    values = {"kind": "stochastic", "kernel": 3, "selection": "stochastic", "rate": 0.5, "rescale": False}
    params = StochasticParams.model_validate(values | {"form": "factorised"} | changes)
    torch.manual_seed(seed)
    head = StochasticHead(channels, n_tags, params).double()
    nn.init.normal_(head.score.weight)
    assert head.score.bias is not None
    nn.init.normal_(head.score.bias)
    return head


def bank_of(head: StochasticHead, grid: tuple[int, int], selection: str, rate: float, passes: int = 4) -> MaskBank:
    """The masks of a few passes, in float64."""
    units, centre = head.kernel**2, head.kernel**2 // 2
    if selection == "general":
        return MaskBank(5, passes, grid, head.score.in_channels, rate, None).to(torch.device("cpu"), torch.float64)
    rate = 0.0 if selection == "deterministic" else rate
    return MaskBank(5, passes, grid, units, rate, centre).to(torch.device("cpu"), torch.float64)


def scores_and_gradients(form: str, case: tuple[Any, ...], selection: str, rescale: bool) -> list[Tensor]:
    """What one training step sees: scores, and the gradients of features, weight and bias."""
    batch, channels, height, width, tags, kernel, rate = case
    head = head_of(channels, tags, kernel=kernel, rate=rate, selection=selection, form=form, rescale=rescale).train()
    dropout.set_key(head, 7, rank=0, world=1)
    top = torch.randn(batch, channels, height, width, dtype=torch.float64).requires_grad_()
    scores = head(top)
    (scores * torch.randn_like(scores)).sum().backward()
    return [scores.detach(), *(x.grad for x in (top, head.score.weight, head.score.bias) if x is not None)]  # type: ignore[misc]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_scores_and_gradients_are_the_same_in_every_form(case: tuple[Any, ...], selection: str) -> None:
    for rescale in (False, True):
        published = scores_and_gradients("expanded", case, selection, rescale)
        for form in ("factorised", "naive"):
            for ours, theirs in zip(scores_and_gradients(form, case, selection, rescale), published, strict=True):
                torch.testing.assert_close(ours, theirs, **EXACT)
        assert published[1].any() or selection == "general"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_maps_are_the_same_in_every_form(case: tuple[Any, ...], selection: Any) -> None:
    batch, channels, height, width, tags, kernel, rate = case
    head = head_of(channels, tags, kernel=kernel, rate=0.3, rescale=True)
    top = torch.randn(batch, channels, height, width, dtype=torch.float64).relu()
    image, tag = torch.arange(3) % batch, torch.arange(3) % tags
    bank = bank_of(head, (height, width), selection, rate, passes=2)
    maps = {
        form: torch.cat(list(maps_of(head, top, image, tag, bank, selection, rate, form)), dim=1)
        for form in ("factorised", "expanded", "naive")
    }
    assert maps["factorised"].shape == (height * width, 2, 3)
    torch.testing.assert_close(maps["factorised"], maps["expanded"], **EXACT)
    torch.testing.assert_close(maps["factorised"], maps["naive"], **EXACT)


def test_a_map_small_enough_to_do_by_hand() -> None:
    """One channel on a 1x3 map, a kernel of three columns that matter, and a mask."""
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 1] = torch.tensor([1.0, 10.0, -100.0])
    top = torch.tensor([[[[2.0, 3.0, 5.0]]]], dtype=torch.float64)
    kept = torch.ones(9, 1, 3, dtype=torch.float64)
    kept[3, 0, 1] = 0  # the place in the middle is not seen by the window to its right
    # windows: 10*2 - 100*3, 2 + 10*3 - 100*5, 0 (dropped) + 10*5
    scores = stochastic_head.factorised_scores(top, weight, torch.tensor([0.5], dtype=torch.float64), kept[None])
    assert scores.item() == pytest.approx((-280 - 468 + 50) / 3 + 0.5)
    # The place u is seen by the windows u + 1 (weight 1), u (10) and u - 1 (-100), where there are such windows.
    parts = stochastic_head.terms(top, weight, torch.tensor([0]), torch.tensor([0]), per_channel=False)
    maps = stochastic_head.factorised_maps(parts, kept.flatten(1).T[:, None])
    expected = torch.tensor([2 * 11, 0, 0], dtype=torch.float64) / 3
    torch.testing.assert_close(maps.flatten(), expected)


def test_what_is_kept_is_divided_by_the_keep_rate_but_for_the_centre() -> None:
    for rescale, factor in ((True, 10.0), (False, 1.0)):
        head = head_of(rate=0.9, rescale=rescale)
        factors = head.weight("stochastic", 0.9) / head.score.weight
        assert factors[..., 1, 1].unique().tolist() == [1]
        factors[..., 1, 1] = factor
        torch.testing.assert_close(factors, torch.full_like(factors, factor))
        torch.testing.assert_close(head.weight("general", 0.9), head.score.weight * factor)


@pytest.mark.parametrize("selection", ["stochastic", "general"])
@pytest.mark.parametrize("rescale", [True, False])
def test_the_scores_of_eval_mode_are_the_expectation(selection: str, rescale: bool) -> None:
    head = head_of(selection=selection, rate=0.6, rescale=rescale)
    top = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    expected = head.eval()(top)
    assert torch.equal(expected, head(top))
    head.train()
    dropout.set_key(head, 1, rank=0, world=1)
    drawn = head(top.expand(4000, -1, -1, -1)).detach()
    spread = drawn.std(0) / 4000**0.5
    assert ((drawn.mean(0) - expected[0]).abs() < 5 * spread).all()


def test_no_rate_and_no_selection_are_the_same_as_all_units() -> None:
    top = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    plain = head_of(selection="deterministic", rate=0.9)
    as_convolution = nn.functional.conv2d(top, plain.score.weight, plain.score.bias, padding=1).mean((2, 3))
    torch.testing.assert_close(plain.train()(top), as_convolution)
    torch.testing.assert_close(head_of(rate=0.0).train()(top), as_convolution)
    assert head_of(n_tags=7).smallest_map == 1


def test_processes_together_draw_the_selections_of_one() -> None:
    for selection in ("stochastic", "general"):
        head = head_of(selection=selection).train()
        top = torch.randn(4, 3, 4, 5, dtype=torch.float64)
        dropout.set_key(head, 3, rank=0, world=1)
        whole = head(top)
        for rank in (0, 1):
            dropout.set_key(head, 3, rank=rank, world=2)
            torch.testing.assert_close(head(top[rank::2]), whole[rank::2])
        dropout.set_key(head, 4, rank=0, world=1)
        assert not torch.allclose(head(top), whole)


def test_a_new_head_starts_small() -> None:
    params = StochasticParams(
        kind="stochastic", kernel=9, selection="stochastic", rate=0.9, rescale=False, form="factorised"
    )
    head = StochasticHead(64, 20, params)
    assert head.score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.score.bias is not None
    assert not head.score.bias.any()


def masks(bank: MaskBank) -> Tensor:
    return torch.cat(list(bank.chunks()), dim=1)


def test_a_bit_depends_on_seed_pass_place_and_unit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = masks(MaskBank(1, 5, (6, 7), 9, 0.5, 4))
    assert torch.equal(whole, masks(MaskBank(1, 5, (6, 7), 9, 0.5, 4)))
    other = masks(MaskBank(1, 3, (4, 5), 9, 0.5, 4))
    assert torch.equal(other.unflatten(0, (4, 5)), whole.unflatten(0, (6, 7))[:4, :5, :3])
    assert not torch.equal(whole, masks(MaskBank(2, 5, (6, 7), 9, 0.5, 4)))
    for one in range(4):
        assert not torch.equal(whole[:, one], whole[:, one + 1])
    monkeypatch.setitem(mask_bank.NUMBERS_AT_ONCE, "cpu", 2 * 6 * 7 * 9)
    bank = MaskBank(1, 5, (6, 7), 9, 0.5, 4)
    assert [chunk.shape[1] for chunk in bank.chunks()] == [2, 2, 1]
    assert torch.equal(whole, masks(bank))


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_units_are_kept_at_their_rate_and_the_centre_always(rate: float) -> None:
    kept = masks(MaskBank(3, 20, (15, 15), 25, rate, 12))
    assert kept[:, :, 12].all()
    others = torch.cat([kept[:, :, :12], kept[:, :, 13:]], dim=2)
    for axes in ((0, 1), (0, 2), (1, 2)):  # no unit, pass or place is favoured
        shares = others.mean(axes)
        deviation = (rate * (1 - rate) / (others.numel() / len(shares))) ** 0.5
        assert (shares - (1 - rate)).abs().max() <= 5 * deviation
    flat = np.corrcoef(others.permute(1, 0, 2).flatten(1).numpy()) if rate else np.eye(20)
    assert np.abs(flat - np.eye(20)).max() < 0.08, "passes are independent"


def merged_of(maps: Tensor, peak: Tensor | None, *sizes: int) -> Merged:
    """Maps of one row of places, merged in chunks."""
    merged = Aggregate(bins=True)
    for chunk in maps.clone().split(list(sizes), dim=1):
        merged.add(*shares_of(chunk, peak))
    return merged.merged((1, len(maps)))


def test_maps_are_merged_as_they_come() -> None:
    """Against the plain statement over all maps at once."""
    torch.manual_seed(0)
    maps = torch.randn(12, 6, 3).relu()
    maps[:, 2, 0] = 0  # one map of the first pair is empty
    maps[:, :, 2] = 0  # and all of the last
    shares = maps / maps.amax(0).clamp(min=1e-30)
    merged = merged_of(maps, None, 1, 3, 2)
    members = merged.scores(Union(kind="union"))[:, 0] > 0.7
    assert torch.equal(members, (shares > 0.7).any(1).T)
    assert members[:2].any()
    assert not members[2].any()
    mean = (shares.sum(1) / torch.tensor([5.0, 6.0, 1.0])).T
    torch.testing.assert_close(merged.scores(Mean(kind="mean"))[:, 0], mean)
    assert torch.equal(merged.ranks(Union(kind="union")), merged.mean), "the mean decides among members of a union"
    whole = merged_of(maps, None, 6)
    assert whole.histogram is not None
    assert merged.histogram is not None
    assert torch.equal(merged.histogram, whole.histogram)
    peak = maps.amax((0, 1))
    merged = merged_of(maps, peak, 6)
    assert torch.equal(merged.greatest[:, 0] > 0.7, ((maps / peak.clamp(min=1e-30)) > 0.7).any(1).T)


@pytest.mark.parametrize("q", [0.05, 0.3, 0.5, 0.9, 0.999])
def test_quantiles_are_off_by_less_than_a_bin(q: float) -> None:
    torch.manual_seed(1)
    maps = torch.rand(40, 200, 2) ** 3
    maps[:, :20, 1] = 0  # empty maps do not count
    shares = maps / maps.amax(0).clamp(min=1e-30)
    found = merged_of(maps, None, 70, 130).scores(Quantile(kind="quantile", q=q))[:, 0]
    for pair, values in enumerate((shares[:, :, 0], shares[:, 20:, 1])):
        rank = math.ceil(q * values.shape[1])
        true = values.sort(dim=1).values[:, rank - 1]
        assert (found[pair] - true).abs().max() < 1 / BINS
    assert not merged_of(0 * maps, None, 200).scores(Quantile(kind="quantile", q=q)).any()


@pytest.mark.parametrize("normalise", ["map", "image"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_localisation_is_the_same_in_every_form(
    selection: Any, normalise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = head_of(n_tags=4, kernel=5)
    top = torch.randn(3, 3, 6, 7, dtype=torch.float64).relu()
    image, tag = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0])
    bank = bank_of(head, (6, 7), selection, 0.8)
    monkeypatch.setitem(mask_bank.NUMBERS_AT_ONCE, "cpu", 3 * 6 * 7 * 25)
    monkeypatch.setattr("segcore.localisation.maps.PAIRS_AT_ONCE", 2)
    found = {
        form: localise(head, [View(top, bank)], image, tag, selection, 0.8, form, normalise)
        for form in ("factorised", "expanded", "naive")
    }
    members, means = found["factorised"].greatest > 0.35, found["factorised"].mean
    assert members.shape == means.shape == (3, 6, 7)
    assert members.flatten(1).any(1).all()
    assert not members.all()
    for form in ("expanded", "naive"):
        assert torch.equal(members, found[form].greatest > 0.35)
        torch.testing.assert_close(means, found[form].mean, **EXACT)
    if normalise == "map":
        views = [View(top[2:], bank)]
        alone = localise(head, views, image[:1], tag[2:], selection, 0.8, "factorised", normalise)
        assert torch.equal(alone.greatest[0] > 0.35, members[2]), "other images and tags change nothing"


def test_more_passes_find_more_and_no_tags_find_nothing() -> None:
    head = head_of(kernel=5)
    top = torch.randn(1, 3, 8, 8, dtype=torch.float64).relu()
    some = torch.tensor([0])
    banks = [bank_of(head, (8, 8), "stochastic", 0.9, passes) for passes in (1, 30)]
    few, many = (
        localise(head, [View(top, bank)], some, some, "stochastic", 0.9, "factorised", "map").greatest > 0.35
        for bank in banks
    )
    assert (many | ~few).all()
    assert many.sum() > few.sum()
    none = torch.zeros(0, dtype=torch.int64)
    nothing = localise(head, [View(top, banks[0])], none, none, "stochastic", 0.9, "factorised", "map", bins=True)
    assert nothing.greatest.shape == nothing.mean.shape == (0, 8, 8)
    assert nothing.scores(Quantile(kind="quantile", q=0.5)).shape == (0, 8, 8)


def test_no_two_passes_are_alike_however_many_there_are() -> None:
    """The paper goes up to 300 maps."""
    drawn = [mask_bank.keep(0, number, (3, 3), 81, 0.5).tobytes() for number in (*range(300), 70_000)]
    assert len(set(drawn)) == 301
