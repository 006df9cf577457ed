"""`--shard i/n` of the stages: shards in any order and a merge are one run, byte for byte; what is missing is named."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segcore.cli import held, shards
from segcore.cli.shards import OneProcess, Piece, Shard, Work
from segcore.commands.main import app
from segcore.config import settings
from segcore.data.manifest import Record
from segcore.errors import About, Problem, Problems
from segcore.evaluation import scoring, shares
from segcore.evaluation.numbers import rounded
from segcore.importers import Entry, Finding, Fingerprint, parts
from tests.devkit import PARAMS, make_devkit, make_record, voc_section
from tests.invented import NAMES, predictor, scenes
from tests.tiny import arguments, files, run_stages, tiny_dataset, tiny_params, train_stochastic

KEY = "a" * 16
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
def shard_folder(tmp_path: Path) -> Path:
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
    stage: str, order: str, project: Path, tmp_path: Path, shard_folder: Path
) -> None:
    whole = files(project / arguments(stage)["out"])
    for number in order:
        before = files(project / arguments(stage)["out"])
        run(stage, tmp_path, shard=f"{number}/3")
        assert files(project / arguments(stage)["out"]) == before, "a shard writes no results"
    assert run(stage, tmp_path) == whole
    assert not list(shard_folder.rglob("*.zip")), "shards that were merged are gone"


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_shard_is_named_and_results_stay(
    stage: str, project: Path, tmp_path: Path, shard_folder: Path
) -> None:
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
    stage: str, project: Path, tmp_path: Path, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
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
    times = {file: file.stat().st_mtime_ns for file in shard_folder.rglob("*.zip")}
    assert len(times) == 1
    with pytest.raises(Problem, match=r"--shard 1/2 \(\d+ of \d+ pieces\), --shard 2/2"):
        run(stage, tmp_path)
    for _ in range(2):
        run(stage, tmp_path, shard="1/2")
        again = {file: file.stat().st_mtime_ns for file in shard_folder.rglob("*.zip")}
        assert times.items() <= again.items()
        assert len(again) > 1
        times = again
    run(stage, tmp_path, shard="2/2")
    assert run(stage, tmp_path) == whole


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", "\u0661/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(Problem, match=r"--shard: found '.*'; it must be i/n"):
        shards.shard(text)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 10, 12])
@pytest.mark.parametrize("of", [1, 2, 5, 20])
@pytest.mark.parametrize("images", [1, 6])
def test_shards_deal_whole_batches_and_each_image_once(
    images: int, of: int, count: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "IMAGES", images)
    work = Work(tmp_path / "out", tmp_path, KEY, count, block)
    pieces = [piece for number in range(1, of + 1) for piece in work.pieces(Shard(number, of))]
    assert len({file for file, _ in pieces}) == len(pieces)
    assert all(len(places) <= max(images, block) for _, places in pieces)
    batches = [tuple(places[i : i + block]) for _, places in pieces for i in range(0, len(places), block)]
    assert sorted(batches) == [tuple(range(count))[first : first + block] for first in range(0, count, block)]


class Half(OneProcess):
    """One of two processes of torchrun."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def shard(self, items: Any) -> list[Any]:
        return list(items)[self.rank :: 2]


def test_processes_share_a_shard(tmp_path: Path) -> None:
    work = Work(tmp_path / "out", tmp_path, KEY, 10, 2)
    made: list[int] = []

    def make(places: list[int]) -> dict[str, bytes]:
        made.extend(places)
        return {"places.json": json.dumps(places).encode()}

    for rank in (0, 1):
        work.do(Shard(1, 2), Half(rank), make)
    assert sorted(made) == [0, 1, 4, 5, 8, 9]


def test_a_shard_is_one_run_s_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(held, "SECONDS", 0.1)
    work, one = Work(Path("out"), shards.FOLDER, KEY, 4, 2), Shard(1, 2)
    with work.alone(one, OneProcess()):
        with pytest.raises(Problem, match="is being written by"), work.alone(one, OneProcess()):
            raise AssertionError
        with work.alone(Shard(2, 2), OneProcess()):
            pass


def filled(work: Work, *done: Shard) -> None:
    for one in done:
        work.do(one, OneProcess(), lambda places: {"places.json": json.dumps(places).encode()})


class TestMerging:
    """What a run without `--shard` makes of what it finds."""

    @pytest.fixture
    def work(self, tmp_path: Path) -> Work:
        return Work(tmp_path / "out", tmp_path / "parts", KEY, 6, 1)

    def test_nothing_is_there(self, work: Work) -> None:
        assert work.found() == []
        work.folder.mkdir(parents=True)
        assert work.found() == []

    def test_two_divisions(self, work: Work) -> None:
        filled(work, Shard(1, 2), Shard(2, 2), Shard(1, 3))
        with pytest.raises(Problem, match=r"shards of 2 and of 3 parts; delete those of all but one division"):
            work.found()
        shutil.rmtree(work.folder_of(Shard(1, 3)))
        assert sorted(place for _, places in work.found() for place in places) == [*range(6)]

    def test_other_parameters(self, work: Work, tmp_path: Path) -> None:
        filled(work, Shard(1, 2), Shard(2, 2))
        other = Work(tmp_path / "out", tmp_path / "parts", "b" * 16, 6, 1)
        with pytest.raises(
            Problem, match="made of other parameters, data or code, and there are none of today's; run all"
        ):
            other.found()
        filled(other, Shard(1, 2))
        with pytest.raises(Problem, match=r"--shard 2/2 \(3 of 3 pieces\) \(.*aaaa holds some of other parameters"):
            other.found()
        filled(other, Shard(2, 2))
        assert len(other.found()) == 6
        other.clear()
        assert not list(work.all.rglob("*.zip"))

    def test_results_within_results(self, work: Work, tmp_path: Path) -> None:
        """Of other seeds, say: their shards are nobody else's."""
        seed = Work(tmp_path / "out/seeds/1", tmp_path / "parts", KEY, 6, 1)
        filled(seed, Shard(1, 1))
        assert work.found() == []
        filled(work, Shard(1, 1))
        work.clear()
        assert len(seed.found()) == 6

    def test_more_shards_than_images(self, work: Work) -> None:
        filled(work, *(Shard(number, 9) for number in range(1, 7)))
        assert len(work.found()) == 6, "the other three have nothing to do"

    def test_many_are_missing(self, work: Work, tmp_path: Path) -> None:
        many = Work(tmp_path / "out", tmp_path / "parts", KEY, 60, 1)
        filled(many, Shard(1, 30))
        with pytest.raises(Problem, match=r"of 30 shards 29 are not done, and lack: --shard 2/30 \(2 of 2 pieces\), .*"
                           r"--shard 10/30 \(2 of 2 pieces\) and 20 more; run those"):  # fmt: skip
            many.found()

    def test_a_damaged_piece(self, work: Work) -> None:
        filled(work, Shard(1, 1))
        file, _ = work.found()[3]
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 255
        file.write_bytes(content)
        with pytest.raises(Problem, match=r"000003.zip is damaged .*; delete it, and run --shard 1/1 again"):
            Piece(file)["places.json"]
        file.write_bytes(content[:20])
        with pytest.raises(Problem, match="damaged"):
            Piece(file)

    def test_the_same_members_are_the_same_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "member").write_bytes(b"content")
        shards.write(tmp_path / "one.zip", {"a": b"content"})
        shards.write(tmp_path / "two.zip", {"a": tmp_path / "member"})
        assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_other_parameters_make_other_shards(project: Path, tmp_path: Path) -> None:
    """Of an extraction: those of yesterday's parameters are neither taken nor left out in silence."""
    params = tiny_params(tmp_path / "params.yaml", **{"pseudo_labels.ficklenet.passes": 6})
    for number in (1, 2):
        run("extract_pseudo_labels", tmp_path, shard=f"{number}/2", params=params)
    with pytest.raises(Problem, match="made of other parameters"):
        run("extract_pseudo_labels", tmp_path)
    assert len(run("extract_pseudo_labels", tmp_path, params=params)) == 2 * 9 + 5


def test_shards_that_learned_other_settings_are_refused(project: Path, tmp_path: Path, shard_folder: Path) -> None:
    for number in (1, 2):
        run("extract_pseudo_labels", tmp_path, shard=f"{number}/2")
    file = next(shard_folder.rglob("2-of-2/000000.zip"))
    piece = Piece(file)
    members = {name: piece[name] for name in piece.names}
    shards.write(file, members | {"calibration.json": b"{}"})
    with pytest.raises(Problem, match=r"learned other settings .*; run --shard 2/2 again, then this"):
        run("extract_pseudo_labels", tmp_path)


class TestFindings:
    """Of `prepare`: what shards found, and what the merge makes of it."""

    @pytest.fixture
    def inside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        make_devkit(tmp_path / "voc", n_train=5, n_val=3)
        tiny_params(tmp_path / "params.yaml")
        return tmp_path

    def write(self, folder: Path, **changes: Any) -> None:
        tiny_params(folder / "params.yaml", dataset=voc_section("voc") | changes)

    def prepare(self, folder: Path, shard: str | None = None) -> dict[str, bytes]:
        run_stages("prepare", out=Path("prepared"), shard=shard, shard_folder=folder / "parts")
        return files(Path("prepared")) if Path("prepared").exists() else {}

    def test_converted_files_and_copies_are_those_of_one_run(self, inside: Path) -> None:
        """Pictures of 16 bits and painted labels; a copy within a split, which no shard sees alone."""
        self.write(inside, sixteen_bit="measured", convert_palette=True)
        shutil.copy(inside / "voc/JPEGImages/train_000.jpg", inside / "voc/JPEGImages/train_003.jpg")
        (inside / "voc/JPEGImages/train_001.jpg").unlink()
        wide = np.random.default_rng(0).integers(0, 4000, (40, 48), dtype=np.uint16)
        Image.fromarray(wide).save(inside / "voc/JPEGImages/train_001.png")
        with Image.open(inside / "voc/SegmentationClass/train_002.png") as labels:
            labels.convert("RGB").save(inside / "voc/SegmentationClass/train_002.png")
        whole = self.prepare(inside)
        assert {"files/JPEGImages/train_001.png", "files/SegmentationClass/train_002.png"} <= {*whole}
        assert json.loads(whole["dataset.json"])["warnings"]["same_bytes_in_split"] == 1
        for shard in ("2/3", "3/3", "1/3"):
            self.prepare(inside, shard)
        assert not list((inside / "parts").rglob(".files.partial"))
        assert self.prepare(inside) == whole

    def test_all_that_is_wrong_is_told_at_the_merge_and_mended_files_are_looked_at_again(self, inside: Path) -> None:
        whole = self.prepare(inside)
        pictures = {name: inside / f"voc/JPEGImages/{name}.jpg" for name in ("train_000", "train_003", "val_001")}
        good = {path: path.read_bytes() for path in pictures.values()}
        for path in pictures.values():
            path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(Problems) as alone:
            self.prepare(inside)
        for shard in ("1/2", "2/2"):
            self.prepare(inside, shard)
        with pytest.raises(Problems) as merged:
            self.prepare(inside)
        assert merged.value.problems == alone.value.problems
        assert len(merged.value.problems) == 3
        assert files(Path("prepared")) == whole
        for path, content in good.items():
            path.write_bytes(content)
        with pytest.raises(Problem, match="have changed since shards checked them; run --shard 1/2, --shard 2/2 again"):
            self.prepare(inside)
        for shard in ("1/2", "2/2"):
            self.prepare(inside, shard)
        assert self.prepare(inside) == whole

    def test_lists_that_are_wrong_stop_a_shard_at_once(self, inside: Path) -> None:
        (inside / "voc/ImageSets/Segmentation/val.txt").unlink()
        with pytest.raises(Problems, match=r"no image was checked:\n.*this list is missing"):
            self.prepare(inside, "1/2")

    def test_the_embedded_set_has_no_shards(self, inside: Path) -> None:
        dataset = settings.load(PARAMS).dataset.model_dump(mode="json")
        tiny_params(inside / "params.yaml", dataset=dataset)
        with pytest.raises(Problem, match="--shard: the embedded set is generated at once"):
            self.prepare(inside, "1/2")

    def test_findings_come_back_as_they_were(self, tmp_path: Path) -> None:
        entry = Entry("a", "train", Path("a.jpg"), Path("a.png"), (1, 2), (3,), (4, 5))
        converted, later = tmp_path / "one", tmp_path / "two"
        record = make_record("a", converted / "JPEGImages/a.png", Path("labels/a.png"), 4, 5, (1, 2), "train")
        full = Finding(
            entry, record, Fingerprint("0a", "0b", bytes(range(32))), [About(converted / "x", "is wrong"), "odd"],
            [("no_tags", About("a.jpg", f"see {converted}/y")), ("tags_alone", "so")], ["grey"], (3, 4000), True,
        )  # fmt: skip
        plain = Finding(replace(entry, labels=None), None, Fingerprint("0a", "0b", None))

        class Held(dict[str, Any]):
            names = ()

        made = parts.Inspected([full, plain], b"", converted)
        back = parts.unpacked(Held(made.files()), [full.entry, plain.entry], later)
        assert back[1] == plain
        moved = replace(record, image=later / "JPEGImages/a.png")
        assert back[0] == replace(
            full, record=moved, problems=[f"{later}/x: is wrong", "odd"],
            warnings=[("no_tags", f"a.jpg: see {later}/y"), ("tags_alone", "so")],
        )  # fmt: skip
        about = back[0].problems[0]
        assert isinstance(about, About)
        assert (about.what, about.rest) == (f"{later}/x", "is wrong")
        with pytest.raises(ValueError, match="in the place of"):
            parts.unpacked(Held(made.files()), [replace(full.entry, image_id="b"), plain.entry], later)


@pytest.mark.parametrize("with_crf", [False, True])
def test_scores_come_back_as_they_were(with_crf: bool, tmp_path: Path) -> None:
    params = settings.load(PARAMS).evaluation
    records = scenes(tmp_path / "scenes", 7)

    def scored(some: list[Record]) -> scoring.Scores:
        predict = predictor(some, 0.0)

        def refined(pictures: Any) -> Iterator[scoring.Prediction]:
            return (replace(one, refined=one.labels) if with_crf else one for one in predict(pictures))

        return scoring.score(some, refined, len(NAMES), params, with_crf)

    scores = scored(records)
    packed = shares.packed(scores)
    assert shares.packed(shares.unpacked(packed, len(NAMES), params)) == packed
    back = shares.summed(shares.unpacked(shares.packed(scored(records[i::3])), len(NAMES), params) for i in range(3))
    for name, one in (("whole", scores), ("parts", back)):
        scoring.write_results(one, NAMES, tmp_path / name)
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    with pytest.raises(ValueError, match="not of 2 classes"):
        shares.unpacked(packed, 2, params)


def test_scores_of_tags_come_back_as_they_were(tmp_path: Path) -> None:
    params = settings.load(PARAMS).evaluation
    records = [
        replace(record, labels=None, labels_sha256=None, label_classes=None)
        for record in scenes(tmp_path / "scenes", 4)
    ]

    def predict(pictures: Any) -> Iterator[scoring.Prediction]:
        for place, picture in enumerate(pictures):
            found = np.random.default_rng(place).random(len(NAMES) - 1)
            yield scoring.Prediction(np.zeros(picture.shape[:2], np.uint8), None, found)

    scores = scoring.score(records, predict, len(NAMES), params, False)
    packed = shares.packed(scores)
    back = shares.unpacked(packed, len(NAMES), params)
    assert rounded(scoring.tag_scores(back, NAMES) or {}) == rounded(scoring.tag_scores(scores, NAMES) or {})
    assert shares.packed(back) == packed


class TestPredict:
    """Photographs into a folder that all shards fill."""

    @pytest.fixture(scope="class")
    def photos(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("photos")
        for number in range(14):
            picture = np.random.default_rng(number).integers(0, 256, (6, 7, 3), dtype=np.uint8)
            Image.fromarray(picture).resize((70, 60), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
        return folder

    def predict(self, photos: Path, out: Path, *options: str, code: int = 0) -> str:
        run_stages("check_params")
        how = ("--how", "params/evaluate/decouplednet.json")
        command = ("predict", "segmenter", str(photos), "--out", str(out), "--batch", "3", *how, *options)
        result = CliRunner().invoke(app, command)
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    def test_shards_in_any_order_and_a_merge_write_what_one_run_writes(
        self, project: Path, photos: Path, tmp_path: Path
    ) -> None:
        polygons = ("--polygons", "coco")
        self.predict(photos, tmp_path / "whole", *polygons)
        for shard in ("3/3", "1/3", "2/3", "1/3"):
            said = self.predict(photos, tmp_path / "out", *polygons, "--shard", shard)
        assert "0 pictures predicted, 6 were there already" in said
        for file in ("predictions.csv", "polygons.json"):
            (tmp_path / "out" / file).write_text("what a shard wrote that looked too early")
        said = self.predict(photos, tmp_path / "out", *polygons, "--merge")
        assert "0 pictures predicted, 14 were there already" in said
        whole, merged = (
            {name: content for name, content in files(tmp_path / folder).items() if not name.startswith(".journal")}
            for folder in ("whole", "out")
        )
        assert merged == whole
        assert len(whole) == 2 * 14 + 3

    def test_a_missing_shard_is_named(self, project: Path, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert "holds no predictions" in self.predict(photos, out, "--merge", code=2)
        self.predict(photos, out, "--shard", "1/3")
        self.predict(photos, out, "--shard", "3/3")
        said = self.predict(photos, out, "--merge", code=2)
        assert "5 of 14 pictures are not done, 03.png first; run --shard 2/3" in said
        (out / "masks/07.png").unlink()
        assert "6 of 14 pictures" in self.predict(photos, out, "--merge", code=2)
        self.predict(photos, out, "--shard", "1/2")
        assert "the command without --merge does what is left" in self.predict(photos, out, "--merge", code=2)
        assert "other options" in self.predict(photos, out, "--merge", "--scales", "1,1.5", code=2)

    def test_a_kill_in_the_middle_and_again(self, project: Path, photos: Path, tmp_path: Path) -> None:
        """The last line of a shard's journal is cut off, and masks of pictures that it lacks lie there."""
        self.predict(photos, tmp_path / "whole")
        out = tmp_path / "out"
        self.predict(photos, out, "--shard", "1/2")
        journal = out / ".journal/0-of-2.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:3]) + lines[3][:-20])
        self.predict(photos, out, "--shard", "2/2")
        said = self.predict(photos, out, "--shard", "1/2")
        assert re.search(r"5 pictures predicted, 3 were there already", said), (
            "whole batches, as results may not change"
        )
        self.predict(photos, out, "--merge")
        assert (out / "predictions.csv").read_bytes() == (tmp_path / "whole/predictions.csv").read_bytes()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--engine", "spark"), "--engine: found 'spark'; it must be local or ray"),
            (("--workers", "2"), "--workers: they are Ray's; give --engine ray, too"),
            (("--engine", "ray", "--shard", "1/2"), "--engine ray: it is of all shards; leave --shard out"),
            (("--merge", "--shard", "1/2"), "--merge: it is of all shards; leave --shard out"),
            (("--merge", "--engine", "ray"), "--merge: nothing is predicted; leave --engine out"),
            (("--engine", "ray", "--device", "cuda:1"), "--device: found 'cuda:1'; with --engine ray it must be cpu"),
        ],
    )
    def test_options_that_do_not_agree(
        self, options: tuple[str, ...], said: str, project: Path, photos: Path, tmp_path: Path
    ) -> None:
        assert said in self.predict(photos, tmp_path / "out", *options, code=2)
        assert not (tmp_path / "out").exists()

    @pytest.mark.skipif(find_spec("ray") is not None, reason="of an environment without Ray")
    def test_ray_that_is_not_installed(self, project: Path, photos: Path, tmp_path: Path) -> None:
        said = self.predict(photos, tmp_path / "out", "--engine", "ray", code=2)
        assert "Ray is not installed; pip install 'segcore[ray]'" in said
