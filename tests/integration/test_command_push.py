"""`msgpush push`: keys that the service takes, and a trial that shows nothing secret."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from msgpush.adapters.notify.vapid import public_text, vapid_key
from msgpush.adapters.redis.devices import RedisDevices
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.devices import Fcm
from msgpush.entrypoints.cli import run
from tests.support.certificates import Authority
from tests.support.push_services import PushService, Says
from tests.support.redis_servers import RedisServer
from tests.support.subscriptions import Browser


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PushService]:
    authority, path = Authority(), tmp_path / "authority.pem"
    path.write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    async with PushService(authority, http2=False) as service:
        yield service


def keys(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `msgpush push keys` makes, as variables."""
    assert run(["push", "keys", "--subject", "mailto:ops@example.com"], {}) == 0
    told, *lines = capsys.readouterr().out.splitlines()
    made = dict(line.split("=", 1) for line in lines)
    assert told.startswith("# ")
    assert told.endswith(f" {public_text(vapid_key(made['VAPID_PRIVATE_KEY']))}")
    return made


def test_keys_are_new_ones_and_what_is_no_subject_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert keys(capsys) != keys(capsys)
    assert run(["push", "keys", "--subject", "ops@example.com"], {}) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "VAPID_SUBJECT" in told.err


async def test_a_trial_says_what_each_provider_answers_and_shows_nothing_secret(
    redis: RedisServer, service: PushService, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = keys(capsys) | {
        "REDIS_URL": redis.url,
        "PUSH_ENDPOINTS": f'["localhost:{service.port}"]',
    }
    browser = Browser()

    async def trial() -> tuple[int, str, str]:
        status = await asyncio.to_thread(run, ["push", "test", "--user", "bob"], environ)
        told = capsys.readouterr()
        for secret in ("a-secret", environ["VAPID_PRIVATE_KEY"], repr(browser.auth)):
            assert secret not in told.out + told.err
        return status, told.out, told.err

    status, _, err = await trial()
    assert (status, "user bob has no device" in err) == (1, True)
    async with RedisDevices(RedisTarget.from_url(redis.url)) as devices:
        address = browser.subscription(f"{service.origin}/a-secret-path")
        device, _ = await devices.register("bob", address, "my \x1b[2J\ndesk")
        status, out, _ = await trial()
        # What a user calls it is obeyed by no terminal.
        assert out == f'webpush {device.id} ("my \\u001b[2J\\ndesk"): taken: status 201\n'
        assert status == 0
        assert b"trial" in browser.decrypt(service.asked[-1].body)
        service.script.append(Says(429, b"a-secret", headers={"Retry-After": "7"}))
        status, out, _ = await trial()
        assert out.endswith(": not taken now: status 429, again in 7 s\n")
        assert status == 1
        await devices.register("bob", Fcm("a-secret-token", b"p"), None)
        status, out, _ = await trial()
        assert ": not taken now: this kind is off by these settings\n" in out
        assert status == 1


def test_a_trial_without_redis_or_keys_says_what_to_set(
    redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for environ, told in ((keys(capsys), "REDIS_URL"), ({"REDIS_URL": redis.url}, "VAPID_PRIVATE")):
        assert run(["push", "test", "--user", "bob"], environ) == 2
        assert told in capsys.readouterr().err
