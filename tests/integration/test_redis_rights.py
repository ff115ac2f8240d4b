"""The rights in docs/redis.md are all that the service needs, and none too many."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from msgpush.adapters.redis import credentials as redis_credentials
from msgpush.adapters.redis import records
from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.credentials import RedisCredentials
from msgpush.adapters.redis.devices import RedisDevices
from msgpush.adapters.redis.limiter import RedisLimiter
from msgpush.adapters.redis.link import Script
from msgpush.adapters.redis.roster import RedisRoster
from msgpush.adapters.redis.statistics import RedisStatistics
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.connection import Connection, Subscription
from msgpush.domain.control import Close, command_draft
from msgpush.domain.counts import MINUTE
from msgpush.domain.credentials import Revocation, Ticket
from msgpush.domain.devices import MAX_DEVICES
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.message import Draft
from msgpush.domain.outbox import (
    Acknowledge,
    Change,
    Forget,
    GiveUp,
    Outcome,
    Told,
    Withdraw,
    Written,
    decide,
)
from msgpush.domain.ports import ConnectionFilter, Stored
from msgpush.domain.service import Push
from tests.contracts.statistics import counts
from tests.support.asking import again, ask, revived
from tests.support.fakes import FakeClock, FakeSink, PlainView, make, reporting
from tests.support.pushes import push, subscription
from tests.support.redis_servers import RedisServer

DOCS = Path(__file__).parents[2] / "docs" / "redis.md"


def documented() -> list[str]:
    found = re.search(r"^ACL SETUSER msgpush .*$", DOCS.read_text(), re.MULTILINE)
    assert found is not None
    return found[0].split()


async def test_the_documented_rights_are_enough_for_everything_and_all_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_credentials, "MOST", 1)  # ticket a subject: the older ones go
    line = documented()
    with RedisServer() as server, server.client() as admin:
        assert admin.execute_command(*line)
        admin.config_resetstat()
        await do_everything(server.url.replace("//", "//msgpush:password@").replace("/0", "/1"))
        assert admin.acl_log() == [], "nothing was refused"
        given = {each[1:] for each in line if each.startswith("+")}
        # AUTH needs no right, and the rest is what this test asks.
        assert used(server) - given <= {
            "auth",
            "info",
            "acl|log",
            "client|setinfo",
            "config|resetstat",
        }
        assert given - used(server) == set(), "each is used"


def used(server: RedisServer) -> set[str]:
    """The commands that the server was given since its statistics were reset."""
    with server.client() as client:
        return {name.removeprefix("cmdstat_") for name in client.info("commandstats")}


async def do_everything(url: str) -> None:
    target = RedisTarget.from_url(url)
    async with AsyncExitStack() as stack:
        bus, other_bus = [
            await stack.enter_async_context(RedisBus(target, wait_replicas=replicas))
            for replicas in (1, 0)
        ]
        credentials = await stack.enter_async_context(RedisCredentials(target, lifetime=60))
        push = await stack.enter_async_context(Push(bus, credentials=credentials))
        other = await stack.enter_async_context(Push(other_bus))
        roster, others = (
            RedisRoster(target, push.listing("n1"), push.command, reporting("n1")),
            RedisRoster(target, other.listing("n2"), other.command, reporting("n2")),
        )
        for each in (roster, others):
            await stack.enter_async_context(each)
        limiter = await stack.enter_async_context(RedisLimiter(target, 10))

        await publish(bus)
        sink = FakeSink()
        subscription = Subscription(frozenset({"a"}), PlainView())
        other.subscribe(Connection("c1", sink), subscription, await other.start_at("earliest"))
        assert (await push.history("a", None, 10)).gap is None

        ticket = Ticket("s", ("a",), time.time() + 50, None, None)
        for digest in ("d1", "d2"):
            await credentials.add_ticket(digest, ticket, 40)
        assert await credentials.ticket("d2") == ticket
        assert await credentials.claim(
            "d2", "s", connection="c1", before="", until=time.time() + 50
        )
        assert await credentials.holder("d2") == "c1"
        await credentials.revoke(Revocation("jti", "x", time.time()))
        assert await credentials.revocations()
        assert (await limiter.take("s", 1)).granted
        devices = await stack.enter_async_context(RedisDevices(target))
        await have_devices(devices, credentials)
        statistics = await stack.enter_async_context(RedisStatistics(target))
        minute = int(time.time()) // 60
        for number in (1, 2):
            await statistics.add("n1", number, {minute: counts(("a", "info", 1))})
        assert await statistics.read(MINUTE, minute, minute)

        await others.sync()
        (found,), _ = await roster.connections(ConnectionFilter(node="n2"), 10, None)
        assert found.id == "c1"
        assert (await roster.stats()).by_node
        assert [each.node for each in await roster.instances()] == ["n1", "n2"]
        assert await roster.close("c1", reconnect=True)
        async with asyncio.timeout(10):
            while other.connections:  # noqa: ASYNC110 - the command comes by the log
                await asyncio.sleep(0.005)
        await others.sync()
    await ask_for_acknowledgements(target)


async def have_devices(devices: RedisDevices, credentials: RedisCredentials) -> None:
    """Every change of devices, and every question."""
    for number in range(MAX_DEVICES + 1):
        await devices.register("bob", subscription(str(number)), None)
    await devices.register("eve", subscription("0"), None)
    await devices.register("eve", subscription("1"), None)
    assert len((await devices.of(["bob"]))[0]) == MAX_DEVICES - 1
    ((device, *_),) = await devices.of(["bob"])
    await devices.used([device])
    await devices.gone([device])
    await devices.remove("bob")
    await credentials.revoke(Revocation("subject", "eve", time.time()))
    assert await devices.of(["bob", "eve"]) == [[], []]


async def publish(bus: RedisBus) -> None:
    (unconfirmed,) = await bus.append([make("m0", "a")])
    assert "replicas" in str(unconfirmed)
    bus._writer._wait_replicas = 0
    script, bus._writer._script = (
        bus._writer._script,
        Script(APPEND.replace("call('SET', KEYS", "call('NOSUCH', KEYS")),
    )
    (stopped,) = await bus.append([make("m1", "a", ttl=600_000)])
    assert isinstance(stopped, BusUnavailable)
    bus._writer._script = script
    for _ in range(2):
        (stored,) = await bus.append([make("m1", "a", ttl=600_000)])
        assert isinstance(stored, Stored)
    await bus.append([command_draft(Close("nobody", True))])


async def ask_for_acknowledgements(target: RedisTarget) -> None:
    """Every change of the outbox and every question; and calls that are stopped, and completed."""
    clock = FakeClock(time.time() + 1)
    async with RedisBus(target, clock=clock.now, dead_letter_bytes=1) as bus:
        await bus.end()
        outbox = bus.outbox
        await store(bus, *(ask(f"a{n}", "a", receipt=True) for n in range(6)))
        await store(bus, ask("c1", collapse="c"), ask("c2", collapse="c"))
        await made(bus, Withdraw("bob", "tests/c1"))
        await made(bus, *(Written("bob", f"tests/a{n}", 1) for n in range(6)))
        await made(bus, Acknowledge("bob", "tests/a0"), Withdraw("bob", "tests/a1"))
        ended = await outbox.find("tests/a0")
        assert ended is not None
        await made(bus, *(Told("bob", ended.key, receipt) for receipt in ended.owed))
        assert await outbox.waiting(["bob"]) == [True]
        assert (await outbox.page("bob", None, 3, 10**6)).next is not None
        with stopped(outbox, "_settle", "call('HDEL', outbox, 'redo')"):
            (halfway,) = await outbox.change([Acknowledge("bob", "tests/a2")])
            assert isinstance(halfway, BusUnavailable)
        clock.advance(45)
        now, due = await outbox.due(256)
        send = [each for each in due if decide(each, now) == "send"]
        assert len(send) == 3
        with stopped(bus._writer, "_script", "call('HDEL', outbox, 'redo')"):
            assert isinstance((await bus.append([again(send[0], now)]))[0], BusUnavailable)
        await store(bus, again(send[1], now))
        await store_halfway(bus, again(send[2], now), ask("h1"))
        clock.advance(90_000)
        now, due = await outbox.due(256)
        expired = [each for each in due if decide(each, now) == "expire"]
        assert len(expired) == 5
        await made(bus, *(GiveUp(each.user, each.key, each.attempt, "expired") for each in expired))
        letters = (await outbox.dead_letters("tests", None, 10, 10**6)).records
        assert len(letters) == 5
        await store(bus, revived(letters[0]))
        await store_halfway(bus, revived(letters[1]))
        await made(bus, Forget(letters[2].user, letters[2].key))
        assert len((await outbox.due(256))[1]) == 2, "too many bytes"
        await store(bus, push("p1", ack=None), push("p2", ack={"collapse": "p"}))
        clock.advance(7)
        _, sendings = await bus.sendings.due(256)
        assert len(sendings) == 2
        kept, done = (each for each, _ in sendings)
        done = msgspec.structs.replace(done, left={})
        assert await bus.sendings.settle([kept, done]) == [True, True]
        with_gone = records.record_key(letters[3].key)
        await outbox._reader.call("DEL", with_gone)
        assert len((await outbox.dead_letters("tests", None, 10, 10**6)).records) == 1


async def store(bus: RedisBus, *drafts: Draft) -> None:
    for each in await bus.append(drafts):
        assert isinstance(each, Stored), each


async def store_halfway(bus: RedisBus, *drafts: Draft) -> None:
    """Have a call stopped whose messages are in the log, and completed."""
    with stopped(bus._writer, "_script", "call('HSET', outbox, 'redo'"):
        for each in await bus.append(drafts):
            assert isinstance(each, BusUnavailable), each
    await store(bus, make("after", "a"))


async def made(bus: RedisBus, *changes: Change) -> None:
    for each in await bus.outbox.change(changes):
        assert isinstance(each, Outcome), each
        assert each.result == "made"


@contextmanager
def stopped(owner: object, name: str, call: str) -> Iterator[None]:
    """Have a script stopped at a call of its."""
    script: Script = getattr(owner, name)
    assert call in script.text
    setattr(
        owner, name, Script(script.text.replace(call, call.replace("call(", "call('NOSUCH', ")))
    )
    try:
        yield
    finally:
        setattr(owner, name, script)
