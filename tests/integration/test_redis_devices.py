"""Devices in Redis keep their contract for several instances, and nothing of a secret is there."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from msgpush.adapters.notify.vapid import base64url
from msgpush.adapters.redis.credentials import RedisCredentials
from msgpush.adapters.redis.devices import RedisDevices, devices_key, owner_key
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.credentials import Revocation
from msgpush.domain.devices import Fcm, WebPush, device_id, proof_of
from msgpush.domain.errors import BusUnavailable, DeviceTaken, Unauthorized
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.contracts import devices
from tests.contracts.credentials import LIFETIME
from tests.contracts.devices import web_push
from tests.support.asgi import AsgiDriver
from tests.support.redis_servers import RedisServer
from tests.support.subscriptions import Browser
from tests.support.tokens import SECRET, bearer, token

INSTANCES = 3
A_DEVICE = 760  # bytes that Redis takes for a browser's subscription, and those that go with it


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(autouse=True)
def _empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


class TestRedisDevices(devices.DevicesContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: RedisServer) -> None:
        self.server = server

    @asynccontextmanager
    async def open(self) -> AsyncIterator[devices.Opened]:
        target = RedisTarget.from_url(self.server.url)
        async with AsyncExitStack() as stack:
            instances = [
                await stack.enter_async_context(RedisDevices(target)) for _ in range(INSTANCES)
            ]
            credentials = await stack.enter_async_context(
                RedisCredentials(target, lifetime=LIFETIME)
            )
            yield devices.Opened(list(instances), credentials, self.server.now, asyncio.sleep)

    async def test_redis_has_no_secret_of_an_app(self) -> None:
        async with self.open() as opened:
            await opened.instances[0].register("bob", Fcm("t", proof_of(b"very secret")), None)
            with self.server.client() as client:
                for key in client.keys("*"):
                    value = client.dump(key)
                    assert b"very secret" not in value

    async def test_nothing_is_left_of_what_was_removed_or_revoked(self) -> None:
        async with self.open() as opened:
            one, other, *_ = opened.instances
            for number in range(30):
                await one.register("bob", web_push(number), None)
                await one.register(f"u{number}", web_push(100 + number), None)
            await other.remove("bob")
            for number in range(30):
                await opened.credentials.revoke(Revocation("subject", f"u{number}", opened.now()))
            with self.server.client() as client:
                assert [key for key in client.keys("*") if b":device" in key] == []

    async def test_one_that_only_one_of_both_keys_has_is_nobodys(self) -> None:
        """A script that is stopped halfway leaves that, and so does a removal."""
        async with self.open() as opened:
            kept = opened.instances[0]
            for number in (1, 2):
                await kept.register("alice", web_push(number), None)
            with self.server.client() as client:
                client.set(owner_key(device_id(web_push(1))), "bob")
                client.hdel(devices_key(b"alice"), device_id(web_push(2)))
            assert await kept.of(["alice", "bob"]) == [[], []]
            for number in (1, 2):
                _, new = await kept.register("carol", web_push(number, auth=b"z"), None)
                assert new
            assert len((await kept.of(["carol"]))[0]) == 2

    async def test_what_is_not_understood_stops_nobody(self) -> None:
        async with self.open() as opened:
            kept = opened.instances[0]
            device, _ = await kept.register("alice", web_push(1), None)
            with self.server.client() as client:
                client.hset(devices_key(b"alice"), "later", b"\xc1")
                client.set(owner_key("later"), "alice")
            assert await kept.of(["alice"]) == [[device]]
            await kept.remove("alice")
            with self.server.client() as client:
                assert client.keys("*") == []

    async def test_one_that_is_not_understood_moves_to_nobody(self) -> None:
        async with self.open() as opened:
            kept = opened.instances[0]
            device, _ = await kept.register("alice", web_push(1), None)
            with self.server.client() as client:
                client.hset(devices_key(b"alice"), device.id, b"\xc1")
            with pytest.raises(DeviceTaken):
                await kept.register("bob", web_push(1), None)
            _, new = await kept.register("alice", web_push(1), None)
            assert new

    async def test_none_is_registered_by_what_was_revoked_though_nobody_has_heard_yet(self) -> None:
        async with self.open() as opened:
            kept, at = opened.instances[0], opened.now()
            await opened.credentials.revoke(Revocation("subject", "alice", at))
            for issued_at in (0.0, at - 60, at):
                with pytest.raises(Unauthorized):
                    await kept.register("alice", web_push(1), None, issued_at=issued_at)
            assert await kept.of(["alice"]) == [[]]
            # By a newer token it is, or a back end's; others' too.
            await kept.register("alice", web_push(1), None, issued_at=at + 1)
            await kept.register("alice", web_push(2), None)
            await kept.register("bob", web_push(3), None, issued_at=0.0)
            assert len((await kept.of(["alice"]))[0]) == 2

    async def test_a_full_redis_takes_no_device_and_lets_all_go(self) -> None:
        async with self.open() as opened:
            kept = opened.instances[0]
            await kept.register("alice", web_push(1), None)
            with self.server.client() as client:
                client.config_set("maxmemory", 1)
                try:
                    with pytest.raises(BusUnavailable):
                        await kept.register("alice", web_push(2), None)
                    await kept.remove("alice")
                    assert await kept.of(["alice"]) == [[]]
                finally:
                    client.config_set("maxmemory", 0)

    async def test_a_device_costs_what_the_docs_say(self) -> None:
        endpoint = "https://fcm.googleapis.com/fcm/send/" + "x" * 150
        async with self.open() as opened:
            kept = opened.instances[0]
            with self.server.client() as client:
                for number in range(5):
                    address = WebPush(f"{endpoint}{number}", b"p" * 65, b"a" * 16)
                    await kept.register("alice", address, "My desk at home")
                used = sum(client.memory_usage(key, samples=0) or 0 for key in client.keys("*"))
            assert A_DEVICE * 0.8 < used / 5 < A_DEVICE


async def test_an_instance_that_has_not_heard_of_a_revocation_registers_nothing_after_it(
    server: RedisServer,
) -> None:
    settings = Settings(
        redis_url=server.url,
        jwt_secret=SECRET,
        vapid_private_key=base64url(bytes(range(1, 33))),
        vapid_subject="mailto:ops@example.com",
    )
    body = json.dumps({"webpush": Browser().as_json("https://fcm.googleapis.com/x")}).encode()
    path, old = "/api/v1/users/bob/devices", bearer(token("bob"))
    target = RedisTarget.from_url(server.url)
    async with (
        lifespan(app := create_app(settings)),
        RedisCredentials(target, lifetime=LIFETIME) as credentials,
    ):
        client = AsgiDriver(app)
        assert (await client.request("POST", path, body, old)).status == 201
        # As another instance does it, before it tells the others.
        await credentials.revoke(Revocation("subject", "bob", server.now()))
        assert (await client.request("POST", path, body, old)).status == 401
        assert (await client.request("GET", path, b"", old)).json() == {"devices": []}
