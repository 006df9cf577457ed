"""The scratch folder, and what runs that were killed left half written."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segcore.cli import command, copies, held, scratch
from segcore.commands import clean_scratch
from segcore.errors import Problem
from tests import warm
from tests.devkit import PROJECT
from tests.tiny import arguments, files, run_stages, tiny_dataset

OLD, NEW, OTHER = "0" * 16, "a1" * 8, "0f" * 8


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def holding(*paths: str, within: str = ".") -> Iterator[subprocess.Popen[str]]:
    """Another process, at work in a folder, that holds some paths."""
    script = (
        "import contextlib, sys, time\nfrom pathlib import Path\nfrom segcore.cli.held import held\n"
        "with contextlib.ExitStack() as stack:\n"
        "    [stack.enter_context(held(Path(path), patiently=False)) for path in sys.argv[1:]]\n"
        "    print('held', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *paths], cwd=within,
        env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_who_holds_a_folder_is_told(inside: Path) -> None:
    with holding("out") as other:
        message = rf"(?s)^out is being written by process {other.pid} since [\d:]+: .*; wait for its end, or stop it$"
        with pytest.raises(Problem, match=message), held.held(Path("out"), patiently=False):
            raise AssertionError
        assert held.is_held(Path("out"))
        with held.held(Path("other"), patiently=False):
            pass
    assert not held.is_held(Path("out"))
    with held.held(Path("out"), patiently=False):
        assert held.is_held(Path("out"))
    assert files(scratch.FOLDER) == {}


def test_many_that_wait_get_it_one_after_the_other(inside: Path) -> None:
    script = (
        "import time\nfrom pathlib import Path\nfrom segcore.cli.held import held\n"
        "for _ in range(20):\n"
        "    with held(Path('out'), patiently=True):\n"
        "        number = int(Path('count').read_text())\n        time.sleep(0.002)\n"
        "        Path('count').write_text(str(number + 1))\n"
    )
    Path("count").write_text("0")
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    runs = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert Path("count").read_text() == "60"


def test_what_former_runs_of_the_name_left_goes_when_one_succeeds(inside: Path) -> None:
    folder = scratch.FOLDER
    folder.mkdir()
    gone = [f"segmenter-deeplab-{OLD}.pt", f".segmenter-deeplab-{OLD}.pt.partial"]
    stay = [f"segmenter-deeplab-{OTHER}.pt", f"segmenter-deeplab_two-{OLD}.pt", f"classifier-deeplab-{OLD}.pt"]
    stay += [f"segmenter-deeplab-{OLD}.txt", f"segmenter-deeplab-{NEW}.pt"]
    for name in (*gone, *stay):
        (folder / name).write_text("x")
    (folder / f"pseudo-labels-deeplab-{OLD}/labels").mkdir(parents=True)
    with holding(f".scratch/segmenter-deeplab-{OTHER}.pt"):
        scratch.sweep(folder / f"segmenter-deeplab-{NEW}.pt")
    left = {path.name for path in folder.iterdir()} - {"held"}
    assert left == {*stay, f"pseudo-labels-deeplab-{OLD}"}
    scratch.sweep(folder / f"pseudo-labels-deeplab-{NEW}")
    assert not (folder / f"pseudo-labels-deeplab-{OLD}").exists()


def test_a_stage_leaves_no_checkpoint_of_other_parameters(inside: Path) -> None:
    """As the stage names them."""
    tiny_dataset(inside)
    old = [f".scratch/{name}-{OLD}.pt" for name in ("classifier-decoupled", "classifier-decoupled_str")]
    Path(".scratch").mkdir()
    for name in old:
        Path(name).write_text("x")
    run_stages("prepare", "split", "train_classifier")
    assert [Path(name).exists() for name in old] == [False, True]


def test_what_a_kill_left_half_written_goes_links_unfollowed(inside: Path) -> None:
    for folder in ("data/out/panels", "data/.out.partial/files", "data/.another.partial", "elsewhere"):
        Path(folder).mkdir(parents=True)
    for name in ("data/out/.metrics.json.partial", "data/out/metrics.json", "elsewhere/file"):
        Path(name).write_text("x")
    Path("data/out/.panels.partial").symlink_to(inside / "elsewhere")
    halves = scratch.halves_of(Path("data/out"))
    assert {str(path) for path in halves} == {
        f"data/{name}" for name in (".out.partial", "out/.metrics.json.partial", "out/.panels.partial")
    }
    scratch.take_away(halves)
    assert scratch.halves_of(Path("data/out")) == []
    assert Path("elsewhere/file").exists()
    assert Path("data/out/metrics.json").exists()
    assert Path("data/.another.partial").exists()


def test_a_run_deletes_half_of_its_own_folder_that_a_kill_left(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it holds that folder by then."""
    Path("data/.out.partial/files").mkdir(parents=True)
    left = []

    def main(out: Path) -> None:
        left.extend(scratch.halves_of(out))

    monkeypatch.setattr(sys, "argv", ["stage", "--out", "data/out"])
    with pytest.raises(SystemExit) as end:
        command.start(main)
    assert (end.value.code, left) == (0, [])


def test_scratch_is_emptied_but_for_times_and_runs_at_work(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        f"classifier-a-{OLD}.pt",
        f"classifier-b-{OLD}.pt",
        f"pseudo-labels-a-{OLD}/labels/a.png",
        "timings/a.json",
    ):
        (scratch.FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch.FOLDER / name).write_bytes(bytes(2_000_000))
    with holding(f".scratch/classifier-b-{OLD}.pt"):
        clean_scratch.main()
    said = capsys.readouterr().out
    assert "2 files and folders of stopped runs deleted, 4 MB" in said
    assert f".scratch/classifier-b-{OLD}.pt stays: a run is at work on it" in said
    assert {path.name for path in scratch.FOLDER.iterdir()} - {"held"} == {f"classifier-b-{OLD}.pt", "timings"}


def test_copies_of_the_project_stay_while_a_run_is_at_work_in_them(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two stages nothing but the copy is held; after a kill, what outlived it holds its own output alone."""
    monkeypatch.setattr(held, "SECONDS", 0.1)
    held_copy, outlived, left = (copies.FOLDER / (16 * name) for name in "abc")
    for folder in (held_copy, outlived, left):
        (folder / "data").mkdir(parents=True)
        (folder / "data/model").write_bytes(bytes(2_000_000))
    (left / "voc").symlink_to(inside)
    with copies.alone_in(held_copy, patiently=False), holding("data/out", within=str(outlived)):
        held.wait_for_all(Path(), patiently=False)  # a pipeline in the workspace need not wait for a copy
        clean_scratch.main()
    said = capsys.readouterr().out
    assert "1 files and folders of stopped runs deleted, 2 MB" in said
    assert re.findall(r"experiments/(\w+) stays", said) == [held_copy.name, outlived.name]
    assert sorted(path.name for path in copies.FOLDER.iterdir()) == [held_copy.name, outlived.name]
    assert (held_copy / "data/model").exists()
    clean_scratch.main()
    assert list(copies.FOLDER.iterdir()) == []


def test_two_runs_of_a_stage_do_not_meet(inside: Path) -> None:
    """The second one says who holds the folder; the first one's curves and model are as if it had been alone."""
    tiny_dataset(inside, **{"recipes.classifier.steps": 60, "recipes.classifier.checkpoint_every": 1})
    run_stages("prepare", "split")
    options = [f"--{name}={value}" for name, value in arguments("train_classifier").items() if name != "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = warm.path()

    def start(out: str, python: str = "python") -> subprocess.Popen[str]:
        command = [python, "-m", "stages.train_classifier", *options, f"--out={out}"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    assert start("alone").wait(timeout=120) == 0
    first = start("out", sys.executable)
    end = time.monotonic() + 60
    while not list(scratch.FOLDER.glob("classifier-*.pt")) and time.monotonic() < end:
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # in the middle of its work, for as long as the others take
    for out, what in (("out", "out"), ("beside", r"\.scratch/classifier-decoupled-[0-9a-f]{16}\.pt")):
        second = start(out)
        said, _ = second.communicate(timeout=120)
        assert second.returncode == 2, said
        assert re.search(rf"error: {what} is being written by process {first.pid} since", said), said
    first.send_signal(signal.SIGCONT)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert files(Path("out")) == files(Path("alone"))
