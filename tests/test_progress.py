"""What a training stage shows and logs: the plan, an estimate, lines or bars, dvclive files."""

import io
import itertools
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console

from segcore.cli import console, progress
from segcore.errors import Problem
from segcore.processes import Runtime
from tests.loop import fit, full_disk, net, recipe


@pytest.fixture(autouse=True)
def _outside_of_any_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A log file in place of the console."""
    text = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=text, width=300))
    return text


def test_the_plan_an_estimate_and_a_last_line_go_to_a_log(tmp_path: Path, shown: io.StringIO) -> None:
    model = net()
    running = fit(model, steps=8)
    progress.announce("some net", model, recipe(), 1234, running)
    progress.follow("some net", running, tmp_path / "training")
    plan, estimate, last = shown.getvalue().splitlines()
    assert plan.startswith("some net: 0.0 M parameters (0.0 M trained), 1,234 samples, 8 steps of 4 in 1 parts, fp32")
    assert estimate.startswith("some net: measured 0.0")
    assert estimate.endswith(" MB")
    assert last.startswith("some net: step 8/8, pixels 0.")
    assert "images/s" in last


def test_now_and_then_a_line(tmp_path: Path, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    progress.follow("net", fit(net(), steps=5), tmp_path / "training")
    assert [f"step {step}/5" in shown.getvalue() for step in range(1, 6)] == [True] * 5


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=text, width=200, force_terminal=True))
    progress.follow("net", fit(net(), steps=5), tmp_path / "training")
    assert "5/5" in text.getvalue()
    assert "images/s" in text.getvalue()
    assert "pixels 0." in text.getvalue()
    assert "measured" in text.getvalue()


def test_every_step_is_logged_for_dvc(tmp_path: Path, shown: io.StringIO) -> None:
    checkpoint = tmp_path / "x.pt"
    list(itertools.islice(fit(net(), checkpoint), 5))
    progress.follow("net", fit(net(), checkpoint), tmp_path / "log/training")
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["training"]
    folder = tmp_path / "log/training/plots/metrics"
    for file in (folder / "loss/pixels.tsv", folder / "loss/tags.tsv", folder / "learning_rate.tsv"):
        head, *lines = file.read_text().splitlines()
        assert head == f"step\t{file.stem}"
        assert [line.split("\t")[0] for line in lines] == [str(step) for step in range(8)]
    assert not list(tmp_path.rglob("dvc.yaml"))


def test_a_damaged_checkpoint_and_an_interrupted_run_are_told(tmp_path: Path, shown: io.StringIO) -> None:
    checkpoint = tmp_path / "x.pt"
    list(itertools.islice(fit(net(), checkpoint), 5))
    for expected in ("going on from step 3 of an interrupted run", "starting from the first step"):
        model = net()
        progress.announce("net", model, recipe(), 10, fit(model, checkpoint))
        assert expected in shown.getvalue()
        checkpoint.write_bytes(b"")


def test_a_log_that_cannot_be_written_is_a_problem_and_leaves_nothing(tmp_path: Path, shown: io.StringIO) -> None:
    with full_disk(20), pytest.raises(Problem, match=r"training\.partial could not be written \(File too large\)"):
        progress.follow("net", fit(net()), tmp_path / "training")
    assert list(tmp_path.iterdir()) == []


def test_the_scratch_file_is_of_one_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "manifest"
    source.write_text("1")

    def name(key: object = "run", seed: int = 0, precision: Literal["fp32", "bf16"] = "fp32") -> Path:
        model = net()
        model.tags.bias.data.fill_(seed)
        return progress.scratch_file("net", key, [source], model, Runtime(precision))

    first = name()
    assert first == name()
    assert first.parent == Path(".scratch")
    names = {first, name(key="other"), name(seed=1), name(precision="bf16")}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)  # sums are cut, and rounded, by the number of threads
    names.add(name())
    source.write_text("2")
    names.add(name())
    assert len(names) == 6
