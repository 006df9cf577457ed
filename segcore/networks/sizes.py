"""Which sizes of picture the trunks of a parameters file are asked for, and whether they take them.

Some of timm's networks take one size of picture, or multiples of a number. One that refuses a size does so in the
middle of a training, or after hours of it, when a view of another scale is predicted. So every size is tried on a
network without memory before anything is made.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from segcore.config.classifiers import FittedParams
from segcore.config.labels import LabelsFromKnownTags, LabelsFromPredictions, MapsEntry
from segcore.config.networks import TIMM, BackboneParams
from segcore.config.settings import Settings
from segcore.config.systems import BACKBONES, CROPS, SEGMENTERS
from segcore.errors import Problem, Problems
from segcore.networks import backbones
from segcore.networks.package_weights import PACKAGES
from segcore.networks.pooled_head import sizes_of
from segcore.networks.timm_models import unknown
from segcore.networks.trunk import Trunk

LARGEST = 1024
"""Sides up to which a size is looked for that a network takes."""

NAMED = 3
"""Places that a message names; it counts the others."""


@dataclass(frozen=True)
class Use:
    """A size of picture that a trunk is to take, where the parameters say so, and what else they allow there:
    multiples of `step`, and `offset` more."""

    place: str
    backbone: BackboneParams
    size: int
    step: int
    offset: int


def check(settings: Settings) -> None:
    """See that every trunk can be had at the strides, and takes the sizes, that it is asked for.

    EfficientNets out of a package and networks that are not timm's take every size, and are not made.

    Raises:
        Problems: those that cannot, and the next sizes that they take.
    """
    trunks: dict[BackboneParams, Trunk | str] = {}
    tried: dict[tuple[BackboneParams, int, int, int], str | None] = {}
    problems: dict[str, list[str]] = {}
    for use in uses(settings):
        params = use.backbone
        if params.name in PACKAGES or (params.stride != 14 and not params.name.startswith(TIMM)):
            continue
        if params not in trunks:
            trunks[params] = _without_memory(params)
        trunk, key = trunks[params], (params, use.size, use.step, use.offset)
        if key not in tried:
            tried[key] = trunk if isinstance(trunk, str) else _refused(trunk, use)
        if (problem := tried[key]) is not None:
            problems.setdefault(problem, []).append(use.place)
    if problems:
        raise Problems("params.yaml has a mistake:", [f"{_told(at)}: {problem}" for problem, at in problems.items()])


def _told(places: list[str]) -> str:
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    return ", ".join(places[:NAMED]) + more


def uses(settings: Settings) -> Iterator[Use]:
    """Every size that a trunk is asked for: of classifiers, of pseudo-labels, of systems at each of their views."""
    for name, entry in settings.classifiers.items():
        if isinstance(entry, FittedParams):
            for size in sizes_of(entry.head):
                yield _use(f"classifiers.{name}.head", entry.backbone, size)
            continue
        yield _use(f"classifiers.{name}.input_size", entry.backbone, entry.input_size)
        yield _use(f"classifiers.{name}.test_size", entry.backbone, entry.test_size)
    for name, labels in settings.pseudo_labels.items():
        kind, _, source = getattr(labels, "input", "").partition("/")
        if isinstance(labels, MapsEntry):
            yield _use(f"pseudo_labels.{name}.input_size", settings.classifiers[source].backbone, labels.input_size)
        elif isinstance(labels, LabelsFromPredictions | LabelsFromKnownTags) and kind == SEGMENTERS:
            views = {"views": labels.views.model_dump()}
            yield from _at_views(f"pseudo_labels.{name}.views", settings, source, views, labels.input_size)
    for name, system in settings.systems.items():
        yield from _at_views(f"systems.{name}", settings, name, system.prediction, None)


def _at_views(
    place: str, settings: Settings, name: str, prediction: Mapping[str, Any], size: int | None
) -> Iterator[Use]:
    """The sizes that a system predicts at; it is trained at that of scale 1."""
    system = settings.systems[name]
    kind, start = settings.origin_of(name)
    backbone = settings.backbones[start] if kind == BACKBONES else settings.classifiers[start].backbone
    network = system.training.get("network")
    network = network if isinstance(network, Mapping) else {}
    own = network.get("input_size", settings.crops.input_size if system.labels == CROPS else None)
    if (size := size or own) is None:
        return
    backbone = backbone.model_copy(update={"stride": network.get("stride", backbone.stride)})
    # As `evaluation.inference` rounds them: a network with a grid has squares of k * stride + 1 pixels.
    step, offset = (backbone.stride, 1) if "stride" in network else (32, 0)
    for scale in dict.fromkeys((1.0, *prediction["views"]["scales"])):
        side = max(step, round((size * scale - offset) / step) * step) + offset
        where = place if scale == 1 else f"{place} at scale {scale:g}"
        yield Use(where, backbone, side, step, offset)


def _use(place: str, backbone: BackboneParams, size: int) -> Use:
    return Use(place, backbone, size, backbone.stride, size % backbone.stride)


def _without_memory(params: BackboneParams) -> Trunk | str:
    """The trunk, or why it cannot be had."""
    name = params.name.removeprefix(TIMM)
    if name != params.name and (problem := unknown(name)):
        return problem
    try:
        with torch.device("meta"):
            return backbones.build(params.model_copy(update={"weights": "random"})).eval()
    except Problem as problem:
        return str(problem)


def _refused(trunk: Trunk, use: Use) -> str | None:
    if _takes(trunk, use.size):
        return None
    own = getattr(trunk.body, "pretrained_cfg", {}).get("input_size", (3, 0, 0))[1]
    allowed = range(use.step + use.offset, LARGEST, use.step)
    others = sorted({*allowed} - {use.size}, key=lambda size: abs(size - use.size))
    below = next((size for size in others if size < use.size and _takes(trunk, size)), None)
    above = next((size for size in others if size > use.size and _takes(trunk, size)), None)
    if below is None and above is None and not (own and _takes(trunk, own)):
        return None  # it cannot be tried without memory, which is no reason to refuse it
    near = [str(size) for size in (below, above) if size is not None]
    advice = f"the next sizes that it takes here: {', '.join(near)}" if near else "it takes no size that can stand here"
    return f"{use.backbone.name} does not take pictures of {use.size} pixels; {advice}; or choose another trunk"


@torch.no_grad()
def _takes(trunk: Trunk, size: int) -> bool:
    try:
        trunk(torch.zeros(1, 3, size, size, device="meta"))
    except Exception:  # timm's networks refuse in a dozen ways
        return False
    return True
