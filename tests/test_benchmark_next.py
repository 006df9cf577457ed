"""The benchmark of `segcore next` with trainings that cost nothing: what is added, and what is told of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import next as benchmark
from segcore import made_of
from segcore.acquisition.choice import Cost
from segcore.acquisition.pool import pool
from segcore.config.settings import load
from segcore.evaluation import scoring
from segcore.reporting.kept import Experiment
from tests.devkit import PARAMS
from tests.invented import predictor, scenes
from tests.test_next import NAMES, project

__all__ = ["project"]

NOISE = {"start": 0.9, "random": 0.6, "next": 0.1}


class Invented:
    """In place of copies of the project: results of some quality by what they were trained on."""

    def __init__(self, data: Path) -> None:
        self.data, self.asked = data, []
        self.records = scenes(data / "measured", 30)

    def run(self, experiment: Experiment) -> Path:
        strong: dict[str, Any] = experiment.changes["split.strong"]
        self.asked.append((experiment.changes["seed"], strong))
        arm = "start" if strong["kind"] == "per_class" else Path(strong["file"]).name.partition("_")[0]
        out = self.data / "results" / f"{arm}_{experiment.changes['seed']}"
        params, predict = load(PARAMS).evaluation, predictor(self.records, NOISE[arm])
        scoring.write_results(scoring.score(self.records, predict, len(NAMES), params, False), NAMES, out)
        made_of.write(out, {"data_set": "invented"})
        return out


def test_both_arms_spend_the_same_and_their_difference_is_told(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies: Any = Invented(project)
    trial = benchmark.Trial(copies, Path(), "deeplab", 2, 720.0, Cost(20.0, 240.0))
    results = {seed: trial.run(seed) for seed in (0, 1)}
    assert [strong["kind"] for _, strong in copies.asked] == ["per_class", "list", "list"] * 2
    lists = {
        (seed, Path(strong["file"]).name.partition("_")[0]): {*Path(strong["file"]).read_text().split()}
        for seed, strong in copies.asked
        if strong["kind"] == "list"
    }
    assert all({"000", "001"} <= ids for ids in lists.values()), "what was there stays"
    prices = dict.fromkeys((f"{n:03}" for n in range(2, 10)), 240.0) | {"008": 260.0, "009": 260.0}
    spent = [sum(prices[image_id] for image_id in ids - {"000", "001"}) for ids in lists.values()]
    assert all(480 <= seconds <= 720 for seconds in spent)
    assert len({frozenset(trial.at_random(pool(project, "masks"), seed)) for seed in range(6)}) > 1
    assert lists[0, "next"] == lists[1, "next"], "the same model, the same choice"
    lines, is_better = benchmark.told(results)
    assert is_better
    assert any(line.startswith("next over random: +") and "2 seeds" in line for line in lines)
    swapped = {
        seed: folders | {"next": folders["random"], "random": folders["next"]} for seed, folders in results.items()
    }
    assert not benchmark.told(swapped)[1]
    assert "seed 1: random adds" in capsys.readouterr().out


def test_a_mistake_is_told_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "Copies", lambda root, params: SimpleNamespace())
    for arguments, message in ((["--budget", "soon"], "--budget"), (["--system", "deplab"], "'deplab'")):
        assert benchmark.main([*arguments, "--params", str(PARAMS)]) == 2
        assert message in capsys.readouterr().out
