"""One HTTP connection: uvicorn's protocol, with limits, and streams that cost no task switch a
write.

What is added, and why it can't be had from the outside:

- the ASGI extension `msgpush.wire`: bytes that are framed already go straight to a connection's
  transport;
- httptools has no limit of headers and no time for them; a body may take for ever; a pipelined
  request behind an open stream would leave its task behind;
- uvicorn parses every request that it is sent ahead of the answers: a hundred times what they took
  on the wire;
- what could be understood in two ways is refused, since a proxy before us may have understood it in
  the other one;
- closing with unread input sends RST, which destroys an answer on its way: such a connection is
  half-closed, and what still comes is discarded for a while."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import httptools
import uvicorn
from msgspec import Struct
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from msgpush.adapters.http.addresses import one_notation
from msgpush.adapters.http.problems import encode, problem

HIGH_WATER = 16 * 1024
SLICE = 4 * 1024  # what is parsed at once, and so the most of which waiting requests are made
LINGER_SECONDS = 1.0
HALF_CLOSED_SECONDS = 1.0

_REFUSALS = {400: "malformed", 408: "too_slow", 431: "headers"}
_ORIGIN = re.compile(rb"(?i)\norigin:[ \t]*(\S+)")
_ABSOLUTE = re.compile(rb"(?i)https?://([^/?#@]+)(?=[/?]|\Z)")
# A path that ends with a name of ours, in printable ASCII; what stands before it may be a proxy's
# prefix.
_NAMED = re.compile(rb"((?:/[!-.0-~]+)*?/sse/(?:stream|user|service)/)([!-.0-~]+)")
_LONGEST_PATH = 200  # characters of it that are told


class Limits(Struct, frozen=True):
    """What a client may take: bytes of a request's line and headers together, and seconds.

    `header_timeout` counts from connecting, or from the first byte of a later request on the same
    connection."""

    header_bytes: int = 32 * 1024
    header_timeout: float = 5.0
    body_timeout: float = 30.0
    keep_alive: int = 75


class Wire:
    """The ASGI extension `msgpush.wire` of one GET request over HTTP/1.1.

    The application starts its response by `send`, without a Content-Length, and calls `open`. From
    then on it writes chunks that are framed already (RFC 9112, section 7.1), and nothing by `send`,
    until `finish`."""

    __slots__ = ("_flow", "_protocol", "_transport")

    def __init__(self, protocol: "Protocol") -> None:
        # Not its request: that has this in its scope, and would be left to the garbage collector,
        # which comes rarely.
        self._protocol = protocol
        self._flow, self._transport = protocol.flow, protocol.transport

    def open(self) -> None:
        """The response is a stream: from here on, whatever the client sends ends it, but its own
        request's rest.
        """
        self._protocol.begin_stream()

    @property
    def writable(self) -> bool:
        return not (self._flow.write_paused or self._transport.is_closing())

    @property
    def backlog(self) -> int:
        """Bytes that the socket hasn't taken yet."""
        return self._transport.get_write_buffer_size()

    def write(self, framed: bytes) -> bool:
        """True: taken whole. False, and nothing taken: the socket is over its high-water mark, or
        gone.
        """
        if self._flow.write_paused or self._transport.is_closing():
            return False
        self._transport.write(framed)
        return True

    def finish(self, framed: bytes) -> None:
        """Write the last bytes whatever the backlog, end the response, and close once all is
        flushed.
        """
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
        await self._flow.drain()


class Flow(FlowControl):
    """uvicorn's flow control, whose event is made when somebody waits: an idle stream costs a
    kilobyte less.

    It reads on only when no request waits for the answers to those before it.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: "Pipeline") -> None:
        self._transport, self._pipeline = transport, pipeline
        self.read_paused = self.write_paused = False
        self._writable: asyncio.Event | None = None

    async def drain(self) -> None:
        while self.write_paused:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None


class Pipeline(list[Any]):
    """What uvicorn keeps waiting requests in; an empty deque takes ten times the memory."""

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)


class Lingering:
    """A request's view of its transport: `close` waits until the client has read the answer."""

    __slots__ = ("_protocol", "_transport", "is_closing", "write")

    def __init__(self, protocol: "Protocol") -> None:
        self._protocol, self._transport = protocol, protocol.transport
        self.write, self.is_closing = self._transport.write, self._transport.is_closing

    def close(self) -> None:
        if self._protocol.reading_body:
            self._protocol.linger()
        else:
            self._transport.close()


class Unchunked:
    """An HTTP/1.0 request's view of its transport: chunked coding, which such a client can't read,
    is taken off.
    """

    __slots__ = ("_chunked", "_transport", "close", "is_closing")

    def __init__(self, protocol: "Protocol") -> None:
        self._transport = protocol.transport
        self._chunked: bool | None = None
        self.close, self.is_closing = Lingering(protocol).close, self._transport.is_closing

    def write(self, data: bytes) -> None:
        if self._chunked is None:
            self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in data
            data = data.replace(b"\r\ntransfer-encoding: chunked\r\n", b"\r\n", 1)
        elif self._chunked:
            # uvicorn writes one chunk at a time, and the last one's end with it.
            size, _, rest = data.partition(b"\r\n")
            data = rest[: int(size, 16)] if size else b""
        if data:
            self._transport.write(data)


class State(ServerState):
    """What all connections of a server share.

    Attributes:
        on_refused: told why, whenever a request was refused before it was one.
        cors: the headers without which pages of an origin couldn't read such a refusal.
        deadlines: connections that must get on with it, and until when.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.on_refused: Callable[[str], None] = lambda reason: None
        self.cors: Callable[[str | None], Mapping[str, str]] = lambda origin: {}
        self.deadlines: dict[Protocol, float] = {}

    def expire(self, now: float) -> None:
        """End the connections whose time is up."""
        for connection, deadline in list(self.deadlines.items()):
            if now >= deadline:
                connection.expire()


class Protocol(HttpToolsProtocol):
    """One connection."""

    server_state: State

    def __init__(
        self, config: uvicorn.Config, server_state: State, app_state: dict[str, Any], **more: Any
    ) -> None:
        super().__init__(config, server_state, app_state, **more)
        self.pipeline = Pipeline()  # type: ignore[assignment]
        self._limits = server_state.limits
        self._in_head = True
        self._head_bytes = self._framing_bytes = 0
        self.held = b""
        self._streaming = self._half_closed = self._deaf = False
        self._linger_until: float | None = None
        self._refusal = (400, "this is no HTTP request")
        self._answering: RequestResponseCycle | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:
            # A socket that listens on :: has the peers of IPv4, too, in a notation of its own.
            self.client = (one_notation(self.client[0]), self.client[1])
        self.flow = Flow(transport, self.pipeline)  # type: ignore[arg-type]
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._must_end_by(self._limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.deadlines.pop(self, None)
        self.pipeline.clear()
        self.held = b""
        if self._answering is not None:
            # uvicorn tells only the request that came last, and leaves the task of the one before
            # it behind.
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)
        # uvicorn lets the timer be where the client has reset the connection.
        self._unset_keepalive_if_required()
        # What refers to each other is left to the garbage collector, which comes rarely.
        self.scope = self.cycle = self._answering = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._linger_until is not None:
            self.server_state.deadlines[self] = min(
                self._linger_until, time.monotonic() + LINGER_SECONDS
            )
        elif self._deaf:
            pass
        elif self._streaming:
            self._take_rest(data)
        else:
            self._unset_keepalive_if_required()
            self.held += data
            self._take_held()

    def eof_received(self) -> bool:  # type: ignore[override]
        # A client may half-close after a whole request and still read the answer. Of a stream it is
        # its end.
        if (
            self._unanswered
            and not self.reading_body
            and not self._streaming
            and self._linger_until is None
        ):
            self.cycle.keep_alive = False
            self._half_closed = True
            self._must_end_by(HALF_CLOSED_SECONDS)
            return True
        return False

    # From bytes to requests

    def _take_held(self) -> None:
        # As long as no request waits for the one before it: in memory it takes a hundred times its
        # bytes.
        held, self.held, at = self.held, b"", 0
        self.flow.resume_reading()
        while (
            at < len(held)
            and not self.pipeline
            and not self._deaf
            and not self.transport.is_closing()
        ):
            self._parse(held[at : at + SLICE])
            at += SLICE
        if self.pipeline:
            # Nothing more is read for now, which isn't the client's fault: its time stands still.
            self.held = held[at:]
            self.server_state.deadlines.pop(self, None)

    def _parse(self, data: bytes) -> None:
        self._start_clock()
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                # Not worth a line in the log: whoever can connect could fill a disk with them.
                self._refuse(*self._refusal, unread=data)
                return
        # A head that is too large is read on for a while: without its Origin no page could read why
        # it was refused.
        if max(self._head_bytes // 2, self._framing_bytes) > self._limits.header_bytes:
            self._refuse(431, self._too_large)

    def _take_rest(self, data: bytes) -> None:
        """What comes while a stream is open: the end of its own request, or what ends the stream.

        Some gateways send the last chunk of an empty body after the headers. Nothing waits for it,
        and no more is taken than of headers; empty lines are allowed behind it (RFC 9112, section
        2.2)."""
        self._framing_bytes += len(data)
        if self._in_head:
            wrong = bool(data.strip(b"\r\n"))
        else:
            try:
                self.parser.feed_data(data)
                wrong = False
            except httptools.HttpParserError:
                wrong = True
        if wrong or self._framing_bytes > self._limits.header_bytes:
            self.transport.abort()

    def _without_upgrade(self) -> bytes:
        # No upgrade is offered here, so it is a plain request (RFC 9110, section 7.8). But the
        # parser leaves out its body: another one gets the head anew.
        lines = [
            b"%b %b HTTP/%b"
            % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        kept = [header for header in self.headers if header[0] not in (b"upgrade", b"connection")]
        lines += [b"%b: %b" % header for header in (*kept, (b"connection", b"close"))]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*lines, b"", b""])

    def _start_clock(self) -> None:
        if self not in self.server_state.deadlines:
            self._must_end_by(
                self._limits.header_timeout if self._in_head else self._limits.body_timeout
            )

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._streaming:
            raise ValueError("a request behind a stream")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are none of the headers that somebody before us has checked (RFC 9110, section
        # 6.5.1).
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._limits.header_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._limits.header_bytes:
                self._refusal = (431, self._too_large)
                raise ValueError
        version = self.parser.get_http_version()
        if (fault := self._fault(version)) is not None:
            self._refusal = (400, fault)
            raise ValueError
        self._head_bytes = 0
        if self.parser.should_upgrade():
            return
        self._settle_host()
        if not self._unanswered or self._answering is None or self._answering.response_complete:
            self._answering = self.cycle if self._unanswered else None
        super().on_headers_complete()
        self._in_head = False
        self._equip(self.cycle, version)
        if self.reading_body:
            self._must_end_by(self._limits.body_timeout)
        else:
            self.server_state.deadlines.pop(self, None)

    def on_body(self, body: bytes) -> None:
        if not self._streaming:
            # Chunks of one byte are allowed; without end are neither their extensions nor trailers.
            self._framing_bytes = max(0, self._framing_bytes - 8 * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_head:
            return
        super().on_message_complete()
        self._in_head = True
        self._framing_bytes = 0
        self.server_state.deadlines.pop(self, None)

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            if self._head_bytes or self.reading_body:
                self._start_clock()
            self._take_held()

    def _fault(self, version: str) -> str | None:
        """Why a head of this HTTP version can't be understood, or not in one way only."""
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":
            return "this is no proxy"
        if version not in ("1.0", "1.1"):
            return "only HTTP/1.1 and HTTP/1.0 are spoken here"
        if b"#" in self.url or not (
            self.url[:1] == b"/" or self.url == b"*" or _ABSOLUTE.match(self.url)
        ):
            return "the request's target is neither a path nor an http URL"
        if b"%2f" in self.url.partition(b"?")[0].lower():
            told = (
                "the path has an encoded slash, which some servers read as a slash and some don't"
            )
            return f"{told}; a name with a slash is percent-encoded twice (%252F){_twice(self.url)}"
        hosts = 0
        codings = []
        for name, value in self.headers:
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
        if absolute := _ABSOLUTE.match(self.url):
            self.url = b"/" + self.url[absolute.end() :].removeprefix(b"/")
            self.headers[:] = [
                (name, absolute[1] if name == b"host" else value) for name, value in self.headers
            ]

    def _equip(self, cycle: RequestResponseCycle, version: str) -> None:
        if version != "1.1":
            cycle.transport = Unchunked(self)  # type: ignore[assignment]
        elif self.scope["method"] == "GET":
            self.scope["extensions"] = {"msgpush.wire": Wire(self)}  # type: ignore[dict-item]
        if version == "1.1" and self.scope["method"] != "GET":
            cycle.transport = Lingering(self)  # type: ignore[assignment]

    # Ends

    @property
    def reading_body(self) -> bool:
        """Whether more of the present request's body is to come."""
        return not self._in_head

    @property
    def _unanswered(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def begin_stream(self) -> None:
        self._streaming = True
        self._framing_bytes = 0
        if self.pipeline or self.held or self._half_closed or self._deaf:
            self.transport.abort()
        self.server_state.deadlines.pop(self, None)

    def end_stream(self) -> None:
        """The application has written all of the stream that is open."""
        self.cycle.response_complete = True
        self.cycle.message_event.set()

    def linger(self) -> None:
        """Half-close, so that the client can read the answer; then discard what it still sends, as
        long as it does.
        """
        if self._linger_until is not None or self.transport.is_closing():
            return
        self._deaf = True
        self._linger_until = time.monotonic() + max(LINGER_SECONDS, self._limits.body_timeout)
        self.pipeline.clear()
        self.held = b""
        self.flow.resume_reading()
        self._must_end_by(LINGER_SECONDS)
        self.transport.write_eof()

    def expire(self) -> None:
        """The client was too slow."""
        del self.server_state.deadlines[self]
        if self._linger_until is not None or (self._in_head and self._unanswered):
            self.transport.abort()
        elif self._in_head and not self._head_bytes:
            self.transport.close()
        elif not self._in_head and not self._unanswered:
            self.linger()  # it was answered before its body was complete
        elif self._in_head and self._head_bytes > self._limits.header_bytes:
            self._refuse(431, self._too_large)
        elif self._in_head:
            self._refuse(
                408,
                f"the request's headers took longer than {self._limits.header_timeout:g} seconds",
            )
        else:
            self._refuse(
                408, f"the request's body took longer than {self._limits.body_timeout:g} seconds"
            )

    def _refuse(self, status: int, detail: str, unread: bytes = b"") -> None:
        # What can't become a request, or is one no longer. The parser doesn't tell the last header
        # before a mistake.
        self.server_state.on_refused(_REFUSALS[status])
        if self._in_head and self._unanswered:
            # Those before it get their answers, and its own would be taken for one of them.
            self.cycle.keep_alive = False
            self._deaf = True
            return
        if self.pipeline:
            self.transport.abort()
            return
        started = self._unanswered and self.cycle.response_started
        if self._unanswered:
            # Its application is told that the client has gone: what has come isn't the whole.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if started:
            self.transport.abort()
            return
        told = problem(status, detail)
        body = encode(told)
        head = (
            f"HTTP/1.1 {status} {told.title}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
        )
        sent = [
            value for name, value in self.headers or () if name == b"origin"
        ] or _ORIGIN.findall(unread)
        cors = self.server_state.cors(sent[0].decode("latin-1") if sent else None)
        added = "".join(f"{name.lower()}: {value}\r\n" for name, value in cors.items())
        self.transport.write(f"{head}{added}\r\n".encode() + body)
        self.linger()

    @property
    def _too_large(self) -> str:
        return (
            f"the request's line, headers and trailers are larger than {self._limits.header_bytes}"
            " bytes"
        )

    def _must_end_by(self, seconds: float) -> None:
        self.server_state.deadlines[self] = time.monotonic() + seconds


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
