"""Which images to annotate next: what is chosen and why, within the budget, and the files that it becomes."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segcore import systems
from segcore.acquisition import sheet
from segcore.acquisition.choice import FARTHEST, Candidate, Cost, Known, choose
from segcore.acquisition.looking import Looker, uncertainty
from segcore.acquisition.pool import pool
from segcore.commands import main
from segcore.commands.next import seconds_of
from segcore.config.settings import load
from segcore.data.manifest import write_manifest
from segcore.data.seen_tags import tags_table
from segcore.errors import Problem
from segcore.evaluation.score_maps import Enlarged
from segcore.models.classifiers import save_classifier
from segcore.models.systems import save_system
from segcore.networks.trunk import Trunk
from segcore.prediction import model as models
from tests.devkit import PARAMS
from tests.invented import SHAPES, scenes, write_json
from tests.networks import build, classifier_for, entry, tag_names, tiny_classifier

NAMES = ["background", *tag_names(len(SHAPES))]
COST = Cost(tags=20.0, masks=240.0)


def candidate(
    image_id: str,
    uncertainty: float,
    direction: tuple[float, float],
    seconds: float = 1.0,
    classes: tuple[int, ...] = (1,),
) -> Candidate:
    return Candidate(image_id, uncertainty, float(seconds), np.array(direction, np.float64), classes)


def seen(direction: tuple[float, float], classes: tuple[int, ...] = (1,)) -> Known:
    return Known(classes, np.array(direction, np.float64))


def ids(candidates: list[Candidate], known: list[tuple[float, float]], seconds: float) -> list[str]:
    return [one.candidate.image_id for one in choose(candidates, [seen(k) for k in known], float(seconds))]


class TestChoice:
    """By hand, in a plane."""

    def test_of_two_alike_only_one_is_taken_before_another(self) -> None:
        twins = [candidate("a", 0.9, (1, 0)), candidate("b", 0.89, (1, 0)), candidate("c", 0.3, (0, 1))]
        assert ids(twins, [], 3) == ["a", "c", "b"]

    def test_of_two_as_far_the_uncertain_one_comes_first(self) -> None:
        assert ids([candidate("a", 0.2, (0, 1)), candidate("b", 0.4, (0, -1))], [(1, 0)], 2) == ["b", "a"]

    def test_what_lies_beside_a_known_image_comes_last(self) -> None:
        some = [candidate("a", 0.9, (1, 0)), candidate("b", 0.1, (0, 1))]
        assert ids(some, [(2, 0)], 2) == ["b", "a"]
        (first, last) = choose(some, [seen((2, 0))], 2.0)
        assert (first.distance, last.distance) == (1.0, 0.0)

    def test_the_worth_is_that_of_a_second(self) -> None:
        some = [candidate("a", 0.5, (1, 0), seconds=260), candidate("b", 0.48, (1, 0), seconds=240)]
        assert ids(some, [(0, 1)], 500) == ["b", "a"]

    @pytest.mark.parametrize(("seconds", "count"), [(239, 0), (240, 1), (719, 2), (720, 3), (10_000, 4)])
    def test_the_budget_is_never_exceeded(self, seconds: float, count: int) -> None:
        some = [candidate(str(n), 0.5, (n, 1), seconds=240) for n in range(4)]
        assert len(ids(some, [], seconds)) == count

    def test_a_cheaper_image_fills_what_is_left(self) -> None:
        some = [candidate("dear", 0.99, (1, 0), seconds=260), candidate("cheap", 0.1, (0, 1), seconds=20)]
        assert ids(some, [], 100) == ["cheap"]
        assert sorted(ids(some, [], 280)) == ["cheap", "dear"]

    def test_a_class_that_few_known_images_show_comes_first(self) -> None:
        some = [candidate("cat", 0.9, (0, 1), classes=(1,)), candidate("train", 0.3, (0, 1), classes=(2,))]
        known = [seen((1, 0), classes=(1,))] * 2
        first, last = choose(some, known, 2.0)
        assert (first.candidate.image_id, first.rarity) == ("train", 1.0)
        assert (last.candidate.image_id, last.rarity) == ("cat", pytest.approx(1 / 9))

    def test_what_was_taken_counts(self) -> None:
        cats = [candidate(f"cat{n}", 0.9, (np.cos(n), np.sin(n)), classes=(1,)) for n in range(3)]
        birds = [candidate(f"bird{n}", 0.5, (np.cos(n), np.sin(n)), classes=(2,)) for n in range(3)]
        taken = [one.candidate.classes for one in choose([*cats, *birds], [seen((-1, 0), (3,))], 4.0)]
        assert sorted(taken) == [(1,), (1,), (2,), (2,)]

    def test_more_classes_in_an_image_are_not_worth_more(self) -> None:
        some = [candidate("both", 0.5, (0, 1), classes=(1, 2)), candidate("rare", 0.5, (0, 1), classes=(2,))]
        first, _ = choose(some, [seen((1, 0), (1,))], 2.0)
        assert (first.candidate.image_id, first.rarity) == ("rare", 1.0)
        both, _ = choose([candidate("both", 0.9, (0, 1), classes=(1, 2)), some[1]], [seen((1, 0), (1,))], 2.0)
        assert (both.candidate.image_id, both.rarity) == ("both", (1 / 4 + 1) / 2)

    def test_images_of_background_alone_are_a_class(self) -> None:
        some = [candidate("empty", 0.5, (0, 1), classes=()), candidate("cat", 0.4, (0, 1), classes=(1,))]
        assert [one.rarity for one in choose(some, [seen((1, 0), ())], 2.0)] == [1.0, 1 / 4]

    def test_the_order_of_the_candidates_changes_nothing(self) -> None:
        some, known = self.invented(40)
        first = choose(some, known, 20.0)
        again = choose([some[n] for n in np.random.default_rng(2).permutation(40)], known[::-1], 20.0)
        assert [one.candidate.image_id for one in first] == [one.candidate.image_id for one in again]
        assert all(0 <= one.distance <= FARTHEST and 0 < one.rarity <= 1 for one in first)

    def test_each_step_is_the_greedy_one(self) -> None:
        """Against the rule, written out naively."""
        left, known = self.invented(15)
        for one in choose([*left], [*known], 8.0):

            def gain(candidate: Candidate) -> float:
                unit = candidate.features / np.linalg.norm(candidate.features)
                distance = min(1 - float(unit @ (k.features / np.linalg.norm(k.features))) for k in known)
                counts = [sum(c in k.classes for k in known) for c in candidate.classes]
                return candidate.uncertainty * distance * float(np.mean([(1 + n) ** -2.0 for n in counts]))

            best = max(left, key=gain)
            assert one.candidate is best
            left.remove(best)
            known.append(Known(best.classes, best.features))

    @staticmethod
    def invented(n: int) -> tuple[list[Candidate], list[Known]]:
        """Candidates that differ in everything but the cost, and three known images."""
        random = np.random.default_rng(0)

        def classes() -> tuple[int, ...]:
            return tuple(sorted(random.choice(np.arange(1, 6), random.integers(1, 4), replace=False).tolist()))

        some = [Candidate(f"{k:03}", float(random.random()), 1.0, random.normal(size=8), classes()) for k in range(n)]
        return some, [Known(classes(), random.normal(size=8)) for _ in range(3)]

    def test_an_outline_without_tags_costs_both(self) -> None:
        assert [COST.of("masks", True), COST.of("masks", False), COST.of("tags", False)] == [240, 260, 20]


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1.5h", 5400), ("90s", 90)])
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0m", "nanm", "infh", "30d"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="--budget: found .* such as 30m"):
        seconds_of(text)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten training images, two of them strong and two without tags, one to measure on, and an untrained system."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data/mine"
    records = [
        replace(r, split="val" if number == 10 else "train")
        for number, r in enumerate(scenes(tmp_path / "pictures", 11))
    ]
    bare = [replace(r, labels=None, tags=(), labels_sha256=None, label_classes=None) for r in records[8:10]]
    (data / "prepared").mkdir(parents=True)
    write_manifest(data / "prepared/manifest.parquet", [*records[:8], *bare, records[10]])
    write_json(data / "prepared/classes.json", NAMES)
    (data / "split").mkdir()
    (data / "split/strong.txt").write_text("000\n001\n")
    weak = records[:8]
    (data / "split/weak.txt").write_text("".join(f"{r.image_id}\n" for r in weak))
    (data / "split/tags.csv").write_bytes(tags_table({r.image_id: r.tags for r in weak}, NAMES))
    classifier = tiny_classifier(n_tags=len(SHAPES))
    params = load(PARAMS).classifiers["decoupled_str"].model_copy(update={"backbone": classifier.backbone})
    save_classifier(tmp_path / "classifier", "tested", params, NAMES[1:], classifier)
    card = json.loads((tmp_path / "classifier/model.json").read_text())
    training = entry("deeplab")["training"]
    system = build("deeplab", classifier).eval()
    save_system(data / "segmenters/deeplab/model", "deeplab", "deeplab", training, card, 65, system)
    prediction = entry("deeplab")["prediction"]
    write_json(data / "params/evaluate/deeplab.json", {"prediction": prediction, "edges": None})
    return data


def started(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main.app, ["next", "data/mine/segmenters/deeplab", "--out", "out", *arguments])
    return done.exit_code, done.output


def listed() -> list[dict[str, str]]:
    with Path("out/next.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_list_a_sheet_and_tasks_that_begin_with_predictions(project: Path) -> None:
    code, said = started("--budget", "20m")
    assert code == 0, said
    rows = listed()
    assert [row["rank"] for row in rows] == [str(n + 1) for n in range(len(rows))]
    assert sum(float(row["seconds"]) for row in rows) <= 1200
    assert {row["image_id"] for row in rows} <= {f"{n:03}" for n in range(2, 10)}
    assert len(rows) == 4 + (sum(float(row["seconds"]) for row in rows) + 239 <= 1200)
    tasks = json.loads(Path("out/label-studio.json").read_text())
    begin = "/data/local-files/?d="
    assert [task["data"]["image"] for task in tasks] == [f"{begin}{row['image_id']}.jpg" for row in rows]
    assert all(task["predictions"][0]["model_version"] == "deeplab" for task in tasks)
    assert all(0 < float(row["uncertainty"]) <= 1 and 0 < float(row["rarity"]) <= 1 for row in rows)
    assert [image.attrib["name"] for image in ElementTree.parse("out/cvat.xml").iter("image")] == [
        f"{row['image_id']}.jpg" for row in rows
    ]
    with Image.open("out/sheet.png") as drawn:
        assert drawn.width == sheet.ACROSS * (sheet.SIDE + sheet.GAP) + sheet.GAP
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert started("--budget", "20m")[0] == 0
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_predictions_stay_within_the_tags(project: Path) -> None:
    assert started("--budget", "2h")[0] == 0
    for task, row in zip(json.loads(Path("out/label-studio.json").read_text()), listed(), strict=True):
        shown = {result["value"]["brushlabels"][0] for result in task["predictions"][0]["result"][1:]}
        if row["tags"]:
            assert shown <= {*row["tags"].split("|")}
            assert task["predictions"][0]["result"][0]["value"]["choices"] == sorted(row["tags"].split("|"))


def test_tags_are_asked_for_where_there_are_none(project: Path) -> None:
    code, said = started("--budget", "10m", "--kind", "tags")
    assert code == 0, said
    assert {row["image_id"] for row in listed()} == {"008", "009"}
    assert {row["seconds"] for row in listed()} == {"20.0"}


def test_masks_that_the_split_withholds_are_not_seen(project: Path) -> None:
    found = pool(project, "masks")
    assert [r.image_id for r in found.known] == ["000", "001"]
    assert [r.image_id for r in found.wanting] == [f"{n:03}" for n in range(2, 10)]
    assert [bool(r.tags) for r in found.wanting] == [True] * 6 + [False] * 2
    assert [found.shown(r) for r in found.known] == [r.label_classes for r in found.known]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--budget", "1m"), "one image takes 240 seconds"), (("--budget", "soon"), "must be a time")],
)
def test_what_cannot_be_done_is_told(arguments: tuple[str, ...], message: str, project: Path) -> None:
    code, said = started(*arguments)
    assert code == 2
    assert message in said
    assert not Path("out").exists()


def test_a_project_without_a_split_is_told(project: Path) -> None:
    (project / "split/strong.txt").unlink()
    code, said = started("--budget", "1h")
    assert code == 2
    assert "dvc repro split" in said


class TestUncertainty:
    """Of probabilities that are known."""

    def test_it_is_the_entropy_among_the_tags(self) -> None:
        q = torch.tensor([[0.4], [0.4], [0.2]])
        assert uncertainty(q, [0, 1]) == pytest.approx(1.0, abs=1e-4)
        thirds = np.array([2 / 3, 1 / 3])
        expected = -(thirds * np.log(thirds)).sum() / np.log(2)
        assert uncertainty(q, [0, 2]) == pytest.approx(expected, abs=1e-4)
        assert uncertainty(q, [0]) == 0

    def test_it_is_the_mean_over_pixels(self) -> None:
        q = torch.tensor([[1.0, 0.5], [0.0, 0.5]])
        assert uncertainty(q[:, :1], [0, 1]) == pytest.approx(0, abs=1e-5)
        assert uncertainty(q, [0, 1]) == pytest.approx(0.5, abs=1e-5)

    @pytest.fixture
    def looker(self, project: Path) -> Looker:
        return Looker(models.load(project / "segmenters/deeplab", device="cpu"))

    def test_scores_become_probabilities_first(self, looker: Looker) -> None:
        probabilities = torch.full((len(NAMES),), 1e-6)
        probabilities[[0, 1, 2]] = torch.tensor([0.4, 0.4, 0.2])
        scores = Enlarged(probabilities.log()[:, None, None].expand(-1, 8, 8).contiguous())
        assert looker._uncertainty(scores, [0, 1]) == pytest.approx(1.0, abs=1e-4)

    def test_classes_are_the_tags_or_what_is_labelled(self, looker: Looker) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        assert looker(picture, [2]).classes == (2,)
        free = looker(picture, None)
        assert free.classes == tuple(k for k in np.unique(free.labels) if k and (free.labels == k).mean() >= 0.01)

    def test_features_are_those_of_the_trunk(self, looker: Looker) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        first, second = looker(picture, None), looker(picture, [1])
        np.testing.assert_array_equal(first.features, second.features)
        assert first.features.ndim == 1
        assert first.features.std() > 0
        assert {*np.unique(second.labels)} <= {0, 1}


@pytest.mark.parametrize("name", systems.names())
def test_every_system_can_be_asked(name: str) -> None:
    """It has a trunk, by whose features images are compared."""
    system = build(name, classifier_for(name))
    assert any(isinstance(module, Trunk) for module in system.modules())
