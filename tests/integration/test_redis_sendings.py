"""What is to be pushed, in Redis: the contract, on one server and on a Cluster; calls that stop."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.link import HASH_TAG, Script
from msgpush.adapters.redis.records import OUTBOX, PUSHES, sending_key
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import Stored
from tests.contracts.bus import store
from tests.contracts.outbox import Limits, Opened
from tests.contracts.sendings import M1, SendingsContract, due, over
from tests.support.fakes import FakeClock
from tests.support.pushes import push
from tests.support.redis_servers import ClusterGroup, RedisServer


class RedisSendingsContract(SendingsContract):
    server: RedisServer
    url: str

    @asynccontextmanager
    async def open(self, limits: Limits = Limits()) -> AsyncIterator[Opened]:  # noqa: B008
        with self.server.client() as client:
            client.flushall()
        clock = FakeClock()
        async with RedisBus(
            RedisTarget.from_url(self.url), pending_bytes=limits.pending_bytes, clock=clock.now
        ) as bus:
            await bus.end()
            yield Opened(bus, lambda: int(clock.now() * 1000), clock.advance)


class TestServer(RedisSendingsContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _start(cls) -> Iterator[None]:
        with RedisServer() as server:
            cls.server, cls.url = server, server.url
            yield

    async def test_nothing_is_left_of_what_is_over(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, *(push(f"m{number}", ack=None) for number in range(10)))
            await opened.bus.sendings.settle([over(each) for each, _ in await due(opened)])
            with self.server.client() as client:
                assert not client.exists(OUTBOX, PUSHES, sending_key(M1))

    async def test_one_that_somebody_has_removed_stops_no_other(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, push("m1", ack=None), push("m2", ack=None))
            with self.server.client() as client:
                client.delete(sending_key(M1))
            assert [sending.key for sending, _ in await due(opened)] == ["tests/m2"]
            with self.server.client() as client:
                assert client.zscore(PUSHES, M1) is None

    @pytest.mark.parametrize(
        "stop",
        ["call('HSET', outbox, 'redo'", "call('HDEL', outbox, 'redo')", "put('ZADD', pushes"],
    )
    @pytest.mark.parametrize("ack", [True, None])
    async def test_a_call_that_was_stopped_halfway_is_completed(
        self, stop: str, ack: bool | None
    ) -> None:
        async with self.open() as opened:
            bus = opened.bus
            assert isinstance(bus, RedisBus)
            assert stop in APPEND
            whole = bus._writer._script
            bus._writer._script = Script(APPEND.replace(stop, stop.replace("'", "'NO", 1)))
            if stop.startswith("put"):
                bus._writer._script = Script(APPEND.replace(stop, "call('NOSUCH') " + stop))
            (failed,) = await bus.append([push("m1", ack=ack)])
            assert isinstance(failed, BusUnavailable)
            bus._writer._script = whole
            (again,) = await bus.append([push("m1", ack=ack)])
            assert isinstance(again, Stored)
            opened.advance(20)
            assert [sending.key for sending, _ in await due(opened)] == [M1]
            with self.server.client() as client:
                size = int(client.hget(sending_key(M1), "sz") or 0)
                assert 0 < size <= int(client.hget(OUTBOX, "bytes") or 0)

    async def test_a_full_redis_lets_go_of_what_is_over(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, push("m1", ack=None))
            with self.server.client() as client:
                client.config_set("maxmemory", 1)
                try:
                    pairs = await due(opened)
                    assert await opened.bus.sendings.settle(
                        [over(sending) for sending, _ in pairs]
                    ) == [True]
                finally:
                    client.config_set("maxmemory", 0)
                assert not client.exists(PUSHES)


@pytest.mark.long
class TestCluster(RedisSendingsContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _start(cls) -> Iterator[None]:
        with ClusterGroup(key=HASH_TAG) as group:
            cls.server, cls.url = group.primary, group.url
            yield
