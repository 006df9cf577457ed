"""Small networks and batches for tests."""

import copy
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segcore import systems
from segcore.config import reading
from segcore.config.classifiers import FullyConnectedParams, PooledParams
from segcore.config.data import GradientEdges
from segcore.config.labels import CRFParams
from segcore.config.networks import TIMM, AnyBackbone, BackboneParams
from segcore.config.section import Views
from segcore.data.batches import Batch, Moment
from segcore.data.pictures import IGNORE
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier, FullyConnectedHead
from segcore.networks.deeplab import at_cells
from segcore.networks.origin import Origin
from segcore.networks.pooled_head import PooledHead
from segcore.systems._grid import SMALLEST_CUES
from segcore.systems.contract import System

N_TAGS = 5
SIZE = 96
COLOURS = torch.tensor([[90, 90, 90], [250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20], [20, 250, 250]])


def backbone(
    name: str = "vgg16",
    weights: str = "random",
    frozen_norm: bool = False,
    stride: Literal[8, 14, 16, 32] = 32,
    normalisation: Literal["torchvision", "timm"] = "timm",
) -> BackboneParams:
    """A trunk that costs nothing: VGG-16 of 4 to 32 channels, or whatever else is asked for."""
    values: dict[str, Any] = {"name": name, "weights": weights, "frozen_norm": frozen_norm, "stride": stride}
    values |= {"width": 1 / 16 if name.startswith("vgg") else 1.0, "finer": "dilated"}
    values |= {"normalisation": normalisation} if name.startswith(TIMM) else {}
    return reading.section({"backbone": values}, "backbone", AnyBackbone)


def fully_connected(**changes: Any) -> FullyConnectedParams:
    """A small head, or with other values."""
    values = {"kind": "fully_connected", "width": 24, "kernel": 2, "padding": 0, "batch_norm": False, "dropout": 0.0}
    return FullyConnectedParams.model_validate(values | changes)


def tiny_classifier(
    name: str = "vgg16",
    n_tags: int = N_TAGS,
    kernel: int = 2,
    width: int = 24,
    dropout: float = 0.0,
    seed: int = 0,
    padding: int = 0,
    batch_norm: bool = False,
) -> Classifier:
    """A random classifier in eval mode."""
    torch.manual_seed(seed)
    head = fully_connected(width=width, kernel=kernel, padding=padding, batch_norm=batch_norm, dropout=dropout)
    return classifiers.build(backbone(name), head, n_tags).eval()


def linear_classifier(name: str = "vgg16", n_tags: int = N_TAGS, seed: int = 0) -> Classifier:
    """A random classifier with a pooled head, whose numbers a fit would set, in eval mode."""
    torch.manual_seed(seed)
    views = Views(scales=(1.0,), flip=False)
    head = PooledParams(kind="pooled", input_size=SIZE, levels=1, pools=("mean", "max"), views=views)
    classifier = classifiers.build(backbone(name), head, n_tags).eval()
    assert isinstance(classifier.head, PooledHead)
    for numbers in (classifier.head.weight, classifier.head.class_vectors):
        nn.init.normal_(numbers, std=0.5)
    return classifier


def classifier_for(module: str, trunk: str = "vgg16", **options: Any) -> Classifier:
    """A classifier that the smallest entry of `module` may start from: one with a linear head if it says so."""
    if entry(module)["start"] == "classifiers/linear":
        return linear_classifier(trunk, seed=options.get("seed", 0))
    return tiny_classifier(trunk, **options)


def vgg16_file(path: Path, width: int) -> dict[str, Tensor]:
    """A file with torchvision's names: a small trunk, and fully connected layers over its 7x7 map."""
    trunk = tiny_classifier().trunk
    state = {key: torch.randn_like(value) for key, value in trunk.state_dict().items()}
    for number, inputs in ((0, trunk.channels * 49), (3, width), (6, width)):
        state[f"classifier.{number}.weight"] = torch.randn(width, inputs)
        state[f"classifier.{number}.bias"] = torch.randn(width)
    save_file(state, path)
    return state


def published_classifier() -> Classifier:
    """VGG-16 with the published head and 20 tags; on the device `meta`, where it takes no memory."""
    with torch.device("meta"):
        params = BackboneParams(
            name="vgg16", weights="random", width=1.0, frozen_norm=False, stride=32, finer="dilated"
        )
        return classifiers.build(params, fully_connected(width=4096, kernel=7, dropout=0.5), 20).eval()


CRF = CRFParams.model_validate(SMALLEST_CUES["crf"])
EDGES = GradientEdges(kind="gradient", max_fraction=0.12)


def views(*scales: float, flip: bool = False) -> Views:
    """At one size, or at those given."""
    return Views(scales=scales or (1.0,), flip=flip)


def laid(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values over others, mappings key by key."""
    both = {key: (below[key], value) for key, value in over.items() if key in below}
    deep = {key: laid(*two) for key, two in both.items() if all(isinstance(value, Mapping) for value in two)}
    return {**below, **over, **deep}


def entry(module: str, **changes: Any) -> dict[str, Any]:
    """The smallest entry of `module`, with other values laid over it."""
    return laid(copy.deepcopy(systems.load(module).smallest()), changes)


def params_of(module: str, **changes: Any) -> Any:
    """The `Training` of a small entry; changes are of its `training`."""
    return _part(module, "training", systems.load(module).Training, changes)


def prediction_of(module: str, **changes: Any) -> Any:
    """The `Prediction` of a small entry; changes are of its `prediction`."""
    return _part(module, "prediction", systems.load(module).Prediction, changes)


def _part(module: str, part: str, into: Any, changes: dict[str, Any]) -> Any:
    content = {"systems": {"tested": entry(module, **{part: changes})}}
    return reading.section(content, f"systems.tested.{part}", into)


def module_of(system: System) -> str:
    """The name of the file that a system is defined in."""
    return type(system).__module__.rpartition(".")[2]


def origin(start: Classifier | BackboneParams, n_tags: int = N_TAGS) -> Origin:
    """A classifier, or a backbone for so many tags, to start from."""
    if isinstance(start, BackboneParams):
        return Origin(tag_names(n_tags), start, None)
    return Origin(tag_names(start.n_tags), start.backbone, start)


def tag_names(n_tags: int = N_TAGS) -> list[str]:
    return [f"tag_{number}" for number in range(1, n_tags + 1)]


def build(module: str, start: Classifier | BackboneParams, **changes: Any) -> System:
    """A system on a start, by way of its entry, whose `training` is changed; it predicts as its entry says."""
    torch.manual_seed(1)
    system: System = systems.load(module).build(params_of(module, **changes), origin(start))
    return predicting(system)


def predicting(system: System, **changes: Any) -> System:
    """The system, now told to predict as its smallest entry says, with changes."""
    system.prediction = prediction_of(module_of(system), **changes)
    return system


def squares(count: int, size: int = SIZE, n_tags: int = N_TAGS, seed: int = 0) -> Batch:
    """Noisy pictures with two coloured squares each, a border of unknown pixels, and the tags of both squares."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    tags = torch.zeros(count, n_tags)
    for number in range(count):
        for place in range(2):
            label = (number + place * 2) % n_tags + 1
            top, left = 8 + 6 * number % 16, 4 + place * size // 2
            labels[number, top : top + size // 2, left : left + size // 3] = label
            tags[number, label - 1] = 1
    images = COLOURS[labels].permute(0, 3, 1, 2) + 20 * torch.randn(count, 3, size, size, generator=random)
    labels[:, 0] = IGNORE
    ids = tuple(f"image_{i}" for i in range(count))
    return Batch(ids, images.clamp(0, 255), tags, labels, when=Moment(0, 1))


def batch_of(system: System, count: int, size: int = SIZE, seed: int = 0) -> Batch:
    """`squares` with labels as the system is trained on: for one that learns from tags, most of them are unknown.

    Where it learns from masks too, every second sample is strong, from the first on.
    """
    batch = squares(count, size, seed=seed)
    module: Any = sys.modules[type(system).__module__]
    learns = module.supervision(system.params, module.smallest()["labels"])
    labels = at_cells(batch.labels, system.label_stride).clone()
    strong = torch.arange(count) % (2 if learns.tags else 1) == 0 if learns.masks else torch.zeros(count) > 0
    if learns.tags:
        unknown = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) > 0.3
        labels[unknown & ~strong[:, None, None]] = IGNORE
    return replace(batch, labels=labels, strong=strong)


def parameters(*modules: nn.Module) -> int:
    """How many numbers they learn."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def find_exactly(classifier: Classifier, images: Tensor, wanted: list[list[int]]) -> None:
    """Turn the last layer of a classifier so that it finds the tags (1..L) `wanted[i]` in image i, with spread scores.

    The score of a tag is linear in the mean activation of fc7, which is different for every image.
    """
    with torch.no_grad():
        hidden = classifier(images).fc7.mean((2, 3)).double()
        targets = torch.full((len(images), classifier.n_tags), -1.0, dtype=torch.float64)
        for image, labels in enumerate(wanted):
            for label in labels:
                targets[image, label - 1] = 0.3 + 0.4 * label
        hidden = torch.cat([hidden, torch.ones(len(images), 1)], dim=1)
        assert isinstance(classifier.head, FullyConnectedHead)
        solution = torch.linalg.lstsq(hidden, targets, driver="gelsd").solution.float()
        classifier.head.score.weight.copy_(solution[:-1].T[:, :, None, None])
        assert classifier.head.score.bias is not None
        classifier.head.score.bias.copy_(solution[-1])


def system_of(module: str, trunk: str = "vgg16", **changes: Any) -> System:
    """A small random system around a classifier with dropout."""
    return build(module, classifier_for(module, trunk, dropout=0.3), **changes)


def total(system: System, batch: Batch) -> Tensor:
    """What training minimises."""
    terms = system.losses(batch).values()
    return torch.stack([term.over(term.weight) for term in terms if term.total.requires_grad]).sum()
