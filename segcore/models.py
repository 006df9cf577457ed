"""Finished models on disk: `model.safetensors` and a `model.json` that says what it is. Nothing is unpickled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from segcore import systems
from segcore.config import reading
from segcore.config.networks import BackboneParams, ClassifierParams
from segcore.errors import Problem
from segcore.files import write_atomically
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier
from segcore.systems.contract import System

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
    params = reading.section({"systems": {card["name"]: card["entry"]}}, f"systems.{card['name']}", module.Params)
    model: System = module.build(params, classifier)
    _fill(folder, model, device)
    return model, card


def build_on(folder: Path, build: Callable[[Classifier], System]) -> tuple[System, dict[str, Any]]:
    """A new system that starts from the model in `folder`, and the card of the classifier at its beginning.

    From a classifier, `build` makes the system around it; from a system of the same kind, its weights are taken over.

    Raises:
        Problem: no model there, or a system with other layers.
    """
    card = _read_card(folder, "classifier", "system")
    if card["kind"] == "classifier":
        classifier, _, _ = load_classifier(folder, torch.device("cpu"))
        return build(classifier), card
    model = build(_empty_classifier(card["classifier"])[0])
    _fill(folder, model, torch.device("cpu"))
    return model, card["classifier"]


def _empty_classifier(card: dict[str, Any]) -> tuple[Classifier, ClassifierParams]:
    name = card["name"]
    params = reading.section({"classifiers": {name: card["params"]}}, f"classifiers.{name}", ClassifierParams)
    random = BackboneParams.model_validate(params.backbone.model_dump() | {"weights": "random"})
    return classifiers.build(random, params.head, len(card["tags"])), params


def _write(folder: Path, card: dict[str, Any], model: nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Gone first and back last, the card never stands beside the weights of another model.
    (folder / "model.json").unlink(missing_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(state))
    write_atomically(folder / "model.json", json.dumps({"format": FORMAT, **card}, indent=2).encode())


def _read_card(folder: Path, *kinds: str) -> dict[str, Any]:
    path = folder / "model.json"
    if not path.is_file():
        raise Problem(f"{folder} holds no model (there is no model.json); run the stage that trains it")
    try:
        card = json.loads(path.read_text())
    except ValueError as error:
        raise Problem(f"{path} is damaged ({error}); run the stage that writes it again") from error
    found = (card.get("kind"), card.get("format"))
    if found[0] not in kinds or found[1] != FORMAT:
        raise Problem(
            f"{path}: found a {found[0]} of format {found[1]}; wanted a {' or a '.join(kinds)} of format {FORMAT}"
        )
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
