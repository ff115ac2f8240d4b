"""The statistics over Redis keep the contract, in one key, and count once whatever becomes of Redis."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from msgpush.adapters.redis.statistics import RedisStatistics
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.ports import Statistics
from tests.contracts.statistics import StatisticsContract
from tests.support.fakes import FakeClock
from tests.support.redis_servers import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
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
