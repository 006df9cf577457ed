"""The benchmarks run on what the code is now; what they measure is for `make bench`."""

import csv
import json
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

import benchmarks
from benchmarks import exporting, inference
from segcore.errors import Problem

STARTED = sorted(m.name for m in iter_modules(benchmarks.__path__) if not m.ispkg and m.name != "__main__")


@pytest.mark.parametrize("name", STARTED)
def test_a_benchmark_can_be_started(name: str) -> None:
    assert callable(import_module(f"benchmarks.{name}").main)


def test_one_forward_per_label_gives_the_scores_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of the comparison of `benchmarks.inference`, at a size that costs nothing."""
    monkeypatch.setattr(inference, "SIDE", 224)
    monkeypatch.setattr(inference, "TURNS", 1)
    _, difference = inference.compared("small", 1 / 16)
    assert difference < 1e-4


CARD: dict[str, Any] = {
    "bytes": 3_100_000,
    "checked": {
        "same_labels": 0.99999, "scores": 0.09, "rounding": 0.08, "milliseconds": 1.5, "torch_milliseconds": 5.25,
    },
    "int8": {"mean_iou": 0.5, "mean_iou_int8": 0.4557, "bytes_int8": 900_000, "milliseconds_int8": 6.0},
    "input": {"shape": ["batch", 3, "height", "width"]},
}  # fmt: skip


def test_a_table_of_exports_tells_what_does_not_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exported(model: Path, out: Path, wanted: Any) -> dict[str, Any]:
        if model.name != "good":
            raise Problem(
                {"untraced": "torch cannot trace it", "wrong": "other labels; so it was not kept"}[model.name]
            )
        return CARD

    monkeypatch.setattr(exporting.run, "export_model", exported)
    given = ["--data", str(tmp_path), "--int8", "--out", str(tmp_path / "table.csv"), "--systems"]
    assert exporting.main([*given, "untraced", "good"]) == 0, "a reason that is named is none to fail"
    assert exporting.main([*given, "wrong"]) == 1, "a wrong file is one"
    with (tmp_path / "table.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert [row[0] for row in rows] == ["good", "untraced", "wrong"], "rows of other systems stay"
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][3:6] == ["99.9990", "9.0e-02 (torch itself 8.0e-02)", "3.1"]
    assert rows[0][-3:] == ["0.9", "-4.43", "6.0"]
    assert rows[1][1] == "no: torch cannot trace it"
    assert {*json.loads((tmp_path / "table.json").read_text())} == {"command", "commit", "machine"}
    capsys.readouterr()
    assert exporting.main(["--data", str(tmp_path)]) == 2
