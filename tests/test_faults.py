"""Some of the bad inputs of `tests.faults`: none ends in a traceback, in a wrong result without a word, or never."""

import os
from pathlib import Path

import pytest

from segcore.cli import provenance
from tests import faults

COUNT, SEED = 50, 20261126


def test_bad_inputs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed is fixed, so that a failure comes back: `python -m tests.faults --count 50 --seed 20261126`."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(provenance, "TIMINGS", Path())  # `run` sets it
    monkeypatch.setattr(os, "fsync", lambda _: None)
    outcomes = list(faults.run(folder, COUNT, SEED))
    assert len(outcomes) == COUNT
    assert len({outcome.fault.partition(":")[0] for outcome in outcomes}) > 12, "faults of all kinds"
    bad = [
        f"{outcome.kind}: {outcome.fault}\n{outcome.said}" for outcome in outcomes if outcome.kind not in faults.FINE
    ]
    assert not bad, "\n".join(bad)


def test_the_harness_sees_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that crashes, says nothing, hangs or tells of insides is found out."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(faults, "SECONDS", 1)
    project = object.__new__(faults.Project)
    project.folder = folder

    def raising(error: BaseException) -> faults.Act:
        def read() -> None:
            if Path("x").exists():
                raise error

        return read

    def waiting() -> None:
        while Path("x").exists():
            pass

    readers = {
        "traceback": raising(KeyError("x")),
        "inside": raising(faults.Problem("no <_io.BytesIO object at 0x7f>")),
        "told": raising(faults.Problem("x is odd")),
        "silent": lambda: 3,
        "hang": waiting,
    }
    for kind, read in readers.items():
        fault = faults.Fault("x", Path("x").touch, read)
        assert faults.judged(project, fault, lambda read: read()).kind == kind
        assert not Path("x").exists()
