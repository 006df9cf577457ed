"""Two processes and one: the same losses, weights and files. `torchrun -m tests.test_distributed FOLDER` is the two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from segcore.cli import shards
from segcore.config import settings
from segcore.data.batches import Batch
from segcore.errors import Problem
from segcore.files import write_atomically
from segcore.losses import Term
from segcore.networks import classifiers
from segcore.processes import Runtime
from segcore.training.fit import Fit
from tests import warm
from tests.loop import Net, Pictures, recipe
from tests.networks import backbone, fully_connected
from tests.tiny import NAME, arguments, files, run_stages, tiny_dataset, train_stochastic

PROJECT = Path(__file__).parents[1]
SHARDED = ("evaluate", "extract_pseudo_labels")
SEMI = {
    "system": "ficklenet_semi",
    "labels": Path("pseudo_labels"),
    "start": Path("stochastic"),
    "out": Path("semi"),
}
"""Half of a batch of four are weak samples and half are strong: of two processes, each gets one kind."""


class Unlucky(Net):
    """In the second step, the loss of one picture is not finite: one process sees it, all must stop."""

    def losses(self, batch: Batch) -> dict[str, Term]:
        terms = super().losses(batch)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 2 and Runtime().rank == Runtime().world - 1:
            terms["tags"] = Term(terms["tags"].total * float("nan"), terms["tags"].weight)
        return terms


def with_dropout(runtime: Runtime, accumulate: int) -> dict[str, list[float]]:
    """Losses and weights of a deep classifier with dropout and without batch normalisation, in double precision."""
    torch.manual_seed(5)
    model = classifiers.build(backbone("vgg16"), fully_connected(dropout=0.5), 2).double()
    runs = Fit(model, Pictures(size=64), recipe(steps=3, accumulate=accumulate), 1, runtime, None)
    losses = [progress.losses["tags"] for progress in runs]
    return {"losses": losses} | {name: value.flatten().tolist() for name, value in model.state_dict().items()}


def work(folder: Path) -> None:
    """What is compared: the loop with dropout, batch normalisation and unknown pixels, and the sharded stages."""
    runtime = Runtime()
    torch.manual_seed(5)
    model = Net(dropout=0.3)
    model.foreign_drop = torch.nn.Identity()  # type: ignore[assignment]
    changes = {"steps": 6, "batch_size": 8, "accumulate": 2, "clip_norm": 1.0, "channels_last": True}
    losses = [progress.losses for progress in Fit(model, Pictures(), recipe(**changes), 1, runtime, None)]
    state = {name: value.double().flatten().tolist() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    entry = settings.load(folder / "params.yaml").classifiers[NAME]
    deep = classifiers.build(entry.backbone, entry.head, 2).double()
    deep_losses = [p.losses["tags"] for p in Fit(deep, Pictures(size=64), recipe(steps=6), 1, runtime, None)]
    parts = {str(accumulate): with_dropout(runtime, accumulate) for accumulate in (1, 2)}
    message = ""
    try:
        list(Fit(Unlucky(), Pictures(), recipe(), 1, runtime, None))
    except Problem as problem:
        message = str(problem)
    if runtime.is_main:
        content = {"world": runtime.world, "losses": losses, "state": state, "deep": deep_losses, "message": message}
        content["parts"] = parts
        write_atomically(folder / "fit.json", json.dumps(content).encode())
    os.chdir(folder)
    for stage in ("make_crops", "train_classifier", "train_segmenter", "evaluate", "extract_pseudo_labels"):
        runtime.wait()  # a process that does not write is done before the files are there
        run_stages(stage)
    runtime.wait()
    run_stages("train_segmenter", **SEMI)
    shards.IMAGES = 1  # so that a shard has several pieces, of which each process makes some
    for stage in SHARDED:
        for shard in ("2/2", "1/2", None):
            runtime.wait()
            run_stages(stage, out=Path(f"merged_{stage}"), shard=shard, shard_folder=folder / "parts")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of one process and of two, each with all that they wrote."""
    root = tmp_path_factory.mktemp("distributed")
    made = []
    here = Path.cwd()
    for processes in (1, 2):
        folder = root / str(processes)
        # AdamW divides by the size of the gradient: where it is 0 but for rounding, rounding would decide.
        sgd = {"optimizer": "sgd", "learning_rate": 0.001}
        tiny_dataset(folder, **{f"recipes.common.{key}": value for key, value in sgd.items()})
        try:
            os.chdir(folder)
            run_stages("prepare", "split")
            if processes == 1:
                train_stochastic()
            else:
                shutil.copytree(root / "1/stochastic", "stochastic")
        finally:
            os.chdir(here)
        made.append(folder)
        command = ["python", "-m", "tests.test_distributed"]
        if processes > 1:
            command[1:] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command[1:]]
        done = subprocess.run(
            [*command, str(folder)], cwd=PROJECT, env=warm.environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "log").write_text(done.stdout)
    return made


def fits(folders: list[Path]) -> list[dict]:
    return [json.loads((folder / "fit.json").read_text()) for folder in folders]


def test_two_processes_show_the_losses_of_one(folders: list[Path]) -> None:
    one, two = fits(folders)
    assert (one["world"], two["world"]) == (1, 2)
    for mine, theirs in zip(two["losses"], one["losses"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_two_processes_learn_the_weights_and_statistics_of_one(folders: list[Path]) -> None:
    one, two = fits(folders)
    for name, values in one["state"].items():
        np.testing.assert_allclose(two["state"][name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_deep_networks_too(folders: list[Path]) -> None:
    """In double precision, as sixteen layers of normalisation over a few values make much of a rounding."""
    one, two = fits(folders)
    assert two["deep"] == pytest.approx(one["deep"], rel=1e-6)


@pytest.mark.parametrize("parts", ["1", "2"])
def test_dropout_is_the_same_for_any_processes_and_parts(parts: str, folders: list[Path]) -> None:
    runs = [fit["parts"] for fit in fits(folders)]
    for run in runs:
        for name, values in run[parts].items():
            np.testing.assert_allclose(values, runs[0]["1"][name], rtol=1e-5, atol=1e-8, err_msg=name)


def test_what_stops_one_process_stops_all_and_names_the_images_of_both(folders: list[Path]) -> None:
    one, two = (fit["message"] for fit in fits(folders))
    for message in (one, two):
        assert message.startswith("step 1: the loss is not finite (pixels 0.")
        assert "tags nan" in message
    named = [sorted(word.strip(",;") for word in m.split() if word.startswith("picture_")) for m in (one, two)]
    assert named[0] == named[1]
    assert len(named[0]) == 4


@pytest.mark.parametrize(
    ("stage", "terms"),
    [("classifier", ["tags"]), ("segmenter", ["segmentation"]), ("semi", ["seed", "boundary", "full"])],
)
def test_the_stages_train_alike(stage: str, terms: list[str], folders: list[Path]) -> None:
    one, two = (folder / stage for folder in folders)
    for term in terms:
        log = f"training/plots/metrics/loss/{term}.tsv"
        ours, theirs = pd.read_csv(two / log, sep="\t"), pd.read_csv(one / log, sep="\t")
        assert len(ours) == 6
        assert ours[term].to_numpy().min() > 0
        # Of nearly equal probabilities, as an untrained network has them, rounding may decide what the CRF makes of a
        # cell, and so whether cues grow there.
        np.testing.assert_allclose(ours[term], theirs[term], rtol=1e-2 if term in ("seed", "boundary") else 1e-3)
    weights = load_file(two / "model/model.safetensors"), load_file(one / "model/model.safetensors")
    for name, values in weights[1].items():
        np.testing.assert_allclose(weights[0][name], values, rtol=2e-2, atol=2e-3, err_msg=name)


def test_per_image_stages_write_the_same_bytes(folders: list[Path]) -> None:
    one, two = folders
    assert files(one / "crops") == files(two / "crops")
    assert len(files(one / "crops")) == 4
    assert files(one / "pseudo_labels") == files(two / "pseudo_labels")
    assert len(files(one / "pseudo_labels")) == 2 * 9 + 5


def test_evaluation_of_one_model_writes_the_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    """The two processes' own model, scored again by one."""
    _, two = folders
    here = Path.cwd()
    try:
        os.chdir(two)
        run_stages("evaluate", out=tmp_path / "results")
    finally:
        os.chdir(here)
    assert files(tmp_path / "results") == files(two / arguments("evaluate")["out"])
    assert len(files(tmp_path / "results")) == 10


@pytest.mark.parametrize("stage", SHARDED)
def test_shards_of_many_processes_and_a_merge_write_the_same_bytes(stage: str, folders: list[Path]) -> None:
    for folder in folders:
        whole = files(folder / arguments(stage)["out"])
        assert files(folder / f"merged_{stage}") == whole
        assert not list((folder / "parts").rglob("*.zip"))


def test_only_the_first_process_speaks(folders: list[Path]) -> None:
    log = (folders[1] / "log").read_text()
    assert log.count("2 process(es)") == 3
    assert log.count("pseudo-labels of 9 images") == 2, "that of one run, and that of its shards"
    assert log.count("crops of 6 strong images") == 1


if __name__ == "__main__":
    work(Path(sys.argv[1]))
