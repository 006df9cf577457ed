"""The order of the data: a function of (seed, step), the same for any start, workers and processes."""

import pickle
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory as loader_pins

from segcore.data.batches import Batch, Mixed, Moment, Sample, Samples, SizedSamples, Stream, collate
from segcore.data.manifest import read_manifest
from segcore.data.order import Order
from segcore.data.pictures import read_image, read_labels
from segcore.data.samples import CropSamples, TaggedImages
from segcore.errors import Problem
from segcore.seeds import derived_seed
from tests.loop import Pictures, fit, net, same, trained
from tests.tiny import run_stages, tiny_dataset


def places(order: Order, step: int) -> list[tuple[int, int]]:
    return list(chain.from_iterable(order.micro_batches(step)))


def equal(a: Batch, b: Batch) -> bool:
    tensors = [(a.images, b.images), (a.tags, b.tags), (a.labels, b.labels), (a.strong, b.strong)]
    return a.ids == b.ids and all(torch.equal(x, y) for x, y in tensors)


def test_an_epoch_sees_every_sample_once_and_epochs_differ() -> None:
    order = Order(n_samples=12, batch_size=4, accumulate=1, seed=3)
    epochs = [[index for step in range(first, first + 3) for index, _ in places(order, step)] for first in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_epochs_follow_each_other_without_a_gap() -> None:
    order = Order(n_samples=5, batch_size=4, accumulate=1, seed=3)
    seen = [index for step in range(5) for index, _ in places(order, step)]
    assert Counter(seen) == dict.fromkeys(range(5), 4)
    assert Counter(seen[:5]) == dict.fromkeys(range(5), 1)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    assert len(places(Order(n_samples=3, batch_size=8, accumulate=2, seed=0), 1)) == 8


def test_augmentation_differs_between_epochs_and_runs() -> None:
    order = Order(n_samples=4, batch_size=4, accumulate=1, seed=3)
    seeds = [seed for step in range(3) for _, seed in places(order, step)]
    assert len(set(seeds)) == 12
    assert places(order, 1) == places(Order(4, 4, 1, seed=3), 1)
    assert places(order, 1) != places(Order(4, 4, 1, seed=4), 1)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_each_micro_batch(world: int) -> None:
    whole = Order(10, 8, 2, seed=3)
    parts = [Order(10, 8, 2, seed=3, rank=rank, world=world) for rank in range(world)]
    for step in range(4):
        for micro, *shares in zip(whole.micro_batches(step), *(p.micro_batches(step) for p in parts), strict=True):
            dealt = [key for keys in zip(*shares, strict=True) for key in keys]
            assert dealt == micro


def test_micro_batches_cut_a_batch() -> None:
    whole, cut = Order(10, 8, 1, seed=3), Order(10, 8, 4, seed=3)
    assert len(list(cut.micro_batches(2))) == 4
    assert places(whole, 2) == places(cut, 2)


def test_a_batch_that_processes_cannot_share() -> None:
    with pytest.raises(Problem, match="3 samples cannot be shared by 2 processes"):
        Order(10, 6, 2, seed=3, rank=0, world=2)


def test_a_set_alone_keeps_the_shuffle_that_it_has_always_had() -> None:
    for order in (Order(7, 4, 1, seed=3), Order(7, 4, 1, seed=3, parts=(7,))):
        for step in range(5):
            for place, (index, seed) in enumerate(places(order, step), start=4 * step):
                epoch, offset = divmod(place, 7)
                shuffled = np.random.default_rng(derived_seed(3, "epoch", epoch)).permutation(7)
                assert (index, seed) == (shuffled[offset], derived_seed(3, "augment", place))


@pytest.mark.parametrize("parts", [(5, 3), (2, 9), (4, 1, 3)])
def test_parts_take_turns_and_each_has_epochs_of_its_own(parts: tuple[int, ...]) -> None:
    order = Order(sum(parts), 6, 1, seed=3, parts=parts)
    seen = [index for step in range(20) for index, _ in places(order, step)]
    seeds = [seed for step in range(20) for _, seed in places(order, step)]
    assert len(set(seeds)) == 120
    for number, size in enumerate(parts):
        first = sum(parts[:number])
        mine = seen[number :: len(parts)]
        for begin in range(0, len(mine) - size + 1, size):
            assert sorted(mine[begin : begin + size]) == list(range(first, first + size))
    whole = [index for micro in Order(sum(parts), 6, 1, seed=3, parts=parts).micro_batches(4) for index, _ in micro]
    assert whole == seen[24:30]


def test_equal_parts_are_shuffled_differently() -> None:
    order = Order(16, 16, 1, seed=3, parts=(8, 8))
    indices = [index for index, _ in places(order, 0)]
    assert [index + 8 for index in indices[::2]] != indices[1::2]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_a_batch_of_parts(world: int) -> None:
    whole = Order(10, 8, 2, seed=3, parts=(6, 4))
    parts = [Order(10, 8, 2, seed=3, rank=rank, world=world, parts=(6, 4)) for rank in range(world)]
    for micro, *shares in zip(whole.micro_batches(1), *(p.micro_batches(1) for p in parts), strict=True):
        assert [key for keys in zip(*shares, strict=True) for key in keys] == micro


def test_parts_that_cannot_be_dealt() -> None:
    with pytest.raises(Problem, match="3 samples cannot be as many strong as weak ones; .* a multiple of 2"):
        Order(10, 6, 2, seed=3, parts=(6, 4))
    with pytest.raises(Problem, match="no training samples"):
        Order(6, 6, 1, seed=3, parts=(6, 0))
    with pytest.raises(ValueError, match="not 10 together"):
        Order(10, 6, 1, seed=3, parts=(6, 3))


class Set(Pictures):
    """Pictures of one kind, told apart by their name."""

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count)
        self.input_size = self.size
        self.name = name

    def sample(self, index: int, seed: int) -> Sample:
        found = super().sample(index, seed)
        return replace(found, image_id=f"{self.name}_{index}", strong=self.name == "strong")


def test_mixed_samples_are_those_of_each_set() -> None:
    mixed = Mixed(Set(3, "weak"), Set(2, "strong"))
    assert isinstance(mixed, SizedSamples)
    assert (len(mixed), mixed.parts, mixed.input_size) == (5, (3, 2), 16)
    names = [mixed.sample(index, 0).image_id for index in range(5)]
    assert names == ["weak_0", "weak_1", "weak_2", "strong_0", "strong_1"]
    with pytest.raises(IndexError, match="5 samples have no index 5"):
        mixed.sample(5, 0)
    order = Order.of(mixed, 4, 2, seed=0, rank=1, world=2)
    assert order == Order(5, 4, 2, seed=0, rank=1, world=2, parts=(3, 2))
    assert Order.of(Pictures(), 4, 2, seed=0) == Order(10, 4, 2, seed=0)
    for batches in Stream(mixed, Order.of(mixed, 4, 2, seed=0), workers=0).steps(0, 5):
        for batch in batches:
            assert [image_id.split("_")[0] for image_id in batch.ids] == ["weak", "strong"]
            assert batch.strong.tolist() == [False, True]
            assert batch.to(torch.device("cpu")).strong.tolist() == [False, True]


def test_samples_are_strong_unless_they_say_otherwise() -> None:
    batch = collate([Pictures().sample(index, 0) for index in range(3)])
    assert batch.strong.tolist() == [True] * 3
    assert Batch(batch.ids, batch.images, batch.tags, batch.labels).strong.tolist() == [True] * 3


def test_a_batch_says_when_it_teaches() -> None:
    batch = collate([Pictures().sample(index, 0) for index in range(3)])
    with pytest.raises(RuntimeError, match="of no training run"):
        _ = batch.moment
    moment = Moment(3, 4)
    assert moment.elapsed == 0.75
    assert batch.at(moment).to(torch.device("cpu"), channels_last=True).moment == moment


def test_a_stream_can_start_at_any_step() -> None:
    stream = Stream(Pictures(), Order(10, 4, 2, seed=3), workers=0)
    whole = list(stream.steps(0, 6))
    assert [len(batches) for batches in whole] == [2] * 6
    for first in (0, 1, 5):
        for mine, theirs in zip(stream.steps(first, 6), whole[first:], strict=True):
            assert all(equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_stream_reads_only_what_is_asked_for() -> None:
    read: list[int] = []

    class Watched(Pictures):
        def sample(self, index: int, seed: int):
            read.append(index)
            return super().sample(index, seed)

    steps = Stream(Watched(), Order(10, 4, 1, seed=3), workers=0).steps(0, 10**9)
    next(steps)
    assert len(read) == 4


class Gone(Pictures):
    def sample(self, index: int, seed: int):
        if index == 3:
            raise FileNotFoundError(2, "No such file or directory", "picture_3.jpg")
        return super().sample(index, seed)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_gone_is_a_clear_error(workers: int) -> None:
    with pytest.raises(Problem, match=r"a training image: .*picture_3\.jpg") as raised:
        list(Stream(Gone(), Order(10, 4, 1, seed=3), workers).steps(0, 4))
    assert "Traceback" not in str(raised.value)


class Damaged(Pictures):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def sample(self, index: int, seed: int):
        if index == 3:
            read_image(self.path)
        return super().sample(index, seed)


def test_an_image_that_was_damaged_since_is_named(tmp_path: Path) -> None:
    path = tmp_path / "picture_3.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(Problem, match=r"picture_3\.jpg cannot be read \(.*truncated.*\); mend it"):
        list(Stream(Damaged(path), Order(10, 4, 1, seed=3), 0).steps(0, 4))
    path.write_text("no picture")
    for read in (read_image, read_labels):
        with pytest.raises(Problem, match=r"picture_3\.jpg cannot be read"):
            read(path)


def test_collate_keeps_bytes_and_types() -> None:
    pictures = [Pictures().sample(index, 0) for index in range(3)]
    batch = collate(pictures)
    assert batch.ids == ("picture_0", "picture_1", "picture_2")
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(batch.images[1], pictures[1].image.float())
    assert torch.equal(batch.labels[1], pictures[1].labels.long())
    moved = batch.to(torch.device("cpu"), channels_last=True)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert equal(moved, batch)


def test_workers_change_nothing_nor_does_going_on_with_them(tmp_path: Path) -> None:
    whole, again = net(), net()
    expected = trained(whole, steps=5)
    checkpoint = tmp_path / "x.pt"
    for progress in fit(net(), checkpoint, steps=5):
        if progress.step == 3:
            break
    progress = list(fit(again, checkpoint, steps=5, workers=1))
    assert [p.replayed for p in progress] == [True] * 3 + [False] * 2
    assert [p.losses for p in progress] == expected
    assert same(again, whole)


def test_real_samples_are_a_function_of_index_and_seed_and_travel_to_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_stages("prepare", "split", "make_crops")
    records = read_manifest(Path("data/manifest.parquet"))
    train = [record for record in records.values() if record.split == "train"]
    crops = CropSamples(pd.read_parquet("crops/crops.parquet"), records, n_tags=3, warp=72, input_size=64)
    for samples in (TaggedImages(train, n_tags=3, resize=72, input_size=64), crops):
        assert isinstance(samples, Samples)
        there = pickle.loads(pickle.dumps(samples))
        batches = [collate([of.sample(index, seed) for index in (0, 5)]) for of in (samples, there) for seed in (1, 2)]
        assert equal(batches[0], batches[2])
        assert equal(batches[1], batches[3])
        assert not torch.equal(batches[0].images, batches[1].images)
        assert batches[0].images.shape == (2, 3, 64, 64)


def test_the_loader_pins_all_tensors_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's loader leaves what it does not know as it is: without `pin_memory` a GPU would wait for every copy."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    batch = Batch(("a",), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    found = loader_pins(batch)
    assert isinstance(found, Batch)
    assert found.ids == ("a",)
    wanted = (batch.images, batch.tags, batch.labels, batch.strong)
    assert [id(tensor) for tensor in pinned] == [id(tensor) for tensor in wanted]
