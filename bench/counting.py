"""What counting costs: two services in this process, one that counts and one that doesn't, in turns
of a few milliseconds, so that what disturbs the machine disturbs both alike."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any, NamedTuple

from bench.load import CHANNEL, message
from msgpush.adapters.logs import configure
from msgpush.adapters.sse.stream import EventView
from msgpush.domain.connection import NOW, Connection, Subscription
from msgpush.domain.ports import ClientInfo
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings

TURNS = 300
_PUBLISHES, _STREAMS = 50, 1_000

Work = Callable[[], Awaitable[None]]


class Cost(NamedTuple):
    """CPU seconds of one of something, counted and not, and the median of the ratios by turn."""

    what: str
    counted: float
    uncounted: float
    ratio: float


class _Null:
    """A sink whose bytes go nowhere, by a system call: to a socket they would cost more."""

    backlog, writable = 0, True

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def offer(self, chunk: bytes) -> bool:
        os.write(self._fd, chunk)
        return True

    def finish(self, chunk: bytes) -> None:
        pass

    def abort(self) -> None:
        pass

    async def drained(self) -> bool:
        return True


def counting_costs() -> list[Cost]:
    """The costs of a publish, as the application handles it, and of its delivery to streams."""
    configure("error", "console")
    return asyncio.run(_costs())


async def _costs() -> list[Cost]:
    fd = os.open(os.devnull, os.O_WRONLY)
    try:
        async with AsyncExitStack() as opened:
            both = []
            for counted in (True, False):
                app = create_app(Settings(enable_auth=False), counted=counted)
                await opened.enter_async_context(lifespan(app))
                both.append(app)
            publishes = await _compare([_publishing(app) for app in both])
            for app in both:
                _listen(app, fd)
            deliveries = await _compare([_delivering(app) for app in both])
    finally:
        os.close(fd)
    return [
        Cost("a publish, without sockets", *publishes),
        Cost(f"a message to {_STREAMS:,} streams, without sockets", *deliveries),
    ]


async def _compare(works: list[Work]) -> tuple[float, float, float]:
    taken: list[tuple[float, float]] = []
    for turn in range(TURNS):
        pair = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            before = time.thread_time()
            await works[which]()
            pair[which] = (time.thread_time() - before) / _PUBLISHES
        taken.append((pair[0], pair[1]))
    taken = taken[TURNS // 10 :]
    counted, uncounted = (median(each) for each in zip(*taken, strict=True))
    return counted, uncounted, median(one / other for one, other in taken)


def _publishing(app: Any) -> Work:
    body = {"type": "http.request", "body": message(0), "more_body": False}
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/api/v1/messages/send",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "query_string": b"",
        "client": ("127.0.0.1", 1),
    }

    async def receive() -> dict[str, Any]:
        return body

    async def send(_: Any) -> None:
        pass

    async def work() -> None:
        for _ in range(_PUBLISHES):
            await app({**scope}, receive, send)

    return work


def _listen(app: Any, fd: int) -> None:
    subscription = Subscription(frozenset({CHANNEL}), EventView(frozenset()))
    for number in range(_STREAMS):
        info = ClientInfo(None, "sse", "", "", 0.0)
        app.state.push.subscribe(Connection(f"c{number}", _Null(fd), info), subscription, NOW)


def _delivering(app: Any) -> Work:
    publish, newest = _publishing(app), list(app.state.push.connections.values())[-1]

    async def work() -> None:
        wanted = newest.messages_sent + _PUBLISHES
        await publish()
        while newest.messages_sent < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0)

    return work
