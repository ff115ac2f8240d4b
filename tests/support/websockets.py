"""WebSocket clients as users have them: two of Python, Node's and a browser's, asked in one way; and
what any of them does to lose nothing.
"""

import asyncio
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import urlencode

import aiohttp
import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.support.browser import CHROMIUM, Browser, Tab
from tests.support.client import PATIENCE
from tests.support.web import Page

SUBPROTOCOL = "msgpush.v1"
# Debian's packages of JavaScript are here, and so Debian's Node.js looks here by itself.
NODE_PATH = ":".join((os.environ.get("NODE_PATH", ""), "/usr/share/nodejs"))


class Closed(NamedTuple):
    """The end of a WebSocket, as a client sees it."""

    code: int
    reason: str = ""


class Client(Protocol):
    """A client that has one WebSocket at a time."""

    def open(self, url: str) -> str | None:
        """The subprotocol of a WebSocket that is open now; None: it wasn't opened."""

    def send(self, text: str) -> None:
        """Send a text; where the WebSocket has ended nothing happens, as in a browser."""

    def next(self) -> str | Closed:
        """What comes next, which must come in time."""

    def close(self) -> None:
        """Close it, and wait for its end."""


class Websockets:
    """PyPI's `websockets`, in its form for threads."""

    def __init__(self) -> None:
        self._socket: ClientConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, url: str) -> str | None:
        try:
            self._socket = connect(url, subprotocols=[Subprotocol(SUBPROTOCOL)]).__enter__()
        except (OSError, EOFError, WebSocketException):
            return None
        return self._socket.subprotocol or ""

    def send(self, text: str) -> None:
        assert self._socket is not None
        with suppress(ConnectionClosed):
            self._socket.send(text)

    def next(self) -> str | Closed:
        assert self._socket is not None
        try:
            text = self._socket.recv(PATIENCE)
        except ConnectionClosed as end:
            self._socket.close()
            return Closed(end.rcvd.code, end.rcvd.reason) if end.rcvd else Closed(1006)
        assert isinstance(text, str)
        return text

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


class Aiohttp:
    """PyPI's `aiohttp`, in a loop that runs while it is asked."""

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._session = self._runner.run(self._make())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.run(self._session.close())
        self._runner.close()

    def open(self, url: str) -> str | None:
        try:
            self._socket = self._runner.run(self._connect(url))
        except (OSError, aiohttp.ClientError):
            return None
        return self._socket.protocol or ""

    def send(self, text: str) -> None:
        assert self._socket is not None
        with suppress(OSError, aiohttp.ClientError):
            self._runner.run(self._socket.send_str(text))

    def next(self) -> str | Closed:
        assert self._socket is not None
        told = self._runner.run(self._socket.receive(PATIENCE))
        if told.type is aiohttp.WSMsgType.TEXT:
            text: str = told.data
            return text
        assert told.type is not aiohttp.WSMsgType.BINARY
        return Closed(self._socket.close_code or 1006, told.extra or "")

    def close(self) -> None:
        if self._socket is not None:
            self._runner.run(self._socket.close())

    async def _make(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def _connect(self, url: str) -> aiohttp.ClientWebSocketResponse:
        return await self._session.ws_connect(url, protocols=[SUBPROTOCOL])


# What a page and a program of Node.js do alike: tell everything that happens.
_ASKED = """
let socket;
function open(url) {
  socket = new WebSocket(url, "msgpush.v1");
  socket.onopen = () => tell({ opened: socket.protocol });
  socket.onmessage = ({ data }) => tell({ text: data });
  socket.onclose = ({ code, reason }) => tell({ closed: code, reason });
  socket.onerror = () => {};
}
"""
_IN_NODE = """
const { WebSocket } = require("ws");
const tell = (what) => process.stdout.write(JSON.stringify(what) + "\\n");
const does = { open, send: (text) => socket.send(text), close: () => socket.close() };
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const [name, given] = JSON.parse(line);
  does[name](given);
});
"""
_IN_PAGE = """
const all = [];
let wake = () => {};
function tell(what) {
  all.push(what);
  wake();
}
async function next() {
  if (!all.length) await new Promise((resolve) => (wake = resolve));
  return all.shift();
}
"""


class _JavaScript:
    """A client in another process, which tells what happens to its WebSocket."""

    _over = True

    def open(self, url: str) -> str | None:
        self._do("open", url)
        told = self._told()
        self._over = "opened" not in told
        subprotocol: str | None = told.get("opened")
        return subprotocol

    def send(self, text: str) -> None:
        self._do("send", text)

    def next(self) -> str | Closed:
        told = self._told()
        if "text" in told:
            text: str = told["text"]
            return text
        self._over = True
        return Closed(told["closed"], told["reason"])

    def close(self) -> None:
        if not self._over:
            self._do("close")
            while not isinstance(self.next(), Closed):
                pass

    def _do(self, name: str, given: str = "") -> None:
        raise NotImplementedError

    def _told(self) -> dict[str, Any]:
        raise NotImplementedError


class Node(_JavaScript):
    """npm's `ws`."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            ["node", "-e", _ASKED + _IN_NODE],
            env={**os.environ, "NODE_PATH": NODE_PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _do(self, name: str, given: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, given]) + "\n")
        self._process.stdin.flush()

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._lines.get(timeout=PATIENCE))
        return told

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)


class Chromium(_JavaScript):
    """The `WebSocket` of a browser, in a page that this machine serves."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._tab: Tab

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            page = stack.enter_context(Page())
            page.script = _ASKED + _IN_PAGE
            browser = stack.enter_context(Browser(self._profile))
            self._tab = browser.open(page.origin)
            self._tab.becomes("typeof next === 'function'")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _do(self, name: str, given: str = "") -> None:
        call = {"open": "open", "send": "socket.send", "close": "socket.close"}[name]
        self._tab.value(f"{call}({json.dumps(given) if given else ''})")

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = self._tab.value("next()")
        return told


CLIENTS: dict[str, Callable[[Path], AbstractContextManager[Client]]] = {
    "websockets": lambda _: Websockets(),
    "aiohttp": lambda _: Aiohttp(),
    "ws": lambda _: Node(),
    "chromium": Chromium,
}


def needed(name: str) -> None:
    """Skip what this machine lacks; CI has everything."""
    lacks = (name == "chromium" and CHROMIUM is None) or (name == "ws" and not has_ws())
    if lacks and "CI" not in os.environ:
        pytest.skip(f"needs {name}")


def has_ws() -> bool:
    """Whether there is Node.js, with `ws`."""
    if shutil.which("node") is None:
        return False
    given = {**os.environ, "NODE_PATH": NODE_PATH}
    found = subprocess.run(
        ["node", "-e", 'require("ws")'], env=given, stderr=subprocess.DEVNULL, check=False
    )
    return found.returncode == 0


class Listener:
    """Listens with any client as docs/websocket.md says, and loses nothing: whenever it is cut it
    comes back, with its cursor and the channels that it has by then.

    Args:
        places: where each next WebSocket is opened.

    Attributes:
        messages: what has come, in its order.
    """

    def __init__(self, client: Client, places: Iterator[int], *channels: str) -> None:
        self._client, self._places = client, places
        self.channels = [*channels]
        self.messages: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.connections = 0
        self._last = ""
        self._answer: dict[str, Any] | None = None
        self._connect()

    def ask(self, command: dict[str, Any]) -> Any:
        """The answer to a command, which is said again where that is lost."""
        ref = f"r{len(self.messages)}"
        self._answer = None
        connections = 0
        while self._answer is None or self._answer["ref"] != ref:
            if connections != self.connections:
                connections = self.connections
                self._client.send(json.dumps(command | {"ref": ref}))
            self.read()
        return self._answer["ok"]

    def read(self) -> None:
        """Take what comes next; come back where that is the end."""
        told = self._client.next()
        if isinstance(told, Closed):
            assert told.code in (1001, 1006), told
            self._connect()
            return
        frame = json.loads(told)
        self._last = frame.get("id", self._last)
        if "event" not in frame:
            self._answer = frame
        elif frame["event"] == "message":
            self.messages.append(frame["data"])
        else:
            self.events.append(frame["event"])

    def _connect(self) -> None:
        while True:
            self.connections += 1
            query = [("channel", each) for each in self.channels]
            query += [("last_event_id", self._last)] if self._last else []
            url = f"ws://127.0.0.1:{next(self._places)}/ws?{urlencode(query)}"
            if self._client.open(url) is not None:
                return
