"""WebSockets on our server: frames, byte by byte, and what the application sees of them.

The tables are the cases of Autobahn's test suite, written anew: it needs Python 2, which not
everybody has. (It was run against this server by hand, too.)
"""

import asyncio
import contextlib
import gc
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import ConnectionClosedOK
from websockets.protocol import Protocol as Frames
from websockets.sync.client import connect

from msgpush.entrypoints.exchange import Exchange
from msgpush.entrypoints.protocol import HIGH_WATER, PARSED_AT_ONCE, Limits, Protocol
from msgpush.entrypoints.websocket import SocketWire, WebSocket
from tests.support.client import RawConnection
from tests.support.frames import (
    ACCEPT,
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    AppServer,
    Asking,
    Got,
    RawWebSocket,
    asking,
    closing,
    frame,
)
from tests.support.service import eventually

MOST = 200_000
LIMITS = Limits(body_timeout=0.3, max_message_bytes=MOST)


class Site:
    """Small applications, by their paths, and what they were told.

    Attributes:
        received: messages of all but the echo.
        codes: with which connections have ended.
        scopes: of those that came.
        gate: is waited for by those that say so; made in the server's loop.
    """

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.codes: list[int] = []
        self.scopes: list[Scope] = []
        self.gate = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            await self.plain(scope, receive, send)
            return
        assert await receive() == {"type": "websocket.connect"}
        await getattr(self, scope["path"].strip("/").replace("-", "_"))(scope, receive, send)

    @property
    def wire(self) -> SocketWire:
        """Of the connection that came last."""
        wire: SocketWire = self.scopes[-1]["extensions"]["msgpush.wire"]
        return wire

    async def plain(self, _: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"plain"})

    async def echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        offered = scope["subprotocols"]
        headers = [(b"x-path", scope["raw_path"])]
        await send(
            {
                "type": "websocket.accept",
                "subprotocol": offered[0] if offered else None,
                "headers": headers,
            }
        )
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        self.codes.append(message["code"])

    async def listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            self.received.append(message)
        self.codes.append(message["code"])

    async def wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await self.gate.wait()
        while (message := await receive())["type"] == "websocket.receive":
            self.received.append(message)
        self.codes.append(message["code"])

    async def ask_first(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.gate.wait()
        await self.echo(scope, receive, send)

    async def close(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        message = await receive()
        if message.get("text") == "send first":
            await send({"type": "websocket.send", "text": "last"})
        await send({"type": "websocket.close", "code": 4000, "reason": "enough"})
        await send({"type": "websocket.send", "text": "too late"})
        self.received.append(await receive())

    async def close_at_once(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close"})
        self.codes.append((await receive())["code"])

    async def deny(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain"), (b"x-why", b"never")]
        start = {"type": "websocket.http.response.start", "status": 404, "headers": headers}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"here"})
        self.codes.append((await receive())["code"])

    async def fail(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("on purpose")

    async def fail_late(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        raise LookupError("on purpose")

    async def leave(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def leave_open(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def too_early(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.send", "text": "x"})

    async def bad_code(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1005})


class Served:
    """A server of a `Site`."""

    def __init__(self, server: AppServer, site: Site) -> None:
        self.server, self.site, self.port = server, site, server.port

    def sockets(self) -> list[WebSocket]:
        connections: set[Any] = self.server.server.server_state.connections
        return self.server.call(lambda: [e for e in connections if isinstance(e, WebSocket)])

    def open_gate(self) -> None:
        self.server.call(self.site.gate.set)


@contextlib.contextmanager
def serve(limits: Limits = LIMITS) -> Iterator[Served]:
    site = Site()
    with AppServer(site, limits) as server:
        yield Served(server, site)


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with serve() as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    """The shared server, with nobody connected and nothing told."""
    site = shared.site
    shared.open_gate()
    eventually(lambda: not shared.sockets())
    shared.server.call(site.gate.clear)
    for each in (site.received, site.codes, site.scopes):
        each.clear()
    return shared


def sent_in_pieces(connection: RawConnection, data: bytes, size: int) -> None:
    for n in range(0, len(data), size or len(data)):
        connection.send(data[n : n + (size or len(data))])


# Framing


@pytest.mark.parametrize("piece", [0, 997, 1])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65535, 65536, 65537])
def test_a_message_of_any_length_is_echoed_in_whatever_pieces_it_comes(
    served: Served, size: int, opcode: int, piece: int
) -> None:
    payload = b"*" * size if opcode == TEXT else bytes(n % 251 for n in range(size))
    if piece == 1 and size > 128:
        # Its head octet by octet, and then the rest.
        whole = frame(opcode, payload)
        pieces = [whole[n : n + 1] for n in range(20)] + [whole[20:]]
    else:
        whole = frame(opcode, payload)
        step = piece or len(whole)
        pieces = [whole[n : n + step] for n in range(0, len(whole), step)]
    with RawWebSocket(served.port) as client:
        for each in pieces:
            client.send(each)
        assert client.next() == Got(opcode, payload)


def test_a_length_may_be_written_longer_than_it_need_be(served: Served) -> None:
    mask = b"\0\0\0\0"
    with RawWebSocket(served.port) as client:
        client.send(b"\x81" + struct.pack("!BH", 0x80 | 126, 2) + mask + b"hi")
        client.send(b"\x81" + struct.pack("!BQ", 0x80 | 127, 2) + mask + b"ho")
        assert (client.next().payload, client.next().payload) == (b"hi", b"ho")


def test_messages_keep_their_order_however_many_come_at_once(served: Served) -> None:
    texts = [b"%d" % n for n in range(5000)]
    with RawWebSocket(served.port) as client:
        writer = threading.Thread(
            target=client.send, args=(b"".join(frame(TEXT, each) for each in texts),)
        )
        writer.start()
        assert [client.next().payload for _ in texts] == texts
        writer.join()


# Pings and pongs


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("payload", [b"", b"hello", b"\0\xff\xfe\xfd\xfc\xfb\0\xff", b"\xfe" * 125])
def test_a_ping_is_answered_with_its_payload(served: Served, payload: bytes, piece: int) -> None:
    with RawWebSocket(served.port) as client:
        sent_in_pieces(client, frame(PING, payload), piece)
        assert client.next() == Got(PONG, payload)


@pytest.mark.parametrize("pongs", [[b""], [b"unasked"], [b"x"] * 10])
def test_a_pong_that_nobody_asked_for_is_ignored(served: Served, pongs: list[bytes]) -> None:
    with RawWebSocket(served.port) as client:
        for each in pongs:
            client.send(frame(PONG, each))
        client.send(frame(PING, b"after"))
        assert client.next() == Got(PONG, b"after")


@pytest.mark.parametrize("piece", [0, 1])
def test_ten_pings_at_once_are_all_answered_in_order(served: Served, piece: int) -> None:
    with RawWebSocket(served.port) as client:
        sent_in_pieces(client, b"".join(frame(PING, b"%d" % n) for n in range(10)), piece)
        assert [client.next().payload for _ in range(10)] == [b"%d" % n for n in range(10)]


# What no client may send

BROKEN = {
    "ping of 126 bytes": frame(PING, b"x" * 126),
    "pong of 126 bytes": frame(PONG, b"x" * 126),
    "close of 126 bytes": frame(CLOSE, struct.pack("!H", 1000) + b"x" * 124),
    **{
        f"reserved bits {bits:03b} in {opcode}": frame(opcode, b"x", reserved=bits)
        for bits in range(1, 8)
        for opcode in (TEXT, PING, CLOSE)
    },
    **{
        f"opcode {opcode} with {len(payload)} bytes": frame(opcode, payload)
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
        for payload in (b"", b"x")
    },
    "ping in fragments": frame(PING, b"x", fin=False) + frame(CONT, b"y"),
    "pong in fragments": frame(PONG, b"x", fin=False) + frame(CONT, b"y"),
    "close in fragments": frame(CLOSE, b"", fin=False),
    "continuation of nothing": frame(CONT, b"x"),
    "continuation of nothing, not the last": frame(CONT, b"x", fin=False) + frame(CONT),
    "continuation of what was whole": frame(TEXT, b"x") + frame(CONT, b"y"),
    "text within a text": frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"),
    "binary within a text": frame(TEXT, b"x", fin=False) + frame(BINARY, b"y"),
    "fragments within a text": frame(TEXT, b"x", fin=False) + frame(TEXT, b"y", fin=False),
    "no mask": frame(TEXT, b"x", masked=False),
    "no mask, empty": frame(BINARY, b"", masked=False),
    "ping without a mask": frame(PING, b"x", masked=False),
    "close of one byte": frame(CLOSE, b"x"),
    **{
        f"close with {code}": closing(code)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_what_breaks_the_protocol_ends_it_with_1002(
    served: Served, sent: bytes, piece: int
) -> None:
    with RawWebSocket(served.port) as client:
        with contextlib.suppress(ConnectionError):  # it may have closed before it has all
            sent_in_pieces(client, sent, piece)
        assert client.end().code == 1002
    eventually(lambda: served.site.codes == [1002])


# Fragments

FRAGMENTS = {
    "two": [frame(TEXT, b"one ", fin=False), frame(CONT, b"two")],
    "a ping between them": [
        frame(TEXT, b"one ", fin=False),
        frame(PING, b"p"),
        frame(CONT, b"two"),
    ],
    "empty ones": [
        frame(TEXT, b"", fin=False),
        frame(CONT, b"one two", fin=False),
        *[frame(CONT, b"", fin=False)] * 50,
        frame(CONT, b""),
    ],
    "bytes": [
        frame(TEXT, b"o", fin=False),
        frame(CONT, b"n", fin=False),
        frame(CONT, b"e", fin=False),
        frame(CONT, b" two"),
    ],
    "a pong between them": [
        frame(TEXT, b"one", fin=False),
        frame(PONG, b"p"),
        frame(CONT, b" two"),
    ],
}


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("fragments", FRAGMENTS.values(), ids=FRAGMENTS)
def test_fragments_become_one_message(served: Served, fragments: list[bytes], piece: int) -> None:
    with RawWebSocket(served.port) as client:
        sent_in_pieces(client, b"".join(fragments), piece)
        while (got := client.next()).opcode == PONG:
            assert got.payload == b"p"
        assert got == Got(TEXT, b"one two")


def test_a_binary_message_in_fragments_stays_one(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        client.send(frame(BINARY, b"\xff", fin=False) + frame(CONT, b"\xfe"))
        assert client.next() == Got(BINARY, b"\xff\xfe")


# UTF-8 (as in Markus Kuhn's stress test)

VALID = {
    "two bytes": "ß",
    "Greek": "Hello-µ@ßöäüàá-UTF-8!!κόσμε",
    "first of each length": "\x00\x80\u0800\U00010000",
    "last of each length": "\x7f\u07ff\uffff\U0010ffff",
    "around the surrogates": "\ud7ff\ue000\ufffd",
    "no characters": "\ufffe\uffff\U0001fffe\U0010fffe",
    "outside the basic plane": "𝄞😀",
}
INVALID = {
    "continuation alone": b"\x80",
    "continuations alone": b"\xbf\x80",
    "two bytes, cut": b"\xc3",
    "three bytes, cut": b"\xe2\x82",
    "four bytes, cut": b"\xf0\x9f\x98",
    "first byte, then a space": b"\xc3 ",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "never a byte": b"\xfe\xff",
    "overlong slash": b"\xc0\xaf",
    "overlong slash, three bytes": b"\xe0\x80\xaf",
    "overlong slash, four bytes": b"\xf0\x80\x80\xaf",
    "overlong zero": b"\xc0\x80",
    "surrogate": b"\xed\xa0\x80",
    "last surrogate": b"\xed\xbf\xbf",
    "surrogate pair": b"\xed\xa0\x80\xed\xb0\x80",
    "above the last one": b"\xf4\x90\x80\x80",
    "in the middle": "κόσμε".encode() + b"\xed\xa0\x80" + b"edited",
}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("text", VALID.values(), ids=VALID)
def test_a_text_is_echoed_also_where_fragments_split_its_characters(
    served: Served, text: str, split: bool
) -> None:
    payload = text.encode()
    sent = frame(TEXT, payload)
    if split:
        sent = frame(TEXT, fin=False)
        sent += b"".join(frame(CONT, bytes([byte]), fin=False) for byte in payload)
        sent += frame(CONT)
    with RawWebSocket(served.port) as client:
        client.send(sent)
        assert client.next() == Got(TEXT, payload)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("payload", INVALID.values(), ids=INVALID)
def test_a_text_that_is_not_utf_8_ends_it_with_1007(
    served: Served, payload: bytes, split: bool
) -> None:
    sent = frame(TEXT, payload)
    if split:
        sent = frame(TEXT, payload[:1], fin=False) + frame(CONT, payload[1:])
    with RawWebSocket(served.port) as client:
        client.send(sent)
        assert client.end().code == 1007
    eventually(lambda: served.site.codes == [1007])


def test_bytes_may_be_anything(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        for payload in INVALID.values():
            client.send(frame(BINARY, payload))
            assert client.next() == Got(BINARY, payload)


def test_a_mistake_in_a_text_counts_though_the_client_closes_at_once(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        client.send(frame(TEXT, b"\xff") + closing(1000))
        assert client.end().code == 1007


# Closing


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        *((code, b"") for code in (*range(1000, 1004), *range(1007, 1015))),
        *((code, b"") for code in (3000, 3999, 4000, 4999)),
        (1000, b"enough"),
        (1000, b"*" * 123),
        (1000, "κόσμε".encode()),
    ],
)
def test_a_close_is_echoed_and_its_code_is_told(
    served: Served, code: int, reason: bytes, piece: int
) -> None:
    with RawWebSocket(served.port) as client:
        sent_in_pieces(client, closing(code, reason), piece)
        assert client.end().payload == struct.pack("!H", code) + reason
    eventually(lambda: served.site.codes == [code])


def test_a_close_without_a_code_is_echoed_without_one(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        client.send(frame(CLOSE))
        assert client.end().payload == b""
    eventually(lambda: served.site.codes == [1005])


def test_a_reason_that_is_not_utf_8_ends_it_with_1007(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        client.send(closing(1000, b"\xce\xba\xff"))
        assert client.end().code == 1007


@pytest.mark.parametrize(
    "behind",
    [frame(TEXT, b"x"), frame(PING), closing(1000), b"\xff" * 9],
    ids=["text", "ping", "close", "garbage"],
)
def test_what_comes_behind_a_close_is_ignored(served: Served, behind: bytes) -> None:
    with RawWebSocket(served.port, "/listen") as client:
        client.send(frame(TEXT, b"before") + closing(1001) + behind)
        assert client.end() == Got(CLOSE, struct.pack("!H", 1001))
    eventually(lambda: served.site.codes == [1001])
    assert [each["text"] for each in served.site.received] == ["before"]


def test_the_applications_close_waits_for_the_clients_and_nothing_comes_after(
    served: Served,
) -> None:
    with RawWebSocket(served.port, "/close") as client:
        client.send(frame(TEXT, b"send first"))
        assert client.next() == Got(TEXT, b"last")
        assert client.next() == Got(CLOSE, struct.pack("!H", 4000) + b"enough")
        client.send(frame(TEXT, b"late") + frame(PING, b"late") + closing(4000))
        client.is_over()
    eventually(lambda: served.site.received == [{"type": "websocket.disconnect", "code": 4000}])


@pytest.mark.parametrize("flooding", [False, True])
def test_a_client_that_never_answers_our_close_is_left_alone_after_a_second(
    served: Served, flooding: bool
) -> None:
    with RawWebSocket(served.port, "/close") as client:
        client.send(frame(TEXT, b"x"))
        assert client.next().code == 4000
        began = time.monotonic()
        over = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while flooding and not over.is_set():
                    client.send(frame(PONG) * 2000)

        flooder = threading.Thread(target=flood)
        flooder.start()
        try:
            client.is_over()
            assert 0.8 < time.monotonic() - began < 3
            eventually(lambda: not served.sockets())
            assert time.monotonic() - began < 5
        finally:
            over.set()
            flooder.join()


def test_a_client_that_has_sent_more_than_was_read_gets_the_last_frame_all_the_same(
    served: Served,
) -> None:
    with RawWebSocket(served.port, "/wait") as client:
        client.send(frame(TEXT, b"x" * 100_000) + frame(TEXT, b"y" * 100_000))
        eventually(lambda: served.site.scopes)
        served.server.call(lambda: served.site.wire.finish(closing_of_ours(1001)))
        assert client.next().code == 1001
        client.send(closing(1001))
        client.is_over()
    served.open_gate()


def test_a_half_closed_connection_has_ended(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        client.send(frame(TEXT, b"x"))
        assert client.next() == Got(TEXT, b"x")
        client.half_close()
        client.is_over()
    eventually(lambda: served.site.codes == [1006])


def test_a_connection_that_is_cut_has_ended(served: Served) -> None:
    client = RawWebSocket(served.port)
    client.reset()
    eventually(lambda: served.site.codes == [1006])


# Limits


def test_a_message_may_be_as_large_as_it_may_be_and_no_larger(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        client.send(frame(BINARY, b"x" * MOST))
        assert len(client.next().payload) == MOST
        client.send(frame(BINARY, b"x" * (MOST - 1), fin=False) + frame(PING, b"p" * 125))
        assert client.next() == Got(PONG, b"p" * 125)
        client.send(frame(CONT, b"x"))
        assert len(client.next().payload) == MOST
        client.send(frame(TEXT, b"x" * (MOST + 1)))
        assert client.end().code == 1009
    eventually(lambda: served.site.codes == [1009])


@pytest.mark.parametrize("size", [MOST + 126, 1 << 30, (1 << 63) - 1, (1 << 64) - 1])
def test_a_message_that_is_too_large_is_refused_by_its_header(served: Served, size: int) -> None:
    with RawWebSocket(served.port) as client:
        client.send(frame(BINARY, length=size)[:14])
        assert client.end().code == 1009


def test_fragments_count_together(served: Served) -> None:
    half = MOST // 2
    with RawWebSocket(served.port) as client:
        client.send(frame(TEXT, b"x" * half, fin=False) + frame(CONT, b"x" * half, fin=False))
        client.send(frame(PING))
        assert client.next().opcode == PONG
        client.send(frame(CONT, b"x", fin=False))
        assert client.end().code == 1009


BEGUN = {
    "a frame's first byte": b"\x81",
    "a frame's half": frame(TEXT, b"x" * 1000)[:500],
    "fragments": frame(TEXT, b"x", fin=False),
    "an empty fragment": frame(TEXT, b"", fin=False),
    "a ping's half": frame(PING, b"x" * 100)[:50],
}


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
def test_a_message_that_has_begun_must_be_whole_in_time(served: Served, begun: bytes) -> None:
    with RawWebSocket(served.port) as client:
        began = time.monotonic()
        client.send(frame(TEXT, b"whole"))
        assert client.next() == Got(TEXT, b"whole")
        client.send(begun)
        assert client.end().code == 1008
        assert time.monotonic() - began >= 0.3
    eventually(lambda: served.site.codes == [1008])


def test_bytes_that_trickle_win_no_time(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        client.send(frame(TEXT, b"x", fin=False))
        over = time.monotonic() + 5
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < over:
                client.send(frame(CONT, b"x", fin=False) + frame(PING))
                if client.next(0.05).opcode == CLOSE:
                    break
        assert time.monotonic() < over
    eventually(lambda: served.site.codes == [1008])


def test_one_that_is_idle_or_whole_has_all_the_time(served: Served) -> None:
    with RawWebSocket(served.port) as client:
        for _ in range(8):
            client.send(frame(TEXT, b"x"))
            assert client.next() == Got(TEXT, b"x")
            time.sleep(0.06)  # longer than a message may take, all together
        client.send(frame(TEXT, b"one ", fin=False))
        client.send(frame(CONT, b"two"))
        assert client.next() == Got(TEXT, b"one two")
        deadlines = served.server.server.server_state.deadlines
        assert served.server.call(lambda: not deadlines)


def test_time_stands_still_while_the_application_is_busy(served: Served) -> None:
    with RawWebSocket(served.port, "/wait") as client:
        client.send(frame(TEXT, b"one") + frame(TEXT, b"two")[:5])
        (waiting,) = eventually(served.sockets)
        eventually(lambda: served.server.call(lambda: len(waiting._messages)) == 1)
        deadlines = served.server.server.server_state.deadlines
        assert served.server.call(lambda: waiting not in deadlines)
        served.open_gate()
        eventually(lambda: served.server.call(lambda: waiting in deadlines))
        assert client.end().code == 1008


# Pressure


def test_nothing_more_is_parsed_or_kept_while_messages_wait_for_the_application(
    served: Served,
) -> None:
    with RawWebSocket(served.port, "/wait") as client:
        (waiting,) = eventually(served.sockets)
        sent = client.fill(frame(TEXT, b"x") * 1000)
        kept = served.server.call(lambda: (len(waiting._messages), len(waiting._held)))
        assert sent > 100 * PARSED_AT_ONCE
        assert kept[0] <= PARSED_AT_ONCE / len(frame(TEXT, b"x"))
        assert kept[1] == 0
        served.open_gate()
        eventually(lambda: len(served.site.received) >= sent // len(frame(TEXT, b"x")))


FLOODS = {
    "empty texts": frame(TEXT),
    "pongs": frame(PONG),
    "pings": frame(PING),
    "empty fragments": frame(CONT, fin=False),
}


@pytest.mark.parametrize("tiny", FLOODS.values(), ids=FLOODS)
def test_whoever_floods_holds_up_nobody(served: Served, tiny: bytes) -> None:
    over = threading.Event()
    with (
        RawWebSocket(served.port, "/listen") as flooding,
        RawWebSocket(served.port) as other,
    ):
        if tiny == FLOODS["empty fragments"]:
            flooding.send(frame(TEXT, b"", fin=False))

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    flooding.send(tiny * 5000)

        flooder = threading.Thread(target=flood)
        flooder.start()
        try:
            slowest = 0.0
            for n in range(10):
                began = time.monotonic()
                other.send(frame(TEXT, b"%d" % n))
                assert other.next() == Got(TEXT, b"%d" % n)
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 1
            served.site.received.clear()
        finally:
            over.set()
            flooding.reset()
            flooder.join()


def test_pings_make_nothing_grow_while_the_socket_is_full_and_the_newest_is_answered(
    served: Served,
) -> None:
    with RawWebSocket(served.port, "/listen", receive_buffer=4096) as client:
        eventually(lambda: served.site.scopes)
        wire = served.site.wire
        block = framed(BINARY, b"x" * 8000)
        blocks = served.server.call(lambda: fill(wire, block))
        # What the kernel still takes it takes now.
        while more := eventually_still(served, wire, block):
            blocks += more
        before = served.server.call(lambda: wire.backlog)
        assert HIGH_WATER < before <= HIGH_WATER + len(block)
        for n in range(1000):
            client.send(frame(PING, b"%d" % n))
        client.send(frame(TEXT, b"done"))
        eventually(lambda: served.site.received)
        assert served.server.call(lambda: wire.backlog) <= before
        for _ in range(blocks):
            assert client.next() == Got(BINARY, b"x" * 8000)
        assert client.next() == Got(PONG, b"999")
        client.send(frame(PING, b"then"))
        assert client.next() == Got(PONG, b"then")


def fill(wire: SocketWire, block: bytes) -> int:
    """How many blocks a socket takes until it takes no more."""
    number = 0
    while wire.write(block):
        number += 1
    assert not wire.writable
    return number


def eventually_still(served: Served, wire: SocketWire, block: bytes) -> int:
    """How many more it takes after a while in which the kernel may have taken some."""
    time.sleep(0.05)
    return served.server.call(lambda: fill(wire, block))


def framed(opcode: int, payload: bytes) -> bytes:
    """A frame as we send it."""
    return frame(opcode, payload, masked=False)


def closing_of_ours(code: int) -> bytes:
    return framed(CLOSE, struct.pack("!H", code))


# The wire


def test_frames_written_to_the_wire_come_as_they_are(served: Served) -> None:
    with RawWebSocket(served.port, "/listen") as client:
        eventually(lambda: served.site.scopes)
        wire = served.site.wire
        assert served.server.call(lambda: wire.write(framed(TEXT, b"one") + framed(TEXT, b"two")))
        assert (client.next().payload, client.next().payload) == (b"one", b"two")


def test_the_wire_ends_with_its_last_frames_and_takes_nothing_more(served: Served) -> None:
    with RawWebSocket(served.port, "/listen") as client:
        eventually(lambda: served.site.scopes)
        wire = served.site.wire

        def finish() -> bool:
            wire.finish(framed(TEXT, b"last") + closing_of_ours(1013))
            wire.finish(framed(TEXT, b"twice"))
            return wire.writable or wire.write(framed(TEXT, b"late"))

        assert served.server.call(finish) is False
        # The application knows before the client has said a word.
        eventually(lambda: served.site.codes == [1005])
        assert client.next() == Got(TEXT, b"last")
        assert client.next().code == 1013
        client.send(closing(1013))
        client.is_over()


def test_the_last_frames_come_behind_whatever_waits(served: Served) -> None:
    with RawWebSocket(served.port, "/listen", receive_buffer=4096) as client:
        eventually(lambda: served.site.scopes)
        wire, block = served.site.wire, framed(BINARY, b"x" * 8000)
        blocks = served.server.call(lambda: fill(wire, block))
        served.server.call(lambda: wire.finish(closing_of_ours(1001)))
        for _ in range(blocks):
            assert client.next() == Got(BINARY, b"x" * 8000)
        assert client.next().code == 1001


def test_whoever_waits_for_a_full_socket_goes_on_once_it_drains_or_ends(served: Served) -> None:
    for end in ("drains", "finishes", "is cut"):
        served.site.scopes.clear()
        with RawWebSocket(served.port, "/listen", receive_buffer=4096) as client:
            eventually(lambda: served.site.scopes)
            wire, block = served.site.wire, framed(BINARY, b"x" * 8000)

            def begin(wire: SocketWire = wire, block: bytes = block) -> "asyncio.Task[None]":
                fill(wire, block)
                return asyncio.get_running_loop().create_task(wire.drained())

            task = served.server.call(begin)
            if end == "drains":
                while not served.server.call(task.done):
                    client.next()
                assert served.server.call(lambda wire=wire: wire.writable)  # type: ignore[misc]
            elif end == "finishes":
                served.server.call(lambda wire=wire: wire.finish(closing_of_ours(1001)))  # type: ignore[misc]
                eventually(lambda task=task: served.server.call(task.done))  # type: ignore[misc]
            else:
                served.server.call(wire.abort)
                eventually(lambda task=task: served.server.call(task.done))  # type: ignore[misc]


def test_one_that_is_cut_is_told_to_its_application(served: Served) -> None:
    with RawWebSocket(served.port, "/listen") as client:
        eventually(lambda: served.site.scopes)
        served.server.call(served.site.wire.abort)
        served.server.call(served.site.wire.abort)
        with contextlib.suppress(ConnectionError):
            client.is_over()
    eventually(lambda: served.site.codes == [1006])
    assert served.server.call(lambda: served.site.wire.write(framed(TEXT, b"x"))) is False


# Whether it is there


def test_whoever_answers_no_ping_is_cut() -> None:
    with serve(Limits(ping_interval=0.2, ping_timeout=0.4)) as served:
        with RawWebSocket(served.port) as client:
            assert client.next() == Got(PING, b"")
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                client.is_over()
            assert 0.3 < time.monotonic() - began < 3
        eventually(lambda: served.site.codes == [1006])


def test_whoever_answers_is_asked_again_and_again() -> None:
    with (
        serve(Limits(ping_interval=0.1, ping_timeout=5)) as served,
        RawWebSocket(served.port) as client,
    ):
        for _ in range(5):
            assert client.next() == Got(PING, b"")
            client.send(frame(PONG))
        client.send(frame(TEXT, b"still here"))
        while (got := client.next()).opcode == PING:
            pass
        assert got == Got(TEXT, b"still here")


def test_whoever_takes_what_waits_is_not_cut_though_the_pong_is_late() -> None:
    with (
        serve(Limits(ping_interval=0.2, ping_timeout=0.6)) as served,
        RawWebSocket(served.port, "/listen", receive_buffer=4096) as client,
    ):
        eventually(lambda: served.site.scopes)
        wire, block = served.site.wire, framed(BINARY, b"x" * 8000)
        until = time.monotonic() + 1.8  # three times what it may take without any progress
        while time.monotonic() < until:
            served.server.call(lambda: fill(wire, block))
            client.receive()
            time.sleep(0.02)
        assert served.site.codes == []
        # And then it takes nothing any more.
        began = time.monotonic()
        eventually(lambda: served.site.codes == [1006])
        assert time.monotonic() - began < 3


def test_a_pong_that_we_do_not_read_is_not_late() -> None:
    with (
        serve(Limits(ping_interval=0.1, ping_timeout=0.2)) as served,
        RawWebSocket(served.port, "/wait") as client,
    ):
        client.send(frame(TEXT, b"busy"))
        assert client.next() == Got(PING, b"")
        client.send(frame(PONG))
        time.sleep(0.8)  # four times what it may take
        assert served.site.codes == []
        served.open_gate()
        eventually(lambda: served.site.received)


# The handshake


def test_the_answer_has_what_the_protocol_and_the_application_want(served: Served) -> None:
    headers = {"Sec-WebSocket-Protocol": "one, two", "Connection": "keep-alive, Upgrade"}
    with RawWebSocket(served.port, "/echo?a=b%20c", headers) as client:
        lines = client.head.lower().split("\r\n")
        assert lines[0] == "http/1.1 101 switching protocols"
        assert "upgrade: websocket" in lines
        assert "connection: upgrade" in lines
        assert "sec-websocket-protocol: one" in lines
        assert "x-path: /echo" in lines
        assert f"sec-websocket-accept: {ACCEPT}".lower() in lines
        assert not any(line.startswith(("server:", "sec-websocket-extensions")) for line in lines)
    (scope,) = served.site.scopes
    assert (scope["type"], scope["scheme"], scope["http_version"]) == ("websocket", "ws", "1.1")
    assert (scope["path"], scope["raw_path"]) == ("/echo", b"/echo")
    assert scope["query_string"] == b"a=b%20c"
    assert scope["subprotocols"] == ["one", "two"]
    assert scope["client"][0] == "127.0.0.1"
    assert (b"host", b"localhost") in scope["headers"]
    assert scope["extensions"].keys() == {"websocket.http.response", "msgpush.wire"}
    assert "method" not in scope


def test_compression_is_not_agreed_to(served: Served) -> None:
    headers = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    with RawWebSocket(served.port, headers=headers) as client:
        assert "extensions" not in client.head.lower()


FAULTY = {
    "no key": ({"Sec-WebSocket-Key": ""}, 400),
    "short key": ({"Sec-WebSocket-Key": "AAAA"}, 400),
    "no base64": ({"Sec-WebSocket-Key": "!" * 24}, 400),
    "no subprotocol": ({"Sec-WebSocket-Protocol": "a b"}, 400),
    "no version": ({"Sec-WebSocket-Version": ""}, 426),
    "neither key nor version": ({"Sec-WebSocket-Key": "", "Sec-WebSocket-Version": ""}, 426),
    "old version": ({"Sec-WebSocket-Version": "8"}, 426),
    "new version": ({"Sec-WebSocket-Version": "14"}, 426),
    "two versions": ({"Sec-WebSocket-Version": "13, 8"}, 426),
}


@pytest.mark.parametrize(("headers", "status"), FAULTY.values(), ids=FAULTY)
def test_a_faulty_handshake_is_refused_before_the_application_is_asked(
    served: Served, headers: dict[str, str], status: int
) -> None:
    served.server.refused.clear()
    with RawConnection(served.port) as connection:
        connection.send(asking("/echo", {**headers, "Origin": "https://app.example"}))
        head, _, body = connection.read_all().decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    head = head.lower()
    assert "content-type: application/problem+json" in head
    assert "access-control-allow-origin: https://app.example" in head
    assert f'"status":{status}' in body
    if status == 426:
        assert "sec-websocket-version: 13" in head
        assert "\r\nconnection: close, upgrade\r\nupgrade: websocket" in head.replace(
            "access-control-allow-origin: https://app.example\r\n", ""
        )
    assert served.site.scopes == []
    assert served.server.refused == ["malformed"]


PLAIN = {
    "without Connection": asking(headers={"Connection": ""}),
    "another protocol": asking(headers={"Upgrade": "h2c"}),
    "several protocols": asking(headers={"Upgrade": "h2c, websocket"}),
    "with a body": asking(headers={"Content-Length": "1"}) + b"x",
    "in chunks": asking(headers={"Transfer-Encoding": "chunked"}) + b"0\r\n\r\n",
    "POST": asking().replace(b"GET", b"POST"),
    "HTTP/1.0": asking().replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("sent", PLAIN.values(), ids=PLAIN)
def test_what_asks_for_no_websocket_is_a_plain_request(served: Served, sent: bytes) -> None:
    with RawConnection(served.port) as connection:
        connection.send(sent)
        connection.half_close()
        assert connection.read_all().startswith(b"HTTP/1.1 200 ")
    assert [scope["type"] for scope in served.site.scopes] == ["http"]


@pytest.mark.parametrize("piece", [0, 1, 100])
def test_a_websocket_may_follow_requests_that_are_answered(served: Served, piece: int) -> None:
    with RawConnection(served.port) as connection:
        connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.read_until(b"0\r\n\r\n")
        sent_in_pieces(connection, asking() + frame(TEXT, b"x"), piece)
        assert b"HTTP/1.1 101 " in connection.read_until(framed(TEXT, b"x"))


def test_behind_a_request_that_is_not_answered_it_is_a_plain_one(served: Served) -> None:
    with RawConnection(served.port) as connection:
        connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + asking())
        assert connection.read_all().count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("size", [1, 10_000, 150_000])
def test_what_comes_behind_the_handshake_is_the_first_that_is_received(
    served: Served, size: int
) -> None:
    behind = frame(BINARY, b"x" * size) + frame(TEXT, b"then")
    with Asking(served.port, "/ask-first", behind=behind) as client:
        eventually(lambda: served.site.scopes)
        served.open_gate()
        last = framed(TEXT, b"then")
        assert client.read_until(last).endswith(framed(BINARY, b"x" * size) + last)


def test_little_is_kept_before_the_application_has_answered(served: Served) -> None:
    with Asking(served.port, "/ask-first") as client:
        (waiting,) = eventually(served.sockets)
        assert client.fill(frame(TEXT, b"x") * 1000) > 10 * PARSED_AT_ONCE
        assert served.server.call(lambda: len(waiting._held)) <= PARSED_AT_ONCE
    served.open_gate()


def test_a_client_that_goes_before_the_answer_is_told_to_the_application(served: Served) -> None:
    with RawConnection(served.port) as connection:
        connection.send(asking("/ask-first"))
        eventually(lambda: served.site.scopes)
    served.open_gate()
    eventually(lambda: served.site.codes == [1006])


# What the application does instead


def test_a_denial_is_a_plain_response(served: Served) -> None:
    with RawConnection(served.port) as connection:
        connection.send(asking("/deny"))
        received = connection.read_all().decode()
    head, _, body = received.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 404 Not Found\r\n")
    assert "x-why: never" in head
    assert "connection: close" in head
    assert body == "4\r\nnot \r\n4\r\nhere\r\n0\r\n\r\n"
    eventually(lambda: served.site.codes == [1006])


def test_a_client_that_has_half_closed_can_read_a_denial(served: Served) -> None:
    with RawConnection(served.port) as connection:
        connection.send(asking("/deny"))
        connection.read_until(b"HTTP/1.1 404 ")
        connection.half_close()
        connection.read_all()


def test_a_close_before_it_is_accepted_is_a_403(served: Served) -> None:
    with RawConnection(served.port) as connection:
        connection.send(asking("/close-at-once") + frame(TEXT, b"x" * 50_000))
        assert connection.read_all().startswith(b"HTTP/1.1 403 Forbidden\r\n")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("/fail", "the application has failed"),
        ("/leave", "the application has returned without an answer"),
        ("/too-early", "the application has failed"),
    ],
)
def test_an_application_that_does_not_answer_is_a_500_and_logged(
    served: Served, caplog: pytest.LogCaptureFixture, target: str, told: str
) -> None:
    with RawConnection(served.port) as connection:
        connection.send(asking(target))
        assert connection.read_all().startswith(b"HTTP/1.1 500 ")
    assert [record.message for record in caplog.records] == [told]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("/fail-late", "the application has failed"),
        ("/leave-open", "the application has returned without closing its WebSocket"),
        ("/bad-code", "the application has failed"),
    ],
)
def test_an_application_that_does_not_close_is_a_1011_and_logged(
    served: Served, caplog: pytest.LogCaptureFixture, target: str, told: str
) -> None:
    with RawWebSocket(served.port, target) as client:
        client.send(frame(TEXT, b"x"))
        assert client.next().code == 1011
        client.send(closing(1011))
        client.is_over()
    assert [record.message for record in caplog.records] == [told]


def test_no_frame_is_logged_whatever_the_level(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with RawWebSocket(served.port, "/echo?token=hunter2") as client:
        client.send(frame(TEXT, b"hunter2"))
        assert client.next() == Got(TEXT, b"hunter2")
        client.send(closing(1000))
        client.end()
    eventually(lambda: served.site.codes)
    assert "hunter2" not in caplog.text


# The end of the server


def test_a_server_that_ends_closes_with_1001() -> None:
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serve())
        clients = [stack.enter_context(RawWebSocket(served.port)) for _ in range(20)]
        eventually(lambda: len(served.sockets()) == 20)
        served.server.stop()
        for client in clients:
            assert client.next().code == 1001
            client.send(closing(1001))
            client.is_over()
        eventually(lambda: served.site.codes == [1001] * 20)


def test_a_server_ends_though_nobody_answers() -> None:
    with contextlib.ExitStack() as stack:
        clients = []
        with serve() as served:
            clients = [
                stack.enter_context(RawWebSocket(served.port, target))
                for target in ("/echo", "/wait")
            ]
            eventually(lambda: len(served.sockets()) == 2)
            served.server.stop()
            for client in clients:
                assert client.next().code == 1001


# Real clients, and what they leave behind


def test_a_real_client_is_served_and_leaves_well(served: Served) -> None:
    url = f"ws://127.0.0.1:{served.port}/echo"
    with connect(url, subprotocols=["msgpush.v1"], compression=None) as client:  # type: ignore[list-item]
        assert client.subprotocol == "msgpush.v1"
        client.send(["in ", "fragments"])
        assert client.recv() == "in fragments"
        client.send(b"\x00" * 70_000)
        assert client.recv() == b"\x00" * 70_000
        assert client.ping().wait(5)
    assert client.protocol.close_code == 1000
    with connect(url.replace("echo", "close")) as client:
        client.send("x")
        with pytest.raises(Exception, match="4000"):
            client.recv()
    eventually(lambda: served.site.codes == [1000])
    with connect(url) as client:
        client.close(1000)
        with pytest.raises(ConnectionClosedOK):
            client.recv()


WAYS = {
    "closing": [asking(), closing(1000)],
    "going": [asking()],
    "breaking the protocol": [asking(), frame(3)],
    "no UTF-8": [asking(), frame(TEXT, b"\xff")],
    "halfway": [asking(), frame(TEXT, b"x", fin=False)],
    "too large": [asking(), frame(TEXT, length=1 << 30)[:14]],
    "told to go": [asking("/close"), frame(TEXT, b"x")],
    "denied": [asking("/deny")],
    "refused": [asking(headers={"Sec-WebSocket-Key": "AAAA"})],
    "failing": [asking("/fail-late"), frame(TEXT, b"x")],
}


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_nothing_of_a_connection_is_left_to_the_garbage_collector(
    served: Served, caplog: pytest.LogCaptureFixture, way: list[bytes], reset: bool
) -> None:
    caplog.set_level("CRITICAL", "msgpush.server")  # pytest keeps what is logged, errors and all
    leave(served, way, reset=reset)  # what is made once has been made then
    gc.collect()
    gc.disable()
    try:
        before = alive(served)
        for _ in range(5):
            leave(served, way, reset=reset)
        eventually(lambda: alive(served) <= before)
    finally:
        gc.enable()


def alive(served: Served) -> int:
    """How many objects of connections are in memory, be they garbage or not."""
    served.site.scopes.clear()
    kinds = (WebSocket, SocketWire, Frames, Protocol, Exchange, Exception)
    return sum(isinstance(each, kinds) for each in gc.get_objects())


def leave(served: Served, way: list[bytes], *, reset: bool) -> None:
    """Connect, say this, and go once it is answered."""
    connection = RawConnection(served.port)
    for sent in way:
        connection.send(sent)
        with contextlib.suppress(TimeoutError):
            connection.receive(0.02)
    if reset:
        connection.reset()
    connection.__exit__()
    state = served.server.server.server_state
    eventually(lambda: served.server.call(lambda: not (state.connections or state.tasks)))
    assert served.server.call(lambda: len(state.asking)) == 0
    assert served.server.call(lambda: len(state.deadlines)) == 0


def test_an_earlier_request_whose_application_fails_late_ends_no_websocket() -> None:
    site = Site()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await site(scope, receive, send)
        if scope["type"] == "http":
            await site.gate.wait()
            raise LookupError("on purpose")

    with AppServer(app) as server, RawConnection(server.port) as connection:
        connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.read_until(b"0\r\n\r\n")
        connection.send(asking())
        connection.read_until(b"\r\n\r\n")
        server.call(site.gate.set)
        state = server.server.server_state
        eventually(lambda: server.call(lambda: len(state.tasks)) == 1)
        connection.send(frame(TEXT, b"x"))
        connection.read_until(framed(TEXT, b"x"))
