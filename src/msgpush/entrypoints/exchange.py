"""One request and its response: what ASGI sees of an HTTP connection.

A response's head waits for the first piece of its body, and both leave in one write: most answers
are one piece, and a write costs more than all that is done here besides.
"""

import asyncio
import logging
import re
from collections.abc import MutableMapping
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from starlette.types import ASGIApp, Message

from msgpush.adapters.http import request_ids

if TYPE_CHECKING:
    from msgpush.entrypoints.protocol import State


class Connection(Protocol):
    """What carries an exchange."""

    transport: asyncio.Transport
    server_state: "State"
    write_paused: bool

    async def drained(self) -> None:
        """Wait until the socket takes more, or is gone."""

    def resume_reading(self) -> None:
        """Read on, if nothing else is in the way."""

    def answered(self, exchange: "Exchange") -> None:
        """An exchange has its whole answer."""

    def end(self) -> None:
        """Close behind the last answer."""


_STATUS_LINES = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus
}
# What would end a header, or begin another one (RFC 9110, section 5.5).
_NO_NAME = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS = (204, 304)  # RFC 9112, section 6.3

log = logging.getLogger("msgpush.server")


@lru_cache(maxsize=256)
def header_line(name: bytes, value: bytes) -> bytes:
    """A header as it is written (RFC 9112, section 5)."""
    if _NO_NAME.search(name) or _NO_VALUE.search(value):
        raise RuntimeError(f"no valid header: {name!r}: {value!r}")
    return b"%b: %b\r\n" % (name.lower(), value)


class Exchange:
    """A request, as it comes, and the response to it.

    Attributes:
        more_body: whether more of the request's body is to come.
        keep_alive: whether the connection serves another request after this one.
        started: whether the application has begun to answer.
        complete: whether it has answered.
        gone: whether nobody waits for the answer any more.
    """

    __slots__ = (
        "_body",
        "_changed",
        "_connection",
        "_expects_continue",
        "_framing",
        "_head",
        "_news",
        "complete",
        "gone",
        "keep_alive",
        "more_body",
        "scope",
        "started",
    )

    def __init__(
        self,
        connection: Connection,
        scope: MutableMapping[str, Any],
        *,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self._connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self._expects_continue = expects_continue
        self._body = b""
        self.more_body = True
        self._news = False
        self._changed: asyncio.Event | None = None  # made when somebody waits
        self.started = self.complete = self.gone = False
        self._head = b""
        # Bytes of the response's body that are still to come; None: as many as come, in chunks;
        # CLOSE: as many as come, until the connection ends.
        self._framing: int | None = None

    # From the connection

    def feed(self, body: bytes) -> int:
        """Take a part of the request's body; returns how many bytes the application hasn't read."""
        self._body = self._body + body if self._body else body
        self.wake()
        return len(self._body)

    def end_body(self) -> None:
        """The request is whole."""
        self.more_body = False
        self.wake()

    def disconnect(self) -> None:
        """Nobody waits for the answer any more."""
        self.gone = True
        self.wake()

    def wake(self) -> None:
        """Have `receive` look again."""
        self._news = True
        if self._changed is not None:
            self._changed.set()

    # To the application

    async def run(self, app: ASGIApp) -> None:
        """Have the application answer, and answer for it where it doesn't."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._connection.transport.close()
            raise
        except Exception as error:
            log.error("the application has failed", exc_info=error)
            await self.fail()
        else:
            if not self.complete and not self.gone:
                log.error("the application has returned without an answer")
                await self.fail()
        finally:
            tasks = self._connection.server_state.tasks
            tasks.discard(asyncio.current_task())

    async def fail(self) -> None:
        """Answer for an application that doesn't."""
        if self.complete:
            self._connection.end()
            return
        if self.started and not self._head:
            self._connection.transport.close()  # what it has got isn't the whole
            return
        self.started = False
        headers = [(b"content-length", b"21"), (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"Internal Server Error"})

    async def receive(self) -> Message:
        """Give the application what has come of the body, or word that the client has gone."""
        if self._expects_continue:
            self._expects_continue = False
            if not self.started and not self.gone:
                self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._news or self.gone or self.complete):
            self._connection.resume_reading()
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        body, self._body = self._body, b""
        self._news = False
        if self._changed is not None:
            self._changed.clear()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """Take the response's head, or a part of its body; waits while the socket is full."""
        if self._connection.write_paused and not self.gone:
            await self._connection.drained()
        if self.gone:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.started and not self.complete:
            self._write(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} at the wrong time")

    def flush_as_last(self) -> None:
        """Write the response's head, if it waits for its body; nothing follows on the connection.

        That is said (RFC 9112, section 9.6): else a proxy takes the connection for the next
        request as soon as the response is whole, and meets it closing."""
        head, self._head = self._head, b""
        if head and self.keep_alive:
            self.keep_alive = False
            head = head[:-2] + b"connection: close\r\n\r\n"
        if head:
            self._connection.transport.write(head)

    def _start(self, status: int, headers: Any) -> None:
        """Make the response's head, and find out how its body is framed."""
        self._framing = None
        parts = [
            _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,
            self._connection.server_state.common_headers,
        ]
        closes = False
        for name, value in headers:
            if name is request_ids.NAME:
                # Each has another one, which is known to be safe: it would only push others out.
                parts.append(b"x-request-id: %b\r\n" % value)
                continue
            line = header_line(name, value)
            parts.append(line)
            if line.startswith(b"content-length:"):
                self._framing = int(value)
            elif line.startswith(b"connection:") and b"close" in value.lower():
                closes = True
        self.started = True
        if self.scope["method"] == "HEAD" or status in _BODILESS:
            self._framing = 0
        elif self._framing is None and self.scope["http_version"] == "1.1":
            parts.append(b"transfer-encoding: chunked\r\n")
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def _write(self, body: bytes, more: bool) -> None:
        """Write a part of the response's body, with the head where it is the first one."""
        if self.scope["method"] == "HEAD":
            body = b""
        elif self._framing is None:
            if self.scope["http_version"] == "1.1":
                body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                if not more:
                    body += b"0\r\n\r\n"
        else:
            self._framing -= len(body)
            if self._framing < 0 or (self._framing and not more):
                raise RuntimeError("the body is longer or shorter than its Content-Length")
        if self._head:
            body, self._head = self._head + body, b""
        if body:
            self._connection.transport.write(body)
        if not more:
            self.complete = True
            self.wake()
            self._connection.answered(self)
