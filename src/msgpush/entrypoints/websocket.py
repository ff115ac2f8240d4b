"""One WebSocket: frames to messages in, frames out.

It takes a connection over from `protocol.Protocol` with a request that asks for it. The library
`websockets`, whose protocols do no I/O, knows what a frame is, how a connection closes and what a
handshake must have (RFC 6455). What is left for us is when to read, how much, and how to end:

- nothing is read, or parsed, while messages wait for the application: pressure is TCP's;
- whoever floods gets 4 KiB parsed at once, of whatever frames, and has no further turn before all
  others have had theirs;
- reading needs no memory of a connection's own: all of a server read into the same 4 KiB;
- frames that are framed already go straight to the transport: the ASGI extension `msgpush.wire`;
- pings cost no timer and no task: one wheel has all connections of a server;
- the library's protocol is a circle (it holds its parser, which runs on it), and is broken at the
  end: what refers to each other is left to the garbage collector, which comes rarely.

What becomes of bytes that come is the stage of a connection:

    ASKED      they are kept: the application hasn't answered yet; behind the first, none are read
    DENIED     they are discarded: it gives a response instead
    OPEN       they are frames
    CLOSING    they are frames, of which only the client's Close counts: ours is sent
    LINGERING  they are discarded: we have half-closed, so that the client can read the last frame

    ASKED -> OPEN, DENIED          the application accepts, or denies
    OPEN -> CLOSING                we close: the application, or the server at its end
    OPEN, CLOSING -> LINGERING     the client closes, or breaks the protocol; or it is too slow
    DENIED -> LINGERING            the response is complete

Whatever is sent after our Close would be a mistake, so the application has nothing to say from then
on: it is told that the client has gone.

A connection has one deadline at most: a message that has begun must be whole in time, and a client
must go once it was told to. One that is idle has none: it is asked by pings. Whoever doesn't answer
isn't cut as long as it takes what waits for it: the ping stands behind that.
"""

import asyncio
import fcntl
import logging
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from random import uniform
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import ASGIApp, Message
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidHeader, InvalidUpgrade, PayloadTooBig
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.headers import parse_subprotocol
from websockets.http11 import Request
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as Frames
from websockets.server import ServerProtocol

from msgpush.entrypoints.exchange import Exchange, header_line

if TYPE_CHECKING:
    from msgpush.entrypoints.protocol import State

CLOSE_SECONDS = 1.0  # what a client may take to answer our Close, and then to go

_PING = Frame(Opcode.PING, b"").serialize(mask=False)
_LONGEST_CONTROL = 125  # bytes of a control frame's payload
_KINDS: dict[type, str] = {str: "text", bytes: "bytes"}
_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
_BYTES_ACKED = 120  # where it is in Linux's struct tcp_info
_SHOWN = (
    b"connection",
    b"upgrade",
    b"origin",
    b"sec-websocket-key",
    b"sec-websocket-version",
    b"sec-websocket-protocol",
)

log = logging.getLogger("msgpush.server")


class Handshake(NamedTuple):
    """What a request says that asks for a WebSocket.

    `accept` proves that we have understood it."""

    accept: bytes
    subprotocols: Sequence[str]


class Faulty(NamedTuple):
    """Why a request can't get the WebSocket that it asks for.

    `headers` are those that the refusal has to have."""

    status: int
    detail: str
    headers: bytes = b""


def read_handshake(
    headers: Iterable[tuple[bytes, bytes]], checker: ServerProtocol
) -> Handshake | Faulty:
    """Read a request's headers as a handshake (RFC 6455, section 4.2.1)."""
    shown = Headers()
    upgrade = b"upgrade: websocket\r\n"
    try:
        for name, value in headers:
            if name in _SHOWN:
                shown[name.decode()] = value.decode("latin-1")
        accept, _, _ = checker.process_request(Request("/", shown))
        offered = [
            each
            for value in shown.get_all("Sec-WebSocket-Protocol")
            for each in parse_subprotocol(value)
        ]
        return Handshake(accept.encode(), offered)
    except InvalidUpgrade:
        return Faulty(426, "a WebSocket is asked for with Upgrade: websocket", upgrade)
    except InvalidHeader as error:
        # Whoever speaks another version may have another idea of the rest, too.
        if shown.get_all("Sec-WebSocket-Version") != ["13"]:
            told = "the only version of WebSocket that is spoken here is 13"
            return Faulty(426, told, upgrade + b"sec-websocket-version: 13\r\n")
        return Faulty(400, f"the header {error.name} of the handshake is missing, or wrong")
    except InvalidHandshake:
        return Faulty(400, "this is no handshake of a WebSocket")


class SocketWire:
    """The ASGI extension `msgpush.wire` of a WebSocket, from when it is accepted.

    What is written are whole frames."""

    __slots__ = ("_socket", "_transport")

    def __init__(self, socket: "WebSocket") -> None:
        self._socket, self._transport = socket, socket.transport

    @property
    def writable(self) -> bool:
        return not self._socket.blocked

    @property
    def backlog(self) -> int:
        """Bytes that the socket hasn't taken yet."""
        return self._transport.get_write_buffer_size()

    def write(self, framed: bytes) -> bool:
        """Pass frames on; False, and nothing taken, where the socket is full, closing, or gone."""
        if self._socket.blocked:
            return False
        self._transport.write(framed)
        return True

    def finish(self, framed: bytes) -> None:
        """Write the last frames, of which the last is a Close, whatever the backlog.

        The application is told at once that the client has gone."""
        self._socket.finish(framed, CloseCode.NO_STATUS_RCVD)

    def abort(self) -> None:
        """Cut the connection at once; nothing happens where it has ended already."""
        self._transport.abort()

    async def drained(self) -> None:
        """Wait until the socket is under its mark again, or closing, or gone."""
        await self._socket.drained()


class Stage(Enum):
    """What becomes of bytes that come."""

    ASKED = auto()
    DENIED = auto()
    OPEN = auto()
    CLOSING = auto()
    LINGERING = auto()


class WebSocket(asyncio.BufferedProtocol):
    """One connection that has asked to be a WebSocket.

    Args:
        held: bytes that came behind the request.
        write_paused: whether the socket is full: earlier answers may wait.

    Attributes:
        blocked: whether it takes no frames: the socket is full, or it isn't open.
    """

    __slots__ = (
        "_accept",
        "_asked_since",
        "_code",
        "_denial",
        "_frames",
        "_greeted",
        "_held",
        "_is_text",
        "_loop",
        "_messages",
        "_owed",
        "_partial",
        "_reading_paused",
        "_stage",
        "_taken",
        "_told",
        "_writable",
        "blocked",
        "server_state",
        "transport",
        "write_paused",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        server_state: "State",
        accept: bytes,
        held: bytes,
        *,
        write_paused: bool,
    ) -> None:
        self.transport, self.server_state = transport, server_state
        self._loop = asyncio.get_running_loop()
        self._accept = accept
        self._held = held
        self._stage = Stage.ASKED
        self.blocked = True
        self.write_paused = write_paused
        self._writable: asyncio.Event | None = None  # made when somebody waits
        self._reading_paused = False
        self._greeted = False  # whether the application has been given websocket.connect
        self._frames: Frames | None = None
        self._partial: bytearray | None = None  # what has come of a message in fragments
        self._is_text = False
        self._messages: list[str | bytes] = []  # for the application; the next one is the last
        self._told: asyncio.Future[None] | None = None  # made when the application waits
        self._owed = b""  # the answer to the newest ping, while the socket is full
        self._asked_since: float | None = None  # since when it owes us a pong, and takes nothing
        self._taken: int | None = None  # what it had taken when that was looked at last
        self._denial: Exchange | None = None
        self._code = 0  # of the end

    def begin(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        """Take the transport over, and ask the application."""
        self.server_state.connections.add(self)  # type: ignore[arg-type]
        # Reading begins anew: uvloop keeps to the way in which it has begun.
        self.transport.pause_reading()
        self.transport.set_protocol(self)
        if self._held:
            self._reading_paused = True
        else:
            self.transport.resume_reading()
        self.server_state.tasks.add(self._loop.create_task(self.run(app, scope)))

    # From asyncio

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.server_state.room

    def buffer_updated(self, nbytes: int) -> None:
        if self._stage is Stage.OPEN or self._stage is Stage.CLOSING:
            self._feed(bytes(self.server_state.room[:nbytes]))
        elif self._stage is Stage.ASKED:
            self._held = bytes(self.server_state.room[:nbytes])
            self._pause_reading()

    def eof_received(self) -> bool:
        if self._stage is Stage.DENIED:
            return True  # it may still read the response
        self._end(CloseCode.ABNORMAL_CLOSURE)
        self._stage = Stage.LINGERING
        self._must_end_by(CLOSE_SECONDS)
        return False  # asyncio closes, once all is written

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(CloseCode.ABNORMAL_CLOSURE)
        self._stage = Stage.LINGERING
        self._forget()
        self.server_state.connections.discard(self)
        self.server_state.deadlines.pop(self, None)
        if self._denial is not None:
            self._denial.disconnect()
            self._denial = None

    def pause_writing(self) -> None:
        self.write_paused = self.blocked = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._stage is Stage.OPEN:
            self.blocked = False
            # A ping that fell due meanwhile wasn't sent.
            owed = self._owed if self._asked_since is None else self._owed + _PING
            self._owed = b""
            if owed:
                self.transport.write(owed)
        self._wake_writers()

    async def drained(self) -> None:
        """Wait until the socket takes more, or nothing any more."""
        while self.write_paused and not self._code:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()

    def _wake_reader(self) -> None:
        if self._told is not None and not self._told.done():
            self._told.set_result(None)

    def _wake_writers(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def resume_reading(self) -> None:
        """Read on."""
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    # From bytes to messages

    def _feed(self, data: bytes) -> None:
        """Parse some bytes, of which there are few, and see whose turn it is then."""
        frames = self._frames
        assert frames is not None
        frames.receive_data(data)
        came = frames.events_received()
        replies = frames.data_to_send()
        if self._stage is Stage.OPEN:
            midway = self._partial is not None
            try:
                for frame in came:
                    if (message := self._hear(frame)) is not None:
                        self._messages.append(message)
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "a text is not UTF-8")
            except PayloadTooBig:
                self._fail(CloseCode.MESSAGE_TOO_BIG, self._too_large)
            self._messages.reverse()
            if self._stage is not Stage.OPEN:
                return
            if came and (self._messages or self._partial is None or not midway):
                self.server_state.deadlines.pop(self, None)
        if replies:
            self._reply(replies)
            if self._frames is None:
                return
        if self._messages:
            # What has begun behind them isn't read on, which isn't the client's fault.
            self.server_state.deadlines.pop(self, None)
            self._pause_reading()
            self._wake_reader()
        elif self._held or (came and len(data) == len(self.server_state.room)):
            self._pause_reading()
            self._loop.call_soon(self._read_on)
        else:
            self._start_clock(begun=not came)
            self.resume_reading()

    def _read_on(self) -> None:
        """Parse what has come already, and then read what comes."""
        if self._messages or self._frames is None:
            return
        if self._held:
            most = len(self.server_state.room)
            data, self._held = self._held[:most], self._held[most:]
            self._feed(data)
        else:
            self._start_clock()
            self.resume_reading()

    def _hear(self, frame: Any) -> str | bytes | None:
        """Take a frame; returns the message that is whole with it.

        Raises:
            UnicodeDecodeError: it is a text that isn't UTF-8.
            PayloadTooBig: it is larger than it may be.
        """
        data, opcode = frame.data, frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            self._is_text = opcode is Opcode.TEXT
            if not frame.fin:
                self._partial = data = bytearray(data)
        elif opcode is Opcode.CONT:
            assert self._partial is not None
            self._partial += data
            data = self._partial
        else:
            if opcode is Opcode.PONG and self._asked_since is not None:
                self._asked_since = None
                self._ask_in(self.server_state.limits.ping_interval)
            return None
        if len(data) > self.server_state.limits.max_message_bytes:
            raise PayloadTooBig(len(data), self.server_state.limits.max_message_bytes)
        if not frame.fin:
            return None
        self._partial = None
        return data.decode() if self._is_text else bytes(data)

    def _reply(self, replies: list[bytes]) -> None:
        """Write what the protocol answers by itself: to pings, and to what ends it."""
        if self._stage is not Stage.OPEN:
            # Behind our Close nothing is said.
            if not replies[-1]:
                self._linger()
        elif not replies[-1]:
            frames = self._frames
            assert frames is not None
            assert frames.close_sent is not None
            self.transport.write(b"".join(replies))
            self._end((frames.close_rcvd or frames.close_sent).code)
            self._linger()
        elif self.write_paused:
            # Of pings that come faster than they can be answered the newest alone needs it (RFC
            # 6455, section 5.5.3).
            self._owed = replies[-1]
        else:
            self.transport.write(b"".join(replies))

    def _start_clock(self, *, begun: bool = False) -> None:
        """Give the client its time for a message that it has begun, unless it has it already.

        Args:
            begun: whether that is known. Where the parser has taken a header and no more, it isn't;
                but then nothing is kept of it.
        """
        if self._stage is not Stage.OPEN or self in self.server_state.deadlines:
            return
        assert self._frames is not None
        if begun or self._partial is not None or self._frames.reader.buffer:
            self._must_end_by(self.server_state.limits.body_timeout)

    # To the application

    async def run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        """Have the application talk, and end it where it doesn't."""
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            self.transport.close()
            raise
        except Exception as error:
            log.error("the application has failed", exc_info=error)
            await self._give_up()
        else:
            if self._stage is Stage.ASKED or self._stage is Stage.DENIED:
                log.error("the application has returned without an answer")
            elif self._stage is Stage.OPEN and not self.transport.is_closing():
                log.error("the application has returned without closing its WebSocket")
            await self._give_up()
        finally:
            self.server_state.tasks.discard(asyncio.current_task())

    async def receive(self) -> Message:
        """Give the application what has come, or word that the client has gone."""
        if not self._greeted:
            self._greeted = True
            return {"type": "websocket.connect"}
        while not (self._messages or self._code):
            if self._told is not None and not self._told.done():
                raise RuntimeError("somebody waits for the next message already")
            self._told = self._loop.create_future()
            await self._told
        if not self._messages:
            return {"type": "websocket.disconnect", "code": self._code}
        message = self._messages.pop()
        if not self._messages:
            self._loop.call_soon(self._read_on)
        return {"type": "websocket.receive", _KINDS[type(message)]: message}

    async def send(self, message: Message) -> None:
        """Do what the application wants; waits while the socket is full."""
        kind = message["type"]
        if kind == "websocket.close" and self._stage is Stage.OPEN:
            self.close(message.get("code", CloseCode.NORMAL_CLOSURE), message.get("reason") or "")
            return
        if self.write_paused:
            await self.drained()
        if self._code:
            return
        if kind == "websocket.send" and self._stage is Stage.OPEN:
            self._send(message)
        elif kind == "websocket.accept" and self._stage is Stage.ASKED:
            self._open(message)
        elif kind == "websocket.close" and self._stage is Stage.ASKED:
            headers = [(b"content-length", b"0")]
            await self._deny({"type": "http.response.start", "status": 403, "headers": headers})
            await self._deny({"type": "http.response.body"})
        elif kind.startswith("websocket.http.response.") and (
            self._stage is Stage.ASKED or self._stage is Stage.DENIED
        ):
            await self._deny({**message, "type": kind.removeprefix("websocket.")})
        else:
            raise RuntimeError(f"{kind} at the wrong time")

    def _open(self, message: Message) -> None:
        """Accept the WebSocket (RFC 6455, section 4.2.2)."""
        headers = list(message.get("headers", ()))
        if (subprotocol := message.get("subprotocol")) is not None:
            headers.append((b"sec-websocket-protocol", subprotocol.encode()))
        lines = [header_line(name, value) for name, value in headers]
        accept = b"sec-websocket-accept: %b\r\n" % self._accept
        common = self.server_state.common_headers
        self.transport.write(b"".join([_SWITCHING, common, accept, *lines, b"\r\n"]))
        self._accept = b""
        limits = self.server_state.limits
        # Its limit counts for control frames, too, which may come where a message is nearly as
        # large as it may be.
        self._frames = Frames(
            SERVER, state=OPEN, max_size=limits.max_message_bytes + _LONGEST_CONTROL, logger=log
        )
        self._frames.debug = False  # it would log what frames say, and so tokens
        self._stage = Stage.OPEN
        self.blocked = self.write_paused
        self._ask_in(uniform(limits.ping_interval / 2, limits.ping_interval))
        self._loop.call_soon(self._read_on)

    def _send(self, message: Message) -> None:
        text = message.get("text")
        opcode = Opcode.BINARY if text is None else Opcode.TEXT
        payload = message["bytes"] if text is None else text.encode()
        self.transport.write(Frame(opcode, payload).serialize(mask=False))

    async def _deny(self, message: Message) -> None:
        """Give a part of a response instead of a WebSocket."""
        await self._as_response().send(message)

    def _as_response(self) -> Exchange:
        if self._denial is None:
            self._stage = Stage.DENIED
            self._held = b""
            self.resume_reading()
            request = {"method": "GET", "http_version": "1.1"}
            self._denial = Exchange(self, request, keep_alive=False, expects_continue=False)
        return self._denial

    def answered(self, exchange: Exchange) -> None:
        """The response instead of a WebSocket is complete."""
        self._denial = None
        self.end()

    async def _give_up(self) -> None:
        """End what the application should have ended."""
        if self._stage is Stage.ASKED or self._stage is Stage.DENIED:
            await self._as_response().fail()
        elif self._stage is Stage.OPEN:
            self.close(CloseCode.INTERNAL_ERROR)

    # Whether it is there

    def ask(self, now: float) -> None:
        """Ping the client; or cut it, where it owes a pong, and takes nothing that it is sent."""
        limits = self.server_state.limits
        if self.transport.is_closing():
            return
        if self._asked_since is None:
            self._asked_since, self._taken = now, None
            if not self.write_paused:
                self.transport.write(_PING)
        else:
            taken, before = taken_by_client(self.transport), self._taken
            unread = self._reading_paused and not self.write_paused  # a pong may have come
            if unread or (before is not None and taken > before):
                self._asked_since = now
            elif now - self._asked_since >= limits.ping_timeout:
                self.transport.abort()
                return
            self._taken = taken
        self._ask_in(limits.ping_timeout / 2)

    def _ask_in(self, seconds: float) -> None:
        self.server_state.asking.put(self, time.monotonic() + seconds)

    # Ends

    def close(self, code: int, reason: str = "") -> None:
        """Send a Close, if it is open, and wait for the client's."""
        close = Close(code, reason).serialize()
        self.finish(Frame(Opcode.CLOSE, close).serialize(mask=False), code)

    def finish(self, framed: bytes, code: int) -> None:
        """Send frames of which the last is a Close, if it is open, and wait for the client's."""
        if self._stage is not Stage.OPEN or self.transport.is_closing():
            return
        assert self._frames is not None
        self._frames.send_close()
        self._frames.data_to_send()  # it makes one of its own
        self.transport.write(framed)
        self._stage = Stage.CLOSING
        self._messages = []
        self._end(code)
        self._must_end_by(CLOSE_SECONDS)
        self._loop.call_soon(self._read_on)

    def shutdown(self) -> None:
        """Close, unless the application has; uvicorn calls this."""
        self.close(CloseCode.GOING_AWAY)

    def end(self) -> None:
        """The last of a response is written."""
        self._end(CloseCode.ABNORMAL_CLOSURE)
        self._linger()

    def expire(self) -> None:
        """The client was too slow."""
        del self.server_state.deadlines[self]
        if self._stage is Stage.OPEN:
            most = self.server_state.limits.body_timeout
            self._fail(CloseCode.POLICY_VIOLATION, f"a message took longer than {most:g} seconds")
        elif self._stage is Stage.CLOSING:
            self._linger()
        else:
            # A client that still reads what waits for it may read on.
            taken, before = taken_by_client(self.transport), self._taken
            if self.transport.get_write_buffer_size() and (before is None or taken > before):
                self._taken = taken
                self._must_end_by(CLOSE_SECONDS)
            else:
                self.transport.abort()

    def _fail(self, code: int, reason: str) -> None:
        """End what the client has broken (RFC 6455, section 7.1.7)."""
        close = Close(code, reason).serialize()
        self.transport.write(Frame(Opcode.CLOSE, close).serialize(mask=False))
        self._end(code)
        self._linger()

    def _linger(self) -> None:
        """Half-close, so that the client can read the last frame; then discard what it sends."""
        self._stage = Stage.LINGERING
        self._taken = None
        self._forget()
        self._must_end_by(CLOSE_SECONDS)
        if not self.transport.is_closing():
            self.resume_reading()
            self.transport.write_eof()

    def _end(self, code: int) -> None:
        """Let the application know that nothing comes or goes any more."""
        self._code = self._code or code
        self.blocked = True
        self._owed = b""
        self._partial = None
        self.server_state.asking.remove(self)
        self._wake_reader()
        self._wake_writers()

    def _forget(self) -> None:
        """Let go of what parses."""
        self._held = b""
        if self._frames is not None:
            self._frames.parser.close()
            self._frames.parser_exc = None
            self._frames = None

    @property
    def _too_large(self) -> str:
        return f"a message is larger than {self.server_state.limits.max_message_bytes} bytes"

    def _must_end_by(self, seconds: float) -> None:
        self.server_state.deadlines[self] = time.monotonic() + seconds


def taken_by_client(transport: asyncio.Transport) -> int:
    """How much a client's machine has taken: a number that grows whenever it takes something.

    It counts from anywhere. Of a TCP connection Linux knows what was acknowledged; of others it is
    seen from what waits, which grows with what is written, too."""
    waits = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if sys.platform == "linux" and connection is not None:
        if connection.family != socket.AF_UNIX:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
            return int(struct.unpack_from("=Q", info, _BYTES_ACKED)[0])
        waits += struct.unpack("=i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[
            0
        ]
    return -waits
