"""The resumable state of a training run: a scratch file, outside DVC, replaced at once and checked when read.

DVC deletes a stage's outputs before it runs and would hand an experiment the state of another one, so the state is
none of its business. The file's name carries a fingerprint of everything that shapes the run.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from segcore.files import regular, replacing

MAGIC = b"segcore2"
PARTS = {"model", "optimiser", "history", "worlds", "run"}
HEAD_BYTES = len(MAGIC) + hashlib.sha256().digest_size


@dataclass(frozen=True)
class Unreadable:
    """Why a checkpoint cannot be used; the run then starts from its first step."""

    reason: str


class _Summed:
    """Passes writes on and sums them up, so that a state of gigabytes is never held in memory twice."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, content: bytes | memoryview) -> int:
        try:
            self.digest.update(content)
            return self.file.write(content)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint; on a full disk a `Problem` is raised and the former one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(bytes(HEAD_BYTES))
        content = _Summed(file)
        try:
            torch.save(state, cast(BinaryIO, content))
        except RuntimeError as error:
            # torch hides why writing failed, or that it was interrupted, behind an error of its own.
            raise content.error or error from None
        file.seek(0)
        file.write(MAGIC + content.digest.digest())


def load(path: Path) -> dict[str, Any] | Unreadable | None:
    """The state in `path`; None where there is none; `Unreadable` where it is damaged."""
    try:
        with regular(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
            if head != MAGIC + hashlib.file_digest(file, "sha256").digest():
                return Unreadable(f"{path} is damaged (its check sum differs)")
            file.seek(HEAD_BYTES)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Unreadable(f"{path} cannot be read ({error.strerror})")
    except Exception as error:  # torch raises a dozen types for a file of right sum that is none of its own
        return Unreadable(f"{path} holds no state of a training ({type(error).__name__})")
    if (wrong := _wrong(state)) is not None:
        return Unreadable(f"{path} holds no state of a training ({wrong})")
    return state


def _wrong(state: Any) -> str | None:
    """What a state lacks that was saved in the midst of a training."""
    if not isinstance(state, dict) or {*state} != PARTS:
        return "it has other parts"
    arrays, optimiser, history = state["model"], state["optimiser"], state["history"]
    if not isinstance(arrays, dict) or not all(isinstance(value, torch.Tensor) for value in arrays.values()):
        return "its model is none"
    if not isinstance(optimiser, dict) or {*optimiser} != {"state", "param_groups"}:
        return "its optimiser is none"
    if not isinstance(history, list) or not all(isinstance(losses, dict) for losses in history):
        return "its history is none"
    if not all(isinstance(value, float) for losses in history for value in losses.values()):
        return "its history is none"
    worlds, run = state["worlds"], state["run"]
    known = isinstance(worlds, list) and all(isinstance(world, int) for world in worlds) and isinstance(run, str)
    return None if known else "it does not tell by how many processes"
