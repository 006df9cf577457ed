"""Processes that load images: one that has no room or dies is a clear error soon, and Ctrl-C ends them at once."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from segcore.cli import command
from segcore.data.batches import Sample, Stream
from segcore.data.order import Order
from tests import warm
from tests.devkit import PROJECT


class Large:
    """Pictures of which a batch takes 5 MB; `how` says what happens at the eighth."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 64

    def sample(self, index: int, seed: int) -> Sample:
        if index == 8 and self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 8 and self.how == "sleeps":
            print("asleep", flush=True)
            time.sleep(600)
        image = torch.zeros(3, 320, 320, dtype=torch.uint8)
        return Sample(f"picture_{index}", image, torch.zeros(2), torch.zeros(320, 320, dtype=torch.uint8))


def load(*, how: str) -> None:
    """What a stage does with its batches."""
    samples = Large(how)
    for _ in Stream(samples, Order(len(samples), 4, 1, seed=0), workers=2).steps(0, 16):
        time.sleep(0.01)  # at work elsewhere when it is told that a worker died
    print("all loaded")


def started(*before: str, how: str, python: str = sys.executable) -> subprocess.Popen[str]:
    environment = warm.environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*before, python, "-m", "tests.test_workers", "--how", how],
        cwd=PROJECT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def test_no_room_in_shared_memory_is_told() -> None:
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a small /dev/shm")
    said, _ = started(*mount, how="loads").communicate(timeout=120)
    assert "error: workers: no room in the shared memory (/dev/shm)" in said
    assert "set workers of the recipe lower or to 0" in said
    assert "Traceback" not in said


def test_a_worker_that_dies_is_told() -> None:
    process = started(how="dies", python="python")  # of its own, it need not be: what dies is its child
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: workers: a process that loads images died (" in said
    assert "set workers of the recipe lower or to 0" in said
    assert "Traceback" not in said


def fail(error: BaseException, said: Path) -> None:
    """Have Python tell of an error that nobody caught, with `said` as the terminal."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.excepthook(type(error), error, None)
    sys.stderr.flush()


@pytest.mark.parametrize(
    ("error", "told"),
    [(ConnectionResetError("gone"), ""), (EOFError(), ""), (ValueError("odd"), "ValueError: odd\n")],
)
def test_workers_say_nothing_of_connections_that_break(error: Exception, told: str, tmp_path: Path) -> None:
    """As the one with the run's own process does on Ctrl-C, in the middle of an answer."""
    assert sys.excepthook is not command._uncaught, "it is for workers alone"
    worker = multiprocessing.get_context("spawn").Process(target=fail, args=(error, tmp_path / "said"))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert (tmp_path / "said").read_text() == told


@pytest.mark.parametrize("moment", ["workers start", "a worker is at work"])
def test_ctrl_c_ends_a_run_with_workers(moment: str) -> None:
    """As a terminal sends it, to all processes at once."""
    process = started(how="sleeps")
    assert process.stdout is not None
    if moment == "a worker is at work":
        process.stdout.readline()
    else:
        end = time.monotonic() + 60
        while len(children(process.pid)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
    workers = children(process.pid)
    assert workers
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - begin < 5
    assert "Traceback" not in said
    while any(map(at_work, workers)):
        assert time.monotonic() - begin < 10
        time.sleep(0.05)


def at_work(number: int) -> bool:
    """Whether a process has not ended, though its exit code may not have been asked for."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(parent: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


if __name__ == "__main__":
    command.start(load)
