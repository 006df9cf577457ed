"""Trained classifiers on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segcore.config import reading
from segcore.config.classifiers import ClassifierParams, FittedParams, TrainedParams
from segcore.models.cards import fill, read_card, write
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier


def save_classifier(
    folder: Path,
    name: str,
    params: TrainedParams | FittedParams,
    tags: list[str],
    model: Classifier,
    made_of: Mapping[str, str] | None = None,
) -> None:
    """Write a classifier of `tags` (names, without the background), and what it was made of (see `made_of.py`)."""
    card = {"kind": "classifier", "name": name, "params": params.model_dump(mode="json"), "tags": tags}
    write(folder, card | {"made_of": dict(made_of or {})}, model)


def load_classifier(folder: Path, device: torch.device) -> tuple[Classifier, TrainedParams | FittedParams, list[str]]:
    """A classifier in eval mode, its parameters and the names of its tags."""
    card = read_card(folder, "classifier")
    model, params = empty_classifier(card)
    fill(folder, model, device)
    model.backbone = params.backbone
    return model, params, card["tags"]


def empty_classifier(card: dict[str, Any]) -> tuple[Classifier, TrainedParams | FittedParams]:
    name = card["name"]
    params = reading.section({"classifiers": {name: card["params"]}}, f"classifiers.{name}", ClassifierParams)
    random = params.backbone.model_copy(update={"weights": "random"})
    return classifiers.build(random, params.head, len(card["tags"])), params
