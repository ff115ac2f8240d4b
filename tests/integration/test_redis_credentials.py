"""Credentials and limiter over Redis keep their contracts for several instances, and Redis gets to
know no secret.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from msgpush.adapters.redis.credentials import RedisCredentials
from msgpush.adapters.redis.limiter import RedisLimiter
from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.credentials import Revocation, Ticket, digest_of, new_ticket
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import Limiter
from tests.contracts import credentials, limiter
from tests.contracts.credentials import LIFETIME
from tests.support.redis_servers import RedisServer

INSTANCES = 3


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(autouse=True)
def _empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


class TestRedisCredentials(credentials.CredentialsContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: RedisServer) -> None:
        self.server = server

    @asynccontextmanager
    async def open(self) -> AsyncIterator[credentials.Opened]:
        target = RedisTarget.from_url(self.server.url)
        async with AsyncExitStack() as stack:
            instances = [
                await stack.enter_async_context(
                    RedisCredentials(target, lifetime=credentials.LIFETIME)
                )
                for _ in range(INSTANCES)
            ]
            # Redis keeps the time itself: only here does a test let it pass.
            yield credentials.Opened(list(instances), self.server.now, asyncio.sleep)

    async def test_redis_has_no_ticket_that_could_be_used(self) -> None:
        ticket = new_ticket()
        async with self.open() as opened:
            made = Ticket("bob", ("a",), opened.now() + 100, None, None)
            await opened.instances[0].add_ticket(digest_of(ticket), made, 60)
            with self.server.client() as client:
                made, key, own = sorted(client.keys("*"))
                for each in (made, key, own):
                    assert 59_000 < client.pttl(each) <= 60_000
                sets = [member for each in (made, own) for member in client.zrange(each, 0, -1)]
                for text in (made, key, own, *client.hvals(key), *sets):
                    assert ticket.encode() not in text
                    assert ticket.removeprefix("ticket_").encode() not in text

    async def test_a_ticket_of_a_release_before_is_read_and_acknowledges_nothing(self) -> None:
        async with self.open() as opened:
            until = opened.now() + 100
            made = Ticket("bob", ("user:bob",), until, None, None, True)
            await opened.instances[0].add_ticket("d", made, 60)
            with self.server.client() as client:
                key = next(each for each in client.keys("*") if client.type(each) == b"hash")
                kept = json.loads(client.hget(key, "ticket"))
                # That release passes over what it doesn't know: this is all that is new to it.
                assert kept.pop("acknowledge") is True
                assert sorted(kept) == ["channels", "expires", "id", "issued_at", "subject"]
                client.hset(key, "ticket", json.dumps(kept))
            found = await opened.instances[0].ticket("d")
            assert found == Ticket("bob", ("user:bob",), until, None, None)
            assert not found.grant("d").acts_for("bob")

    async def test_a_revocation_of_a_newer_release_is_passed_over(self) -> None:
        async with self.open() as opened:
            await opened.instances[0].revoke(Revocation("jti", "t1", opened.now()))
            with self.server.client() as client:
                client.zadd("{msgpush}:revoked", {"planet:mars": 1, b"\xff": 2})
            assert [each.value for each in await opened.instances[0].revocations()] == ["t1"]

    async def test_revocations_have_an_end_in_redis_and_a_clock_that_is_ahead_takes_none_away(
        self,
    ) -> None:
        async with self.open() as opened:
            made = [
                Revocation("jti", "t1", opened.now()),
                Revocation("jti", "t2", opened.now() + 10 * LIFETIME),
            ]
            for each in made:
                await opened.instances[0].revoke(each)
            assert {each.value for each in await opened.instances[0].revocations()} == {"t1", "t2"}
            with self.server.client() as client:
                assert (
                    11 * LIFETIME - 5 < client.pttl("{msgpush}:revoked") / 1000 <= 11 * LIFETIME + 1
                )

    async def test_a_full_redis_takes_revocations(self) -> None:
        async with self.open() as opened:
            with self.server.client() as client:
                client.config_set("maxmemory", "1")
                try:
                    made = Ticket("bob", ("a",), opened.now() + 100, None, None)
                    with pytest.raises(BusUnavailable):
                        await opened.instances[0].add_ticket("d", made, 60)
                    for number in range(2):
                        await opened.instances[0].revoke(
                            Revocation("jti", f"t{number}", opened.now())
                        )
                finally:
                    client.config_set("maxmemory", "0")
            assert {each.value for each in await opened.instances[0].revocations()} == {"t0", "t1"}

    async def test_a_redis_that_is_away_is_told_and_comes_back(self) -> None:
        async with self.open() as opened:
            self.server.kill()
            try:
                with pytest.raises(BusUnavailable):
                    await opened.instances[0].ticket("d")
                with pytest.raises(BusUnavailable):
                    await credentials.claim(opened.instances[0], "d", "c", "", 2e9)
                with pytest.raises(BusUnavailable):
                    await opened.instances[0].holder("d")
                with pytest.raises(BusUnavailable):
                    await opened.instances[0].revocations()
            finally:
                self.server.start()
            assert await opened.instances[0].revocations() == []


class TestRedisLimiter(limiter.LimiterContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: RedisServer) -> None:
        self.server = server

    @asynccontextmanager
    async def open(self, rate: float) -> AsyncIterator[limiter.Opened]:
        target = RedisTarget.from_url(self.server.url)
        async with AsyncExitStack() as stack:
            instances = [
                await stack.enter_async_context(RedisLimiter(target, rate))
                for _ in range(INSTANCES)
            ]
            yield limiter.Opened(list(instances), asyncio.sleep)

    async def kept_at_most(self, limiter: Limiter, number: int) -> None:
        with self.server.client() as client:
            assert client.dbsize() <= number

    async def test_a_clock_that_steps_back_empties_no_bucket_for_longer_than_it_takes_to_fill(
        self,
    ) -> None:
        async with self.open(10) as opened:
            with self.server.client() as client:
                client.set(f"{HASH_TAG}:rate:bob", str((self.server.now() + 3_600) * 1000))
            assert (await opened.instances[0].take("bob", 1)).retry_after <= 0.1
            await asyncio.sleep(1.1)
            assert (await opened.instances[0].take("bob", 1)).granted == 1

    async def test_everybody_who_waits_is_told_that_redis_is_away(self) -> None:
        async with self.open(10) as opened:
            self.server.kill()
            try:
                asking = [opened.instances[0].take(f"s{n}", 1) for n in range(600)]
                outcomes = await asyncio.gather(*asking, return_exceptions=True)
                assert {type(each) for each in outcomes} == {BusUnavailable}
            finally:
                self.server.start()
            assert (await opened.instances[0].take("bob", 1)).granted == 1
