"""Device, precision and processes: what a run decides once."""

import atexit
import platform
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

Item = TypeVar("Item")


def _leave() -> None:
    """Part from the other processes: at an exit, gloo's threads that still run would abort this one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


class Runtime:
    """The device, the processes and the precision of a run.

    One process on a CPU or GPU, or many started by `torchrun`: the same code. `bf16` computes in bf16 what torch's
    autocast deems safe; `auto` does so on a GPU with bf16 units only. A CPU never changes by itself, not even one
    with such units, so that the same run gives the same numbers on all of them.

    `elastic` names a run whose processes may come and go; it is empty where their number stays.
    """

    def __init__(self, precision: Literal["auto", "fp32", "bf16"] = "fp32", elastic: str = "") -> None:
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
        self.elastic = elastic
        if self.world > 1:
            atexit.unregister(_leave)
            atexit.register(_leave)

    @property
    def arithmetic(self) -> list[str | int]:
        """All of this machine that rounding depends on: a checkpoint goes on only where it is the same.

        The number of processes is not among it: a checkpoint itself tells by how many its steps were taken.
        """
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return [self.device.type, gpu, self.precision, torch.get_num_threads()]

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
