"""Other seeds and other splits: run once, kept at once, gone on with after a kill. `test_copies` runs them by DVC."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from segcore import made_of
from segcore.commands import seeds
from segcore.config.settings import load
from segcore.errors import Problem
from segcore.reporting import chance, code_behind, kept
from segcore.reporting.results import Results
from segcore.sources import Code
from tests.devkit import PARAMS, voc_section, write_params
from tests.invented import DATA_SET, SYSTEMS, invented_results, write_json

A, B = SYSTEMS[:2]


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_results(tmp_path_factory.mktemp("invented"), panels=0)


@pytest.fixture
def data(invented: Path, tmp_path: Path) -> Path:
    shutil.copytree(invented, tmp_path / "data/shapes")
    return tmp_path / "data/shapes"


def experiment(data: Path, system: str, seed: int) -> kept.Experiment:
    return kept.Experiment(system, {"seed": seed}, data / "results" / system / kept.SEEDS / str(seed))


class FakeRunner:
    """Gives the results of the workspace as those of any seed, and stops by Ctrl+C where it is told to."""

    def __init__(self, data: Path, stops_at: int = 99) -> None:
        self.data = data
        self.stops_at = stops_at
        self.ran: list[tuple[str, int]] = []

    def __call__(self, wanted: kept.Experiment) -> Path:
        self.ran.append((wanted.system, wanted.changes["seed"]))
        if len(self.ran) == self.stops_at:
            raise KeyboardInterrupt
        folder = self.data / "fresh" / wanted.system
        shutil.copytree(self.data / "results" / wanted.system, folder, dirs_exist_ok=True)
        settings = kept.changed(load(PARAMS), wanted.changes)
        training = kept.fingerprints.expected(settings, f"segmenters/{wanted.system}")
        made_of.write(folder, made_of.read(folder) | {"training": training, "data_set": f"of seed {wanted.changes}"})
        return folder


def perform(
    data: Path, runner: FakeRunner, seeds: tuple[int, ...] = (1, 2), systems: tuple[str, ...] = (A, B)
) -> list[str]:
    wanted = [experiment(data, system, seed) for seed in seeds for system in systems]
    return kept.perform(wanted, load(PARAMS), DATA_SET, runner, lambda _: None)


def test_what_is_kept_is_not_run_again_and_a_killed_one_goes_on(data: Path) -> None:
    first = FakeRunner(data, stops_at=3)
    with pytest.raises(KeyboardInterrupt):
        perform(data, first)
    assert first.ran == [(A, 1), (B, 1), (A, 2)]
    second = FakeRunner(data)
    assert perform(data, second) == []
    assert second.ran == [(A, 2), (B, 2)]
    third = FakeRunner(data)
    perform(data, third)
    assert third.ran == []
    names = {path.name for path in experiment(data, A, 1).folder.iterdir()}
    assert names == {"metrics.json", "images.parquet", "split.json", "made_of.json"}


def test_a_result_of_other_code_is_told_and_runs_again_when_asked_for(data: Path) -> None:
    settings, said = kept.changed(load(PARAMS), {"seed": 1}), []
    fake, wanted = FakeRunner(data), [experiment(data, A, 1)]

    def perform_it(anew: bool = False) -> str:
        kept.perform(wanted, load(PARAMS), DATA_SET, fake, said.append, anew)
        return said[-1]

    perform_it()
    assert perform_it().endswith("done before, by unknown code; --anew runs it again")
    known = Code()
    for stage in code_behind.stages(settings, A):
        write_json(data / "params" / f"{stage}.json", {"code": known.fingerprints(*code_behind.roots(settings, stage))})
    assert "kept in" in perform_it(anew=True)
    assert perform_it(anew=True).endswith("done before")
    assert len(fake.ran) == 2
    made_of.write(wanted[0].folder, made_of.read(wanted[0].folder) | {kept.CODE: "of other code"})
    assert perform_it().endswith("done before, by other code; --anew runs it again")


def test_one_that_fails_does_not_stop_the_others(data: Path) -> None:
    fake = FakeRunner(data)

    def run_but_one(wanted: kept.Experiment) -> Path:
        if wanted.system == A:
            raise Problem("no images")
        return fake(wanted)

    wanted = [experiment(data, system, 1) for system in (A, B)]
    failed = kept.perform(wanted, load(PARAMS), DATA_SET, run_but_one, lambda _: None)
    assert failed == [f"{A} with seed=1: no images"]
    assert fake.ran == [(B, 1)]


def test_a_result_of_other_parameters_is_not_kept(data: Path) -> None:
    settings = kept.changed(load(PARAMS), {"seed": 1})
    with pytest.raises(Problem, match="other parameters"):
        kept.keep(data / "results" / A, experiment(data, A, 1).folder, settings, A, DATA_SET)
    assert not experiment(data, A, 1).folder.exists()


@pytest.fixture
def on_disk(data: Path) -> Path:
    """Parameters by which the data set is not generated."""
    return write_params(data.parents[1] / "params.yaml", {"dataset": voc_section("voc") | {"name": "mine"}})


def test_seeds_of_files_that_have_changed_since_they_were_prepared_are_not_kept(data: Path, on_disk: Path) -> None:
    settings = load(on_disk)

    def run(wanted: kept.Experiment) -> Path:
        folder = FakeRunner(data)(wanted)
        own = kept.changed(settings, wanted.changes)
        of = {"training": kept.fingerprints.expected(own, f"segmenters/{wanted.system}"), "data_set": "as it is now"}
        of |= {"prediction": kept.fingerprints.of(kept.plan.evaluate(own, wanted.system))}
        made_of.write(folder, made_of.read(folder) | of)
        return folder

    wanted = [experiment(data, A, 1)]
    (failed,) = kept.perform(wanted, settings, "as it was prepared", run, lambda _: None)
    assert "files of voc have changed since they were prepared there" in failed
    assert not wanted[0].folder.exists()
    assert kept.perform(wanted, settings, "as it is now", run, lambda _: None) == []


def test_seeds_of_a_data_set_that_was_not_prepared_are_refused(data: Path, on_disk: Path) -> None:
    with pytest.raises(Problem, match="has no data set of today's parameters") as caught:
        seeds.main(seeds=[1], systems=[A], params=on_disk)
    assert caught.value.made_by == "prepare"


def test_the_table_tells_of_all_seeds_and_mixes_none_that_is_stale(data: Path) -> None:
    alone = Results(data, load(PARAMS)).table().set_index("system")
    assert set(alone["seeds"]) == {"0"}
    assert all(map(pd.isna, alone["std_over_seeds"]))
    perform(data, FakeRunner(data))
    table = Results(data, load(PARAMS)).table().set_index("system")
    assert table["seeds"].to_dict() == dict.fromkeys(SYSTEMS, "0") | {A: "0 1 2", B: "0 1 2"}
    assert table.loc[A, "std_over_seeds"] == pytest.approx(0, abs=1e-5)  # all seeds are copies of one
    assert table.loc[A, "mean_over_seeds"] == pytest.approx(table.loc[A, "mean_iou"], abs=1e-4)
    ends = [f"over_next{end}" for end in ("_low", "", "_high")]
    low, middle, high = table.loc[A, ends].tolist()
    assert low < middle < high
    best, second = sorted(table["mean_over_seeds"], reverse=True)[:2]
    assert table.loc[A, ["mean_over_seeds", "over_next"]].tolist() == pytest.approx([best, best - second], abs=1e-4)
    deep = {f"systems.{A}.prediction.views": "deep", "views.deep": {"scales": [0.5, 1.0], "flip": True}}
    changed = write_params(data.parent / "params.yaml", deep)
    stale = Results(data, load(changed)).table().set_index("system")
    assert stale.loc[A, ["state", "seeds"]].tolist() == ["stale", ""]
    assert stale.loc[B, "seeds"] == "0 1 2"


def test_a_seed_of_other_pictures_is_told_and_compared_with_none(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a generated set, a seed's pictures are those of the code that drew them."""
    monkeypatch.setattr(chance, "DRAWS", 20)
    best, second = list(Results(data, load(PARAMS)).compared)[:2]
    perform(data, FakeRunner(data), systems=(best, second))
    folder = experiment(data, best, 1).folder
    made_of.write(folder, made_of.read(folder) | {"data_set": "drawn by other code"})
    results = Results(data, load(PARAMS))
    over = results.compared[best].over_next
    assert over is not None
    assert over.seeds == 2
    assert results.table().set_index("system").loc[best, ["seeds", "seeds_apart"]].tolist() == ["0 1 2", "1"]
    assert f"seed 1 of {best}" in results.notes[1]
    assert results.notes[2] == "Results of other seeds that are of earlier or unknown code, and counted: 4."


def test_a_kept_result_of_other_data_is_stale(data: Path) -> None:
    perform(data, FakeRunner(data), seeds=(1,))
    folder, settings = experiment(data, A, 1).folder, load(PARAMS)
    assert kept.is_current(folder, kept.changed(settings, {"seed": 1}), A, "any: each seed has its own")
    assert not kept.is_current(folder, settings, A, DATA_SET)
    (folder / "images.parquet").unlink()
    assert not kept.is_current(folder, kept.changed(settings, {"seed": 1}), A, DATA_SET)
