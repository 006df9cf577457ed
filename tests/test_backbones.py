"""Trunks: shapes, strides, switches, weights from files, frozen statistics, and what who names a wrong one is told."""

from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config import reading
from segcore.config.networks import AnyBackbone, BackboneParams
from segcore.errors import Problem
from segcore.networks import backbones
from segcore.networks.normalisation import DecayedBatchNorm2d
from segcore.networks.timm_trunk import Timm
from segcore.networks.trunk import LEVELS, Features, Trunk
from segcore.networks.vgg import VGG16, VGG16_CHANNELS
from tests.networks import backbone, parameters, squares

SWITCHLESS = ["resnet18", "timm/test_resnet", "timm/test_convnext", "timm/test_mambaout"]


def test_vgg16_is_the_published_network() -> None:
    with torch.device("meta"):
        trunk = backbones.build(
            BackboneParams(name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=32, finer="dilated")
        )
        features = trunk(torch.zeros(2, 3, 320, 320))
    assert parameters(trunk) == 14_714_688
    assert features.top.shape == (2, 512, 10, 10)
    shapes = [tuple(switch.shape) for switch in features.switches if switch is not None]
    assert shapes == [(2, level[-1], 160 >> i, 160 >> i) for i, level in enumerate(VGG16_CHANNELS)]
    assert trunk.switch_channels == (64, 128, 256, 512, 512)


def test_pixels_are_normalised_as_the_pre_training_saw_them() -> None:
    trunk = backbones.build(backbone())
    white, black = trunk.normalise(torch.tensor([255.0, 0.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white[:, 0, 0], (1 - mean) / std)
    torch.testing.assert_close(black[:, 0, 0], -mean / std)
    as_bytes = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    assert torch.equal(trunk.normalise(as_bytes), trunk.normalise(as_bytes.float()))


@torch.no_grad()
def test_switches_undo_the_pooling() -> None:
    """Unpooling a level's output puts every maximum back to where it was, and pooling that gives the output again."""
    trunk = backbones.build(backbone())
    x = trunk.normalise(squares(2).images)
    assert isinstance(trunk, VGG16)
    level = 0
    for layer in trunk.features:
        if not isinstance(layer, nn.MaxPool2d):
            x = layer(x)
            continue
        before = x
        x, switches = layer(before)
        back = F.max_unpool2d(x, switches, [2, 2])
        assert torch.equal(F.max_pool2d(back, 2), x)
        assert torch.equal(back[back > 0], before[back > 0]), f"level {level}: a maximum was moved"
        assert torch.count_nonzero(back) == torch.count_nonzero(x)
        given = trunk(squares(2).images).switches[level]
        assert given is not None
        assert torch.equal(given, switches)
        level += 1
    assert level == LEVELS


@torch.no_grad()
def test_features_of_picked_images() -> None:
    trunk = backbones.build(backbone())
    features = trunk(squares(3, 64).images)
    picked = features.pick(torch.tensor([2, 0, 2, 2]))
    assert torch.equal(picked.top, features.top[[2, 0, 2, 2]])
    for ours, theirs in zip(picked.switches, features.switches, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs[[2, 0, 2, 2]])


@pytest.mark.parametrize("name", SWITCHLESS)
@torch.no_grad()
def test_other_trunks_have_no_switches(name: str) -> None:
    trunk = backbones.build(backbone(name)).eval()
    features = trunk(squares(2).images)
    assert features.top.shape == (2, trunk.channels, 3, 3)
    assert features.switches == trunk.switch_channels == (None,) * 5
    assert features.pick(torch.tensor([1])).top.shape == (1, trunk.channels, 3, 3)


EVERY_STRIDE = ["vgg16", "vgg16_bn", "resnet18", "resnet50", "timm/test_resnet", "timm/efficientnet_lite0"]


@pytest.mark.parametrize(
    ("name", "stride"),
    [(name, stride) for name in EVERY_STRIDE for stride in (8, 16, 32)]
    + [(name, 32) for name in ("timm/test_convnext", "timm/test_mambaout", "timm/swin_tiny_patch4_window7_224")],
)
@torch.no_grad()
def test_levels_have_the_channels_and_strides_that_the_trunk_says(name: str, stride: Literal[8, 16, 32]) -> None:
    trunk = backbones.build(backbone(name, stride=stride)).eval()
    features = trunk(torch.rand(2, 3, 224, 224) * 255)
    sides = [224 // stride for stride in trunk.level_strides]
    assert [tuple(m.shape) for m in features.levels] == [
        (2, c, n, n) for c, n in zip(trunk.level_channels, sides, strict=True)
    ]
    assert features.top is features.levels[-1]
    assert (
        (trunk.level_channels[-1], trunk.level_strides[-1])
        == (trunk.channels, trunk.stride)
        == (trunk.channels, stride)
    )
    assert len(features.levels) == (4 if "next" in name or "mamba" in name or "swin" in name else 5)
    assert list(trunk.level_strides) == sorted(trunk.level_strides)
    assert trunk.level_strides[0] == (2 if len(features.levels) == 5 else 4)


@torch.no_grad()
def test_the_levels_of_vgg_and_resnet_are_the_last_maps_of_each() -> None:
    images = squares(1, 64).images
    vgg = backbones.build(backbone("vgg16", stride=8))
    assert isinstance(vgg, VGG16)
    ends = [n + 1 for n, layer in enumerate(vgg.features) if isinstance(layer, nn.MaxPool2d)] + [len(vgg.features)]
    for end, level in zip(ends, vgg(images).levels, strict=True):
        assert torch.equal(vgg.features[:end](vgg.normalise(images)), level)
    ours, timms = backbones.build(backbone("resnet18")).eval(), backbones.build(backbone("timm/resnet18")).eval()
    assert isinstance(timms, Timm)
    timms.load_state_dict({k: v for k, v in ours.state_dict().items() if k in timms.state_dict()})
    for mine, theirs in zip(ours(images).levels, timms(images).levels, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_convnext", "timm/test_efficientnet"])
@torch.no_grad()
def test_all_maps_of_a_timm_model_change_neither_its_weights_nor_its_top(name: str) -> None:
    torch.manual_seed(3)
    trunk = backbones.build(backbone(name)).eval()
    torch.manual_seed(3)
    alone = timm.create_model(name.removeprefix("timm/"), features_only=True, out_indices=(-1,)).eval()
    assert isinstance(trunk, Timm)
    for key, value in alone.state_dict().items():
        assert torch.equal(trunk.body.state_dict()[key], value), key
    images = squares(1, 64).images
    top = alone(trunk.normalise(images))[-1]
    assert torch.equal(trunk(images).top, top.permute(0, 3, 1, 2) if trunk.channels_are_last else top)


@torch.no_grad()
def test_picking_copies_the_levels_that_are_read() -> None:
    features = backbones.build(backbone())(squares(3, 64).images)

    reads = []

    class Recorded(tuple[Tensor, ...]):
        """Levels that say which of them are read."""

        def __getitem__(self, level: Any) -> Any:
            reads.append(level)
            return super().__getitem__(level)

    index = torch.tensor([2, 0, 2, 2])
    picked = Features(Recorded(features.levels), features.switches).pick(index)
    reads.clear()  # the type checker of the tests has read some
    assert torch.equal(picked.top, features.top[index])
    assert reads == [-1]
    assert len(picked.levels) == len(features.levels)
    for ours, theirs in zip(features.pick(index).levels, features.levels, strict=True):
        assert torch.equal(ours, theirs[index])
    assert torch.equal(features.pick(index).levels[1:3][0], features.levels[1][index])
    assert [level is features.top for level in features.top_only().levels] == [True]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/resnet10q", ["name: timm has no model 'resnet10q'", "resnet10t"]),
        ("timm/test_vit", ["stride: timm/test_vit has patches of 16 pixels", "set stride to 16"]),
    ],
)
def test_a_wrong_timm_model_is_a_problem(name: str, words: list[str]) -> None:
    with pytest.raises(Problem) as caught:
        backbones.build(backbone(name))
    for word in words:
        assert word in str(caught.value)


def checked(**changes: Any) -> BackboneParams:
    """A section of a parameters file, with other values."""
    section = backbone("resnet18").model_dump() | changes
    return reading.section({"backbone": section}, "backbone", AnyBackbone)


@pytest.mark.parametrize("name", ["vgg61", "resnet34", "timm/", ""])
def test_an_unknown_name_is_a_problem_that_lists_the_known(name: str) -> None:
    with pytest.raises(Problem) as caught:
        checked(name=name)
    assert "backbone.name" in str(caught.value)
    assert "vgg16, vgg16_bn, resnet18, resnet50, resnet101, timm/<model>" in str(caught.value)


def test_only_vgg_has_small_versions() -> None:
    with pytest.raises(Problem, match=r"width.*0.5.*only vgg16 and vgg16_bn have small versions"):
        checked(width=0.5)
    with pytest.raises(Problem, match="finer: cut must be dilated for resnet18; only timm's trunks are cut"):
        checked(finer="cut")


def test_weights_that_are_not_there_are_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"found 'imagnet'; it must be random, imagenet, .* or an existing file"):
        backbones.build(backbone(weights="imagnet"))
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor in sight")
    (tmp_path / "broken.pth").write_bytes(b"not a tensor in sight")
    torch.save({"epoch": 3, "state_dict": {"features.0.weight": torch.zeros(1)}}, tmp_path / "checkpoint.pth")
    for name in ("broken.safetensors", "broken.pth", "checkpoint.pth"):
        with pytest.raises(Problem, match=rf"{name} (is not a readable weights file|has its arrays under)"):
            backbones.build(backbone(weights=str(tmp_path / name)))


def test_without_network_the_download_fails_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent")
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    with pytest.raises(Problem, match="ImageNet weights of resnet18 could not be downloaded.*name the file"):
        backbones.build(backbone("resnet18", weights="imagenet"))
    monkeypatch.setattr("timm.create_model", no_network)
    with pytest.raises(Problem, match="ImageNet weights of timm/test_resnet could not be downloaded.*name the file"):
        backbones.build(backbone("timm/test_resnet", weights="imagenet"))


def state(trunk: Trunk) -> dict[str, Tensor]:
    """What a file of weights for this trunk holds."""
    return {key.removeprefix("body."): value for key, value in trunk.state_dict().items()}


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", "resnet18", "timm/test_resnet"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_are_read_from_a_file(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"weights.{ending}"
    torch.manual_seed(5)
    source = backbones.build(backbone(name))
    # Half precision and a classifier on top, as such files come.
    content = {k: v.half() if v.is_floating_point() else v for k, v in state(source).items()}
    content["fc.weight"] = torch.zeros(3, 4)
    save_file(content, path) if ending == "safetensors" else torch.save(content, path)
    loaded = backbones.build(backbone(name, weights=str(path)))
    for key, value in state(loaded).items():
        expected = content[key].float() if value.is_floating_point() else content[key]
        assert torch.equal(value, expected), key


def test_files_from_before_batches_were_counted_can_be_read(tmp_path: Path) -> None:
    content = {k: v for k, v in state(backbones.build(backbone("resnet18"))).items() if "num_batches" not in k}
    save_file(content, tmp_path / "old.safetensors")
    loaded = backbones.build(backbone("resnet18", weights=str(tmp_path / "old.safetensors")))
    assert torch.equal(loaded.state_dict()["body.layer4.1.conv2.weight"], content["layer4.1.conv2.weight"])


def test_the_weights_of_another_network_are_a_problem(tmp_path: Path) -> None:
    save_file(state(backbones.build(backbone("resnet18"))), tmp_path / "resnet18.safetensors")
    with pytest.raises(Problem, match=r"is not of vgg16 at width 0.0625: 26 arrays are missing \['features.0.weight'"):
        backbones.build(backbone("vgg16", weights=str(tmp_path / "resnet18.safetensors")))
    save_file(state(backbones.build(backbone("vgg16"))), tmp_path / "vgg16.safetensors")
    wide = backbone("vgg16", weights=str(tmp_path / "vgg16.safetensors")).model_copy(update={"width": 0.125})
    with pytest.raises(Problem, match=r"26 have another shape \['features.0.weight'"):
        backbones.build(wide)


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet18", "timm/test_resnet", "timm/test_efficientnet"])
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_in_training(name: str, frozen: bool) -> None:
    trunk = backbones.build(backbone(name, frozen_norm=frozen))
    before = {key: value.clone() for key, value in trunk.state_dict().items() if "running" in key}
    nn.Sequential(trunk).train()(squares(2, 64).images)
    same = all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items() if key in before)
    assert before
    assert same == frozen
    assert trunk.training


def test_batch_normalisation_is_inserted_around_the_same_convolutions() -> None:
    plain = backbones.build(backbone("vgg16", frozen_norm=True))
    assert isinstance(plain, VGG16)
    twin = plain.with_batch_norm()
    kinds = [type(layer) for layer in twin.features]
    assert kinds.count(DecayedBatchNorm2d) == kinds.count(nn.Conv2d) == 13
    after = [kinds[i + 1 : i + 3] for i, kind in enumerate(kinds) if kind is nn.Conv2d]
    assert all(pair == [DecayedBatchNorm2d, nn.ReLU] for pair in after)
    ours = [layer for layer in plain.features if isinstance(layer, nn.Conv2d)]
    theirs = [layer for layer in twin.features if isinstance(layer, nn.Conv2d)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, theirs, strict=True))
    assert twin.with_batch_norm() is twin
    images = squares(2, 64).images
    for layer in twin.features:
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.001)), "the published shift"
            nn.init.zeros_(layer.bias)
    torch.testing.assert_close(twin.eval()(images).top, plain.eval()(images).top, rtol=1e-3, atol=1e-4)
    twin.train()
    new = next(layer for layer in twin.features if isinstance(layer, nn.BatchNorm2d))
    assert new.training, "the new layers have no statistics of a pre-training to keep"


@pytest.mark.parametrize(
    "name", ["vgg16", "vgg16_bn", "resnet18", "resnet50", "timm/test_resnet", "timm/test_convnext"]
)
@pytest.mark.parametrize("stride", [8, 16])
@torch.no_grad()
def test_a_smaller_stride_has_the_same_weights_and_a_finer_grid(name: str, stride: Literal[8, 16]) -> None:
    coarse = backbones.build(backbone(name)).eval()
    fine = backbones.restride(backbone(name), coarse, stride)
    assert (coarse.stride, fine.stride, fine.training) == (32, stride, False)
    for ours, theirs in zip(fine.state_dict().items(), coarse.state_dict().items(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
        assert ours[1] is not theirs[1]
    for sides in ((65, 97), (70, 64)):
        features = fine(torch.rand(1, 3, *sides) * 255)
        assert features.top.shape == (1, fine.channels, *(-(-side // stride) for side in sides))
        assert features.switches == fine.switch_channels == (None,) * 5
    back = backbones.restride(backbone(name, stride=stride), fine, 32)
    image = torch.rand(1, 3, 64, 64) * 255
    assert torch.equal(back(image).top, coarse(image).top)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_every_second_place_of_a_dilated_resnet_is_what_it_was(name: str) -> None:
    torch.manual_seed(0)
    coarse = backbones.build(backbone(name)).eval().double()
    image = torch.rand(1, 3, 97, 70, dtype=torch.float64) * 255
    tops = {stride: backbones.restride(backbone(name), coarse, stride)(image).top for stride in (8, 16, 32)}
    torch.testing.assert_close(tops[8][:, :, ::4, ::4], tops[32], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tops[16][:, :, ::2, ::2], tops[32], rtol=1e-9, atol=1e-9)


def test_vgg16_at_stride_8_is_the_trunk_of_largefov() -> None:
    with torch.device("meta"):
        trunk = backbones.build(
            BackboneParams(name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=8, finer="dilated")
        )
        assert trunk(torch.zeros(1, 3, 321, 321)).top.shape == (1, 512, 41, 41)
    assert isinstance(trunk, VGG16)
    poolings = [(p.kernel_size, p.stride, p.padding) for p in trunk.features if isinstance(p, nn.MaxPool2d)]
    assert poolings == [(3, 2, 1)] * 3 + [(3, 1, 1)]
    dilations = [layer.dilation[0] for layer in trunk.features if isinstance(layer, nn.Conv2d)]
    assert dilations == [1] * 10 + [2] * 3
    assert parameters(trunk) == 14_714_688


@pytest.mark.parametrize("name", ["timm/test_mambaout", "timm/vgg11"])
def test_a_model_that_keeps_its_stride_is_a_problem(name: str) -> None:
    with pytest.raises(Problem, match=rf"^stride: {name} cannot be had at stride 8; choose 32 or another"):
        backbones.build(backbone(name, stride=8))


def test_inserted_batch_normalisation_keeps_the_stride() -> None:
    trunk = backbones.build(backbone(stride=16))
    assert isinstance(trunk, VGG16)
    assert trunk.with_batch_norm().eval()(squares(1, 64).images).top.shape[2:] == (4, 4)
