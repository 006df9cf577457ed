"""Trained systems on disk, and new ones built on finished models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segcore import systems
from segcore.config import reading
from segcore.models.cards import fill, read_card, write
from segcore.models.classifiers import empty_classifier, load_classifier
from segcore.networks.classifiers import Classifier
from segcore.systems.contract import System


def save_system(
    folder: Path, name: str, entry: dict[str, Any], classifier: dict[str, Any], input_size: int, model: System
) -> None:
    """Write a system: its entry in params.yaml and the card of the classifier that it was built around."""
    card = {"kind": "system", "name": name, "entry": entry, "classifier": classifier, "input_size": input_size}
    write(folder, card, model)


def load_system(folder: Path, device: torch.device) -> tuple[System, dict[str, Any]]:
    """A system in eval mode and its card (name, entry, classifier, input_size)."""
    card = read_card(folder, "system")
    classifier, _ = empty_classifier(card["classifier"])
    module = systems.load(card["entry"]["module"])
    params = reading.section({"systems": {card["name"]: card["entry"]}}, f"systems.{card['name']}", module.Params)
    model: System = module.build(params, classifier)
    fill(folder, model, device)
    return model, card


def build_on(folder: Path, build: Callable[[Classifier], System]) -> tuple[System, dict[str, Any]]:
    """A new system that starts from the model in `folder`, and the card of the classifier at its beginning.

    From a classifier, `build` makes the system around it; from a system of the same kind, its weights are taken over.

    Raises:
        Problem: no model there, or a system with other layers.
    """
    card = read_card(folder, "classifier", "system")
    if card["kind"] == "classifier":
        classifier, _, _ = load_classifier(folder, torch.device("cpu"))
        return build(classifier), card
    model = build(empty_classifier(card["classifier"])[0])
    fill(folder, model, torch.device("cpu"))
    return model, card["classifier"]
