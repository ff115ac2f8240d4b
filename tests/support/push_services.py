"""Push services of the tests' own: HTTP/1.1 and HTTP/2 over TLS, which answer as they are told."""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple, Self

import h2.config
import h2.connection
import h2.errors
import h2.events

from tests.support.certificates import Authority


class Asked(NamedTuple):
    """A request, as it came."""

    http: Literal["1.1", "2"]
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Says(NamedTuple):
    """An answer. `after`: seconds until it; `byte`: seconds for each byte of its body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}
    after: float = 0.0
    byte: float = 0.0


Behaviour = Says | Literal["nothing", "close", "half", "endless"]

TAKEN = Says(201)


class PushService:
    """A service at https://localhost, or whatever its certificate says. An async context manager.

    Attributes:
        script: what it does next, one for each request; after that, what `usual` says.
        asked: the requests that came; `most`, how many of them waited for an answer at once.
        opened: connections that were made.
        closes: whether each connection ends with its first answer, without a word.
    """

    def __init__(
        self, authority: Authority, *, http2: bool = True, tls: ssl.SSLContext | None = None
    ) -> None:
        self._tls = tls or authority.issue("localhost", "127.0.0.1")
        self._tls.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
        self.script: deque[Behaviour] = deque()
        self.usual: Callable[[Asked], Behaviour] = lambda _: TAKEN
        self.asked: list[Asked] = []
        self.opened = 0
        self.waiting = self.most = 0
        self.closes = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.origin = f"https://localhost:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        # What was aborted is told so, and who was still shaking hands learns that nobody is there.
        await asyncio.sleep(0.05)

    def drop(self) -> None:
        """End all connections at once."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.opened += 1
        self._writers.add(writer)
        try:
            chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                if chosen == "h2":
                    await _Http2(self, reader, writer).serve()
                else:
                    await self._http1(reader, writer)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def take(self, asked: Asked) -> Behaviour:
        """What is done about a request."""
        self.asked.append(asked)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        behaviour = self.script.popleft() if self.script else self.usual(asked)
        if isinstance(behaviour, Says) and behaviour.after:
            await asyncio.sleep(behaviour.after)
        return behaviour

    async def _http1(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            behaviour = await self.take(Asked("1.1", method, path, headers, body))
            try:
                if not await self._say1(reader, writer, behaviour):
                    return
            finally:
                self.waiting -= 1

    async def _say1(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behaviour: Behaviour
    ) -> bool:
        match behaviour:
            case "nothing":
                await reader.read()
                return False
            case "close":
                return False
            case "half":
                writer.write(b"HTTP/1.1 201 Cre")
                await writer.drain()
                return False
            case "endless":
                writer.write(b"HTTP/1.1 400 No\r\nContent-Length: 1000000000\r\n\r\n")
                while True:
                    writer.write(b"x" * 4096)
                    await writer.drain()
        status, body, more, _, byte = behaviour
        lines = [f"HTTP/1.1 {status} So", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in more.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for part in (body,) if not byte else [bytes([each]) for each in body]:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(byte)
        return not self.closes


class _Http2:
    """One connection that speaks HTTP/2."""

    def __init__(
        self, service: PushService, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._service, self._reader, self._writer = service, reader, writer
        configuration = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(configuration)
        self._begun: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        self._h2.initiate_connection()
        self._flush()
        try:
            while data := await self._reader.read(65_536):
                for event in self._h2.receive_data(data):
                    self._handle(event)
                self._flush()
                await self._writer.drain()
        finally:
            for task in self._answering.values():
                task.cancel()
            await asyncio.gather(*self._answering.values(), return_exceptions=True)

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                pairs = ((_text(name), _text(value)) for name, value in event.headers)
                self._begun[event.stream_id] = (dict(pairs), bytearray())
            case h2.events.DataReceived():
                self._begun[event.stream_id][1].extend(event.data)
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                headers, body = self._begun.pop(event.stream_id)
                method, path = headers.pop(":method"), headers.pop(":path")
                asked = Asked("2", method, path, headers, bytes(body))
                task = asyncio.create_task(self._answer(event.stream_id, asked))
                self._answering[event.stream_id] = task
            case h2.events.StreamReset():
                if (reset := self._answering.pop(event.stream_id, None)) is not None:
                    reset.cancel()

    async def _answer(self, stream: int, asked: Asked) -> None:
        try:
            await self._say(stream, await self._service.take(asked))
            self._flush()
        except ConnectionError:
            pass
        finally:
            self._service.waiting -= 1

    async def _say(self, stream: int, behaviour: Behaviour) -> None:
        match behaviour:
            case "nothing":
                await asyncio.Event().wait()
            case "close":
                self._writer.transport.abort()
                return
            case "half":
                self._h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
                return
            case "endless":
                self._h2.send_headers(stream, [(":status", "400")])
                while True:
                    if self._h2.local_flow_control_window(stream) > 4096:
                        self._h2.send_data(stream, b"x" * 4096)
                        self._flush()
                    await asyncio.sleep(0)
        assert isinstance(behaviour, Says)
        status, body, more, _, byte = behaviour
        named = [(name.lower(), value) for name, value in more.items()]
        self._h2.send_headers(stream, [(":status", str(status)), *named], end_stream=not body)
        self._flush()
        for number, part in enumerate([body] if body and not byte else [bytes([b]) for b in body]):
            last = not byte or number == len(body) - 1
            self._h2.send_data(stream, part, end_stream=last)
            self._flush()
            await asyncio.sleep(byte)
        if self._service.closes:
            await self._writer.drain()
            self._writer.close()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
