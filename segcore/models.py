"""Finished models on disk: `model.safetensors` and a `model.json` that says what it is. Nothing is unpickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from segcore import classifiers, config, systems
from segcore.classifiers import Classifier
from segcore.problems import Problem
from segcore.runtime import write_atomically
from segcore.sections import BackboneParams, ClassifierParams
from segcore.systems import System

FORMAT = 1


def save_classifier(folder: Path, name: str, params: ClassifierParams, tags: list[str], model: Classifier) -> None:
    """Write a classifier of `tags` (names, without the background)."""
    _write(folder, {"kind": "classifier", "name": name, "params": params.model_dump(mode="json"), "tags": tags}, model)


def load_classifier(folder: Path, device: torch.device) -> tuple[Classifier, ClassifierParams, list[str]]:
    """A classifier in eval mode, its parameters and the names of its tags."""
    card = _read_card(folder, "classifier")
    model, params = _empty_classifier(card)
    _fill(folder, model, device)
    model.backbone = params.backbone
    return model, params, card["tags"]


def save_system(
    folder: Path, name: str, entry: dict[str, Any], classifier: dict[str, Any], input_size: int, model: System
) -> None:
    """Write a system: its entry in params.yaml and the card of the classifier that it was built around."""
    card = {"kind": "system", "name": name, "entry": entry, "classifier": classifier, "input_size": input_size}
    _write(folder, card, model)


def load_system(folder: Path, device: torch.device) -> tuple[System, dict[str, Any]]:
    """A system in eval mode and its card (name, entry, classifier, input_size)."""
    card = _read_card(folder, "system")
    classifier, _ = _empty_classifier(card["classifier"])
    module = systems.load(card["entry"]["module"])
    params = config.section({"systems": {card["name"]: card["entry"]}}, f"systems.{card['name']}", module.Params)
    model: System = module.build(params, classifier)
    _fill(folder, model, device)
    return model, card


def classifier_card(folder: Path) -> dict[str, Any]:
    """What `load_classifier` builds from, for the card of a system around it."""
    return _read_card(folder, "classifier")


def _empty_classifier(card: dict[str, Any]) -> tuple[Classifier, ClassifierParams]:
    name = card["name"]
    params = config.section({"classifiers": {name: card["params"]}}, f"classifiers.{name}", ClassifierParams)
    random = BackboneParams.model_validate(params.backbone.model_dump() | {"weights": "random"})
    return classifiers.build(random, params.head, len(card["tags"])), params


def _write(folder: Path, card: dict[str, Any], model: nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(state))
    write_atomically(folder / "model.json", json.dumps({"format": FORMAT, **card}, indent=2).encode())


def _read_card(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / "model.json"
    if not path.is_file():
        raise Problem(f"{folder} holds no model (there is no model.json); run the stage that trains it")
    try:
        card = json.loads(path.read_text())
    except ValueError as error:
        raise Problem(f"{path} is damaged ({error}); run the stage that writes it again") from error
    if (found := (card.get("kind"), card.get("format"))) != (kind, FORMAT):
        raise Problem(f"{path}: found a {found[0]} of format {found[1]}; wanted a {kind} of format {FORMAT}")
    return card


def _fill(folder: Path, model: nn.Module, device: torch.device) -> None:
    path = folder / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise Problem(f"{path} is damaged or of another model ({error}); run the stage that writes it again") from error
    # With channels last a CPU predicts in two thirds of the time.
    model.to(device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()
