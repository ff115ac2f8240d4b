"""The last release that pushes nothing, beside this one on the same Redis; and going back to it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from msgpush.adapters.notify.vapid import base64url
from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.records import PUSHES
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.errors import BusUnavailable
from tests.support.certificates import Authority
from tests.support.client import SseClient, request
from tests.support.halfway import stopped_at
from tests.support.outbox_audit import audit
from tests.support.push_services import PushService
from tests.support.pushes import push, push_body
from tests.support.redis_servers import RedisServer
from tests.support.releases import LAST, earlier_process, earlier_source
from tests.support.service import ServiceProcess, eventually
from tests.support.subscriptions import Browser

pytestmark = pytest.mark.long
SEND = "/api/v1/messages/send"


class Both(NamedTuple):
    redis: RedisServer
    earlier: ServiceProcess
    this: ServiceProcess
    service: PushService


def ready(service: ServiceProcess) -> bool:
    return request(service.port, "GET", "/health/ready").status == 200


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    authority = Authority()
    (tmp_path / "authority.pem").write_text(authority.pem)
    source = earlier_source(tmp_path / "earlier", LAST)
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        async with PushService(authority, http2=False) as service:
            given: dict[str, Any] = {
                "VAPID_PRIVATE_KEY": base64url(bytes(range(1, 33))),
                "VAPID_SUBJECT": "mailto:ops@example.com",
                "PUSH_ENDPOINTS": json.dumps([f"localhost:{service.port}"]),
                "PUSH_DELAY": "0.5",
                "SSL_CERT_FILE": str(tmp_path / "authority.pem"),
            }

            def start() -> tuple[ServiceProcess, ServiceProcess]:
                earlier = stack.enter_context(earlier_process(source, redis.url))
                this = stack.enter_context(ServiceProcess(REDIS_URL=redis.url, **given))
                eventually(lambda: ready(earlier) and ready(this))
                return earlier, this

            yield Both(redis, *await asyncio.to_thread(start), service)


async def ask(service: ServiceProcess, path: str, body: bytes) -> int:
    answer = await asyncio.to_thread(request, service.port, "POST", path, body)
    return answer.status


async def test_each_reads_what_the_other_writes_and_a_stream_at_either_counts(both: Both) -> None:
    device = {"webpush": Browser().as_json(f"{both.service.origin}/push/bob")}
    assert await ask(both.this, "/api/v1/users/bob/devices", json.dumps(device).encode()) == 201
    stream = await asyncio.to_thread(SseClient, both.earlier.port, "/sse/user/bob")
    offline = {"when": "offline"}
    assert await ask(both.this, SEND, push_body("m1", push=offline)) == 202
    while (event := await asyncio.to_thread(stream.next)).type != "message":
        pass
    told = json.loads(event.data)
    assert told["id"] == "m1"
    assert "push" not in told["metadata"]
    await asyncio.sleep(3)
    assert both.service.asked == []
    await asyncio.to_thread(stream.close)

    await left_halfway(both)
    # The earlier release completes that, and knows nothing of the push.
    plain = {"id": "p", "type": "info", "service": "tests", "channels": ["a"]}
    assert await ask(both.earlier, SEND, json.dumps(plain).encode()) == 202
    assert await ask(both.this, SEND, push_body("m2", push=offline, user="eve")) == 202
    with both.redis.client() as client:
        assert set(client.zrange(PUSHES, 0, -1)) <= {b"tests/m1", b"tests/m2"}
    for each in (both.earlier, both.this):
        assert [line for line in each.log if line.get("level") in ("error", "critical")] == []
        assert "Traceback" not in json.dumps(each.log)

    def settled() -> bool:
        with both.redis.client() as client:
            return not client.exists(PUSHES)

    async with asyncio.timeout(20):
        while not settled():  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.1)
    with both.redis.client() as client:
        for name in client.scan_iter("{msgpush}:push:*"):
            client.delete(name)  # of the call that the earlier release has completed
        audit(client)


async def left_halfway(both: Both) -> None:
    """Have Redis stop a call that pushes, once its message is in the log."""
    async with RedisBus(RedisTarget.from_url(both.redis.url)) as bus:
        await bus.end()
        bus._writer._script = stopped_at(APPEND, 4)
        (failed,) = await bus.append([push("half", ack=None)])
        assert isinstance(failed, BusUnavailable)
