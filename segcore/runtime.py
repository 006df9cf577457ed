"""Seeds, device, precision, processes and whole files: what a run decides once."""

import atexit
import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

from segcore.errors import Problem

Item = TypeVar("Item")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` at once when the block ends well.

    A crash or a full disk leaves the old file or none, never half of one. A kill may leave `.<name>.partial` behind;
    the next run writes over it.

    Raises:
        Problem: the file could not be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Problem(f"{path} could not be written ({error.strerror}); nothing that was there is lost") from error
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` at once; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


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


def _leave() -> None:
    """Part from the other processes: at an exit, gloo's threads that still run would abort this one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


class Runtime:
    """The device, the processes and the precision of a run.

    One process on a CPU or GPU, or many started by `torchrun`: the same code. `bf16` computes in bf16 what torch's
    autocast deems safe; `auto` does so on a GPU with bf16 units only. A CPU never changes by itself, not even one
    with such units, so that the same run gives the same numbers on all of them.
    """

    def __init__(self, precision: Literal["auto", "fp32", "bf16"] = "fp32") -> None:
        has_gpu = torch.cuda.is_available()
        bf16 = precision == "bf16" or (
            precision == "auto" and has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        # Accelerate fixes its precision once a process, ours is a run's own: see `autocast`.
        self.accelerator = Accelerator(mixed_precision="no", cpu=not has_gpu)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.precision = "bf16" if bf16 else "fp32"
        if self.world > 1:
            atexit.unregister(_leave)
            atexit.register(_leave)

    @property
    def arithmetic(self) -> list[str | int]:
        """All of this machine that rounding depends on: a checkpoint goes on only where it is the same."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return [self.device.type, gpu, self.precision, self.world, torch.get_num_threads()]

    @property
    def emulates_bf16(self) -> bool:
        """Whether bf16 was asked of an x86 CPU without units for it, which makes it slower than fp32."""
        if self.device.type != "cpu" or self.precision != "bf16" or platform.machine() not in ("x86_64", "AMD64"):
            return False
        has = getattr(torch.cpu, "get_capabilities", dict)()  # older versions cannot tell
        return bool(has) and not (has.get("avx512_bf16") or has.get("amx_bf16"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """The block in which networks run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def shard(self, items: Sequence[Item], block: int = 1) -> list[Item]:
        """This process's part of per-image work, dealt out in blocks.

        With the batch size as `block`, batches hold the same images for any number of processes: a network may round
        an image's scores differently in another batch.
        """
        starts = range(self.rank * block, len(items), self.world * block)
        return [item for start in starts for item in items[start : start + block]]

    def merge(self, results: Sequence[Item], block: int = 1) -> list[Item]:
        """The results of every process for its `shard`, in the order of the items."""
        parts = self.gather(list(results))
        starts = range(0, max(len(part) for part in parts), block)
        return [result for start in starts for part in parts for result in part[start : start + block]]

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
        value = value.detach()
        if self.world > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value
