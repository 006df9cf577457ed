"""Background cues: by the gradient of a classifier, and from a folder of saliency maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import nn

from segcore.data.geometry import Grid
from segcore.errors import Problem
from segcore.localisation import background
from segcore.networks import backbones
from segcore.networks.timm_trunk import Timm
from segcore.networks.vgg import VGG16
from tests.networks import squares
from tests.test_classifiers import stochastic_classifier

TRUNKS = ["vgg16", "vgg16_bn", "resnet18", "timm/test_resnet", "timm/test_convnext"]


def test_the_gradient_reaches_conv4_1_as_published() -> None:
    """Against a backward pass through the whole network, and scipy's median."""
    classifier = stochastic_classifier("vgg16", selection="general")
    images = squares(2, 65).images
    values, features = background.importance(classifier, images)
    trunk = classifier.trunk
    assert isinstance(trunk, VGG16)
    position = list(trunk.features).index(trunk.middle)
    assert [layer.out_channels for layer in trunk.features if isinstance(layer, nn.Conv2d)][7] == 32
    assert position == 17
    middle = trunk.features[: position + 1](trunk.normalise(images)).detach().requires_grad_()
    top = trunk.features[position + 1 :](middle.clone())
    (gradient,) = torch.autograd.grad(classifier.head(top).sum(), middle)
    expected = [ndimage.median_filter(x.abs().amax(0).numpy(), 3) for x in gradient]
    torch.testing.assert_close(values, torch.from_numpy(np.stack(expected)))
    torch.testing.assert_close(features.top, top.detach())
    assert not features.top.requires_grad
    assert all(parameter.grad is None for parameter in trunk.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", TRUNKS)
def test_a_share_of_the_places_is_background(name: str) -> None:
    classifier = stochastic_classifier(name)
    cue = background.gradient_cue(classifier, squares(2, 65).images, 0.3)
    assert cue.shape == (2, 9, 9)
    assert (cue.flatten(1).sum(1) <= int(0.3 * 81)).all()
    assert cue.flatten(1).any(1).all()


@pytest.mark.parametrize("name", TRUNKS[2:])
@torch.no_grad()
def test_but_for_vgg_the_middle_is_the_level_below_the_top(name: str) -> None:
    classifier, outputs = stochastic_classifier(name), []
    trunk = classifier.trunk.eval()
    trunk.middle.register_forward_hook(lambda *call: outputs.append(call[-1]))
    levels = trunk(squares(1, 65).images).levels
    assert torch.equal(trunk.as_map(outputs[0], levels[-1]), levels[-2])


def test_a_finer_middle_is_read_at_the_cells_of_the_top_map() -> None:
    """Of 65 pixels, stride 8 has 9 cells and stride 16 has 5: every second."""
    values = torch.rand(2, 9, 9)
    for grid, every in (((9, 9), 1), ((5, 5), 2), ((3, 5), None)):
        rows, columns = (every, every) if every else (4, 2)
        expected = [ndimage.median_filter(x[::rows, ::columns].numpy(), 3, mode="nearest") for x in values]
        np.testing.assert_array_equal(background.smooth(values, grid), np.stack(expected))
    with pytest.raises(Problem, match="whose 9 cells a side hold every cell of the top map's 4, which they do not"):
        background.smooth(values, (4, 4))
    coarse = stochastic_classifier("vgg16", stride=32)
    assert background.importance(coarse, squares(1, 64).images)[0].shape == (1, 2, 2)


def test_the_lowest_places_lie_below_the_sorted_value() -> None:
    values = torch.tensor([[[5.0, 1.0], [3.0, 2.0]], [[4.0, 4.0], [4.0, 4.0]]])
    assert background.lowest(values, 0.5)[0].tolist() == [[False, True], [False, True]]
    assert not background.lowest(values, 0.2)[0].any(), "a fifth of four places is none"
    assert not background.lowest(values, 0.5)[1].any(), "where all are equal, nothing matters least"


def grey(path: Path, values: list[list[int]], mode: str = "L") -> Path:
    Image.fromarray(np.array(values, dtype=np.uint8)).convert(mode).save(path)
    return path


def test_saliency_is_read_at_the_pixels_of_the_cells(tmp_path: Path) -> None:
    """9 pixels at stride 8 are 2 cells, at the first pixel and at the last."""
    values = np.full((9, 9), 255)
    values[[0, 0, 8, 8], [0, 8, 0, 8]] = [15, 16, 16, 15]
    path = grey(tmp_path / "a.png", values.tolist())
    cue = background.saliency_cue(path, Grid(9, 8), 0.06)  # 0.06 of 255 are 15.3
    assert cue.tolist() == [[True, False], [False, True]]
    wide = grey(tmp_path / "wide.png", np.repeat(values, 3, axis=1).tolist())
    assert background.saliency_cue(wide, Grid(9, 8), 0.06).tolist() == cue.tolist()


def test_a_saliency_map_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"a\.png is not a readable saliency map"):
        background.saliency_cue(tmp_path / "a.png", Grid(9, 8), 0.1)
    with pytest.raises(Problem, match="must be a grey 8-bit PNG, found mode RGB"):
        background.saliency_cue(grey(tmp_path / "d.png", [[1]], "RGB"), Grid(9, 8), 0.1)


def test_a_trunk_without_a_layer_to_hold_on_to_is_a_problem() -> None:
    trunk = backbones.build(stochastic_classifier("timm/test_resnet").backbone)
    assert isinstance(trunk, Timm)
    trunk.body.feature_info.info[-2]["module"] = "stages.9"
    with pytest.raises(Problem, match=r"has no layer stages\.9.*background: none"):
        _ = trunk.middle
