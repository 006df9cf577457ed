"""Many pictures into a folder by a Ray cluster: each task of Ray Data is one of the shards that `run` predicts.

Ray chooses where a shard is predicted, keeps a model in every actor, and gives a shard to another actor when one dies.
All else is `run.predict_shard`: what a shard has done stands in its journal, so one that is given out again goes on,
and files are replaced whole by the same bytes. Every machine must see the model, the pictures and the folder of
predictions under the same paths.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from segcore import memory
from segcore.config.section import Views
from segcore.errors import Problem
from segcore.prediction.listing import Photo
from segcore.prediction.model import Model, load, model_folder
from segcore.prediction.run import Wanted, claim, predict_shard
from segcore.prediction.tables import write_tables
from segcore.prediction.tiles import Tiles

_RAISED = re.compile(r"(?!ray\.)[\w.]*(Error|Problem|Problems|Interrupt): ")
"""How the last line of a trace begins."""

SHARDS = 8
"""For each actor: fast ones do more of them, and few pictures are begun anew after a death."""


@dataclass(frozen=True)
class Loading:
    """How an actor loads the model, by absolute paths."""

    model: Path
    how: Path | None
    device: str
    views: Views
    tiles: Tiles | None

    def __call__(self) -> Model:
        model = load(self.model, device=self.device, how=self.how)
        model.views, model.tiles = self.views, self.tiles
        return model


@dataclass(frozen=True)
class ShardDone:
    """Of one shard: pictures predicted now, and before; what is wrong with others."""

    new: int
    before: int
    problems: list[str]


def connect(address: str | None, workers: int) -> int:
    """Join the cluster at `address`, or start one on this machine for so many workers; gives its number of GPUs.

    Raises:
        Problem: Ray is not installed, or the cluster is not there.
    """
    ray = _ray()
    local = {"num_cpus": workers} if address is None else {"address": address}
    try:
        ray.init(**local, include_dashboard=False, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise Problem(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    return int(ray.cluster_resources().get("GPU", 0))


def predict_folder(
    loading: Loading, model: Model, photos: Sequence[Photo], out: Path, wanted: Wanted, workers: int
) -> Iterator[ShardDone]:
    """As `run.predict_folder`, by so many actors at a time of the cluster that is connected.

    `model` is what `loading` loads; `out` is absolute.

    Raises:
        Problem: as there; or what an actor raised, which is not tried again as a death is.
    """
    ray, data = _ray(), import_module("ray.data")
    model.check()
    claim(model, model_folder(loading.model) / "model.safetensors", out, wanted)
    batches = -(-len(photos) // wanted.batch_size)
    shards = max(1, min(batches, workers * SHARDS))
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers = data.from_items([{"shard": number} for number in range(shards)], override_num_blocks=shards)
    done = numbers.map_batches(
        Worker,
        fn_constructor_args=(loading, ray.put(list(photos)), out, replace(wanted, shards=shards)),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(workers, shards)),
        num_gpus=1 if loading.device == "cuda" else 0,
        num_cpus=1,
    )
    try:
        for row in done.iter_rows():
            yield ShardDone(int(row["new"]), int(row["before"]), json.loads(row["problems"]))
    except ray.exceptions.RayError as error:
        raise Problem(f"Ray: a shard failed ({_why(error)}); mend it, and the same command goes on") from error
    write_tables(model.classes, photos, out, wanted.polygons, wanted.shard, wanted.shards)


class Worker:
    """An actor: a model that predicts one shard after the other."""

    def __init__(self, loading: Loading, photos: Any, out: Path, wanted: Wanted) -> None:
        memory.keep()
        self.model, self.weights = loading(), model_folder(loading.model) / "model.safetensors"
        self.photos, self.out, self.wanted = _ray().get(photos), out, wanted

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        told: dict[str, list[Any]] = {"new": [], "before": [], "problems": []}
        for number in rows["shard"].tolist():
            wanted = replace(self.wanted, shard=number)
            outcomes = list(predict_shard(self.model, self.weights, self.photos, self.out, wanted))
            problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
            before = sum(outcome.repeated for outcome in outcomes if outcome.problem is None)
            told["new"].append(len(outcomes) - len(problems) - before)
            told["before"].append(before)
            told["problems"].append(json.dumps(problems))
        return told


def _why(error: BaseException) -> str:
    """What an actor raised, which Ray hands on as the text of a trace with advice around it."""
    raised = [line.strip() for line in str(error).splitlines() if _RAISED.match(line.strip())]
    return raised[-1] if raised else type(error).__name__


def _ray() -> Any:
    try:
        return import_module("ray")
    except ModuleNotFoundError:
        raise Problem("--engine ray: Ray is not installed; pip install 'segcore[ray]', or leave --engine out") from None
