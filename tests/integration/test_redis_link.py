"""Connections to Redis that many callers share: nobody's going, nor their number, disturbs the
others.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.credentials import RedisCredentials
from msgpush.adapters.redis.limiter import RedisLimiter
from msgpush.adapters.redis.link import SharedLink
from msgpush.adapters.redis.roster import RedisRoster
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import ConnectionFilter
from msgpush.domain.service import Push
from tests.support.fakes import reporting
from tests.support.redis_servers import RedisServer

# Keeps the server busy for ten or twenty milliseconds; its clock stands still for a script.
BUSY = "for _ = 1, 2000000 do end return 'done'"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


def connections(server: RedisServer) -> dict[str, str]:
    """The server's connections of ours: each one's name, and the number that the server knows it
    by.
    """
    with server.client() as client:
        return {
            each["name"]: each["id"]
            for each in client.client_list()
            if each["name"].startswith("msgpush")
        }


class Everything:
    """All that asks Redis for its callers, over one server."""

    def __init__(self, server: RedisServer) -> None:
        target = RedisTarget.from_url(server.url)
        self.bus = RedisBus(target)
        self.credentials = RedisCredentials(target, lifetime=60)
        self.push = Push(self.bus, credentials=self.credentials)
        self.roster = RedisRoster(
            target, self.push.listing("n1"), self.push.command, reporting("n1")
        )
        self.limiter = RedisLimiter(target, 1000)


ASKED: dict[str, Callable[[Everything], Awaitable[Any]]] = {
    "history": lambda it: it.bus.history(["a"], None, 10),
    "end": lambda it: it.bus.end(),
    "ticket": lambda it: it.credentials.ticket("digest"),
    "holder": lambda it: it.credentials.holder("digest"),
    "limiter": lambda it: it.limiter.take("s", 1),
    "roster": lambda it: it.roster.connections(ConnectionFilter(), 10, None),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_whoever_goes_while_redis_is_asked_costs_the_others_neither_answer_nor_connection(
    server: RedisServer, asked: str
) -> None:
    it = Everything(server)
    async with it.bus, it.credentials, it.push, it.roster, it.limiter:
        await ASKED[asked](it)
        before = connections(server)
        server.pause()
        try:
            going = [asyncio.ensure_future(ASKED[asked](it)) for _ in range(5)]
            await asyncio.sleep(0)
            staying = asyncio.ensure_future(ASKED[asked](it))
            await asyncio.sleep(0.05)
            for each in going:
                each.cancel()
            await asyncio.wait(going)
        finally:
            server.resume()
        await staying
        await ASKED[asked](it)
        after = connections(server)
    assert all(each.cancelled() for each in going)
    assert before.items() <= after.items()


async def test_waiting_for_others_on_a_healthy_server_is_no_failure(server: RedisServer) -> None:
    link = SharedLink(RedisTarget.from_url(server.url), "msgpush-test")
    link._timeout = 0.4
    async with AsyncExitStack() as stack:
        stack.push_async_callback(link.close)
        answers = await asyncio.gather(*(link.call("EVAL", BUSY, 0) for _ in range(100)))
    assert answers == [b"done"] * 100, "together they take longer than one of them may"


async def test_a_server_that_hangs_fails_all_who_wait_at_once(server: RedisServer) -> None:
    link = SharedLink(RedisTarget.from_url(server.url), "msgpush-test")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(link.close)
        await link.call("PING")
        server.pause()
        stack.callback(server.resume)
        began = time.monotonic()
        results = await asyncio.gather(
            *(link.call("PING") for _ in range(200)), return_exceptions=True
        )
        took = time.monotonic() - began
    assert all(isinstance(each, BusUnavailable) for each in results)
    assert took < 2 * 1.5, "a time limit and a quarter, not one for each group that waits"


async def test_a_call_that_fails_is_the_failure_of_its_caller_alone(server: RedisServer) -> None:
    link = SharedLink(RedisTarget.from_url(server.url), "msgpush-test")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(link.close)
        calls = (link.call("ECHO", "1"), link.call("NOSUCH"), link.call("ECHO", "3"))
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [results[0], results[2]] == [b"1", b"3"]
    assert isinstance(results[1], BusUnavailable)


async def test_a_link_that_is_closed_refuses_those_who_wait(server: RedisServer) -> None:
    link = SharedLink(RedisTarget.from_url(server.url), "msgpush-test")
    await link.call("PING")
    server.pause()
    try:
        waiting = asyncio.ensure_future(link.call("PING"))
        await asyncio.sleep(0.01)
        await link.close()
        with pytest.raises(BusUnavailable):
            await waiting
    finally:
        server.resume()


async def test_a_database_that_the_server_has_not_is_named_with_what_to_do() -> None:
    with RedisServer(extra=("--databases", "1")) as small:
        async with RedisBus(RedisTarget.from_url(small.url.replace("/0", "/2"))) as bus:
            with pytest.raises(
                BusUnavailable, match=r"the server has no database 2; use 0: REDIS_DB=0"
            ):
                await bus.end()


async def test_a_reader_who_asks_for_too_much_does_not_fail_the_others(server: RedisServer) -> None:
    heavy = "for _ = 1, 120000000 do end return 'done'"  # longer than a call may take
    link = SharedLink(RedisTarget.from_url(server.url), "msgpush-test")
    link._timeout = 0.3
    async with AsyncExitStack() as stack:
        stack.push_async_callback(link.close)
        waiting = [asyncio.ensure_future(link.call("EVAL", heavy, 0))]
        waiting += [asyncio.ensure_future(link.call("PING")) for _ in range(40)]
        await asyncio.wait(waiting)
        failed = [each for each in waiting if each.exception() is not None]
        assert waiting[0] in failed
        with server.client() as client:
            client.ping()  # when it is done with that
        answers = await asyncio.gather(*(link.call("PING") for _ in range(40)))
        assert answers == [b"PONG"] * 40


async def test_what_cannot_be_sent_is_the_fault_of_its_caller_alone(server: RedisServer) -> None:
    async with RedisBus(RedisTarget.from_url(server.url)) as bus:
        await bus.end()
        asking = [bus.history([channel], None, 10) for channel in ("a", "b\ud83d", "c")]
        results = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(results[1], UnicodeEncodeError)
    assert not any(isinstance(each, BaseException) for each in (results[0], results[2]))


async def test_a_limiter_that_is_closed_answers_those_who_have_just_asked_and_those_who_come_later(
    server: RedisServer,
) -> None:
    limiter = RedisLimiter(RedisTarget.from_url(server.url), 10)
    async with limiter:
        asking = asyncio.ensure_future(limiter.take("s", 1))
        await asyncio.sleep(0)
    async with asyncio.timeout(1):
        for each in (asking, asyncio.ensure_future(limiter.take("s", 1))):
            with pytest.raises(BusUnavailable):
                await each
