"""Pages with the JavaScript client: tabs of one browser, and a proxy that a test cuts."""

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.browser import Browser, Tab
from tests.support.client import request
from tests.support.web import WebServer, answer

SOURCES = Path(__file__).parents[2] / "clients" / "js"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER

_PAGE = """<!doctype html><meta charset="utf-8"><title>A page</title>
<script src="{base}/static/msgpush.js"></script>
<script>
const heard = [], told = [];
let client;
function listen(options, url = "{base}") {{
  client = new MsgPush(url, options);
  client.on("message", (message) => heard.push(message.data.text));
  for (const name of ["open", "close", "gap", "acknowledged", "error"])
    client.on(name, (each) => told.push([name, name === "error" ? String(each) : each]));
}}
const how = (name) => told.filter((each) => each[0] === name).map((each) => each[1]);
let returned = 0;
addEventListener("pageshow", (event) => {{ returned += event.persisted; }});
</script>"""


class ClientPage(WebServer):
    """A page, at an origin of its own, that has loaded the client from the service at `base`; at
    `/token` it gives the next of its tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.tokens: Iterator[str] = iter(())
        self.issued = 0

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        if exchange.path == "/token":
            self.issued += 1
            answer(exchange, next(self.tokens).encode())
        elif exchange.path == "/elsewhere":
            answer(
                exchange, b"<!doctype html><title>Elsewhere</title>", ("Content-Type", "text/html")
            )
        else:
            page = _PAGE.format(base=self.base).encode()
            answer(exchange, page, ("Content-Type", "text/html"))


class Tabs:
    """Tabs that show a page; they are closed at the end."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._targets: dict[Tab, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tab in list(self._targets):
            self.close(tab)

    def open(self, page: ClientPage, **options: Any) -> Tab:
        """A new tab that listens; at once, or with no options not at all."""
        before = self._ids()
        tab = self._browser.open(page.origin + "/")
        (self._targets[tab],) = self._ids() - before
        tab.becomes("document.readyState === 'complete' && typeof listen === 'function'")
        if options:
            tab.value(f"listen({json.dumps(options)})")
        return tab

    def close(self, tab: Tab) -> None:
        self._browser.ask("Target.closeTarget", {"targetId": self._targets.pop(tab)})

    def tell(self, tab: Tab, method: str, **params: Any) -> None:
        """A command of the DevTools protocol to a tab."""
        self._browser.ask(method, params, tab._session)

    def say(self, tab: Tab, method: str, **params: Any) -> None:
        """The same, to one that won't answer for a while: its answer is left aside."""
        command = {"id": 0, "method": method, "params": params, "sessionId": tab._session}
        os.write(self._browser._asking, json.dumps(command).encode() + b"\0")

    def _ids(self) -> set[str]:
        infos = self._browser.ask("Target.getTargets", {})["targetInfos"]
        return {each["targetId"] for each in infos if each["type"] == "page"}


class Cutter:
    """A port that leads to a service, until a test cuts what is open."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._doomed: set[socket.socket] = set()  # to be reset

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True, name="cutter").start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut(clean=True)

    def cut(self, *, clean: bool) -> None:
        """End all connections: with their end, or with a reset."""
        ended, self._open = self._open, []
        for client, server in ended:
            with contextlib.suppress(OSError):
                if not clean:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    self._doomed.add(client)
                    client.shutdown(socket.SHUT_RD)  # which tells nobody, but the thread that reads
                server.shutdown(socket.SHUT_RDWR)  # and the client with it

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open.append((client, server))
                for way in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                if each not in self._doomed:
                    each.shutdown(socket.SHUT_RDWR)
            each.close()


def publish(port: int, text: str, headers: dict[str, str] | None = None, **fields: Any) -> None:
    """Publish to alice, or wherever the fields say."""
    message = {"type": "info", "service": "tests", "data": {"text": text}}
    message |= fields or {"target": {"user_id": "alice"}}
    body = json.dumps(message).encode()
    sent = request(port, "POST", "/api/v1/messages/send", body, headers or {})
    assert sent.status == 202, sent.body


def connections(port: int) -> list[dict[str, Any]]:
    """The streams that are open now."""
    found: list[dict[str, Any]] = request(port, "GET", "/api/v1/connections").json()["connections"]
    return found


def build_tools(folder: Path, required: bool) -> Path:
    """A copy of the client's sources that can be built; skips the test where npm can't get what is
    needed, unless it is required.
    """
    copy = folder / "js"
    left = shutil.ignore_patterns("node_modules", "dist")
    shutil.copytree(SOURCES, copy, ignore=left)
    if (SOURCES / "node_modules").is_dir():
        (copy / "node_modules").symlink_to(SOURCES / "node_modules")
        return copy
    got = None
    if (npm := shutil.which("npm")) is not None:
        got = subprocess.run(
            [npm, "ci"], cwd=copy, capture_output=True, text=True, timeout=300, check=False
        )
    if got is None or got.returncode:
        assert not required, got.stderr if got else "npm is missing"
        pytest.skip("needs npm and a registry")
    return copy
