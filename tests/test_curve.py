"""The curve: what is run for it, what comes of it, and its files; by a runner that trains nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from segcore import made_of
from segcore.commands import curve as command
from segcore.config import fingerprints
from segcore.config.settings import load
from segcore.errors import Problem
from segcore.evaluation import per_image
from segcore.evaluation.per_image import ImageCounts
from segcore.reporting import kept, law
from segcore.reporting.curve import Point
from tests.devkit import PARAMS
from tests.invented import NAMES, invented_results, write_json

CLASSES = len(NAMES) - 1
SEMI, MASKS_ONLY, TAGS_ONLY = "decouplednet", "deeplab", "sec"


def quality(strong: int, weak: int, seed: int) -> float:
    """The share of pixels that the invented systems have right."""
    return 0.1 + 0.1 * np.log1p(0.05 * strong) + 0.03 * np.log1p(0.01 * weak) + 0.005 * (seed % 2)


class Trainer:
    """In place of `Copies`: what would come of a run, by its split."""

    ran: list[tuple[str, str, int]] = []
    stops_at = 10**9
    blind: tuple[str, ...] = ()
    """Points whose validation images have no mask."""

    def __init__(self, root: Path, params: Path) -> None:
        self.root = root

    def perform(self, wanted: list[kept.Experiment], *rest: Any) -> list[str]:
        settings, data_set, *_ = rest
        return kept.perform(wanted, settings, data_set, self.run, lambda _: None)

    def run(self, wanted: kept.Experiment) -> Path:
        if len(self.ran) >= self.stops_at:
            raise KeyboardInterrupt
        self.ran.append((wanted.system, wanted.folder.parent.name, wanted.changes["seed"]))
        data = self.root / "fresh"
        settings = kept.changed(load(PARAMS), wanted.changes)
        how = settings.split.strong
        strong = 900 if how.kind == "all" else CLASSES * how.images  # type: ignore[union-attr]
        weak = settings.split.weak_images or 1000
        write_json(
            data / "split/split.json", {"strong": strong, "weak": weak, "weak_without_mask": max(0, weak - strong)}
        )
        folder = data / "results" / wanted.system
        right = int(1000 * quality(strong, weak, settings.seed))
        counts = np.zeros((10, 3, len(NAMES)), dtype=np.int64)
        counts[:, 0], counts[:, 1:] = right, 1000
        counts *= wanted.folder.parent.name not in self.blind
        write_json(folder / "metrics.json", {"iou": dict.fromkeys(NAMES, 0.5)})
        per_image.write(folder, [ImageCounts(tuple("abcdefghij"), counts)], None, NAMES)
        training = fingerprints.expected(settings, f"segmenters/{wanted.system}")
        prediction = fingerprints.of(kept.plan.evaluate(settings, wanted.system))
        made_of.write(folder, {"data_set": "invented", "training": training, "prediction": prediction})
        return folder


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented_results(tmp_path_factory.mktemp("invented"), panels=0)


@pytest.fixture
def project(invented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for part in ("prepared", "split"):
        shutil.copytree(invented / part, tmp_path / "data/shapes" / part, ignore=shutil.ignore_patterns("files"))
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    monkeypatch.setattr(command, "Copies", Trainer)
    monkeypatch.setattr(Trainer, "ran", [])
    monkeypatch.setattr(law, "DRAWS", 30)
    return tmp_path


def draw(project: Path, **options: Any) -> pd.DataFrame:
    command.main(systems=[SEMI, MASKS_ONLY, TAGS_ONLY], params=project / "params.yaml", **options)
    return pd.read_csv(project / "data/shapes/curve/curve.csv")


def test_every_system_where_it_can_be_trained(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = draw(project, masks=["0", "1", "5", "all"], tagged=[100, 400], seeds=[0, 1])
    points = {name: sorted(some["point"].unique()) for name, some in table.groupby("system")}
    by_masks, by_tags = ["masks_1", "masks_5", "masks_all"], ["tagged_100", "tagged_400"]
    assert points == {SEMI: by_masks + by_tags, MASKS_ONLY: by_masks, TAGS_ONLY: ["masks_0", *by_tags]}
    assert len(table) == 2 * (5 + 3 + 3)
    said = capsys.readouterr().out
    assert f"{SEMI}: no point masks_0: it needs masks" in said
    assert f"{TAGS_ONLY}: no point masks_5: it sees no masks" in said
    assert f"{MASKS_ONLY}: no point tagged_400: it sees no tags" in said


def test_hours_and_scores_are_those_of_the_annotation_seen(project: Path) -> None:
    table = draw(project, masks=["0", "5"], tagged=[100], seeds=[0]).set_index(["system", "point"])
    assert table.loc[(SEMI, "masks_5"), "hours"] == pytest.approx((50 * 239.7 + 950 * 20) / 3600, abs=0.01)
    assert table.loc[(MASKS_ONLY, "masks_5"), "hours"] == pytest.approx(50 * 239.7 / 3600, abs=0.01)
    assert table.loc[(TAGS_ONLY, "tagged_100"), "hours"] == pytest.approx(100 * 20 / 3600, abs=0.01)
    assert table.loc[(SEMI, "masks_5"), ["masks", "tagged", "masks_per_class"]].tolist() == [50, 1000, 5]
    assert table.loc[(MASKS_ONLY, "masks_5"), "tagged"] == table.loc[(TAGS_ONLY, "masks_0"), "masks"] == 0
    share = int(1000 * quality(50, 1000, 0)) / 1000
    assert table.loc[(SEMI, "masks_5"), "mean_iou"] == pytest.approx(share / (2 - share), abs=1e-5)


def test_a_killed_curve_goes_on_and_is_drawn_without_a_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "stops_at", 3)
    with pytest.raises(KeyboardInterrupt):
        draw(project, masks=["1", "5"], seeds=[0, 1])
    first = list(Trainer.ran)
    monkeypatch.setattr(Trainer, "stops_at", 10**9)
    whole = draw(project, masks=["1", "5"], seeds=[0, 1])
    assert len(first) == 3
    assert len(Trainer.ran) == len({*Trainer.ran}) == len(whole) == 8
    files = {name: (project / f"data/shapes/curve/{name}").read_bytes() for name in ("curve.csv", "curve.png")}
    assert files["curve.png"].startswith(b"\x89PNG")
    draw(project, run=False)
    assert {name: (project / f"data/shapes/curve/{name}").read_bytes() for name in files} == files
    assert len(Trainer.ran) == 8


def test_the_advice_of_each_system(project: Path) -> None:
    draw(project, masks=["0", "1", "2", "5", "10", "all"], tagged=[100, 400], seeds=[0, 1])
    advice = (project / "data/shapes/curve/advice.txt").read_text().splitlines()
    assert [line.split(",")[0].split(":")[0] for line in advice] == [SEMI, MASKS_ONLY, TAGS_ONLY]
    assert advice[0].startswith(f"{SEMI}, the next hour: 15 images with masks, expected +")
    assert "; 180 images with tags +" in advice[0]
    assert advice[1].endswith("tags were not varied.")
    assert advice[2].startswith(f"{TAGS_ONLY}, the next hour: 180 images with tags")


def test_points_that_tell_nothing_are_left_out_and_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a mIoU, and fewer tags where no other point has as many masks."""
    monkeypatch.setattr(Trainer, "blind", ("masks_2",))
    points = ["1", "2", "10", "25", "all"]
    command.main(systems=[SEMI], masks=points, tagged=[100], params=project / "params.yaml")
    lines = (project / "data/shapes/curve/curve.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines if line.endswith(",")] == ["masks_2"], "has no mIoU"
    advice = (project / "data/shapes/curve/advice.txt").read_text().splitlines()
    assert advice[:2] == [
        f"{SEMI}: 1 of 6 points have no mIoU and are left out.",
        f"{SEMI}: points with fewer tags are left out, as no others have as many masks.",
    ]
    assert advice[2].startswith(f"{SEMI}, the next hour: 15 images with masks, expected +")
    assert advice[2].endswith("; tags were not varied.")


def test_what_else_lies_among_the_results_is_nobodys(project: Path) -> None:
    whole = draw(project, masks=["1", "5"])
    for stray in ("masks_1/.DS_Store", "masks_1/old", "notes/0", "tagged_/0", "masks_0x/0"):
        (project / f"data/shapes/curve/{SEMI}/{stray}").mkdir(parents=True)
    pd.testing.assert_frame_equal(draw(project, run=False), whole)


@pytest.mark.parametrize("seconds", [0.0, -10.0, float("nan"), float("inf")])
@pytest.mark.parametrize("option", ["tag_seconds", "mask_seconds"])
def test_a_cost_that_is_no_time_is_refused_before_the_runs(project: Path, option: str, seconds: float) -> None:
    with pytest.raises(Problem, match=f"--{option.replace('_', '-')}: found {seconds:g}; allowed are the seconds"):
        draw(project, **{option: seconds})
    assert not Trainer.ran


def test_a_split_of_other_parameters_gives_no_advice(project: Path) -> None:
    draw(project, masks=["1", "5"])
    file = project / "data/shapes/split/split.json"
    write_json(file, json.loads(file.read_text()) | {"parameters": "older", "weak": 777})
    with pytest.raises(Problem, match="no data set and split of today's parameters") as caught:
        draw(project, run=False)
    assert caught.value.made_by == "split"


def test_results_of_other_parameters_are_left_out(project: Path) -> None:
    draw(project, masks=["1", "5"], seeds=[0])
    folder = project / f"data/shapes/curve/{SEMI}/masks_5/0"
    found = json.loads((folder / made_of.FILE).read_text())
    write_json(folder / made_of.FILE, found | {kept.RUN: "of other parameters"})
    table = draw(project, run=False)
    assert (SEMI, "masks_5") not in {*zip(table["system"], table["point"], strict=True)}
    assert (SEMI, "masks_1") in {*zip(table["system"], table["point"], strict=True)}


def test_what_cannot_be_asked_for_is_refused(project: Path) -> None:
    with pytest.raises(Problem, match="--masks: found 'five'"):
        Point.of_masks("five")
    with pytest.raises(Problem, match=r"--systems: found 'deeplap'.*did you mean 'deeplab'"):
        command.main(systems=["deeplap"], params=project / "params.yaml")
    with pytest.raises(Problem, match="no result of today's parameters"):
        draw(project, run=False)
    (project / "data/shapes/split/split.json").unlink()
    with pytest.raises(Problem, match="no data set and split") as caught:
        draw(project)
    assert caught.value.made_by == "split"
