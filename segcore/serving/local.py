"""A server for this machine alone, and for nobody who may be on it beside the person at the page.

Other web sites that a person looks at meanwhile could ask a server on this machine, too. So the name by which it is
asked must be this machine's (a site may let its own name lead here: DNS rebinding), and requests that other sites start
are refused. All addresses begin with a secret besides, which keeps out other people on the machine.
"""

import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from segcore.errors import Problem
from segcore.serving.photos import MOST_BYTES
from segcore.serving.worker import Gone

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
OWN_SITE = ("same-origin", "none")
"""What a browser says of requests that the page itself, or a person, starts."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

MISTAKE, FORBIDDEN, TOO_LARGE, CLOSED = 422, 403, 413, 499

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def listen(port: int) -> socket.socket:
    """A socket that this machine alone reaches; port 0 stands for any that is free.

    Raises:
        Problem: the port is taken, or not allowed.
    """
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, port))
        made.listen()  # at once: until then another program may take the port, too
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        raise Problem(f"--port {port} cannot be used ({reason}); name another one, or 0 for any") from error
    return made


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what did not come from the page, and say to the browser what the page may do."""
    refused = _foreign(request)
    response = _problem(refused, FORBIDDEN) if refused is not None else await handler(request)
    response.headers.update(HEADERS)
    return response


def _foreign(request: web.Request) -> str | None:
    """Why a request is refused; None for one that is not."""
    if urlsplit(f"//{request.host}").hostname not in NAMES:
        return f"This server answers to {' and '.join(NAMES)} alone."
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{request.host}":
        return "Requests of other sites are refused."
    # A link from elsewhere leads a browser to the page; what else another site starts is none of its business.
    site, leads_here = request.headers.get("Sec-Fetch-Site"), request.headers.get("Sec-Fetch-Mode") == "navigate"
    if site is not None and site not in OWN_SITE and not (leads_here and request.method == "GET"):
        return "Requests of other sites are refused."
    return None


@web.middleware
async def told(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Mistakes as a sentence that the page shows."""
    try:
        return await handler(request)
    except Problem as problem:
        return _problem(str(problem), MISTAKE)
    except web.HTTPRequestEntityTooLarge:
        return _problem(f"The file has more than {MOST_BYTES / 2**20:.0f} MiB; make it smaller.", TOO_LARGE)
    except Gone:
        return _problem("Nobody waits for this any more.", CLOSED)


def _problem(sentence: str, status: int) -> web.Response:
    return web.json_response({"problem": sentence}, status=status)


def waits(request: web.Request) -> Callable[[], bool]:
    """Whether the browser that asked is still there; a page that went on to another photo is not."""
    return lambda: request.transport is not None and not request.transport.is_closing()
