"""Exported files: every system exports and agrees with its model, or says exactly why not; nothing wrong is kept."""

import json
import tempfile
import tomllib
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from timm.layers import padding
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from segcore import made_of, systems
from segcore.commands.main import app
from segcore.data.batches import Batch
from segcore.data.geometry import padded_square, stretched_square
from segcore.data.pictures import write_labels
from segcore.errors import Problem
from segcore.exporting import agreement, beside, graphs, int8, licences, onnx_file, pt2_file, same_padding
from segcore.losses import Term
from segcore.models.cards import read_card
from segcore.models.classifiers import save_classifier
from segcore.models.systems import save_system
from segcore.networks import resizing
from segcore.prediction.model import Model
from segcore.systems.contract import System
from tests.devkit import PROJECT
from tests.networks import (
    backbone,
    build,
    entry,
    find_exactly,
    predicting,
    prediction_of,
    squares,
    system_of,
    tag_names,
)
from tests.test_models import TAGS, small_classifier

MADE_OF = {"training": "a", "images": "b", "tags": "c"}

WHY_NOT: dict[str, str] = {}
"""By module, what a system that cannot be exported says."""

FIXED = {"decoupled_fpn": "its tags are found on squares of 96 pixels"}
"""By module, why a system is exported for one size of squares."""

TIMM = "timm/test_resnet"


def model_of(system: System, **changes: Any) -> Model:
    """As `load` gives it; changes are of how it predicts."""
    predicting(system, **changes)
    side = system.input_step * (3 if system.input_step == 32 else 8) + system.input_offset
    card = {"name": "tested", "tags": tag_names(), "input_size": side}
    return Model(system, card, {"prediction": {}})


def finished(module: str, trunk: str) -> System:
    system = system_of(module, trunk).eval()
    system.finish([squares(3)])
    return system


@cache
def written(module: str, trunk: str) -> tuple[Model, graphs.Graph, bytes]:
    """A finished system, its bare network traced, and what its file says: of ONNX, but of TIMM of torch's own form.

    It takes what could be traced; writing and loading it is most of the time.
    """
    model = model_of(finished(module, trunk))
    graph = graphs.of_network(model, None)
    with tempfile.TemporaryDirectory() as folder:
        (pt2_file if trunk == TIMM else onnx_file).write(graph, path := Path(folder) / "model")
        return model, graph, path.read_bytes()


@cache
def steps(module: str, trunk: str) -> list[object]:
    """What predicting runs: the method, and every layer in turn, with what it is given. Equal steps, equal graphs."""
    system = finished(module, trunk)
    found: list[object] = [type(system).predict, type(system.exportable(None))]

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        shapes = [value.shape if isinstance(value, torch.Tensor) else value for value in given]
        found.append((type(layer), layer.extra_repr(), repr(shapes)))

    for layer in system.modules():
        layer.register_forward_pre_hook(note)
    system.predict(squares(1).images)
    return found


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Smooth noise of these heights and widths."""
    random = np.random.default_rng(0)
    return [cv2.GaussianBlur(random.integers(0, 256, (*size, 3), dtype=np.uint8), (5, 5), 0) for size in sizes]


@pytest.mark.parametrize(
    ("module", "trunk"),
    [*((module, "vgg16") for module in systems.names()), ("deeplab", TIMM), ("decouplednet", TIMM), ("dis", TIMM)],
)
def test_every_system_exports_and_agrees_or_says_why_not(module: str, trunk: str, tmp_path: Path) -> None:
    if module in WHY_NOT:
        with pytest.raises(Problem, match=WHY_NOT[module]):
            graphs.of_network(model_of(finished(module, trunk)), None)
        return
    if module != "deeplab" and steps(module, trunk) == steps("deeplab", trunk):
        return  # the same graph, which takes half a minute
    model, graph, content = written(module, trunk)
    assert (graph.any_batch, graph.any_size, graph.why_fixed) == (True, module not in FIXED, FIXED.get(module))
    some = pictures((60, 90), (130, 40), (97, 97))
    path = tmp_path / ("model.pt2" if trunk == TIMM else "model.onnx")
    path.write_bytes(content)
    found = agreement.measured(_runner(path), graph, model, some, limited=False)
    found.check(path.name)
    # A pixel of 76,800 may have two classes that are equal but for rounding, which differs between CPUs.
    assert found.same_labels > 0.9999
    assert {size[0] for size in found.sizes} == {"1", "2"}, "batches of one and of two"
    if trunk == TIMM:
        return
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    size = [96, 96] if module in FIXED else ["height", "width"]
    assert session.get_inputs()[0].shape == ["batch", 3, *size]
    assert session.get_outputs()[0].shape == ["batch", len(model.classes), *size]


def _runner(path: Path) -> agreement.Run:
    return onnx_file.Session(path) if path.suffix == ".onnx" else pt2_file.Loaded(path)


@pytest.mark.parametrize("geometry", [{"kind": "stretched"}, {"kind": "crops", "scales": [0.5, 1.5]}])
def test_a_graph_from_pictures_gives_the_labels_of_predict(geometry: dict[str, Any], tmp_path: Path) -> None:
    """Stretched and padded squares; two scales and mirrored; pictures that shrink, grow, and do both."""
    model = model_of(
        system_of("deeplab", "vgg16", geometry=geometry).eval(), views={"scales": [1.0, 1.5], "flip": True}
    )
    assert model.system.square == ("stretch" if geometry["kind"] == "stretched" else "pad")
    graph = graphs.of_pictures(model, None)
    onnx_file.write(graph, tmp_path / "model.onnx")
    session = onnx_file.Session(tmp_path / "model.onnx")
    for picture in pictures((60, 90), (200, 300), (300, 50), (40, 260), (64, 64)):
        labels = session(picture)
        assert labels.dtype == np.uint8
        assert labels.shape == picture.shape[:2]
        # A random network scores all classes alike: where a pixel of the square is one lighter, another may win.
        assert (labels == model.predict(picture)).mean() > 0.998


@pytest.mark.parametrize("iterations", [0, 3])
def test_dis_written_out_infers_the_same(iterations: int) -> None:
    system = predicting(finished("dis", TIMM), iterations=iterations, step=0.3)
    images = squares(3, 97).images
    with torch.no_grad():
        torch.testing.assert_close(system.exportable(None)(images), system.predict(images), rtol=1e-4, atol=1e-4)


class TestFixedTags:
    """DecoupledNet with as many pairs for each image."""

    @pytest.fixture
    def system(self) -> Any:
        system: Any = finished("decouplednet", "vgg16")
        find_exactly(system.classifier, squares(3).images, [[1, 4], [], [2]])
        return system

    def test_all_at_once_is_predict(self, system: Any) -> None:
        images = squares(3).images
        with torch.no_grad():
            torch.testing.assert_close(system.exportable(None)(images), system.predict(images), rtol=0, atol=1e-4)

    def test_some_at_once_are_the_likeliest(self, system: Any) -> None:
        """Tag 4 is likelier than tag 1, so the scores are those of an image in which it alone is found."""
        images = squares(3).images
        with torch.no_grad():
            found = system.exportable(1)(images)
            probabilities = system.classifier(images[:1]).decision.sigmoid()[0]
            system.prediction = prediction_of("decouplednet", threshold=float(probabilities[[0, 3]].mean()))
            torch.testing.assert_close(found[:1], system.predict(images[:1]), rtol=0, atol=1e-4)
        assert (found[0, 1] == 0).all()
        assert (found[1, 0] == 1).all()

    @pytest.mark.parametrize("number", [0, 6])
    def test_other_numbers_are_refused(self, system: Any, number: int) -> None:
        with pytest.raises(Problem, match=rf"found {number}; allowed are 1\.\.5"):
            system.exportable(number)


@pytest.mark.parametrize("module", [name for name in systems.names() if name not in ("decouplednet", "decoupled_fpn")])
def test_tags_at_once_are_for_systems_that_run_by_tags(module: str) -> None:
    with pytest.raises(Problem, match="scores all classes in one pass"):
        system_of(module, "vgg16").exportable(3)


def test_proposals_are_found_outside_of_a_graph() -> None:
    model = model_of(finished("deconvnet", "vgg16"), proposals=5)
    with pytest.raises(Problem, match="5 EdgeBoxes windows, which OpenCV finds outside"):
        graphs.of_pictures(model, None)


def test_what_torch_rounds_as_badly_is_excused_and_nothing_else() -> None:
    def found(scores: float, rounding: float | None, same: float = 1.0) -> agreement.Agreement:
        return agreement.Agreement(8, ("2x3x96x96",), same, scores, rounding, 1.0, 1.0)

    found(0.0009, None).check("it")
    found(0.09, 0.05).check("it")
    for wrong in (found(0.0011, None), found(0.11, 0.05), found(0.0, None, same=0.99), found(0.09, 0.05, same=0.99)):
        with pytest.raises(Problem, match="so it was not kept"):
            wrong.check("it")


def test_double_precision_shows_what_a_tie_of_pooling_does() -> None:
    """The greatest of two numbers that are equal in single precision alone: the other one is put back elsewhere."""

    class Tied(System):
        def losses(self, batch: Batch) -> dict[str, Term]:
            raise NotImplementedError

        def predict(self, images: torch.Tensor) -> torch.Tensor:
            near = torch.stack([images * 1e8, images * 1e8 + 1], -1)
            return near.argmax(-1).to(images)

    images = torch.ones(1, 1, 2, 2)
    scores = Tied().predict(images)
    assert agreement._rounding(Tied(), [(images, scores)]) == 1  # pyright: ignore[reportPrivateUsage]
    plain = images / 1e8
    assert agreement._rounding(Tied(), [(plain, Tied().predict(plain))]) == 0  # pyright: ignore[reportPrivateUsage]


def test_weights_that_the_graph_turns_have_8_bits(tmp_path: Path) -> None:
    model, graph, content = written("decouplednet", "vgg16")
    (tmp_path / "model.onnx").write_bytes(content)
    int8.write(tmp_path / "model.onnx", tmp_path / "small.onnx")
    given = agreement.as_squares(model, pictures((97, 97)), graph.side).numpy()
    assert (
        onnx_file.Session(tmp_path / "small.onnx")(given).shape
        == onnx_file.Session(tmp_path / "model.onnx")(given).shape
    )
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "small.onnx"}


class TestResizing:
    @pytest.mark.parametrize(("size", "cells"), [((97, 129), (13, 17)), ((129, 65), (129, 9))])
    def test_antialiased_is_torchs(self, size: tuple[int, int], cells: tuple[int, int]) -> None:
        images = torch.rand(2, 3, *size)
        rows, columns = (resizing.antialiased(a, b, images) for a, b in zip(size, cells, strict=True))
        wanted = F.interpolate(images, cells, mode="bilinear", align_corners=True, antialias=True)
        torch.testing.assert_close(rows @ images @ columns.T, wanted, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("stretched", [True, False])
    @pytest.mark.parametrize("size", [(375, 500), (40, 30), (300, 50), (50, 300), (65, 200), (65, 65), (1, 1)])
    def test_squares_are_opencvs_within_one(self, size: tuple[int, int], stretched: bool) -> None:
        (picture,) = pictures(size)
        graph = graphs.FromPicture(nn.Identity(), stretched, [65], False)
        found = graph._square(torch.from_numpy(picture).permute(2, 0, 1).float(), 65)
        wanted = (stretched_square if stretched else padded_square)(picture, 65).float()
        assert (found - wanted).abs().max() <= 1


def test_tensorflows_padding_becomes_constants() -> None:
    network = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, 5, stride=2)).eval()
    images, formula = torch.rand(1, 3, 65, 81), padding.get_same_padding
    with torch.no_grad():
        wanted = network(images)
        with same_padding.constant(network, 65, 16):
            assert padding.get_same_padding is not formula
            torch.testing.assert_close(network(images), wanted)
        assert padding.get_same_padding is formula
        with same_padding.constant(network, 65, 1):  # odd and even sides are padded differently
            assert padding.get_same_padding is formula


def test_what_an_archive_would_have_unpickled_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        payloads = {"weight": {"use_pickle": False}, "odd": {"use_pickle": True}}
        archive.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": payloads}))
        archive.writestr("m/data/sample_inputs/model.pt", b"")
    assert pt2_file.pickled(path) == ["odd"]
    with pytest.raises(Problem, match="torch pickled odd"):
        pt2_file.Loaded(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data/constants/custom_obj_0", b"something")
    assert pt2_file.pickled(path) == ["odd", "m/data/constants/custom_obj_0"]


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("vgg16", "random", "none needed"),
        ("resnet50", "imagenet", "BSD 3-Clause"),
        ("timm/tf_efficientnet_lite0", "package", "Apache 2.0"),
        ("timm/resnet18", "imagenet", "ImageNet's own terms"),
        ("resnet18", "/somewhere/mine.pth", "your file mine.pth, which only you know"),
    ],
)
def test_the_licence_of_a_trunk(name: str, weights: str, said: str) -> None:
    constants: Any = "torchvision" if weights == "package" else "timm"
    params = backbone(name, weights, normalisation=constants).model_dump(mode="json")
    assert said in licences.of_trunk({"kind": "backbone", "params": params})["licence"]
    assert said in licences.of_trunk({"kind": "classifier", "params": {"backbone": params}})["licence"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A model in a folder of a project, and five photographs with masks elsewhere."""
    classifier, params = small_classifier("vgg16")
    save_classifier(tmp_path / "classifier", "any", params, TAGS, classifier)
    classifier.backbone = backbone()
    system = build("deeplab", classifier).eval()
    folder = tmp_path / "data/own/segmenters/cups/model"
    origin, training = read_card(tmp_path / "classifier", "classifier"), entry("deeplab")["training"]
    save_system(folder, "cups", "deeplab", training, origin, 65, system, MADE_OF)
    (folder / "prediction.json").write_text(json.dumps({"prediction": entry("deeplab")["prediction"]}))
    for number, picture in enumerate(pictures((60, 90), (130, 40), (97, 97), (80, 80), (50, 120))):
        for kind in ("photos", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"photos/{number}.png")
        write_labels(tmp_path / f"masks/{number}.png", (picture[..., 0] % 6).astype(np.uint8))
    return folder


def export(folder: Path, *options: str, code: int = 0) -> str:
    """What the command says, into the folder `out` of the project."""
    out = folder.parents[4] / "out"
    result = CliRunner().invoke(app, ["export-model", str(folder), "--out", str(out), *options])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


class TestCommand:
    def test_a_file_with_its_card_and_8_bits(self, trained: Path, tmp_path: Path) -> None:
        data, out = tmp_path / "data/own", tmp_path / "out"
        results = data / "results/cups"
        made_of.write(results, MADE_OF)
        (results / "metrics.json").write_text(json.dumps({"mean_iou": 0.4321, "images": 17}))
        training = data / "params/train_segmenter/cups.json"
        training.parent.mkdir(parents=True)
        training.write_text(json.dumps({"entry": entry("deeplab", start="backbones/any")}))
        (data / "split").mkdir()
        (data / "split/strong.txt").write_text("a\nb\nc\n")
        given = ("--images", str(tmp_path / "photos"), "--masks", str(tmp_path / "masks"))
        said = export(trained, *given, "--with-resize", "--int8")
        assert "takes uint8 height x width x 3" in said
        assert "8 bits: mIoU" in said
        assert {path.name for path in out.iterdir()} == {"model.onnx", "model.int8.onnx", "card.json", "README.md"}
        card, text = json.loads((out / "card.json").read_text()), " ".join((out / "README.md").read_text().split())
        assert card["classes"] == ["background", *TAGS]
        assert card["checked"]["pictures"] == 5
        assert card["checked"]["same_labels"] >= 0.999
        assert card["int8"]["bytes_int8"] < card["bytes"]
        assert card["scores"]["mean_iou"] == 0.4321
        assert card["learned_from"] == {"masks": 3, "tags": 0, "models": []}
        for part in (
            "mIoU 0.4321 on 17",
            "masks of 3 images",
            "your file weights.pth",
            "turned as a person sees it",
            "8-bit",
        ):
            assert part in text, part
        made_of.write(results, MADE_OF | {"training": "another"})
        export(trained, *given, "--format", "pt2")
        assert {path.name for path in out.iterdir()} == {"model.pt2", "card.json", "README.md"}
        assert json.loads((out / "card.json").read_text())["no_scores"].endswith("another training of it")

    def test_what_does_not_agree_is_not_kept(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = onnx_file.Session.__call__
        monkeypatch.setattr(onnx_file.Session, "__call__", lambda self, value: right(self, value) + 0.01)
        said = export(trained, "--images", str(tmp_path / "photos"), code=2)
        assert "scores differ by up to 0.01" in said
        assert "so it was not kept" in said
        assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier", "data", "masks", "photos"]

    def test_an_export_that_fails_leaves_the_one_before(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "card.json").write_text("{}")
        monkeypatch.setattr(agreement, "SAME_LABELS", 1.1)
        export(trained, "--images", str(tmp_path / "photos"), "--format", "pt2", code=2)
        assert [path.name for path in out.iterdir()] == ["card.json"]
        assert not [*tmp_path.glob(".out.*")]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ((), "name some by --images"),
            (("--int8", "--format", "pt2"), "onnxruntime quantises"),
            (("--images", "{photos}", "--int8"), "name some by --masks"),
            (("--images", "{photos}", "--masks", "{photos}/none"), "name masks as pictures"),
            (("--images", "{photos}", "--tags-at-once", "2"), "scores all classes in one pass"),
        ],
    )
    def test_what_it_refuses(self, trained: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
        given = [option.format(photos=tmp_path / "photos") for option in options]
        assert said in export(trained, *given, code=2)
        assert not (tmp_path / "out").exists()

    def test_a_folder_with_other_things_is_left_alone(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/diary.txt").write_text("mine")
        assert "holds other things than an export" in export(trained, "--images", str(tmp_path / "photos"), code=2)
        assert (tmp_path / "out/diary.txt").read_text() == "mine"

    def test_onnx_wants_its_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "no_such_package"))
        with pytest.raises(Problem, match=r"no_such_package is not installed; run `pip install 'segcore\[onnx\]'`"):
            onnx_file.check_packages()


def test_the_extra_is_what_is_tested() -> None:
    extra = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["onnx"]
    assert {name.partition("==")[0] for name in extra} == {*onnx_file.PACKAGES}
    assert {*extra} <= {*(PROJECT / "requirements.txt").read_text().split()}


def test_validation_images_are_taken_evenly() -> None:
    assert beside.spread(range(20), 4) == [0, 5, 10, 15]
    assert beside.spread([1, 2], 4) == [1, 2]
