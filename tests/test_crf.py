"""Mean field against its definition pixel by pixel, and against the lattice that others use."""

import numpy as np
import pytest
import torch
from torch import Tensor

from segcore.config.labels import CRFParams
from segcore.errors import Problem
from segcore.localisation import crf


def params_of(**changes: float) -> CRFParams:
    published = {
        "iterations": 10,
        "appearance_weight": 10.0,
        "appearance_xy": 80.0,
        "appearance_rgb": 13.0,
        "smoothness_weight": 3.0,
        "smoothness_xy": 3.0,
        "stride": 1,
    }
    return CRFParams.model_validate({**published, **changes})


def by_definition(energies: np.ndarray, image: np.ndarray, params: CRFParams, scale: float) -> np.ndarray:
    """Mean field of one image with both kernels written out, pair by pair; energies K h w, image 3 h w."""
    n_labels, height, width = energies.shape
    places = [(row, column) for row in range(height) for column in range(width)]
    both = np.zeros((2, len(places), len(places)))
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            apart = (row - other_row) ** 2 + (column - other_column) ** 2
            colours = ((image[:, row, column] - image[:, other_row, other_column]) ** 2).sum()
            near = apart / (params.appearance_xy / scale) ** 2
            both[0, i, j] = np.exp(-near / 2 - colours / params.appearance_rgb**2 / 2)
            both[1, i, j] = np.exp(-apart / (params.smoothness_xy / scale) ** 2 / 2)
    norms = 1 / np.sqrt(both.sum(2))
    kernels = norms[:, :, None] * both * norms[:, None]
    kernel = params.appearance_weight * kernels[0] + params.smoothness_weight * kernels[1]
    unary = energies.reshape(n_labels, -1)
    logits = -unary
    for _ in range(params.iterations):
        probabilities = np.exp(logits) / np.exp(logits).sum(0)
        logits = probabilities @ kernel - unary
    return (np.exp(logits) / np.exp(logits).sum(0)).reshape(energies.shape)


def scene(n_labels: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Noisy probabilities K h w (float64) of upright stripes and a picture h w 3 in which each has its colour."""
    draw = np.random.default_rng(seed)
    stripe = np.arange(width) * n_labels // width
    colours = draw.integers(40, 216, (n_labels, 3))[stripe]
    picture = colours + draw.normal(0, 8, (height, width, 3))
    scores = 2 * (np.arange(n_labels)[:, None] == stripe)[:, None] + draw.normal(0, 1.5, (n_labels, height, width))
    return torch.from_numpy(scores).softmax(0), picture.round().clip(0, 255).astype(np.uint8)


def as_images(picture: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].to(dtype)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_mean_field_is_its_definition(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    probabilities, picture = scene(2 + seed, 5 + seed, 9 - seed, seed)
    params = params_of(iterations=1 + 3 * seed)
    energies = -probabilities.log()
    expected = by_definition(energies.numpy(), picture.transpose(2, 0, 1).astype(float), params, scale=12.0)
    found = crf.mean_field(energies[None].to(dtype), as_images(picture, dtype), params, scale=12.0)
    assert found.dtype == dtype
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=tolerance)


def test_images_of_a_batch_do_not_touch() -> None:
    (first, one), (second, other) = scene(3, 6, 7, 0), scene(3, 6, 7, 1)
    energies = -torch.stack([first, second]).log()
    images = torch.cat([as_images(one, torch.float64), as_images(other, torch.float64)])
    together = crf.mean_field(energies, images, params_of(), 12.0)
    alone = [crf.mean_field(energies[[n]], images[[n]], params_of(), 12.0)[0] for n in (0, 1)]
    torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_picture_in_blocks_is_the_definition(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf, "CPU_BLOCK", 7 + seed)  # 63 pixels: whole blocks, and a last one that is not
    probabilities, picture = scene(3, 7, 9, seed)
    energies = -probabilities.clamp(min=1e-5).log().numpy()
    expected = by_definition(energies, picture.transpose(2, 0, 1).astype(float), params_of(), scale=1.0)
    np.testing.assert_allclose(crf.refine(probabilities, picture, params_of()), expected, rtol=0, atol=1e-10)
    single = crf.refine(probabilities.float(), picture, params_of())
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5)


def test_labels_without_mass_stay_out() -> None:
    probabilities, picture = scene(2, 8, 8)
    with_traces = torch.stack([0.9995 * probabilities[0], torch.full((8, 8), 5e-4), 0.9995 * probabilities[1]])
    refined = crf.refine(with_traces, picture, params_of())
    assert not refined[1].any()
    torch.testing.assert_close(refined[[0, 2]], crf.refine(0.9995 * probabilities, picture, params_of()))


def test_one_label_alone_is_certain() -> None:
    refined = crf.refine(torch.eye(3)[1][:, None, None].expand(3, 4, 5), np.zeros((4, 5, 3), np.uint8), params_of())
    torch.testing.assert_close(refined, torch.eye(3)[1][:, None, None].expand(3, 4, 5))


def test_strided_refinement_keeps_to_edges_and_near_the_exact() -> None:
    """Stripes whose borders lie between the strided pixels, with colours far apart."""
    probabilities, _ = scene(2, 24, 30)
    left = np.arange(30) < 13
    picture = np.where(left[:, None], (200, 60, 60), (60, 60, 200)).astype(np.uint8)[None].repeat(24, 0)
    stripes = torch.from_numpy(np.where(left, 0.7, 0.3)).expand(24, 30)
    noisy = (0.6 * torch.stack([stripes, 1 - stripes]) + 0.4 * probabilities).float()
    exact = crf.refine(noisy, picture, params_of())
    strided = crf.refine(noisy, picture, params_of(stride=4))
    assert (noisy.argmax(0).numpy() != ~left).any()
    np.testing.assert_array_equal(exact.argmax(0), (~left)[None].repeat(24, 0))
    np.testing.assert_array_equal(strided.argmax(0), exact.argmax(0))
    assert (strided - exact).abs().mean() < 0.02


@pytest.mark.parametrize(("height", "width", "stride"), [(1, 1, 4), (2, 9, 4), (5, 3, 8), (7, 6, 2)])
def test_any_size_at_any_stride(height: int, width: int, stride: int) -> None:
    probabilities, picture = scene(2, height, width)
    refined = crf.refine(probabilities.float(), picture, params_of(stride=stride))
    torch.testing.assert_close(refined.sum(0), torch.ones(height, width))


def test_without_weights_nothing_moves() -> None:
    probabilities, picture = scene(3, 5, 6)
    params = params_of(appearance_weight=0.0, smoothness_weight=0.0)
    torch.testing.assert_close(crf.refine(probabilities, picture, params), probabilities)


def test_low_precision_around_it_changes_nothing() -> None:
    probabilities, picture = scene(3, 6, 6)
    energies, images = -probabilities.float().log()[None], as_images(picture, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = crf.mean_field(energies, images, params_of(), 12.0)
        assert crf.mean_field(energies.bfloat16(), images, params_of(), 12.0).dtype == torch.float32
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, crf.mean_field(energies, images, params_of(), 12.0), rtol=0, atol=0)


def test_no_gradient_passes() -> None:
    energies = torch.rand(1, 2, 4, 4, requires_grad=True)
    assert not crf.mean_field(energies, torch.zeros(1, 3, 4, 4), params_of(), 12.0).requires_grad


def test_the_lattice_of_others_agrees() -> None:
    """By labels, as the lattice is an approximation; on a training grid, where it is at its coarsest."""
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 needs a C++ compiler to install")
    probabilities, picture = scene(3, 41, 41)
    lattice = densecrf.DenseCRF2D(41, 41, 3)
    lattice.setUnaryEnergy((-probabilities.log()).float().reshape(3, -1).numpy().copy())
    lattice.addPairwiseGaussian(sxy=3 / 12, compat=3)
    lattice.addPairwiseBilateral(sxy=80 / 12, srgb=13, rgbim=picture.copy(), compat=10)
    theirs = np.array(lattice.inference(10)).reshape(3, 41, 41).argmax(0)
    ours = crf.mean_field(-probabilities.log()[None], as_images(picture, torch.float64), params_of(), 12.0)[0].argmax(0)
    assert (probabilities.argmax(0).numpy() == theirs).mean() < 0.8
    assert (ours.numpy() == theirs).mean() > 0.98


def test_a_picture_that_would_take_hours_is_refused_before_any_work() -> None:
    picture = np.broadcast_to(np.zeros(3, np.uint8), (4000, 6000, 3))
    probabilities = torch.full((1, 1, 1), 0.5).expand(2, 4000, 6000)
    with pytest.raises(Problem, match=r"of 6000x4000 pixels at stride 1 .* set its stride in `crfs` to 8 or more"):
        crf.refine(probabilities, picture, params_of())


def test_a_picture_of_more_memory_than_there_may_be_is_refused() -> None:
    picture = np.broadcast_to(np.zeros(3, np.uint8), (4000, 6000, 3))
    probabilities = torch.full((1, 1, 1), 0.05).expand(21, 4000, 6000)
    with pytest.raises(Problem, match=r"with 21 likely classes needs 12 GB \(at most 4\)"):
        crf.refine(probabilities, picture, params_of(stride=8))
