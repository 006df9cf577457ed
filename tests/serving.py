"""A small project with a trained system, its page on a port of this machine, and a client to ask it: for tests."""

import asyncio
import contextlib
import csv
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from aiohttp import web

from segcore.prediction.model import load
from segcore.serving import local
from segcore.serving.data_set import open_data_set
from segcore.serving.server import Page
from tests.devkit import make_devkit
from tests.tiny import run_stages, tiny_params

SIZE = (48, 40)
DATA = Path("data/tiny")
MODEL = DATA / "segmenters/deeplab"
PREPARED = {"manifest": DATA / "prepared/manifest.parquet", "classes": DATA / "prepared/classes.json"}


def make_project(folder: Path) -> Path:
    """A data set in voc/ with its tags in a table, and deeplab trained on it for a few steps."""
    folder.mkdir(parents=True, exist_ok=True)
    tags = make_devkit(folder / "voc", n_train=6, n_val=3, size=SIZE)
    names = ("background", "circle", "square", "star")
    with (folder / "voc/tags.csv").open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("image_id", "tags"))
        lines.writerows((image_id, " ".join(names[k] for k in shown)) for image_id, shown in tags.items())
    changes = {
        "dataset.tags": {"kind": "csv", "file": "tags.csv"},
        "split.strong": {"kind": "all"},
        "systems.deeplab.start": "backbones/vgg_fine",
    }
    with contextlib.chdir(folder):
        tiny_params(Path("params.yaml"), **changes)
        run_stages("check_params", data=DATA)
        prepare()
        train()
    return folder


def train() -> None:
    """Train deeplab on the masks of the split, in the project's folder."""
    start = DATA / "backbones/vgg_fine"
    places = {"labels": DATA / "masks", "start": start, "split": DATA / "split", "out": MODEL}
    run_stages("train_segmenter", system="deeplab", **PREPARED, **places)


def prepare() -> None:
    """What the next `dvc repro` does first with the data set, in the project's folder."""
    run_stages("prepare", out=DATA / "prepared")
    run_stages("split", **PREPARED, out=DATA / "split", masks=DATA / "masks")


def page_of(folder: Path, data: bool = True, correct_val: bool = False) -> Page:
    """The page of the project's model; its threads end with `running`."""
    with contextlib.chdir(folder):
        model = load(folder / MODEL, device="cpu")
        data_set = open_data_set(folder / "voc", folder / MODEL, None, None, model.classes) if data else None
    return Page(model, data_set, correct_val)


@contextlib.contextmanager
def running(page: Page) -> Iterator[str]:
    """Serve a page from another thread; its address."""
    loop, socket = asyncio.new_event_loop(), local.listen(0)
    runner = web.AppRunner(page.app, shutdown_timeout=1)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(_started(runner, socket), loop).result(30)
        yield f"http://{local.HOST}:{socket.getsockname()[1]}/{page.secret}/"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _started(runner: web.AppRunner, socket: Any) -> None:
    await runner.setup()
    await web.SockSite(runner, socket).start()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        assert self.status == local.MISTAKE, (self.status, self.body)
        return self.json["problem"]

    @property
    def pixels(self) -> np.ndarray:
        assert self.status == 200, self.body
        return np.frombuffer(self.body, np.uint8).reshape(int(self.headers["X-Height"]), int(self.headers["X-Width"]))


class Client:
    """Asks as a page would; `ask` sends what headers it is told."""

    def __init__(self, address: str) -> None:
        self.parts = urlsplit(address)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(str(self.parts.hostname), self.parts.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path if path.startswith("/") else self.parts.path + path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "photo.jpg") -> Answer:
        return self.ask("POST", f"api/photos?name={quote(name)}", content)

    def open(self, image_id: str) -> Answer:
        return self.ask("POST", f"api/photos?id={quote(image_id)}")

    def save(self, photo: Any, labels: np.ndarray, image_id: str | None = None, tags: str = "") -> Answer:
        named = quote(photo["id"] if image_id is None else image_id)
        return self.ask(
            "POST",
            f"api/photos/{photo['key']}/mask?id={named}{''.join(f'&tag={quote(tag)}' for tag in tags.split())}",
            labels.tobytes(),
        )
