"""The benchmark of `segcore next` that trains a layer in a second, on invented cells."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import next_frozen as benchmark
from benchmarks.next_parts import frozen_cells
from benchmarks.next_parts.arms import ARMS, Start
from benchmarks.next_parts.frozen_cells import CELLS, Looked
from segcore.data.manifest import Record
from segcore.evaluation.per_image import ImageCounts

CLASSES = ["background", "cat", "dog", "train"]
COUNTS = {1: 24, 2: 12, 3: 8}
"""Images by their class: cats are frequent, trains rare."""
BUDGET = 4 * 239.7


def record(number: int, tag: int) -> Record:
    name = f"{number:03}"
    return Record(name, Path(name), Path(name), 320, 240, (tag,), "train", "", "", (tag,))


@pytest.fixture
def records() -> list[Record]:
    tags = [tag for tag, count in COUNTS.items() for _ in range(count)]
    return [record(number, tag) for number, tag in enumerate(np.random.default_rng(0).permutation(tags).tolist())]


@pytest.fixture
def data(records: list[Record]) -> Looked:
    """The upper half of each picture shows its class; a channel a class, and noise."""
    torch.manual_seed(0)
    inside = torch.stack([frozen_cells._inside(one) for one in records])
    labels = torch.zeros(len(records), CELLS, CELLS, dtype=torch.int64)
    for number, one in enumerate(records):
        labels[number, : CELLS // 3] = one.tags[0]
    labels = labels.flatten(1).masked_fill(~inside, 255)
    cells = torch.nn.functional.one_hot(labels % 255, 8).float() + 0.3 * torch.randn(len(records), CELLS**2, 8)
    return Looked({one.image_id: number for number, one in enumerate(records)}, cells, labels, inside)


def start(data: Looked, records: list[Record], seed: int = 0) -> Start:
    known = [next(one for one in records if one.tags == (tag,)) for tag in COUNTS]
    layer = frozen_cells.of_masks(data, [one.image_id for one in known], len(CLASSES))
    return Start(data, [one for one in records if one not in known], known, layer, seed)


def test_a_layer_learns_what_masks_show(data: Looked, records: list[Record]) -> None:
    masks = start(data, records).layer
    tags = frozen_cells.of_tags(data, records, len(CLASSES))
    some = data.of([one.image_id for one in records[5:15]])
    counts = frozen_cells.counted(some, frozen_cells.scores(masks, frozen_cells.said(tags, some), some))
    assert counts.ids == tuple(one.image_id for one in records[5:15])
    assert counts.mean_iou > 0.95
    shown = tags(some.pooled()).argmax(1) + 1
    assert shown.tolist() == [one.tags[0] for one in records[5:15]]


def test_pixels_are_counted_as_cells_are(tmp_path: Path, data: Looked, records: list[Record]) -> None:
    """Where masks are made of whole cells and scores are certain, all is right at every pixel but at seams."""
    from PIL import Image

    some = data.of([one.image_id for one in records[:3]])
    found = 20 * torch.nn.functional.one_hot(some.labels % 255, len(CLASSES)).float()
    kept = []
    for one, labels in zip(records[:3], some.labels, strict=True):
        mask = labels.view(CELLS, CELLS).repeat_interleave(16, 0).repeat_interleave(16, 1)[:240, :320]
        Image.fromarray(mask.numpy().astype(np.uint8)).save(tmp_path / f"{one.image_id}.png")
        kept.append(replace(one, labels=tmp_path / f"{one.image_id}.png"))
    counts = frozen_cells.counted_at_pixels(found, kept)
    assert counts.counts[:, 1].sum(1).tolist() == [240 * 320] * 3
    assert counts.mean_iou > 0.8


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_spends_the_same_on_what_is_not_known(arm: str, data: Looked, records: list[Record]) -> None:
    begun = start(data, records)
    chosen = begun.chosen(arm, BUDGET)
    assert len({*chosen}) == 4
    assert {*chosen} <= {one.image_id for one in begun.wanting}
    assert chosen == start(data, records).chosen(arm, BUDGET)


def test_arms_do_what_they_are_called(data: Looked, records: list[Record]) -> None:
    begun = start(data, records)
    tags = {one.image_id: one.tags[0] for one in records}
    assert sorted(tags[i] for i in begun.chosen("rarity", 3 * 239.7)) == [1, 2, 3]
    assert sorted(tags[i] for i in begun.chosen("next", 6 * 239.7)) == [1, 1, 2, 2, 3, 3]
    by_id = {one.image_id: number for number, one in enumerate(begun.wanting)}
    for arm, of in (("entropy", begun.entropy), ("truth", begun.truth)):
        taken = [of[by_id[image_id]] for image_id in begun.chosen(arm, BUDGET)]
        assert taken == sorted(of, reverse=True)[:4]
    assert begun.chosen("random", BUDGET) != start(data, records, seed=1).chosen("random", BUDGET)


def test_folds_share_out_each_class(records: list[Record]) -> None:
    fold = benchmark.folds(records, 0)
    assert {*fold} == {one.image_id for one in records}
    for tag, count in COUNTS.items():
        shares = np.bincount([fold[one.image_id] for one in records if one.tags == (tag,)], minlength=4)
        assert shares.min() >= count // 4
        assert shares.max() <= -(-count // 4)
    assert fold != benchmark.folds(records, 1)


def test_what_is_apart_is_never_learned_from(
    tmp_path: Path, data: Looked, records: list[Record], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    taught: list[set[str]] = []
    of_masks = frozen_cells.of_masks

    def watched(data: Looked, ids: list[str], classes: int) -> frozen_cells.Linear:
        taught.append({*ids})
        return of_masks(data, ids, classes)

    monkeypatch.setattr(frozen_cells, "of_masks", watched)
    trial = benchmark.Trial(data, CLASSES, 1, [2 * 239.7, BUDGET], tmp_path)
    found = {seed: benchmark.on_folds(trial, records, ["next", "random"], seed) for seed in (0, 1)}
    apart = [
        {image_id for image_id, fold in benchmark.folds(records, seed).items() if fold == number}
        for seed in (0, 1) for number in range(benchmark.FOLDS)
    ]  # fmt: skip
    each = len(taught) // len(apart)
    assert each == 1 + 1 + 2 * 2
    for number, ids in enumerate(taught):
        assert not ids & apart[number // each]
    assert {len(one.counts.ids) for one in found[0].values()} == {len(records)}
    assert found[0]["next", BUDGET].classes > 2.8
    benchmark.told(found, trial.budgets)
    start, *rows = capsys.readouterr().out.splitlines()
    assert start.startswith("start: ")
    assert {row.split()[0] for row in rows} == {"next", "random"}
    assert all(row.split("; ")[1].endswith(" classes, 1.00 an image") for row in rows)


def test_the_bar_is_an_interval_above_0() -> None:
    random = np.random.default_rng(0)
    ids = tuple(f"{number:03}" for number in range(40))
    truth = random.integers(50, 100, (40, len(CLASSES)))

    def of(share: float) -> benchmark.Outcome:
        hits = (truth * share * random.uniform(0.9, 1, truth.shape)).astype(np.int64)
        return benchmark.Outcome(ImageCounts(ids, np.stack([hits, truth, truth], axis=1)), [(1,), (1, 2), (3,), (2,)])

    start = of(0.3)
    good = {("start", 0.0): start, ("next", 1.0): of(0.8), ("random", 1.0): of(0.5)}
    bad = {("start", 0.0): start, ("next", 1.0): of(0.5), ("random", 1.0): of(0.8)}
    assert benchmark.told({0: good, 1: good}, [1.0])
    assert not benchmark.told({0: bad, 1: bad}, [1.0])
    level = good | {("next", 1.0): good["random", 1.0]}
    assert not benchmark.told({0: level, 1: level}, [1.0])


@pytest.mark.parametrize(
    ("chosen", "classes"),
    [([(1,), (1,)], 1), ([(1,), (2,)], 2), ([(1, 2), (2, 3), (1, 3)], 3), ([(1,), (1,), (2,)], 1.89)],
)
def test_classes_are_counted_by_how_mixed_they_are(chosen: list[tuple[int, ...]], classes: float) -> None:
    counts = ImageCounts(("a",), np.ones((1, 3, 4), dtype=np.int64))
    assert benchmark.Outcome(counts, chosen).classes == pytest.approx(classes, abs=0.01)
