"""One HTTP connection, without a socket: what it has time for, and how it ends."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from msgpush.entrypoints import protocol
from msgpush.entrypoints.protocol import LINGER_SECONDS, Limits, Protocol, State
from tests.support.fakes import FakeClock

LIMITS = Limits(header_timeout=5, body_timeout=30, keep_alive=75)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 1)})
        self.written = b""
        self.ended: str | None = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.ended = "half closed"

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return self.ended in ("closed", "aborted")

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answer(_: Scope, __: Receive, send: Send) -> None:
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def answer_and_fail(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(scope, receive, send)
    raise RuntimeError("after all")


class Wired:
    """A connection, its transport and a clock."""

    def __init__(self, clock: FakeClock, app: Any = answer) -> None:
        self.clock, self.state, self.transport = clock, State(LIMITS), Transport()
        config: Any = SimpleNamespace(loaded_app=app, root_path="")
        self.protocol = Protocol(config, self.state, {})
        self.protocol.connection_made(self.transport)

    async def get(self, data: bytes) -> None:
        self.protocol.data_received(data)
        if self.state.tasks:
            await asyncio.wait(self.state.tasks)

    @property
    def left(self) -> float:
        """Seconds until the connection is ended, if nothing comes."""
        return self.state.deadlines[self.protocol] - self.clock.monotonic()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(protocol, "time", clock)
    return clock


async def test_the_first_headers_have_their_time_from_connecting(clock: FakeClock) -> None:
    wired = Wired(clock)
    clock.advance(2)
    await wired.get(b"\r\n")  # allowed before a request, and none yet
    clock.advance(2)
    await wired.get(b"G")
    assert wired.left == 1


async def test_later_headers_have_theirs_from_their_first_byte(clock: FakeClock) -> None:
    wired = Wired(clock)
    await wired.get(GET)
    assert wired.left == 75
    clock.advance(60)
    await wired.get(b"G")
    assert wired.left == 5
    clock.advance(3)
    await wired.get(b"E")
    assert wired.left == 2


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET / HT", b"garb\x01\r\n\r\n"],
        [b"garb\x01\r\n\r\n"],
        [GET, b"GET / HT", b"garb\x01\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nA: " + b"a" * 40_000, b"a" * 40_000],
        [b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n"],
    ],
)
async def test_what_was_refused_is_waited_for_a_moment_alone(
    clock: FakeClock, pieces: list[bytes]
) -> None:
    wired = Wired(clock)
    for piece in pieces:
        await wired.get(piece)
    assert wired.transport.ended == "half closed"
    assert wired.left <= LINGER_SECONDS


async def test_an_answer_can_be_read_whose_application_fails_before_the_body_has_come(
    clock: FakeClock,
) -> None:
    wired = Wired(clock, answer_and_fail)
    await wired.get(POST)
    assert wired.transport.ended == "half closed"
    assert wired.transport.written.endswith(b"\r\n\r\nok")
