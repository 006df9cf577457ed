"""The benchmarks run on what the code is now; what they measure is for `make bench`."""

import csv
import json
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import exporting, inference, next_frozen
from segcore.errors import Problem
from segcore.evaluation.per_image import ImageCounts
from tests.devkit import make_record

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


class TestNextFrozen:
    """Cells whose first two numbers say their class."""

    ids = [str(number) for number in range(12)]

    @pytest.fixture
    def data(self) -> next_frozen.Looked:
        random = np.random.default_rng(0)
        labels = random.integers(0, 3, (12, next_frozen.CELLS**2))
        cells = random.normal(0, 0.1, (12, 4, next_frozen.CELLS**2))
        cells[:, 0], cells[:, 1] = labels == 1, labels == 2
        place = {image_id: number for number, image_id in enumerate(self.ids)}
        return next_frozen.Looked(place, cells.astype(np.float16), labels)

    def test_a_layer_learns_the_cells_of_other_images(self, data: next_frozen.Looked) -> None:
        layer = next_frozen.Layer(data, self.ids[:3], 3)
        right = layer("7").argmax(0) == torch.from_numpy(data.labels[7])
        assert right.float().mean() > 0.99

    def test_both_arms_spend_the_same_on_images_that_are_not_known(self, data: next_frozen.Looked) -> None:
        known = self.ids[:3]
        wanting = [make_record(i, Path(i), None, 80, 60, (1, 2), "train") for i in self.ids[3:]]
        layer = next_frozen.Layer(data, known, 3)
        for budget in (0.0, 240.0, 1000.0, 1e6):
            mine = next_frozen.by_next(layer, wanting, known, budget)
            others = next_frozen.at_random(wanting, 0, budget)
            assert len(mine) == len(others) == min(len(wanting), int(budget / 239.7))
            assert not {*mine, *others} & {*known}
            assert len({*mine}) == len(mine)

    def test_better_at_every_budget_is_better(self, capsys: pytest.CaptureFixture[str]) -> None:
        def counts(right: int) -> ImageCounts:
            parts = np.array([[right, right], [100, 100], [100, 100]])
            return ImageCounts(("a", "b", "c"), np.stack([parts, parts - 1, parts + 1]))

        found = {
            seed: {("start", 0.0): counts(20)} | {(arm, b): counts(s + seed) for b in (1.0, 2.0) for arm, s in arms}
            for arms in [(("next", 70), ("random", 40))]
            for seed in (0, 1, 2)
        }
        assert next_frozen.told(found, [1.0, 2.0])
        swapped = {"next": "random", "random": "next", "start": "start"}
        worse = {seed: {(swapped[arm], b): one for (arm, b), one in some.items()} for seed, some in found.items()}
        assert not next_frozen.told(worse, [1.0, 2.0])
        assert "mean over budgets: next over random +" in capsys.readouterr().out
