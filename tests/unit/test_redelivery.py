"""Messages that want acknowledgements: which streams are given them, how often, and until when."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from msgpush.adapters.sse.stream import EventView
from msgpush.domain.errors import BusUnavailable, MailboxFull, NotDue, Rejection
from msgpush.domain.message import Draft, parse
from msgpush.domain.observer import Observer
from msgpush.domain.ports import Stored
from msgpush.domain.redelivery import PAGE, Acknowledged
from tests.support.asking import body_of, key
from tests.support.fakes import make
from tests.support.streams import Instance, Stream

FULL = {"deadline": 30, "deliveries": 5, "receipt": False, "collapse": None}


class Tally(Observer):
    """Remembers what became of messages."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def acknowledged(self, service: str, type: str, seconds: float) -> None:
        self.events.append(("acknowledged", service, seconds))

    def redelivered(self, drafts: Sequence[Draft]) -> None:
        self.events += [("redelivered", draft.id) for draft in drafts]

    def died(self, service: str, type: str, reason: str) -> None:
        self.events.append(("died", service, reason))

    def buried(self, service: str) -> None:
        self.events.append(("buried", service))


@pytest.fixture
async def home() -> AsyncIterator[Instance]:
    async with Instance() as instance:
        yield instance


# States


async def test_a_message_is_accepted_until_a_stream_of_its_user_takes_it_live(
    home: Instance,
) -> None:
    await home.publish("m1")
    assert await home.state("m1") == "accepted"
    stream = await home.connect()
    await home.publish("m2")
    await home.report()
    assert stream.live == ["m2"]
    assert await home.state("m2") == "written"
    record = await home.record("m2")
    assert (record.deliveries, record.status().next_at) == (1, record.accepted_at + 30_000)


async def test_a_message_that_is_replayed_is_written(home: Instance) -> None:
    first = await home.open()
    home.leave(first)
    await home.publish("m1")
    again = await home.connect(after=first.cursor)
    await home.report()
    assert again.got == ["m1"]
    assert await home.state("m1") == "written"
    assert (await home.record("m1")).deliveries == 1


async def test_a_message_that_is_shown_as_a_stream_opens_is_written_and_uses_nothing_up(
    home: Instance,
) -> None:
    await home.publish("m1", priority="high", data={"x": 1})
    stream = await home.open()
    assert (stream.live, stream.shown) == ([], ["m1"])
    record = await home.record("m1")
    assert stream.sink.lines[1] == "pending " + record.body.decode()
    assert record.status().state == "written"
    assert (record.deliveries, record.next) == (0, record.accepted_at + 30_000)


async def test_what_all_sinks_refuse_is_not_written(home: Instance) -> None:
    streams = [await home.open(full=True) for _ in range(2)]
    await home.publish("m1")
    await home.report()
    assert await home.state("m1") == "accepted"
    streams[0].sink.drain()
    await home.settle()
    await home.show()
    assert streams[0].got == ["m1"]
    assert (await home.record("m1")).deliveries == 1


async def test_when_it_was_written_counts_not_when_that_was_reported(home: Instance) -> None:
    await home.open()
    await home.publish("m1")
    home.clock.advance(12)
    await home.report()
    record = await home.record("m1")
    assert record.written_at == record.accepted_at
    assert record.next == record.accepted_at + 30_000


# Redelivery


async def test_due_and_unacknowledged_it_comes_again_whole_for_its_user_alone(
    home: Instance,
) -> None:
    stream, other = await home.open(), await home.open(user="eve")
    service = await home.open("service:tests", acts=False)
    await home.publish("m1", "kb:1", data={"x": 1.50}, ttl=100)
    await home.report()
    home.clock.advance(29.5)
    await home.repeat()
    assert stream.live == ["m1"]
    home.clock.advance(0.5)
    await home.repeat()
    first, second = stream.messages
    assert first["metadata"] == {"priority": "normal", "ttl": 100, "retry_count": 0, "ack": FULL}
    assert second["metadata"] == {"priority": "normal", "ttl": 70, "retry_count": 1, "ack": FULL}
    assert {**second, "metadata": 0} == {**first, "metadata": 0}
    assert other.got == []
    assert service.live == ["m1"]
    assert await home.histories("user:bob", "kb:1", "service:tests") == [["m1"]] * 3
    assert (await home.record("m1")).deliveries == 2


async def test_it_comes_again_after_ever_longer_times_and_is_given_up_after_its_deliveries() -> (
    None
):
    tally = Tally()
    async with Instance(observer=tally) as home:
        stream = await home.open()
        await home.publish("m1", deadline=10, deliveries=4, ttl=10_000)
        await home.report()
        times: list[int] = []
        for second in range(1, 400):
            await home.pass_time(1)
            if len(stream.live) > len(times) + 1:
                times.append(second)
        assert times == [10, 30, 70]
        assert [each["metadata"]["retry_count"] for each in stream.messages] == [0, 1, 2, 3]
        record = await home.record("m1")
        assert (record.state, record.reason, record.deliveries) == ("dead", "deliveries", 4)
        assert record.ended_at == record.accepted_at + 150_000
        assert tally.events == [*[("redelivered", "m1")] * 3, ("died", "tests", "deliveries")]
        letters = await home.redelivery.dead_letters("tests", None, 10, 1_000_000)
        assert [each.id for each in letters.records] == ["m1"]


async def test_a_message_whose_time_runs_out_is_given_up(home: Instance) -> None:
    await home.publish("m1", ttl=60)
    home.clock.advance(59)
    await home.repeat()
    assert await home.state("m1") == "accepted"
    home.clock.advance(1)
    await home.repeat()
    record = await home.record("m1")
    assert (record.state, record.reason, record.deliveries) == ("dead", "expired", 0)
    assert (await home.open()).got == []


async def test_nothing_is_appended_again_and_again_for_a_user_who_isnt_there(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1", ttl=604_800)
    await home.report()
    home.leave(stream)
    await home.pass_time(60)
    end = await home.bus.end()
    record = await home.record("m1")
    assert (record.phase, record.attempt, record.deliveries) == ("parked", 2, 1)
    await home.pass_time(5 * 86_400, 600)
    assert await home.bus.end() == end
    assert await home.record("m1") == record


async def test_an_attempt_that_nobody_takes_uses_nothing_up_and_comes_to_the_stream_that_opens(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1", deliveries=2)
    await home.report()
    home.leave(stream)
    await home.pass_time(60)
    assert (await home.record("m1")).attempt == 2
    back = await home.open()
    assert back.got == ["m1"]
    assert (await home.record("m1")).deliveries == 1
    await home.pass_time(31)
    # What it was shown used nothing up, nor did the attempt that nobody took.
    assert back.shown == ["m1"]
    assert back.live == ["m1"]
    assert (await home.record("m1")).deliveries == 2


async def test_a_parked_one_is_delivered_at_once_to_a_stream_that_resumes_after_it(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.report()
    home.leave(stream)
    await home.pass_time(60)
    await home.publish(None, user="eve")
    other = await home.open(user="eve")
    later = await home.connect(after=other.cursor)
    home.leave(other)
    await home.pass_time(1)
    assert later.got == ["m1"]
    assert later.messages[0]["metadata"]["retry_count"] == 2
    assert (await home.record("m1")).deliveries == 2


async def test_a_message_of_a_release_to_come_is_delivered_again_with_all_it_has(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1", deadline=1)
    await home.publish("m2", deadline=1)
    await home.report()
    record = home.outbox._records[key("m1")]
    record.body = record.body.replace(b'"priority"', b'"later":[1.50],"priority"')
    home.clock.advance(1)
    await home.repeat()
    assert stream.live == ["m1", "m2", "m1", "m2"]
    assert stream.messages[2]["metadata"]["later"] == [1.5]


async def test_the_most_urgent_of_what_is_due_goes_first(home: Instance) -> None:
    stream = await home.open()
    order = ["low", "urgent", "normal", "high"]
    for name in order:
        await home.publish(name, priority=name)
    await home.report()
    home.clock.advance(30)
    await home.repeat()
    assert stream.live[4:] == ["urgent", "high", "normal", "low"]


async def test_an_acknowledgement_between_reading_and_appending_stops_the_redelivery(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.report()
    home.clock.advance(30)
    real = home.outbox.due

    async def due(limit: int) -> Any:
        found = await real(limit)
        await home.acknowledge("m1")
        return found

    home.outbox.due = due  # type: ignore[method-assign]
    await home.repeat()
    assert stream.live == ["m1"]


async def test_what_an_instance_takes_and_doesnt_do_another_does_within_fifteen_seconds(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.report()
    home.clock.advance(30)
    _, taken = await home.outbox.due(256)
    assert len(taken) == 1
    async with Instance(beside=home) as other:
        await other.repeat()
        assert stream.live == ["m1"]
        home.clock.advance(15)
        await other.repeat()
        await home.settle()
        assert stream.live == ["m1", "m1"]


async def test_a_delivery_that_the_bus_refuses_is_tried_again(home: Instance) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.report()
    home.clock.advance(30)
    home.bus.refused = None
    await home.repeat()
    home.bus.refused = frozenset()
    home.clock.advance(15)
    await home.repeat()
    assert stream.live == ["m1", "m1"]
    assert (await home.record("m1")).attempt == 2


async def test_reports_are_kept_while_the_outbox_is_away(home: Instance) -> None:
    await home.open()
    await home.publish("m1")
    home.outbox.away = True
    await home.report()
    home.clock.advance(20)
    await home.report()
    home.outbox.away = False
    assert await home.state("m1") == "accepted"
    await home.report()
    record = await home.record("m1")
    assert (record.deliveries, record.next) == (1, record.accepted_at + 30_000)


async def test_a_stream_that_takes_it_at_another_instance_counts(home: Instance) -> None:
    async with Instance(beside=home) as other:
        stream = await other.open()
        await home.publish("m1")
        await other.settle()
        await other.report()
        assert stream.live == ["m1"]
        assert (await home.record("m1")).deliveries == 1
        home.clock.advance(30)
        await home.repeat()
        await other.settle()
        await other.report()
        assert stream.live == ["m1", "m1"]
        assert (await home.record("m1")).deliveries == 2


async def test_a_newer_message_takes_the_place_of_an_older_one_that_collapses_with_it(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1", collapse="c")
    await home.publish("m2", collapse="c")
    await home.tell()
    assert await home.state("m1") == "withdrawn"
    assert stream.words == [{"keys": [key("m1")], "state": "withdrawn"}]
    assert (await home.open()).got == ["m2"]


async def test_what_was_replaced_while_the_outbox_was_away_is_withdrawn_when_it_is_due(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1", collapse="c")
    await home.report()
    home.outbox.away = True
    await home.publish("m2", collapse="c")
    home.outbox.away = False
    await home.report()
    assert await home.state("m1") == "written"
    home.clock.advance(30)
    await home.repeat()
    assert stream.live == ["m1", "m2", "m2"]
    assert await home.state("m1") == "withdrawn"


# A stream that opens


async def test_each_stream_has_each_pending_message_once_and_nothing_else_has_changed(
    home: Instance,
) -> None:
    """Ten streams of a user, then one more device, and five reloads of a page."""
    streams = [await home.open() for _ in range(10)]
    ids = [f"m{n}" for n in range(20)]
    for id in ids:
        await home.publish(id)
    await home.report()
    before = [await home.record(id) for id in ids]
    ring = [entry.position for entry in home.push._hub.log.ring._all]
    end = await home.bus.end()
    device = await home.open()
    for _ in range(5):
        page = await home.open()
        assert (page.live, page.shown) == ([], ids)
        home.leave(page)
        home.clock.advance(1)
        await home.repeat()
    assert (device.live, device.shown) == ([], ids)
    for stream in streams:
        assert (stream.live, stream.shown) == (ids, [])
    assert [await home.record(id) for id in ids] == before
    assert await home.histories("user:bob", "service:tests") == [ids, ids]
    assert await home.bus.end() == end
    assert [entry.position for entry in home.push._hub.log.ring._all] == ring


@pytest.mark.parametrize("how", ["new", "cursor", "uncovered", "earliest", "foreign", "latest"])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_who_was_offline_for_an_hour_gets_all_that_is_pending(
    how: str, elsewhere: bool
) -> None:
    async with Instance(history_length=5) as home:
        before = await home.open()
        if how != "uncovered":
            await home.publish("was", ttl=10_000)
            await home.report()
            await home.acknowledge("was")
        home.leave(before)
        priorities = ["low", "normal", "high", "urgent"]
        if how == "cursor":
            priorities = ["normal"]
        ids = [f"{name}{n}" for n in range(1 if how == "cursor" else 4) for name in priorities]
        for id in ids:
            await home.publish(id, priority=id[:-1], ttl=10_000)
        await home.pass_time(3_600, 60)
        cursors = {
            "new": None,
            "cursor": before.cursor,
            "uncovered": before.cursor,
            "earliest": "earliest",
            "foreign": "1otherlog.5-0",
            "latest": "latest",
        }
        if not elsewhere:
            await check_back(home, cursors[how], ids)
        else:
            async with Instance(beside=home) as other:
                await check_back(other, cursors[how], ids)


async def check_back(instance: Instance, after: str | None, ids: list[str]) -> None:
    stream = await instance.connect(after=after)
    await instance.pass_time(3)
    got = [id for id in stream.got if id != "was"]
    assert Counter(got) == Counter(ids)
    urgent = sorted(stream.shown, key=lambda id: (-RANKS[id[:-1]], ids.index(id)))
    assert stream.shown == urgent
    for id in ids:
        assert (await instance.record(id)).status().state == "written"


RANKS = {"low": 0, "normal": 1, "high": 2, "urgent": 3}


async def test_who_resumes_isnt_shown_what_another_stream_took_before_its_cursor(
    home: Instance,
) -> None:
    await home.publish("m1")
    first = await home.open()
    await home.publish("m2")
    await home.report()
    again = await home.open(after=first.cursor)
    assert again.got == []


async def test_who_resumes_is_shown_what_no_stream_took_before_its_cursor(home: Instance) -> None:
    await home.publish("m1")
    looker = await home.open("user:bob", acts=False)
    await home.publish("m2")
    again = await home.open(after=looker.cursor)
    assert (again.live, again.shown) == ([], ["m1", "m2"])


async def test_who_reconnects_all_the_time_doesnt_put_off_a_deadline(home: Instance) -> None:
    stream = await home.open()
    await home.publish("m1", deadline=30)
    await home.report()
    got = 0
    for _ in range(4):
        home.clock.advance(15)
        await home.repeat()
        got += stream.live.count("m1")
        home.leave(stream)
        stream = await home.open(after=stream.cursor)
    got += stream.live.count("m1")
    assert got == 2
    assert (await home.record("m1")).deliveries == 2


async def test_what_comes_while_a_stream_opens_comes_once(home: Instance) -> None:
    await home.publish("m1")
    stream = await home.connect()
    await home.publish("m2")
    await home.show()
    await home.publish("m3")
    await home.show()
    assert (stream.live, stream.shown) == (["m2", "m3"], ["m1"])


async def test_what_was_acknowledged_before_is_shown_to_nobody(home: Instance) -> None:
    await home.publish("m1")
    await home.publish("m2")
    stream = await home.connect()
    await home.acknowledge("m1")
    await home.show()
    assert stream.got == ["m2"]


@pytest.mark.parametrize("options", [{"acts": False}, {"user": "eve"}])
async def test_a_stream_that_isnt_the_users_counts_for_nothing_and_is_shown_nothing(
    home: Instance, options: dict[str, Any]
) -> None:
    await home.publish("m1")
    stream = await home.open("user:bob", "service:tests", **options)
    assert stream.got == []
    await home.publish("m2")
    await home.report()
    assert stream.live == ["m2"]
    for id in ("m1", "m2"):
        record = await home.record(id)
        assert (record.status().state, record.deliveries) == ("accepted", 0)
    await home.acknowledge("m2")
    await home.tell()
    assert stream.words == []


async def test_a_stream_of_the_user_that_doesnt_listen_to_the_users_channel_is_none(
    home: Instance,
) -> None:
    stream = await home.open("service:tests", acts=False)
    await home.publish("m1")
    await home.report()
    assert stream.live == ["m1"]
    assert await home.state("m1") == "accepted"


async def test_filters_hold_for_what_is_pending_as_for_all_else(home: Instance) -> None:
    await home.publish("low", priority="low")
    await home.publish("high", priority="high", type="warning")
    await home.publish("urgent", priority="urgent", type="info")
    await home.publish("warning", type="warning")
    assert (await home.connect(least="high")).got == []
    streams = [
        await home.open(types=["warning"]),
        await home.open(least="high"),
        await home.open(types=["warning"], least="high"),
        await home.open(types=["error"]),
    ]
    assert [each.shown for each in streams] == [
        ["high", "warning"],
        ["urgent", "high"],
        ["high"],
        [],
    ]
    assert await home.state("low") == "accepted"
    await home.publish("next", priority="high", type="warning")
    await home.publish("info")
    await home.report()
    assert [each.live for each in streams] == [["next"], ["next"], ["next"], []]
    assert await home.state("next") == "written"
    assert await home.state("info") == "accepted"


async def test_a_socket_that_takes_a_page_at_a_time_is_shown_each_message_once(
    home: Instance,
) -> None:
    ids = [f"m{n:03d}" for n in range(2 * PAGE + 10)]
    for id in ids:
        await home.publish(id)
    stream = await home.connect(full=True)
    await home.show()
    assert stream.shown == []
    assert await home.state("m000") == "accepted"
    stream.sink.drain()
    while len(stream.shown) < PAGE:
        await home.settle()
    await home.settle()
    assert stream.got == ids
    assert len(stream.sink.chunks) == 4
    await home.report()
    assert {await home.state(id) for id in ids} == {"written"}


async def test_a_socket_that_fills_up_between_pages_goes_on_where_it_was(home: Instance) -> None:
    ids = [f"m{n:03d}" for n in range(3 * PAGE)]
    for id in ids:
        await home.publish(id)
    stream = await home.connect()
    real = stream.sink.offer

    def offer(chunk: bytes) -> bool:
        taken = real(chunk)
        stream.sink.full = True
        return taken

    stream.sink.offer = offer  # type: ignore[method-assign]
    await home.show()
    for pages in (1, 2, 3):
        assert stream.shown == ids[: pages * PAGE]
        stream.sink.drain()
        await home.settle()
    assert stream.got == ids


async def test_what_is_acknowledged_while_pages_wait_isnt_shown_any_more(home: Instance) -> None:
    ids = [f"m{n:03d}" for n in range(2 * PAGE)]
    for id in ids:
        await home.publish(id)
    stream = await home.connect(full=True)
    await home.show()
    await home.acknowledge(*ids[:100])
    stream.sink.drain()
    await home.settle()
    assert stream.shown == ids[100:]


async def test_a_stream_that_goes_while_it_is_shown_pages_leaves_nothing_behind(
    home: Instance,
) -> None:
    await home.publish("m1")
    stream = await home.connect(full=True)
    await home.show()
    assert home.redelivery._tasks
    home.leave(stream)
    await home.settle()
    assert not home.redelivery._tasks
    assert stream.got == []
    assert await home.state("m1") == "accepted"


async def test_a_stream_that_falls_behind_and_comes_back_has_all_of_it_once(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.report()
    stream.sink.full = True
    for id in ("m2", "m3"):
        await home.publish(id)
    await home.show()
    assert await home.state("m2") == "accepted"
    stream.sink.drain()
    await home.settle()
    await home.show()
    assert (stream.live, stream.shown) == (["m1", "m2", "m3"], [])
    assert {await home.state(id) for id in ("m1", "m2", "m3")} == {"written"}
    await home.publish("m4")
    assert stream.live[-1] == "m4"


async def test_a_stream_that_is_back_from_behind_is_given_what_was_parked_meanwhile(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.report()
    stream.sink.full = True
    await home.pass_time(60)
    record = await home.record("m1")
    assert (record.phase, record.attempt, record.deliveries) == ("parked", 2, 1)
    stream.sink.drain()
    await home.settle()
    await home.pass_time(2)
    # The ring still has the second attempt.
    assert stream.live == ["m1", "m1"]
    assert (await home.record("m1")).deliveries == 2


async def test_a_stream_that_is_back_from_behind_a_gap_is_shown_what_the_gap_covers() -> None:
    async with Instance(history_length=3) as home:
        stream = await home.open()
        await home.publish("m0")
        await home.report()
        stream.sink.full = True
        ids = [f"m{n}" for n in range(1, 9)]
        for id in ids:
            await home.publish(id)
        home.push._hub.log.ring.clear(home.push._hub.log.head)
        stream.sink.drain()
        await home.settle()
        await home.show()
        assert len(stream.sink.gaps) == 1
        assert sorted(stream.got) == ["m0", *ids]
        assert set(stream.shown) == set(ids) - set(stream.live)
        assert {await home.state(id) for id in ids} == {"written"}


async def test_a_gap_in_a_users_namesake_covers_nothing_of_the_users() -> None:
    async with Instance(history_length=3) as home:
        stream = await home.open("user:bob", "bob")
        await home.publish("m1")
        await home.report()
        home.leave(stream)
        await home.open()
        home.clock.advance(30)
        await home.repeat()
        await home.push.store([make(None, "bob") for _ in range(8)])
        await home.settle()
        home.push._hub.log.ring.clear(home.push._hub.log.head)
        again = await home.open("user:bob", "bob", after=stream.cursor)
        assert [gap.channel for gap in again.sink.gaps] == ["bob"]
        assert again.shown == []


async def test_a_redelivery_whose_time_is_over_is_no_gap(home: Instance) -> None:
    first = await home.open()
    await home.publish("m1", deadline=1, ttl=3)
    await home.report()
    cursor = first.cursor
    home.leave(first)
    second = await home.open(after=cursor)
    home.clock.advance(1)
    await home.repeat()
    assert second.live == ["m1"]
    home.clock.advance(3)
    again = await home.connect(after=cursor)
    assert again.got == []
    assert again.sink.gaps == []


async def test_one_look_is_for_all_that_have_opened_however_many(home: Instance) -> None:
    for n in range(50):
        await home.connect(user=f"u{n % 20}")
    await home.publish("m1", user="u3")
    home.outbox.calls.clear()
    await home.redelivery.open()
    await home.redelivery.open()
    assert home.outbox.calls == ["waiting 20"]
    await home.settle()
    assert home.outbox.calls == ["waiting 20", *["page"] * 3]


async def test_of_more_users_than_one_look_is_for_the_others_are_next(home: Instance) -> None:
    for n in range(1_005):
        await home.connect(user=f"u{n}")
    await home.publish("first", user="u0")
    await home.publish("last", user="u1004")
    home.outbox.calls.clear()
    await home.show()
    await home.show()
    assert [each for each in home.outbox.calls if each.startswith("waiting")] == [
        "waiting 1000",
        "waiting 5",
    ]


async def test_what_cant_be_looked_up_is_shown_when_it_can_again(home: Instance) -> None:
    await home.publish("m1")
    home.outbox.away = True
    stream = await home.open()
    assert stream.got == []
    home.outbox.away = False
    await home.show()
    assert stream.got == ["m1"]


async def test_a_page_that_cant_be_read_is_read_again(home: Instance) -> None:
    await home.publish("m1")
    stream = await home.connect()
    await home.redelivery.open()
    home.outbox.away = True
    await home.settle()
    assert stream.got == []
    home.outbox.away = False
    await home.settle()
    assert stream.got == ["m1"]


# Acknowledged


async def test_an_acknowledgement_is_counted_once_and_nothing_comes_again() -> None:
    tally = Tally()
    async with Instance(observer=tally) as home:
        stream = await home.open()
        await home.publish("m1")
        await home.report()
        home.clock.advance(5)
        keys = [key("m1"), key("m1"), key("nothing"), "x"]
        for _ in range(2):
            answer = await home.redelivery.acknowledge("bob", keys)
            assert answer == Acknowledged([key("m1")], [key("nothing"), "x"])
        other = await home.redelivery.acknowledge("eve", keys)
        assert other == Acknowledged([], [key("m1"), key("nothing"), "x"])
        await home.pass_time(100)
        assert stream.live == ["m1"]
        assert tally.events == [("acknowledged", "tests", 5.0)]


async def test_who_answers_before_the_report_has_had_it_written_and_delivered(
    home: Instance,
) -> None:
    await home.open()
    await home.publish("m1")
    await home.acknowledge("m1")
    record = await home.record("m1")
    assert (record.state, record.deliveries) == ("acknowledged", 1)
    assert record.written_at is not None


async def test_a_report_that_went_along_with_a_word_in_vain_is_made_later(home: Instance) -> None:
    await home.open()
    await home.publish("m1")
    home.outbox.away = True
    with pytest.raises(BusUnavailable):
        await home.acknowledge("m1")
    home.outbox.away = False
    await home.report()
    assert (await home.record("m1")).deliveries == 1


async def test_an_acknowledgement_that_may_not_be_made_is_an_error_and_may_be_repeated(
    home: Instance,
) -> None:
    await home.publish("m1")
    home.outbox.away = True
    with pytest.raises(BusUnavailable):
        await home.acknowledge("m1")
    home.outbox.away = False
    assert await home.acknowledge("m1") == [key("m1")]


async def test_the_users_streams_are_told_live_and_nobody_else_is(home: Instance) -> None:
    streams = [await home.open(), await home.open("user:bob", "service:tests", types=["error"])]
    async with Instance(beside=home) as other:
        streams.append(await other.open())
        strangers = [
            await home.open(user="eve"),
            await home.open("user:bob", "service:tests", "service:msgpush", acts=False),
        ]
        await home.publish("m1")
        await home.report()
        before = streams[0].cursor
        kept = await home.histories("user:bob", "service:tests", "service:msgpush")
        ring = len(home.push._hub.log.ring._all)
        await home.acknowledge("m1")
        await home.tell()
        await other.settle()
        word = {"keys": [key("m1")], "state": "acknowledged"}
        assert [each.words for each in streams] == [[word]] * 3
        assert [each.words for each in strangers] == [[], []]
        assert streams[0].cursor == before
        assert await home.histories("user:bob", "service:tests", "service:msgpush") == kept
        assert await home.histories("/acknowledged:bob") == [[]]
        assert len(home.push._hub.log.ring._all) == ring
        for after in (before, "earliest", None):
            assert (await other.open(after=after)).words == []
        # The second word would be one too many.
        await home.acknowledge("m1")
        await home.tell()
        assert [each.words for each in streams] == [[word]] * 3


async def test_word_of_an_acknowledgement_counts_as_no_message(home: Instance) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.acknowledge("m1")
    await home.tell()
    assert len(stream.words) == 1
    assert stream.connection.messages_sent == 1


async def test_many_that_are_acknowledged_at_once_are_told_a_hundred_at_a_time(
    home: Instance,
) -> None:
    stream = await home.open()
    ids = [f"m{n}" for n in range(150)]
    for id in ids:
        await home.publish(id)
    await home.acknowledge(*ids)
    await home.tell()
    assert [len(each["keys"]) for each in stream.words] == [100, 50]
    assert [name for each in stream.words for name in each["keys"]] == [key(id) for id in ids]


async def test_who_is_told_goes_on_with_what_comes_next(home: Instance) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.acknowledge("m1")
    await home.tell()
    await home.publish("m2")
    assert stream.live == ["m1", "m2"]
    again = await home.open(after=stream.cursor)
    await home.publish("m3")
    assert again.live == ["m3"]


async def test_who_takes_nothing_as_others_are_told_goes_on_and_misses_no_message(
    home: Instance,
) -> None:
    stream = await home.open()
    await home.publish("m1")
    stream.sink.full = True
    await home.acknowledge("m1")
    await home.tell()
    await home.publish("m2")
    stream.sink.drain()
    await home.settle()
    assert stream.live == ["m1", "m2"]
    assert stream.sink.gaps == []


async def test_what_is_withdrawn_is_told_and_never_tried_again(home: Instance) -> None:
    stream = await home.open()
    await home.publish("m1")
    await home.report()
    await home.redelivery.withdraw(await home.record("m1"))
    await home.pass_time(60)
    assert stream.words == [{"keys": [key("m1")], "state": "withdrawn"}]
    assert stream.live == ["m1"]
    assert await home.acknowledge("m1") == []


async def test_a_dead_letter_is_revived_for_its_user_at_once(home: Instance) -> None:
    stream = await home.open()
    await home.publish("m1", deliveries=1, ttl=1_000)
    await home.report()
    await home.pass_time(30)
    assert await home.state("m1") == "dead"
    await home.redelivery.revive(await home.record("m1"))
    await home.settle()
    await home.report()
    assert stream.live == ["m1", "m1"]
    assert stream.messages[1]["metadata"]["retry_count"] == 1
    assert stream.messages[1]["metadata"]["ttl"] == 1_000
    assert stream.messages[1]["metadata"]["ack"] == {**FULL, "deliveries": 1}
    assert (await home.record("m1")).deliveries == 1
    with pytest.raises(NotDue):
        await home.redelivery.revive(await home.record("m1"))
    assert await home.acknowledge("m1") == [key("m1")]


async def test_a_user_with_too_many_pending_messages_is_an_error_of_the_publish() -> None:
    async with Instance(max_pending=2) as home:
        await home.publish("m1")
        await home.publish("m2")
        with pytest.raises(MailboxFull):
            await home.publish("m3")
        assert await home.histories("user:bob") == [["m1", "m2"]]


# Receipts


async def receipts(home: Instance) -> list[dict[str, Any]]:
    (page,) = await home.bus.history(["receipts:tests"], None, 1_000)
    return [msgspec.json.decode(linked.entry.body) for linked in page.entries]


async def end(home: Instance, how: str, id: str = "m1") -> None:
    """Have a message end, one way or the other; it lives for 60 seconds."""
    if how == "acknowledged":
        await home.acknowledge(id)
    elif how == "withdrawn":
        await home.redelivery.withdraw(await home.record(id))
    else:
        await home.pass_time(60)


@pytest.mark.parametrize("how", ["acknowledged", "withdrawn", "dead"])
async def test_a_receipt_tells_the_publisher_what_became_of_a_message(
    home: Instance, how: str
) -> None:
    listener = await home.open("receipts:tests", acts=False)
    own = await home.open("service:msgpush", "service:tests", acts=False)
    await home.publish("m1", receipt=True, ttl=60)
    await home.publish("quiet", ttl=60)
    await end(home, how)
    await end(home, how, "quiet")
    await home.tell()
    (receipt,) = await receipts(home)
    record = await home.record("m1")
    assert receipt["type"] == ("error" if how == "dead" else "status")
    assert receipt["service"] == "msgpush"
    assert receipt["channels"] == ["receipts:tests"]
    data = receipt["data"]
    assert data.pop("at") == receipt["timestamp"]
    assert data == {
        "key": key("m1"),
        "state": how,
        "reason": "expired" if how == "dead" else None,
        "user_id": "bob",
        "deliveries": 0,
    }
    assert listener.live == [receipt["id"]]
    assert [id for id in own.live if id.startswith("receipt")] == []
    assert not record.owed
    await home.acknowledge("m1")
    if how == "acknowledged":
        await home.pass_time(60)
        assert len(await receipts(home)) == 1


@pytest.mark.parametrize("how", ["acknowledged", "withdrawn", "dead"])
async def test_a_receipt_that_the_bus_refused_is_made_up_for_once(home: Instance, how: str) -> None:
    await home.publish("m1", receipt=True, ttl=60)
    home.bus.refused = frozenset({"receipts:tests"})
    await end(home, how)
    await home.tell()
    await home.pass_time(20)
    assert await receipts(home) == []
    assert (await home.record("m1")).owed
    home.bus.refused = frozenset()
    await home.pass_time(40)
    assert [each["data"]["state"] for each in await receipts(home)] == [how]
    assert not (await home.record("m1")).owed


async def test_a_receipt_that_was_made_and_not_noted_isnt_made_twice(home: Instance) -> None:
    await home.publish("m1", receipt=True)
    await home.acknowledge("m1")
    home.outbox.away = True
    await home.tell()
    home.outbox.away = False
    assert (await home.record("m1")).owed
    await home.pass_time(40)
    assert len(await receipts(home)) == 1
    assert not (await home.record("m1")).owed


async def test_a_letter_that_is_acknowledged_after_its_death_has_both_receipts(
    home: Instance,
) -> None:
    await home.publish("m1", receipt=True, ttl=60)
    await home.pass_time(60)
    await home.acknowledge("m1")
    await home.tell()
    assert [each["data"]["state"] for each in await receipts(home)] == ["dead", "acknowledged"]


class FewReceipts:
    """Has a bus take some receipts and refuse others, in their order."""

    def __init__(self, home: Instance, takes: list[bool]) -> None:
        self._append, self._takes = home.bus.append, takes
        home.bus.append = self.append  # type: ignore[method-assign]

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | Rejection]:
        results: list[Stored | Rejection] = []
        for draft in drafts:
            if draft.id.startswith("receipt") and self._takes and not self._takes.pop(0):
                results.append(BusUnavailable("away", 0))
            else:
                results += await self._append([draft])
        return results


async def test_a_receipt_isnt_lost_where_the_one_before_it_was_taken_alone(home: Instance) -> None:
    await home.publish("m1", receipt=True, ttl=60)
    home.clock.advance(60)
    await home.redelivery.repeat()
    await home.acknowledge("m1")
    FewReceipts(home, [True, False])
    await home.pass_time(60)
    assert [each["data"]["state"] for each in await receipts(home)] == ["dead", "acknowledged"]


async def test_the_receipt_of_a_death_isnt_lost_where_the_user_acknowledges_before_it_is_taken(
    home: Instance,
) -> None:
    await home.publish("m1", receipt=True, ttl=60)
    home.clock.advance(60)
    await home.redelivery.repeat()
    FewReceipts(home, [False])
    await home.tell()
    await home.acknowledge("m1")
    await home.pass_time(60)
    assert [each["data"]["state"] for each in await receipts(home)] == ["dead", "acknowledged"]


async def test_the_receipt_of_a_death_isnt_lost_where_the_letter_is_revived_before_it_is_taken(
    home: Instance,
) -> None:
    await home.publish("m1", receipt=True, ttl=60)
    home.clock.advance(60)
    await home.redelivery.repeat()
    FewReceipts(home, [False])
    await home.tell()
    await home.redelivery.revive(await home.record("m1"))
    await home.pass_time(30)
    assert [each["data"]["state"] for each in await receipts(home)] == ["dead"]


async def test_a_dead_letter_whose_time_is_over_goes() -> None:
    tally = Tally()
    async with Instance(observer=tally, dead_letter_ttl=1_000) as home:
        await home.publish("m1", ttl=60)
        await home.pass_time(60)
        await home.pass_time(1_000, 100)
        assert await home.outbox.find(key("m1")) is None
        assert tally.events == [("died", "tests", "expired"), ("buried", "tests")]
        assert home.outbox.used == 0


# How it looks


def blocks(stream: Stream) -> list[str]:
    text = b"".join(stream.sink.chunks).decode()
    return [each for each in text.split("\n\n") if each]


async def test_a_message_that_asks_is_whole_and_without_a_name_in_every_view(
    home: Instance,
) -> None:
    view = EventView(frozenset({"progress", "error", "info"}))
    fields: dict[str, Any] = {"type": "progress", "data": {"progress": 5}}
    await home.publish("m0", **fields)
    stream = await home.open(view=view)
    await home.publish("m1", **fields)
    await home.publish("plain", ack=False, **fields)
    await home.report()
    home.clock.advance(30)
    await home.repeat()
    replayed = await home.open(view=view, after="earliest")
    opening, pending, live, plain, *again = blocks(stream)
    assert opening.startswith("retry:")
    assert pending == "data: " + (await home.record("m0")).body.decode()
    body = (await home.record("m1")).body.decode()
    assert live.startswith(f"data: {body}\nid: 1")
    assert plain.startswith('event: progress\ndata: {"progress":5}\nid: 1')
    assert len(again) == 2
    assert all(each.startswith('data: {"id":"m') and "\nid: 1" in each for each in again)
    assert all('"retry_count":1' in each for each in again)
    assert f"data: {body}\nid: " in "\n\n".join(blocks(replayed))


async def test_word_of_an_acknowledgement_has_a_name_and_no_id(home: Instance) -> None:
    stream = await home.open(view=EventView(frozenset({"*"})))
    await home.publish("m1")
    await home.acknowledge("m1")
    await home.tell()
    assert blocks(stream)[-1] == (
        'event: msgpush.acknowledged\ndata: {"keys":["tests/m1"],"state":"acknowledged"}'
    )


# Those that ask for nothing


async def test_a_message_that_asks_for_nothing_costs_no_call_to_the_outbox(home: Instance) -> None:
    streams = [await home.connect("a", "service:tests", acts=False) for _ in range(3)]
    home.outbox.calls.clear()
    for n in range(5):
        await home.publish(f"m{n}", ack=False)
        await home.report()
    await home.redelivery.open()
    assert home.outbox.calls == []
    assert streams[0].live == [f"m{n}" for n in range(5)]


async def test_a_users_stream_reports_only_what_asks(home: Instance) -> None:
    stream = await home.open()
    home.outbox.calls.clear()
    await home.publish("plain", ack=False)
    await home.publish("high", ack=False, priority="high")
    await home.report()
    assert home.outbox.calls == []
    assert stream.live == ["plain", "high"]


async def test_a_stream_may_ask_for_the_urgent_alone_and_is_told_of_no_gap() -> None:
    async with Instance(history_length=4) as home:
        stream = await home.open(least="high", acts=False)
        await home.publish("m0", priority="high", ack=False)
        start = stream.cursor
        for n, priority in enumerate(["low", "normal", "high", "urgent"]):
            await home.publish(f"m{n + 1}", priority=priority, ack=False)
        assert stream.live == ["m0", "m3", "m4"]
        async with Instance(beside=home) as other:
            again = await other.open(least="high", acts=False, after=start)
            assert (again.live, again.sink.gaps) == (["m3", "m4"], [])
            urgent = await other.open(least="urgent", types=["info"], acts=False, after=start)
            assert urgent.live == ["m4"]
        await home.publish("expiring", priority="low", ttl=1, ack=False)
        home.clock.advance(2)
        again = await home.open(least="high", acts=False, after=stream.cursor)
        assert (again.live, again.sink.gaps) == ([], [])


async def test_a_priority_never_reorders_the_log(home: Instance) -> None:
    stream = await home.open()
    names = ["low", "urgent", "normal", "high"]
    await home.push.store(
        home.push.drafts([parse(body_of(name, priority=name)) for name in names])  # type: ignore[arg-type]
    )
    await home.settle()
    assert stream.live == names
    again = await home.open(after="earliest")
    assert again.live == names
