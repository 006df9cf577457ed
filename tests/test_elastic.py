"""Trainings whose processes are killed, under torchrun, end as if nothing had happened.

`torchrun -m tests.test_elastic --out FOLDER ...` is one process of them.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from segcore.cli import command, meeting
from segcore.files import write_atomically
from segcore.processes import Runtime
from segcore.training import checkpoints
from segcore.training.fit import Fit
from tests import warm
from tests.loop import Net, Pictures, fit, net, recipe, same

PROJECT = Path(__file__).parents[1]
TRAINING = recipe(steps=12, batch_size=8, checkpoint_every=3)
KILLED_AT = 7
"""The step after which a process is killed: the checkpoint of step 5 is there, two steps are lost."""


def main(*, out: Path, victim: int, with_agent: bool = False) -> None:
    """Train without a kill and without a checkpoint, then with both, and compare."""
    runtime = Runtime("fp32", meeting.run_name())
    whole = network()
    expected = [progress.losses for progress in Fit(whole, Pictures(), TRAINING, 1, runtime, None)]
    model = network()
    fit = Fit(model, Pictures(), TRAINING, 1, runtime, out / "state.pt")
    begun = len(fit.history)
    losses = []
    for progress in fit:
        losses.append(progress.losses)
        if progress.step == KILLED_AT and runtime.rank == victim and not (out / "killed").exists():
            (out / "killed").touch()
            if with_agent:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
    if runtime.is_main:
        found = {"world": runtime.world, "worlds": fit.worlds, "begun": begun, "same": same(model, whole)}
        found |= {"losses": losses, "expected": expected}
        write_atomically(out / "found.json", json.dumps(found).encode())
    fit.finish()


def network() -> Net:
    """Without torch's own dropout, which differs with the number of processes."""
    model = net()
    model.foreign_drop = torch.nn.Identity()  # type: ignore[assignment]
    return model


def torchrun(
    folder: Path, *options: str, victim: int, forked: bool, more: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """An agent of torchrun at work in `folder`; `forked`: it and its processes import nothing, but are nobody's child.

    Who is killed by its own process id dies as any other; whom its child would kill as its parent must be that.
    """
    folder.mkdir(exist_ok=True)
    worker = ["-m", "--", "tests.test_elastic", f"--out={folder}", f"--victim={victim}", *more]
    python, environment = ("python", warm.environment()) if forked else (sys.executable, dict(os.environ))
    return subprocess.Popen(
        [python, "-m", "torch.distributed.run", "--max-restarts=2", *options, *worker],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize(("processes", "victim"), [(1, 0), (2, 0), (4, 3)])
def test_a_killed_process_changes_nothing(processes: int, victim: int, tmp_path: Path) -> None:
    one_node = ("--standalone", f"--nproc-per-node={processes}")
    agent = torchrun(tmp_path / "run", *one_node, victim=victim, forked=True)
    log, _ = agent.communicate(timeout=120)
    assert agent.returncode == 0, log
    assert "exitcode: -9" in log
    assert "Traceback" not in log
    found = json.loads((tmp_path / "run/found.json").read_text())
    assert (found["world"], found["worlds"], found["begun"]) == (processes, [processes], 6)
    assert found["same"]
    assert found["losses"] == found["expected"]
    assert not (tmp_path / "run/state.pt").exists()


def test_a_lost_node_leaves_the_others_to_go_on(tmp_path: Path) -> None:
    """Two nodes of one process, on this machine: the batches stay those of the run, sums round differently."""
    # The first waits so many seconds for the second, which has to import torch; who comes when the first began alone
    # makes both begin anew, and torch's agents may then miss each other until its time-out of a minute.
    more = ("--rdzv-backend=c10d", "--rdzv-id=job", "--rdzv-conf=last_call_timeout=10,keep_alive_interval=1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--nnodes=1:2", "--nproc-per-node=1", f"--rdzv-endpoint=localhost:{port}", *more)
    agents = []
    for _ in range(2):
        agents.append(torchrun(tmp_path / "run", *options, victim=1, forked=False, more=("--with-agent",)))
        # The store of the rendezvous is that of the first, which must not be the one that is killed.
        listening(port)
    logs = [agent.communicate(timeout=120)[0] for agent in agents]
    assert sorted(agent.returncode for agent in agents) == [-signal.SIGKILL, 0], logs
    found = json.loads((tmp_path / "run/found.json").read_text())
    assert (found["world"], found["worlds"], found["begun"]) == (1, [1, 2], 6)
    for ours, theirs in zip(found["losses"], found["expected"], strict=True):
        np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-4)
    assert any("another process of this run has ended" in log for log in logs)


def listening(port: int) -> None:
    """Wait until somebody answers at a port of this machine."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody answers at port {port}")


@pytest.mark.parametrize(("run", "goes_on"), [("", False), ("job", True), ("another", False)])
def test_the_steps_of_other_processes_count_within_one_elastic_run(run: str, goes_on: bool, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for _ in zip(range(5), fit(net(), path), strict=False):
        pass
    state = checkpoints.load(path)
    assert isinstance(state, dict)
    assert state["worlds"] == [1]
    checkpoints.save(path, state | {"worlds": [2], "run": "job"})
    resumed = Fit(net(), Pictures(), recipe(), 1, Runtime("fp32", run), path)
    assert (len(resumed.history), resumed.worlds) == ((3, [1, 2]) if goes_on else (0, [1]))
    assert (resumed.damage is None) is goes_on
    if not goes_on:
        assert "taken by 2 process(es)" in str(resumed.damage)


def test_a_process_is_found_by_the_address_that_others_reach() -> None:
    assert meeting.own_address("localhost") == "localhost"
    assert meeting.own_address("127.0.0.1") == "127.0.0.1"


if __name__ == "__main__":
    command.start(main)
