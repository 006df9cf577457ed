"""Checkpoints on disk: whole or the former one, checked when read, never held in memory twice."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from segcore.errors import Problem
from segcore.training import checkpoints
from tests.loop import full_disk

OF_ONE = {"worlds": [1], "run": ""}
EMPTY: dict[str, Any] = {"model": {}, "optimiser": {"state": {}, "param_groups": []}, "history": [], **OF_ONE}
STATE = {
    "model": {"a": torch.arange(3000.0), "count": torch.tensor(7)},
    "optimiser": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "history": [{"pixels": 0.1}, {"pixels": float("inf")}],
    **OF_ONE,
}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/x.pt"
    checkpoints.save(path, STATE)
    state = checkpoints.load(path)
    assert isinstance(state, dict)
    assert torch.equal(state["model"]["a"], STATE["model"]["a"])
    assert state["optimiser"] == STATE["optimiser"]
    assert state["history"] == STATE["history"]
    assert [file.name for file in path.parent.iterdir()] == ["x.pt"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path / "x.pt") is None


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    checkpoints.save(path, STATE)
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 50):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert isinstance(checkpoints.load(path), checkpoints.Unreadable)
        path.write_bytes(content[:place])
        assert isinstance(checkpoints.load(path), checkpoints.Unreadable)
    path.write_bytes(content + b"x")
    assert isinstance(checkpoints.load(path), checkpoints.Unreadable)


def test_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.mkdir()
    found = checkpoints.load(path)
    assert isinstance(found, checkpoints.Unreadable)
    assert "cannot be read" in found.reason


@pytest.mark.parametrize("size", [0, 1000, 12_000])
def test_a_full_disk_leaves_the_former_checkpoint(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    checkpoints.save(path, EMPTY)
    with full_disk(size), pytest.raises(Problem, match=r"x\.pt could not be written \(File too large\); nothing"):
        checkpoints.save(path, STATE)
    assert checkpoints.load(path) == EMPTY
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_an_interruption_while_saving_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        """A check sum during whose third update someone presses Ctrl-C."""

        updates = 0

        def update(self, content: bytes) -> None:
            self.updates += 1
            if self.updates == 3:
                raise KeyboardInterrupt

    path = tmp_path / "x.pt"
    checkpoints.save(path, EMPTY)
    monkeypatch.setattr(checkpoints.hashlib, "sha256", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, STATE)
    monkeypatch.undo()
    assert checkpoints.load(path) == EMPTY
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_saving_takes_no_second_copy_of_the_state(tmp_path: Path) -> None:
    state = {"model": {str(i): torch.zeros(1_000_000) for i in range(4)}}
    tracemalloc.start()
    checkpoints.save(tmp_path / "x.pt", state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000  # of 16 MB
