"""Rows of the table: systems trained and scored by the stages on a part of VOC, five masks a class.

Two trunks: `voc-mini-vgg` as it is, and `voc-mini` with a ResNet-50 that learns along. In the order of their worth:

1. DecoupledNet and its twin from masks alone, on the papers' own VGG-16: their difference is what tags are good for.
2. The same with ResNet-50, and `decoupled_fpn`, this project's best row, whose trunk stays as it is, as its tags are
   found by a head that was fitted to it.
3. DeepLab on VGG-16, from the same masks: what a plain segmenter makes of them.

What is done lies in `data` and is not done again; a training that was cut short goes on from its checkpoint. Data are
prepared once; a machine without OpenCV's `ximgproc`, which crops need, is handed them (`--prepare`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.gpu_parts.measuring import PROJECT, Context, Figures
from segcore.config import profiles, reading

VGG, RESNET = "vgg", "resnet50"
PROFILES = {VGG: "voc-mini-vgg", RESNET: "voc-mini"}
FILES = {VGG: "vgg16_features_imagenet.safetensors", RESNET: "resnet50_imagenet.safetensors"}
ROWS = (
    (VGG, "decouplednet"),
    (VGG, "decouplednet_str"),
    (RESNET, "decoupled_fpn"),
    (RESNET, "decouplednet"),
    (RESNET, "decouplednet_str"),
    (VGG, "deeplab"),
)
LEAST = 20.0
"""Seconds that a stage is begun with."""

WORKERS = 8
LEARNING = 0.1
"""Learning rate of ResNet-50 over that of new layers, as of VGG-16 in its profile."""


class OutOfTime(Exception):
    """A stage was stopped at the deadline; its checkpoint stays."""


@dataclass(frozen=True)
class Stage:
    """A stage with its arguments, and the file that it writes last."""

    name: str
    arguments: tuple[tuple[str, str | Path], ...]
    done: Path


def rows(context: Context) -> Figures:
    """Train and score as many rows as there is time for."""
    found: Figures = {}
    left = []
    for number, (trunk, system) in enumerate(ROWS):
        title = f"{system}, {trunk}"
        if not _weights(context, trunk):
            found[title] = f"left out: no {FILES[trunk]} in {context.weights}"
            continue
        try:
            found[title] = _row(context, trunk, system)
            context.keep(found)
        except OutOfTime:
            left = [f"{system}, {trunk}" for trunk, system in ROWS[number:]]
            break
    return {"figures": found, "bars": {}, "complete": not left, "left": left}


def prepare(context: Context) -> None:
    """Make what needs no GPU: the manifest, the split and the crops."""
    for trunk in PROFILES:
        write_params(context, trunk)
        for stage in _prepared(context, trunk):
            _run(context, trunk, stage)


def write_params(context: Context, trunk: str) -> dict[str, Any]:
    """The parameters of a trunk's rows, which also lie in its folder."""
    name = PROFILES[trunk]
    given = reading.parsed(profiles.compose(PROJECT / "profiles", name), f"the profile {name}")
    given["dataset"] |= {"name": "gpu", "root": str(context.voc)}
    given["recipes"]["common"]["workers"] = 0 if context.toy else WORKERS
    if trunk == RESNET:
        for backbone in given["backbones"].values():
            backbone["name"] = "resnet50"
        for recipe in ("common", "classifier"):
            given["recipes"][recipe]["multipliers"] = {"pretrained": LEARNING}
    for backbone in given["backbones"].values():
        backbone["weights"] = "random" if context.toy else str(_weights(context, trunk) or "random")
    if context.toy:
        _shrink(given)
    folder = context.data / trunk
    folder.mkdir(parents=True, exist_ok=True)
    YAML(typ="safe", pure=True).dump(given, folder / "params.yaml")
    return given


def _shrink(given: dict[str, Any]) -> None:
    given["dataset"] |= {"train_list": "train", "val_list": "val"}
    given["split"]["strong"]["images"] = 2
    given["crops"] |= {"per_subset": 6, "warp": 72, "input_size": 64}
    given["evaluation"] |= {"batch_size": 2, "panels": 2}
    for recipe in given["recipes"].values():
        recipe |= {"steps": 3, "batch_size": 4, "warmup_steps": 1}
    for backbone in given["backbones"].values():
        vgg = backbone["name"].startswith("vgg")
        backbone |= {"width": 0.0625} if vgg else {"name": "resnet18"}
    given["networks"]["mirror"] |= {"width": 0.0625, "norm_batches": 2, "norm_batch_size": 4}
    for name, size in (("grid", 65), ("pyramid", 64)):
        if name in given["networks"]:
            given["networks"][name] |= {"input_size": size}
    for entry in given["classifiers"].values():
        head = entry["head"]
        if head["kind"] == "pooled":
            head |= {"input_size": 64, "pools": ["mean", "max"]}
        elif head["kind"] == "fully_connected":
            entry |= {"input_size": 64, "resize": 72, "test_size": 64}
            head |= {"width": 16, "kernel": 2}


def _weights(context: Context, trunk: str) -> Path | None:
    if context.toy:
        return Path("random")
    file = context.weights / FILES[trunk] if context.weights else None
    return file if file and file.is_file() else None


def _row(context: Context, trunk: str, system: str) -> Figures:
    given = write_params(context, trunk)
    spent = {}
    for stage in (*_prepared(context, trunk), *_stages(context, trunk, system, given)):
        key = stage.name if stage.name != "train_classifier" else f"train_{stage.done.parent.name}"
        spent[key] = _run(context, trunk, stage)
    told = json.loads((context.data / trunk / f"results/{system}/metrics.json").read_text())
    figures = {key: value for key, value in told.items() if not isinstance(value, dict | list)}
    return figures | {"seconds": spent}


def _known(context: Context) -> tuple[tuple[str, Path], ...]:
    files = {"manifest": "prepared/manifest.parquet", "classes": "prepared/classes.json", "split": "split"}
    return tuple((name, context.data / file) for name, file in files.items())


def _prepared(context: Context, trunk: str) -> Iterator[Stage]:
    data = context.data
    manifest, classes, split = _known(context)
    yield Stage("prepare", (("out", data / "prepared"),), data / "prepared/dataset.json")
    out = ("out", data / "split"), ("masks", data / "masks")
    yield Stage("split", (manifest, classes, *out), data / "masks/masks.csv")
    crops = data / trunk / "crops"
    yield Stage("make_crops", (manifest, classes, split, ("out", crops)), crops / "figure.png")


def _stages(context: Context, trunk: str, system: str, given: dict[str, Any]) -> Iterator[Stage]:
    known, data, entry = _known(context), context.data / trunk, given["systems"][system]
    kind, _, name = entry["start"].partition("/")
    if kind == "classifiers":
        out = data / entry["start"]
        yield Stage("train_classifier", (*known, ("name", name), ("out", out)), out / "metrics.json")
    else:  # a backbone, of which `check_params` leaves a card
        card = data / f"backbones/{name}/model/model.json"
        yield Stage("check_params", (("data", data),), card)
    labels = context.data / "masks" if entry["labels"] == "masks" else data / entry["labels"]
    out = data / f"segmenters/{system}"
    sources = ("labels", labels), ("start", data / entry["start"]), ("out", out)
    yield Stage("train_segmenter", (*known, ("system", system), *sources), out / "model/model.json")
    model, out = out / "model", data / f"results/{system}"
    yield Stage("evaluate", (*known, ("system", system), ("model", model), ("out", out)), out / "made_of.json")


def _run(context: Context, trunk: str, stage: Stage) -> float:
    """Seconds that it took, or had taken when it was run before.

    Raises:
        OutOfTime: the deadline is there; the stage can go on later.
        RuntimeError: the stage failed.
    """
    mark = stage.done.with_name(f".{stage.name}-{stage.done.name}.seconds")
    if mark.is_file():
        return float(mark.read_text())
    if context.left < LEAST:
        raise OutOfTime
    room = "segcore.commands" if stage.name == "check_params" else "stages"
    command = [sys.executable, "-m", f"{room}.{stage.name}", "--params", str(context.data / trunk / "params.yaml")]
    for name, value in stage.arguments:
        command += [f"--{name}", str(value)]
    log = context.data / "log.txt"
    begin = time.monotonic()
    with log.open("a") as told:
        code = finished(command, context.left, told)
    if code is None:
        raise OutOfTime
    if code:
        raise RuntimeError(f"{stage.name} failed: {' | '.join(log.read_text().splitlines()[-4:])}")
    spent = round(time.monotonic() - begin, 1)
    mark.write_text(str(spent))
    return spent


def finished(command: Sequence[str], limit: float, out: Any = None) -> int | None:
    """The exit code of a command; None if it was ended, with all that it had started, after `limit` seconds."""
    # A group of its own, so that its workers end with it, but no session: where a session ends, so must they.
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=out, stderr=subprocess.STDOUT if out else None, process_group=0
    )
    try:
        return process.wait(max(1.0, limit))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
