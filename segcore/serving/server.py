"""What the page asks: addresses of the server, and what each answers."""

import asyncio
import json
import secrets
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from jaxtyping import UInt8

from segcore.data.pictures import IGNORE, voc_palette
from segcore.errors import Problem
from segcore.prediction.model import Model
from segcore.serving import local
from segcore.serving.data_set import DataSet, Member
from segcore.serving.photos import MOST_BYTES, MOST_PIXELS, Photo, Photos, as_id, encoded, thumbnail
from segcore.serving.saving import Saver
from segcore.serving.worker import Worker

MODULES = ("page", "server", "painter", "view", "legend", "gallery", "heat", "tools")
FILES = {"": ("page.html", "text/html"), "page.css": ("page.css", "text/css")}
FILES |= {f"{name}.js": (f"{name}.js", "text/javascript") for name in MODULES}


class Page:
    """The page of a model: `app` serves it below `secret`."""

    def __init__(self, model: Model, data_set: DataSet | None, correct_val: bool) -> None:
        self.model, self.data_set = model, data_set
        self.saver = Saver(data_set, correct_val) if data_set is not None else None
        self.photos, self.worker = Photos(), Worker(model)
        self.secret = secrets.token_urlsafe(12)
        self.app = web.Application(middlewares=[local.guarded, local.told], client_max_size=MOST_BYTES)
        top = f"/{self.secret}"
        for name in FILES:
            self.app.router.add_get(f"{top}/{name}", _file)
        for method, place, handler in (
            ("GET", "about", self.about),
            ("GET", "pictures", self.pictures),
            ("GET", "pictures/{id}/thumbnail", self.small),
            ("POST", "photos", self.open),
            ("GET", "photos/{key}/picture", self.picture),
            ("POST", "photos/{key}/prediction", self.predict),
            ("GET", "photos/{key}/map", self.map),
            ("GET", "photos/{key}/mask", self.mask),
            ("POST", "photos/{key}/mask", self.save),
        ):
            self.app.router.add_route(method, f"{top}/api/{place}", handler)
        self.app.on_cleanup.append(self._closed)

    async def _closed(self, _: web.Application) -> None:
        self.worker.close()

    async def about(self, _: web.Request) -> web.Response:
        """What does not change while the page is open."""
        palette = voc_palette().tolist()
        classes = [{"name": name, "colour": palette[k]} for k, name in enumerate(self.model.classes)]
        about: dict[str, Any] = {
            "model": self.model.name,
            "device": str(self.model.device),
            "classes": classes,
            "unknown": {"label": IGNORE, "colour": palette[IGNORE]},
            "most": {"bytes": MOST_BYTES, "pixels": MOST_PIXELS},
            "data_set": None,
        }
        if self.data_set is not None and self.saver is not None:
            about["data_set"] = {
                "root": str(self.data_set.root),
                "correct_val": self.saver.correct_val,
                "strong": self.data_set.strong,
            }
        return web.json_response(about)

    async def pictures(self, _: web.Request) -> web.Response:
        """The pictures of the data set."""
        members = {} if self.data_set is None else await asyncio.to_thread(lambda: self._data_set().members)
        return web.json_response([
            {"id": one.image_id, "place": one.place, "masked": one.mask is not None} for one in members.values()
        ])  # fmt: skip

    async def small(self, request: web.Request) -> web.Response:
        """A picture of the data set, small."""

        def made() -> bytes:
            member = self._data_set().member(request.match_info["id"])
            return thumbnail(_content(member.picture), member.image_id)

        return web.Response(body=await asyncio.to_thread(made), content_type="image/jpeg")

    async def open(self, request: web.Request) -> web.Response:
        """Open a picture of the data set (`?id=`), or the one in the body (`?name=`)."""
        content = await request.read()
        photo = await asyncio.to_thread(self._opened, request.query.get("id"), request.query.get("name"), content)
        member = None if photo.image_id is None else await asyncio.to_thread(self._data_set().member, photo.image_id)
        return web.json_response(self._described(photo, member))

    def _opened(self, image_id: str | None, name: str | None, content: bytes) -> Photo:
        if image_id is None and self.data_set is not None:
            image_id = _same(content, self.data_set)
        if image_id is not None:
            member = self._data_set().member(image_id)
            return self.photos.add(_content(member.picture), member.picture.name, image_id)
        return self.photos.add(content, (name or "The photo")[:200])

    def _described(self, photo: Photo, member: Member | None) -> dict[str, Any]:
        width, height = photo.size
        return {
            "key": photo.key, "name": photo.name, "width": width, "height": height,
            "id": photo.image_id or as_id(photo.name), "place": None if member is None else member.place,
            "masked": member is not None and member.mask is not None,
            "tags": None if member is None or member.tags is None else [self.model.classes[k] for k in member.tags],
        }  # fmt: skip

    async def picture(self, request: web.Request) -> web.Response:
        """The photograph as a person sees it, in a form that every browser shows."""
        photo = self._photo(request)
        return web.Response(body=await asyncio.to_thread(encoded, photo.pixels, "JPEG"), content_type="image/jpeg")

    async def predict(self, request: web.Request) -> web.Response:
        """Predict, with the classes of every `?tag=` alone if there are any.

        The labels are the body; what the model says of the classes stands in a header.
        """
        photo = self._photo(request)
        allowed = sorted(self._index(name) for name in request.query.getall("tag", []))
        said = await self.worker.predict(photo, allowed or None, local.waits(request))
        summary = {
            "probabilities": [round(float(value), 4) for value in said.probabilities],
            "shares": [round(float(value), 6) for value in said.shares],
        }
        return _raw(said.labels, {"X-Summary": json.dumps(summary)})

    async def map(self, request: web.Request) -> web.Response:
        """Where a class is: its probability on a coarser grid, 255 being 1."""
        index = self._index(request.query.get("class", ""))
        found = await self.worker.map(self._photo(request), index, local.waits(request))
        return _raw(found, {})

    async def mask(self, request: web.Request) -> web.Response:
        """The mask that the data set has of a photograph."""
        photo = self._photo(request)
        if photo.image_id is None:
            raise Problem("This photo is not in the data set, and has no mask there.")
        data_set = self._data_set()
        labels = await asyncio.to_thread(lambda: data_set.labels(data_set.member(str(photo.image_id))))
        if labels.shape != photo.pixels.shape[:2]:
            raise Problem(
                f"The mask is {labels.shape[1]}x{labels.shape[0]}, the photo {photo.size[0]}x{photo.size[1]}."
            )
        return _raw(labels, {})

    async def save(self, request: web.Request) -> web.Response:
        """Save the labels in the body as the mask of a photograph (`?id=` names a new one, each `?tag=` is kept)."""
        photo, body = self._photo(request), await request.read()
        if self.saver is None:
            raise Problem("There is no data set to save into; start the page with --data DIR.")
        height, width = photo.pixels.shape[:2]
        if len(body) != height * width:
            raise Problem(f"Found {len(body)} labels; the photo has {width}x{height} pixels.")
        labels = np.frombuffer(body, np.uint8).reshape(height, width)
        tags = request.query.getall("tag", [])
        for name in tags:
            self._index(name)
        new = photo.image_id is None
        image_id = request.query.get("id", "") if photo.image_id is None else photo.image_id
        picture = (photo.content, photo.ending) if new else None
        saved = await asyncio.to_thread(self.saver.save, image_id, labels, tags, picture)
        if new:
            self.photos.rename(photo.key, image_id)
        member = await asyncio.to_thread(self._data_set().member, image_id)
        described = self._described(self.photos.get(photo.key), member)
        return web.json_response({
            "mask": str(saved.mask), "replaced": None if saved.replaced is None else str(saved.replaced),
            "listed": saved.listed, "tags": saved.tags, "photo": described,
        })  # fmt: skip

    def _photo(self, request: web.Request) -> Photo:
        return self.photos.get(request.match_info["key"])

    def _data_set(self) -> DataSet:
        if self.data_set is None:
            raise Problem("There is no data set here; start the page with --data DIR.")
        return self.data_set

    def _index(self, name: str) -> int:
        if name not in self.model.classes[1:]:
            raise Problem(f"The model knows no '{name[:80]}'; it knows {', '.join(self.model.classes[1:])}.")
        return self.model.classes.index(name)


async def _file(request: web.Request) -> web.Response:
    """A file of the page itself."""
    name, kind = FILES[request.path.rsplit("/", 1)[1]]
    content = resources.files("segcore.serving").joinpath("static", name).read_text("utf-8")
    return web.Response(text=content, content_type=kind, charset="utf-8")


def _raw(values: UInt8[np.ndarray, "_ _"], headers: dict[str, str]) -> web.Response:
    """A byte a pixel, row by row, with the size in headers: a picture would go through the browser's colours."""
    size = {"X-Width": str(values.shape[1]), "X-Height": str(values.shape[0])}
    body = np.ascontiguousarray(values).tobytes()
    return web.Response(body=body, content_type="application/octet-stream", headers=size | headers)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror}).") from error


def _same(content: bytes, data_set: DataSet) -> str | None:
    """The id of the picture of the data set whose file is this one: a second copy of it would be refused anyway."""
    for member in data_set.members.values():
        if member.picture.stat().st_size == len(content) and member.picture.read_bytes() == content:
            return member.image_id
    return None
