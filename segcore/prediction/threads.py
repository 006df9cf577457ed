"""Threads that read pictures and find what scores mean, beside a network or in turns with it."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

MOST_THREADS = 8
"""That read, and find what scores mean."""

STORING = 4
"""Threads that write files: they wait for a disk, which takes no core."""

P = ParamSpec("P")
T = TypeVar("T")


class Helpers:
    """Work beside the network's thread.

    Where the network computes on a GPU, or leaves cores free, helpers compute while it does. Where it computes on all
    cores they take turns: its threads wait for each other at every layer, so that a helper on one of the cores costs
    the others as much as its own.
    """

    def __init__(self, computing: ThreadPoolExecutor, storing: ThreadPoolExecutor, in_turns: bool) -> None:
        self.computing, self.storing, self.in_turns = computing, storing, in_turns
        self._begun: list[Future[object]] = []

    def compute(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do something that wants a core."""
        future = self.computing.submit(do, *args, **kwargs)
        if self.in_turns:
            self._begun.append(future)  # pyright: ignore[reportArgumentType]
        return future

    def store(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do something that waits for a disk, while anybody computes."""
        return self.storing.submit(do, *args, **kwargs)

    def before_the_network(self) -> None:
        """Give the network its turn, once all that was begun is done."""
        wait(self._begun)
        self._begun.clear()


@contextmanager
def helpers(device: torch.device) -> Iterator[Helpers]:
    """Helpers of a network on that device, each of which computes on one core.

    A thread takes the process's number of threads when it first asks for it, and keeps its own from then on: all of
    these are started, and have theirs, before that of the process is set again.
    """
    cores, own = cores_here(), torch.get_num_threads()
    in_turns = device.type == "cpu" and own >= cores
    free = cores if in_turns or device.type != "cpu" else cores - own
    number = min(MOST_THREADS, free)
    started = threading.Barrier(number)

    def start() -> None:
        torch.get_num_threads()  # takes the number of the process, which would otherwise undo the next line later
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(number) as computing, ThreadPoolExecutor(STORING) as storing:
        wait([computing.submit(start) for _ in range(number)])
        torch.set_num_threads(own)
        yield Helpers(computing, storing, in_turns)


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
