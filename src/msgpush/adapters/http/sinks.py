"""Sinks over ASGI, for whatever carries a stream: straight to a transport, or by `send`."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from starlette.types import Message, Scope, Send

SEND_AHEAD = 64 * 1024


class Wire(Protocol):
    """The server's ASGI extension `msgpush.wire`: framed bytes go straight to the transport."""

    @property
    def backlog(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    def write(self, framed: bytes) -> bool: ...
    def finish(self, framed: bytes) -> None: ...
    def abort(self) -> None: ...
    async def drained(self) -> None: ...


def has_wire(scope: Scope) -> bool:
    """True if the server offers the extension for this request."""
    return "msgpush.wire" in scope.get("extensions", {})


class WireSink:
    """A sink over the wire extension: no task, no copy and no switch for what it is offered."""

    __slots__ = ("_wire", "offer")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.offer = wire.write

    @property
    def writable(self) -> bool:
        return self._wire.writable

    @property
    def backlog(self) -> int:
        return self._wire.backlog

    def finish(self, chunk: bytes) -> None:
        self._wire.finish(chunk)

    def abort(self) -> None:
        self._wire.abort()

    async def drained(self) -> bool:
        await self._wire.drained()
        return self._wire.writable


class SendSink:
    """A sink over plain ASGI, for servers without the extension: a task writes what it is offered.

    It takes chunks until 64 KiB wait for the server to take them. Subclasses say how they are sent.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._chunks: list[bytes] = []
        self._changed = asyncio.Event()
        self._written = asyncio.Event()
        self._ended = self._gone = False
        self.backlog = 0
        self.writer: asyncio.Task[None] | None = None

    def messages(self, body: bytes) -> Iterable[tuple[int, Message]]:
        """ASGI's messages for some bytes, and how many of them each accounts for."""
        raise NotImplementedError

    def last(self) -> Message:
        """ASGI's message that ends the stream."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """True once the last bytes were given."""
        return self._ended

    @property
    def writable(self) -> bool:
        return self.backlog < SEND_AHEAD and not self._ended and not self._gone

    def offer(self, chunk: bytes) -> bool:
        if not self.writable:
            return False
        self._put(chunk)
        return True

    def finish(self, chunk: bytes) -> None:
        self._ended = True
        self._put(chunk)

    def abort(self) -> None:
        self._gone = True
        self._written.set()
        if self.writer is not None:
            self.writer.cancel()

    async def drained(self) -> bool:
        while not self.writable and not self._gone and not self._ended:
            self._written.clear()
            await self._written.wait()
        return self.writable

    async def write(self) -> None:
        """Pass on what is offered, until the end or the client's."""
        while not self._gone:
            self._changed.clear()
            if self._chunks:
                body, self._chunks = b"".join(self._chunks), []
                for size, message in self.messages(body):
                    await self._send(message)
                    self.backlog -= size
                    self._written.set()
            elif self._ended:
                await self._send(self.last())
                return
            else:
                await self._changed.wait()

    def _put(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.backlog += len(chunk)
        self._changed.set()
