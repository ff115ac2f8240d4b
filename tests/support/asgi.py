"""An ASGI server in the test's own process: requests without sockets, streams that a test reads and
cuts.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from starlette.types import ASGIApp, Message, Scope
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side

WAIT = 5.0

# A number that no float can hold is one all the same.
_decode = msgspec.json.Decoder(float_hook=float).decode


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
            # The one header that comes several times: each in a line.
            cookies = [value for key, value in message["headers"] if key == b"set-cookie"]
            if cookies:
                self.headers["set-cookie"] = b"\n".join(cookies).decode("latin-1")
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


class SocketWire:
    """The server's wire extension for a WebSocket, with a socket that a test can fill.

    What is written is read as a client reads it: whole frames, and one of closing at the end."""

    def __init__(self, socket: "Socket") -> None:
        self._socket = socket
        self._drained = asyncio.Event()
        self._reader = Protocol(Side.CLIENT, max_size=None)
        self.written = b""  # what was written last
        self.full = False
        self.backlog = 0

    @property
    def writable(self) -> bool:
        return not self.full and not self._socket.ended.is_set()

    def write(self, framed: bytes) -> bool:
        if not self.writable:
            return False
        assert self._socket.accepted, "nothing is written before the handshake's answer"
        self._read(framed)
        return True

    def finish(self, framed: bytes) -> None:
        if self._socket.ended.is_set():
            return
        self._read(framed)
        close = self._reader.close_rcvd
        assert close is not None, "the last bytes end with a close frame"
        self._socket.end(close.code, close.reason)

    def abort(self) -> None:
        if not self._socket.ended.is_set():
            self._socket.end(CloseCode.ABNORMAL_CLOSURE)

    async def drained(self) -> None:
        while self.full and not self._socket.ended.is_set():
            self._drained.clear()
            await self._drained.wait()

    def drain(self) -> None:
        self.full = False
        self._drained.set()

    def _read(self, framed: bytes) -> None:
        assert self._reader.close_rcvd is None, "nothing is written after a close frame"
        self.written = framed
        self._reader.receive_data(framed)
        if self._reader.parser_exc is not None:
            raise self._reader.parser_exc
        assert not self._reader.reader.buffer, "frames are written whole"
        for frame in self._reader.events_received():
            assert isinstance(frame, Frame)
            assert frame.fin, "a message is one frame"
            if frame.opcode is Opcode.TEXT:
                self._socket.take(bytes(frame.data).decode())
            else:
                assert frame.opcode is Opcode.CLOSE


class Socket:
    """A WebSocket, as its client has it: what came, and what it says.

    Attributes:
        denial: the answer instead of a WebSocket, if the server has given one.
        code: of the close frame; 1006 where it was cut without one.
        went: True once the client itself has gone.
    """

    def __init__(self) -> None:
        self.accepted = False
        self.subprotocol: str | None = None
        self.denial: Answer | None = None
        self.texts: list[str] = []
        self.code: int | None = None
        self.reason = ""
        self.went = False
        self.full = False
        self.answered = asyncio.Event()
        self.ended = asyncio.Event()
        self.changed = asyncio.Event()
        self.room = asyncio.Event()
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.taken = 0  # what the application has taken of it
        self.wire = SocketWire(self)
        self.task: asyncio.Task[None] | None = None
        self._frames: list[dict[str, Any]] = []
        self._refs = itertools.count(1)

    # What came

    @property
    def frames(self) -> Sequence[dict[str, Any]]:
        """All that came, decoded."""
        self._frames += map(_decode, self.texts[len(self._frames) :])
        return self._frames

    def events(self, name: str) -> list[dict[str, Any]]:
        """Frames of one event that came so far."""
        return [each for each in self.frames if each.get("event") == name]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that came so far."""
        return [each["data"] for each in self.events("message")]

    @property
    def ids(self) -> list[str]:
        """The ids of the messages that came so far."""
        return [each["id"] for each in self.messages]

    @property
    def opening(self) -> dict[str, Any]:
        """The first frame."""
        assert self.frames[0]["event"] == "msgpush.open", self.frames[0]
        return self.frames[0]

    @property
    def closing(self) -> dict[str, Any]:
        """The data of the last frame, which says why it ended."""
        assert self.frames[-1]["event"] == "msgpush.close", self.frames[-1]
        data: dict[str, Any] = self.frames[-1]["data"]
        return data

    @property
    def cursor(self) -> str:
        """The newest cursor that came, which a client resumes with."""
        return next(str(each["id"]) for each in reversed(self.frames) if "id" in each)

    async def first(self) -> dict[str, Any]:
        """The first frame, once it has come."""
        while not self.frames:
            await self._more("a frame")
        return self.frames[0]

    async def event(self, name: str, number: int = 1) -> dict[str, Any]:
        """The n-th frame of an event, once it has come."""
        while len(found := self.events(name)) < number:
            await self._more(f"{number} of {name}")
        return found[number - 1]

    async def message(self, id: str) -> dict[str, Any]:
        """The frame of a message, once it has come."""
        while True:
            for each in self.events("message"):
                if each["data"]["id"] == id:
                    return each
            await self._more(id)

    async def answer(self, ref: object) -> dict[str, Any]:
        """The frame that answers a command."""
        while True:
            for each in self.frames:
                if "event" not in each and each.get("ref") == ref:
                    return each
            await self._more(f"an answer to {ref}")

    async def answers(self, number: int) -> list[dict[str, Any]]:
        """All answers, once there are so many."""
        while len(found := [each for each in self.frames if "event" not in each]) < number:
            await self._more(f"{number} answers")
        return found

    async def closed(self) -> int:
        """The code that it was closed with, once the application has returned."""
        async with asyncio.timeout(WAIT):
            await self.ended.wait()
            if self.task is not None:
                await self.task
        assert self.code is not None
        return self.code

    async def _more(self, wanted: str) -> None:
        assert not self.ended.is_set(), f"{wanted} never came: {self.texts}"
        self.changed.clear()
        try:
            async with asyncio.timeout(WAIT):
                await self.changed.wait()
        except TimeoutError:
            raise AssertionError(f"{wanted} hasn't come: {self.texts}") from None

    # What its client says

    def say(self, said: object) -> None:
        """Say something: a text as it is, bytes as a binary frame, anything else as JSON."""
        message: Message = {"type": "websocket.receive"}
        if isinstance(said, bytes):
            message["bytes"] = said
        else:
            message["text"] = said if isinstance(said, str) else msgspec.json.encode(said).decode()
        self.incoming.put_nowait(message)

    async def ask(self, **command: object) -> dict[str, Any]:
        """Give a command; returns its answer."""
        ref = f"ask-{next(self._refs)}"
        self.say({"ref": ref, **command})
        return await self.answer(ref)

    async def do(self, **command: object) -> Any:
        """Give a command that is obeyed; returns its `ok`."""
        answer = await self.ask(**command)
        assert "ok" in answer, answer
        return answer["ok"]

    async def fail(self, **command: object) -> dict[str, Any]:
        """Give a command that is refused; returns the problem."""
        answer = await self.ask(**command)
        assert "error" in answer, answer
        problem: dict[str, Any] = answer["error"]
        return problem

    def go(self) -> None:
        """The client goes."""
        self.went = True
        self.end(CloseCode.NO_STATUS_RCVD)

    async def disconnect(self) -> None:
        """The client goes; returns when the application has noticed."""
        if not self.ended.is_set():
            self.go()
        if self.task is not None:
            async with asyncio.timeout(WAIT):
                await self.task

    def fill(self) -> None:
        """The socket takes nothing any more."""
        self.full = self.wire.full = True

    def drain(self) -> None:
        """The client reads again, all that there is."""
        self.full = False
        self.room.set()
        self.wire.drain()

    # For the application

    def take(self, text: str) -> None:
        self.texts.append(text)
        self.changed.set()

    def end(self, code: int, reason: str = "") -> None:
        self.code, self.reason = code, reason
        self.answered.set()
        self.ended.set()
        self.changed.set()
        self.drain()
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": code})

    async def receive(self) -> Message:
        message = await self.incoming.get()
        self.taken += 1
        return message

    async def send(self, message: Message) -> None:
        while self.full and not self.ended.is_set():
            self.room.clear()
            await self.room.wait()
        if self.ended.is_set():
            return  # as servers do: whoever sends finds out when it receives
        match message["type"]:
            case "websocket.accept":
                assert not self.accepted
                self.accepted, self.subprotocol = True, message.get("subprotocol")
                self.answered.set()
            case "websocket.send":
                assert self.accepted
                self.take(message["text"])
            case "websocket.close":
                # Before it was accepted the server makes it a 403.
                self.denial = None if self.accepted else Answer(403, {}, b"")
                self.end(message.get("code", CloseCode.NORMAL_CLOSURE), message.get("reason") or "")
            case "websocket.http.response.start":
                assert not self.accepted
                headers = {
                    key.decode(): value.decode("latin-1") for key, value in message["headers"]
                }
                self.denial = Answer(message["status"], headers, b"")
            case "websocket.http.response.body":
                assert self.denial is not None
                self.denial.body += message.get("body", b"")
                if not message.get("more_body", False):
                    self.end(CloseCode.ABNORMAL_CLOSURE)
            case other:
                raise AssertionError(other)


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

    @asynccontextmanager
    async def socket(
        self,
        target: str = "/ws",
        headers: Mapping[str, str] | None = None,
        *,
        subprotocols: Sequence[str] = (),
        **scope: Any,
    ) -> AsyncIterator[Socket]:
        """A WebSocket, once its handshake is answered; the client goes at the end of the block.

        Args:
            scope: what is otherwise in the scope.
        """
        socket = self.begin(target, headers, subprotocols=subprotocols, **scope)
        try:
            async with asyncio.timeout(WAIT):
                await socket.answered.wait()
            yield socket
        finally:
            await socket.disconnect()

    def begin(
        self,
        target: str = "/ws",
        headers: Mapping[str, str] | None = None,
        *,
        subprotocols: Sequence[str] = (),
        **scope: Any,
    ) -> Socket:
        """A WebSocket whose handshake has just been sent."""
        socket = Socket()
        socket.incoming.put_nowait({"type": "websocket.connect"})
        given: Scope = {
            **self._scope(target, headers),
            "type": "websocket",
            "scheme": "ws",
            "subprotocols": list(subprotocols),
            "extensions": {"websocket.http.response": {}},
            **scope,
        }
        if self.wire:
            given["extensions"] = {**given["extensions"], "msgpush.wire": socket.wire}
        socket.task = asyncio.ensure_future(self._run(given, socket))
        return socket

    async def _run(self, scope: Scope, exchange: Exchange | Socket) -> None:
        try:
            await self.app(scope, exchange.receive, exchange.send)
        finally:
            if isinstance(exchange, Socket) and not exchange.ended.is_set():
                # As servers do where an application returns, or fails, without having closed it.
                exchange.end(CloseCode.INTERNAL_ERROR)

    def scope(
        self, method: str, target: str, headers: Mapping[str, str] | None, exchange: Exchange
    ) -> Scope:
        extensions = {"extensions": {"msgpush.wire": exchange.wire}}
        return {
            **self._scope(target, headers),
            "type": "http",
            "method": method,
            "scheme": "http",
            **(extensions if self.wire and method == "GET" else {}),
        }

    def _scope(self, target: str, headers: Mapping[str, str] | None) -> Scope:
        """What a scope of either type has."""
        path, _, query = target.partition("?")
        raw = quote(path, safe="/%:,;=@&+$!*'()~").encode()
        given = {"host": "localhost", **(headers or {})}
        return {
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
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
        }
