"""Server-Sent Events (WHATWG HTML, section 9.2): the blocks of a stream, and their sinks."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from msgpush.adapters.http.sinks import SendSink, Wire, WireSink
from msgpush.adapters.http.subscribing import ADVICE, Admitted, come_in
from msgpush.domain.connection import Connection
from msgpush.domain.errors import BusUnavailable, Overloaded, Refusal, Unauthorized
from msgpush.domain.history import Gap
from msgpush.domain.message import Entry, data_of
from msgpush.domain.ports import Sink
from msgpush.domain.service import Push

CONTENT_TYPE = b"text/event-stream; charset=utf-8"
HEADERS = [
    (b"content-type", CONTENT_TYPE),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
]
PIECE = 16 * 1024  # what is passed on at once: each shows that a slow client still reads

_encode = msgspec.json.encode


class EventView(Struct, frozen=True):
    """A client that reads Server-Sent Events.

    Args:
        events: types that come as an event of that name, with the message's data alone.
        chunked: whether chunks are framed for the wire already (HTTP/1.1 chunked, RFC 9112 section
            7.1)."""

    events: frozenset[str]
    chunked: bool = False

    def opening(
        self,
        connection: str,
        channels: frozenset[str],
        cursor: str,
        *,
        resumed: bool,
        heartbeat: float,
    ) -> bytes:
        interval = int(heartbeat) if heartbeat == int(heartbeat) else heartbeat
        # A retry that differs from stream to stream, so that a restart makes no stampede.
        return b"retry: %d\nevent: msgpush.open\nid: %b\ndata: %b\n\n" % (
            random.randint(2000, 5000),
            cursor.encode(),
            _encode(_Opening(connection, sorted(channels), resumed, interval)),
        )

    def message(self, entry: Entry, cursor: str) -> bytes:
        # Whoever gets the data alone can't name what it acknowledges.
        whole = entry.mark is not None and entry.mark.key
        if entry.type in self.events and not whole:
            # An event named error would fire EventSource's own onerror.
            name = "message.error" if entry.type == "error" else entry.type
            return b"event: %b\ndata: %b\nid: %b\n\n" % (
                name.encode(),
                data_of(entry),
                cursor.encode(),
            )
        return b"data: %b\nid: %b\n\n" % (entry.body, cursor.encode())

    def pending(self, body: bytes) -> bytes:
        return b"data: %b\n\n" % body

    def acknowledged(self, body: bytes) -> bytes:
        return b"event: msgpush.acknowledged\ndata: %b\n\n" % body

    def gap(self, gap: Gap) -> bytes:
        # No id: what is missing can't be continued after.
        return b"event: msgpush.gap\ndata: %b\n\n" % _encode(gap)

    def heartbeat(self, cursor: str) -> bytes:
        return b"event: msgpush.heartbeat\ndata: {}\nid: %b\n\n" % cursor.encode()

    def close(self, reason: str, reconnect: bool, cursor: str) -> bytes:
        return closing(reason, reconnect, cursor)

    def chunk(self, frames: Sequence[bytes]) -> bytes:
        body = b"".join(frames)
        return b"%x\r\n%b\r\n" % (len(body), body) if self.chunked and body else body


class _Opening(Struct):
    connection: str
    channels: list[str]
    resumed: bool
    heartbeat: float


class _Close(Struct):
    reason: str
    reconnect: bool


def closing(reason: str, reconnect: bool, cursor: str = "") -> bytes:
    """The last block of a stream; a cursor in it is terminal."""
    id = b"id: %b\n" % cursor.encode() if cursor else b""
    return b"event: msgpush.close\n%bdata: %b\n\n" % (id, _encode(_Close(reason, reconnect)))


def refusal(reason: Refusal) -> bytes:
    """All that a new stream gets which can't be served now; what to do is a comment."""
    return b": %b\nretry: %d\n%b" % (
        ADVICE[reason].encode(),
        random.randint(10_000, 30_000),
        closing("overload", True),
    )


class EventSink(SendSink):
    """A sink over plain ASGI that passes on bytes."""

    def messages(self, body: bytes) -> Iterable[tuple[int, Message]]:
        for start in range(0, len(body), PIECE):
            piece = body[start : start + PIECE]
            yield len(piece), {"type": "http.response.body", "body": piece, "more_body": True}

    def last(self) -> Message:
        return {"type": "http.response.body", "body": b""}


class _StreamWire(Wire, Protocol):
    """The wire extension of a response: it becomes a stream once it is opened."""

    def open(self) -> None: ...


class EventStream(StreamingResponse):
    """A stream that lasts until its client goes or the hub closes it: one task, which waits for the
    client to go.
    """

    def __init__(self, push: Push, connection_id: str, admitted: Admitted) -> None:
        # Not StreamingResponse's own: there is nothing to iterate over.
        self.status_code, self.raw_headers, self.background = 200, HEADERS, None
        self._push, self._id, self._admitted = push, connection_id, admitted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        # That may have taken long, behind an answer that nobody reads.
        if (refused := await self._enter(receive)) is not None:
            await send({"type": "http.response.body", "body": refused})
            return
        wire: _StreamWire | None = scope.get("extensions", {}).get("msgpush.wire")
        if wire is None:
            await self._serve_by_send(EventSink(send), receive)
            return
        wire.open()
        connection = self._subscribe(WireSink(wire))
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self._push.unsubscribe(connection)

    async def _enter(self, receive: Receive) -> bytes | None:
        """Come in, or have what is told instead; nothing waits, and nothing is refused, from here
        to the first block.
        """
        try:
            if not await come_in(self._push, self._admitted, self._id, lambda: _has_gone(receive)):
                return b""
        except Unauthorized:
            # It was valid when the response began. Who comes back is told 401.
            return closing("expired", True)
        except (Overloaded, BusUnavailable) as error:
            self._push.refused(error.reason)
            return refusal(error.reason)
        return None

    def _subscribe(self, sink: Sink) -> Connection:
        grant, client, subscription, start = self._admitted
        del self._admitted  # the connection has what is still needed
        connection = Connection(self._id, sink, client, grant=grant)
        self._push.subscribe(connection, subscription, start)
        return connection

    async def _serve_by_send(self, sink: SendSink, receive: Receive) -> None:
        sink.writer = asyncio.create_task(sink.write(), name=f"msgpush writer {self._id}")
        reader = asyncio.create_task(_until_gone(receive), name=f"msgpush reader {self._id}")
        connection = self._subscribe(sink)
        try:
            await asyncio.wait((reader, sink.writer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._push.unsubscribe(connection)
            reader.cancel()
            sink.writer.cancel()
            await asyncio.gather(reader, sink.writer, return_exceptions=True)


async def _has_gone(receive: Receive) -> bool:
    """True if the client is known to have gone by now."""
    await asyncio.sleep(0)  # what the loop knows already the server is told first
    try:
        async with asyncio.timeout(0):
            await _until_gone(receive)
    except TimeoutError:
        return False
    return True


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
