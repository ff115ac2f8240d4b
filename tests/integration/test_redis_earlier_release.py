"""The release before, which knows no acknowledgements, beside this one on the same Redis."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.link import HASH_TAG, Script
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import Stored
from tests.support.asking import ask, body_of, key
from tests.support.client import Response, SseClient, request
from tests.support.fakes import make
from tests.support.halfway import stopped_at
from tests.support.outbox_audit import audit
from tests.support.redis_servers import RedisServer
from tests.support.releases import earlier_process, earlier_source, run_earlier
from tests.support.service import ServiceProcess, eventually

SEND = "/api/v1/messages/send"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return earlier_source(tmp_path_factory.mktemp("earlier"))


class Both(NamedTuple):
    """Two instances on one Redis."""

    server: RedisServer
    earlier: ServiceProcess
    this: ServiceProcess


@pytest.fixture(scope="module")
def running(source: Path) -> Iterator[Both]:
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        earlier, this = (
            stack.enter_context(each)
            for each in (
                earlier_process(source, server.url),
                ServiceProcess(REDIS_URL=server.url),
            )
        )
        eventually(lambda: ready(earlier) and ready(this))
        yield Both(server, earlier, this)


def ready(service: ServiceProcess) -> bool:
    return request(service.port, "GET", "/health/ready").status == 200


@pytest.fixture
def both(running: Both) -> Iterator[Both]:
    """Both, neither of which meets anything that it can't do."""
    yield running
    for each in (running.earlier, running.this):
        assert ready(each)
        assert request(each.port, "GET", "/health/live").status == 200
        assert [line for line in each.log if line.get("level") in ("error", "critical")] == []
        assert "Traceback" not in json.dumps(each.log)
    with running.server.client() as client:
        audit(client)


def plain(id: str, channel: str = "a") -> bytes:
    body = {"id": id, "type": "info", "service": "tests", "channels": [channel]}
    return msgspec.json.encode(body)


def send(service: ServiceProcess, body: bytes) -> dict[str, Any]:
    answer = request(service.port, "POST", SEND, body)
    assert answer.status == 202, answer.body
    told: dict[str, Any] = answer.json()
    return told


def acknowledge(service: ServiceProcess, user: str, *ids: str) -> Response:
    body = msgspec.json.encode({"keys": [key(id) for id in ids]})
    return request(service.port, "POST", f"/api/v1/users/{user}/acknowledgements", body)


def delivery_of(service: ServiceProcess, id: str) -> dict[str, Any]:
    told: dict[str, Any] = request(
        service.port, "GET", f"/api/v1/messages/tests/{id}/delivery"
    ).json()
    return told


def cut_off(server: RedisServer) -> None:
    """Cut those that read the log, so that each has to find its place again."""
    with server.client() as client:
        for each in client.client_list():
            if each["name"] == "msgpush-tail":
                client.client_kill_filter(_id=each["id"])


class Reader:
    """A stream that keeps what it is given: new messages by their ids, and what came again."""

    def __init__(self, service: ServiceProcess, path: str, after: str = "") -> None:
        self._stream = SseClient(service.port, path, {"Last-Event-ID": after} if after else None)
        assert self._stream.next().type == "msgpush.open"
        self.ids: list[str] = []
        self.again: list[str] = []
        self.others: list[str] = []
        self.cursors: list[str] = []

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read_to(self, id: str) -> None:
        while id not in self.ids:
            event = self._stream.next()
            if event.type != "message":
                self.others.append(event.type)
                continue
            told = msgspec.json.decode(event.data)
            if told["metadata"]["retry_count"]:
                self.again.append(told["id"])
            else:
                self.ids.append(told["id"])
                self.cursors.append(event.last_event_id)


def test_the_earlier_release_reads_on_and_publishes_among_everything_that_acknowledgements_add(
    both: Both,
) -> None:
    path = "/sse/user/bob?channel=a&channel=receipts:tests"
    ids: list[str] = []
    with Reader(both.earlier, path) as old, Reader(both.this, path) as new:
        for n in range(12):
            ids += [f"old{n}", f"new{n}", f"ask{n}", f"priority{n}"]
            send(both.earlier, plain(f"old{n}"))
            send(both.this, plain(f"new{n}"))
            asking = body_of(f"ask{n}", "a", deadline=1, priority="urgent", receipt=n % 4 == 0)
            send(both.this, asking)
            send(both.this, body_of(f"priority{n}", "a", ack=None, priority="high"))
            if n == 4:
                # Some come again, and others are acknowledged or taken back meanwhile.
                assert acknowledge(both.this, "bob", "ask0", "ask1").status == 200
                taken = "/api/v1/messages/tests/ask2/delivery"
                assert request(both.this.port, "DELETE", taken).status == 204
                eventually(lambda: delivery_of(both.this, "ask3")["deliveries"] == 2)
                cut_off(both.server)
        for each in (old, new):
            each.read_to("priority11")
            assert [id for id in each.ids if not id.startswith("receipt_")] == ids
            assert "ask3" in each.again
            assert sum(id.startswith("receipt_") for id in each.ids) == 1
        assert set(old.others) <= {"msgpush.heartbeat"}
        assert set(new.others) <= {"msgpush.heartbeat", "msgpush.acknowledged"}
        cursors = [old.cursors[5], new.cursors[5], old.cursors[-1]]
    for service in (both.earlier, both.this):
        found = request(service.port, "GET", "/api/v1/channels/user:bob/messages").json()
        kept = [f"{name}{n}" for n in range(12) for name in ("ask", "priority")]
        assert [told["id"] for told in found["messages"]] == kept, "what came again isn't there"
        assert found["gap"] is None
        send(service, plain(last := f"last-at-{service.port}"))
        for cursor in cursors:
            with Reader(service, "/sse/stream/a,user:bob", cursor) as back:
                back.read_to(last)
                assert "msgpush.gap" not in back.others
    # A retry at the other one is the same message; one that was asked for is remembered there, too.
    assert send(both.this, plain("old1"))["duplicate"]
    assert send(both.earlier, plain("new1"))["duplicate"]
    assert request(both.earlier.port, "POST", SEND, plain("ask5")).status == 409
    left = [f"ask{n}" for n in range(3, 12)]
    assert acknowledge(both.this, "bob", *left).json()["unknown"] == []


def test_streams_at_the_earlier_release_get_what_asks_and_count_for_nothing(both: Both) -> None:
    with Reader(both.earlier, "/sse/user/eve") as old:
        send(both.this, body_of("for-eve", user="eve", deadline=1))
        old.read_to("for-eve")
        began = time.monotonic()
        while time.monotonic() - began < 2:
            assert delivery_of(both.this, "for-eve")["state"] == "accepted"
        with Reader(both.this, "/sse/user/eve") as new:
            new.read_to("for-eve")
            eventually(lambda: delivery_of(both.this, "for-eve")["state"] == "written")
        assert acknowledge(both.this, "eve", "for-eve").status == 200
        assert old.again == []
        assert set(old.others) <= {"msgpush.heartbeat"}


@pytest.mark.usefixtures("probe_once")
async def test_the_earlier_release_completes_what_this_one_has_left_halfway(both: Both) -> None:
    with (
        Reader(both.earlier, "/sse/stream/a") as old,
        Reader(both.this, "/sse/stream/a") as new,
    ):
        number, done = 0, False
        while not done:
            number += 1
            async with RedisBus(RedisTarget.from_url(both.server.url)) as bus:
                await bus.end()
                bus._writer._script = stopped_at(APPEND, number)
                drafts = [
                    make(f"plain{number}", "a"),
                    ask(f"half{number}", "a", user=f"user{number}", collapse="c"),
                ]
                results = await bus.append(drafts)
                done = all(isinstance(each, Stored) for each in results)
                assert done or all(isinstance(each, BusUnavailable) for each in results)
                send(both.earlier, plain(f"after{number}"))
                bus._writer._script = Script(APPEND)
                assert all(isinstance(each, Stored) for each in await bus.append(drafts))
                for each in (old, new):
                    each.read_to(f"after{number}")
        assert number > 10
        for each in (old, new):
            assert set(each.others) <= {"msgpush.heartbeat"}
        assert old.ids == new.ids
        once = [id for id in old.ids if not id.startswith("half")]
        assert len(once) == len(set(once)), "their ids are remembered"
    # Of one that asks it remembers neither id nor record: it knows of none. So nothing may ask
    # before all instances are upgraded; that it did must not be in the way of anybody else.
    with both.server.client() as client:
        for name in client.scan_iter(f"{HASH_TAG}:delivery:*"):
            if not client.hexists(name, "s"):
                client.delete(name)


LEFT_HALFWAY = """
import asyncio, sys
from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.link import Script
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.message import draft, parse

async def main(url, id, last):
    async with RedisBus(RedisTarget.from_url(url)) as bus:
        await bus.end()
        call = "call('HSET', KEYS[1], 'ms'" if last else "call('SET', last[c]"
        assert call in APPEND
        bus._writer._script = Script(APPEND.replace(call, call.replace("call(", "call('NOSUCH', ")))
        text = '{"id":"%s","type":"info","service":"tests","channels":["a"]}' % id
        print(*await bus.append([draft(parse(text.encode()), 1_800_000_000_000, "", 3600)]))

asyncio.run(main(sys.argv[1], sys.argv[2], len(sys.argv) > 3))
"""


@pytest.mark.parametrize("where", [(), ("last",)])
def test_what_the_earlier_release_has_left_halfway_is_completed_by_this_one(
    both: Both, source: Path, where: tuple[str, ...]
) -> None:
    id = f"early{len(where)}"
    with (
        Reader(both.earlier, "/sse/stream/a") as old,
        Reader(both.this, "/sse/stream/a") as new,
    ):
        told = run_earlier(source, LEFT_HALFWAY, both.server.url, id, *where)
        assert "Stored" not in told
        send(both.this, body_of(f"{id}-then", "a"))
        for each in (old, new):
            each.read_to(f"{id}-then")
            assert each.ids == [id, f"{id}-then"]
            assert set(each.others) <= {"msgpush.heartbeat"}
    assert send(both.this, plain(id))["duplicate"]
    with both.server.client() as client:
        assert not client.hget(f"{HASH_TAG}:head", "open")
