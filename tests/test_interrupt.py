"""Ctrl-C at any moment: a stage leaves whole files or none, and nothing of its own making besides."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.tiny import STAGES, arguments, files, run_stages, tiny_dataset, train_stochastic


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of a pipeline that ran."""
    folder = tmp_path_factory.mktemp("interrupt")
    tiny_dataset(folder)
    here = Path.cwd()
    try:
        os.chdir(folder)
        run_stages(*STAGES)
        train_stochastic()
        run_stages("extract_pseudo_labels")
        yield folder
    finally:
        os.chdir(here)


@contextmanager
def ctrl_c(at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ctrl-C is pressed while the `at`-th thing goes to disk; the list tells what went there."""
    done: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) == at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", watched("fsync", os.fsync))
        patch.setattr(os, "replace", watched("replace", os.replace))
        patch.setattr(os, "rename", watched("rename", os.rename))
        patch.setattr(PIL.Image.Image, "save", watched("save", PIL.Image.Image.save))
        yield done


@pytest.mark.parametrize("stage", [*STAGES, "extract_pseudo_labels"])
def test_ctrl_c_leaves_whole_files_or_none(stage: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = files(folder / arguments(stage)["out"])
    with ctrl_c(0, monkeypatch) as every:
        run_stages(stage, out=Path(f"whole_{stage}"))
    n = len(every)
    assert n > 3
    out = Path(f"stopped_{stage}")
    # The first ten, the last ten, when results are moved, and every third between: a file goes like the one before.
    for at in sorted({*range(1, 11), *range(12, n, 3), *range(max(1, n - 9), n + 1)}):
        with ctrl_c(at, monkeypatch) as done:
            try:
                run_stages(stage, out=out)
            except KeyboardInterrupt:
                left = files(out) if out.exists() else {}
                assert left.items() <= expected.items(), f"after {done}"
                assert not [path for path in Path().rglob(".*") if path.name != ".scratch"], f"after {done}"
    run_stages(stage, out=out)
    assert files(out) == expected
