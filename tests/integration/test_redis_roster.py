"""The roster over Redis keeps the contract for several instances, costs Redis little, and forgets
who has died.
"""

import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import httpx2 as httpx
import pytest

from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.roster import LEASE, RedisRoster
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.control import Command
from msgpush.domain.listing import Listing
from msgpush.domain.ports import ConnectionFilter
from tests.contracts.roster import Opened, RosterContract, join
from tests.support.client import SseClient
from tests.support.driver import Driver
from tests.support.fakes import reporting
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess, eventually

INSTANCES = 3


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


class Instances(Opened):
    """Several instances; the second one is asked."""

    rosters: list[RedisRoster]

    async def written(self) -> None:
        for roster in self.rosters:
            while await roster.sync():
                pass


async def no_command(_: Command) -> None:
    raise AssertionError("nothing is to be sent")


@asynccontextmanager
async def instances(server: RedisServer, number: int = INSTANCES) -> AsyncIterator[Instances]:
    with server.client() as client:
        client.flushall()
    hubs = [Driver().hub for _ in range(number)]
    async with AsyncExitStack() as stack:
        target = RedisTarget.from_url(server.url)
        rosters = [
            await stack.enter_async_context(
                RedisRoster(target, Listing(hub, f"node{n}"), no_command, reporting(f"node{n}"))
            )
            for n, hub in enumerate(hubs)
        ]
        opened = Instances(rosters[0], hubs)
        opened.rosters = rosters
        yield opened


class TestRedisRoster(RosterContract):
    @pytest.fixture(autouse=True)
    def serve(self, server: RedisServer) -> None:
        self.server = server

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Opened]:
        async with instances(self.server) as opened:
            yield opened


async def test_ten_thousand_connections_are_paged_without_a_look_at_other_keys(
    server: RedisServer,
) -> None:
    async with instances(server, 2) as opened:
        mine, others = opened.hubs
        for n in range(10_000):
            join(others, f"{n:05}", "a", f"user:{n}")
        join(mine, "99999", "a")
        await opened.written()
        with server.client() as client:
            client.config_resetstat()
            found, after = await opened.roster.connections(ConnectionFilter(), 1000, "04999")
            assert [each.id for each in found] == [f"{n:05}" for n in range(5000, 6000)]
            assert after == "05999"
            (one,), _ = await opened.roster.connections(
                ConnectionFilter(frozenset({"user:9876"})), 100, None
            )
            assert one.id == "09876"
            used = set(client.info("commandstats"))
        assert not used & {"cmdstat_keys", "cmdstat_scan", "cmdstat_hgetall", "cmdstat_hscan"}


async def test_a_thousand_connects_and_disconnects_are_a_call_or_two(server: RedisServer) -> None:
    async with instances(server, 1) as opened:
        hub = opened.hubs[0]
        await opened.written()
        with server.client() as client:
            client.config_resetstat()
            for n in range(1000):
                connection, _ = join(hub, f"c{n}", "a")
                if n % 2:
                    hub.detach(connection)
            await opened.written()
            stats = client.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] <= 3  # its own turn may come in between
        assert stats["cmdstat_hset"]["calls"] <= 510


async def test_a_redis_that_has_forgotten_everything_is_told_again(server: RedisServer) -> None:
    async with instances(server, 2) as opened:
        join(opened.hubs[1], "c1", "a")
        await opened.written()
        with server.client() as client:
            client.flushall()
        await opened.written()
        found, _ = await opened.roster.connections(ConnectionFilter(), 10, None)
        assert [each.id for each in found] == ["c1"]


async def test_what_a_roster_leaves_in_redis_has_an_end(server: RedisServer) -> None:
    async with instances(server, 2) as opened:
        join(opened.hubs[1], "c1", "a")
        await opened.written()
        with server.client() as client:
            for key in (f"{HASH_TAG}:connections:node1", f"{HASH_TAG}:ids:node1"):
                assert 0 < client.pttl(key) <= LEASE * 1000
    with server.client() as client:
        assert client.zcard(f"{HASH_TAG}:nodes") == 0


@pytest.mark.long
def test_an_instance_that_has_died_is_gone_within_fifteen_seconds(server: RedisServer) -> None:
    with ExitStack() as stack:
        one, two = (stack.enter_context(ServiceProcess(REDIS_URL=server.url)) for _ in range(2))
        base = f"http://127.0.0.1:{two.port}/api/v1/connections"
        streams = [
            stack.enter_context(SseClient(port, "/sse/stream/dying"))
            for port in (one.port, two.port)
        ]

        def listed() -> int:
            return len(httpx.get(base, params={"channel": "dying"}).json()["connections"])

        eventually(lambda: listed() == 2)
        assert all(stream.next().type == "msgpush.open" for stream in streams)
        one.signal(signal.SIGKILL)
        died = time.monotonic()
        eventually(lambda: listed() == 1, 20)
        assert time.monotonic() - died < 15
        eventually(lambda: httpx.get(f"{base}/stats").json()["total"] == 1)


def test_a_close_reaches_the_instance_that_has_the_connection(server: RedisServer) -> None:
    with ExitStack() as stack:
        one, two = (stack.enter_context(ServiceProcess(REDIS_URL=server.url)) for _ in range(2))
        stream = stack.enter_context(SseClient(one.port, "/sse/stream/closing"))
        stream.next()
        base = f"http://127.0.0.1:{two.port}/api/v1/connections"
        listed = eventually(
            lambda: httpx.get(base, params={"channel": "closing"}).json()["connections"]
        )
        assert httpx.delete(f"{base}/{listed[0]['id']}").status_code == 204
        assert stream.rest()[-1].data == '{"reason":"disconnected","reconnect":true}'
        eventually(lambda: httpx.delete(f"{base}/{listed[0]['id']}").status_code == 404)
