"""An ASGI server in the test's own process: requests without sockets, streams that a test reads and
cuts.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from starlette.types import ASGIApp, Message, Scope

WAIT = 5.0


class Answer:
    """A whole response."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class FakeWire:
    """The server's wire extension, with a socket that a test can fill."""

    def __init__(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        self._drained = asyncio.Event()
        self.full = False
        self.backlog = 0

    @property
    def writable(self) -> bool:
        return not self.full and not self._exchange.ended.is_set()

    def open(self) -> None:
        pass

    def write(self, framed: bytes) -> bool:
        if not self.writable:
            return False
        self._exchange.take(unframed(framed))
        return True

    def finish(self, framed: bytes) -> None:
        self._exchange.take(unframed(framed))
        self._exchange.end()

    def abort(self) -> None:
        self._exchange.cut = True
        self._exchange.end()

    async def drained(self) -> None:
        while self.full and not self._exchange.ended.is_set():
            self._drained.clear()
            await self._drained.wait()

    def drain(self) -> None:
        self.full = False
        self._drained.set()


def unframed(chunk: bytes) -> bytes:
    """The body of one HTTP/1.1 chunk, whose framing must be right."""
    size, _, rest = chunk.partition(b"\r\n")
    body = rest[: int(size, 16)]
    assert rest[len(body) :] == b"\r\n"
    return body


class Exchange:
    """One request and what comes of it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.cut = False
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.changed = asyncio.Event()
        self.full = False
        self.room = asyncio.Event()
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.wire = FakeWire(self)
        self.task: asyncio.Task[None] | None = None

    def take(self, body: bytes) -> None:
        self.body += body
        self.changed.set()

    def end(self) -> None:
        self.ended.set()
        self.changed.set()
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        return await self.incoming.get()

    async def send(self, message: Message) -> None:
        while self.full and not self.ended.is_set():
            self.room.clear()
            await self.room.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                key.decode(): value.decode("latin-1") for key, value in message["headers"]
            }
            self.started.set()
        else:
            self.take(message.get("body", b""))
            if not message.get("more_body", False):
                self.end()

    async def read_until(self, text: bytes) -> bytes:
        """All that has come, once it holds `text`."""
        async with asyncio.timeout(WAIT):
            while text not in self.body:
                assert not self.ended.is_set(), self.body
                self.changed.clear()
                await self.changed.wait()
        return self.body

    async def closed(self) -> bytes:
        """All that has come, once the response has ended and the application has returned."""
        async with asyncio.timeout(WAIT):
            await self.ended.wait()
            if self.task is not None:
                await self.task
        return self.body

    async def disconnect(self) -> None:
        """The client goes; returns when the application has noticed."""
        self.incoming.put_nowait({"type": "http.disconnect"})
        if self.task is not None:
            async with asyncio.timeout(WAIT):
                await self.task


class AsgiDriver:
    """A client of an application, without a server between them.

    Args:
        wire: whether the server offers its wire extension.
    """

    def __init__(self, app: ASGIApp, *, wire: bool = False) -> None:
        self.app, self.wire = app, wire

    async def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to a request that ends by itself."""
        exchange = Exchange()
        exchange.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        await self.app(
            self.scope(method, target, headers, exchange), exchange.receive, exchange.send
        )
        return Answer(exchange.status, exchange.headers, exchange.body)

    async def send(
        self, body: bytes, path: str = "/api/v1/messages/send", **headers: str
    ) -> Answer:
        return await self.request(
            "POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()}
        )

    @asynccontextmanager
    async def stream(
        self, target: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Exchange]:
        """An open stream; the client goes at the end of the block."""
        exchange = Exchange()
        exchange.incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        scope = self.scope("GET", target, headers, exchange)
        exchange.task = asyncio.ensure_future(self._run(scope, exchange))
        async with asyncio.timeout(WAIT):
            await exchange.started.wait()
        try:
            yield exchange
        finally:
            await exchange.disconnect()

    async def _run(self, scope: Scope, exchange: Exchange) -> None:
        await self.app(scope, exchange.receive, exchange.send)

    def scope(
        self, method: str, target: str, headers: Mapping[str, str] | None, exchange: Exchange
    ) -> Scope:
        path, _, query = target.partition("?")
        raw = quote(path, safe="/%:,;=@&+$!*'()~").encode()
        given = {"host": "localhost", **(headers or {})}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": raw,
            "query_string": quote(query, safe="=&%+,*~.:").encode(),
            "root_path": "",
            "headers": [
                (key.lower().encode(), value.encode("latin-1")) for key, value in given.items()
            ],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8089),
            "state": {},
            **(
                {"extensions": {"msgpush.wire": exchange.wire}}
                if self.wire and method == "GET"
                else {}
            ),
        }
