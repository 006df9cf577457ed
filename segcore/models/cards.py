"""The file format of finished models: weights as safetensors, a JSON card beside them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from segcore.errors import Problem
from segcore.files import regular, write_atomically

FORMAT = 3
AGAIN = "run the stage that writes it again"
NAMED = 5
"""Arrays that a message names; it counts the others."""


def write(folder: Path, card: dict[str, Any], model: nn.Module | None) -> None:
    """Write the card and, unless it is of a mere backbone, the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    # Gone first and back last, the card never stands beside the weights of another model.
    (folder / "model.json").unlink(missing_ok=True)
    card = {"format": FORMAT, **card}
    if model is not None:
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        content = save(state)
        card["weights_sha256"] = hashlib.sha256(content).hexdigest()
        write_atomically(folder / "model.safetensors", content)
    write_atomically(folder / "model.json", json.dumps(card | {"sum": _sum(card)}, indent=2).encode())


def _sum(card: dict[str, Any]) -> str:
    """Of all that a card says, by which an edited one is known: it would be another model of the same weights."""
    content = {key: value for key, value in card.items() if key != "sum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_card(folder: Path, *kinds: str) -> dict[str, Any]:
    """What a card of one of these kinds says.

    Raises:
        Problem: there is none, or one that is damaged, was edited, or is of another kind or format.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise Problem(f"{folder} holds no model (there is no model.json); run the stage that trains it")
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Problem(f"{path} is damaged ({error}); {AGAIN}") from error
    if not isinstance(card, dict):
        raise Problem(f"{path} is damaged (it holds no card but a {type(card).__name__}); {AGAIN}")
    found = (card.get("kind"), card.get("format"))
    if found[0] not in kinds or found[1] != FORMAT:
        raise Problem(
            f"{path}: found a {found[0]} of format {found[1]}; wanted a {' or a '.join(kinds)} of format {FORMAT}"
        )
    if card.get("sum") != _sum(card):
        raise Problem(f"{path} was edited or damaged since it was written (its sum differs); {AGAIN}")
    return card


def made_of(folder: Path) -> dict[str, str]:
    """What the model in a folder was made of, as far as its card says so."""
    return read_card(folder, "backbone", "classifier", "system").get("made_of", {})


def fill(folder: Path, model: nn.Module, device: torch.device, may_be_missing: tuple[str, ...] = ()) -> None:
    """Take over the weights in a folder, and put the model on a device in eval mode.

    Args:
        may_be_missing: prefixes of arrays that keep their values where the file has none of them.

    Raises:
        Problem: the file cannot be read, is not the one that the card was written for; arrays are missing or
            unexpected, have another shape or type, or hold what is no number.
    """
    path = folder / "model.safetensors"
    try:
        state = load_file(regular(path))
        own = model.state_dict()
        missing = [key for key in own if key not in state and not (may_be_missing and key.startswith(may_be_missing))]
        unexpected = [key for key in state if key not in own]
        if missing or unexpected:
            parts = [f"{what}: {_some(keys)}" for what, keys in (("lacks", missing), ("has also", unexpected)) if keys]
            raise Problem(f"{path} is damaged or of another model, it {', it '.join(parts)}; {AGAIN}")
        model.load_state_dict(own | state)
        if odd := [key for key, value in state.items() if value.dtype != own[key].dtype]:
            kinds = f"{state[odd[0]].dtype} for {own[odd[0]].dtype}"
            raise Problem(f"{path} is of another model: it has another type of {_some(odd)} ({kinds}); {AGAIN}")
        if odd := [key for key, value in state.items() if not value.isfinite().all()]:
            raise Problem(f"{path} holds NaN or infinite numbers, in {_some(odd)}; {AGAIN}")
        if not _belongs(folder, path):
            raise Problem(f"{path} is not the file that {folder / 'model.json'} was written for; {AGAIN}")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise Problem(f"{path} is damaged or of another model ({error}); {AGAIN}") from error
    # With channels last a CPU predicts in two thirds of the time.
    model.to(device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()


def _belongs(folder: Path, weights: Path) -> bool:
    card = read_card(folder, "classifier", "system")
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == card.get("weights_sha256")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
