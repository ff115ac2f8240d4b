"""One HTTP connection: bytes to requests in, answers out.

It is an `asyncio.Protocol` of our own on httptools, uvicorn's parser, in place of a subclass of
uvicorn's protocol, since nearly all of it has to differ:

- a response leaves in one write, with its head: uvicorn's two are half of what a publish costs;
- the ASGI extension `msgpush.wire`: bytes that are framed already go straight to a transport;
- httptools has no limit of headers and no time for them; a body may take for ever; a pipelined
  request behind an open stream would leave its task behind;
- uvicorn parses every request that it is sent ahead of the answers: in memory they take a hundred
  times what they took on the wire;
- what could be understood in two ways is refused, since a proxy before us may have understood it
  in the other one;
- closing with unread input sends RST, which destroys an answer on its way: such a connection is
  half-closed, and what still comes is discarded for a while.

What a connection does with bytes that come is its state:

    IDLE       nothing has come of a further request
    HEAD       they are the line and headers of a request
    BODY       they are the body of the request that came last
    STREAM     its answer is an open stream: they are the rest of its own body, or end the stream
    HALF_SHUT  none will come: the client has half-closed after a whole request, and waits
    UPGRADED   they are another protocol's: it has the transport
    DEAF       they are discarded: what came was no request, but those before it get their answers
    LINGERING  they are discarded: we have half-closed, so that the client can read the last answer

    IDLE -> HEAD -> BODY -> IDLE    its first byte, its last header, its last byte has come
    IDLE, BODY -> STREAM            the application opens a stream
    IDLE, HEAD -> HALF_SHUT         the client half-closes, while it waits for an answer
    HEAD -> UPGRADED                it is a request for a WebSocket, and no other waits
    IDLE, HEAD -> DEAF              what comes is refused while an answer is still to be given
    any but STREAM -> LINGERING     the last answer is given with input unread, or is a refusal

Requests are answered one after the other, in their order. The one whose application runs is
`_answering`, those whose turn has yet to come are `_waiting`, and the one that came last, whose
body may still come, is `_latest`. While any waits, nothing more is parsed, nor read.

Each connection has one deadline at most, for what the client has to do next: to begin a request, to
complete its headers or its body, to go. While it is waiting for us it has none that counts.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools
import uvicorn
from msgspec import Struct
from uvicorn.server import ServerState
from websockets.server import ServerProtocol

from msgpush.adapters.http import request_ids
from msgpush.adapters.http.addresses import one_notation
from msgpush.adapters.http.problems import encode, problem
from msgpush.domain.wheel import Wheel
from msgpush.entrypoints.exchange import Exchange
from msgpush.entrypoints.websocket import (
    Faulty,
    Handshake,
    SocketWire,
    WebSocket,
    read_handshake,
)

HIGH_WATER = 16 * 1024
READ_AHEAD = 64 * 1024  # bytes of a body that wait for the application, after which none are read
PARSED_AT_ONCE = (
    4 * 1024
)  # what is parsed at once, and so the most of which waiting requests are made
LINGER_SECONDS = 1.0
HALF_SHUT_SECONDS = 1.0

_REFUSALS = {400: "malformed", 426: "malformed", 408: "too_slow", 431: "headers"}
_ORIGIN = re.compile(rb"(?i)\norigin:[ \t]*(\S+)")
_ABSOLUTE = re.compile(rb"(?i)https?://([^/?#@]+)(?=[/?]|\Z)")
# A path that ends with a name of ours, in printable ASCII; what stands before it may be a proxy's
# prefix.
_NAMED = re.compile(rb"((?:/[!-.0-~]+)*?/sse/(?:stream|user|service)/)([!-.0-~]+)")
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_LONGEST_PATH = 200  # characters of it that are told


class Limits(Struct, frozen=True):
    """The most that a client may take: bytes of a request's line and headers together, and seconds.

    `header_timeout` counts from connecting, or from the first byte of a later request on the same
    connection. Of a WebSocket: bytes of a message, which has `body_timeout`, too; seconds between
    two pings, and for which one may go unanswered."""

    header_bytes: int = 32 * 1024
    header_timeout: float = 5.0
    body_timeout: float = 30.0
    keep_alive: int = 75
    max_message_bytes: int = 256 * 1024
    ping_interval: float = 30.0
    ping_timeout: float = 30.0


class Reading(Enum):
    """The state of a connection, by what becomes of bytes that come."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    STREAM = auto()
    HALF_SHUT = auto()
    UPGRADED = auto()
    DEAF = auto()
    LINGERING = auto()


REQUESTS = (Reading.IDLE, Reading.HEAD, Reading.BODY)  # in which requests are read


class Wire:
    """The ASGI extension `msgpush.wire` of one GET request over HTTP/1.1.

    The application starts its response by `send`, without a Content-Length, and calls `open`. From
    then on it writes chunks that are framed already (RFC 9112, section 7.1), and nothing by `send`,
    until `finish`."""

    __slots__ = ("_protocol", "_transport")

    def __init__(self, protocol: "Protocol") -> None:
        # Not its exchange: that has this in its scope, and would be left to the garbage collector,
        # which comes rarely.
        self._protocol, self._transport = protocol, protocol.transport

    def open(self) -> None:
        """Make the response a stream: from here on, whatever the client sends ends it, but its own
        request's rest.
        """
        self._protocol.begin_stream()

    @property
    def writable(self) -> bool:
        return not (self._protocol.write_paused or self._transport.is_closing())

    @property
    def backlog(self) -> int:
        """Bytes that the socket hasn't taken yet."""
        return self._transport.get_write_buffer_size()

    def write(self, framed: bytes) -> bool:
        """Pass bytes on; False, and nothing taken, where the socket is full, or gone."""
        if self._protocol.write_paused or self._transport.is_closing():
            return False
        self._transport.write(framed)
        return True

    def finish(self, framed: bytes) -> None:
        """Write the last bytes, whatever the backlog, and close once all is flushed."""
        if self._transport.is_closing():
            return
        self._transport.write(framed + b"0\r\n\r\n")
        self._protocol.end_stream()
        self._transport.close()

    def abort(self) -> None:
        """Cut the connection at once; nothing happens where it has ended already."""
        self._transport.abort()

    async def drained(self) -> None:
        """Wait until the socket is under its mark again, or gone."""
        await self._protocol.drained()


class State(ServerState):
    """The state that all connections of a server share.

    Attributes:
        on_refused: told why, whenever a request was refused before it was one.
        cors: the headers without which pages of an origin couldn't read such a refusal.
        deadlines: connections that must get on with it, and until when.
        asking: WebSockets, and when each is asked next whether its client is there.
        room: what all WebSockets read into.
        checker: checks their handshakes.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self._rendered: list[tuple[bytes, bytes]] | None = None
        self._common = b""
        self.on_refused: Callable[[str], None] = lambda reason: None
        self.cors: Callable[[str | None], Mapping[str, str]] = lambda origin: {}
        self.deadlines: dict[Protocol | WebSocket, float] = {}
        self.asking: Wheel[WebSocket] = Wheel(min(limits.ping_interval, limits.ping_timeout) / 300)
        self.room = memoryview(bytearray(PARSED_AT_ONCE))
        self.checker = ServerProtocol()

    @property
    def common_headers(self) -> bytes:
        """The headers of every response: uvicorn makes them anew each second."""
        if self._rendered is not self.default_headers:
            self._rendered = self.default_headers
            self._common = b"".join(b"%b: %b\r\n" % header for header in self._rendered)
        return self._common

    def expire(self, now: float) -> None:
        """End the connections whose time is up."""
        for connection, deadline in list(self.deadlines.items()):
            if now >= deadline:
                connection.expire()

    def ask(self, now: float) -> None:
        """Find out whether the clients of WebSockets are there: those whose turn it is."""
        for socket in self.asking.due(now):
            socket.ask(now)


class Protocol(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_answering",
        "_app",
        "_app_state",
        "_client",
        "_expects_continue",
        "_framing_bytes",
        "_head_bytes",
        "_headers",
        "_held",
        "_latest",
        "_limits",
        "_linger_until",
        "_loop",
        "_parser",
        "_reading",
        "_reading_paused",
        "_refusal",
        "_requests",
        "_root_path",
        "_server",
        "_timed",
        "_upgraded",
        "_url",
        "_waiting",
        "_writable",
        "server_state",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: "State",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app, self._app_state, self._root_path = config.loaded_app, app_state, config.root_path
        self.server_state, self._limits = server_state, server_state.limits
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = self._new_parser()
        self._reading = Reading.IDLE
        self._reading_paused = False
        self.write_paused = False
        self._writable: asyncio.Event | None = None  # made when somebody waits
        self._answering: Exchange | None = None
        self._waiting: list[Exchange] = []
        self._latest: Exchange | None = None
        self._held = b""
        self._head_bytes = self._framing_bytes = 0
        self._requests = 0
        self._timed: tuple[Reading, int] | None = None  # what the deadline is for
        self._linger_until = 0.0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._refusal = (400, "this is no HTTP request")
        self._upgraded: tuple[Handshake, bytes] | None = None  # until the rest is known

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # Else a request behind one that ends the connection would be a mistake in that one.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # From asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._server = _address(transport.get_extra_info("sockname"))
        self._client = _address(transport.get_extra_info("peername"))
        self.server_state.connections.add(self)  # type: ignore[arg-type]
        self._timed = (Reading.HEAD, 1)  # the first headers have their time from here
        self._must_end_by(self._limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        self.server_state.deadlines.pop(self, None)
        for exchange in (self._answering, self._latest):
            if exchange is not None:
                exchange.disconnect()
        self.resume_writing()
        self._waiting.clear()
        self._held = b""
        # What refers to each other is left to the garbage collector, which comes rarely.
        self._answering = self._latest = self._parser = None

    def data_received(self, data: bytes) -> None:
        if self._reading in REQUESTS:
            self._held = self._held + data if self._held else data
            self._take_held()
        elif self._reading is Reading.STREAM:
            self._take_rest(data)
        elif self._reading is Reading.LINGERING:
            until = min(self._linger_until, time.monotonic() + LINGER_SECONDS)
            self.server_state.deadlines[self] = until

    def eof_received(self) -> bool:
        # A client may half-close after a whole request and still read the answer. Of a stream it is
        # the end.
        whole = self._reading in (Reading.IDLE, Reading.HEAD, Reading.DEAF)
        if whole and (unanswered := self._unanswered) is not None:
            unanswered.keep_alive = False
            self._reading = Reading.HALF_SHUT
            self._must_end_by(HALF_SHUT_SECONDS)
            return True
        return False

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    async def drained(self) -> None:
        """Wait until the socket takes more, or is gone."""
        while self.write_paused:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()

    def resume_reading(self) -> None:
        """Read on, unless requests wait for the answers to those before them."""
        if self._reading_paused and not self._waiting:
            self._reading_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    # From bytes to requests

    def _take_held(self) -> None:
        """Parse what has come, as long as no request waits for the one before it."""
        held, self._held, at = self._held, b"", 0
        while (
            at < len(held)
            and not self._waiting
            and self._reading in REQUESTS
            and not self.transport.is_closing()
        ):
            self._parse(held[at : at + PARSED_AT_ONCE] if len(held) > PARSED_AT_ONCE else held)
            at += PARSED_AT_ONCE
        if self._upgraded is not None:
            handshake, rest = self._upgraded
            self._upgraded = None
            self._hand_over(handshake, rest + held[at:])
        elif self._waiting:
            # Nothing more is read for now, which isn't the client's fault: its time stands still.
            self._held = held[at:]
            self._pause_reading()
            self.server_state.deadlines.pop(self, None)
            self._timed = None
        else:
            self._start_clock()

    def _parse(self, data: bytes) -> None:
        """Feed the parser, past an upgrade that isn't offered; refuse what it can't read."""
        if self._reading is Reading.BODY:
            self._framing_bytes += len(data)
        else:
            self._head_bytes += len(data)
        while data:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
                if self._asks_for_websocket():
                    self._upgrade(rest)
                    return
                data = self._without_upgrade() + rest
            except httptools.HttpParserError:
                # Not worth a line in the log: whoever can connect could fill a disk with them.
                self._refuse(*self._refusal, unread=data)
                return
        # A head that is too large is read on for a while: without its Origin no page could read why
        # it was refused.
        if max(self._head_bytes // 2, self._framing_bytes) > self._limits.header_bytes:
            self._refuse(431, self._too_large)

    def _start_clock(self) -> None:
        """Give the client its time for what it has begun, unless it has begun that before."""
        if self._reading is Reading.HEAD or self._reading is Reading.BODY:
            begun = (self._reading, self._requests)
            if begun != self._timed:
                self._timed = begun
                limits, head = self._limits, self._reading is Reading.HEAD
                self._must_end_by(limits.header_timeout if head else limits.body_timeout)
        elif self._reading is Reading.IDLE and self._answering is None and self._timed is not None:
            if self._requests == 0:
                return  # an empty line is no request
            self._timed = None
            self._must_end_by(self._limits.keep_alive)

    def _take_rest(self, data: bytes) -> None:
        """Take what comes while a stream is open: its own request's rest, or what ends the stream.

        Some gateways send the last chunk of an empty body after the headers. Nothing waits for it,
        and no more is taken than of headers; empty lines are allowed behind it (RFC 9112, section
        2.2).
        """
        self._framing_bytes += len(data)
        assert self._latest is not None
        if self._latest.more_body:
            try:
                self._parser.feed_data(data)
                wrong = False
            except httptools.HttpParserError:
                wrong = True
        else:
            wrong = bool(data.strip(b"\r\n"))
        if wrong or self._framing_bytes > self._limits.header_bytes:
            self.transport.abort()

    def _asks_for_websocket(self) -> bool:
        """True if the request whose head has come asks for a WebSocket, and can become one.

        Behind a request that isn't answered yet it can't: it is a plain one then.
        """
        if self._parser.get_method() != b"GET" or self._parser.get_http_version() != "1.1":
            return False
        body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self._headers
        )
        wanted = [value for name, value in self._headers if name == b"upgrade"]
        busy = self._answering is not None or self._waiting
        return not body and not busy and [each.lower() for each in wanted] == [b"websocket"]

    def _upgrade(self, rest: bytes) -> None:
        """Leave the connection to a WebSocket, or refuse the handshake."""
        self._settle_host()
        found = read_handshake(self._headers, self.server_state.checker)
        if isinstance(found, Faulty):
            self._refuse(found.status, found.detail, headers=found.headers)
            return
        self._reading = Reading.UPGRADED
        self._upgraded = found, rest

    def _hand_over(self, handshake: Handshake, held: bytes) -> None:
        """Leave the connection to a WebSocket.

        Args:
            held: what has come behind the request.
        """
        state = self.server_state
        state.connections.discard(self)
        state.deadlines.pop(self, None)
        socket = WebSocket(
            self.transport, state, handshake.accept, held, write_paused=self.write_paused
        )
        scope = self._scope("GET", "1.1")
        del scope["method"]
        scope["type"], scope["scheme"] = "websocket", "ws"
        scope["subprotocols"] = handshake.subprotocols
        scope["extensions"] = {"websocket.http.response": {}, "msgpush.wire": SocketWire(socket)}
        self._parser = self._latest = None
        socket.begin(self._app, scope)

    def _without_upgrade(self) -> bytes:
        # No other upgrade is offered here: it is a plain request (RFC 9110, section 7.8). But the
        # parser leaves out its body: another one gets the head anew.
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, version)]
        kept = [each for each in self._headers if each[0] not in (b"upgrade", b"connection")]
        lines += [b"%b: %b" % header for header in (*kept, (b"connection", b"close"))]
        self._parser = self._new_parser()
        return b"\r\n".join([*lines, b"", b""])

    # From the parser

    def on_message_begin(self) -> None:
        if self._reading is Reading.STREAM:
            raise ValueError("a request behind a stream")
        self._reading = Reading.HEAD
        self._requests += 1
        self._url = b""
        self._headers = []
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are none of the headers that somebody before us has checked (RFC 9110, section
        # 6.5.1).
        if self._reading is Reading.HEAD:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self._expects_continue = True
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._limits.header_bytes:
            size = len(self._url) + sum(len(each) + len(value) + 4 for each, value in self._headers)
            if size > self._limits.header_bytes:
                self._refusal = (431, self._too_large)
                raise ValueError
        parser = self._parser
        version, method = parser.get_http_version(), parser.get_method()
        if (fault := self._fault(version)) is not None:
            self._refusal = (400, fault)
            raise ValueError
        self._head_bytes = 0
        if parser.should_upgrade():
            return
        self._settle_host()
        self._latest = exchange = Exchange(
            self,
            self._scope(method.decode(), version),
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            expects_continue=self._expects_continue,
        )
        self._reading = Reading.BODY
        if self._answering is None:
            self._answer(exchange)
        else:
            self._waiting.append(exchange)

    def on_body(self, body: bytes) -> None:
        if self._reading is Reading.STREAM:
            return
        # Chunks of one byte are allowed; without end are neither their extensions nor trailers.
        self._framing_bytes = max(0, self._framing_bytes - 8 * len(body))
        exchange = self._latest
        if exchange is not None and not exchange.complete and exchange.feed(body) > READ_AHEAD:
            self._pause_reading()

    def on_message_complete(self) -> None:
        if self._reading is Reading.HEAD:
            return  # its head goes to another parser: see `_without_upgrade`
        assert self._latest is not None
        self._latest.end_body()
        self._framing_bytes = 0
        if self._reading is Reading.BODY:
            self._reading = Reading.IDLE

    def _scope(self, method: str, version: str) -> dict[str, Any]:
        """The ASGI scope of the request whose headers have just come."""
        target, _, query = self._url.partition(b"?")
        path = target.decode("ascii")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": method,
            "scheme": "http",
            "path": self._root_path + (unquote(path) if "%" in path else path),
            "raw_path": self._root_path.encode() + target if self._root_path else target,
            "query_string": query,
            "root_path": self._root_path,
            "headers": self._headers,
            "server": self._server,
            "client": self._client,
            "state": self._app_state.copy(),
        }
        if method == "GET" and version == "1.1":
            scope["extensions"] = {"msgpush.wire": Wire(self)}
        return scope

    def _fault(self, version: str) -> str | None:
        """The reason why a head of this version can't be understood, or not in one way only."""
        if self._parser.should_upgrade() and self._parser.get_method() == b"CONNECT":
            return "this is no proxy"
        if version not in ("1.0", "1.1"):
            return "only HTTP/1.1 and HTTP/1.0 are spoken here"
        if b"#" in self._url or not (
            self._url[:1] == b"/" or self._url == b"*" or _ABSOLUTE.match(self._url)
        ):
            return "the request's target is neither a path nor an http URL"
        if b"%2f" in self._url.partition(b"?")[0].lower():
            told = (
                "the path has an encoded slash, which some servers read as a slash and some don't"
            )
            return (
                f"{told}; a name with a slash is percent-encoded twice (%252F){_twice(self._url)}"
            )
        hosts = 0
        codings = []
        for name, value in self._headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.strip(b" \t").lower())
        if version == "1.1" and hosts != 1:
            return "a request of HTTP/1.1 has one Host header"
        if codings and (codings != [b"chunked"] or version == "1.0"):
            # Another coding would be taken for the body itself; HTTP/1.0 has none (RFC 9112,
            # section 6.1).
            return "the only Transfer-Encoding is chunked, and that in HTTP/1.1"
        return None

    def _settle_host(self) -> None:
        # Where the target names a host it counts, whatever the header says (RFC 9112, section
        # 3.2.2).
        if absolute := _ABSOLUTE.match(self._url):
            self._url = b"/" + self._url[absolute.end() :].removeprefix(b"/")
            self._headers[:] = [
                (name, absolute[1] if name == b"host" else value) for name, value in self._headers
            ]

    # Answers

    @property
    def _unanswered(self) -> Exchange | None:
        """The request that came last, while it hasn't its whole answer."""
        latest = self._latest
        return None if latest is None or latest.complete else latest

    def _answer(self, exchange: Exchange) -> None:
        self._answering = exchange
        task = self._loop.create_task(exchange.run(self._app))
        self.server_state.tasks.add(task)

    def answered(self, exchange: Exchange) -> None:
        """An exchange has its whole answer: the next one has its turn, or the connection ends."""
        self.server_state.total_requests += 1
        self._answering = None
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            self.end()
            return
        if self._waiting:
            self._answer(self._waiting.pop(0))
        self.resume_reading()
        if not self._waiting:
            self._take_held()
        if self._reading is Reading.IDLE and self._unanswered is None:
            self._must_end_by(self._limits.keep_alive)
        elif not self._waiting:
            self._start_clock()

    def begin_stream(self) -> None:
        """The answer that is being given is an open stream."""
        unwanted = self._waiting or self._held or self._reading not in REQUESTS
        self._reading = Reading.STREAM
        self._framing_bytes = 0
        self.server_state.deadlines.pop(self, None)
        if self._answering is not None:
            self._answering.flush_as_last()
        if unwanted:
            self.transport.abort()

    def end_stream(self) -> None:
        """The application has written all of the stream that is open."""
        if self._answering is not None:
            self._answering.complete = True
            self._answering.wake()

    # Ends

    def shutdown(self) -> None:
        """End once the answer is given that is being given; uvicorn calls this."""
        if (unanswered := self._unanswered) is None:
            self.transport.close()
        else:
            unanswered.keep_alive = False

    def end(self) -> None:
        """Close behind the last answer, so that it can be read though its body still comes."""
        if self._reading is Reading.BODY:
            self.linger()
        elif self._reading is not Reading.UPGRADED:
            self.transport.close()

    def linger(self) -> None:
        """Half-close, so that the client can read the answer; then discard what it still sends."""
        if self._reading is Reading.LINGERING or self.transport.is_closing():
            return
        self._reading = Reading.LINGERING
        self._linger_until = time.monotonic() + max(LINGER_SECONDS, self._limits.body_timeout)
        self._waiting.clear()
        self._held = b""
        self.resume_reading()
        self._must_end_by(LINGER_SECONDS)
        self.transport.write_eof()

    def expire(self) -> None:
        """The client was too slow."""
        del self.server_state.deadlines[self]
        match self._reading:
            case Reading.LINGERING | Reading.HALF_SHUT:
                self.transport.abort()
            case Reading.IDLE if self._unanswered is None:
                self.transport.close()
            case Reading.HEAD if self._head_bytes > self._limits.header_bytes:
                self._refuse(431, self._too_large)
            case Reading.HEAD:
                took = f"took longer than {self._limits.header_timeout:g} seconds"
                self._refuse(408, f"the request's headers {took}")
            case Reading.BODY if self._unanswered is None:
                self.linger()  # it was answered before its body was complete
            case Reading.BODY:
                took = f"took longer than {self._limits.body_timeout:g} seconds"
                self._refuse(408, f"the request's body {took}")

    def _refuse(
        self,
        status: int,
        detail: str,
        unread: bytes = b"",
        headers: bytes = b"",
    ) -> None:
        """Answer what can't become a request, or is one no longer, and end the connection.

        Args:
            unread: what the parser had before it when it gave up: it doesn't tell the last header.
            headers: further lines of the answer's head.
        """
        self.server_state.on_refused(_REFUSALS[status])
        unanswered = self._unanswered
        if self._reading is not Reading.BODY and unanswered is not None:
            # Those before it get their answers, and its own would be taken for one of them.
            unanswered.keep_alive = False
            self._reading = Reading.DEAF
            return
        if unanswered is not None:
            # Its application is told that the client has gone: what has come isn't the whole.
            unanswered.disconnect()
        if self._waiting or (unanswered is not None and unanswered.started):
            self.transport.abort()
            return
        told = problem(status, detail)
        body = encode(told)
        # Whoever sends Upgrade says so in Connection (RFC 9110, section 7.8).
        options = "close, upgrade" if status == HTTPStatus.UPGRADE_REQUIRED else "close"
        head = (
            f"HTTP/1.1 {status} {told.title}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: {options}\r\n"
        )
        sent = [value for name, value in self._headers if name == b"origin"] or _ORIGIN.findall(
            unread
        )
        cors = self.server_state.cors(sent[0].decode("latin-1") if sent else None)
        added = "".join(f"{name.lower()}: {value}\r\n" for name, value in cors.items())
        named = b"%b: %b\r\n" % (request_ids.NAME, request_ids.id_of(self._headers))
        self.transport.write(f"{head}{added}".encode() + headers + named + b"\r\n" + body)
        self.linger()

    @property
    def _too_large(self) -> str:
        most = self._limits.header_bytes
        return f"the request's line, headers and trailers are larger than {most} bytes"

    def _must_end_by(self, seconds: float) -> None:
        self.server_state.deadlines[self] = time.monotonic() + seconds


def _address(name: Any) -> tuple[str, int] | None:
    """The address of an end of a connection; None: it is a unix socket's."""
    if not isinstance(name, tuple):
        return None
    # A socket that listens on :: has the peers of IPv4, too, in a notation of its own.
    return one_notation(str(name[0])), int(name[1])


def _twice(url: bytes) -> str:
    """The path to use instead, where it can be told: with the name at its end percent-encoded once
    more.
    """
    path = url.partition(b"?")[0]
    if absolute := _ABSOLUTE.match(path):
        path = path[absolute.end() :]
    if (named := _NAMED.fullmatch(path)) is None or b"%2f" in named[1].lower():
        return ""
    told = (named[1] + named[2].replace(b"%", b"%25")).decode("ascii")
    return f": {told}" if len(told) <= _LONGEST_PATH else f": {told[:_LONGEST_PATH]}..."
