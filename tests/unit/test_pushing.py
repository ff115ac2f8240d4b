"""What is to be pushed is sent: to whom, when, and again when; by a provider that does as told."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import pytest

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.memory.devices import MemoryDevices
from msgpush.domain import pushing
from msgpush.domain.devices import Fcm, Kind
from msgpush.domain.errors import BusUnavailable, Invalid
from msgpush.domain.marks import Push
from msgpush.domain.message import Draft, draft, parse
from msgpush.domain.notification import BEGINS, LEASE, Answer, Sending
from msgpush.domain.observer import Observer
from msgpush.domain.outbox import Acknowledge, GiveUp, Outcome, Withdraw, Written
from msgpush.domain.pushing import PACE, SLACK, Pushing
from msgpush.domain.words import Words
from tests.contracts.bus import store
from tests.support.asking import key
from tests.support.fakes import FakeClock
from tests.support.pushes import FakeNotifier, push, push_body, subscription
from tests.unit.test_memory_outbox import open_outbox

M1 = key("m1")
LATER = Answer("later", "status 503")
WORDS = Words(b"a secret of the tests")


class Counter(Observer):
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def pushed(self, service: str, type: str, kind: Kind, outcome: str, seconds: float) -> None:
        self.told.append((kind, outcome))


class Opened(NamedTuple):
    bus: MemoryBus
    devices: MemoryDevices
    notifier: FakeNotifier
    pushing: Pushing
    clock: FakeClock
    counter: Counter

    async def look(self) -> None:
        """Send all that is due now."""
        while await self.pushing.push():
            pass
        await self.settled()

    async def settled(self) -> None:
        """Wait until nothing is under way."""
        await asyncio.gather(*self.pushing._tasks)

    async def begun(self, number: int) -> None:
        """Wait until so many were sent."""
        async with asyncio.timeout(10):
            while len(self.notifier.keys) < number:  # noqa: ASYNC110 - they are counted elsewhere
                await asyncio.sleep(0.001)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


@asynccontextmanager
async def opened(
    *notifiers: FakeNotifier, users: tuple[str, ...] = ("bob",), concurrency: int = 50
) -> AsyncIterator[Opened]:
    clock, counter = FakeClock(), Counter()
    bus, devices = open_outbox(clock), MemoryDevices(clock=clock.now)
    all = notifiers or (FakeNotifier(),)
    pushing = Pushing(
        bus,
        devices,
        all,
        words=WORDS,
        concurrency=concurrency,
        receipt_ttl=600,
        observer=counter,
        monotonic=clock.monotonic,
    )
    for user in users:
        await devices.register(user, subscription(user), None)
    yield Opened(bus, devices, all[0], pushing, clock, counter)
    await pushing.close()


async def test_who_has_no_stream_is_sent_to_after_the_delay() -> None:
    async with opened() as it:
        await store(it.bus, push("m1"))
        it.advance(5)
        await it.look()
        assert it.notifier.keys == []
        it.advance(1.1)
        await it.look()
        ((address, notice),) = it.notifier.sent
        assert address == subscription("bob")
        assert (notice.user, notice.key, notice.title, notice.text) == (
            "bob",
            M1,
            "tests",
            "Hello",
        )
        assert notice.word is not None
        assert WORDS.good(notice.word, "bob", M1, it.clock.now() + 590)
        assert not WORDS.good(notice.word, "bob", M1, it.clock.now() + 600)
        it.advance(100_000)
        await it.look()
        assert it.notifier.keys == [M1], "once"
        assert it.counter.told == [("webpush", "sent")]


@pytest.mark.parametrize("when", ["offline", "unacknowledged"])
@pytest.mark.parametrize("at", [0.1, 4.9, 5.2])
async def test_who_was_reached_by_a_stream_in_time_is_not_pushed(when: str, at: float) -> None:
    async with opened() as it:
        await store(it.bus, push("m1", push={"when": when}, ack={"deadline": 30}))
        it.advance(at)
        await it.look()
        # Told a quarter of a second later.
        it.advance(0.25)
        await it.bus.outbox.change([Written("bob", M1, 1, age=250)])
        it.advance(10)
        await it.look()
        assert it.notifier.keys == []
        it.advance(60)
        await it.look()
        assert it.notifier.keys == ([] if when == "offline" else [M1])


async def test_what_was_acknowledged_or_withdrawn_meanwhile_is_not_pushed() -> None:
    async with opened() as it:
        it.notifier.usual = LATER
        await store(it.bus, *(push(f"m{n}", push={"when": "always"}) for n in range(3)))
        await it.look()
        assert len(it.notifier.keys) == 3
        await it.bus.outbox.change([Acknowledge("bob", key("m0")), Withdraw("bob", key("m1"))])
        it.advance(100)
        await it.look()
        assert it.notifier.keys[3:] == [key("m2")]


async def test_what_wants_no_acknowledgement_goes_at_once_and_without_a_word() -> None:
    async with opened() as it:
        await store(it.bus, push("m1", ack=None))
        await it.look()
        ((_, notice),) = it.notifier.sent
        assert notice.word is None


async def test_it_goes_to_every_device_of_its_user_alone() -> None:
    async with opened(users=("bob", "eve")) as it:
        for number in range(5):
            await it.devices.register("bob", subscription(f"b{number}"), None)
        await store(it.bus, push("m1", ack=None))
        await it.look()
        names = {"bob", *(f"b{number}" for number in range(5))}
        assert {address for address, _ in it.notifier.sent} == set(map(subscription, names))


async def test_who_has_no_device_costs_nothing_further() -> None:
    async with opened(users=()) as it:
        await store(it.bus, push("m1", ack=None))
        await it.look()
        assert it.notifier.keys == []
        assert not it.bus.sendings._sendings


async def test_it_is_sent_again_until_the_provider_takes_it() -> None:
    async with opened() as it:
        await it.devices.register("bob", subscription("other"), None)
        it.notifier.script.extend([LATER, Answer("sent", ""), LATER, LATER])
        await store(it.bus, push("m1", ack=None, ttl=3_600))
        for sent in (2, 3, 4, 5, 5):
            await it.look()
            assert len(it.notifier.keys) == sent
            it.advance(50)
            await it.look()
            assert len(it.notifier.keys) == sent, "not twice a minute"
            it.advance(250)
        assert len({address for address, _ in it.notifier.sent[2:]}) == 1


async def test_retry_after_is_kept_to() -> None:
    async with opened() as it:
        it.notifier.script.append(Answer("later", "status 429", 200))
        await store(it.bus, push("m1", ack=None))
        await it.look()
        it.advance(199)
        await it.look()
        assert len(it.notifier.keys) == 1
        it.advance(45)
        await it.look()
        assert len(it.notifier.keys) == 2


async def test_its_time_ends_with_the_message_s() -> None:
    async with opened() as it:
        it.notifier.usual = LATER
        await store(it.bus, push("m1", ack=None, ttl=200))
        for _ in range(20):
            await it.look()
            it.advance(30)
        assert 2 <= len(it.notifier.keys) <= 4
        assert not it.bus.sendings._sendings


async def test_a_device_that_is_gone_is_forgotten_and_one_that_took_it_is_remembered() -> None:
    async with opened() as it:
        await it.devices.register("bob", subscription("other"), None)
        it.notifier.script.append(Answer("gone", "status 410"))
        it.advance(1)
        await store(it.bus, push("m1", ack=None))
        await it.look()
        ((left,),) = await it.devices.of(["bob"])
        assert left.address == subscription("other")
        assert left.used_at > left.registered_at


async def test_what_a_provider_never_takes_is_told_to_the_publisher_who_wants_receipts() -> None:
    async with opened() as it:
        it.notifier.usual = Answer("failed", "status 400")
        await store(it.bus, push("m1", ack={"receipt": True}), push("m2"))
        it.advance(7)
        await it.look()
        (receipt,) = await it.bus.newest("receipts:tests", None, 10)
        said = msgspec.json.decode(receipt.body)
        assert (said["type"], said["service"]) == ("error", "msgpush")
        assert {name: said["data"][name] for name in ("key", "state", "kind")} == {
            "key": M1,
            "state": "push_failed",
            "kind": "webpush",
        }
        it.advance(1_000)
        await it.look()
        assert len(it.notifier.keys) == 2


async def test_no_receipt_is_lost_while_the_bus_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as it:
        it.notifier.usual = Answer("failed", "status 400")
        await store(it.bus, push("m1", ack={"receipt": True}))
        it.advance(7)

        async def away(drafts: list[Draft]) -> list[BusUnavailable]:
            return [BusUnavailable("away")] * len(drafts)

        monkeypatch.setattr(it.bus, "append", away)
        await it.look()
        monkeypatch.undo()
        assert await it.bus.newest("receipts:tests", None, 10) == []
        it.advance(80)
        await it.look()
        assert len(await it.bus.newest("receipts:tests", None, 10)) == 1


async def test_what_was_acknowledged_while_it_waited_for_its_turn_is_not_sent() -> None:
    async with opened(concurrency=1) as it:
        await it.devices.register("bob", subscription("other"), None)
        it.notifier.go.clear()
        await store(it.bus, push("m1", push={"when": "always"}))
        await it.pushing.push()
        await it.begun(1)
        it.advance(5)
        await it.bus.outbox.change([Acknowledge("bob", M1)])
        it.notifier.go.set()
        await it.settled()
        await it.look()
        assert it.notifier.keys == [M1]
        assert not it.bus.sendings._sendings


async def test_a_first_deadline_that_is_the_last_one_too_is_pushed_whoever_looks_first() -> None:
    async with opened() as it:
        await store(it.bus, push("m1", ack={"deadline": 30, "deliveries": 1}))
        await it.bus.outbox.change([Written("bob", M1, 1)])
        it.advance(7)
        await it.look()
        # Whoever sees to deadlines was first.
        it.advance(23.1)
        (given_up,) = await it.bus.outbox.change([GiveUp("bob", M1, 1, "deliveries")])
        assert isinstance(given_up, Outcome)
        assert given_up.result == "made"
        await it.look()
        assert it.notifier.keys == [M1]


async def test_a_mistake_ends_no_task_that_delivery_depends_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened() as it:
        looked = asyncio.Event()

        async def mistaken(limit: int, late: int = 0) -> Any:
            if looked.is_set():
                await asyncio.Event().wait()
            looked.set()
            raise ValueError("https://push.example/bob")

        monkeypatch.setattr(it.bus.sendings, "due", mistaken)
        (work,) = it.pushing.works
        task = asyncio.create_task(work())
        await looked.wait()
        it.pushing.wake()
        await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()


async def test_what_nobody_pushes_any_more_is_forgotten_at_its_end() -> None:
    """Its keys were taken away; else it would take up room for ever."""
    async with opened() as it:
        none = Pushing(
            it.bus,
            it.devices,
            [],
            words=None,
            receipt_ttl=1,
            observer=it.counter,
            monotonic=it.clock.monotonic,
        )
        await store(it.bus, push("m1", ttl=100), push("m2", ttl=3_600))
        it.advance(300)
        await none.clear()
        assert len(it.bus.sendings._sendings) == 2, "somebody may be about to see to it"
        it.advance(400)
        await none.clear()
        assert list(it.bus.sendings._sendings) == [key("m2")]
        await none.close()


async def test_a_kind_that_is_off_here_is_left_to_others() -> None:
    async with opened(users=()) as it:
        await it.devices.register("bob", Fcm("t", b""), None)
        await store(it.bus, push("m1", ack=None))
        await it.look()
        assert it.notifier.keys == []
        fcm = FakeNotifier("fcm")
        other = Pushing(
            it.bus,
            it.devices,
            [fcm],
            words=None,
            receipt_ttl=1,
            observer=it.counter,
            monotonic=it.clock.monotonic,
        )
        it.advance(1.1)
        await other.push()
        await asyncio.gather(*other._tasks)
        assert fcm.keys == [M1]


async def test_no_more_are_under_way_than_may_be_and_none_is_claimed_beyond() -> None:
    users = tuple(f"u{number}" for number in range(100))
    async with opened(users=users, concurrency=8) as it:
        it.notifier.go.clear()
        await store(it.bus, *(push(f"m{n}", user=user, ack=None) for n, user in enumerate(users)))
        looking = asyncio.create_task(it.look())
        await it.begun(8)
        await asyncio.sleep(0.05)
        assert (it.notifier.most, len(it.notifier.keys)) == (8, 8)
        now, left = await it.bus.sendings.due(256)
        assert len(left) == 92, "another instance may have all the others"
        await it.bus.sendings.settle([msgspec.structs.replace(each, next=now) for each, _ in left])
        it.notifier.go.set()
        await looking
        assert it.notifier.most == 8
        assert len(set(it.notifier.keys)) == len(it.notifier.keys) == 100


async def test_a_burst_is_spread_so_that_streams_have_their_turns() -> None:
    users = tuple(f"u{number}" for number in range(120))
    async with opened(users=users, concurrency=120) as it:
        began = asyncio.get_running_loop().time()
        await store(it.bus, *(push(f"m{n}", user=user, ack=None) for n, user in enumerate(users)))
        await it.look()
        took = asyncio.get_running_loop().time() - began
        assert len(it.notifier.keys) == 120
        assert took >= (120 - 1) / PACE - SLACK


async def test_who_dies_while_sending_is_followed_by_another_in_a_minute() -> None:
    async with opened() as it:
        it.notifier.go.clear()
        await store(it.bus, push("m1", ack=None))
        await it.pushing.push()
        await it.begun(1)
        assert it.notifier.keys == [M1]
        await it.pushing.close()
        it.notifier.go.set()
        it.advance(59)
        await it.look()
        assert it.notifier.keys == [M1]
        it.advance(2)
        await it.look()
        assert it.notifier.keys == [M1, M1]


async def test_who_leaves_ends_what_is_under_way_and_gives_the_rest_back_at_once() -> None:
    async with opened(concurrency=1) as it:
        await it.devices.register("bob", subscription("other"), None)
        it.notifier.go.clear()
        await store(it.bus, push("m1", ack=None))
        await it.pushing.push()
        await it.begun(1)
        leaving = asyncio.create_task(it.pushing.close())
        await asyncio.sleep(0)
        it.notifier.go.set()
        await leaving
        assert len(it.notifier.keys) == 1
        ((left, _),) = (await it.bus.sendings.due(10))[1]
        assert left.left is not None
        assert len(left.left) == 1, "who was sent to isn't again"


async def test_what_waited_too_long_for_its_turn_is_left_to_the_next() -> None:
    """Else it would be sent twice in a minute: by who has it then, too."""
    async with opened(concurrency=1) as it:
        await it.devices.register("bob", subscription("other"), None)
        it.notifier.go.clear()
        await store(it.bus, push("m1", ack=None))
        await it.pushing.push()
        await it.begun(1)
        it.advance(46)
        it.notifier.go.set()
        await it.settled()
        assert len(it.notifier.keys) == 1
        await it.look()
        assert len({address for address, _ in it.notifier.sent}) == 2


async def test_whatever_a_notifier_waits_for_it_is_given_up_before_another_is_given_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert BEGINS + pushing.ANSWERED * 1000 < LEASE
    monkeypatch.setattr(pushing, "ANSWERED", 0.01)
    async with opened() as it:
        it.notifier.go.clear()
        await store(it.bus, push("m1", ack=None))
        async with asyncio.timeout(5):
            await it.look()
        assert it.counter.told == [("webpush", "later")]
        it.notifier.go.set()
        it.advance(80)
        await it.look()
        assert it.notifier.keys == [M1, M1]


async def test_a_notifier_s_mistake_is_no_end_and_tells_nothing_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened() as it:
        it.notifier.script.append(ValueError("https://push.example/bob"))
        await store(it.bus, push("m1", ack=None))
        await it.look()
        it.advance(80)
        await it.look()
        assert it.notifier.keys == [M1, M1]
    assert "ValueError" in caplog.text
    assert "push.example" not in caplog.text


async def test_nothing_is_lost_while_its_keeper_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as it:
        await store(it.bus, push("m1", ack=None))
        real = it.bus.sendings.settle
        refused = 0

        async def away(sendings: list[Sending]) -> list[bool | BusUnavailable]:
            nonlocal refused
            refused += 1
            return [BusUnavailable("away")] * len(sendings)

        async def no_pause(_: float) -> None:
            pass

        monkeypatch.setattr(it.bus.sendings, "settle", away)
        monkeypatch.setattr(asyncio, "sleep", no_pause, raising=True)
        await it.pushing.push()
        await asyncio.gather(*it.pushing._tasks)
        assert refused == 3
        monkeypatch.undo()
        assert it.bus.sendings.settle == real
        it.advance(61)
        await it.look()
        assert it.notifier.keys == [M1, M1]


async def test_no_endpoint_or_text_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened() as it:
        for answer in (Answer("failed", "status 400"), LATER, Answer("gone", "status 410")):
            it.notifier.script.append(answer)
            await store(it.bus, push(None, ack=None, push={"title": "A secret title"}))
            await it.look()
    assert "status 400" in caplog.text
    assert not any(each in caplog.text for each in ("push.example", "secret", "Hello"))


# What may be asked for


def rejected(**options: Any) -> str:
    with pytest.raises(Invalid) as refused:
        push("m1", **options)
    return str(refused.value)


def test_what_can_t_be_pushed_is_refused_with_the_place_of_the_fault() -> None:
    assert "/metadata/push/when" in rejected(push={"when": "offline"}, ack=None)
    assert 'only "always" is possible' in rejected(push={"when": "offline"}, ack=None)
    assert "/metadata/push/when" in rejected(push={"when": "sometimes"})
    assert "/metadata/push/title" in rejected(push={"title": "x" * 201})
    assert "/metadata/push/body" in rejected(push={"body": "x" * 1_001})
    assert "/metadata/push/collapse" in rejected(push={"collapse": ""})
    assert "/metadata/push/sound" in rejected(push={"sound": "x"})
    assert "/metadata/push" in rejected(push="yes")
    for name in ("url", "icon"):
        for wrong in ("javascript:alert(1)", "//example.com", "http://example.com", "x"):
            assert f"/metadata/push/{name}" in rejected(push={name: wrong})
    assert "/target/user_id" in rejected(user="..", ack=None)


def test_without_a_user_or_a_provider_nothing_can_be_pushed() -> None:
    body = b'{"type":"info","service":"s","channels":["a"],"metadata":{"push":true}}'
    with pytest.raises(Invalid, match=r"needs target[.]user_id"):
        draft(parse(body), 0, "id", 60, push_delay=5)
    with pytest.raises(Invalid, match="VAPID_PRIVATE_KEY"):
        draft(parse(push_body("m1", ack=None)), 0, "id", 60)


def test_readers_see_nothing_of_it_and_its_content_is_what_counts() -> None:
    one = push("m1", push={"title": "A"})
    assert b"push" not in one.body
    assert one.digest != push("m1", push={"title": "B"}).digest
    assert one.digest != push("m1", push=None).digest
    assert push("m1", push=True).digest == push("m1", push={"when": "unacknowledged"}).digest
    assert push("m1", push=False).digest == push("m1", push=None).digest
    assert one.push is not None
    assert one.push.push == Push("unacknowledged", "A")
    assert push("m1", push=False).push is None


# Words


def test_a_word_is_good_for_its_user_and_key_and_time_alone() -> None:
    word = WORDS.make("bob", "s/1", 1_000)
    assert WORDS.good(word, "bob", "s/1", 999.9)
    assert not WORDS.good(word, "bob", "s/1", 1_000)
    assert not WORDS.good(word, "bob", "s/2", 0)
    assert not WORDS.good(word, "eve", "s/1", 0)
    assert not WORDS.good("2" + word, "bob", "s/1", 0)
    assert not WORDS.good(word[:-1], "bob", "s/1", 0)
    assert not WORDS.good(word + "\n", "bob", "s/1", 0)
    assert not Words(b"another").good(word, "bob", "s/1", 0)
    assert WORDS.make("a", "b\n1:c", 1) != WORDS.make("a\n1:b", "c", 1)
    for nonsense in ("", ".", "1.", "x.y", "1." + "é" * 32):
        assert not WORDS.good(nonsense, "bob", "s/1", 0)
