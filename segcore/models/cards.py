"""The file format of finished models: weights as safetensors, a JSON card beside them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from segcore.errors import Problem
from segcore.files import write_atomically

FORMAT = 1


def write(folder: Path, card: dict[str, Any], model: nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Gone first and back last, the card never stands beside the weights of another model.
    (folder / "model.json").unlink(missing_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(state))
    write_atomically(folder / "model.json", json.dumps({"format": FORMAT, **card}, indent=2).encode())


def read_card(folder: Path, *kinds: str) -> dict[str, Any]:
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


def fill(folder: Path, model: nn.Module, device: torch.device) -> None:
    path = folder / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise Problem(f"{path} is damaged or of another model ({error}); run the stage that writes it again") from error
    # With channels last a CPU predicts in two thirds of the time.
    model.to(device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()
