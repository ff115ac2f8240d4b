"""A client on real sockets that guesses nothing: it reads what has come, and fails when that isn't
what must come.
"""

import http.client
import socket
import time
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from msgpush.entrypoints.health import UnixConnection
from tests.support.eventsource import Event, EventStreamParser

PATIENCE = 10.0


class Response:
    """A whole response."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


Where = int | str  # a port of this machine, or the path of a unix socket


def request(
    port: Where,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to a request over a connection of its own."""
    connection = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        if isinstance(port, int)
        else UnixConnection(port, PATIENCE)
    )
    try:
        connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, found, response.read())
    finally:
        connection.close()


class RawConnection:
    """Bytes to and from a server, with a deadline for everything.

    Args:
        receive_buffer: bytes that the kernel keeps for a reader that doesn't read.
    """

    def __init__(self, port: Where, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket(socket.AF_INET if isinstance(port, int) else socket.AF_UNIX)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(("127.0.0.1", port) if isinstance(port, int) else port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST, as a machine does that has lost the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()

    def receive(self, seconds: float = PATIENCE) -> bytes:
        """What comes next; empty at the end. TimeoutError when nothing comes in time."""
        self._socket.settimeout(seconds)
        return self._socket.recv(65536)

    def read_all(self, seconds: float = PATIENCE) -> bytes:
        """Everything until the server closes."""
        until = time.monotonic() + seconds
        received = b""
        while more := self.receive(max(0.01, until - time.monotonic())):
            received += more
        return received

    def read_until(self, text: bytes, seconds: float = PATIENCE) -> bytes:
        until = time.monotonic() + seconds
        received = b""
        while text not in received:
            more = self.receive(max(0.01, until - time.monotonic()))
            assert more, f"the server has closed after {received[-300:]!r}"
            received += more
        return received


class SseClient:
    """A stream: status, headers, and events as they come. The chunked coding is checked byte by
    byte.
    """

    def __init__(
        self,
        port: Where,
        target: str,
        headers: Mapping[str, str] | None = None,
        *,
        receive_buffer: int | None = None,
    ) -> None:
        self.connection = RawConnection(port, receive_buffer)
        self._parser = EventStreamParser()
        self._raw = b""
        self._events: list[Event] = []
        self.ended = False
        lines = [f"GET {target} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        try:
            self.connection.send(("\r\n".join(lines) + "\r\n\r\n").encode())
            received = self.connection.read_until(b"\r\n\r\n")
        except BaseException:
            self.close()
            raise
        head, _, self._raw = received.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in rest)
        }
        self._chunked = self.headers.get("transfer-encoding") == "chunked"
        self._digest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.__exit__()

    @property
    def last_event_id(self) -> str:
        return self._parser.last_event_id

    @property
    def retry(self) -> int | None:
        return self._parser.retry

    def next(self, seconds: float = PATIENCE) -> Event:
        """The next event, which must come in time."""
        until = time.monotonic() + seconds
        while not self._events:
            assert not self.ended, "the stream has ended"
            data = self.connection.receive(max(0.01, until - time.monotonic()))
            assert data, "the stream was cut"
            self._raw += data
            self._digest()
        return self._events.pop(0)

    def take(self, number: int) -> list[Event]:
        return [self.next() for _ in range(number)]

    def rest(self, seconds: float = PATIENCE) -> list[Event]:
        """All events to the stream's clean end, which must come in time."""
        until = time.monotonic() + seconds
        while not self.ended:
            data = self.connection.receive(max(0.01, until - time.monotonic()))
            assert data, "the stream was cut"
            self._raw += data
            self._digest()
        events, self._events = self._events, []
        return events

    def _digest(self) -> None:
        if not self._chunked:
            self._events += self._parser.feed(self._raw)
            self._raw = b""
            return
        while b"\r\n" in self._raw:
            size, _, rest = self._raw.partition(b"\r\n")
            length = int(size, 16)
            if len(rest) < length + 2:
                return
            assert rest[length : length + 2] == b"\r\n", "the chunked coding is broken"
            self._events += self._parser.feed(rest[:length])
            self._raw = rest[length + 2 :]
            self.ended = length == 0
