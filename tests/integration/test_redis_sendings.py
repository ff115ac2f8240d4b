"""What is to be pushed, in Redis: the contract, on one server and on a Cluster; calls that stop."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.link import HASH_TAG, Script
from msgpush.adapters.redis.mending import MEND
from msgpush.adapters.redis.records import OUTBOX, PUSHES, sending_key
from msgpush.adapters.redis.sendings import SETTLE, TAKE
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.notification import Try
from msgpush.domain.ports import Stored
from tests.contracts.bus import store
from tests.contracts.outbox import Limits, Opened
from tests.contracts.sendings import M1, SendingsContract, due, over
from tests.support.fakes import FakeClock, make
from tests.support.halfway import keyed, stopped_at
from tests.support.outbox_audit import audit
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

    async def test_what_a_later_release_has_put_there_is_left_to_it_until_its_time_is_over(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, push("m1", ack=None, ttl=600), push("m2", ack=None))
            with self.server.client() as client:
                said = client.hget(sending_key(M1), "d")
                assert said is not None
                client.hset(sending_key(M1), "d", said.replace(b"always", b"a new one"))
                assert [sending.key for sending, _ in await due(opened)] == ["tests/m2"]
                assert client.zscore(PUSHES, M1)
                before = int(client.hget(OUTBOX, "bytes") or 0)
                size = int(client.hget(sending_key(M1), "sz") or 0)
                opened.advance(700)
                await due(opened)
                assert client.zscore(PUSHES, M1) is None
                assert not client.exists(sending_key(M1))
                assert int(client.hget(OUTBOX, "bytes") or 0) == before - size

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

    @pytest.mark.parametrize("mended", [0, 3, 6, 9])
    async def test_whatever_write_is_refused_the_bytes_that_are_counted_are_right(
        self, mended: int
    ) -> None:
        """Appending, in the place of an older one, too; and completing that."""
        number, done, halfway = 0, False, 0
        while not done:
            number += 1
            async with self.open() as opened:
                bus = opened.bus
                assert isinstance(bus, RedisBus)
                await store(bus, push("m1", ack=None, ttl=7_000))
                opened.advance(700)
                group = [push("m1", ack=None, ttl=7_000), push("m2"), make("plain", "a")]
                bus._writer._script = stopped_at(APPEND, number)
                if mended:
                    bus._epochs._mender._script = stopped_at(MEND, mended)
                results = await bus.append(group)
                done = all(isinstance(each, Stored) for each in results)
                bus._writer._script, bus._epochs._mender._script = Script(APPEND), Script(MEND)
                (plain,) = await bus.append([make("next", "a")])
                assert isinstance(plain, Stored)
                with self.server.client() as client:
                    audit(client)
                again = await bus.append(group)
                assert all(isinstance(each, Stored) for each in again)
                halfway += any(isinstance(each, Stored) and each.duplicate for each in again)
                with self.server.client() as client:
                    audit(client)
                opened.advance(20)
                assert {sending.key for sending, _ in await due(opened)} == {M1, "tests/m2"}
        assert halfway > 20

    async def test_forgetting_and_keeping_may_be_stopped_at_any_write(self) -> None:
        number, done = 0, False
        while not done:
            number += 1
            async with self.open() as opened:
                bus = opened.bus
                assert isinstance(bus, RedisBus)
                await store(bus, push("m1", ack=None), push("m2", ack=None))
                first, second = (sending for sending, _ in await due(opened))
                kept = msgspec.structs.replace(second, left={"d": Try(1, 1)}, next=opened.now())
                bus.sendings._settle = stopped_at(SETTLE, number)
                settled = await bus.sendings.settle([over(first), kept])
                done = settled == [True, True]
                bus.sendings._settle = Script(SETTLE)
                await bus.sendings.settle([over(first), kept])
                with self.server.client() as client:
                    audit(client)
                ((left, _),) = await due(opened)
                assert left.left == {"d": Try(1, 1)}
        assert number > 5

    async def test_every_key_that_a_script_touches_is_named_in_its_keys(self) -> None:
        async with self.open() as opened:
            bus = opened.bus
            assert isinstance(bus, RedisBus)
            bus.sendings._take, bus.sendings._settle = keyed(TAKE), keyed(SETTLE)
            for stop in (0, 12):
                bus._writer._script = keyed(APPEND)
                bus._epochs._mender._script = keyed(MEND)
                if stop:
                    bus._writer._script = stopped_at(APPEND, stop)
                await bus.append([push(f"m{stop}", ack=None), push(f"n{stop}"), make("p", "a")])
                bus._writer._script = keyed(APPEND)
                (plain,) = await bus.append([make(f"next{stop}", "a")])
                assert isinstance(plain, Stored)
                opened.advance(70)
                pairs = await due(opened)
                assert len(pairs) == 2
                told = await bus.sendings.settle([over(sending) for sending, _ in pairs])
                assert told == [True, True]

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
