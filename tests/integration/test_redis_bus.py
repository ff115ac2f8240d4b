"""The bus over Redis keeps the contract, on every server that it is promised for."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

import pytest

from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.log import LOG
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.connection import Connection, Subscription
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import Bus, Stored
from msgpush.domain.position import ZERO
from msgpush.domain.service import Push
from tests.contracts.bus import BusContract, Read, read, store
from tests.support.fakes import FakeClock, FakeSink, PlainView, make
from tests.support.redis_servers import (
    Certificates,
    ClusterGroup,
    RedisServer,
    info,
    redis_binary,
    wait_for,
)


class RedisContract(BusContract):
    """The contract, on `server` as `url` leads to it."""

    slack = 120
    server: ClassVar[RedisServer]
    url: ClassVar[str]

    @asynccontextmanager
    async def open(self, clock: FakeClock, history_length: int = 1000) -> AsyncIterator[Bus]:
        with self.server.client() as client:
            client.flushall()
        bus = RedisBus(
            RedisTarget.from_url(self.url), history_length=history_length, clock=clock.now
        )
        async with bus:
            await bus.end()
            yield bus


class TestValkey(RedisContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def serve(cls) -> Iterator[None]:
        with RedisServer() as cls.server:
            cls.url = cls.server.url
            yield


@pytest.mark.long
class TestOldestRedisOverTls(RedisContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def serve(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        binary = redis_binary()
        with RedisServer(binary, tls=Certificates(tmp_path_factory.mktemp("tls"))) as cls.server:
            cls.url = cls.server.url
            yield


class TestCluster(RedisContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def serve(cls) -> Iterator[None]:
        with ClusterGroup(key=HASH_TAG) as cluster:
            cls.server, cls.url = cluster.primary, cluster.url
            yield


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(
        redis_binary(), tls=Certificates(tmp_path_factory.mktemp("secure"))
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


@asynccontextmanager
async def opened(
    server: RedisServer, clock: FakeClock | None = None, **options: Any
) -> AsyncIterator[RedisBus]:
    now = clock.now if clock else None
    async with RedisBus(RedisTarget.from_url(server.url), clock=now, **options) as bus:
        await bus.end()
        yield bus


async def test_two_publishers_of_one_id_at_once_store_it_once_and_other_content_is_a_conflict(
    server: RedisServer,
) -> None:
    async with opened(server) as one, opened(server) as two:
        for n in range(50):
            same = await asyncio.gather(
                *(bus.append([make(f"m{n}", "a")]) for bus in (one, two) * 3)
            )
            stored = [each for (each,) in same if isinstance(each, Stored)]
            assert len(stored) == 6
            assert len({each.position for each in stored}) == 1
            assert sum(not each.duplicate for each in stored) == 1
        other = await two.append([make("m0", "a", data={"other": True})])
        assert not isinstance(other[0], Stored)
        assert len((await read(one, ["a"], None, FakeClock(time.time()))).ids) == 50


async def test_concurrent_publishes_share_calls_and_keep_their_order(server: RedisServer) -> None:
    async with opened(server) as bus:
        with server.client() as client:
            client.config_resetstat()
            batches = [[make(f"m{b}-{n}", f"c{b}") for n in range(10)] for b in range(100)]
            await asyncio.gather(*map(bus.append, batches))
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert calls <= 10
        for b in range(100):
            kept = await read(bus, [f"c{b}"], None, FakeClock(time.time()))
            assert kept.ids == [f"m{b}-{n}" for n in range(10)]


async def test_a_batch_of_any_size_is_split_and_answered_whole(server: RedisServer) -> None:
    async with opened(server) as bus:
        drafts = [
            make(f"m{n}", "a", data={"x": "y" * (300_000 if n % 400 == 0 else 10)})
            for n in range(2_000)
        ]
        positions = await store(bus, *drafts)
        assert positions == sorted(set(positions))
        wide = [make(f"w{n}", *(f"c{n}-{k}" for k in range(30))) for n in range(200)]
        assert len(await store(bus, *wide)) == 200


async def test_the_log_keeps_about_as_much_as_it_is_told(server: RedisServer) -> None:
    async with opened(server, log_length=1000) as bus:
        for start in range(0, 3000, 250):
            await store(bus, *[make(f"m{n}", "a") for n in range(start, start + 250)])
        await bus.end()
        assert 1000 <= bus.length <= 1000 + 120


async def test_what_redis_keeps_has_an_end(server: RedisServer) -> None:
    async with opened(server) as bus:
        await store(
            bus, make("m1", "a", ttl=60), make("m2", "a", ttl=604_800), make("m3", "b", ttl=60)
        )
        with server.client() as client:
            left = {key.decode(): client.ttl(key) for key in client.scan_iter()}
    lasting = {f"{HASH_TAG}:head", LOG}
    assert {key for key, seconds in left.items() if seconds < 0} == lasting
    assert 60 <= left[f"{HASH_TAG}:history:b"] <= 64
    assert left[f"{HASH_TAG}:last:b"] > 86_000
    assert left[f"{HASH_TAG}:history:a"] >= 604_000
    assert left[f"{HASH_TAG}:last:a"] >= left[f"{HASH_TAG}:history:a"]
    assert 590 <= left[f"{HASH_TAG}:id:tests:m1"] <= 600


async def test_a_history_that_has_gone_with_its_ttl_is_told_as_expired(server: RedisServer) -> None:
    async with opened(server) as bus:
        (start,) = await store(bus, make("m0", "a"))
        await store(bus, make("m1", "a"))
        with server.client() as client:
            client.delete(f"{HASH_TAG}:history:a")
        assert await read(bus, ["a"], start) == Read([], [("a", "expired")])


async def test_the_clock_of_redis_may_step_back(server: RedisServer) -> None:
    clock = FakeClock()
    async with opened(server, clock) as bus:
        before = await store(bus, make("m1", "a"), make("m2", "a"))
        clock.advance(-10)
        after = await store(bus, make("m3", "a"), make("m4", "a"))
        assert [*before, *after] == sorted({*before, *after})
        assert await read(bus, ["a"], before[0]) == Read(["m2", "m3", "m4"], [])


async def test_a_full_redis_refuses_and_nothing_is_half_stored(server: RedisServer) -> None:
    async with opened(server, FakeClock()) as bus:
        await store(bus, make("m1", "a"))
        with server.client() as client:
            client.config_set("maxmemory", "1")
            try:
                (refused,) = await bus.append([make("m2", "a", "b")])
            finally:
                client.config_set("maxmemory", "0")
        assert isinstance(refused, BusUnavailable)
        assert "maxmemory" in refused.detail
        assert (await read(bus, ["a", "b"], None)).ids == ["m1"]
        await store(bus, make("m2", "a"))


async def test_replicas_that_must_confirm_and_do_not_make_a_refusal(server: RedisServer) -> None:
    with RedisServer(extra=("--replicaof", "127.0.0.1", str(server.port))) as replica:
        wait_for("replication", lambda: info(replica)["master_link_status"] == "up")
        async with opened(server, wait_replicas=2) as bus:
            (refused,) = await bus.append([make("m1", "a")])
            assert isinstance(refused, BusUnavailable)
            assert refused.detail == "only 1 of 2 replicas have confirmed the message"
        async with opened(server, wait_replicas=1) as bus:
            (stored,) = await bus.append([make("m1", "a")])
            assert isinstance(stored, Stored)
            assert stored.duplicate


async def test_a_wrong_password_is_said_and_never_shown(server: RedisServer) -> None:
    url = server.url.replace("redis://", "redis://:hunter2@")
    async with RedisBus(RedisTarget.from_url(url)) as bus:
        with pytest.raises(BusUnavailable) as caught:
            await bus.end()
        assert "hunter2" not in caught.value.detail


async def test_a_certificate_that_nobody_vouches_for_is_refused(secure: RedisServer) -> None:
    bare = secure.url.partition("?")[0]
    async with RedisBus(RedisTarget.from_url(bare)) as bus:
        with pytest.raises(BusUnavailable, match="certificate"):
            await bus.end()


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ("ssl_cert_reqs=none", None),
        ("ssl_cert_reqs=required", "certificate"),
        ("ssl_cert_reqs=optional", "certificate"),
        ("ssl_cert_reqs=required&ssl_ca_certs={ca}", None),
        ("ssl_cert_reqs=optional&ssl_ca_certs={ca}", None),
        ("ssl_ca_certs={ca}&ssl_check_hostname=false", None),
    ],
)
async def test_a_url_says_how_a_certificate_is_checked(
    secure: RedisServer, parameters: str, why: str | None
) -> None:
    bare, _, query = secure.url.partition("?")
    url = f"{bare}?{parameters.format(ca=query.removeprefix('ssl_ca_certs='))}"
    # No certificate is for that name: but where none is checked, or only that somebody vouches for
    # it.
    for host in ("127.0.0.1", "localhost"):
        fails = why or (
            "certificate"
            if host == "localhost" and "none" not in url and "false" not in url
            else None
        )
        async with RedisBus(RedisTarget.from_url(url.replace("127.0.0.1", host))) as bus:
            if fails is None:
                await bus.end()
            else:
                with pytest.raises(BusUnavailable, match=fails):
                    await bus.end()


async def test_a_server_that_is_only_a_replica_is_no_bus(server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        replica = stack.enter_context(
            RedisServer(extra=("--replicaof", "127.0.0.1", str(server.port)))
        )
        bus = await stack.enter_async_context(RedisBus(RedisTarget.from_url(replica.url)))
        with pytest.raises(BusUnavailable, match="is a replica"):
            await bus.end()


async def test_a_retry_elsewhere_waits_for_replicas_as_well(server: RedisServer) -> None:
    with RedisServer(extra=("--replicaof", "127.0.0.1", str(server.port))) as replica:
        wait_for("replication", lambda: info(replica)["master_link_status"] == "up")
        async with opened(server, wait_replicas=1) as one, opened(server, wait_replicas=1) as two:
            await store(one, make("m0", "a"))
            replica.pause()
            for bus in (one, two):
                (refused,) = await bus.append([make("m1", "a")])
                assert isinstance(refused, BusUnavailable)
            replica.resume()
            (stored,) = await two.append([make("m1", "a")])
            assert isinstance(stored, Stored)
            assert stored.duplicate


async def test_a_cursor_of_an_epoch_that_another_instance_has_learnt_first_is_not_taken_for_a_stranger(
    server: RedisServer,
) -> None:
    async with opened(server) as one, opened(server) as two, Push(one) as push:
        await store(two, make("m1", "a"))
        end = await two.end()
        link = one._tail_link
        call, late = link.call, asyncio.Event()

        async def wait(*command: str | bytes | int) -> object:
            await late.wait()
            return await call(*command)

        setattr(link, "call", wait)  # noqa: B010 - a method, for once
        with server.client() as client:
            client.hset(f"{HASH_TAG}:head", mapping={"epoch": "newepoch", "number": 99})
        with pytest.raises(BusUnavailable):
            await push.start_at(f"1newepoch.{end.ms}-{end.seq}")
        late.set()


async def test_an_instance_that_has_only_been_asked_for_its_health_begins_with_the_log_as_it_is(
    server: RedisServer,
) -> None:
    async with opened(server) as bus:
        before = bus.epoch
        with server.client() as client:
            client.flushall()
        await bus.end()
        assert bus.epoch != before
        await store(bus, make("m1", "a"))


async def test_a_log_that_falls_back_into_a_former_epoch_begins_a_new_one(
    server: RedisServer,
) -> None:
    async with opened(server) as bus, Push(bus) as push:
        first = bus.epoch
        (position,) = await store(bus, make("m1", "a"))
        with server.client() as client:
            kept = {key: client.dump(key) for key in client.scan_iter()}
            client.hdel(f"{HASH_TAG}:head", "epoch")
            await become(lambda: bus.epoch != first)
            second = bus.epoch
            client.flushall()
            for key, value in kept.items():
                client.restore(key, 0, value)
        await become(lambda: bus.epoch != second)
        assert bus.epoch != first
        # A cursor of the epoch that it fell back into would hide what came after it and is lost.
        assert (await push.start_at(f"1{first}.{position.ms}-{position.seq}")).reset


async def become(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the tail's own time decides
            await asyncio.sleep(0.01)


async def test_a_log_that_is_emptied_under_open_connections_begins_anew_and_is_told(
    server: RedisServer,
) -> None:
    async with opened(server) as one, opened(server) as two, Push(one) as push, Push(two):
        sink = FakeSink()
        subscription = Subscription(frozenset({"a"}), PlainView())
        push.subscribe(Connection("c", sink), subscription, await push.start_at(None))
        await store(two, make("m1", "a"))
        await become(lambda: sink.ids == ["m1"])
        with server.client() as client:
            client.flushall()
        await become(lambda: one.epoch == two.epoch and len(sink.gaps) == 1)
        await store(two, make("m2", "a"))
        await become(lambda: sink.ids == ["m1", "m2"])
        assert [gap.reason for gap in sink.gaps] == ["reset"]
        assert push.alive


async def test_a_log_that_was_emptied_and_begun_by_a_new_instance_gets_one_more_epoch_and_no_war(
    server: RedisServer,
) -> None:
    async with opened(server) as old, Push(old) as push:
        await store(old, make("m1", "a"))
        await become(lambda: push._hub.log.head > ZERO)
        known = old.epoch
        with server.client() as client:
            client.flushall()
            async with opened(server) as new, Push(new):
                await become(lambda: old.epoch == new.epoch != known)
                for number in range(10):
                    await store(old, make(f"o{number}", "a"))
                    await store(new, make(f"n{number}", "a"))
                assert client.hget(f"{HASH_TAG}:head", "number") == b"2"
                assert old.epoch == new.epoch


async def test_a_bus_that_is_closed_refuses(server: RedisServer) -> None:
    async with opened(server) as bus:
        pass
    (refused,) = await bus.append([make("m1", "a")])
    assert isinstance(refused, BusUnavailable)


async def test_streams_are_admitted_from_the_moment_that_the_bus_was_reached(
    server: RedisServer,
) -> None:
    async with opened(server) as bus, Push(bus) as push:
        push.admit()
