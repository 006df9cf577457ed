"""The command that measures whether bf16 trains faster here, and what it proposes."""

import json
from pathlib import Path
from typing import Any

import pytest

from segcore.commands import precision
from segcore.errors import Problem
from tests.tiny import tiny_dataset

FASTER: dict[Any, float] = {"fp32": 0.85, "bf16": 0.31}
SLOWER: dict[Any, float] = {"fp32": 0.59, "bf16": 0.99}
LEVEL: dict[Any, float] = {"fp32": 0.50, "bf16": 0.48}


def test_what_is_faster_is_proposed_with_all_that_it_would_change() -> None:
    text = precision.proposal("grid", "fp32", FASTER, ["systems.sec", "systems.dsrg"])
    assert text == (
        "bf16 would take 0.31 s a step instead of 0.85 here: set recipes.grid.precision: bf16, which systems.sec, "
        "systems.dsrg would be trained in, too; results change by rounding"
    )
    assert "fp32 would take 0.59 s a step instead of 0.99" in precision.proposal("grid", "bf16", SLOWER, [])


@pytest.mark.parametrize(
    ("now", "seconds"), [("fp32", SLOWER), ("bf16", FASTER), ("fp32", LEVEL), ("bf16", {"fp32": 0.48, "bf16": 0.5})]
)
def test_what_is_no_slower_stays(now: str, seconds: dict[Any, float]) -> None:
    assert precision.proposal("grid", now, seconds, []) == f"recipes.grid.precision may stay: {now} is not slower here"


@pytest.mark.parametrize("entry", [{"classifier": "decoupled"}, {"system": "dsrg"}, {"system": "decouplednet"}])
def test_an_entrys_own_network_is_measured(
    entry: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_dataset(tmp_path, **{"dataset.name": "tiny"})
    monkeypatch.chdir(tmp_path)
    classes = tmp_path / "data/tiny/prepared/classes.json"
    classes.parent.mkdir(parents=True)
    classes.write_text(json.dumps(["background", "disc", "ring", "square"]))
    before = sorted(tmp_path.rglob("*"))
    precision.main(**entry)
    told = capsys.readouterr().out
    name = next(iter(entry.values()))
    assert f"{name}: " in told
    assert "s a step of 4 in fp32" in told
    assert "s a step of 4 in bf16" in told
    assert "recipes." in told
    assert sorted(tmp_path.rglob("*")) == before


def test_one_entry_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    wrong: tuple[dict[str, Any], ...] = ({}, {"classifier": "decoupled", "system": "dsrg"})
    for entries in wrong:
        with pytest.raises(Problem, match="name one entry: --classifier NAME or --system NAME"):
            precision.main(**entries)
