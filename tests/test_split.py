"""Strong images are chosen whenever they can be, by the seed alone, and nothing of val is ever trained on."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segcore.cli import provenance
from segcore.config.data import SplitParams, TagNoise
from segcore.data import seen_tags, splits
from segcore.data.manifest import Record, Split, read_manifest
from segcore.data.pictures import IGNORE, read_labels, write_labels
from segcore.errors import Problem, Problems
from stages import prepare, split
from tests.devkit import make_devkit, make_record, voc_section, write_params

ALL, LISTED = {"kind": "all"}, {"kind": "list", "file": "ids.txt"}
CLASSES = ["background", "cat", "dog", "owl"]


def params(**changes: Any) -> SplitParams:
    values = {
        "strong": {"kind": "per_class", "images": 1},
        "weak_includes_strong": True,
        "tag_noise": None,
        "weak_images": None,
    } | changes
    return SplitParams.model_validate(values)


def images(tags: dict[str, tuple[int, ...]], split_name: Split = "train", labelled: bool = True) -> dict[str, Record]:
    return {
        image_id: make_record(
            image_id, Path(f"{image_id}.jpg"), Path(f"{image_id}.png") if labelled else None, 4, 4, shown, split_name
        )
        for image_id, shown in tags.items()
    }


def classes_of(records: dict[str, Record]) -> dict[str, tuple[int, ...]]:
    return {key: record.label_classes for key, record in records.items() if record.label_classes is not None}


def many(seed: int = 0, n_train: int = 120, n_val: int = 30) -> dict[str, Record]:
    rng = np.random.default_rng(seed)

    def draw(name: str, count: int) -> dict[str, tuple[int, ...]]:
        shown = [np.flatnonzero(rng.random(3) < (0.2, 0.4, 0.6)) + 1 for _ in range(count)]
        return {f"{name}{index:03d}": tuple(present.tolist()) for index, present in enumerate(shown)}

    return images(draw("t", n_train)) | images(draw("v", n_val), "val")


@pytest.mark.parametrize("n", [1, 5, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_class_gets_n_images_of_its_own(n: int, seed: int) -> None:
    shown = classes_of(many(seed))
    picked = splits.per_class(shown, CLASSES, n, seed)
    for index, image_ids in enumerate(picked, start=1):
        assert len(image_ids) == n
        assert all(index in shown[image_id] for image_id in image_ids)
    assert max(Counter(image_id for image_ids in picked for image_id in image_ids).values()) == 1


def test_the_seed_decides_and_the_order_does_not() -> None:
    shown = classes_of(many())
    first = splits.per_class(shown, CLASSES, 5, seed=0)
    assert splits.per_class(dict(reversed(shown.items())), CLASSES, 5, seed=0) == first
    assert splits.per_class(shown, CLASSES, 5, seed=1) != first


@pytest.mark.parametrize("seed", range(10))
def test_classes_move_over_for_one_another(seed: int) -> None:
    # Only one choice works: owl has c alone, then dog must take b, then cat must take a.
    shown = {"a": (1,), "b": (1, 2), "c": (2, 3)}
    assert splits.per_class(shown, CLASSES, 1, seed) == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("seed", range(20))
def test_a_choice_is_found_whenever_there_is_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["background", *"abcdef"]
    hidden = {f"{index}-{place}": index for index in range(1, 7) for place in range(4)}
    shown = {key: tuple({index, *(rng.integers(1, 7, 3).tolist())}) for key, index in hidden.items()}
    picked = splits.per_class(shown, names, 4, seed)
    assert sorted(image_id for image_ids in picked for image_id in image_ids) == sorted(shown)


def test_too_few_images_name_the_class_and_what_would_work() -> None:
    shown = {"a": (1,), "b": (1,), "c": (1, 2), "d": (2,), "e": (2,), "f": (3,)}
    with pytest.raises(Problems, match="at most 1") as caught:
        splits.per_class(shown, CLASSES, 2, seed=0)
    assert caught.value.problems == ["owl: 1 training images with labels show it"]


def test_classes_that_lack_images_together_are_named_together() -> None:
    shown = {"a": (1, 2), "b": (1, 2), "c": (1, 2), "d": (3,), "e": (3,)}
    with pytest.raises(Problems) as caught:
        splits.per_class(shown, CLASSES, 2, seed=0)
    assert caught.value.problems == ["cat, dog: 3 training images with labels show any of them, and 2 x 2 are needed"]


def test_a_class_without_any_image_leaves_other_ways() -> None:
    with pytest.raises(Problems, match="split.strong.kind: list or all"):
        splits.per_class({"a": (1,), "b": (2,)}, CLASSES, 1, seed=0)


def test_an_image_stands_for_what_its_mask_shows_not_for_its_tags() -> None:
    records = images({"a": (1, 2, 3), "b": (1,), "c": (2,), "d": (3,)})
    records["a"] = replace(records["a"], label_classes=(1,))
    for seed in range(5):
        chosen = splits.choose(records, CLASSES, None, params(), seed)
        assert {"c", "d"} <= set(chosen.strong)


@pytest.mark.parametrize("strong", [{"kind": "per_class", "images": 5}, LISTED, ALL], ids=lambda strong: strong["kind"])
@pytest.mark.parametrize("includes", [True, False])
def test_val_is_never_trained_on(strong: dict[str, Any], includes: bool) -> None:
    records = many() | images({"u000": (1,), "u001": (2,)}, labelled=False)
    listed = ["t000", "t001"]
    chosen = splits.choose(records, CLASSES, listed, params(strong=strong, weak_includes_strong=includes), seed=0)
    assert set(chosen.val) == {image_id for image_id in records if image_id.startswith("v")}
    assert not set(chosen.val) & (set(chosen.strong) | set(chosen.weak))
    assert {records[image_id].split for image_id in (*chosen.strong, *chosen.weak)} == {"train"}
    train = {image_id for image_id, record in records.items() if record.split == "train"}
    assert set(chosen.weak) == (train if includes else train - set(chosen.strong))
    assert not {"u000", "u001"} & set(chosen.strong)
    for image_ids in (chosen.strong, chosen.weak, chosen.val):
        assert list(image_ids) == sorted(set(image_ids))


def test_fewer_weak_images_are_among_more_and_the_strong_ones_stay() -> None:
    records = many()
    chosen = {n: splits.choose(records, CLASSES, None, params(weak_images=n), 0) for n in (10, 60, 120, None)}
    assert [len(split.weak) for split in chosen.values()] == [10, 60, 120, 120]
    assert {*chosen[10].weak} < {*chosen[60].weak} < {*chosen[120].weak} == {*chosen[None].weak}
    assert len({split.strong for split in chosen.values()}) == 1
    assert splits.choose(records, CLASSES, None, params(weak_images=60), 1).weak != chosen[60].weak
    with pytest.raises(Problem, match=r"split.weak_images: found 121; there are 120 to choose from"):
        splits.choose(records, CLASSES, None, params(weak_images=121), 0)


def test_everything_strong_leaves_nothing_weak() -> None:
    records = images({"a": (1,), "b": (2,)})
    with pytest.raises(Problem, match="weak_includes_strong"):
        splits.choose(records, CLASSES, None, params(strong=ALL, weak_includes_strong=False), 0)


def test_no_labels_at_all() -> None:
    records = images({"a": (1,), "b": (2,)}, labelled=False)
    with pytest.raises(Problem, match=r"no training image has labels, and these entries .*: systems\.deeplab;"):
        splits.choose(records, CLASSES, None, params(strong=ALL), 0, ["systems.deeplab"])
    chosen = splits.choose(records, CLASSES, None, params(strong=ALL), 0)
    assert (chosen.strong, chosen.weak) == ((), ("a", "b"))


def test_a_list_tells_all_its_mistakes() -> None:
    records = many() | images({"u": (1,)}, labelled=False)
    listed = ["t000", "t000", "nobody", "v000", "u"]
    wanted = params(strong=LISTED)
    with pytest.raises(Problems) as caught:
        splits.choose(records, CLASSES, listed, wanted, 0)
    assert caught.value.problems == [
        "'t000' is listed 2 times",
        "'nobody' is no image of the data set",
        "'v000' is a validation image, which is never trained on",
        "'u' has no labels",
    ]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "TIMINGS", tmp_path / "timings")
    make_devkit(tmp_path / "kit", n_train=12)
    changes = {"dataset": voc_section(tmp_path / "kit"), "split.strong.images": 2}
    prepare.main(out=tmp_path / "prepared", params=write_params(tmp_path / "params.yaml", changes))
    return tmp_path


def split_of(folder: Path) -> Path:
    split.main(
        manifest=folder / "prepared/manifest.parquet",
        classes=folder / "prepared/classes.json",
        out=folder / "split",
        masks=folder / "masks",
        params=folder / "params.yaml",
    )
    return folder / "split"


def test_the_stage_writes_sorted_lists_and_counts(prepared: Path) -> None:
    out = split_of(prepared)
    strong, weak, val = ((out / f"{name}.txt").read_text().split() for name in ("strong", "weak", "val"))
    assert (len(strong), len(weak), len(val)) == (6, 12, 3)
    assert strong == sorted(strong)
    counts = json.loads((out / "split.json").read_text())
    assert (counts["strong"], counts["weak"], counts["val"]) == (6, 12, 3)
    assert set(counts["per_class"]) == {"circle", "square", "star"}
    assert all(count["strong"] >= 2 for count in counts["per_class"].values())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {path.name: path.read_bytes() for path in split_of(prepared).iterdir()} == before


def masks_of(folder: Path) -> str:
    return (folder / "masks" / splits.MASKS_FILE).read_text()


def test_the_masks_that_training_may_see_are_those_of_the_strong_images(prepared: Path) -> None:
    """By their hashes: a stage that trains on masks depends on these alone, not on those of other images."""
    records = read_manifest(prepared / "prepared/manifest.parquet")
    strong = (split_of(prepared) / "strong.txt").read_text().split()
    head, *lines = masks_of(prepared).splitlines()
    assert head == "image_id,labels_sha256"
    assert lines == [f"{image_id},{records[image_id].labels_sha256}" for image_id in strong]
    assert [path.name for path in (prepared / "masks").iterdir()] == [splits.MASKS_FILE]


def test_another_mask_shows_only_where_it_is_strong(prepared: Path) -> None:
    split_of(prepared)
    before, strong = masks_of(prepared), (prepared / "split/strong.txt").read_text().split()
    labelled = prepared / "kit/SegmentationClass"
    weak = next(path.stem for path in sorted(labelled.glob("train_*")) if path.stem not in strong)
    for image_id, changes_it in ((weak, False), (strong[0], True)):
        labels = read_labels(labelled / f"{image_id}.png").copy()
        labels[0, 0] = IGNORE
        write_labels(labelled / f"{image_id}.png", labels)
        prepare.main(out=prepared / "prepared", params=prepared / "params.yaml")
        split_of(prepared)
        assert (prepared / "split/strong.txt").read_text().split() == strong
        assert (masks_of(prepared) != before) == changes_it


def test_the_stage_reads_a_list(prepared: Path) -> None:
    listed = prepared / "ids.txt"
    write_params(prepared / "params.yaml", {"split.strong": {"kind": "list", "file": str(listed)}})
    with pytest.raises(Problem, match="cannot be read"):
        split_of(prepared)
    listed.write_text("train_003\r\n\r\ntrain_001\r\n")
    assert (split_of(prepared) / "strong.txt").read_text() == "train_001\ntrain_003\n"


NAMES = ["background", *(f"tag {number}" for number in range(1, 21))]


def tagged(count: int = 2000, none: int = 0) -> dict[str, Record]:
    """Training images with one to three of 20 tags, some of them with none, and one to measure on."""
    rng = np.random.default_rng(3)
    shown = {
        f"t{i:04d}": tuple(sorted(int(tag) for tag in rng.choice(range(1, 21), rng.integers(1, 4), replace=False)))
        for i in range(count - none)
    }
    return images(shown | {f"u{i:04d}": () for i in range(none)}) | images({"v": (1, 2)}, "val")


def seen(
    records: dict[str, Record], drop: float, add: float, seed: int = 0, strong: int = 0
) -> dict[str, tuple[int, ...]]:
    train = [image_id for image_id in records if image_id != "v"]
    chosen = splits.Splits(tuple(train[:strong]), tuple(train), ("v",))
    return seen_tags.tags_seen(chosen, records, 20, TagNoise(drop=drop, add=add), seed)


def test_mistakes_come_at_the_rates_asked_for() -> None:
    records = tagged()
    found = seen_tags.mistakes(seen(records, 0.2, 0.05), records)
    absent = 20 * 2000 - found["tags"]
    # Of images with a single tag some keep it, so that a few less are dropped.
    assert 0.15 < found["dropped"] / found["tags"] < 0.2
    assert found["added"] / absent == pytest.approx(0.05, abs=0.005)
    many = tagged(500)
    only = seen_tags.mistakes(seen(many, 0.0, 0.3), many)
    assert only["dropped"] == 0
    assert only["added"] / (20 * 500 - only["tags"]) == pytest.approx(0.3, abs=0.02)


def test_no_image_loses_all_of_its_tags() -> None:
    records = tagged(300, none=20)
    found = seen(records, 1.0, 0.0)
    for image_id, tags in found.items():
        assert len(tags) == (1 if records[image_id].tags else 0)
        assert {*tags} <= {*records[image_id].tags}


def test_mistakes_are_made_by_seed_and_image_alone() -> None:
    records = tagged(200)
    found = seen(records, 0.2, 0.05)
    assert found == seen(dict(reversed(records.items())), 0.2, 0.05)
    assert found != seen(records, 0.2, 0.05, seed=1)
    half = {image_id: record for image_id, record in records.items() if image_id < "t0100"}
    assert seen(half, 0.2, 0.05).items() <= found.items()
    # What a lower rate drops, a higher one drops, too.
    more = seen(records, 0.5, 0.05)
    assert all({*more[i]} - {*found[i]} == set() or len(more[i]) == 1 for i in found)


def test_images_with_masks_keep_their_tags_and_the_truth_stays() -> None:
    records = tagged(200)
    before = dict(records)
    found = seen(records, 0.9, 0.5, strong=50)
    strong = list(found)[:50]
    assert all(found[image_id] == records[image_id].tags for image_id in strong)
    assert sum(found[image_id] != records[image_id].tags for image_id in found) > 140
    assert records == before
    assert "v" not in found
    assert seen(records, 0.0, 0.0) == {i: record.tags for i, record in records.items() if i != "v"}


def test_the_table_of_tags_comes_back(tmp_path: Path) -> None:
    """Names with blanks, images without tags; only those asked for are changed."""
    records = tagged(50, none=5)
    found = seen(records, 0.5, 0.1)
    (tmp_path / "tags.csv").write_bytes(seen_tags.tags_table(found, NAMES))
    read = seen_tags.as_training_sees(records, list(found), tmp_path, NAMES)
    assert {image_id: record.tags for image_id, record in read.items()} == found | {"v": (1, 2)}
    assert [*read] == [*records]
    some = seen_tags.as_training_sees(records, [*found][:10], tmp_path, NAMES)
    assert all(some[i].tags == (found[i] if number < 10 else records[i].tags) for number, i in enumerate(found))
    with pytest.raises(Problem, match="lacks 1 images of the split, v first"):
        seen_tags.as_training_sees(records, ["v"], tmp_path, NAMES)
    with pytest.raises(Problem, match="has tags that are no classes of the data set, tag"):
        seen_tags.as_training_sees(records, [], tmp_path, NAMES[:5])


def test_the_stage_writes_the_tags_that_training_sees(prepared: Path) -> None:
    records, classes = read_manifest(prepared / "prepared/manifest.parquet"), ["background", "circle", "square", "star"]
    train = [image_id for image_id in records if image_id.startswith("train")]
    read = seen_tags.as_training_sees(records, train, split_of(prepared), classes)
    assert read == records
    before = json.loads((prepared / "split/split.json").read_text())
    assert (before["tags_seen"]["dropped"], before["tags_seen"]["added"]) == (0, 0)
    params = {"dataset": voc_section(prepared / "kit"), "split.strong.images": 2}
    write_params(prepared / "params.yaml", params | {"split.tag_noise": {"drop": 0.5, "add": 0.5}})
    out = split_of(prepared)
    read = seen_tags.as_training_sees(records, (out / "weak.txt").read_text().split(), out, classes)
    strong = (out / "strong.txt").read_text().split()
    assert all(read[image_id] == records[image_id] for image_id in strong)
    changed = [image_id for image_id in records if read[image_id].tags != records[image_id].tags]
    assert changed
    after = json.loads((out / "split.json").read_text())
    assert after["parameters"] != before["parameters"]
    assert after["tags_seen"]["dropped"] + after["tags_seen"]["added"] > 0
    assert after["per_class"] == before["per_class"], "counts tell the truth"
