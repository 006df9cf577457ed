"""A bank of views: the same squares again and again, whose maps a trunk that stands still makes once.

`torchrun -m tests.test_fixed_views FOLDER` is two processes.
"""

import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from segcore import systems
from segcore.cli import command, looks
from segcore.config.settings import Settings
from segcore.data.batches import Batch, Mixed, Samples
from segcore.data.manifest import Record
from segcore.data.splits import MASKS_FILE
from segcore.data.zoomed import Bank, Pairs, Zoom, ZoomedImages, ZoomedTagged
from segcore.errors import Problems
from segcore.features.store import FeatureStore
from segcore.processes import Runtime
from segcore.seeds import derived_seed
from segcore.systems.contract import Inputs
from segcore.training.fit import Fit
from tests import warm
from tests.devkit import changed, make_devkit, make_record
from tests.loop import recipe
from tests.networks import N_TAGS, params_of, system_of
from tests.test_decoupled_fpn import ENTRIES, FPN
from tests.tiny import files, run_stages, tiny_dataset

PROJECT = Path(__file__).parents[1]
RUNTIME = Runtime()
VIEWS = 3
PYRAMIDS: dict[str, dict[str, Any]] = {"decoupled_fpn": {}, "fpn": {}, "swsss": {"trunks": "one"}}
"""The systems that may have a bank, and what it asks of their entry."""


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    tags = make_devkit(tmp_path / "voc", n_train=4, n_val=1)
    root = tmp_path / "voc"
    return [
        make_record(i, root / f"JPEGImages/{i}.jpg", root / f"SegmentationClass/{i}.png", 48, 40, some, "train")
        for i, some in tags.items()
        if i.startswith("train")
    ]


def zoomed(records: list[Record], seed: int = 0, views: int | None = VIEWS) -> list[ZoomedImages | ZoomedTagged]:
    """Samples of all kinds."""
    zoom = Zoom(96, (0.7, 1.6), 0.2, None if views is None else Bank(views, seed))
    masks = [record.labels for record in records if record.labels is not None]
    return [
        ZoomedImages(records, masks, N_TAGS, zoom, strong=True),
        ZoomedTagged(records, N_TAGS, zoom),
        Pairs(records, masks, N_TAGS, zoom, strong=True, absent=0.5),
    ]


def shown(samples: Samples, index: int, seeds: int = 40) -> set[bytes]:
    """The different squares of an image."""
    return {samples.sample(index, seed).image.numpy().tobytes() for seed in range(seeds)}


def test_there_are_so_many_views_of_each_image(records: list[Record]) -> None:
    for samples in zoomed(records):
        every = [shown(samples, index) for index in range(len(records))]
        assert [len(one) for one in every] == [VIEWS] * len(records)
        assert len(set.union(*every)) == VIEWS * len(records)
    for samples in zoomed(records, views=None):
        assert len(shown(samples, 0)) == 40


def test_a_view_is_a_function_of_the_seed_the_image_and_its_number(records: list[Record]) -> None:
    """Not of the image's place among others, nor of what the samples are for."""
    plain, tagged, pairs = zoomed(records)
    assert shown(plain, 1) == shown(tagged, 1) == shown(pairs, 1)
    assert shown(zoomed(records[::-1])[0], len(records) - 2) == shown(plain, 1)
    assert not shown(zoomed(records, seed=1)[0], 1) & shown(plain, 1)
    assert shown(zoomed(records, views=VIEWS + 2)[0], 1) > shown(plain, 1)
    zoom = Zoom(96, (0.7, 1.6), 0.2)
    image = np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3)
    first = np.random.default_rng(derived_seed(7, "one", 0))
    again = Bank(1, 7).view("one", np.random.default_rng(5))
    squares = [zoom(image, image[:, :, 0], rng)[0] for rng in (first, again)]
    assert np.array_equal(squares[0], squares[1])


def test_what_is_asked_of_a_view_still_changes(records: list[Record]) -> None:
    pairs = zoomed(records, views=1)[2]
    tags = {int(pairs.sample(0, seed).tags.argmax()) for seed in range(40)}
    assert len(tags) > 1
    labels = {pairs.sample(0, seed).labels.numpy().tobytes() for seed in range(40)}
    assert len(labels) == 1


def test_a_bank_has_the_seed_of_the_run(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / MASKS_FILE).write_text("")
    ids = [record.image_id for record in records]
    by_id = {record.image_id: record for record in records}
    for module, own in PYRAMIDS.items():
        params = params_of(module, zoom={"bank": VIEWS}, **own)
        squares = []
        for seed in (0, 0, 1):
            given = Inputs(by_id, ids, ids, "strong", tmp_path / "masks", N_TAGS, None, seed)
            made = systems.load(module).samples(params, given)
            squares.append(shown(made.sets[-1] if isinstance(made, Mixed) else made, 2))
        assert len(squares[0]) == VIEWS
        assert squares[0] == squares[1]
        assert not squares[0] & squares[2]


def trained(
    module: str,
    trunk: str,
    samples: Samples,
    folder: Path,
    most_bytes: int = 2**30,
    checkpoint: Path | None = None,
    killed_after: int = 8,
) -> tuple[list[dict[str, float]], dict[str, Tensor], FeatureStore]:
    """Losses and weights of a few steps, and the store."""
    system = system_of(module, trunk, zoom={"bank": VIEWS}, **PYRAMIDS[module])
    store = system.look_up(lambda trunk: FeatureStore(folder, trunk, RUNTIME, most_bytes), every_level=False)
    assert store is not None
    system.begin(samples)  # type: ignore[arg-type]
    fit = Fit(system, samples, recipe(multipliers={"pretrained": 0.0}, batch_size=4), 1, RUNTIME, checkpoint)
    losses = [progress.losses for progress in (fit if killed_after == 8 else islice(fit, killed_after))]
    return losses, {name: value.clone() for name, value in system.state_dict().items()}, store


@pytest.mark.parametrize("module", PYRAMIDS)
@pytest.mark.parametrize("trunk", ["vgg16", "timm/test_resnet"])
def test_an_empty_a_full_and_a_closed_store_teach_the_same(
    module: str, trunk: str, records: list[Record], tmp_path: Path
) -> None:
    """And one that vanishes in the middle."""
    plain, tagged, pairs = zoomed(records)
    samples = {"decoupled_fpn": pairs, "fpn": plain, "swsss": Mixed(tagged, plain)}[module]
    start = system_of(module, trunk, **PYRAMIDS[module]).state_dict()
    empty, full, closed = (
        trained(module, trunk, samples, tmp_path / name, most)
        for name, most in (("store", 2**30), ("store", 2**30), ("closed", 0))
    )
    for other in (full, closed):
        assert other[0] == empty[0]
        assert all(torch.equal(value, other[1][name]) for name, value in empty[1].items())
    asked = 8 * 4
    assert [run[2].asked for run in (empty, full, closed)] == [asked] * 3
    assert 0 < empty[2].computed <= VIEWS * len(records)
    assert (full[2].computed, closed[2].computed) == (0, asked)
    assert not [path for path in (tmp_path / "closed").rglob("*") if path.is_file()]
    stands = [name for name in start if ".trunk." in name]
    assert stands
    assert all(torch.equal(start[name], empty[1][name]) for name in stands), "its statistics too"
    assert not all(torch.equal(start[name], empty[1][name]) for name in start)


def test_a_store_that_vanishes_while_it_is_used_changes_nothing(records: list[Record], tmp_path: Path) -> None:
    class Vanishing(ZoomedImages):
        def sample(self, index: int, seed: int) -> Any:
            if index == 0:
                shutil.rmtree(tmp_path / "gone", ignore_errors=True)
            return super().sample(index, seed)

    plain = zoomed(records)[0]
    assert isinstance(plain, ZoomedImages)
    vanishing = Vanishing(plain.records, plain.labels, N_TAGS, plain.zoom, strong=True)
    kept = trained("fpn", "vgg16", plain, tmp_path / "store")
    gone = trained("fpn", "vgg16", vanishing, tmp_path / "gone")
    assert gone[0] == kept[0]
    assert gone[2].computed > kept[2].computed


def test_a_run_that_was_killed_goes_on_whatever_is_stored(records: list[Record], tmp_path: Path) -> None:
    pairs = zoomed(records)[2]
    whole = trained("decoupled_fpn", "vgg16", pairs, tmp_path / "whole")
    checkpoint = tmp_path / "run.pt"
    killed = trained("decoupled_fpn", "vgg16", pairs, tmp_path / "killed", checkpoint=checkpoint, killed_after=5)
    assert killed[0] == whole[0][:5]
    assert checkpoint.is_file()
    shutil.rmtree(tmp_path / "killed")
    resumed = trained("decoupled_fpn", "vgg16", pairs, tmp_path / "killed", checkpoint=checkpoint)
    assert resumed[0] == whole[0]
    assert resumed[2].asked < whole[2].asked
    assert all(torch.equal(value, resumed[1][name]) for name, value in whole[1].items())


@pytest.mark.parametrize("module", systems.names())
def test_without_a_bank_nothing_is_looked_up(module: str) -> None:
    def never(trunk: nn.Module) -> FeatureStore:
        raise AssertionError("no store is asked for")

    assert system_of(module).look_up(never, every_level=False) is None


def test_regularisers_read_every_level(records: list[Record], tmp_path: Path) -> None:
    system = system_of("fpn", zoom={"bank": VIEWS})
    system.look_up(lambda trunk: FeatureStore(tmp_path / "store", trunk, RUNTIME), every_level=True)
    sample = zoomed(records)[0].sample(0, 0)
    outputs: Any = system(Batch(("one",), sample.image[None].float(), sample.tags[None], sample.labels[None].long()))
    trunk: Any = system.trunk
    with torch.no_grad():
        computed = trunk.eval()(sample.image[None].float()).levels
    for stored, level in zip(outputs.levels, computed, strict=True):
        torch.testing.assert_close(stored, level, rtol=0.01, atol=1e-3)


BANKED = FPN | {"training": FPN["training"] | {"zoom": FPN["training"]["zoom"] | {"bank": VIEWS}}}
TINY: dict[str, Any] = {
    "classifiers.linear": ENTRIES["classifiers.linear"],
    "systems.decoupled_fpn": BANKED,
    "recipes.segmenter.multipliers": {"pretrained": 0.0},
}


def problems_of(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(Problems) as raised:
        command.checked(Settings(changed(changes)))
    return raised.value.problems


def entry_of(module: str, **training: Any) -> dict[str, Any]:
    smallest = systems.load(module).smallest()
    start = {"start": "classifiers/decoupled"} if smallest["start"] == "classifiers/any" else {}
    zoom = smallest["training"]["zoom"] | {"bank": VIEWS}
    return smallest | start | {"training": smallest["training"] | {"zoom": zoom} | training}


def test_a_bank_needs_a_trunk_that_stands_still() -> None:
    command.checked(Settings(changed(TINY)))
    (problem,) = problems_of(TINY | {"recipes.segmenter.multipliers": {"pretrained": 0.1}})
    assert problem.startswith(
        "systems.decoupled_fpn.training.zoom.bank: found 3, but recipes.segmenter.multipliers.pretrained is 0.1"
    )
    (problem,) = problems_of(TINY | {"recipes.segmenter.multipliers": {}})
    assert "pretrained is 1:" in problem


def test_a_bank_of_nothing_is_refused() -> None:
    empty = BANKED | {"training": BANKED["training"] | {"zoom": BANKED["training"]["zoom"] | {"bank": 0}}}
    (problem,) = problems_of(TINY | {"systems.decoupled_fpn": empty})
    assert problem.startswith("systems.decoupled_fpn.training.zoom.bank: found 0")


def test_trunks_that_stand_still_are_one() -> None:
    still = {"recipes.segmenter.multipliers": {"pretrained": 0.0}}
    command.checked(Settings(changed(still | {"systems.tested": entry_of("swsss", trunks="one")})))
    (problem,) = problems_of(still | {"systems.tested": entry_of("swsss", trunks="two")})
    assert "zoom.bank needs trunks: one" in problem


def test_views_that_change_all_the_same_have_no_bank() -> None:
    still = {"recipes.segmenter.multipliers": {"pretrained": 0.0}}
    (problem,) = problems_of(still | {"systems.tested": entry_of("mean_teacher")})
    assert "zoom.bank has no use here" in problem


def train(out: str) -> None:
    arguments = {"system": "decoupled_fpn", "labels": Path("masks"), "start": Path("linear"), "out": Path(out)}
    run_stages("train_segmenter", **arguments)


STORE = Path(".scratch/features")


def stored() -> dict[str, bytes]:
    """The maps that there are; beside them lie features that the classifier was fitted to."""
    return {name: content for name, content in files(STORE).items() if "/maps-" in name}


def test_the_stage_writes_the_same_whatever_is_stored_and_by_however_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_dataset(tmp_path, **TINY | {"recipes.segmenter.checkpoint_every": 3})
    monkeypatch.chdir(tmp_path)
    run_stages("prepare", "split")
    run_stages("train_classifier", name="linear", out=Path("linear"))
    train("first")
    maps = stored()
    assert maps
    monkeypatch.setenv(looks.VARIABLE, "3:2")  # looks at a copy of the system, which has no store of its own
    train("again")
    monkeypatch.delenv(looks.VARIABLE)
    assert stored() == maps
    shutil.rmtree(STORE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = warm.environment() | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [*torchrun, "-m", "tests.test_fixed_views", str(tmp_path)],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 24 views; others were stored" in done.stdout
    assert stored() == maps
    one, same, two = (files(Path(name)) for name in ("first", "again", "two"))
    assert one == same
    assert one.keys() == two.keys()
    first, second = (pd.read_csv(f"{name}/training/plots/metrics/loss/dice.tsv", sep="\t") for name in ("first", "two"))
    np.testing.assert_allclose(second["dice"], first["dice"], rtol=1e-3)
    weights = [load_file(f"{name}/model/model.safetensors") for name in ("first", "two")]
    for name, values in weights[0].items():
        np.testing.assert_allclose(weights[1][name], values, rtol=2e-2, atol=2e-3, err_msg=name)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    train("two")
