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

FORMAT = 2
AGAIN = "run the stage that writes it again"
NAMED = 5
"""Arrays that a message names; it counts the others."""


def write(folder: Path, card: dict[str, Any], model: nn.Module | None) -> None:
    """Write the card and, unless it is of a mere backbone, the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    # Gone first and back last, the card never stands beside the weights of another model.
    (folder / "model.json").unlink(missing_ok=True)
    if model is not None:
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


def made_of(folder: Path) -> dict[str, str]:
    """What the model in a folder was made of, as far as its card says so."""
    return read_card(folder, "backbone", "classifier", "system").get("made_of", {})


def fill(folder: Path, model: nn.Module, device: torch.device, may_be_missing: tuple[str, ...] = ()) -> None:
    """Take over the weights in a folder, and put the model on a device in eval mode.

    Args:
        may_be_missing: prefixes of arrays that keep their values where the file has none of them.

    Raises:
        Problem: the file cannot be read, arrays are missing or unexpected, or have another shape.
    """
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
        own = model.state_dict()
        missing = [key for key in own if key not in state and not (may_be_missing and key.startswith(may_be_missing))]
        unexpected = [key for key in state if key not in own]
        if missing or unexpected:
            parts = [f"{what}: {_some(keys)}" for what, keys in (("lacks", missing), ("has also", unexpected)) if keys]
            raise Problem(f"{path} is damaged or of another model, it {', it '.join(parts)}; {AGAIN}")
        model.load_state_dict(own | state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise Problem(f"{path} is damaged or of another model ({error}); {AGAIN}") from error
    # With channels last a CPU predicts in two thirds of the time.
    model.to(device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
