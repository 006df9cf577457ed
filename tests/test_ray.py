"""Prediction by a Ray cluster of two workers on this machine, one of which is killed in the middle.

Left out where Ray is not installed: `pip install 'segcore[ray]'`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from segcore.files import write_atomically
from tests.devkit import PROJECT
from tests.tiny import files, run_stages, tiny_dataset

pytest.importorskip("ray", reason="Ray is not installed: pip install 'segcore[ray]'")

PHOTOS = 240
BATCH = 2


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained segmenter, and photographs, of which one is broken."""
    folder = tmp_path_factory.mktemp("ray")
    tiny_dataset(folder)
    with contextlib.chdir(folder):
        run_stages("check_params", "prepare", "split", "make_crops", "train_classifier", "train_segmenter")
        Path("photos").mkdir()
        for number in range(PHOTOS):
            picture = np.random.default_rng(number).integers(0, 256, (6, 7, 3), dtype=np.uint8)
            Image.fromarray(picture).resize((70, 60), Image.Resampling.BICUBIC).save(f"photos/{number:03d}.png")
        write_atomically(Path("photos/100.png"), b"no picture")
        yield folder


def command(out: str, *options: str) -> list[str]:
    predict = [sys.executable, "-m", "segcore", "predict", "segmenter", "photos", "--out", out, "--batch", str(BATCH)]
    return [*predict, "--how", "params/evaluate/decouplednet.json", "--device", "cpu", *options]


def start(project: Path, out: str, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("RAY_ADDRESS", None)
    words, pipe, same = command(out, *options), subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(words, cwd=project, env=environment, text=True, stdout=pipe, stderr=same)


def ended(process: subprocess.Popen[str], code: int) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def rows(out: Path) -> list[str]:
    """The pictures in the journals of all shards, as often as they are there; a line that is not whole is left out."""
    found = []
    for file in (out / ".journal").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line)["image"])
    return found


def actors(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of Ray below the command that hold a model."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.cmdline()[:1] and "MapWorker" in child.cmdline()[0]:
                found.append(child)
    return found


def without_journals(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if not name.startswith(".journal")}


def test_a_worker_that_is_killed_changes_nothing(project: Path) -> None:
    said = ended(start(project, "whole"), code=1)
    assert f"{PHOTOS - 1} pictures predicted, 1 left out" in said
    process = start(project, "out", "--engine", "ray", "--workers", "2")
    try:
        end = time.monotonic() + 180
        while len(rows(project / "out")) < 20 or len(actors(process)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "no worker has begun"
            time.sleep(0.02)
        victim, other = actors(process)[:2]
        os.kill(victim.pid, signal.SIGKILL)
        before = len(rows(project / "out"))
        assert before < PHOTOS, "killed too late to mean anything"
        said = ended(process, code=1)
    finally:
        process.kill()
    assert "1 left out" in said
    assert "left out: " in said
    assert "100.png" in said
    assert without_journals(project / "out") == without_journals(project / "whole")
    done = rows(project / "out")
    assert sorted(set(done)) == [f"{number:03d}.png" for number in range(PHOTOS)]
    # What was computed and not yet noted when the worker died is done again, and nothing else.
    assert len(done) - len(set(done)) <= BATCH
    assert victim.pid != other.pid


def test_run_again_it_does_nothing(project: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (project / "out/masks").iterdir()}
    said = ended(start(project, "out", "--engine", "ray", "--workers", "1"), code=1)
    assert f"0 pictures predicted, {PHOTOS - 1} were there already, 1 left out" in said
    assert {path: path.stat().st_mtime_ns for path in (project / "out/masks").iterdir()} == before
    said = ended(start(project, "out", "--merge"), code=1)
    assert f"{PHOTOS - 1} were there already" in said


def test_what_an_actor_raises_is_told(project: Path) -> None:
    """Where masks should go lies a file."""
    (project / "wrong").mkdir()
    (project / "wrong/masks").touch()
    said = ended(start(project, "wrong", "--engine", "ray", "--workers", "1"), code=2)
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: Ray: a shard failed (FileExistsError: [Errno 17] File exists: "), said
