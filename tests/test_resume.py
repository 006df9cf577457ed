"""Real stages, killed and stopped while they run, end in the same bytes as if nothing had happened."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm
from tests.tiny import arguments, files, run_stages, tiny_dataset, train_stochastic

PROJECT = Path(__file__).parents[1]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
CHECKPOINTS, LABELS = "*.pt", "pseudo-labels-*/labels/*.png"
"""What a stage keeps in its scratch folder."""


def command(stage: str, out: Path, python: str = sys.executable) -> list[str]:
    options = arguments(stage) | {"out": out}
    return [python, "-m", f"stages.{stage}", *(f"--{name}={value}" for name, value in options.items())]


def start(stage: str, folder: Path, out: Path, forked: bool) -> subprocess.Popen[str]:
    """A stage at work; a forked one imports nothing, and dies of `warm.KILL` as any other of SIGKILL."""
    return subprocess.Popen(
        command(stage, out, "python") if forked else command(stage, out),
        cwd=folder,
        env=(warm.environment() if forked else os.environ) | ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A background job's children ignore Ctrl-C, and these tests may well run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finished(stage: str, folder: Path, out: Path) -> str:
    process = start(stage, folder, out, forked=True)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def stopped(stage: str, folder: Path, out: Path, sign: signal.Signals, kept: str = CHECKPOINTS) -> tuple[int, str]:
    """The exit code and the log of a stage that got a signal as soon as it had kept something for its next start."""
    before = saved(folder, kept)
    killed = sign == signal.SIGKILL
    process = start(stage, folder, out, forked=killed)
    end = time.monotonic() + 120
    while saved(folder, kept) == before and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    process.send_signal(warm.KILL if killed else sign)
    log, _ = process.communicate(timeout=120)
    return process.returncode, log


def saved(folder: Path, kept: str = CHECKPOINTS) -> list[tuple[Path, int]]:
    return [(path, path.stat().st_mtime_ns) for path in sorted((folder / ".scratch").glob(kept))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with all that the training stages read."""
    folder = tmp_path_factory.mktemp("resume")
    # One window after the other: slow enough to be stopped.
    slow = {"form": "naive", "passes": 30, "batch_size": 1}
    tiny_dataset(folder, **{f"pseudo_labels.ficklenet.{key}": value for key, value in slow.items()})
    here = Path.cwd()
    try:
        os.chdir(folder)
        run_stages("prepare", "split", "make_crops", "train_classifier")
        train_stochastic()
    finally:
        os.chdir(here)
    params = folder / "params.yaml"
    longer = re.sub(r'("checkpoint_every"): \d+', r"\1: 10", params.read_text())
    params.write_text(re.sub(r'("steps"): \d+', r"\1: 60", longer))
    return folder


def test_a_killed_classifier_ends_as_if_nothing_had_happened(folder: Path) -> None:
    stage, whole, killed = "train_classifier", folder / "whole", folder / "killed"
    log = finished(stage, folder, whole)
    assert "0.1 M parameters" in log
    assert "9 samples, 60 steps of 4" in log
    assert re.search(r"measured \d+\.\d\d s a step, about \d+\.\d min to go, [\d,]+ MB", log)
    assert re.search(r"step 60/60, tags \d+\.\d+, [\d.]+ images/s", log)
    reached = []
    for _ in range(2):
        code, log = stopped(stage, folder, killed, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (killed / "model").exists()
        assert not (killed / "training").exists()
        reached += [int(step) for step in re.findall(r"going on from step (\d+) of an interrupted run", log)]
    log = finished(stage, folder, killed)
    reached += [int(step) for step in re.findall(r"going on from step (\d+) of an interrupted run", log)]
    assert len(reached) == 2
    assert 10 <= reached[0] < reached[1] < 60
    assert files(killed) == files(whole)
    names = {"model/model.safetensors", "metrics.json", "training/plots/metrics/loss/tags.tsv", "training/metrics.json"}
    assert names <= files(whole).keys()
    assert len((whole / "training/plots/metrics/loss/tags.tsv").read_text().splitlines()) == 61
    assert saved(folder) == []
    assert list((folder / ".scratch").glob(".*")) == []


def test_a_segmenter_stopped_by_ctrl_c_says_so_leaves_nothing_half_written_and_goes_on(folder: Path) -> None:
    stage, whole, interrupted = "train_segmenter", folder / "whole_segmenter", folder / "interrupted"
    finished(stage, folder, whole)
    code, log = stopped(stage, folder, interrupted, signal.SIGINT)
    assert code == 130, log
    assert "stopped; no output was left half-written" in log
    assert "Traceback" not in log
    assert files(interrupted) == {}
    log = finished(stage, folder, interrupted)
    assert re.search(r"going on from step \d+ of an interrupted run", log)
    assert files(interrupted) == files(whole)
    assert {"model/model.safetensors", "training/plots/metrics/loss/segmentation.tsv"} <= files(whole).keys()
    assert saved(folder) == []


def test_killed_pseudo_labels_keep_what_was_done(folder: Path) -> None:
    """Files move with their times: those of the images that were finished are not made again."""
    stage, whole, killed = "extract_pseudo_labels", folder / "whole_labels", folder / "killed_labels"
    finished(stage, folder, whole)
    code, log = stopped(stage, folder, killed, signal.SIGKILL, LABELS)
    assert code == -signal.SIGKILL, log
    assert not killed.exists()
    done = {path.name: written for path, written in saved(folder, LABELS)}
    assert 1 <= len(done) < 9
    finished(stage, folder, killed)
    assert files(killed) == files(whole)
    assert done.items() <= {path.name: path.stat().st_mtime_ns for path in (killed / "labels").iterdir()}.items()
    assert saved(folder, "pseudo-labels-*") == []
