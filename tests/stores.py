"""A web server on this machine that gives ranges of files, and goes wrong as it is told."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def served(root: Path) -> Iterator[Store]:
    """The files of a folder behind a web server as long as the block lasts."""
    store = Store(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(head=True)

        def do_GET(self) -> None:
            self._answer(head=False)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, head: bool) -> None:
            file = store.root / self.path.lstrip("/")
            wanted = self.headers.get("Range", "")
            fault = None if head else store.next(self.path, wanted)
            if fault == "hang":
                time.sleep(3)
            if not file.is_file() or fault in ("500", "403"):
                self.send_response(int(fault or 404))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = file.read_bytes()
            whole = len(content)
            if wanted and fault != "whole":
                first, last = wanted.removeprefix("bytes=").split("-")
                content = content[int(first) : int(last) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{whole}")
            else:
                self.send_response(200)
            if fault == "short":
                content = content[: len(content) // 2]
            if fault == "wrong":
                content = bytes(len(content))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if head:
                return
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True
                return
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
