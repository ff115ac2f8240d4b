"""WebSockets byte by byte: a server for small applications, and a client whose frames a test makes.

What a client of good manners can't send is made here by hand, so that it can be sent.
"""

import asyncio
import contextlib
import struct
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from msgpush.entrypoints.protocol import Limits
from msgpush.entrypoints.server import Server, listen, make_server
from tests.support.client import PATIENCE, RawConnection

T = TypeVar("T")

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3


class Got(NamedTuple):
    """A frame that has come."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def code(self) -> int:
        """The code of a frame that closes; 1005: it has none."""
        assert self.opcode == CLOSE, self
        return int(struct.unpack("!H", self.payload[:2])[0]) if self.payload else 1005


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """A frame as a client sends it.

    Args:
        reserved: the three bits that mean nothing, as one number.
        length: bytes that it says it has.
    """
    size = len(payload) if length is None else length
    first = fin << 7 | reserved << 4 | opcode
    bit = masked << 7
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if not masked:
        return head + payload
    mask = zlib.crc32(payload).to_bytes(4, "big")  # the same each time: it is part of names
    whole = (mask * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")
    return head + mask + mixed.to_bytes(len(payload), "big")


def closing(code: int, reason: bytes = b"") -> bytes:
    """A frame that closes."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


def asking(target: str = "/echo", headers: Mapping[str, str] | None = None) -> bytes:
    """A request for a WebSocket; a header that is "" is left out."""
    given = {
        "Host": "localhost",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
    return f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode()


class Asking(RawConnection):
    """A connection that has asked for a WebSocket.

    Args:
        behind: bytes that are sent at once behind the request.
    """

    def __init__(
        self,
        port: int,
        target: str = "/echo",
        headers: Mapping[str, str] | None = None,
        *,
        behind: bytes = b"",
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__(port, receive_buffer)
        self.send(asking(target, headers) + behind)

    def fill(self, data: bytes) -> int:
        """Send the same again and again, until the server reads no more; returns how many bytes."""
        sent = 0
        self._socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                sent += self._socket.send(data)
        self._socket.settimeout(PATIENCE)
        return sent


class RawWebSocket(Asking):
    """A WebSocket, whose frames a test makes and reads one by one.

    Attributes:
        head: of the answer to the handshake.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread = b""
        self.head = self._take_until(b"\r\n\r\n").decode()
        assert self.head.startswith("HTTP/1.1 101 "), self.head

    def next(self, seconds: float = PATIENCE) -> Got:
        """The next frame."""
        first, second = self._take(2, seconds)
        assert not second & 0x80, "a server doesn't mask"
        size = second & 0x7F
        if size == 126:
            size = struct.unpack("!H", self._take(2, seconds))[0]
        elif size == 127:
            size = struct.unpack("!Q", self._take(8, seconds))[0]
        assert not first & 0x70, "reserved bits are set"
        return Got(first & 0x0F, self._take(size, seconds), bool(first & 0x80))

    def end(self, seconds: float = PATIENCE) -> Got:
        """The frame that closes, after which nothing comes; others before it are passed over."""
        while (got := self.next(seconds)).opcode != CLOSE:
            pass
        self.is_over(seconds)
        return got

    def is_over(self, seconds: float = PATIENCE) -> None:
        """The server closes, and has nothing more to say."""
        assert self._unread == b""
        assert self.receive(seconds) == b""

    def _take_until(self, text: bytes) -> bytes:
        while text not in self._unread:
            self._more(PATIENCE)
        found, _, self._unread = self._unread.partition(text)
        return found

    def _take(self, size: int, seconds: float) -> bytes:
        while len(self._unread) < size:
            self._more(seconds)
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken

    def _more(self, seconds: float) -> None:
        more = self.receive(seconds)
        assert more, f"the server has closed after {self._unread!r}"
        self._unread += more


class AppServer:
    """Our server with an application of a test's, in a thread of the test's process.

    Args:
        app: is asked for what isn't `lifespan`.
    """

    def __init__(self, app: ASGIApp, limits: Limits | None = None) -> None:
        self._app, self._limits = app, limits
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server")
        self._loop: asyncio.AbstractEventLoop | None = None
        self.port = 0
        self.refused: list[str] = []
        self.server: Server

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        """Have it end, as a signal would."""
        self.server.should_exit = True

    def call(self, function: Callable[[], T]) -> T:
        """What a function gives in the server's loop."""

        async def run() -> T:
            return function()

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE)

    def _run(self) -> None:
        def ready(_: str, port: int) -> None:
            self.port, self._loop = port, asyncio.get_running_loop()
            self._ready.set()

        with listen("127.0.0.1", 0) as listener:
            self.server = make_server(
                _with_lifespan(self._app),
                limits=self._limits,
                on_ready=ready,
                on_refused=self.refused.append,
                cors=lambda origin: {"Access-Control-Allow-Origin": origin} if origin else {},
            )
            self.server.run(sockets=[listener])


def _with_lifespan(app: ASGIApp) -> ASGIApp:
    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await app(scope, receive, send)

    return asked


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
