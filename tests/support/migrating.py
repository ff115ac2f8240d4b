"""docs/migrating.md in parts, and servers for what it says of other projects."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from tests.support.service import eventually
from tests.support.web import WebServer, answer

TEXT = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
ONCE, END = "Once, for all of them", "What isn't here"
COLLECT = "const got = []; const render = (data) => got.push(data);"


class Side(NamedTuple):
    """The code on one side of a move: the back end's and the page's."""

    python: str
    page: str


class Move(NamedTuple):
    """A section: what there was, and what takes its place."""

    before: Side
    after: Side


def _parts() -> dict[str, str]:
    """The text under each heading."""
    _, *parts = re.split(r"^## (.*)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _blocks(text: str) -> list[tuple[str, str]]:
    """The blocks of code, each with its language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _move(text: str) -> Move:
    found = _blocks(text)
    assert [language for language, _ in found] == ["python", "js"] * 2
    for (_, block), side in zip(found, ("before", "before", "after", "after"), strict=True):
        assert re.search(rf"(#|//) {side}$", block.splitlines()[0]), block
    old, old_page, new, new_page = (block for _, block in found)
    return Move(Side(old, old_page), Side(new, new_page))


_PARTS = _parts()
CONSOLE, PUBLISHER, HELPER = (
    dict(_blocks(_PARTS[ONCE]))[language] for language in ("console", "python", "js")
)
MOVES = {
    heading.removeprefix("From "): _move(text)
    for heading, text in _PARTS.items()
    if heading not in (ONCE, END)
}


def page(script: str) -> str:
    return f'<!doctype html><link rel="icon" href="data:,"><script>{COLLECT}\n{script}</script>'


class App(WebServer):
    """An application's own site: it knows its user, who gets a cookie and a page."""

    def __init__(self) -> None:
        super().__init__()
        self.script = self.cookie = ""

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        cookie = f"msgpush_token={self.cookie}; Path=/; HttpOnly; SameSite=Lax"
        kind = ("Content-Type", "text/html")
        answer(exchange, page(self.script).encode(), kind, ("Set-Cookie", cookie))


class Recorder(WebServer):
    """A server that keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[tuple[str, bytes]] = []

    @property
    def port(self) -> int:
        return int(self.origin.rpartition(":")[2])

    def post(self, exchange: BaseHTTPRequestHandler) -> None:
        body = exchange.rfile.read(int(exchange.headers["Content-Length"]))
        self.posted.append((exchange.path.partition("?")[0], body))
        answer(exchange, b"{}", ("Content-Type", "application/json"))


@contextmanager
def threaded(run: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Something that runs in a thread until it is told to end."""
    thread = threading.Thread(target=run, name="application")
    thread.start()
    try:
        yield
    finally:
        end()
        thread.join()


@contextmanager
def asgi(app: Any) -> Iterator[str]:
    """The origin of a server that runs an application of another framework."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))

    def end() -> None:
        server.should_exit = server.force_exit = True

    with threaded(server.run, end):
        eventually(lambda: server.started)
        (listener,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
