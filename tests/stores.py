"""Servers on this machine that give ranges of files, and go wrong as they are told."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = str | None
"""What to do to a request: `500`, `403`, `cut`, `hang`, `short`, `wrong`, `whole`; None: answer it."""


class Store:
    """The server: `fault(number, path)` says what goes wrong with which request, counted from 0."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fault: Callable[[int, str], Fault] = lambda number, path: None
        self.requests: list[tuple[str, str]] = []
        """Path and range of each GET."""
        self.address = ""
        self._lock = threading.Lock()

    def next(self, path: str, wanted: str) -> Fault:
        """What goes wrong with the request that comes now."""
        with self._lock:
            self.requests.append((path, wanted))
            return self.fault(len(self.requests) - 1, path)


class Answer:
    """What a server says to a request."""

    def __init__(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.status = status
        self.headers = headers
        self.content = content


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD by `answer`, and spoils what it says to GETs as its store decides."""

    protocol_version = "HTTP/1.1"
    store: Store

    def answer(self, fault: Fault) -> Answer:
        raise NotImplementedError

    def counts(self) -> bool:
        """Whether this GET is one of those that may go wrong."""
        return True

    def do_HEAD(self) -> None:
        self._say(self.answer(None), head=True)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        fault = self.store.next(path, self.headers.get("Range", "")) if self.counts() else None
        if fault == "hang":
            time.sleep(3)
        said = Answer(int(fault), {}, b"") if fault in ("500", "403") else self.answer(fault)
        if fault == "short":
            said.content = said.content[: len(said.content) // 2]
        if fault == "wrong":
            said.content = bytes(len(said.content))
        self._say(said, cut=fault == "cut")

    def _say(self, said: Answer, head: bool = False, cut: bool = False) -> None:
        self.send_response(said.status)
        for name, value in ({"Content-Length": str(len(said.content))} | said.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if head:
            return
        with suppress(BrokenPipeError):  # nobody waits for it any more
            self.wfile.write(said.content[: len(said.content) // 2] if cut else said.content)
        if cut:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(root: Path) -> Iterator[Store]:
    """The files of a folder behind a web server as long as the block lasts."""

    class Files(Handler):
        def answer(self, fault: Fault) -> Answer:
            file = self.store.root / self.path.lstrip("/")
            if not file.is_file():
                return Answer(404, {}, b"")
            content = file.read_bytes()
            headers = {"Accept-Ranges": "bytes"}
            wanted = self.headers.get("Range", "")
            if not wanted or fault == "whole":
                return Answer(200, headers, content)
            first, last = wanted.removeprefix("bytes=").split("-")
            some = content[int(first) : int(last) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(some) - 1}/{len(content)}"
            return Answer(206, headers, some)

    with _running(Files, Store(root)) as store:
        yield store


@contextmanager
def in_front_of(endpoint: str, root: Path) -> Iterator[Store]:
    """A server that hands requests on to another one; answers to GETs of ranges go wrong as they are told."""

    class Proxy(Handler):
        def counts(self) -> bool:
            return "Range" in self.headers

        def answer(self, fault: Fault) -> Answer:
            asked = urllib.request.Request(endpoint + self.path, headers=dict(self.headers), method=self.command)
            try:
                with urllib.request.urlopen(asked) as reply:
                    return _handed_on(reply.status, reply.headers, reply.read())
            except urllib.error.HTTPError as error:
                return _handed_on(error.code, error.headers, error.read())
            except urllib.error.URLError:  # it is gone: a test has ended while its request hung
                return Answer(502, {}, b"")

    with _running(Proxy, Store(root)) as store:
        yield store


def _handed_on(status: int, headers: Message, content: bytes) -> Answer:
    own = ("connection", "date", "server", "transfer-encoding")
    kept = {name: value for name, value in headers.items() if name.lower() not in own}
    if content:  # what is said to HEAD has the length of the file, and what is spoilt has its own
        kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
    return Answer(status, kept, content)


@contextmanager
def _running(handler: type[Handler], store: Store) -> Iterator[Store]:
    handler.store = store
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    store.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
