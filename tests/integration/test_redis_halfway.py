"""Redis lets nobody in between a script's commands, but undoes none: what was stopped halfway is
completed.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.epochs import BEGIN
from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.log import LOG
from msgpush.adapters.redis.mending import MEND
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.connection import Connection, Subscription
from msgpush.domain.control import Close, command_draft
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.message import Draft
from msgpush.domain.ports import Stored
from msgpush.domain.service import Push
from tests.support.fakes import FakeSink, PlainView, make
from tests.support.halfway import STOPPED, stopped_at
from tests.support.redis_servers import RedisServer

pytestmark = pytest.mark.usefixtures("probe_once")

CHANNELS = ("a", "b", "service:tests")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


def drafts(prefix: str) -> list[Draft]:
    return [make(f"{prefix}{n}", "a", "b") for n in range(3)]


class Pair:
    """Two instances on one Redis, and a reader of all channels at each."""

    def __init__(
        self, server: RedisServer, buses: Sequence[RedisBus], pushes: Sequence[Push]
    ) -> None:
        self.server, self.buses, self.pushes = server, buses, pushes
        self.sinks: list[FakeSink] = []

    async def open(self) -> None:
        for push in self.pushes:
            sink = FakeSink()
            subscription = Subscription(frozenset(CHANNELS), PlainView())
            push.subscribe(
                Connection(f"c{id(push)}", sink), subscription, await push.start_at(None)
            )
            self.sinks.append(sink)

    async def settle(self) -> None:
        """The epoch and a probe of each are in the log, and both have read it: nothing more happens
        by itself.
        """
        async with asyncio.timeout(10):
            while True:
                end = await self.buses[0].end()
                if self.buses[0].length >= 3 and all(
                    push._hub.log.head >= end for push in self.pushes
                ):
                    return
                await asyncio.sleep(0.002)

    async def have(self, *ids: str) -> None:
        """The log, both readers and each channel's history have exactly these messages, in the
        log's order, no gap.
        """
        with self.server.client() as client:
            texts = [fields[b"m"].partition(b"\n")[2] for _, fields in client.xrange(LOG)]
            order = [json.loads(text)["id"] for text in texts if b'"id"' in text]
            assert client.hget(f"{HASH_TAG}:head", "open") == b""
        assert sorted(order) == sorted(ids)
        async with asyncio.timeout(10):
            while not all(len(sink.ids) >= len(ids) for sink in self.sinks):  # noqa: ASYNC110 - the tail's time decides
                await asyncio.sleep(0.005)
        assert [sink.ids for sink in self.sinks] == [order] * 2
        assert not any(sink.gaps for sink in self.sinks)
        for channel in CHANNELS:
            history = await self.pushes[0].history(channel, None, 100)
            assert [json.loads(bytes(each))["id"] for each in history.messages] == order, channel
            assert history.gap is None


@asynccontextmanager
async def opened(server: RedisServer) -> AsyncIterator[Pair]:
    target = RedisTarget.from_url(server.url)
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(RedisBus(target)) for _ in range(2)]
        pair = Pair(server, buses, [await stack.enter_async_context(Push(bus)) for bus in buses])
        await pair.open()
        await pair.settle()
        yield pair


@pytest.mark.parametrize("other", [False, True], ids=["the same instance", "another instance"])
async def test_an_append_that_was_stopped_at_any_of_its_writes_is_completed_by_the_next(
    server: RedisServer, other: bool, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [f"{name}{n}" for name in ("before", "half", "after") for n in range(3)]
    number = stored = 0
    while True:
        number += 1
        with server.client() as client:
            client.flushall()
        async with opened(server) as pair:
            one, following = pair.buses[0], pair.buses[other]
            await one.append(drafts("before"))
            script, one._writer._script = one._writer._script, stopped_at(APPEND, number)
            refused = await one.append(drafts("half"))
            one._writer._script = script
            if all(isinstance(each, Stored) for each in refused):
                break
            assert all(STOPPED in str(each) for each in refused)
            await following.append(drafts("after"))
            again = await one.append(drafts("half"))
            stored += sum(isinstance(each, Stored) and each.duplicate for each in again)
            await pair.have(*expected)
    assert number > 20, "it was stopped at each write"
    assert stored > 20, "what was in the log is there once, however often it is published again"
    assert "Redis had stopped a call halfway" in caplog.text


@pytest.mark.parametrize("first_stop", [6, 12, 20])
async def test_completing_a_call_may_be_stopped_at_any_write_and_begun_again(
    server: RedisServer, first_stop: int
) -> None:
    number = 0
    while True:
        number += 1
        with server.client() as client:
            client.flushall()
        async with opened(server) as pair:
            one = pair.buses[0]
            script, one._writer._script = one._writer._script, stopped_at(APPEND, first_stop)
            await one.append(drafts("half"))
            one._writer._script = script
            script, one._epochs._mender._script = (
                one._epochs._mender._script,
                stopped_at(MEND, number),
            )
            (result,) = await one.append([make("m1", "a", "b")])
            one._epochs._mender._script = script
            await one.append([*drafts("half"), make("m1", "a", "b")])
            await pair.have("half0", "half1", "half2", "m1")
            if isinstance(result, Stored):
                break
    assert number > 1


async def test_a_right_that_is_taken_and_given_back_stops_publishing_only_while_it_is_gone(
    server: RedisServer,
) -> None:
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">pw", f"~{HASH_TAG}:*", "+@all", "-@dangerous"
        )
    limited = server.url.replace("//", "//app:pw@")
    for right in ("pexpire", "set", "xadd", "hset", "pttl", "mget"):
        async with RedisBus(RedisTarget.from_url(limited)) as bus, Push(bus) as push:
            with server.client() as client:
                client.execute_command("ACL", "SETUSER", "app", f"-{right}")
                refused = await bus.append(drafts(right))
                client.execute_command("ACL", "SETUSER", "app", f"+{right}")
            assert all(right in str(each) for each in refused)
            again = await bus.append(drafts(right))
            assert all(isinstance(each, Stored) for each in again)
            history = await push.history("a", None, 1000)
            ids = [json.loads(bytes(each))["id"] for each in history.messages]
            assert [id for id in ids if id.startswith(right)] == [f"{right}{n}" for n in range(3)]


async def test_a_log_that_ends_after_its_head_is_mended_whoever_has_left_it_so(
    server: RedisServer,
) -> None:
    # As an earlier release did, which leaves no word that a call is under way.
    async with opened(server) as pair:
        one = pair.buses[0]
        await one.append(drafts("before"))
        with server.client() as client:
            head = client.hgetall(f"{HASH_TAG}:head")
            await one.append([make("half", "a", "b")])
            client.hset(
                f"{HASH_TAG}:head", mapping={name: head[name] for name in (b"ms", b"seq", b"tag")}
            )
            for channel in CHANNELS:
                client.delete(f"{HASH_TAG}:last:{channel}")
        async with asyncio.timeout(10):
            while not isinstance((await one.append(drafts("after")))[0], Stored):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
        await pair.have("before0", "before1", "before2", "half", "after0", "after1", "after2")


async def test_an_epoch_that_was_half_begun_is_begun(server: RedisServer) -> None:
    number = 0
    while True:
        number += 1
        with server.client() as client:
            client.flushall()
        async with RedisBus(RedisTarget.from_url(server.url)) as bus:
            script, bus._epochs._script = bus._epochs._script, stopped_at(BEGIN, number)
            try:
                await bus.end()
                break
            except BusUnavailable as error:
                assert STOPPED in error.detail
            bus._epochs._script = script
            async with Push(bus):
                assert isinstance((await bus.append([make("m1", "a")]))[0], Stored)
    assert number == 3


@pytest.mark.parametrize("halfway", [False, True])
async def test_a_channel_whose_keys_are_broken_stops_no_other_and_is_told_as_a_gap(
    server: RedisServer, halfway: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server) as pair:
        one, two = pair.buses
        cursor = await one.end()
        with server.client() as client:
            client.set(f"{HASH_TAG}:history:broken", "no stream")
            client.lpush(f"{HASH_TAG}:last:broken", "no string")
        drafts_of_many = [
            make(f"m{n}", "broken", "a") if n == 3 else make(f"m{n}", "a") for n in range(6)
        ]
        if halfway:
            script, one._writer._script = one._writer._script, stopped_at(APPEND, 22)
            assert STOPPED in str((await one.append(drafts_of_many))[3])
            one._writer._script = script
        results = await asyncio.gather(*(one.append([each]) for each in drafts_of_many))
        assert all(isinstance(each, Stored) for (each,) in results)
        assert all(isinstance(each, Stored) for each in await two.append(drafts("after")))
        for channel in ("a", "service:tests"):
            history = await pair.pushes[0].history(channel, None, 100)
            ids = [json.loads(bytes(each))["id"] for each in history.messages]
            assert sorted(ids) == sorted(
                [*(f"m{n}" for n in range(6)), "after0", "after1", "after2"]
            )
        with server.client() as client:
            client.delete(f"{HASH_TAG}:history:broken")
        (page,) = await one.history(["broken"], cursor, 10)
        assert page.last > cursor, "what its history lacks is a gap"
        assert caplog.text.count(f"its key is no stream: {HASH_TAG}:history:broken") == 1


async def test_a_redis_that_refuses_to_complete_a_call_can_be_read_and_commanded_all_the_same(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        one, two = pair.buses
        await one.append(drafts("before"))
        script, one._writer._script = one._writer._script, stopped_at(APPEND, 8)
        await one.append(drafts("half"))
        one._writer._script = script
        with server.client() as client:
            client.config_set("maxmemory", "1")
            try:
                client.client_kill_filter(
                    _id=next(c["id"] for c in client.client_list() if c["name"] == "msgpush-tail")
                )
                async with RedisBus(RedisTarget.from_url(server.url)) as fresh, Push(fresh) as push:
                    assert (await push.history("a", None, 10)).messages
                    push.admit()
                assert not isinstance((await two.append(drafts("after")))[0], Stored)
                (command,) = await one.append([command_draft(Close("nobody", True))])
                assert isinstance(command, Stored), "or whoever fills it could not be stopped"
            finally:
                client.config_set("maxmemory", "0")
        for bus in (one, two):
            assert all(isinstance(each, Stored) for each in await bus.append(drafts("half")))
        async with asyncio.timeout(10):
            while not all(bus.reachable for bus in (one, two)):  # noqa: ASYNC110 - the tail's time decides
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "said", [b"what is this", b"\xff\x00", b"1-1 aaaaaaaa", b"v2 1-1 aaaaaaaa "]
)
async def test_a_word_that_nobody_understands_stops_nothing_for_ever(
    server: RedisServer, said: bytes
) -> None:
    async with opened(server) as pair:
        with server.client() as client:
            client.hset(f"{HASH_TAG}:head", "open", said)
        results = await pair.buses[0].append(drafts("after"))
        if said.isascii():
            assert all(isinstance(each, Stored) for each in results)
        else:
            assert "stored halfway" in str(results[0])


async def test_a_log_without_its_head_that_ends_with_what_is_not_ours_begins_anew(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        await pair.buses[0].append(drafts("before"))
        with server.client() as client:
            client.delete(f"{HASH_TAG}:head")
            client.xadd(LOG, {"x": "y"})
        async with asyncio.timeout(10):
            while not isinstance((await pair.buses[0].append(drafts("after")))[0], Stored):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
