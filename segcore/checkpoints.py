"""The resumable state of a training run: a scratch file, outside DVC, replaced at once and checked when read.

DVC deletes a stage's outputs before it runs and would hand an experiment the state of another one, so the state is
none of its business. The file's name carries a fingerprint of everything that shapes the run.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segcore.runtime import write_atomically

MAGIC = b"segcore1"
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Unreadable:
    """Why a checkpoint cannot be used; the run then starts from its first step."""

    reason: str


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint; on a full disk a `Problem` is raised and the former one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_atomically(path, MAGIC + hashlib.sha256(content).digest() + content)


def load(path: Path) -> dict[str, Any] | Unreadable | None:
    """The state in `path`; None where there is none; `Unreadable` where it is damaged."""
    if not path.exists():
        return None
    whole = path.read_bytes()
    head, content = whole[: len(MAGIC) + DIGEST_BYTES], whole[len(MAGIC) + DIGEST_BYTES :]
    if head != MAGIC + hashlib.sha256(content).digest():
        return Unreadable(f"{path} is damaged (its check sum differs)")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
