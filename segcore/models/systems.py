"""Trained systems on disk, and new ones built on backbones and finished models."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from segcore import systems
from segcore.config.networks import AnyBackbone, BackboneParams
from segcore.config.reading import section
from segcore.errors import Problem
from segcore.files import fingerprint
from segcore.models.cards import fill, read_card, write
from segcore.models.classifiers import empty_classifier, load_classifier
from segcore.networks.fusion import fuse
from segcore.networks.origin import Origin
from segcore.systems.contract import System


def save_backbone(
    folder: Path, name: str, params: BackboneParams, files: Mapping[str, str | None] | None = None
) -> None:
    """Write the card of a backbone, for a system to start from; its weights are where its parameters say.

    `files` has the sum of each file that they name, so that who starts from it starts again if that is another one.
    """
    plain = params.model_dump(mode="json")
    made_of = {"training": fingerprint(plain, ())}
    card = {"kind": "backbone", "name": name, "params": plain, "made_of": made_of}
    write(folder, card | ({"files": dict(files)} if files else {}), None)


def save_system(
    folder: Path,
    name: str,
    module: str,
    training: dict[str, Any],
    origin: dict[str, Any],
    input_size: int,
    model: System,
    made_of: Mapping[str, str] | None = None,
) -> None:
    """Write a system: its module, its training, the card of what it started from, what it was made of.

    How it predicts is no part of it: `load_system` is told.
    """
    card = {"kind": "system", "name": name, "module": module, "training": training, "origin": origin}
    card |= {"tags": origin["tags"], "input_size": input_size, "made_of": dict(made_of or {})}
    write(folder, card, model)


def load_system(
    folder: Path, prediction: dict[str, Any], device: torch.device, as_trained: bool = False
) -> tuple[System, dict[str, Any]]:
    """A system in eval mode that predicts as told, and its card (name, module, training, origin, tags, input_size).

    Its network is rewritten to predict faster (`networks/fusion.py`), unless it is wanted with the layers `as_trained`.
    """
    card = read_card(folder, "system")
    name, module = card["name"], systems.load(card["module"])
    content = {"systems": {name: {"training": card["training"], "prediction": prediction}}}
    params = section(content, f"systems.{name}.training", module.Training)
    model: System = module.build(params, _without_weights(card["origin"]))
    model.prediction = section(content, f"systems.{name}.prediction", module.Prediction)
    fill(folder, model, device)
    if not as_trained:
        fuse(model, partial(_predict_once, model, module, card, device))
    return model, card


def _predict_once(model: System, module: Any, card: dict[str, Any], device: torch.device) -> None:
    """Use every layer that predicts, also those that run for found tags alone."""
    side = model.side_near(card["input_size"])
    black = torch.zeros(1, 3, side, side, device=device)
    model.predict(black)
    if getattr(module, "TAKES_TAGS", False):
        model.predict_given(black, torch.ones(1, len(card["tags"]), device=device))


def build_on(folder: Path, tags: list[str], build: Callable[[Origin], System]) -> tuple[System, dict[str, Any]]:
    """A new system of `tags` that starts from what is in `folder`, and the card of its origin.

    From a backbone or a classifier, `build` makes the system around it; from a system with the same layers, its weights
    are taken over. What the new one has beyond (`System.may_be_missing`) keeps its initial weights.

    Raises:
        Problem: no model there, one of other tags, or a system with other layers.
    """
    card = read_card(folder, "backbone", "classifier", "system")
    if card["kind"] == "backbone":
        card["tags"] = tags
        return build(Origin(tags, _backbone_of(card), None)), card
    if card["tags"] != tags:
        raise Problem(f"{folder} was trained for {card['tags']}, but the data set has {tags}; train it again")
    if card["kind"] == "classifier":
        classifier, params, _ = load_classifier(folder, torch.device("cpu"))
        return build(Origin(tags, params.backbone, classifier)), card
    model = build(_without_weights(card["origin"]))
    fill(folder, model, torch.device("cpu"), model.may_be_missing)
    return model, card["origin"]


def _without_weights(card: dict[str, Any]) -> Origin:
    """An origin of the same shape, for a system whose weights are there already."""
    if card["kind"] == "classifier":
        classifier, _ = empty_classifier(card)
        return Origin(card["tags"], classifier.backbone, classifier)
    backbone = _backbone_of(card)
    return Origin(card["tags"], backbone.model_copy(update={"weights": "random"}), None)


def _backbone_of(card: dict[str, Any]) -> BackboneParams:
    return section({"backbones": {card["name"]: card["params"]}}, f"backbones.{card['name']}", AnyBackbone)
