"""`msgpush push`: keys that the service takes, and a trial that says what providers answer."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from msgpush.adapters.notify.vapid import public_text, vapid_key
from msgpush.adapters.redis.devices import RedisDevices
from msgpush.adapters.redis.target import RedisTarget
from msgpush.entrypoints.settings import Settings
from tests.support.certificates import Authority
from tests.support.push_services import PushService, Says
from tests.support.redis_servers import RedisServer
from tests.support.subscriptions import Browser
from tests.support.tokens import private_pem


class Ran(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def msgpush(*argv: str, **environ: str) -> Ran:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "msgpush", "push", *argv),
        env=kept | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def test_keys_are_what_the_service_takes_and_new_each_time() -> None:
    made = [await msgpush("keys", "--subject", "mailto:ops@example.com") for _ in range(2)]
    for each in made:
        assert (each.status, each.err) == (0, "")
        lines = dict(re.findall(r"^(VAPID_\w+)=(.*)$", each.out, re.MULTILINE))
        settings = Settings.from_environ(lines)
        assert settings.vapid_subject == "mailto:ops@example.com"
        assert public_text(vapid_key(settings.vapid_private_key or "")) in each.out
    assert made[0] != made[1]
    wrong = await msgpush("keys", "--subject", "ops@example.com")
    assert (wrong.status, wrong.out) == (2, "")
    assert "VAPID_SUBJECT" in wrong.err


async def test_a_trial_says_what_each_provider_has_answered(
    redis: RedisServer, tmp_path: Path
) -> None:
    authority = Authority()
    path = tmp_path / "authority.pem"
    path.write_text(authority.pem)
    async with PushService(authority, http2=False) as service:
        given = {
            "REDIS_URL": redis.url,
            "VAPID_PRIVATE_KEY": private_pem(
                vapid_key("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA")
            ),
            "VAPID_SUBJECT": "mailto:ops@example.com",
            "PUSH_ENDPOINTS": json.dumps([f"localhost:{service.port}"]),
            "SSL_CERT_FILE": str(path),
        }
        none = await msgpush("test", "--user", "bob", **given)
        assert none.status == 1
        assert "bob has no device" in none.err
        browser = Browser()
        async with RedisDevices(RedisTarget.from_url(redis.url)) as devices:
            address = browser.subscription(f"{service.origin}/push/secret")
            device, _ = await devices.register("bob", address, "My desk")
        taken = await msgpush("test", "--user", "bob", "--title", "Hello", **given)
        assert taken.status == 0, taken
        assert taken.out == f"webpush {device.id} (My desk): taken: status 201\n"
        said = json.loads(browser.decrypt(service.asked[0].body))
        assert (said["title"], said["body"]) == ("Hello", "This is a trial.")
        service.script.append(Says(429, headers={"Retry-After": "30"}))
        later = await msgpush("test", "--user", "bob", **given)
        assert later.status == 1
        assert "not taken now: status 429, again in 30 s" in later.out
        assert "secret" not in taken.out + later.out + later.err


async def test_what_is_missing_is_told(redis: RedisServer) -> None:
    alone = await msgpush("test", "--user", "bob")
    assert alone.status == 2
    assert "REDIS_URL" in alone.err
    off = await msgpush("test", "--user", "bob", REDIS_URL=redis.url)
    assert off.status == 2
    assert "VAPID_PRIVATE_KEY" in off.err
