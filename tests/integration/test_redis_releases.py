"""Instances are replaced one by one: this release and a later one read each other's entries on the
same Redis.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.link import HASH_TAG, Script
from msgpush.adapters.redis.log import LOG, TAG
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.connection import Connection, Subscription
from msgpush.domain.message import Draft
from msgpush.domain.ports import Stored
from msgpush.domain.service import Push
from tests.support.fakes import FakeSink, PlainView, make
from tests.support.redis_servers import RedisServer

MORE_WORDS = b" priority=high key=importer/import-42"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


class LaterBus(RedisBus):
    """A release to come: its headers have more words, its entries more fields, its head too, and it
    has more kinds.
    """

    more = "'m', stored, 'later', 'what is this', 'n', '1'"

    def __init__(self, target: RedisTarget) -> None:
        super().__init__(target)
        more = self.more
        assert APPEND.count("'m', stored") == 2
        self._writer._script = Script(
            APPEND.replace("'m', stored", more).replace("'open', '')", "'open', '', 'z', 1)")
        )
        known = self._writer._plan

        def plan(group: Sequence[Draft], tag: bytes) -> tuple[list[str], list[bytes]]:
            keys, (plan, *stored) = known(group, tag)
            return keys, [plan, *(each.replace(b"\n", MORE_WORDS + b"\n", 1) for each in stored)]

        self._writer._plan = plan  # type: ignore[method-assign]


class FirstBus(LaterBus):
    """Another one, which says its own things before what is known."""

    more = "'m', stored, 'n', '1'"

    def __init__(self, target: RedisTarget) -> None:
        super().__init__(target)
        self._writer._script = Script(
            self._writer._script.text.replace("id, 'p',", "id, 'later', 'm', 'p',")
        )


def of_kind(kind: str, *channels: str) -> Draft:
    return Draft("", "", channels, kind, "tests", 3600, b'{"id":"not for you"}', None)


class Instance:
    """A bus, its facade, and a reader that asks for everything on some channels."""

    def __init__(self, bus: RedisBus, push: Push) -> None:
        self.bus, self.push = bus, push

    async def subscribe(self, cursor: str | None = None) -> FakeSink:
        sink = FakeSink()
        subscription = Subscription(frozenset({"a", "b"}), PlainView())
        start = await self.push.start_at(cursor)
        self.push.subscribe(Connection(f"c{id(sink)}", sink), subscription, start)
        return sink


@asynccontextmanager
async def instances(
    server: RedisServer, *kinds: type[RedisBus]
) -> AsyncIterator[Sequence[Instance]]:
    target = RedisTarget.from_url(server.url)
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(kind(target)) for kind in kinds]
        yield [Instance(bus, await stack.enter_async_context(Push(bus))) for bus in buses]


def cut_off(server: RedisServer) -> None:
    """Cut all connections, so that whoever reads has to find its place in the log again."""
    with server.client() as client:
        for each in client.client_list():
            if each["name"] == "msgpush-tail":
                client.client_kill_filter(_id=each["id"])


async def received(sink: FakeSink, ids: Sequence[str]) -> None:
    async with asyncio.timeout(10):
        while len(sink.ids) < len(ids):  # noqa: ASYNC110 - the tail's own time decides
            await asyncio.sleep(0.005)
    assert sink.ids == list(ids)
    assert not sink.gaps


@pytest.mark.parametrize("kind", [LaterBus, FirstBus])
async def test_a_later_release_and_this_one_serve_the_same_streams_while_instances_are_replaced(
    server: RedisServer, caplog: pytest.LogCaptureFixture, kind: type[LaterBus]
) -> None:
    async with instances(server, RedisBus, kind) as (now, later):
        sinks = [await each.subscribe() for each in (now, later)]
        ids = []
        for n in range(20):
            for name, each in (("now", now), ("later", later)):
                ids.append(f"{name}{n}")
                (stored,) = await each.bus.append([make(ids[-1], "a")])
                assert isinstance(stored, Stored)
            await later.bus.append(
                [of_kind("redelivery", "a"), of_kind("acknowledged", "b"), of_kind("receipt")]
            )
            if n == 10:
                await received(sinks[0], ids)
                cut_off(server)
        for sink in sinks:
            await received(sink, ids)
        # A retry at the other release is the same message, and what was published is resumed at
        # both.
        (again,) = await now.bus.append([make("later0", "a")])
        assert isinstance(again, Stored)
        assert again.duplicate
        for each in (now, later):
            await received(await each.subscribe("earliest"), ids)
            await received(await each.subscribe(sinks[0].cursors[4]), ids[5:])
            history = await each.push.history("a", None, 1000)
            assert [json.loads(bytes(message))["id"] for message in history.messages] == ids
            assert history.gap is None
        assert now.bus.unknown == 60
        assert now.bus.reachable
        told = Counter(
            record.message for record in caplog.records if "not known here" in record.message
        )
        assert list(told.values()) == [2, 2, 2], (
            "each of the three kinds once, at each of the two instances"
        )


async def test_a_call_that_a_later_release_has_left_halfway_is_completed_by_this_one(
    server: RedisServer,
) -> None:
    async with instances(server, RedisBus) as (now,), instances(server, LaterBus) as (later,):
        sink = await now.subscribe()
        head = f"{HASH_TAG}:head"
        with server.client() as client:
            before = client.hgetall(head)
            await later.bus.append([make("half", "a")])
            # As it would be where it was stopped before its last write, with a plan that nobody
            # here understands.
            (at, fields) = client.xrevrange(LOG, count=1)[0]
            tag = fields[b"m"][:TAG]
            client.hset(head, mapping={name: before[name] for name in (b"ms", b"seq", b"tag")})
            client.hset(head, "open", at + b" " + tag + b" \xff\x00what is this")
        (stored,) = await now.bus.append([make("after", "a")])
        assert isinstance(stored, Stored)
        await received(sink, ["half", "after"])


FOREIGN = (
    {"p": "what", "m": "is this"},
    {"x": "y"},
    {"p": "1-1-aaaaaaaa"},
    {"m": "aaaaaaaa 60 info s a\n{}"},
    {"m": ""},
)


async def test_what_somebody_else_has_written_into_the_log_is_passed_over(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with instances(server, RedisBus, RedisBus) as (one, two):
        sink = await one.subscribe()
        ids = [f"m{n}" for n in range(2 * len(FOREIGN))]
        for id, fields in zip(ids, FOREIGN * 2, strict=True):
            with server.client() as client:
                client.xadd(LOG, dict[Any, Any](fields))
            stored = False
            while not stored:  # it stands where the next message would, for a millisecond
                (result,) = await two.bus.append([make(id, "a")])
                stored = isinstance(result, Stored)
        await received(sink, ids)
        assert one.bus.reachable
        assert one.bus.unknown >= len(FOREIGN)
        assert "<no entry of msgpush>" in caplog.text
