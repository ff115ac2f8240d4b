"""Clients that mean harm, against the real service: whatever they do, the others are served as
before.

Each attack is run twice while a stream is open. Then everything must be back to what it was: that
stream and a new one get what is published, the process has no more files open, and the second
attack has cost no memory on top of the first."""

import contextlib
import gc
import json
import os
import random
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msgpush.domain.errors import MsgpushError
from msgpush.entrypoints.exchange import Exchange
from msgpush.entrypoints.protocol import Protocol, Wire
from tests.support.client import RawConnection, SseClient, request
from tests.support.service import ServiceProcess, ThreadedService, eventually

MIB = 1024 * 1024
MEMORY_SLACK = 24 * MIB
HOST = b"Host: localhost\r\n"
SEND = b"POST /api/v1/messages/send HTTP/1.1\r\n" + HOST
ACKNOWLEDGE = SEND.replace(b"messages/send", b"users/a/acknowledgements")
STREAM = b"GET /sse/stream/attacked HTTP/1.1\r\n" + HOST + b"\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n"
LAST = b"GET /health/live HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module", autouse=True)
def _open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess(
        ENABLE_AUTH="false",
        CORS_ORIGINS='["https://app.example"]',
        HEADER_TIMEOUT="1",
        BODY_TIMEOUT="1",
        WRITE_TIMEOUT="1",
        HISTORY_LENGTH="100",
        MEMORY_BUS_BYTES=str(8 * MIB),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def local() -> Iterator[ServiceProcess]:
    with ServiceProcess(HEADER_TIMEOUT="1", BODY_TIMEOUT="1") as running:
        yield running


@pytest.fixture(scope="module")
def large() -> Iterator[ServiceProcess]:
    """Takes messages of 16 MiB, so that a small JSON text isn't the only kind."""
    with ServiceProcess(
        ENABLE_AUTH="false",
        MAX_MESSAGE_BYTES=str(16 * MIB),
        MEMORY_BUS_BYTES=str(8 * MIB),
        HISTORY_LENGTH="2",
    ) as running:
        yield running


# What every attack is measured by


def open_files(service: ServiceProcess) -> int:
    return len(os.listdir(f"/proc/{service.pid}/fd"))


@cache
def idle_files(service: ServiceProcess) -> int:
    """How many files the process has open when nobody is connected; asked for before anybody was."""
    return open_files(service)


def memory(service: ServiceProcess) -> int:
    """Bytes of memory that the process has now."""
    return int(Path(f"/proc/{service.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def publish(service: ServiceProcess, channel: str, **fields: Any) -> int:
    body = {"type": "info", "service": "s", "channels": [channel], **fields}
    return request(service.port, "POST", "/api/v1/messages/send", json.dumps(body).encode()).status


def is_served(service: ServiceProcess, stream: SseClient) -> None:
    """A stream of the channel `witness` gets what is published now, and nothing else."""
    id = f"w{time.monotonic_ns()}"
    assert publish(service, "witness", id=id) == 202
    while (event := stream.next()).type == "msgpush.heartbeat":
        pass
    assert json.loads(event.data)["id"] == id


def besiege(
    service: ServiceProcess, attack: Callable[[], object], slack: int = MEMORY_SLACK
) -> None:
    """Attack twice; then everything must be as it was before, but for some slack of the allocator."""
    lines, files = len(service.log), idle_files(service) + 1
    with SseClient(service.port, "/sse/stream/witness?broadcast=false") as witness:
        witness.next()
        attack()
        eventually(lambda: open_files(service) <= files)
        after_one = memory(service)
        attack()
        eventually(lambda: open_files(service) <= files)
        assert memory(service) - after_one < slack
        is_served(service, witness)
        with SseClient(service.port, "/sse/stream/witness?broadcast=false") as another:
            another.next()
            is_served(service, another)
    # Streams have their own lines, so many a second.
    told = [line for line in service.log[lines:] if line.get("logger") != "msgpush.streams"]
    assert [line for line in told if line.get("level") not in ("info", "warning")] == []
    assert len(told) <= 5


class Answer(NamedTuple):
    """A response, read with no mercy for what the standard doesn't allow."""

    status: int
    headers: dict[str, str]
    body: bytes


HEADERS = {
    *(
        "date",
        "content-type",
        "content-length",
        "transfer-encoding",
        "connection",
        "cache-control",
        "allow",
        "vary",
        "upgrade",
        "sec-websocket-version",
    ),
    *(
        "x-accel-buffering",
        "access-control-allow-origin",
        "access-control-allow-credentials",
        "retry-after",
    ),
    *(
        "access-control-expose-headers",
        "access-control-allow-methods",
        "access-control-allow-headers",
    ),
    *(
        "access-control-max-age",
        "etag",
        "content-security-policy",
        "x-content-type-options",
        "referrer-policy",
    ),
    *("x-frame-options", "accept-ranges", "last-modified", "x-request-id"),
}


def take_head(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """The status and headers that a response begins with, and what follows."""
    head, end, rest = raw.partition(b"\r\n\r\n")
    assert end, raw[:300]
    first, *lines = head.split(b"\r\n")
    status = re.fullmatch(rb"HTTP/1\.1 ([2-5][0-9][0-9]) [A-Za-z -]+", first)
    assert status, first
    fields = [re.fullmatch(rb"([a-z-]+): ([\x20-\x7e]*)", line) for line in lines]
    assert all(fields), lines
    headers = {field[1].decode(): field[2].decode() for field in fields if field}
    assert len(headers) == len(lines), lines
    assert set(headers) <= HEADERS, headers
    return int(status[1]), headers, rest


def take_chunks(raw: bytes) -> bytes:
    """What chunks hold, as far as they are whole."""
    body = b""
    while (found := re.match(rb"([0-9a-f]+)\r\n", raw)) and len(raw) >= found.end() + (
        size := int(found[1], 16)
    ) + 2:
        body += raw[found.end() : found.end() + size]
        assert raw[found.end() + size : found.end() + size + 2] == b"\r\n"
        raw = raw[found.end() + size + 2 :]
    assert found is not None or raw == b"", raw[:300]
    return body


def answers(raw: bytes) -> list[Answer]:
    """Responses with nothing before, between or after them; none of them is to a HEAD or a stream."""
    found = []
    while raw:
        status, headers, raw = take_head(raw)
        size = int(headers.get("content-length", "0"))
        assert len(raw) >= size, (status, headers, raw)
        found.append(Answer(status, headers, raw[:size]))
        raw = raw[size:]
    return found


def ask(service: ServiceProcess, raw: bytes) -> list[Answer]:
    """The answers to these bytes on a connection that the server closes."""
    with RawConnection(service.port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.send(raw)
        return answers(connection.read_all())


def refusal(service: ServiceProcess, raw: bytes) -> int:
    """The status of the one answer to these bytes: a problem that can be read whole, and then the
    end.
    """
    (answer,) = ask(service, raw)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert json.loads(answer.body)["status"] == answer.status
    return answer.status


def plain_socket(service: ServiceProcess, receive_buffer: int) -> socket.socket:
    """A connection whose bytes go out as they are sent; nothing is waited for."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.connect((service.host, service.port))
    plain.setblocking(False)
    return plain


def connected(
    service: ServiceProcess, number: int, receive_buffer: int | None = None
) -> list[RawConnection]:
    return [RawConnection(service.port, receive_buffer) for _ in range(number)]


def close_all(connections: list[RawConnection]) -> None:
    for connection in connections:
        connection.__exit__()


# Too slow


@pytest.mark.parametrize(
    ("at_once", "bit"),
    [
        (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1000),
        (LIVE, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1000),
        (SEND + b"Content-Length: 5000\r\n\r\n", b"x" * 1000),
        (ACKNOWLEDGE + b"Content-Length: 5000\r\n\r\n", b'{"keys":["' + b"s/1" * 500),
        (SEND + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
        (SEND + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: y\r\n" * 1000),
    ],
    ids=["headers", "later headers", "body", "keys", "chunks", "trailers"],
)
def test_many_requests_that_come_byte_by_byte_are_answered_with_408(
    service: ServiceProcess, at_once: bytes, bit: bytes
) -> None:
    def attack() -> None:
        connections = connected(service, 200)
        for connection in connections:
            connection.send(at_once)
        until = time.monotonic() + 1.2
        for n in range(len(bit)):
            for connection in connections:
                with contextlib.suppress(ConnectionError):
                    connection.send(bit[n : n + 1])
            if time.monotonic() > until:
                break
        for connection in connections:
            *before, last = answers(connection.read_all())
            assert [answer.status for answer in before] == [200] * (at_once == LIVE)
            assert last.status == 408
        close_all(connections)

    besiege(service, attack)


def test_five_thousand_connections_that_never_send_are_closed(service: ServiceProcess) -> None:
    def attack() -> None:
        connections = connected(service, 5000)
        for connection in connections:
            assert connection.read_all() == b""
        close_all(connections)

    besiege(service, attack)


def test_hundreds_of_readers_that_never_read_are_cut_and_disturb_nobody(
    service: ServiceProcess,
) -> None:
    def attack() -> None:
        files = open_files(service)
        stalled = connected(service, 300, receive_buffer=4096)
        for connection in stalled:
            connection.send(STREAM)
        eventually(lambda: streams(service) >= 300)
        with SseClient(service.port, "/sse/stream/attacked") as reader:
            reader.next()
            for n in range(40):
                assert (
                    publish(
                        service,
                        "attacked",
                        id=f"n{time.monotonic_ns()}",
                        data={"n": n, "x": "y" * 20_000},
                    )
                    == 202
                )
                while (event := reader.next()).type != "message":
                    assert event.type == "msgpush.heartbeat"
                assert json.loads(event.data)["data"]["n"] == n
        # Their clients haven't closed them.
        eventually(lambda: open_files(service) <= files)
        close_all(stalled)

    besiege(service, attack)


def streams(service: ServiceProcess) -> int:
    count: int = request(service.port, "GET", "/health").json()["connections"]
    return count


# Too much


ENDLESS = SEND + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"


@pytest.mark.parametrize(
    ("begin", "piece", "times", "status"),
    [
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: ", b"x" * 100_000, 80, 431),
        (b"GET /health HTTP/1.1\r\n" + HOST, b"X: y\r\n" * 1000, 100, 431),
        (b"GET /health HTTP/1.1\r\n" + HOST, b"x" * 100_000, 80, 431),
        (b"GET /", b"x" * 100_000, 10, 431),
        (b"GET /health?", b"x" * 100_000, 10, 431),
        (b"x" * 10_000, b"x" * 100_000, 10, 400),
        (b"", b"\0" * 100_000, 80, 400),
        (SEND + b"Content-Length: 20000000\r\n\r\n", b"x" * 100_000, 200, 413),
        (
            SEND + b"Transfer-Encoding: chunked\r\n\r\n",
            b"186a0\r\n" + b"x" * 100_000 + b"\r\n",
            200,
            413,
        ),
        (SEND + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 100_000, 3, 413),
        (SEND + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n", b"x" * 100_000, 200, 413),
        (
            SEND.replace(b"send", b"batch") + b"Content-Length: 20000000\r\n\r\n",
            b"x" * 100_000,
            200,
            413,
        ),
        (ACKNOWLEDGE + b"Content-Length: 20000000\r\n\r\n", b'"s/1",' * 10_000, 100, 413),
        (
            ACKNOWLEDGE + b"Transfer-Encoding: chunked\r\n\r\n",
            b"ea60\r\n" + b'"s/1",' * 10_000 + b"\r\n",
            100,
            413,
        ),
        (ENDLESS + b"1;", b"x" * 100_000, 80, 431),
        (ENDLESS + b"0\r\n", b"X: y\r\n" * 1000, 100, 431),
        (ENDLESS + b"0\r\nX: ", b"x" * 100_000, 80, 431),
        (ENDLESS + b"0" * 10_000, b"0" * 100_000, 80, 431),
    ],
    ids=[
        *("8 MB header", "100,000 headers", "header name", "URL", "query", "method", "NULs"),
        *("20 MB body", "20 MB in chunks", "300,000 tiny chunks", "20 MB chunk", "20 MB batch"),
        *("20 MB of keys", "6 MB of keys in chunks"),
        *("chunk extension", "100,000 trailers", "8 MB trailer", "zeros of a chunk's size"),
    ],
)
def test_what_is_far_too_much_is_refused_and_the_answer_can_be_read_whole(
    service: ServiceProcess, begin: bytes, piece: bytes, times: int, status: int
) -> None:
    def attack() -> None:
        for _ in range(3):
            assert refusal(service, begin + piece * times) == status

    besiege(service, attack)


def test_ten_thousand_requests_in_one_write_are_answered_in_order(service: ServiceProcess) -> None:
    def attack() -> None:
        with RawConnection(service.port) as connection:
            sender = threading.Thread(
                target=connection.send, args=(LIVE * 9_998 + missing("/the/end") + LAST,)
            )
            sender.start()
            received = answers(connection.read_all())
            sender.join()
        assert [answer.status for answer in received] == [200] * 9_998 + [404, 200]

    besiege(service, attack)


def missing(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), HOST)


def test_pipelined_publishes_are_accepted_in_order(service: ServiceProcess) -> None:
    def attack() -> None:
        run = time.monotonic_ns()
        with (
            SseClient(service.port, "/sse/stream/ordered") as reader,
            RawConnection(service.port) as connection,
        ):
            reader.next()
            bodies = [
                b'{"type":"info","service":"s","channels":["ordered"],"id":"o%d-%d"}' % (run, n)
                for n in range(3000)
            ]
            requests = b"".join(
                SEND + b"Content-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies
            )
            sender = threading.Thread(target=connection.send, args=(requests + LAST,))
            sender.start()
            received = [answer.status for answer in answers(connection.read_all())]
            sender.join()
            assert received == [202] * 3000 + [200]
            assert [json.loads(event.data)["id"] for event in reader.take(3000)] == [
                f"o{run}-{n}" for n in range(3000)
            ]

    besiege(service, attack)


def test_requests_whose_answers_nobody_reads_take_no_more_memory_than_they_have_bytes(
    service: ServiceProcess,
) -> None:
    def attack() -> None:
        before = memory(service)
        sockets = [plain_socket(service, receive_buffer=4096) for _ in range(30)]
        flood(sockets, LIVE * 1000)
        # Of each, a quarter of a megabyte has been read at most, and a hundred requests of that
        # have been parsed.
        assert memory(service) - before < 40 * MIB
        for each in sockets:
            each.close()

    besiege(service, attack)


def flood(sockets: list[socket.socket], data: bytes) -> None:
    """Send to each as much as is taken, until nothing has been for a while."""
    last = time.monotonic()
    while time.monotonic() - last < 0.2:
        for each in sockets:
            with contextlib.suppress(BlockingIOError):
                each.send(data)
                last = time.monotonic()
        time.sleep(0.01)


# Cut short


@pytest.mark.parametrize("behind", [LIVE, LIVE * 1000, STREAM, b"garbage\r\n\r\n", b"\0"])
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_sent_behind_a_stream_ends_it_and_is_not_answered(
    service: ServiceProcess, behind: bytes, at_once: bool
) -> None:
    def attack() -> None:
        for _ in range(20):
            with RawConnection(service.port) as connection:
                received = b""
                connection.send(STREAM + behind if at_once else STREAM)
                with contextlib.suppress(ConnectionError):
                    if not at_once:
                        received = connection.read_until(b"msgpush.open")
                        connection.send(behind)
                    received += connection.read_all()
            assert received.count(b"HTTP/1.1 ") <= 1
            assert not received.endswith(b"0\r\n\r\n")

    besiege(service, attack)


# What some gateways send behind the headers of a GET, and what belongs to the request by its own
# framing.
RESTS = {
    b"Transfer-Encoding: chunked\r\n\r\n": [
        b"0\r\n\r\n",
        b"0\r\nX: y\r\nY: z\r\n\r\n",
        b"5;a=b\r\nhello\r\n1\r\n!\r\n000\r\n\r\n\r\n",
    ],
    b"Content-Length: 5\r\n\r\n": [b"hello", b"GET /\r\n\r\n"],
    b"Content-Length: 0\r\n\r\n": [b"\r\n\r\n"],
    b"\r\n": [b"\r\n"],
}


@pytest.mark.parametrize("head", RESTS)
def test_the_rest_of_a_stream_s_own_request_may_come_at_any_time_cut_at_any_byte(
    service: ServiceProcess, head: bytes
) -> None:
    first = STREAM[:-2] + head
    with contextlib.ExitStack() as opened:
        streams = []
        for rest in RESTS[head]:
            for cut in range(-1, len(rest) + 1):
                connection = opened.enter_context(RawConnection(service.port))
                connection.send(first + rest[: max(0, cut)])
                connection.read_until(b"msgpush.open")
                for piece in (
                    [rest[cut:]] if cut >= 0 else [rest[n : n + 1] for n in range(len(rest))]
                ):
                    connection.send(piece)
                streams.append(connection)
        for _ in range(2):
            id = f"r{time.monotonic_ns()}"
            assert publish(service, "attacked", id=id) == 202
            for connection in streams:
                connection.read_until(f'"{id}"'.encode())
        # The request is over by now: what comes next isn't part of it.
        for connection in streams:
            with contextlib.suppress(ConnectionError):
                connection.send(LIVE)
                assert b"HTTP/1.1 " not in connection.read_all()


CHUNKED = STREAM[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (CHUNKED, b"x\r\n"),
        (CHUNKED, b"0\r\n\r\n" + LIVE),
        (CHUNKED, b"0\r\n\r\n" + LIVE[:3]),
        (CHUNKED, b"5\r\nhello!\r\n"),
        (CHUNKED, b"1\r\nx\r\n" * 20_000),
        (CHUNKED, b"ffffff\r\n" + b"x" * 100_000),
        (CHUNKED, b"0\r\n" + b"X: y\r\n" * 20_000),
        (CHUNKED, b"5;" + b"x" * 100_000),
        (STREAM[:-2] + b"Content-Length: 5\r\n\r\n", b"hello" + LIVE),
        (STREAM[:-2] + b"Content-Length: 1000000\r\n\r\n", b"x" * 100_000),
        (STREAM, b"\r\n" * 50_000),
    ],
)
def test_what_is_no_rest_of_a_stream_s_request_or_has_no_end_ends_the_stream(
    service: ServiceProcess, head: bytes, rest: bytes
) -> None:
    def attack() -> None:
        connections = connected(service, 20)
        for connection in connections:
            connection.send(head)
            connection.read_until(b"msgpush.open")
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                connection.send(rest)
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                assert b"HTTP/1.1 " not in connection.read_all()
        close_all(connections)

    besiege(service, attack)


def test_a_stream_behind_other_requests_is_a_stream_and_its_end_is_noticed(
    service: ServiceProcess,
) -> None:
    def attack() -> None:
        with RawConnection(service.port) as connection:
            connection.send(LIVE * 500 + STREAM)
            connection.read_until(b"msgpush.open")
            assert publish(service, "attacked", id=f"b{time.monotonic_ns()}") == 202
            connection.read_until(b'"attacked"')

    besiege(service, attack)


def test_requests_before_garbage_get_their_answers_and_the_garbage_gets_none(
    service: ServiceProcess,
) -> None:
    def attack() -> None:
        for garbage in (b"garbage\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n", b"X" * 100_000):
            for _ in range(50):
                assert [answer.status for answer in ask(service, LIVE * 3 + garbage)] == [200] * 3

    besiege(service, attack)


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"", []),
        (LIVE[:20], []),
        (LIVE, [200]),
        (LIVE * 100, [200] * 100),
        (SEND + b"Content-Length: 50\r\n\r\n", []),
        (SEND + b'Content-Length: 50\r\n\r\n{"type":', []),
        (ACKNOWLEDGE + b'Content-Length: 18\r\n\r\n{"keys":["s/none"', []),
        (ACKNOWLEDGE + b'Content-Length: 19\r\n\r\n{"keys":["s/none"]}', [200]),
        (SEND + b"Transfer-Encoding: chunked\r\n\r\n5\r\n123", []),
        (SEND + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", []),
        (SEND + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n", [422]),
    ],
)
def test_a_half_closed_connection_gets_the_answers_to_whole_requests(
    service: ServiceProcess, sent: bytes, statuses: list[int]
) -> None:
    def attack() -> None:
        connections = connected(service, 50)
        for connection in connections:
            connection.send(sent)
            connection.half_close()
        for connection in connections:
            assert [answer.status for answer in answers(connection.read_all())] == statuses
        close_all(connections)

    besiege(service, attack)


def test_thousands_of_resets_at_any_moment_leave_nothing_behind(service: ServiceProcess) -> None:
    body = b'{"type":"info","service":"s","channels":["attacked"],"data":{"x":"%b"}}' % (
        b"y" * 2000
    )
    whole = [
        STREAM,
        LIVE,
        LIVE * 20,
        STREAM + LIVE,
        SEND + b"Content-Length: %d\r\n\r\n" % len(body) + body,
    ]
    randomly = random.Random(7)

    def attack() -> None:
        waiting: list[RawConnection] = []
        for _ in range(3000):
            connection = RawConnection(service.port)
            data = randomly.choice(whole)
            connection.send(data[: randomly.choice((len(data), randomly.randrange(len(data) + 1)))])
            waiting.append(connection)
            if len(waiting) > 100:
                waiting.pop(randomly.randrange(len(waiting))).reset()
        for connection in waiting:
            connection.reset()

    besiege(service, attack)


# Too deep


def depth(opening: bytes, closing: bytes, times: int = 100_000) -> bytes:
    return message(b'{"x":' + opening * times + b"0" + closing * times + b"}")


def message(data: bytes) -> bytes:
    return b'{"type":"info","service":"s","channels":["bombs"],"data":%b}' % data


BOMBS = {
    "arrays": depth(b"[", b"]"),
    "objects": depth(b'{"a":', b"}"),
    "unclosed arrays": b"[" * 1_000_000,
    "unclosed objects": b'{"a":' * 1_000_000,
    "number": message(b'{"x":' + b"9" * 4_000_000 + b"}"),
    "fraction": message(b'{"x":0.' + b"1" * 4_000_000 + b"}"),
    "exponent": message(b'{"x":1e' + b"9" * 4_000_000 + b"}"),
    "progress": message(b'{"progress":' + b"9" * 4_000_000 + b"}").replace(b"info", b"progress"),
    "ttl": b'{"type":"info","service":"s","metadata":{"ttl":' + b"9" * 4_000_000 + b"}}",
    "escapes": message(b'{"x":"' + b"\\u0000" * 700_000 + b'"}'),
    "source of escapes": b'{"type":"info","service":"s","source":"'
    + b"\\ud83d\\ude00" * 700_000
    + b'"}',
    "half a surrogate": b'{"type":"info","service":"s","source":"' + b"\\ud83d" * 700_000 + b'"}',
    "keys": message(b"{" + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}"),
    "same keys": message(b"{" + b",".join([b'"a":0'] * 1_000_000) + b"}"),
    "unknown fields": b"{" + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}",
    "targets": b'{"type":"info","service":"s","target":{%b}}'
    % b",".join(b'"%d_id":"v"' % n for n in range(500_000)),
    "channels": b'{"type":"info","service":"s","channels":[%b]}'
    % b",".join(b'"%d"' % n for n in range(1_000_000)),
    "retry_count": b'{"type":"info","service":"s","metadata":{"retry_count":%b}}'
    % (b"[" * 100_000 + b"]" * 100_000),
    "spaces": message(b"{" + b"\n" * 4_000_000 + b"}"),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("path", ["send", "batch"])
def test_no_json_text_makes_the_service_fail_or_stop(
    large: ServiceProcess, path: str, bomb: bytes
) -> None:
    valid = message(b'{"x":"%b"}' % (b"y" * (3 * MIB)))
    slowest = []

    def attack() -> None:
        calm = longest_wait(large, path, valid)
        slowest.append((longest_wait(large, path, bomb), calm))

    # Whole texts of megabytes come and go: the allocator is free to keep a few of them.
    besiege(large, attack, slack=64 * MIB)
    # As long as any message of that size, give or take what a busy machine adds.
    assert min(bombed - 10 * calm for bombed, calm in slowest) < 1.0, slowest


# What isn't read at all is refused before it has come; these are as large as is read.
KEYS_BOMBS = {
    "arrays": b'{"keys":' + b"[" * 500_000,
    "closed arrays": b'{"keys":[%b]}' % (b"[" * 200_000 + b"]" * 200_000),
    "objects": b'{"keys":' + b'{"a":' * 80_000,
    "number": b'{"keys":[' + b"9" * 500_000 + b"]}",
    "exponent": b'{"keys":[1e' + b"9" * 500_000 + b"]}",
    "one key": b'{"keys":["' + b"x" * 500_000 + b'"]}',
    "escapes": b'{"keys":["' + b"\\u0000" * 80_000 + b'"]}',
    "half a surrogate": b'{"keys":["' + b"\\ud83d" * 80_000 + b'"]}',
    "many keys": b'{"keys":[%b]}' % b",".join([b'"s/1"'] * 85_000),
    "unknown fields": b"{%b}" % b",".join(b'"%d":0' % n for n in range(50_000)),
    "a thousand keys": json.dumps({"keys": ["\0" * 60 + f"/{n}" for n in range(1_000)]}).encode(),
    "names of Redis": b'{"keys":["}:x{/1","*/*","{msgpush}:outbox/1","\\u00ff/\\ud83d\\ude00"]}',
}


@pytest.mark.parametrize("bomb", KEYS_BOMBS.values(), ids=KEYS_BOMBS)
def test_no_keys_to_acknowledge_make_the_service_fail_or_stop(
    service: ServiceProcess, bomb: bytes
) -> None:
    def attack() -> None:
        for _ in range(5):
            answer = request(service.port, "POST", "/api/v1/users/a/acknowledgements", bomb)
            assert answer.status in (200, 400, 413, 422), answer.body
            if answer.status == 200:
                assert json.loads(answer.body)["acknowledged"] == []
            assert len(answer.body) < MIB

    besiege(service, attack)


def test_half_a_list_of_keys_acknowledges_none_of_them(service: ServiceProcess) -> None:
    id = f"a{time.monotonic_ns()}"
    fields = {"target": {"user_id": "half"}, "metadata": {"ack": True}}
    assert publish(service, "half", id=id, **fields) == 202
    body = b'{"keys":["s/%b"]}' % id.encode()
    head = ACKNOWLEDGE.replace(b"/a/", b"/half/") + b"Content-Length: %d\r\n\r\n"

    def attack() -> None:
        for sent in (head % len(body) + body[:-1], head % (len(body) + 1) + body):
            for end in (RawConnection.reset, RawConnection.half_close, RawConnection.read_all):
                with RawConnection(service.port) as connection:
                    connection.send(sent)
                    end(connection)

    besiege(service, attack)
    pending = request(service.port, "GET", "/api/v1/users/half/pending").json()["messages"]
    assert [each["id"] for each in pending] == [id]
    (answer,) = ask(service, head % len(body) + body + LAST)[:1]
    assert json.loads(answer.body)["acknowledged"] == [f"s/{id}"]


ACTING = {
    "/api/v1/users/pending": 404,
    "/api/v1/users//pending": 400,
    "/api/v1/users/a/b/pending": 400,
    "/api/v1/users/a%2Fb/pending": 400,
    "/api/v1/users/a%2Fpending": 400,
    "/api/v1/users/*/pending": 400,
    "/api/v1/users/a%00/pending": 400,
    "/api/v1/users/a%FF/pending": 400,
    "/api/v1/users/a/pending/": 404,
    "/api/v1/users/a/acknowledgements/x": 404,
    "/api/v1/messages/s/delivery": 404,
    "/api/v1/messages//x/delivery": 404,
    "/api/v1/messages/s%2Fx/delivery": 400,
    "/api/v1/messages/s/x%2Fy/delivery": 400,
    "/api/v1/messages/s/x/y/delivery": 404,
    "/api/v1/messages/s/%00/delivery": 404,
    "/api/v1/dead-letters/s": 404,
    "/api/v1/dead-letters/s/x/y": 404,
    "/api/v1/dead-letters/%FF/x/redeliver": 404,
    f"/api/v1/users/{'a' * 20_000}/pending": 400,
    f"/api/v1/messages/{'s' * 10_000}/{'x' * 10_000}/delivery": 404,
    f"/api/v1/dead-letters/{'s' * 10_000}/{'x' * 10_000}": 404,
}


@pytest.mark.parametrize(("path", "status"), ACTING.items(), ids=lambda value: str(value)[:40])
def test_a_path_that_names_no_user_and_no_message_is_refused_whatever_is_asked_of_it(
    service: ServiceProcess, path: str, status: int
) -> None:
    def attack() -> None:
        for method in ("GET", "POST", "DELETE", "PUT", "HEAD"):
            answer = request(service.port, method, path, b'{"keys":["s/1"]}')
            assert answer.status in (status, 405), method
            assert method == "HEAD" or answer.json()["status"] == answer.status

    besiege(service, attack)


def longest_wait(service: ServiceProcess, path: str, body: bytes) -> float:
    """Seconds that others waited at most for an answer while this body was published."""
    done = threading.Event()

    def run() -> None:
        text = b"[" + body + b"]" if path == "batch" else body
        answer = request(service.port, "POST", f"/api/v1/messages/{path}", text)
        assert answer.status in (202, 400, 413, 422), answer.body
        statuses.append(answer.status)
        done.set()

    statuses: list[int] = []
    publisher = threading.Thread(target=run)
    publisher.start()
    longest = 0.0
    while not done.is_set() and publisher.is_alive():
        began = time.monotonic()
        assert request(service.port, "GET", "/health/live").status == 200
        longest = max(longest, time.monotonic() - began)
    publisher.join()
    assert statuses
    return longest


# Injected


CURSOR = rb"[A-Za-z0-9_.~-]{1,128}"
BLOCK = re.compile(
    rb"(?:retry: [0-9]+\n)?(?:event: (?P<event>[a-z.]+)\n)?(?:id: %b\n)?"
    rb"data: (?P<data>[^\x00-\x1f\x7f]+)\n(?:id: %b\n)?\n" % (CURSOR, CURSOR)
)


def blocks(stream: bytes) -> list[tuple[str, Any]]:
    """The events of a stream's bytes, of which every line is one that the service means to write."""
    found = []
    at = 0
    while at < len(stream):
        block = BLOCK.match(stream, at)
        assert block is not None, stream[at : at + 500]
        found.append(((block["event"] or b"message").decode(), json.loads(block["data"])))
        at = block.end()
    return found


def listened(connection: RawConnection, until: str) -> list[tuple[str, Any]]:
    """The events of a stream up to the message with this id; the head is looked at, too."""
    received = connection.read_until(b'"%b"' % until.encode())
    while not received.endswith(b"\n\n\r\n"):
        received += connection.receive()
    status, _, chunks = take_head(received)
    assert status == 200
    return blocks(take_chunks(chunks))


EVIL = [
    "\r\nX-Injected: 1\r\n\r\n",
    "x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "x\n\ndata: injected\n\n",
    "x\r\rdata: injected\r\r",
    "x\nid: injected",
    "x\nevent: msgpush.close",
    "\0",
    "x\0y",
    "x\x85data: injected",
    "x\u2028data: injected\u2029",
    "x\x0b\x0cdata: injected",
    "\ufeffdata: injected",
    "x\x1b[2Jy",
]
QUERIES = [
    "channel",
    "types",
    "events",
    "last_event_id",
    "lastEventId",
    "lastEventID",
    "broadcast",
    "token",
    "_x",
    "x",
]
REQUEST_HEADERS = [
    *(
        "Last-Event-ID",
        "User-Agent",
        "Origin",
        "Host",
        "Idempotency-Key",
        "Content-Type",
        "Authorization",
        "Accept",
    ),
    *(
        "Cookie",
        "Content-Encoding",
        "Access-Control-Request-Headers",
        "Access-Control-Request-Method",
        "Expect",
    ),
]
FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "id": lambda evil: {"id": evil},
    "service": lambda evil: {"service": evil},
    "source": lambda evil: {"source": evil},
    "type": lambda evil: {"type": evil},
    "timestamp": lambda evil: {"timestamp": evil},
    "channels": lambda evil: {"channels": ["injected", evil]},
    "target": lambda evil: {"target": {"user_id": evil}},
    "target's name": lambda evil: {"target": {f"{evil}_id": "v"}},
    "priority": lambda evil: {"metadata": {"priority": evil}},
    "retry_count": lambda evil: {"metadata": {"retry_count": evil}},
    "ack": lambda evil: {"metadata": {"ack": evil}},
    "ack's name": lambda evil: {"metadata": {"ack": {evil: 1}}},
    "collapse": lambda evil: {"target": {"user_id": "a"}, "metadata": {"ack": {"collapse": evil}}},
    "data": lambda evil: {"data": {"x": evil}},
    "data's name": lambda evil: {"data": {evil: 1}},
    "progress": lambda evil: {"type": "progress", "data": {"progress": 1, "x": evil, evil: evil}},
    "error": lambda evil: {"type": "error", "data": {"x": evil}},
    "field": lambda evil: {evil: "x"},
}


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_in_a_url_is_a_header_or_a_line_of_a_stream(
    service: ServiceProcess, evil: str
) -> None:
    value = quote(evil, safe="")
    targets = [
        f"/sse/stream/{value}",
        f"/sse/stream/a,{value}",
        f"/sse/user/{value}",
        f"/sse/service/{value}",
    ]
    targets += [f"/sse/stream/a?{name}={value}" for name in QUERIES] + [f"/sse/stream/a?{value}=1"]
    targets += [f"/api/v1/channels/{value}/messages", f"/api/v1/channels/a/messages?after={value}"]
    targets += [
        f"/api/v1/connections?{name}={value}"
        for name in ("user", "channel", "subject", "node", "next")
    ]
    targets += [
        f"/api/v1/users/{value}/pending",
        f"/api/v1/users/{value}/acknowledgements",
        f"/api/v1/users/a/pending?next={value}",
        f"/api/v1/users/a/pending?token={value}",
        f"/api/v1/messages/{value}/{value}/delivery",
        f"/api/v1/messages/s/{value}/delivery",
        f"/api/v1/dead-letters?service={value}",
        f"/api/v1/dead-letters?service=s&next={value}",
        f"/api/v1/dead-letters/{value}/{value}",
        f"/api/v1/dead-letters/s/{value}/redeliver",
    ]
    targets += [
        f"/api/v1/connections/{value}",
        f"/{value}",
        f"/static/{value}",
        f"/admin/{value}",
        f"/docs{value}",
    ]

    def attack() -> None:
        for target in targets:
            for method in ("GET", "HEAD", "DELETE", "OPTIONS", "POST"):
                with RawConnection(service.port) as connection:
                    connection.send(
                        f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n".encode()
                    )
                    status, headers, rest = take_head(connection.read_until(b"\r\n\r\n"))
                    assert status < 500, target
                    if (
                        headers.get("content-type", "").startswith("text/event-stream")
                        and method == "GET"
                    ):
                        assert blocks(take_chunks(rest or connection.receive()))

    besiege(service, attack)


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("encode", ["utf-8", "quoted"])
def test_nothing_in_a_request_header_is_a_header_or_a_line_of_a_stream(
    service: ServiceProcess, evil: str, encode: str
) -> None:
    value = evil.encode() if encode == "utf-8" else quote(evil).encode()
    body = b'{"type":"info","service":"s"}'
    requests = [
        (b"GET", b"/sse/stream/a", b""),
        (b"POST", b"/api/v1/messages/send", body),
        (b"POST", b"/api/v1/users/a/acknowledgements", b'{"keys":["s/none"]}'),
        (b"OPTIONS", b"/", b""),
    ]

    def attack() -> None:
        for name in REQUEST_HEADERS:
            host = b"" if name == "Host" else HOST
            for method, target, content in requests:
                with RawConnection(service.port) as connection:
                    connection.send(b"%b %b HTTP/1.1\r\n%b" % (method, target, host))
                    connection.send(b"%b: %b\r\n" % (name.encode(), value))
                    connection.send(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
                    status, _, _ = take_head(connection.read_until(b"\r\n\r\n"))
                    assert status < 500 or (name, status) == ("Expect", 501)

    besiege(service, attack)


@pytest.mark.parametrize("field", FIELDS)
def test_nothing_in_a_message_is_a_header_or_a_line_of_a_stream(
    service: ServiceProcess, field: str
) -> None:
    def attack() -> None:
        with RawConnection(service.port) as connection:
            connection.send(b"GET /sse/stream/injected HTTP/1.1\r\n" + HOST + b"\r\n")
            accepted = 0
            for evil in EVIL:
                fields = {
                    "type": "info",
                    "service": "s",
                    "channels": ["injected"],
                    **FIELDS[field](evil),
                }
                for escaped in (True, False):
                    text = json.dumps(fields, ensure_ascii=escaped, indent="\r\n\t")
                    raw = SEND + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(
                        text.encode()
                    )
                    (answer,) = ask(service, raw + text.encode())
                    assert answer.status in (202, 400, 422), answer
                    accepted += answer.status == 202
            id = f"end{time.monotonic_ns()}"
            assert publish(service, "injected", id=id) == 202
            (opened, *events, last) = listened(connection, id)
        assert opened[0] == "msgpush.open"
        assert {kind for kind, _ in events} <= {"message", "progress"}
        assert len(events) == accepted
        assert last[1]["id"] == id

    besiege(service, attack)


def test_control_characters_that_json_forbids_raw_are_refused(service: ServiceProcess) -> None:
    for character in (b"\r", b"\n", b"\0", b"\x1b", b"\t"):
        for data in (b'{"x":"a%bb"}' % character, b'{"a%bb":1}' % character, b'{"x":\0"a"}'):
            text = message(data)
            raw = SEND + b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
            (answer,) = ask(service, raw)
            assert answer.status == 400


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=200), st.text(max_size=150).map(str.encode)), st.booleans())
def test_no_last_event_id_is_answered_with_a_server_error(
    service: ServiceProcess, value: bytes, in_url: bool
) -> None:
    query = f"?last_event_id={quote_from_bytes(value)}".encode() if in_url else b""
    given = b"" if in_url else b"Last-Event-ID: %b\r\n" % value
    with RawConnection(service.port) as connection:
        connection.send(b"GET /sse/stream/a%b HTTP/1.1\r\n%b%b\r\n" % (query, HOST, given))
        status, _, rest = take_head(connection.read_until(b"\r\n\r\n"))
        assert status in (200, 204, 400)
        if status == 200:
            (opened, *_) = blocks(take_chunks(rest or connection.receive()))
            assert opened[0] == "msgpush.open"


# Smuggled


def post(headers: bytes, body: bytes = b"12345") -> bytes:
    return SEND + headers + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


def get(
    target: bytes = b"/health/live", version: bytes = b"HTTP/1.1", headers: bytes = HOST
) -> bytes:
    return b"GET %b %b\r\n%b\r\n" % (target, version, headers)


END = b"0\r\n\r\n"
AMBIGUOUS = {
    # RFC 9112, section 6.1 and 6.3: two lengths, or one that isn't certain
    "length and coding": post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", END),
    "coding and length": post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", END),
    "coding with an underscore and length": post(
        b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n"
    ),
    "empty coding and length": post(b"Transfer-Encoding:\r\nContent-Length: 5\r\n"),
    "two lengths": post(b"Content-Length: 5\r\nContent-Length: 6\r\n"),
    "the same length twice": post(b"Content-Length: 5\r\nContent-Length: 5\r\n"),
    "a list of lengths": post(b"Content-Length: 5, 6\r\n"),
    "a list of the same lengths": post(b"Content-Length: 5, 5\r\n"),
    **{
        f"length {value!r}": post(b"Content-Length: %b\r\n" % value)
        for value in [
            *(
                b"+5",
                b"-1",
                b"1e3",
                b"0x10",
                b"5 5",
                b'"5"',
                b"5.0",
                b"1,000",
                b"5;",
                b"",
                b"five",
                b"\xb5",
                b"5\0",
            ),
            *(
                b"99999999999999999999999",
                b"18446744073709551616",
                b"18446744073709551621",
                b"5\r\n 0",
                b"5\x0b",
                b"_5",
            ),
        ]
    },
    **{
        f"coding {value!r}": post(b"Transfer-Encoding: %b\r\n" % value, END)
        for value in [
            *(
                b"xchunked",
                b"\x0bchunked",
                b"chunkedx",
                b"chunked\0",
                b"chunked, identity",
                b"identity, chunked",
            ),
            *(
                b"gzip, chunked",
                b"chunked, chunked",
                b"gzip",
                b"identity",
                b"",
                b"chunked;q=1",
                b'"chunked"',
                b"chunked,",
            ),
            *(
                b",chunked",
                b"\r\n chunked",
                b"identity,\r\n chunked",
                b"chunked\r\nTransfer-Encoding: chunked",
            ),
            *(
                b"chunked\r\nTransfer-Encoding: identity",
                b"identity\r\nTransfer-Encoding: chunked",
                b"chun ked",
            ),
        ]
    },
    "coding of a GET": get(headers=HOST + b"Transfer-Encoding: identity\r\n"),
    "coding in HTTP/1.0": chunked(END).replace(b"1.1", b"1.0", 1),
    # Section 5: fields
    "folded line": get(headers=HOST + b"X: a\r\n b\r\n"),
    "folded first line": get(headers=b" X: a\r\n" + HOST),
    "space before the colon": post(b"Content-Length : 5\r\n"),
    "tab before the colon": post(b"Transfer-Encoding\t: chunked\r\n", END),
    "space in a name": post(b"Content Length: 5\r\n"),
    "no name": get(headers=HOST + b": x\r\n"),
    "no colon": get(headers=HOST + b"x\r\n"),
    "name in brackets": get(headers=HOST + b"(x): y\r\n"),
    "name beyond ASCII": get(headers=HOST + b"\xe9: y\r\n"),
    "control in a value": get(headers=HOST + b"X: \x01\r\n"),
    "DEL in a value": get(headers=HOST + b"X: \x7f\r\n"),
    "NUL in a value": get(headers=HOST + b"X: \0\r\n"),
    "NUL in a name": get(headers=HOST + b"X\0: y\r\n"),
    # Section 2.2: line ends
    "bare LF throughout": get().replace(b"\r", b""),
    "bare LF once": get(headers=b"Host: localhost\nX: y\r\n"),
    "bare LF last": get()[:-2] + b"\n",
    "bare CR": get(headers=b"Host: localhost\rX: y\r\n"),
    "CR twice": get(headers=b"Host: localhost\r\r\n"),
    "LF then CR": get(headers=b"Host: localhost\n\r"),
    # Section 3: the request line
    "two hosts": get(headers=HOST * 2),
    "no host": get(headers=b""),
    "HTTP/0.9": b"GET /health/live\r\n\r\n",
    "HTTP/0.9 that says so": get(version=b"HTTP/0.9"),
    "HTTP/1.2": get(version=b"HTTP/1.2"),
    "HTTP/2.0": get(version=b"HTTP/2.0"),
    "HTTP/3.0": get(version=b"HTTP/3.0"),
    "HTTP/1.10": get(version=b"HTTP/1.10"),
    "HTTP/+1.1": get(version=b"HTTP/+1.1"),
    "http/1.1": get(version=b"http/1.1"),
    "ICY/1.1": get(version=b"ICY/1.1"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 300,
    "space in the target": get(b"/health /live"),
    "tabs": get().replace(b" ", b"\t", 2),
    "space after the version": get(version=b"HTTP/1.1 "),
    "beyond ASCII in the target": get(b"/\xff"),
    "control in the target": get(b"/\x01"),
    "NUL in the target": get(b"/\0"),
    "fragment": get(b"/health#x"),
    "authority": get(b"localhost:80"),
    "more than an asterisk": get(b"*/health"),
    "no path": get(b"health"),
    "another scheme": get(b"ftp://localhost/health"),
    "user in the target": get(b"http://localhost@evil.example/health"),
    "no host in the target": get(b"http:///health"),
    "CONNECT": get(b"localhost:80").replace(b"GET", b"CONNECT"),
    "CONNECT a path": get(b"/health").replace(b"GET", b"CONNECT"),
    "CONNECT a URL": get(b"http://localhost/").replace(b"GET", b"CONNECT"),
    "lower case": get().replace(b"GET", b"get"),
    # Section 7.1: chunks
    **{
        f"chunk size {size!r}": chunked(size + b"\r\n12345\r\n" + END)
        for size in [
            *(
                b"zz",
                b"0x5",
                b"+5",
                b"-5",
                b" 5",
                b"5 ",
                b"\t5",
                b"",
                b"5_",
                b"5;a\nb",
                b"5;a\rb",
                b"5;\0",
                b"5 ;a=b",
            ),
            *(b"10000000000000005", b"5" * 17, b"\xb5", b"5\r", b"5.0", b"5,5"),
        ]
    },
    "chunk longer than its size": chunked(b"5\r\n123456\r\n" + END),
    "chunk without its end": chunked(b"5\r\n12345" + END),
    "LF after a chunk's size": chunked(b"5\n12345\r\n" + END),
    "LF after a chunk": chunked(b"5\r\n12345\n" + END),
    "CR after a chunk's size": chunked(b"5\r12345\r\n" + END),
    "LF after the last chunk": chunked(b"5\r\n12345\r\n0\n\n"),
    "length as a trailer": chunked(b"5\r\n12345\r\n0\r\nContent-Length: 50\r\n\r\n"),
    "coding as a trailer": chunked(b"5\r\n12345\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "folded trailer": chunked(b"5\r\n12345\r\n0\r\nX: a\r\n b\r\n\r\n"),
    "bare LF in trailers": chunked(b"5\r\n12345\r\n0\r\nX: a\n\r\n"),
}


def smuggled() -> bytes:
    """A request that must never be taken for one: the witness would see it."""
    body = b'{"type":"info","service":"evil","channels":["witness"]}'
    return post(b"Content-Length: %d\r\n" % len(body), body)


@pytest.mark.parametrize("shape", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_could_be_understood_in_two_ways_is_refused_and_nothing_behind_it_is_read(
    service: ServiceProcess, shape: bytes
) -> None:
    def attack() -> None:
        assert refusal(service, shape + smuggled()) == 400
        # The same, as it comes over a network that cuts it anywhere.
        with RawConnection(service.port) as connection:
            with contextlib.suppress(ConnectionError):
                for n in range(0, len(shape), 7):
                    connection.send(shape[n : n + 7])
                connection.send(smuggled())
            assert [answer.status for answer in answers(connection.read_all())] == [400]

    besiege(service, attack)


BODY = smuggled()
CLEAR = {
    "length with zeros": (post(b"Content-Length: 005\r\n"), [422]),
    "space before the coding": (post(b"Transfer-Encoding:  \t chunked\r\n", END), [400]),
    "space after the coding": (post(b"Transfer-Encoding: chunked \r\n", END), [400]),
    "upper case coding": (post(b"TRANSFER-ENCODING: CHUNKED\r\n", END), [400]),
    "a name like a length": (post(b"Content_Length: 5\r\n", b""), [400]),
    "a request in a body": (post(b"Content-Length: %d\r\n" % len(BODY), BODY), [400]),
    "a request in a chunk": (chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), [400]),
    "a request in the body of a GET": (
        get(headers=HOST + b"Content-Length: %d\r\n" % len(BODY)) + BODY,
        [200],
    ),
    "a request in a chunk of a GET": (
        get(headers=HOST + b"Transfer-Encoding: chunked\r\n")
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
        [200],
    ),
    "a request in the body of an OPTIONS": (
        get(headers=HOST + b"Content-Length: %d\r\n" % len(BODY)).replace(b"GET", b"OPTIONS")
        + BODY,
        [405],
    ),
    "a request in a body that nobody reads": (
        (post(b"Content-Length: %d\r\n" % len(BODY)) + BODY)
        .replace(b"12345", b"")
        .replace(b"/send", b"/nowhere", 1),
        [404],
    ),
    "chunk size with zeros": (chunked(b"0000005\r\n12345\r\n000\r\n\r\n"), [422]),
    "chunk extensions": (chunked(b'5;a=b;c="d"\r\n12345\r\n0;x\r\n\r\n'), [422]),
    "trailers": (
        chunked(b"5\r\n12345\r\n0\r\nX: y\r\nIdempotency-Key: x\r\nHost: evil.example\r\n\r\n"),
        [422],
    ),
    "empty lines before it": (b"\r\n\r\n" + get(), [200]),
    "empty value": (get(headers=b"X:\r\n" + HOST), [200]),
    "URL": (get(b"http://localhost/health/live"), [200]),
    "URL in upper case": (get(b"HTTP://LOCALHOST/health/live?"), [200]),
    "URL without a path": (get(b"http://localhost"), [200]),
    "URL with a query alone": (get(b"https://localhost?x"), [200]),
    "two slashes": (get(b"//evil.example/health/live"), [404]),
    "asterisk": (get(b"*").replace(b"GET", b"OPTIONS"), [404]),
}


@pytest.mark.parametrize(("shape", "statuses"), CLEAR.values(), ids=CLEAR)
def test_what_can_be_understood_in_one_way_is_and_the_next_request_begins_behind_it(
    service: ServiceProcess, shape: bytes, statuses: list[int]
) -> None:
    def attack() -> None:
        assert [answer.status for answer in ask(service, shape + LAST)] == [*statuses, 200]

    besiege(service, attack)


def test_behind_a_request_that_closes_nothing_is_read(service: ServiceProcess) -> None:
    def attack() -> None:
        for shape in (LAST, get(version=b"HTTP/1.0"), get(version=b"HTTP/1.0", headers=b"")):
            assert [answer.status for answer in ask(service, shape + LIVE)] == [200]

    besiege(service, attack)


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.0"])
def test_a_request_that_offers_an_upgrade_is_read_whole(
    service: ServiceProcess, protocol: bytes
) -> None:
    body = b'{"type":"info","service":"s","channels":["upgrade"]}'
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n"
        % protocol
    )
    whole = post(upgrade + b"Content-Length: %d\r\n" % len(body), body)
    in_chunks = post(
        upgrade + b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )

    def attack() -> None:
        for shape in (whole, in_chunks):
            assert [answer.status for answer in ask(service, shape)] == [202]
            with RawConnection(service.port) as connection:
                for n in range(0, len(shape), 50):
                    connection.send(shape[n : n + 50])
                    time.sleep(0.001)
                assert [answer.status for answer in answers(connection.read_all())] == [202]
        # What asks for a WebSocket, and says nothing else that it needs, is told so.
        status = 426 if protocol == b"websocket" else 200
        assert [answer.status for answer in ask(service, get(headers=HOST + upgrade) * 300)] == [
            status
        ]

    besiege(service, attack)


def test_a_trailer_is_no_header(local: ServiceProcess) -> None:
    body = b'{"type":"info","service":"s","channels":["trailers"]}'

    def attack() -> None:
        for trailer in (
            b"Idempotency-Key: stolen",
            b"X-Forwarded-For: 1.2.3.4",
            b"Host: evil.example",
            b"Via: x",
        ):
            text = chunked(b"%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(body), body, trailer))
            accepted, healthy = ask(local, text + LAST)
            assert (accepted.status, healthy.status) == (202, 200)
            assert json.loads(accepted.body)["id"] != "stolen"

    besiege(local, attack)


def test_a_host_in_the_target_counts_and_not_the_one_in_the_header(local: ServiceProcess) -> None:
    def attack() -> None:
        for target, header, status in [
            (b"http://evil.example/health/live", b"localhost", 403),
            (b"http://localhost.evil.example/health/live", b"localhost", 403),
            (b"http://localhost/health/live", b"evil.example", 200),
            (b"http://[::1]:80/health/live", b"evil.example", 200),
            (b"/health/live", b"evil.example", 403),
            (b"/health/live", b"localhost, evil.example", 403),
            (b"/health/live", b"evil.example@localhost", 403),
            (b"/health/live", b"", 403),
        ]:
            headers = b"Connection: close\r\nHost: %b\r\n" % header
            assert [answer.status for answer in ask(local, get(target, headers=headers))] == [
                status
            ], target

    besiege(local, attack)


# Told


def test_a_thousand_malformed_requests_add_hardly_a_line_to_the_log(
    service: ServiceProcess,
) -> None:
    lines = len(service.log)

    def attack() -> None:
        for n in range(1000):
            shape = (
                b"garbage\r\n\r\n",
                get(headers=b""),
                get(headers=HOST + b"Upgrade: x\r\nConnection: upgrade\r\n"),
            )
            ask(service, shape[n % 3])

    besiege(service, attack)
    assert len(service.log) - lines <= 3


LIVES = {
    "nothing": b"",
    "request": LIVE,
    "requests": LIVE * 10,
    "half a request": LIVE[:10],
    "stream": STREAM,
    "garbage": b"garbage\r\n\r\n",
    "HTTP/1.0": get(version=b"HTTP/1.0"),
    "upgrade": get(headers=HOST + b"Upgrade: x\r\nConnection: upgrade\r\n"),
    "half a body": post(b"Content-Length: 9\r\n"),
    "invalid message": post(b"Content-Length: 15\r\n", b'{"type":"info"}'),
    "invalid batch": post(b"Content-Length: 17\r\n", b'[{"type":"info"}]').replace(
        b"send", b"batch"
    ),
}


@pytest.mark.parametrize("sent", LIVES.values(), ids=LIVES)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_an_ended_connection_leaves_nothing_to_the_garbage_collector(
    sent: bytes, reset: bool
) -> None:
    # It looks at what has lived for a while so rarely that this would be a leak: kilobytes of each
    # connection, and the whole text of a refused batch.
    with ThreadedService(enable_auth=False) as threaded:
        leave(threaded, sent, reset=reset)
        gc.collect()
        gc.disable()
        try:
            before = alive()
            for _ in range(10):
                leave(threaded, sent, reset=reset)
            eventually(lambda: alive() <= before)
        finally:
            gc.enable()


def alive() -> int:
    """How many objects of connections, and errors, are in memory, be they garbage or not."""
    kinds = (Protocol, Exchange, Wire, MsgpushError)
    return sum(isinstance(each, kinds) for each in gc.get_objects())


def leave(threaded: ThreadedService, sent: bytes, *, reset: bool) -> None:
    """Connect, send this, and go when what is answered at once has come."""
    tasks = threaded.tasks()
    connection = RawConnection(threaded.port)
    connection.send(sent)
    with contextlib.suppress(TimeoutError):
        connection.receive(0.02)
    if reset:
        connection.reset()
    connection.__exit__()
    eventually(lambda: threaded.tasks() <= tasks)


def test_what_is_refused_is_counted_by_its_reason() -> None:
    with ServiceProcess(HEADER_TIMEOUT="0.2") as service:
        for request_bytes in (
            b"\0\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
            b"GET /",
        ):
            with RawConnection(service.port) as connection:
                connection.send(request_bytes)
                assert connection.read_all().startswith(b"HTTP/1.1 4")
        assert (
            request(service.port, "POST", "/api/v1/messages/send", b'"' + b"x" * MIB + b'"').status
            == 413
        )
        metrics = request(service.port, "GET", "/metrics").body.decode()
        for reason in ("malformed", "headers", "too_slow", "too_large"):
            assert f'message_push_refused_total{{reason="{reason}"}} 1.0' in metrics
