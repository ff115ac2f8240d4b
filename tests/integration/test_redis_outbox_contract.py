"""The outbox in Redis keeps the contract: on one server, and on a Cluster."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from math import ceil

import pytest

from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.ports import Bus
from tests.contracts.outbox import Limits, Opened, OutboxContract
from tests.contracts.outbox_machine import run_outbox_machine
from tests.support.fakes import FakeClock
from tests.support.outbox_audit import audit
from tests.support.redis_servers import ClusterGroup, RedisServer

EXAMPLES = int(os.environ.get("OUTBOX_EXAMPLES", "150"))


class RedisOutboxContract(OutboxContract):
    server: RedisServer
    url: str

    @asynccontextmanager
    async def open(self, limits: Limits = Limits()) -> AsyncIterator[Opened]:  # noqa: B008
        with self.server.client() as client:
            client.flushall()
        clock = FakeClock()
        async with RedisBus(
            RedisTarget.from_url(self.url),
            max_pending=limits.max_pending,
            pending_bytes=limits.pending_bytes,
            dead_letter_bytes=limits.dead_letter_bytes,
            dead_letter_ttl=limits.dead_letter_ttl,
            clock=clock.now,
            jitter=lambda: 1.0,
        ) as bus:
            await bus.end()

            def advance(seconds: float) -> None:
                clock.advance(seconds)
                self.let_pass(seconds)

            yield Opened(bus, lambda: int(clock.now() * 1000), advance)

    def let_pass(self, seconds: float) -> None:
        """Have what expires in Redis expire as much earlier: its own clock doesn't move."""
        with self.server.client() as client:
            for key in client.scan_iter(f"{HASH_TAG}:*", count=1000):
                if (left := client.pttl(key)) >= 0:
                    # In half seconds, as all are by the test's clock: what has passed by Redis's
                    # own meanwhile, on a machine that is busy, doesn't count.
                    whole = 500 * ceil(left / 500)
                    client.pexpire(key, max(0, whole - int(seconds * 1000)))


class TestValkey(RedisOutboxContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def serve(cls) -> Iterator[None]:
        with RedisServer() as cls.server:
            cls.url = cls.server.url
            yield

    @pytest.mark.long
    def test_any_history_of_messages_and_rounds_agrees_with_a_simple_model(self) -> None:
        run_outbox_machine(self.open, examples=EXAMPLES, totals=self.totals)

    def totals(self, bus: Bus) -> list[int]:
        """All that is counted or sorted, after the records have been compared with it."""
        with self.server.client() as client:
            audit(client)
            kept = ("delivery:", "pending:", "mailbox:", "dead:", "outbox")
            return [len(client.keys(f"{HASH_TAG}:{name}*")) for name in kept]


class TestCluster(RedisOutboxContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def serve(cls) -> Iterator[None]:
        with ClusterGroup(key=HASH_TAG) as cluster:
            cls.server, cls.url = cluster.primary, cluster.url
            yield
