"""From a publish to a browser, over a push service of the tests' own: with streams, without,
through a burst, and while Redis or an instance is away."""

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from msgpush.adapters.notify.places import Place
from msgpush.adapters.notify.vapid import base64url
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver
from tests.support.certificates import Authority
from tests.support.client import request
from tests.support.push_services import Asked, Behaviour, PushService, Says
from tests.support.pushes import push_body
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess
from tests.support.subscriptions import Browser

VAPID = base64url(bytes(range(1, 33)))
WAIT = 20.0


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that this process trusts, and those that it starts."""
    made = Authority()
    path = tmp_path / "authority.pem"
    path.write_text(made.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return made


@pytest.fixture
async def service(authority: Authority) -> AsyncIterator[PushService]:
    async with PushService(authority, http2=False) as service:
        yield service


def on(service: PushService, **more: Any) -> dict[str, Any]:
    return {
        "vapid_private_key": VAPID,
        "vapid_subject": "mailto:ops@example.com",
        "push_endpoints": (Place("localhost", service.port),),
        "push_delay": 0.2,
    } | more


@asynccontextmanager
async def serving(service: PushService, **more: Any) -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings(**on(service, **more)))):
        yield AsgiDriver(app)


async def register(client: AsgiDriver, service: PushService, user: str = "bob") -> Browser:
    browser = Browser()
    body = {"webpush": browser.as_json(f"{service.origin}/push/{user}")}
    path = f"/api/v1/users/{user}/devices"
    answer = await client.request("POST", path, json.dumps(body).encode())
    assert answer.status == 201, answer.body
    return browser


async def until(condition: Any, seconds: float = WAIT) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is elsewhere
            await asyncio.sleep(0.01)


async def test_a_browser_without_a_page_gets_the_message_and_acknowledges_by_its_word(
    service: PushService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(service) as client:
        browser = await register(client, service)
        push = {"title": "Import", "url": "/imports/42"}
        await client.send(push_body("m1", push=push, data={"message": "A secret text"}))
        await until(lambda: service.asked)
        (asked,) = service.asked
        said = json.loads(browser.decrypt(asked.body))
        assert (said["key"], said["title"], said["url"]) == ("tests/m1", "Import", "/imports/42")
        assert said["body"] == "A secret text"
        assert said["message"]["data"] == {"message": "A secret text"}
        acknowledge = said["acknowledge"]
        assert acknowledge["url"] == "/api/v1/users/bob/acknowledgements"
        body = json.dumps({"keys": [said["key"]], "word": acknowledge["word"]}).encode()
        answer = await client.request("POST", acknowledge["url"], body)
        assert answer.json() == {"acknowledged": ["tests/m1"], "unknown": []}
        metrics, sent = "", 'message_push_pushes_total{kind="webpush",outcome="sent"} 1'
        async with asyncio.timeout(WAIT):
            while sent not in metrics:
                metrics = (await client.request("GET", "/metrics")).body.decode()
    told = caplog.text + metrics
    for secret in ("/push/bob", base64url(browser.auth), "A secret text", "vapid t="):
        assert secret not in told


async def test_who_has_a_stream_is_not_pushed(service: PushService) -> None:
    async with serving(service) as client:
        await register(client, service)
        async with client.stream("/sse/user/bob") as stream:
            await client.send(push_body("m1", push={"when": "offline"}))
            await stream.read_until(b"m1")
            await client.send(push_body("m2", push={"when": "always"}))
            await until(lambda: service.asked)
        await client.send(push_body("m3", push={"when": "offline"}))
        await until(lambda: len(service.asked) == 2)
        await asyncio.sleep(1.5)
        assert len(service.asked) == 2


async def test_what_is_not_acknowledged_by_its_deadline_is_pushed(service: PushService) -> None:
    async with serving(service) as client:
        await register(client, service)
        async with client.stream("/sse/user/bob") as stream:
            await client.send(push_body("m1", ack={"deadline": 2}))
            await stream.read_until(b"m1")
            await asyncio.sleep(1.2)
            assert service.asked == []
            await until(lambda: service.asked)


async def test_a_device_that_is_gone_is_forgotten(service: PushService) -> None:
    async with serving(service) as client:
        await register(client, service)
        service.script.append(Says(410))
        await client.send(push_body("m1", ack=None))
        await until(lambda: service.asked)
        async with asyncio.timeout(WAIT):
            while (await client.request("GET", "/api/v1/users/bob/devices")).json()["devices"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_thousand_devices_in_a_burst_are_all_reached_once(service: PushService) -> None:
    async with serving(service) as client:
        users = [f"u{number}" for number in range(1_000)]
        for user in users:
            await register(client, service, user)
        service.usual = lambda _: Says(201, after=0.005)
        for start in range(0, 1_000, 100):
            bodies = [push_body(f"m-{u}", user=u, ack=None) for u in users[start : start + 100]]
            batch = b"[" + b",".join(bodies) + b"]"
            answer = await client.request("POST", "/api/v1/messages/batch", batch)
            assert answer.status == 202
        await until(lambda: len(service.asked) >= 1_000, 60)
        await asyncio.sleep(0.1)
        assert sorted(each.path for each in service.asked) == sorted(f"/push/{u}" for u in users)
        assert service.most <= 50
        assert service.opened <= 50


# Many instances


@pytest.fixture
def redis() -> Any:
    with RedisServer() as server:
        yield server


def environ(service: PushService, redis: RedisServer, authority_path: str) -> dict[str, Any]:
    return {
        "REDIS_URL": redis.url,
        "VAPID_PRIVATE_KEY": VAPID,
        "VAPID_SUBJECT": "mailto:ops@example.com",
        "PUSH_ENDPOINTS": json.dumps([f"localhost:{service.port}"]),
        "PUSH_DELAY": "0",
        "SSL_CERT_FILE": authority_path,
    }


async def ask(port: int, method: str, path: str, body: bytes = b"") -> Any:
    return await asyncio.to_thread(request, port, method, path, body)


async def enlist(port: int, service: PushService, user: str) -> None:
    body = json.dumps({"webpush": Browser().as_json(f"{service.origin}/push/{user}")}).encode()
    answer = await ask(port, "POST", f"/api/v1/users/{user}/devices", body)
    assert answer.status == 201, answer.body


@pytest.mark.long
async def test_an_instance_that_is_killed_while_it_sends_is_followed_by_another(
    service: PushService, redis: RedisServer, tmp_path: Path, authority: Authority
) -> None:
    given = environ(service, redis, str(tmp_path / "authority.pem"))
    with ServiceProcess(**given) as first:
        await enlist(first.port, service, "bob")
        service.usual = lambda _: "nothing"
        sent = await ask(
            first.port, "POST", "/api/v1/messages/send", push_body("m1", ack=None, ttl=3_600)
        )
        assert sent.status == 202
        await until(lambda: service.asked)
        first.signal(signal.SIGKILL)
    service.usual = lambda _: Says(201)
    with ServiceProcess(**given):
        await until(lambda: len(service.asked) == 2, 75)
        await asyncio.sleep(3)
        assert len(service.asked) == 2


@pytest.mark.long
async def test_what_was_accepted_is_pushed_once_redis_is_back(
    service: PushService, redis: RedisServer, tmp_path: Path, authority: Authority
) -> None:
    given = environ(service, redis, str(tmp_path / "authority.pem"))
    with ServiceProcess(**given) as instance:
        await enlist(instance.port, service, "bob")
        started = asyncio.Event()

        def hold(asked: Asked) -> Behaviour:
            started.set()
            return Says(201, after=1.5)

        service.usual = hold
        sent = await ask(instance.port, "POST", "/api/v1/messages/send", push_body("m1", ack=None))
        assert sent.status == 202
        await started.wait()
        redis.pause()
        await asyncio.sleep(4)
        redis.resume()
        service.usual = lambda _: Says(201)
        await until(lambda: len(service.asked) >= 1)
        for number in range(2, 30):
            answer = await ask(
                instance.port,
                "POST",
                "/api/v1/messages/send",
                push_body(f"m{number}", ack=None),
            )
            if answer.status == 202:
                break
            await asyncio.sleep(0.5)
        await until(lambda: len(service.asked) >= 2)
        assert instance._process.poll() is None
