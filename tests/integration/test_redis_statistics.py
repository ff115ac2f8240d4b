"""The statistics over Redis keep the contract, in one key, and count once whatever becomes of Redis."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from msgpush.adapters.redis.link import Script
from msgpush.adapters.redis.statistics import STATISTICS, RedisStatistics
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.counts import HOUR, KEPT, MINUTE
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import Statistics
from tests.contracts.statistics import NOW, StatisticsContract, all_of, counts, together
from tests.support.fakes import FakeClock
from tests.support.redis_servers import RedisServer, redis_binary, valkey_binary, wait_for


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(valkey_binary() if request.param == "valkey" else redis_binary()) as started:
        yield started


class ByClock(RedisStatistics):
    """Has a clock in the place of the server's."""

    def __init__(self, target: RedisTarget, clock: FakeClock) -> None:
        super().__init__(target)
        self._clock = clock

    async def add(self, *args: object) -> None:
        self._now = str(int(self._clock.time))
        await super().add(*args)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(server: RedisServer, clock: FakeClock) -> AsyncIterator[RedisStatistics]:
    with server.client() as client:
        client.flushall()
    async with ByClock(RedisTarget.from_url(server.url), clock) as statistics:
        yield statistics


class TestRedisStatistics(StatisticsContract):
    @pytest.fixture(autouse=True)
    def serve(self, server: RedisServer) -> None:
        type(self).server = server  # type: ignore[attr-defined]

    @asynccontextmanager
    async def open(self, clock: FakeClock) -> AsyncIterator[Statistics]:
        async with opened(type(self).server, clock) as statistics:  # type: ignore[attr-defined]
            yield statistics


async def test_what_was_done_without_an_answer_is_counted_once(server: RedisServer) -> None:
    one = counts(("a", "info", 3))
    async with opened(server, FakeClock()) as statistics:
        await statistics.add("n", 1, {NOW: one})
        server.pause()
        try:
            # It waits in the server's socket, and is done once that runs again.
            with pytest.raises(BusUnavailable, match="doesn't answer"):
                await statistics.add("n", 2, {NOW: one})
        finally:
            server.resume()
        wait_for("the call", lambda: _seen(server)["n"][0] == 2)
        await statistics.add("n", 2, {NOW: one})
        assert (await all_of(statistics, MINUTE))[NOW].total()[0] == 6


async def test_what_was_stopped_halfway_is_counted_once(server: RedisServer) -> None:
    one = counts(("a", "info", 3))
    async with opened(server, FakeClock()) as statistics:
        whole = statistics._script
        for call, done in (("'HSET', key", 0), ("'PEXPIRE', key", 3)):
            assert call in whole.text
            statistics._script = Script(whole.text.replace(call, f"'NOSUCH', {call}"))
            with pytest.raises(BusUnavailable):
                await statistics.add("n", 1, {NOW: one})
            found = together((await all_of(statistics, MINUTE)).values())
            assert found.total()[0] == done
        statistics._script = whole
        await statistics.add("n", 1, {NOW: one})
        assert (await all_of(statistics, MINUTE))[NOW].total()[0] == 3


async def test_a_full_redis_refuses_it_whole_and_nothing_is_lost(server: RedisServer) -> None:
    one = counts(("a", "info", 3))
    async with opened(server, FakeClock()) as statistics:
        with server.client() as client:
            client.config_set("maxmemory", "1")
            try:
                with pytest.raises(BusUnavailable):
                    await statistics.add("n", 1, {NOW: one})
            finally:
                client.config_set("maxmemory", "0")
        await statistics.add("n", 1, {NOW: one})
        assert (await all_of(statistics, HOUR))[NOW // 60].total()[0] == 3


async def test_it_is_one_key_that_ends_and_one_call_however_much_happens(
    server: RedisServer,
) -> None:
    clock = FakeClock()
    async with opened(server, clock) as statistics:
        await statistics.add("n", 1, {NOW: counts(("a", "info", 3))})
        with server.client() as client:
            assert client.keys() == [STATISTICS.encode()]
            month = KEPT[HOUR] * 1000
            assert month < client.pttl(STATISTICS) <= month + 3_600_000
            client.config_resetstat()
            rows = [(f"s{n}", "info", 1) for n in range(100)]
            await statistics.add("n", 2, {NOW: counts(*rows)})
            used = client.info("commandstats")
        assert used["cmdstat_evalsha"]["calls"] == 1
        assert used["cmdstat_hset"]["calls"] == 1


async def test_a_day_of_minutes_and_a_month_of_hours_stay_small(server: RedisServer) -> None:
    clock = FakeClock()
    async with opened(server, clock) as statistics:
        one = counts(("importer", "progress", 1200), ("importer", "success", 10), latency=100)
        for hours in range(2 * KEPT[HOUR] // HOUR):
            clock.time = 1_800_000_000.0 + hours * HOUR
            last = int(clock.time) // MINUTE
            # Of most hours one minute, and of the last two days all: twice as many as are kept.
            few = hours < 2 * KEPT[HOUR] // HOUR - 50
            await statistics.add("n", hours + 1, {last - n: one for n in range(1 if few else 60)})
        with server.client() as client:
            steps = (KEPT[MINUTE] // MINUTE, KEPT[HOUR] // HOUR)
            assert client.hlen(STATISTICS) <= sum(steps) + 2 + 3
            assert client.memory_usage(STATISTICS, samples=0) < 400 * 1024


async def test_instances_that_have_gone_are_forgotten(server: RedisServer) -> None:
    clock = FakeClock()
    one = counts(("a", "info", 1))
    async with opened(server, clock) as statistics:
        for n in range(1200):
            clock.advance(10)
            await statistics.add(f"n{n}", 1, {NOW: one})
        assert 300 < len(_seen(server)) <= 1000
        clock.advance(2 * 86_400)
        await statistics.add("new", 1, {int(clock.time) // 60: one})
        assert set(_seen(server)) == {"new"}


def _seen(server: RedisServer) -> dict[str, list[int]]:
    with server.client() as client:
        found: dict[str, list[int]] = msgspec.msgpack.decode(client.hget(STATISTICS, "seen"))
        return found
