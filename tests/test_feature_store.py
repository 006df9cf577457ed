"""The store of features: resumable, bounded, never stale, and the same whether it was there or not."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segcore.config.classifiers import PooledParams
from segcore.config.section import Views
from segcore.data.manifest import Record
from segcore.data.pictures import read_image
from segcore.features import store as stores
from segcore.features.store import FeatureStore
from segcore.features.views import View, views_of
from segcore.networks import backbones
from segcore.networks.pooled_head import PooledHead
from segcore.networks.trunk import Trunk
from segcore.processes import Runtime
from tests.devkit import draw
from tests.networks import backbone
from tests.tiny import files

VIEWS = (View(64, False), View(64, True), View(32, False))
RUNTIME = Runtime()


def trunk_of(seed: int = 0) -> Trunk:
    torch.manual_seed(seed)
    return backbones.build(backbone("vgg16")).eval()


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.fromarray(draw((48, 40), [number + 1], np.random.default_rng(number))[0]).save(path)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(Record(str(number), path, None, 48, 40, (1,), "train", content, None, None))
    return made


HEAD = PooledHead(
    trunk_of().level_channels,
    2,
    PooledParams(
        kind="pooled", input_size=64, levels=2, pools=("mean", "max"), views=Views(scales=(1.0, 0.5), flip=True)
    ),
)


def pooled(store: FeatureStore, records: list[Record]) -> np.ndarray:
    return np.stack([[store.pooled(record, view, HEAD)["pooled"] for view in VIEWS] for record in records])


def test_views_are_every_scale_and_mirror_once() -> None:
    assert [view.name for view in views_of(HEAD)] == ["64", "64m", "32", "32m"]


def test_it_holds_what_the_trunk_gives_one_by_one(tmp_path: Path, records: list[Record]) -> None:
    trunk = trunk_of()
    store = FeatureStore(tmp_path / "store", trunk, RUNTIME)
    found = pooled(store, records)
    for record, vectors in zip(records, found, strict=True):
        for view, vector in zip(VIEWS, vectors, strict=True):
            with torch.inference_mode():
                levels = trunk(view.of(read_image(record.image))[None].float()).levels
            by_hand = torch.cat([part[0] for x in levels[-2:] for part in (x.mean((2, 3)), x.amax((2, 3)))])
            np.testing.assert_allclose(vector, by_hand.numpy(), rtol=1e-4, atol=1e-3)
    assert store.computed == len(records) * len(VIEWS)


def test_what_is_there_is_not_computed_again(tmp_path: Path, records: list[Record]) -> None:
    first = pooled(FeatureStore(tmp_path / "store", trunk_of(), RUNTIME), records)
    again = FeatureStore(tmp_path / "store", trunk_of(), RUNTIME)
    assert np.array_equal(pooled(again, records), first)
    assert again.computed == 0


def test_after_a_kill_the_rest_is_computed(tmp_path: Path, records: list[Record]) -> None:
    """A file is cut, one is gone, one was half written under the name that a killed process gave it."""
    first = pooled(FeatureStore(tmp_path / "store", trunk_of(), RUNTIME), records)
    whole = files(tmp_path / "store")
    paths = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())
    paths[0].write_bytes(paths[0].read_bytes()[:50])
    paths[1].rename(paths[1].with_name(f".{paths[1].name}.1.partial"))
    again = FeatureStore(tmp_path / "store", trunk_of(), RUNTIME)
    assert np.array_equal(pooled(again, records), first)
    assert again.computed == 2
    assert {name: content for name, content in files(tmp_path / "store").items() if "partial" not in name} == whole


def test_a_picture_is_known_by_its_content(tmp_path: Path, records: list[Record]) -> None:
    pooled(FeatureStore(tmp_path / "store", trunk_of(), RUNTIME), records)
    again = FeatureStore(tmp_path / "store", trunk_of(), RUNTIME)
    again.pooled(replace(records[0], image_id="renamed"), VIEWS[0], HEAD)
    assert again.computed == 0
    with pytest.raises(ValueError, match="has no hash"):
        again.pooled(replace(records[0], image_sha256=""), VIEWS[0], HEAD)


def test_another_head_has_features_of_its_own(tmp_path: Path, records: list[Record]) -> None:
    store = FeatureStore(tmp_path / "store", trunk_of(), RUNTIME)
    first = store.pooled(records[0], VIEWS[0], HEAD)
    params = PooledParams(
        kind="pooled", input_size=64, levels=1, pools=("max",), views=Views(scales=(1.0,), flip=False)
    )
    other = store.pooled(records[0], VIEWS[0], PooledHead(store.trunk.level_channels, 5, params))
    assert store.computed == 2
    assert np.array_equal(first["pooled"][-32:], other["pooled"])
    assert np.array_equal(first["pooled"][-64:-32], other["top"])


def test_other_weights_are_another_store(tmp_path: Path, records: list[Record]) -> None:
    first, other = (FeatureStore(tmp_path / "store", trunk_of(seed), RUNTIME) for seed in (0, 1))
    assert first.folder != other.folder
    assert not np.allclose(pooled(first, records), pooled(other, records))
    assert other.computed == len(records) * len(VIEWS)
    dilated = backbones.restride(backbone("resnet18"), backbones.build(backbone("resnet18")).eval(), 16)
    plain = backbones.restride(backbone("resnet18"), dilated, 32)
    assert stores.key_of(dilated, RUNTIME) != stores.key_of(plain, RUNTIME)


SQUARES = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()


def test_maps_are_rounded_and_kept(tmp_path: Path) -> None:
    trunk = trunk_of()
    store = FeatureStore(tmp_path / "store", trunk, RUNTIME)
    made, found = (store.maps(SQUARES, (1, 2, 4)) for _ in range(2))
    with torch.inference_mode():
        levels = trunk(SQUARES).levels
    for level in (1, 2, 4):
        assert torch.equal(made.levels[level], found.levels[level])
        assert torch.equal(found.levels[level], found.levels[level].bfloat16().float())
        torch.testing.assert_close(found.levels[level], levels[level], rtol=0.01, atol=1e-3)
    assert torch.equal(found.top, found.levels[-1])
    assert found.switches == (None,) * 5
    assert [found.levels[level].numel() for level in (0, 3)] == [0, 0]
    assert (store.asked, store.computed) == (6, 3)


def test_a_square_has_its_maps_whatever_its_batch_mates_are(tmp_path: Path) -> None:
    whole = FeatureStore(tmp_path / "one", trunk_of(), RUNTIME).maps(SQUARES, (2, 4))
    store = FeatureStore(tmp_path / "other", trunk_of(), RUNTIME)
    for place in (2, 0, 1):
        alone = store.maps(SQUARES[place : place + 1].contiguous(memory_format=torch.channels_last), (2, 4))
        for level in (2, 4):
            assert torch.equal(alone.levels[level][0], whole.levels[level][place])
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_squares_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", trunk_of(), RUNTIME)
    for wrong in (SQUARES + 0.5, SQUARES + 200, SQUARES - 100):
        with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
            store.maps(wrong, (4,))


def test_a_copy_of_a_system_reads_the_same_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", trunk_of(), RUNTIME)
    assert copy.deepcopy(store) is store


def test_weights_laid_out_otherwise_have_a_store_of_their_own() -> None:
    trunk = trunk_of()
    key = stores.key_of(trunk, RUNTIME)
    trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert stores.key_of(trunk, RUNTIME) != key


@pytest.mark.parametrize("most", [0, 3000])
def test_what_finds_no_room_is_computed_each_time(tmp_path: Path, records: list[Record], most: int) -> None:
    plenty = FeatureStore(tmp_path / "plenty", trunk_of(), RUNTIME)
    vectors, maps = pooled(plenty, records), plenty.maps(SQUARES, (3, 4))
    store = FeatureStore(tmp_path / "store", trunk_of(), RUNTIME, most_bytes=most)
    assert np.array_equal(pooled(store, records), vectors)
    again = store.maps(SQUARES, (3, 4))
    assert all(torch.equal(again.levels[level], maps.levels[level]) for level in (3, 4))
    size = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert size <= most
    assert (size > 0) == (most > 0)


def test_the_store_that_was_used_longest_ago_makes_room(tmp_path: Path, records: list[Record]) -> None:
    folder = tmp_path / "store"
    old, used = (FeatureStore(folder, trunk_of(seed), RUNTIME) for seed in (1, 2))
    for store in (old, used):
        pooled(store, records)
    stores.os.utime(old.folder, (1, 1))
    each = sum(path.stat().st_size for path in old.folder.rglob("*") if path.is_file())
    new = FeatureStore(folder, trunk_of(3), RUNTIME, most_bytes=5 * each // 2)
    pooled(new, records)
    assert not old.folder.exists()
    assert used.folder.exists()
    again = FeatureStore(folder, trunk_of(3), RUNTIME)
    pooled(again, records)
    assert again.computed == 0


def test_a_store_may_vanish_at_any_time(tmp_path: Path, records: list[Record]) -> None:
    store = FeatureStore(tmp_path / "store", trunk_of(), RUNTIME)
    first = pooled(store, records)
    stores.shutil.rmtree(tmp_path / "store")
    assert np.array_equal(pooled(store, records), first)


def test_a_trunk_that_learns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eval mode"):
        FeatureStore(tmp_path, trunk_of().train(), RUNTIME)
