"""DeepLab: the published sizes and initial weights, cells and the pixels they lie at, labels, inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config.networks import BackboneParams
from segcore.data.batches import Batch, Mixed
from segcore.data.geometry import Grid
from segcore.data.pictures import write_labels
from segcore.data.splits import MASKS_FILE
from segcore.errors import Problem, Problems
from segcore.networks import backbones, classifiers, dropout
from segcore.networks.classifiers import Classifier
from segcore.networks.deeplab import DeepLab, LargeFov, at_cells, colours_at_cells, enlarged
from segcore.regularisers import self_regulation
from segcore.systems import deeplab
from segcore.systems.deeplab import DeepLabSystem
from tests.networks import (
    backbone,
    build,
    fully_connected,
    parameters,
    params_of,
    squares,
    system_of,
    tiny_classifier,
)
from tests.test_sec import inputs


def system(trunk: str = "vgg16", **changes: Any) -> DeepLabSystem:
    made = system_of("deeplab", trunk, **changes)
    assert isinstance(made, DeepLabSystem)
    return made


@pytest.mark.parametrize(
    ("branches", "kernel", "width", "millions"),
    [((12,), 3, 1024, 20.5), ((6, 12, 18, 24), 3, 1024, 37.9), ((4,), 4, 4096, 65.1)],
    ids=["large", "version 2", "small"],
)
def test_the_published_networks_have_the_published_size(
    branches: tuple[int, ...], kernel: int, width: int, millions: float
) -> None:
    with torch.device("meta"):
        trunk = backbones.build(
            BackboneParams(name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=8, finer="dilated")
        )
        network = DeepLab(trunk, 21, branches, kernel, width, 0.5)
    assert round(parameters(network) / 1e6, 1) == millions


@torch.no_grad()
def test_321_pixels_become_41_cells() -> None:
    network = DeepLab(backbones.build(backbone(stride=8)), 21, (6, 12, 18, 24), 3, 8, 0.5).eval()
    assert network(torch.zeros(1, 3, 321, 321)).shape == (1, 21, 41, 41)


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["vgg16", "resnet18"])
def test_a_kernel_of_four_keeps_the_grid_and_looks_as_far_each_way(trunk: str) -> None:
    """The small field of view: places at -6, -2, 2 and 6 cells."""
    network = DeepLab(backbones.build(backbone(trunk, stride=8)), 3, (4,), 4, 8, 0.5).eval()
    assert network(torch.zeros(1, 3, 97, 105)).shape == (1, 3, 13, 14)
    layer = getattr(network.branches[0], "fc6", network.branches[0])
    assert isinstance(layer, nn.Conv2d)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    one = torch.zeros(1, layer.in_channels, 13, 13)
    one[0, 0, 6, 6] = 1
    reached = layer(one)[0, 0].nonzero().tolist()
    assert reached == [[row, column] for row in (0, 4, 8, 12) for column in (0, 4, 8, 12)]


@torch.no_grad()
def test_large_fov_layer_by_layer() -> None:
    torch.manual_seed(0)
    trunk = backbones.build(backbone(stride=8))
    network = DeepLab(trunk, 4, (2, 3), 3, 10, 0.5).eval()
    images = 255 * torch.rand(2, 3, 65, 49)
    top = F.avg_pool2d(F.max_pool2d(trunk(images).top, 3, 1, 1), 3, 1, 1)
    expected = torch.zeros(2, 4, 9, 7)
    for branch, dilation in zip(network.branches, (2, 3), strict=True):
        assert isinstance(branch, LargeFov)
        hidden = F.conv2d(top, branch.fc6.weight, branch.fc6.bias, padding=dilation, dilation=dilation).relu()
        expected += branch.fc8(branch.fc7(hidden).relu())
    assert (network.branches[0].fc8.weight.std() - 0.01).abs() < 0.005  # type: ignore[union-attr]
    torch.testing.assert_close(network(images), expected)


@torch.no_grad()
def test_over_other_trunks_the_branches_are_dilated_convolutions_to_the_classes() -> None:
    trunk = backbones.build(backbone("resnet18", stride=8)).eval()
    network = DeepLab(trunk, 4, (1, 2), 3, 10, 0.5).eval()
    images = 255 * torch.rand(1, 3, 33, 49)
    parts = [F.conv2d(trunk(images).top, b.weight, b.bias, padding=d, dilation=d)  # type: ignore[arg-type]
             for b, d in zip(network.branches, (1, 2), strict=True)]  # fmt: skip
    torch.testing.assert_close(network(images), parts[0] + parts[1])
    assert all(isinstance(b, nn.Conv2d) and b.kernel_size == (3, 3) for b in network.branches)


def test_dropout_acts_behind_fc6_and_fc7_in_training_only() -> None:
    trained, images = system(network={"dropout": 0.5}).train(), squares(1).images
    scores = []
    for key in (1, 1, 2):
        dropout.set_key(trained, key, rank=0, world=1)
        scores.append(trained.network(images))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert torch.equal(trained.eval().predict(images), trained.predict(images))


class Published:
    """VGG-16's fully connected layers with a few channels of 8 + 4 inputs, whose values tell where they came from."""

    channels, outputs = 32, 16

    @classmethod
    def weights(cls) -> dict[str, Tensor]:
        trunk = backbones.build(backbone())
        kept = {key: value for key, value in trunk.state_dict().items() if key.startswith("features.")}
        fc6 = torch.arange(cls.outputs * cls.channels * 49, dtype=torch.float32).view(cls.outputs, -1)
        fc7 = torch.arange(cls.outputs**2, dtype=torch.float32).view(cls.outputs, -1)
        biases = {"classifier.0.bias": torch.arange(16.0), "classifier.3.bias": 100 + torch.arange(16.0)}
        return kept | {"classifier.0.weight": fc6, "classifier.3.weight": fc7} | biases


def pretrained_classifier(tmp_path: Path) -> Classifier:
    path = tmp_path / "vgg.safetensors"
    save_file(Published.weights(), path)
    return classifiers.build(backbone(weights=str(path)), fully_connected(), 5)


def test_fc6_and_fc7_start_from_every_fourth_channel_and_nine_places_of_vgg(tmp_path: Path) -> None:
    made = build("deeplab", pretrained_classifier(tmp_path), network={"width": 4})
    assert isinstance(made, DeepLabSystem)
    whole = Published.weights()["classifier.0.weight"].view(16, 32, 7, 7)
    for branch in made.network.branches:
        assert isinstance(branch, LargeFov)
        assert branch.fc6.weight.shape == (4, 32, 3, 3)
        for output, channel, row, column in [(0, 0, 0, 0), (1, 5, 1, 2), (3, 31, 2, 2)]:
            expected = whole[4 * output, channel, 3 * row, 3 * column]
            assert branch.fc6.weight[output, channel, row, column] == expected
        assert branch.fc7.weight[:, :, 0, 0].tolist() == [[64 * i + 4 * j for j in range(4)] for i in range(4)]
        assert branch.fc6.bias is not None
        assert branch.fc7.bias is not None
        assert branch.fc6.bias.tolist() == [0, 4, 8, 12]
        assert branch.fc7.bias.tolist() == [100, 104, 108, 112]
        assert branch.fc8.weight.abs().max() < 0.1
    learned = [name for name, _ in made.named_parameters() if name.startswith(made.pretrained)]
    assert [name for name, _ in made.named_parameters() if name not in learned] == [
        f"network.branches.{i}.fc8.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    ]


def test_a_small_field_of_view_keeps_every_second_place(tmp_path: Path) -> None:
    network = {"branches": [2], "kernel": 4, "width": 16}
    made = build("deeplab", pretrained_classifier(tmp_path), network=network)
    assert isinstance(made, DeepLabSystem)
    (branch,) = made.network.branches
    assert isinstance(branch, LargeFov)
    whole = Published.weights()["classifier.0.weight"].view(16, 32, 7, 7)
    assert torch.equal(branch.fc6.weight, whole[:, :, ::2, ::2])
    assert made.pretrained == ("network.trunk.", "network.branches.0.fc6.", "network.branches.0.fc7.")


def test_a_file_of_convolutions_only_leaves_fc6_and_fc7_at_random(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    weights = {key: value for key, value in Published.weights().items() if key.startswith("features.")}
    save_file(weights, path)
    made = build("deeplab", backbone(weights=str(path)))
    assert isinstance(made, DeepLabSystem)
    assert made.pretrained == ("network.trunk.",)
    assert torch.equal(next(made.network.trunk.parameters()), weights["features.0.weight"])
    assert all(isinstance(branch, LargeFov) and branch.fc6.weight.std() > 0 for branch in made.network.branches)


@torch.no_grad()
def test_scores_start_near_zero_on_a_map_as_large_as_vgg_16_s() -> None:
    """With random fc6 and fc7 of the published width; 16 times as large, a softmax would be saturated."""
    torch.manual_seed(0)
    with torch.device("meta"):
        trunk = backbones.build(
            BackboneParams(name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=8, finer="dilated")
        )
    network = DeepLab(trunk, 21, (12,), 3, 1024, 0.5).eval()
    assert network.borrow({"features.0.weight": torch.zeros(64, 3, 3, 3)}) == ()
    top = torch.randn(1, 512, 21, 21).relu()
    top *= 16 / top.square().mean().sqrt()
    assert 0.1 < network.branches[0](top).std() < 1.0


def test_a_kernel_that_vgg_cannot_be_thinned_to_starts_at_random(tmp_path: Path) -> None:
    made = build("deeplab", pretrained_classifier(tmp_path), network={"width": 4, "kernel": 5})
    assert made.pretrained == ("network.trunk.",)


@pytest.mark.parametrize("width", [5, 24])
def test_a_width_that_does_not_divide_starts_at_random(width: int, tmp_path: Path) -> None:
    made = build("deeplab", pretrained_classifier(tmp_path), network={"width": width})
    assert made.pretrained == ("network.trunk.",)


@pytest.mark.parametrize("stride", [8, 16])
def test_the_encoder_starts_from_the_classifier_or_from_the_backbone(stride: int) -> None:
    classifier = tiny_classifier()
    first = next(classifier.trunk.parameters())
    for start, same in ((classifier, True), (classifier.backbone, False)):
        made = build("deeplab", start, network={"stride": stride, "dropout": 0.0})
        assert isinstance(made, DeepLabSystem)
        assert torch.equal(next(made.network.trunk.parameters()), first) == same
        assert made.network.trunk.stride == made.input_step == stride
        assert made.network(squares(1, 97).images).shape[2:] == (Grid(97, stride).cells,) * 2
        assert all(p.requires_grad for p in made.parameters())
    assert next(made.network.trunk.parameters()) is not first


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize(("height", "width"), [(33, 49), (40, 33), (47, 64), (1, 9)])
def test_a_cell_lies_at_every_nth_pixel(height: int, width: int, stride: int) -> None:
    """A ramp that is read at the cells is, enlarged, the ramp again, but beyond the last cell."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = (1.0 * rows + 100 * columns).expand(1, 3, -1, -1)
    read = colours_at_cells(ramp, stride)
    assert read.shape[2:] == (Grid(height, stride).cells, Grid(width, stride).cells)
    assert torch.equal(at_cells(ramp[:, 0].long(), stride), read[:, 0].long())
    back = enlarged(read, (height, width), stride)
    last = [stride * (side - 1) for side in read.shape[2:]]
    expected = rows.clamp(max=last[0]) + 100.0 * columns.clamp(max=last[1])
    torch.testing.assert_close(back[0, 0], expected)


def test_sizes_of_cells_and_one_more_are_enlarged_with_aligned_corners() -> None:
    scores = torch.randn(2, 3, 5, 4)
    expected = F.interpolate(scores, (33, 25), mode="bilinear", align_corners=True)
    torch.testing.assert_close(enlarged(scores, (33, 25), 8), expected)


@pytest.mark.parametrize("size", [(10, 8), (12, 8), (10, 7), (9, 9)])
def test_scores_are_enlarged_in_their_own_precision(size: tuple[int, int]) -> None:
    """Autocast would have the edge repeated in float32; scores and gradients are those that this gives."""
    scores = torch.randn(2, 3, 5, 4).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    taught = torch.randn(2, 3, *size).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        large = enlarged(scores, size, 2)
    assert large.dtype == torch.bfloat16
    (own,) = torch.autograd.grad(large, scores, taught)
    small = F.interpolate(scores, (9, 7), mode="bilinear", align_corners=True)
    beyond = (0, max(0, size[1] - 7), 0, max(0, size[0] - 9))
    expected = F.pad(small.float(), beyond, mode="replicate").bfloat16()
    assert torch.equal(large, expected)
    assert torch.equal(own, torch.autograd.grad(expected, scores, taught)[0])


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["vgg16", "resnet18", "timm/test_resnet"])
def test_pictures_of_odd_sizes_are_predicted(trunk: str) -> None:
    made = system(trunk).eval()
    for size in [(97, 97), (33, 65), (40, 71)]:
        scores = made.predict(255 * torch.rand(1, 3, *size))
        assert scores.shape == (1, 6, *size)
        at_the_cells = made.network(255 * torch.rand(1, 3, *size))
        assert at_the_cells.shape[2:] == tuple(Grid(side, 8).cells for side in size)


def test_the_loss_is_the_cross_entropy_at_the_cells() -> None:
    made, batch = system(network={"dropout": 0.0}).train(), squares(2, 97)
    term = made.losses(batch)["segmentation"]
    with torch.no_grad():
        log_probabilities = made.network(batch.images).log_softmax(1)
    by_hand, known = 0.0, 0
    for number in range(2):
        for row in range(13):
            for column in range(13):
                label = int(batch.labels[number, 8 * row, 8 * column])
                if label != 255:
                    by_hand -= float(log_probabilities[number, label, row, column])
                    known += 1
    assert term.weight == known < 2 * 13 * 13
    assert float(term.total.detach()) == pytest.approx(by_hand, rel=1e-4)


def test_an_image_of_which_nothing_is_known_teaches_nothing() -> None:
    made, batch = system().train(), squares(1, 97)
    unknown = Batch(batch.ids, batch.images, batch.tags, torch.full_like(batch.labels, 255))
    dropout.set_key(made, 0, rank=0, world=1)
    term = made.losses(unknown)["segmentation"]
    assert (term.total.item(), term.weight.item()) == (0, 0)


CROPS = {"kind": "crops", "scales": [1.0, 1.0]}


@pytest.mark.parametrize(("geometry", "square"), [({"kind": "stretched"}, "stretch"), (CROPS, "pad")])
def test_prediction_sees_images_as_training_did(geometry: dict[str, Any], square: str) -> None:
    made = system(geometry=geometry)
    assert (made.square, made.input_step, made.input_offset) == (square, 8, 1)
    assert made.smallest_input <= 33


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": {"input_size": 96}},
            "input_size 96 must be a multiple of stride 8 and one more, such as 89 or 97",
        ),
        ({"network": {"stride": 16, "input_size": 105}}, "input_size 105 must be a multiple of stride 16"),
        ({"network": {"stride": 32}}, "network.stride: found 32"),
        ({"network": {"branches": []}}, "network.branches: found"),
        ({"network": {"branches": [0]}}, "network.branches.0: found 0"),
        ({"network": {"branches": [2, 3], "kernel": 4}}, "branches [2, 3] must be even under kernel 4"),
        ({"geometry": CROPS | {"scales": [1.5, 0.5]}}, "scales [1.5, 0.5] must be the least factor, then the greatest"),
        ({"geometry": {"kind": "squares"}}, "geometry.kind: found 'squares'; allowed are crops, stretched"),
        ({"geometry": {"scales": [1.0, 1.0]}}, "geometry.scales: unknown key"),
        ({"tagged_images": True}, "tagged_images: true needs a regulariser that learns tags"),
    ],
)
def test_parameters_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Problems) as caught:
        system(**changes)
    assert message in str(caught.value)


def mask_folder(folder: Path) -> Path:
    """As `split` leaves it; the masks themselves lie where the records say."""
    folder.mkdir(exist_ok=True)
    (folder / MASKS_FILE).write_text("image_id,sha256\n")
    return folder


def test_masks_are_the_labels_where_they_are_named(tmp_path: Path) -> None:
    folder = mask_folder(tmp_path / "masks")
    samples = deeplab.samples(params_of("deeplab"), inputs(tmp_path, folder, ["two", "one"]))
    sample = samples.sample(0, 0)
    assert (len(samples), samples.input_size, sample.image_id, sample.strong) == (2, 97, "two", True)
    assert sample.labels.shape == sample.image.shape[1:] == (97, 97)
    with pytest.raises(Problem, match=r"1 of 2 images have no mask, bare first; .*pseudo-labels"):
        deeplab.samples(params_of("deeplab"), inputs(tmp_path, folder, ["one", "bare"]))


def test_tagged_images_stand_beside_the_masks(tmp_path: Path) -> None:
    """As many in every batch. Nothing is known of their pixels, not even where the image has a mask."""
    folder = mask_folder(tmp_path / "masks")
    params = params_of("deeplab", tagged_images=True, regularisers={"self_regulation": self_regulation.smallest()})
    samples = deeplab.samples(params, inputs(tmp_path, folder, ["two"]))
    assert isinstance(samples, Mixed)
    assert samples.parts == (3, 1)
    found = [samples.sample(index, 0) for index in range(4)]
    assert [(sample.image_id, sample.strong) for sample in found] == [
        ("bare", False), ("one", False), ("two", False), ("two", True)
    ]  # fmt: skip
    assert [bool((sample.labels != 255).any()) for sample in found] == [False, False, False, True]
    assert [sample.tags.tolist() for sample in found][2:] == [found[3].tags.tolist()] * 2
    with pytest.raises(Problem, match="tagged_images: true goes with labels: masks"):
        deeplab.samples(params, inputs(tmp_path, tmp_path / "made", ["one"]))


def test_weak_images_have_no_masks_to_give(tmp_path: Path) -> None:
    """`images: weak` with `labels: masks`: records of weak images keep none, even where the manifest has one."""
    found = inputs(tmp_path, mask_folder(tmp_path / "masks"), ["two"], images="weak")
    assert found.records["one"].labels is None
    with pytest.raises(Problem, match=r"2 of 3 images have no mask, bare first; .*`images: strong`"):
        deeplab.samples(params_of("deeplab"), found)


def test_pseudo_labels_are_the_labels_where_their_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    (folder / "labels").mkdir(parents=True)
    (folder / "images.txt").write_text("bare\none\n")
    write_labels(folder / "labels/bare.png", np.full((60, 90), 3, dtype=np.uint8))
    found = inputs(tmp_path, folder, ["bare"])
    for geometry in ({"kind": "stretched"}, CROPS):
        samples = deeplab.samples(params_of("deeplab", geometry=geometry), found)
        sample = samples.sample(0, 0)
        assert not sample.strong
        assert set(sample.labels.unique().tolist()) <= {3, 255}
        assert (sample.labels == 3).any()
        assert bool((sample.labels == 255).any()) == (geometry == CROPS), "90 x 60 pixels do not fill the square"
    with pytest.raises(Problem, match="no pseudo-labels of 1 of 2 images, two first"):
        deeplab.samples(params_of("deeplab"), inputs(tmp_path, folder, ["one", "two"]))
    with pytest.raises(Problem, match="holds no pseudo-labels"):
        deeplab.samples(params_of("deeplab"), inputs(tmp_path, tmp_path / "nothing", ["one"]))
