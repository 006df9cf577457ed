"""Seeds, device, precision, processes and whole files: what a run decides once."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

from segcore.problems import Problem

Item = TypeVar("Item")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` at once: a crash or a full disk leaves the old file or none, never half of one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise Problem(f"{path} could not be written ({error.strerror}); nothing that was there is lost") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fingerprint(run: Any, sources: Iterable[Path]) -> str:
    """A short name for parameters and the contents of files: equal only where both are."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode())
    for source in sorted(sources):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:16]


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of its parts alone, so that order, workers and ranks change nothing."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Runtime:
    """The device, the processes and the precision of a run.

    One process on a CPU or GPU, or many started by `torchrun`: the same code. The number type is bf16 where asked
    for, or where `auto` finds a GPU that has it, else fp32.
    """

    def __init__(self, precision: Literal["auto", "fp32", "bf16"] = "fp32") -> None:
        has_gpu = torch.cuda.is_available()
        bf16 = precision == "bf16" or (precision == "auto" and has_gpu and torch.cuda.is_bf16_supported())
        self.accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not has_gpu)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.precision = "bf16" if bf16 else "fp32"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of per-image work."""
        return items[self.rank :: self.world]

    def gather(self, value: Item) -> list[Item]:
        """The values of all processes, in their order; for numbers, matrices and small tables."""
        if self.world == 1:
            return [value]
        values: list[Item | None] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes; carries no gradient."""
        if self.world > 1:
            value = value.detach().clone()
            distributed.all_reduce(value)
        return value
