"""Where processes that torchrun started find one another, and do so again after it has restarted them.

torchrun's agent keeps one store for all its restarts (torch 2.12), and in it the addresses of processes that are dead
by now: a process that reads the former address of another waits for it without end, or fails. So the first process
opens a store of its own at every start, and the others look for the one that answers.
"""

import contextlib
import ipaddress
import os
import socket
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from segcore.errors import Problem

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

ADDRESS = "segcore/address"
"""Where the agent's store holds the address of the first process's own store."""

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the first one: on a cold file system, torch alone takes minutes to load."""

ANSWER = timedelta(seconds=2)
"""How long an address may take to answer before it is asked for anew."""


def run_name() -> str:
    """What `torchrun --rdzv-id` calls this run, whose number of processes may change; empty without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if name == "none" else name


def meet() -> None:
    """Join the group of all processes, unless torchrun did not start this one, or has a fresh store at every start.

    Raises:
        Problem: the first process was not found.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    import torch  # not at the top: every command, `--help` too, would take seconds to start
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    if distributed.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = TCPStore(host, port, is_master=False, timeout=PATIENCE, wait_for_workers=False)
    store = PrefixStore("segcore", _opened(agents, host) if rank == 0 else _found(agents, rank))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world)


def _opened(agents: "TCPStore", master: str) -> "TCPStore":
    """A store of this start's own, its address told to all."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    name = uuid.uuid4().hex
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    store.set("name", name)
    agents.set(ADDRESS, f"{own_address(master)} {store.port} {name}")
    return store


def _found(agents: "TCPStore", rank: int) -> "TCPStore":
    """The store that the first process of this start has opened."""
    end = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < end:
        # At the address of a former start nobody answers, or somebody else.
        with contextlib.suppress(OSError, RuntimeError):
            if agents.check([ADDRESS]) and (store := _answering(*agents.get(ADDRESS).decode().split())):
                return store
        time.sleep(0.1)
    raise Problem(f"process {rank} waited {PATIENCE.total_seconds():.0f} s for the first one; see what ended it")


def _answering(host: str, port: str, name: str) -> "TCPStore | None":
    """The store of that name, if it is what answers there."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # Asked first, as the store's own error comes with a page of C++ frames.
    socket.create_connection((host, int(port)), ANSWER.total_seconds()).close()
    store = TCPStore(host, int(port), is_master=False, timeout=ANSWER, wait_for_workers=False)
    if store.get("name").decode() != name:
        return None
    store.set_timeout(PATIENCE)
    return store


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def own_address(master: str) -> str:
    """By which address others reach this machine: the one by which it reaches `master`, a name or an address."""
    family, kind, _, _, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing
        own = probe.getsockname()[0]
    # This machine is `master`, whose own name for itself may lead nowhere from others.
    return master if ipaddress.ip_address(own).is_loopback else own
