"""What waits for acknowledgements in Redis: stopped halfway, full, away, failed over, in many hands."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from msgpush.adapters.redis import records
from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.mending import MEND
from msgpush.adapters.redis.outbox import SETTLE, TAKE_DUE
from msgpush.adapters.redis.records import DEAD, DUE, OUTBOX
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import APPEND
from msgpush.domain.errors import BusUnavailable, NotDue
from msgpush.domain.outbox import (
    Acknowledge,
    Change,
    Forget,
    GiveUp,
    Outcome,
    Record,
    Told,
    Wake,
    Withdraw,
    Written,
    decide,
)
from msgpush.domain.ports import Stored
from tests.support.asking import again, ask, revived
from tests.support.fakes import FakeClock, make
from tests.support.halfway import STOPPED, keyed, stopped_at
from tests.support.outbox_audit import audit
from tests.support.redis_servers import RedisServer

pytestmark = pytest.mark.usefixtures("probe_once")

KEYS = ("tests/m1", "tests/m2")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


class Pair:
    """Two instances on one Redis, by one clock."""

    def __init__(self, server: RedisServer, clock: FakeClock, buses: Sequence[RedisBus]) -> None:
        self.server, self.clock = server, clock
        self.one, self.two = buses

    @property
    def now(self) -> int:
        return int(self.clock.now() * 1000)

    async def change(self, *changes: Change) -> list[Outcome]:
        outcomes = await self.one.outbox.change(changes)
        assert not any(isinstance(each, BusUnavailable) for each in outcomes), outcomes
        return [each for each in outcomes if isinstance(each, Outcome)]

    async def found(self, key: str) -> Record:
        record = await self.two.outbox.find(key)
        assert record is not None
        return record

    def audit(self) -> None:
        """Everything that is counted and sorted says the same as the records."""
        with self.server.client() as client:
            audit(client)


@asynccontextmanager
async def opened(server: RedisServer, **options: Any) -> AsyncIterator[Pair]:
    with server.client() as client:
        client.flushall()
    clock, target = FakeClock(), RedisTarget.from_url(server.url)
    async with AsyncExitStack() as stack:
        buses = [
            await stack.enter_async_context(
                RedisBus(target, clock=clock.now, jitter=lambda: 1.0, **options)
            )
            for _ in range(2)
        ]
        for bus in buses:
            await bus.end()
        yield Pair(server, clock, buses)


# Stopped halfway: an operation, and what has to be true once it was repeated.

Operation = Callable[[Pair], Awaitable[object]]


async def prepare(pair: Pair) -> None:
    """Two messages that wait, the first of them written."""
    drafts = [ask("m1", receipt=True, collapse="a"), ask("m2", "kb:1", user="ann")]
    assert all(isinstance(each, Stored) for each in await pair.one.append(drafts))
    await pair.change(Written("bob", KEYS[0], 1))
    pair.clock.advance(31)


async def publish(pair: Pair) -> Sequence[object]:
    drafts = [make("plain", "a"), ask("m3", collapse="a"), ask("m4", "kb:1", user="eve")]
    return await pair.one.append(drafts)


async def redeliver(pair: Pair) -> Sequence[object]:
    return await pair.one.append([again(await pair.found(KEYS[0]), pair.now), make("plain", "a")])


async def acknowledge(pair: Pair) -> object:
    changes = [Acknowledge("bob", KEYS[0]), Acknowledge("ann", KEYS[1])]
    return await pair.one.outbox.change(changes)


async def withdraw(pair: Pair) -> object:
    return await pair.one.outbox.change([Withdraw("bob", KEYS[0]), Written("ann", KEYS[1], 1)])


async def bury(pair: Pair) -> object:
    pair.clock.advance(90_000)
    changes = [GiveUp("bob", KEYS[0], 1, "expired"), GiveUp("ann", KEYS[1], 1, "expired")]
    return await pair.one.outbox.change(changes)


async def revive(pair: Pair) -> object:
    return await pair.one.append([revived(await pair.found(KEYS[0])), make("plain", "a")])


async def forget(pair: Pair) -> object:
    return await pair.one.outbox.change([Forget("ann", KEYS[1]), Acknowledge("bob", KEYS[0])])


OPERATIONS: dict[str, tuple[list[Operation], Operation, dict[str, str]]] = {
    "publish": ([], publish, {"m1": "pending", "m3": "pending", "m4": "pending"}),
    "redeliver": ([], redeliver, {"m1": "pending", "m2": "pending"}),
    "acknowledge": ([], acknowledge, {"m1": "acknowledged", "m2": "acknowledged"}),
    "withdraw": ([], withdraw, {"m1": "withdrawn", "m2": "pending"}),
    "give up": ([], bury, {"m1": "dead", "m2": "dead"}),
    "revive": ([bury], revive, {"m1": "pending", "m2": "dead"}),
    "forget": ([bury], forget, {"m1": "acknowledged"}),
}


def stop(bus: RedisBus, number: int | None) -> None:
    """Have each script of this instance refused its write of this number; None: none."""
    for owner, name, text in (
        (bus._writer, "_script", APPEND),
        (bus.outbox, "_settle", SETTLE),
    ):
        setattr(owner, name, stopped_at(text, number if number is not None else 1_000_000))


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_change_that_was_stopped_at_any_of_its_writes_is_completed_by_the_next(
    server: RedisServer, name: str
) -> None:
    before, operation, states = OPERATIONS[name]
    number = 0
    while True:
        number += 1
        async with opened(server) as pair:
            await prepare(pair)
            for each in before:
                await each(pair)
            stop(pair.one, number)
            results = await operation(pair)
            stop(pair.one, None)
            assert isinstance(results, list)
            done = not any(isinstance(each, BusUnavailable) for each in results)
            if not done:
                assert all(STOPPED in str(each) for each in results)
            # Whatever comes next completes it: a message, or a change of something else.
            if number % 2:
                await pair.two.append([make("next", "a")])
            await pair.two.outbox.change([Wake("nobody", "tests/none")])
            await pair.two.append([make("next2", "a")])
            pair.audit()
            await operation(pair)
            pair.audit()
            for id, state in states.items():
                assert (await pair.found(f"tests/{id}")).state == state, number
            if name == "redeliver":
                assert (await pair.found(KEYS[0])).attempt == 2
            if done:
                break
    assert number > 5, "it was stopped at each write"


@pytest.mark.parametrize("name", ["publish", "redeliver", "revive"])
@pytest.mark.parametrize("first_stop", [7, 15, 24])
async def test_mending_may_be_stopped_at_any_write_and_begun_again(
    server: RedisServer, name: str, first_stop: int
) -> None:
    before, operation, states = OPERATIONS[name]
    number = 0
    while True:
        number += 1
        async with opened(server) as pair:
            await prepare(pair)
            for each in before:
                await each(pair)
            stop(pair.one, first_stop)
            await operation(pair)
            stop(pair.one, None)
            mender = pair.two._epochs._mender
            script, mender._script = mender._script, stopped_at(MEND, number)
            (result,) = await pair.two.append([make("next", "a")])
            mender._script = script
            await pair.two.append([make("next2", "a")])
            await operation(pair)
            pair.audit()
            for id, state in states.items():
                assert (await pair.found(f"tests/{id}")).state == state
            if isinstance(result, Stored):
                break


async def test_of_one_attempt_that_two_instances_deliver_at_once_one_is_stored(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        await prepare(pair)
        for attempt in range(2, 5):
            record = await pair.found(KEYS[0])
            draft = again(record, pair.now)
            results = await asyncio.gather(pair.one.append([draft]), pair.two.append([draft]))
            kinds = sorted(type(each).__name__ for (each,) in results)
            assert kinds == ["NotDue", "Stored"]
            await pair.change(Written("bob", KEYS[0], attempt))
            pair.clock.advance(4000)


async def test_what_one_instance_has_taken_is_anothers_once_its_lease_has_run_out(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        await prepare(pair)
        _, taken = await pair.one.outbox.due(256)
        assert [each.key for each in taken] == [KEYS[0]]
        # It dies here.
        assert (await pair.two.outbox.due(256))[1] == []
        pair.clock.advance(16)
        now, taken = await pair.two.outbox.due(256)
        assert [(each.key, decide(each, now)) for each in taken] == [(KEYS[0], "send")]
        (stored,) = await pair.two.append([again(taken[0], now)])
        assert isinstance(stored, Stored)


async def test_after_an_acknowledgement_nothing_is_appended_however_late_it_was_taken(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        await prepare(pair)
        now, (record,) = await pair.one.outbox.due(256)
        await pair.change(Acknowledge("bob", KEYS[0]))
        (result,) = await pair.one.append([again(record, now)])
        assert isinstance(result, NotDue)


async def test_a_full_redis_lets_what_waits_be_acknowledged_withdrawn_and_given_up(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        drafts = [ask(f"m{n}", user=f"u{n}", data={"x": "x" * 2000}) for n in range(40)]
        assert all(isinstance(each, Stored) for each in await pair.one.append(drafts))
        with server.client() as client:
            client.config_set("maxmemory", "1")
            try:
                (refused,) = await pair.one.append([ask("m40")])
                assert isinstance(refused, BusUnavailable)
                pair.audit()
                await pair.change(*(Acknowledge(f"u{n}", f"tests/m{n}") for n in range(10)))
                await pair.change(*(Withdraw(f"u{n}", f"tests/m{n}") for n in range(10, 20)))
                await pair.change(Written("u20", "tests/m20", 1))
                pair.clock.advance(90_000)
                _, due = await pair.two.outbox.due(256)
                assert {each.key for each in due} == {f"tests/m{n}" for n in range(20, 40)}
                await pair.change(*(GiveUp(each.user, each.key, 1, "expired") for each in due))
                await pair.change(*(Forget(each.user, each.key) for each in due[:10]))
                pair.audit()
            finally:
                client.config_set("maxmemory", "0")
        (stored,) = await pair.one.append([ask("m41")])
        assert isinstance(stored, Stored)


async def test_without_redis_every_question_is_refused_in_time_and_goes_on_when_it_is_back() -> (
    None
):
    with RedisServer() as server:
        async with opened(server) as pair:
            await prepare(pair)
            server.pause()
            try:
                async with asyncio.timeout(2):
                    (failed,) = await pair.one.outbox.change([Acknowledge("bob", KEYS[0])])
                    assert isinstance(failed, BusUnavailable)
            finally:
                server.resume()
            # It may have been done; repeated, it is.
            await pair.change(Acknowledge("bob", KEYS[0]))
            pair.audit()


async def test_of_a_user_that_has_nothing_pending_no_key_is_left(server: RedisServer) -> None:
    async with opened(server) as pair:
        await prepare(pair)
        await pair.change(Acknowledge("bob", KEYS[0]), Withdraw("ann", KEYS[1]))
        (receipt,) = (await pair.found(KEYS[0])).owed
        await pair.change(Told("bob", KEYS[0], receipt))
        with server.client() as client:
            left = {each.decode() for each in client.keys(f"{HASH_TAG}:*")}
            for name in left:
                if ":delivery:" in name:
                    assert 0 < client.pttl(name) <= 86_400_000
        gone = (f"{HASH_TAG}:pending:", f"{HASH_TAG}:mailbox:", DUE, OUTBOX, DEAD)
        assert not [name for name in left if name.startswith(gone)]


async def test_no_question_searches_and_none_asks_for_more_than_a_call_may(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        drafts = [ask(f"m{n}", user=f"u{n % 50}") for n in range(600)]
        assert all(isinstance(each, Stored) for each in await pair.one.append(drafts))
        with server.client() as client:
            client.config_resetstat()
        await pair.change(*(Written(f"u{n % 50}", f"tests/m{n}", 1) for n in range(600)))
        await pair.one.outbox.page("u1", None, 1000, 10**7)
        await pair.one.outbox.waiting([f"u{n}" for n in range(1000)])
        pair.clock.advance(40)
        _, due = await pair.one.outbox.due(256)
        assert len(due) == 256
        with server.client() as client:
            used = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
            evaluated = client.info("commandstats")
        assert not used & {"scan", "keys", "hscan", "zscan", "xgroup", "xreadgroup"}
        calls = sum(
            evaluated.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha")
        )
        assert calls <= 1 + 3 + 1, "600 reports by 256, and one look at what is due"


# What happens before a call that was stopped halfway is completed

EARLY: list[tuple[Change, str]] = [
    (Acknowledge("eve", "tests/m4"), "acknowledged"),
    (Withdraw("eve", "tests/m4"), "withdrawn"),
    (Written("eve", "tests/m4", 1), "pending"),
    (Wake("eve", "tests/m4"), "pending"),
]


@pytest.mark.parametrize(("early", "state"), EARLY, ids=lambda each: type(each).__name__)
async def test_a_message_that_is_stored_halfway_is_there_wholly_or_not_at_all(
    server: RedisServer, early: Change, state: str
) -> None:
    number = 0
    made = unknown = 0
    done = False
    while not done:
        number += 1
        async with opened(server) as pair:
            await prepare(pair)
            stop(pair.one, number)
            results = await publish(pair)
            stop(pair.one, None)
            done = all(isinstance(each, Stored) for each in results)
            # It is in the log: a client may have it, whatever its publisher was answered.
            (outcome,) = await pair.two.outbox.change([early])
            assert isinstance(outcome, Outcome)
            made, unknown = made + (outcome.record is not None), unknown + (outcome.record is None)
            await pair.two.append([make("next", "a")])
            pair.audit()
            record = await pair.two.outbox.find("tests/m4")
            if outcome.record is not None:
                assert record is not None
                assert record.state == state
            elif record is not None and not done:
                # So the client isn't believed, and gets it again.
                assert (record.state, record.phase) == ("pending", "waiting")
                assert pair.now < record.next <= pair.now + 10_000
            await publish(pair)
            pair.audit()
    assert made > 3
    assert unknown > 3


async def test_what_is_delivered_again_halfway_is_tried_soon_whatever_was_reported_meanwhile(
    server: RedisServer,
) -> None:
    number = 0
    done = False
    while not done:
        number += 1
        async with opened(server) as pair:
            await prepare(pair)
            stop(pair.one, number)
            (result, _) = await redeliver(pair)
            stop(pair.one, None)
            done = isinstance(result, Stored)
            await pair.two.outbox.change([Written("bob", KEYS[0], 2)])
            await pair.two.append([make("next", "a")])
            pair.audit()
            record = await pair.found(KEYS[0])
            assert record.attempt == 2 or not done
            assert record.phase == "waiting", "parked, it would wait for another stream"


# Page by page


async def test_a_users_messages_are_paged_whole_though_all_stand_at_one_moment(
    server: RedisServer,
) -> None:
    # As after a clock that has stepped back.
    async with opened(server) as pair:
        drafts = [ask(f"m{n:03}", service=f"s{n % 5}") for n in range(900)]
        assert all(isinstance(each, Stored) for each in await pair.one.append(drafts))
        after, keys = None, []
        while True:
            page = await pair.two.outbox.page("bob", after, 100, 10**7)
            assert page.total == 900
            keys += [each.key for each in page.records]
            after = page.next
            if after is None:
                break
        assert len(keys) == len(set(keys)) == 900


async def test_dead_letters_are_paged_whole_though_all_have_died_at_once(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        drafts = [ask(f"m{n:03}", user=f"u{n}") for n in range(300)]
        await pair.one.append(drafts)
        pair.clock.advance(90_000)
        await pair.change(*(GiveUp(f"u{n}", f"tests/m{n:03}", 1, "expired") for n in range(300)))
        after, keys = None, []
        while True:
            page = await pair.two.outbox.dead_letters("tests", after, 100, 10**7)
            keys += [each.key for each in page.records]
            after = page.next
            if after is None:
                break
        assert keys == [f"tests/m{n:03}" for n in range(300)]


async def test_what_is_acknowledged_while_a_page_is_read_is_not_on_it(server: RedisServer) -> None:
    async with opened(server) as pair:
        await pair.one.append([ask("m1"), ask("m2"), ask("m3")])
        outbox = pair.two.outbox
        records = outbox._records

        async def late(keys: Sequence[str]) -> list[Record | None]:
            await pair.change(Acknowledge("bob", "tests/m2"))
            return await records(keys)

        outbox._records = late  # type: ignore[method-assign]
        page = await outbox.page("bob", None, 10, 10**6)
        assert [each.key for each in page.records] == ["tests/m1", "tests/m3"]
        assert all(each.message for each in page.records)


async def test_a_dead_letter_that_is_revived_while_they_are_listed_is_none(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        await prepare(pair)
        await bury(pair)
        outbox = pair.two.outbox
        records = outbox._records

        async def late(keys: Sequence[str]) -> list[Record | None]:
            outbox._records = records  # type: ignore[method-assign]
            await revive(pair)
            return await records(keys)

        outbox._records = late  # type: ignore[method-assign]
        letters = await outbox.dead_letters("tests", None, 10, 10**6)
        assert [each.key for each in letters.records] == [KEYS[1]]


# What a script touches


def watch(pair: Pair) -> None:
    """Have every script of both instances fail where it touches a key that it wasn't told of."""
    for bus in (pair.one, pair.two):
        for owner, name, text in (
            (bus._writer, "_script", APPEND),
            (bus._epochs._mender, "_script", MEND),
            (bus.outbox, "_settle", SETTLE),
            (bus.outbox, "_take_due", TAKE_DUE),
        ):
            setattr(owner, name, keyed(text))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("number", [0, 9, 14, 20])
async def test_every_key_that_a_script_touches_is_named_in_its_keys(
    server: RedisServer, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "REDO", keyed(records.REDO.text))
    before, operation, states = OPERATIONS[name]
    async with opened(server, wait_replicas=0) as pair:
        watch(pair)
        await prepare(pair)
        for each in before:
            await each(pair)
        if number:
            stop(pair.one, number)
            await operation(pair)
            watch(pair)
        for bus in (pair.two, pair.one):
            (result,) = await bus.append([make(f"next{number}", "a")])
            assert isinstance(result, Stored), result
        stop(pair.one, None)
        watch(pair)
        await operation(pair)
        await pair.one.outbox.due(256)
        for id, state in states.items():
            assert (await pair.found(f"tests/{id}")).state == state
        pair.audit()


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
async def test_a_completion_that_is_stopped_itself_is_done_by_the_next(
    server: RedisServer, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server) as pair:
        await prepare(pair)
        stop(pair.one, 4)
        assert all(isinstance(each, BusUnavailable) for each in await _results(acknowledge, pair))
        stop(pair.one, None)
        with monkeypatch.context() as patch:
            patch.setattr(records, "REDO", stopped_at(records.REDO.text, number))
            assert isinstance((await _results(acknowledge, pair))[0], BusUnavailable)
        assert not any(
            isinstance(each, BusUnavailable) for each in await _results(acknowledge, pair)
        )
        pair.audit()


async def _results(operation: Operation, pair: Pair) -> Sequence[object]:
    results = await operation(pair)
    assert isinstance(results, list)
    return results


async def test_a_record_that_nobody_can_read_stops_nothing_and_is_left_to_who_can(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server) as pair:
        await prepare(pair)
        with server.client() as client:
            name = records.record_key(KEYS[0])
            whole = client.hgetall(name)
            client.hset(name, mapping={"s": "hibernating", "x": "later"})  # of a release to come
            client.zadd(DUE, {"tests/gone": 1})
        for _ in range(2):
            now, due = await pair.one.outbox.due(256)
            assert due == []
            pair.clock.advance(16)
        assert await pair.one.outbox.find(KEYS[0]) is None
        assert (await pair.one.outbox.page("bob", None, 10, 1000)).records == []
        with server.client() as client:
            assert client.zscore(DUE, "tests/gone") is None, "of that there is no record any more"
            client.hset(name, mapping=whole)
            client.hdel(name, "m")  # somebody has touched it
        assert (await pair.one.outbox.due(256))[1] == []
        pair.clock.advance(16)
        with server.client() as client:
            client.hset(name, mapping=whole)
        now, due = await pair.one.outbox.due(256)
        assert [decide(each, now) for each in due] == ["send"]
        assert caplog.text.count("can't be read") == 1
        pair.audit()


async def test_an_acknowledgement_that_no_replica_has_confirmed_is_not_answered_though_repeated(
    server: RedisServer,
) -> None:
    async with opened(server) as pair:
        await prepare(pair)
        async with RedisBus(
            RedisTarget.from_url(server.url), clock=pair.clock.now, wait_replicas=1
        ) as waiting:
            await waiting.end()
            for _ in range(2):
                (result,) = await waiting.outbox.change([Acknowledge("bob", KEYS[0])])
                assert isinstance(result, BusUnavailable)
                assert "0 of 1 replicas" in result.detail
        assert (await pair.found(KEYS[0])).state == "acknowledged", "it may have been done"
