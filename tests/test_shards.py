"""`--shard i/n` of the stages: shards in any order and a merge are one run, byte for byte; what is missing is named."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segcore.cli import shards
from segcore.errors import Problem
from tests.tiny import arguments, files, run_stages, tiny_dataset, train_stochastic

STAGES = ("prepare", "extract_pseudo_labels", "evaluate")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of a pipeline that ran."""
    folder = tmp_path_factory.mktemp("shards")
    tiny_dataset(folder)
    here = Path.cwd()
    try:
        os.chdir(folder)
        run_stages("prepare", "split", "make_crops", "train_classifier", "train_segmenter", "evaluate")
        train_stochastic()
        run_stages("extract_pseudo_labels")
        yield folder
    finally:
        os.chdir(here)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one batch, so that a few images make several."""
    monkeypatch.setattr(shards, "IMAGES", 1)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return tmp_path / "parts"


def out_of(stage: str, tmp_path: Path) -> Path:
    """Another folder than the pipeline's own; that of `prepare` is part of paths in the manifest."""
    return Path(arguments(stage)["out"]) if stage == "prepare" else tmp_path / "out"


def run(stage: str, tmp_path: Path, **changes: Any) -> dict[str, bytes]:
    """Run a stage whose shards lie in the test's folder; all that is in its folder of results."""
    out = out_of(stage, tmp_path)
    run_stages(stage, out=out, shard_folder=tmp_path / "parts", **changes)
    return files(out) if out.is_dir() else {}


@pytest.mark.parametrize("order", ["123", "312"])
@pytest.mark.parametrize("stage", STAGES)
def test_shards_in_any_order_and_a_merge_write_what_one_run_writes(
    stage: str, order: str, project: Path, tmp_path: Path, parts: Path
) -> None:
    whole = files(project / arguments(stage)["out"])
    for number in order:
        before = files(project / arguments(stage)["out"])
        run(stage, tmp_path, shard=f"{number}/3")
        assert files(project / arguments(stage)["out"]) == before, "a shard writes no results"
    assert run(stage, tmp_path) == whole
    assert not list(parts.rglob("*.zip")), "shards that were merged are gone"


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_shard_is_named_and_results_stay(stage: str, project: Path, tmp_path: Path, parts: Path) -> None:
    before = files(project / arguments(stage)["out"])
    run(stage, tmp_path, shard="1/3")
    run(stage, tmp_path, shard="3/3")
    with pytest.raises(Problem, match=r"of 3 shards 1 are not done, and lack: --shard 2/3 \(\d of \d pieces\); run"):
        run(stage, tmp_path)
    assert files(project / arguments(stage)["out"]) == before
    run(stage, tmp_path, shard="2/3")
    assert run(stage, tmp_path) == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_shard_that_is_done_does_nothing_and_half_of_one_goes_on(
    stage: str, project: Path, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the second piece is written; what is there is not made again."""
    whole = files(project / arguments(stage)["out"])
    write, written = shards.write, []

    def watched(file: Path, members: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(file)
        write(file, members)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write", watched)
        with pytest.raises(KeyboardInterrupt):
            run(stage, tmp_path, shard="1/2")
    times = {file: file.stat().st_mtime_ns for file in parts.rglob("*.zip")}
    assert len(times) == 1
    with pytest.raises(Problem, match=r"--shard 1/2 \(\d+ of \d+ pieces\), --shard 2/2"):
        run(stage, tmp_path)
    for _ in range(2):
        run(stage, tmp_path, shard="1/2")
        again = {file: file.stat().st_mtime_ns for file in parts.rglob("*.zip")}
        assert times.items() <= again.items()
        assert len(again) > 1
        times = again
    run(stage, tmp_path, shard="2/2")
    assert run(stage, tmp_path) == whole
