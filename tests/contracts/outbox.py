"""What every outbox promises, together with the bus that puts messages there. Its own test module
derives from `OutboxContract` and says how to open one.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import NamedTuple

import pytest
from msgspec import Struct

from msgpush.domain.errors import (
    BusUnavailable,
    Conflict,
    MailboxFull,
    NotDue,
    PendingFull,
    Rejection,
)
from msgpush.domain.marks import NORMAL, Mark, Terms
from msgpush.domain.message import Draft, Entry
from msgpush.domain.outbox import (
    Acknowledge,
    Change,
    Forget,
    GiveUp,
    Outcome,
    Owed,
    Park,
    Place,
    Record,
    Told,
    Wake,
    Withdraw,
    Written,
    decide,
)
from msgpush.domain.ports import Bus, Cut, Stored
from tests.contracts.bus import store
from tests.support.asking import ACK_TTL, again, ask, key, revived
from tests.support.fakes import make

MIB = 1024 * 1024
LEASE = 15.0  # seconds for which what is due is left to whoever has taken it
DAY = 86_400.0
M1 = key("m1")


class Limits(Struct, frozen=True):
    """The bounds of an outbox; bytes are of all services, and times are in seconds."""

    pending_bytes: int = 128 * MIB
    dead_letter_bytes: int = 64 * MIB
    max_pending: int = 200
    dead_letter_ttl: int = 7 * 86_400


class Opened(NamedTuple):
    """A bus with its outbox, the time by their clock, and a way to let it pass.

    Attributes:
        now: milliseconds since 1970.
        advance: let so many seconds pass.
    """

    bus: Bus
    now: Callable[[], int]
    advance: Callable[[float], None]


class OutboxContract:
    """Subclass it, and say how a bus with an outbox is opened.

    Nothing has a jitter there: the factor for the time until the next delivery is 1."""

    def open(self, limits: Limits = Limits()) -> AbstractAsyncContextManager[Opened]:  # noqa: B008 - frozen
        raise NotImplementedError

    # Accepted

    async def test_a_message_that_asks_is_in_the_outbox_from_its_append_on(self) -> None:
        async with self.open() as opened:
            draft = ask("m1", "kb:1", priority="high", ttl=100, deadline=7, collapse="c")
            (position,) = await store(opened.bus, draft)
            record = await found(opened, M1)
            now = opened.now()
            assert (record.key, record.user, record.service) == (M1, "bob", "tests")
            assert (record.id, record.type, record.body) == ("m1", "info", draft.body)
            assert record.terms == Terms(7, 5, False, "c")
            assert (record.accepted, record.newest) == (position, position)
            assert (record.accepted_at, record.expires, record.ttl) == (now, now + 100_000, 100)
            assert record.priority == NORMAL + 1
            assert (record.state, record.phase) == ("pending", "parked")
            assert (record.attempt, record.counted, record.deliveries) == (1, 0, 0)
            assert record.status() == (M1, "accepted", None, "bob", 0, now, None, None, None)
            assert await opened.bus.outbox.waiting(["bob", "eve"]) == [True, False]
            assert await pending(opened) == ["m1"]

    async def test_it_is_in_the_log_and_in_the_histories_of_all_its_channels(self) -> None:
        async with self.open() as opened:
            draft = ask("m1", "kb:1")
            async with following(opened.bus) as entries:
                await store(opened.bus, draft)
                (entry,) = await entries(1)
            assert entry.mark == Mark(NORMAL, "message", "bob", M1, 1)
            assert entry.channels == ("user:bob", "kb:1", "service:tests")
            assert entry.body == draft.body
            assert await history(opened, "user:bob", "kb:1", "service:tests") == [["m1"]] * 3

    async def test_a_message_that_asks_for_nothing_has_no_record(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, make("m1", "user:bob"))
            assert await opened.bus.outbox.find(M1) is None
            assert await opened.bus.outbox.waiting(["bob"]) == [False]
            assert await outcome(opened, Acknowledge("bob", M1)) == "unknown"

    async def test_nothing_is_due_of_what_nobody_has_taken_until_its_time_runs_out(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", ttl=1000))
            opened.advance(999)
            assert await due(opened) == {}
            assert (await found(opened, M1)).status().state == "accepted"
            opened.advance(1)
            assert await due(opened) == {M1: "expire"}

    # Written

    async def test_a_delivery_is_counted_from_when_it_was_written(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            opened.advance(10)
            assert await outcome(opened, Written("bob", M1, 1, age=4_000)) == "made"
            record, written = await found(opened, M1), opened.now() - 4_000
            assert (record.phase, record.deliveries, record.counted) == ("waiting", 1, 1)
            assert record.status().state == "written"
            assert record.status().written_at == written
            assert record.status().next_at == record.next == written + 30_000
            opened.advance(25.5)
            assert await due(opened) == {}
            opened.advance(0.5)
            assert await due(opened) == {M1: "send"}

    async def test_the_time_until_the_next_delivery_doubles_up_to_an_hour(self) -> None:
        waits = await self.waits(deadline=30, deliveries=10)
        assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]

    async def test_a_deadline_of_more_than_an_hour_is_kept_as_it_is(self) -> None:
        assert await self.waits(deadline=7200, deliveries=3) == [7200] * 3

    async def test_the_shortest_deadline_doubles_up_to_an_hour_with_the_most_deliveries(
        self,
    ) -> None:
        waits = await self.waits(deadline=1, deliveries=20)
        assert waits[:13] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600]
        assert waits[13:] == [3600] * 7

    async def waits(self, deadline: int, deliveries: int) -> list[float]:
        """Seconds from each delivery of a message to when something is due, to the last one."""
        waits = []
        async with self.open() as opened:
            draft = ask("m1", ttl=604_800, deadline=deadline, deliveries=deliveries)
            await store(opened.bus, draft)
            for attempt in range(1, deliveries + 1):
                assert await outcome(opened, Written("bob", M1, attempt)) == "made"
                record = await found(opened, M1)
                assert record.deliveries == attempt
                waits.append((record.next - opened.now()) / 1000)
                opened.advance(waits[-1] - 0.5)
                assert await due(opened) == {}
                opened.advance(0.5)
                if attempt < deliveries:
                    assert await due(opened) == {M1: "send"}
                    await store(opened.bus, again(record, opened.now()))
            assert await due(opened) == {M1: "give up"}
        return waits

    async def test_an_attempt_counts_once_however_many_streams_take_it(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await change(opened, Written("bob", M1, 1))
            first = await found(opened, M1)
            opened.advance(20)
            await change(opened, Written("bob", M1, 1), Written("bob", M1, 1))
            assert await found(opened, M1) == first

    async def test_a_report_of_an_attempt_before_the_newest_changes_nothing(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await send(opened, "m1")
            before = await found(opened, M1)
            await change(opened, Written("bob", M1, 1))
            assert await found(opened, M1) == before
            await change(opened, Written("bob", M1, 2))
            assert (await found(opened, M1)).deliveries == 1

    async def test_a_report_later_than_the_next_deadline_is_not_late_while_none_came_after_it(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            opened.advance(100)
            await change(opened, Written("bob", M1, 1, age=100_000))
            assert (await found(opened, M1)).deliveries == 1
            assert await due(opened) == {M1: "send"}

    # Opened

    async def test_one_that_is_shown_as_a_stream_opens_is_written_and_uses_up_no_delivery(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            opened.advance(50)
            await change(opened, Written("bob", M1, 0))
            record = await found(opened, M1)
            assert (record.phase, record.deliveries, record.counted) == ("waiting", 0, 0)
            assert record.status().state == "written"
            assert record.next == opened.now() + 30_000

    async def test_opening_sets_the_next_time_only_where_none_is_set(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"), ask("m2"))
            await change(opened, Written("bob", M1, 1), Written("bob", key("m2"), 0))
            first, second = await found(opened, M1), await found(opened, key("m2"))
            for _ in range(2):
                opened.advance(14)
                await change(opened, Written("bob", M1, 0), Written("bob", key("m2"), 0))
            assert await found(opened, M1) == first
            assert await found(opened, key("m2")) == second
            opened.advance(2)
            assert await due(opened) == {M1: "send", key("m2"): "send"}

    async def test_an_attempt_under_way_that_is_shown_to_a_stream_waits_for_its_deadline(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await send(opened, "m1")
            opened.advance(5)
            await change(opened, Written("bob", M1, 0))
            record = await found(opened, M1)
            assert (record.phase, record.deliveries) == ("waiting", 0)
            assert record.next == opened.now() + 30_000

    async def test_an_attempt_that_is_taken_after_it_was_shown_counts(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await change(opened, Written("bob", M1, 0))
            opened.advance(10)
            await change(opened, Written("bob", M1, 1))
            record = await found(opened, M1)
            assert (record.deliveries, record.next) == (1, opened.now() + 30_000)

    # Sent and parked

    async def test_an_attempt_that_nobody_reports_within_ten_seconds_parks_and_uses_nothing_up(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await send(opened, "m1")
            record = await found(opened, M1)
            assert (record.phase, record.attempt, record.deliveries) == ("sent", 2, 0)
            opened.advance(9.5)
            assert await due(opened) == {}
            opened.advance(0.5)
            assert await due(opened) == {M1: "park"}
            assert await outcome(opened, Park("bob", M1, 2)) == "made"
            record = await found(opened, M1)
            assert (record.phase, record.attempt, record.deliveries) == ("parked", 2, 0)
            assert record.status().next_at is None
            opened.advance(ACK_TTL - 300)
            assert await due(opened) == {}

    async def test_only_the_newest_attempt_parks_and_only_while_nobody_has_reported_it(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            assert await outcome(opened, Park("bob", M1, 1)) == "unknown"
            await send(opened, "m1")
            assert await outcome(opened, Park("bob", M1, 1)) == "unknown"
            await change(opened, Written("bob", M1, 2))
            before = await found(opened, M1)
            assert await outcome(opened, Park("bob", M1, 2)) == "unknown"
            assert await found(opened, M1) == before

    async def test_one_that_was_parked_counts_again_once_it_is_taken(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await send(opened, "m1")
            await change(opened, Park("bob", M1, 2), Written("bob", M1, 2))
            record = await found(opened, M1)
            assert (record.phase, record.deliveries) == ("waiting", 1)

    async def test_a_parked_one_is_due_at_once_when_a_stream_is_there(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            opened.advance(100)
            assert await outcome(opened, Wake("bob", M1)) == "made"
            assert await due(opened) == {M1: "send"}

    async def test_one_under_way_is_sent_again_after_its_ten_seconds_when_a_stream_is_there(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await send(opened, "m1")
            opened.advance(4)
            assert await outcome(opened, Wake("bob", M1)) == "made"
            opened.advance(5.5)
            assert await due(opened) == {}
            opened.advance(0.5)
            assert await due(opened) == {M1: "send"}

    async def test_one_that_waits_isnt_due_any_sooner_because_a_stream_comes(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"), ask("m2"))
            await change(opened, Written("bob", M1, 1), Written("bob", key("m2"), 0))
            records = [await found(opened, M1), await found(opened, key("m2"))]
            assert await outcome(opened, Wake("bob", M1)) == "unknown"
            await change(opened, Wake("bob", key("m2")))
            assert [await found(opened, M1), await found(opened, key("m2"))] == records

    # Sent again

    async def test_a_redelivery_is_in_the_log_and_in_no_history(self) -> None:
        async with self.open() as opened:
            (first,) = await store(opened.bus, ask("m1", "kb:1", ttl=100))
            await change(opened, Wake("bob", M1))
            opened.advance(9.5)
            async with following(opened.bus) as entries:
                draft = again(await found(opened, M1), opened.now())
                (position,) = await store(opened.bus, draft)
                (entry,) = await entries(1)
            assert position > first
            assert entry.position == position
            assert entry.mark == Mark(NORMAL, "redelivery", "bob", M1, 2)
            assert entry.channels == ("user:bob",)
            assert entry.body == draft.body
            assert entry.expires == position.ms + 91_000
            names = ("user:bob", "kb:1", "service:tests")
            assert await history(opened, *names) == [["m1"]] * 3
            record = await found(opened, M1)
            assert (record.accepted, record.newest) == (first, position)
            assert record.body != draft.body

    async def test_histories_have_no_gap_where_a_redelivery_is_in_the_log(self) -> None:
        async with self.open() as opened:
            (first,) = await store(opened.bus, ask("m1"))
            await send(opened, "m1")
            await store(opened.bus, make("m2", "user:bob"))
            (page,) = await opened.bus.history(["user:bob"], first, 10)
            assert [linked.prev for linked in page.entries] == [first]

    async def test_an_attempt_is_appended_only_where_it_is_the_next_and_due(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            parked = again(await found(opened, M1), opened.now())
            assert await refusal(opened, parked) is NotDue
            await change(opened, Written("bob", M1, 1))
            second = again(await found(opened, M1), opened.now())
            opened.advance(29.5)
            assert await refusal(opened, second) is NotDue
            opened.advance(0.5)
            await store(opened.bus, second)
            assert await refusal(opened, second) is NotDue
            third = again(await found(opened, M1), opened.now())
            assert await refusal(opened, third) is NotDue
            await change(opened, Written("bob", M1, 2))
            assert await refusal(opened, third) is NotDue
            opened.advance(60)
            assert await refusal(opened, second) is NotDue
            await store(opened.bus, third)
            assert (await found(opened, M1)).attempt == 3

    async def test_of_two_who_append_the_same_attempt_one_does(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await change(opened, Wake("bob", M1))
            draft = again(await found(opened, M1), opened.now())
            results = await opened.bus.append([draft, draft])
            assert [type(each) for each in results] == [Stored, NotDue]

    async def test_nothing_is_appended_again_once_it_has_ended(self) -> None:
        ends: list[Change] = [
            Acknowledge("bob", M1),
            Withdraw("bob", M1),
            GiveUp("bob", M1, 1, "deliveries"),
        ]
        for end in ends:
            async with self.open() as opened:
                await store(opened.bus, ask("m1"))
                await change(opened, Wake("bob", M1))
                draft = again(await found(opened, M1), opened.now())
                assert await outcome(opened, end) == "made"
                assert await refusal(opened, draft) is NotDue
                assert await refusal(opened, ask_again_of_nothing(draft)) is NotDue

    async def test_nothing_is_appended_again_after_its_ttl(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", ttl=10))
            await change(opened, Wake("bob", M1))
            draft = again(await found(opened, M1), opened.now())
            opened.advance(10)
            assert await refusal(opened, draft) is NotDue

    async def test_nothing_is_appended_again_that_was_written_as_often_as_it_may(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", deliveries=1))
            await change(opened, Wake("bob", M1))
            # Whoever has taken it before the report appends it after the last deadline.
            draft = again(await found(opened, M1), opened.now())
            await change(opened, Written("bob", M1, 1))
            opened.advance(30)
            assert await refusal(opened, draft) is NotDue
            assert await due(opened) == {M1: "give up"}

    async def test_a_redelivery_among_others_stands_alone(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            draft = again(await found(opened, M1), opened.now())
            results = await opened.bus.append([make("m2", "a"), draft, make("m3", "a")])
            assert [type(each) for each in results] == [Stored, NotDue, Stored]
            assert await history(opened, "a") == [["m2", "m3"]]

    # Given up

    async def test_it_is_given_up_when_it_was_written_that_often_and_the_last_deadline_passed(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", deliveries=1))
            await change(opened, Written("bob", M1, 1))
            opened.advance(29.5)
            give_up = GiveUp("bob", M1, 1, "deliveries")
            assert await outcome(opened, give_up) == "unknown"
            opened.advance(0.5)
            assert await due(opened) == {M1: "give up"}
            assert await outcome(opened, give_up) == "made"
            record = await found(opened, M1)
            assert (record.state, record.reason) == ("dead", "deliveries")
            assert record.ended_at == opened.now()
            status = record.status()
            assert (status.state, status.deliveries, status.next_at) == ("dead", 1, None)
            assert await pending(opened) == []
            assert await opened.bus.outbox.waiting(["bob"]) == [False]
            assert await outcome(opened, give_up) == "unknown"

    async def test_it_is_given_up_when_its_time_runs_out_whatever_its_phase(self) -> None:
        async with self.open() as opened:
            names = ["parked", "waiting", "sent"]
            await store(opened.bus, *[ask(name, ttl=60, deadline=300) for name in names])
            await change(opened, Written("bob", key("waiting"), 1))
            opened.advance(55)
            await send(opened, "sent")
            opened.advance(5)
            keys = [key(name) for name in names]
            assert await due(opened) == dict.fromkeys(keys, "expire")
            for name in keys:
                attempt = (await found(opened, name)).attempt
                assert await outcome(opened, GiveUp("bob", name, attempt, "expired")) == "made"
                assert (await found(opened, name)).reason == "expired"

    async def test_it_isnt_given_up_as_of_an_attempt_that_isnt_the_newest(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", ttl=60))
            await send(opened, "m1")
            opened.advance(60)
            assert await outcome(opened, GiveUp("bob", M1, 1, "expired")) == "unknown"
            assert (await found(opened, M1)).state == "pending"

    # Acknowledged

    @pytest.mark.parametrize("written", [False, True])
    async def test_an_acknowledgement_ends_it(self, written: bool) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            if written:
                await change(opened, Written("bob", M1, 1))
            opened.advance(5)
            (made,) = await change(opened, Acknowledge("bob", M1))
            assert made.result == "made"
            assert made.record is not None
            assert (made.record.key, made.record.service) == (M1, "tests")
            assert made.record.ended_at == made.record.accepted_at + 5_000 == opened.now()
            status = (await found(opened, M1)).status()
            assert (status.state, status.acknowledged_at) == ("acknowledged", opened.now())
            assert status.next_at is None
            assert await pending(opened) == []
            assert await opened.bus.outbox.waiting(["bob"]) == [False]
            opened.advance(3_600)
            assert await due(opened) == {}

    async def test_a_second_acknowledgement_changes_nothing_and_is_known_as_one(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", receipt=True))
            await change(opened, Acknowledge("bob", M1))
            first = await found(opened, M1)
            opened.advance(60)
            results = await change(opened, Acknowledge("bob", M1), Acknowledge("bob", M1))
            assert [each.result for each in results] == ["before", "before"]
            assert await found(opened, M1) == first

    async def test_another_users_acknowledgement_is_unknown_and_changes_nothing(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            for user in ("eve", "", "bo", "bobb"):
                assert await change(opened, Acknowledge(user, M1)) == [Outcome("unknown")]
            assert (await found(opened, M1)).state == "pending"
            await change(opened, Acknowledge("bob", M1))
            assert await outcome(opened, Acknowledge("eve", M1)) == "unknown"

    async def test_keys_of_no_message_are_unknown(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            for name in ("", "m1", "tests", "tests/", "tests/m2", "other/m1", "tests/m1/", "é/\n"):
                assert await outcome(opened, Acknowledge("bob", name)) == "unknown"
                assert await opened.bus.outbox.find(name) is None

    async def test_a_withdrawn_ones_acknowledgement_is_unknown(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await change(opened, Withdraw("bob", M1))
            assert await outcome(opened, Acknowledge("bob", M1)) == "unknown"
            assert (await found(opened, M1)).state == "withdrawn"

    async def test_a_dead_letters_acknowledgement_is_one_and_the_letter_goes(self) -> None:
        async with self.open() as opened:
            await die(opened, ask("m1"))
            assert await outcome(opened, Acknowledge("eve", M1)) == "unknown"
            assert await outcome(opened, Acknowledge("bob", M1)) == "made"
            record = await found(opened, M1)
            assert (record.state, record.reason) == ("acknowledged", None)
            assert await dead_letters(opened) == []
            assert await outcome(opened, Acknowledge("bob", M1)) == "before"

    # Withdrawn

    async def test_what_is_withdrawn_is_never_tried_again(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await change(opened, Written("bob", M1, 1))
            assert await outcome(opened, Withdraw("bob", M1)) == "made"
            assert (await found(opened, M1)).status().state == "withdrawn"
            assert (await found(opened, M1)).status().acknowledged_at is None
            assert await pending(opened) == []
            opened.advance(3_600)
            assert await due(opened) == {}
            assert await outcome(opened, Withdraw("bob", M1)) == "before"

    async def test_what_was_acknowledged_cant_be_withdrawn(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await change(opened, Acknowledge("bob", M1))
            assert await outcome(opened, Withdraw("bob", M1)) == "acknowledged"
            assert (await found(opened, M1)).state == "acknowledged"
            assert await outcome(opened, Withdraw("bob", key("m2"))) == "unknown"

    async def test_a_dead_letter_that_is_withdrawn_goes(self) -> None:
        async with self.open() as opened:
            await die(opened, ask("m1"))
            assert await outcome(opened, Withdraw("bob", M1)) == "made"
            assert await dead_letters(opened) == []
            assert (await found(opened, M1)).state == "withdrawn"

    async def test_nothing_changes_any_more_what_was_acknowledged_or_withdrawn(self) -> None:
        for end in (Acknowledge("bob", M1), Withdraw("bob", M1)):
            async with self.open() as opened:
                await store(opened.bus, ask("m1", ttl=10))
                await change(opened, Wake("bob", M1), end)
                before = await found(opened, M1)
                opened.advance(20)
                later: list[Change] = [
                    Written("bob", M1, 1),
                    Written("bob", M1, 0),
                    Wake("bob", M1),
                    Park("bob", M1, 1),
                    GiveUp("bob", M1, 1, "expired"),
                    Forget("bob", M1),
                    Told("bob", M1, Owed("acknowledged", None, 0, 0)),
                ]
                assert {each.result for each in await change(opened, *later)} == {"unknown"}
                assert await found(opened, M1) == before

    # Receipts

    @pytest.mark.parametrize("how", ["acknowledged", "withdrawn", "dead"])
    async def test_a_receipt_that_is_wanted_is_owed_until_its_publisher_was_told(
        self, how: str
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", ttl=60, receipt=True))
            opened.advance(60)
            ends: dict[str, Change] = {
                "acknowledged": Acknowledge("bob", M1),
                "withdrawn": Withdraw("bob", M1),
                "dead": GiveUp("bob", M1, 1, "expired"),
            }
            (made,) = await change(opened, ends[how])
            assert made.record is not None
            assert made.record.owed
            opened.advance(LEASE - 0.5)
            assert await due(opened) == {}
            opened.advance(0.5)
            assert await due(opened) == {M1: "tell"}
            (receipt,) = (await found(opened, M1)).owed
            assert (receipt.state, receipt.deliveries) == (how, 0)
            assert await outcome(opened, Told("bob", M1, receipt)) == "made"
            assert not (await found(opened, M1)).owed
            assert await outcome(opened, Told("bob", M1, receipt)) == "unknown"
            opened.advance(DAY / 2)
            assert await due(opened) == {}
            assert (await found(opened, M1)).state == how

    async def test_a_receipt_that_isnt_wanted_isnt_owed(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            (made,) = await change(opened, Acknowledge("bob", M1))
            assert made.record is not None
            assert not made.record.owed

    # Revived

    async def test_a_dead_letter_that_is_revived_is_pending_with_all_it_had(self) -> None:
        async with self.open() as opened:
            await die(opened, ask("m1", ttl=100, deliveries=2), "deliveries")
            dead = await found(opened, M1)
            assert (dead.attempt, dead.deliveries) == (2, 2)
            opened.advance(1_000)
            async with following(opened.bus) as entries:
                (position,) = await store(opened.bus, revived(dead))
                (entry,) = await entries(1)
            assert entry.mark == Mark(NORMAL, "redelivery", "bob", M1, 3)
            assert b'"ttl":100,"retry_count":2' in entry.body
            assert entry.channels == ("user:bob",)
            record = await found(opened, M1)
            assert (record.state, record.phase, record.reason) == ("pending", "sent", None)
            assert (record.attempt, record.deliveries, record.newest) == (3, 0, position)
            assert record.expires == opened.now() + 100_000
            assert (record.ended_at, record.written_at) == (None, None)
            assert await pending(opened) == ["m1"]
            assert await dead_letters(opened) == []
            await change(opened, Written("bob", M1, 3))
            opened.advance(30)
            assert await due(opened) == {M1: "send"}
            await store(opened.bus, again(await found(opened, M1), opened.now()))
            await change(opened, Written("bob", M1, 4))
            opened.advance(60)
            assert await due(opened) == {M1: "give up"}

    async def test_only_a_dead_letter_is_revived_and_only_once(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            assert await refusal(opened, revived(await found(opened, M1))) is NotDue
            opened.advance(ACK_TTL)
            await change(opened, GiveUp("bob", M1, 1, "expired"))
            draft = revived(await found(opened, M1))
            results = await opened.bus.append([draft, draft])
            assert [type(each) for each in results] == [Stored, NotDue]
            await change(opened, Acknowledge("bob", M1))
            assert await refusal(opened, draft) is NotDue
            assert await refusal(opened, ask_again_of_nothing(draft)) is NotDue

    async def test_a_dead_letter_is_revived_only_where_it_has_room(self) -> None:
        async with self.open(Limits(max_pending=1)) as opened:
            await die(opened, ask("m1"))
            await store(opened.bus, ask("m2"))
            assert await refusal(opened, revived(await found(opened, M1))) is MailboxFull
            assert (await found(opened, M1)).state == "dead"
            await change(opened, Acknowledge("bob", key("m2")))
            await store(opened.bus, revived(await found(opened, M1)))

    async def test_a_dead_letter_takes_nobodys_place_as_it_is_revived(self) -> None:
        async with self.open(Limits(max_pending=1)) as opened:
            await die(opened, ask("m1", collapse="c"))
            await store(opened.bus, ask("m2", collapse="c"))
            assert await refusal(opened, revived(await found(opened, M1))) is MailboxFull

    async def test_a_dead_letter_that_is_thrown_away_is_unknown(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            assert await outcome(opened, Forget("bob", M1)) == "unknown"
            opened.advance(ACK_TTL)
            await change(opened, GiveUp("bob", M1, 1, "expired"))
            dead = await found(opened, M1)
            assert await outcome(opened, Forget("bob", M1)) == "made"
            assert await opened.bus.outbox.find(M1) is None
            assert await dead_letters(opened) == []
            assert await refusal(opened, revived(dead)) is NotDue
            assert await outcome(opened, Forget("bob", M1)) == "unknown"
            assert await outcome(opened, Acknowledge("bob", M1)) == "unknown"
            assert await outcome(opened, Withdraw("bob", M1)) == "unknown"

    # Due

    async def test_what_was_given_out_as_due_is_given_out_again_after_fifteen_seconds(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await change(opened, Wake("bob", M1))
            assert await due(opened) == {M1: "send"}
            opened.advance(LEASE - 0.5)
            assert await due(opened) == {}
            opened.advance(0.5)
            assert await due(opened) == {M1: "send"}
            await store(opened.bus, again(await found(opened, M1), opened.now()))
            opened.advance(9.5)
            assert await due(opened) == {}

    async def test_what_is_due_is_given_out_a_few_at_a_time(self) -> None:
        async with self.open() as opened:
            keys = {key(f"m{n}") for n in range(5)}
            await store(opened.bus, *[ask(f"m{n}") for n in range(5)])
            await change(opened, *[Wake("bob", each) for each in sorted(keys)])
            first, second, third = [await due(opened, 2) for _ in range(3)]
            assert [len(each) for each in (first, second, third)] == [2, 2, 1]
            assert {*first, *second, *third} == keys

    async def test_a_change_to_what_was_given_out_is_due_at_its_own_time(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", deadline=1))
            await change(opened, Wake("bob", M1))
            assert await due(opened) == {M1: "send"}
            await store(opened.bus, again(await found(opened, M1), opened.now()))
            await change(opened, Written("bob", M1, 2))
            opened.advance(1)
            assert await due(opened) == {M1: "send"}

    async def test_the_time_and_the_bodies_come_with_what_is_due(self) -> None:
        async with self.open() as opened:
            draft = ask("m1")
            await store(opened.bus, draft)
            await change(opened, Wake("bob", M1))
            now, (record,) = await opened.bus.outbox.due(256)
            assert now == opened.now()
            assert record == await found(opened, M1)
            assert record.body == draft.body

    # Forgetting

    @pytest.mark.parametrize("end", [Acknowledge("bob", M1), Withdraw("bob", M1)])
    @pytest.mark.parametrize("receipt", [False, True])
    async def test_what_has_ended_is_remembered_for_a_day(self, end: Change, receipt: bool) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", receipt=receipt))
            await change(opened, end)
            if receipt:
                await tell(opened)
            opened.advance(DAY - 1)
            assert await due(opened) == {}
            assert await opened.bus.outbox.find(M1) is not None
            opened.advance(2)
            assert await due(opened) == {}
            assert await opened.bus.outbox.find(M1) is None
            assert await outcome(opened, Acknowledge("bob", M1)) == "unknown"
            assert await outcome(opened, Withdraw("bob", M1)) == "unknown"

    async def test_a_dead_letter_is_kept_for_its_time_and_then_goes(self) -> None:
        async with self.open(Limits(dead_letter_ttl=3 * 86_400)) as opened:
            await die(opened, ask("m1"))
            opened.advance(3 * DAY - 1)
            assert await due(opened) == {}
            opened.advance(1)
            assert await due(opened) == {M1: "forget"}
            assert await outcome(opened, Forget("bob", M1)) == "made"
            assert await opened.bus.outbox.find(M1) is None

    async def test_of_more_dead_letters_than_there_is_room_for_the_oldest_go(self) -> None:
        async with self.open(Limits(dead_letter_bytes=50_000)) as opened:
            for n in range(8):
                await die(opened, ask(f"m{n}", service=f"s{n % 2}", data={"x": "y" * 9_000}))
                opened.advance(1)
            gone = await due(opened)
            assert set(gone.values()) == {"forget"}
            number = len(gone)
            assert 3 <= number <= 4
            assert set(gone) == {key(f"m{n}", f"s{n % 2}") for n in range(number)}
            await change(opened, *[Forget("bob", each) for each in gone])
            assert await due(opened) == {}
            left = [*await dead_letters(opened, "s0"), *await dead_letters(opened, "s1")]
            assert sorted(left) == [f"m{n}" for n in range(number, 8)]

    async def test_a_dead_letter_whose_receipt_is_owed_is_told_before_it_goes(self) -> None:
        async with self.open(Limits(dead_letter_bytes=100)) as opened:
            await die(opened, ask("m1", receipt=True))
            opened.advance(LEASE)
            assert await due(opened) == {M1: "tell"}
            await tell(opened)
            assert await due(opened) == {M1: "forget"}

    async def test_each_receipt_is_owed_until_it_was_given(self) -> None:
        async with self.open() as opened:
            await die(opened, ask("m1", receipt=True))
            opened.advance(1)
            (result,) = await opened.bus.append([revived(await found(opened, M1))])
            assert isinstance(result, Stored)
            opened.advance(1)
            await change(opened, Acknowledge("bob", M1))
            first, second = (await found(opened, M1)).owed
            assert (first.state, second.state) == ("dead", "acknowledged")
            assert first.at < second.at
            assert await outcome(opened, Told("bob", M1, second)) == "made"
            assert (await found(opened, M1)).owed == (first,)
            opened.advance(LEASE)
            assert await due(opened) == {M1: "tell"}
            await tell(opened)
            assert (await found(opened, M1)).owed == ()

    # Bounds

    async def test_a_user_has_so_many_pending_messages_of_a_service_and_no_more(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, *[ask(f"m{n}") for n in range(200)])
            results = await opened.bus.append(
                [ask("more"), ask("m1", user="eve"), ask("m1", service="other"), make("plain")]
            )
            assert [type(each) for each in results] == [MailboxFull, Conflict, Stored, Stored]
            await store(opened.bus, ask("e1", user="eve"))
            assert await opened.bus.outbox.find(key("more")) is None
            (page,) = await opened.bus.history(["user:bob"], None, 1_000)
            assert len(page.entries) == 201
            assert (await opened.bus.outbox.page("bob", None, 1, MIB)).total == 201

    async def test_a_message_that_was_refused_may_be_published_again_when_there_is_room(
        self,
    ) -> None:
        async with self.open(Limits(max_pending=2)) as opened:
            await store(opened.bus, ask("m1"), ask("m2", ttl=60))
            assert await refusal(opened, ask("m3")) is MailboxFull
            await change(opened, Acknowledge("bob", M1))
            await store(opened.bus, ask("m3"))
            assert await refusal(opened, ask("m4")) is MailboxFull
            opened.advance(60)
            await change(opened, GiveUp("bob", key("m2"), 1, "expired"))
            await store(opened.bus, ask("m4"))
            assert await refusal(opened, ask("m5")) is MailboxFull
            await change(opened, Withdraw("bob", key("m4")))
            await store(opened.bus, ask("m5"))

    async def test_a_user_has_four_mebibytes_pending_of_a_service_and_no_more(self) -> None:
        async with self.open() as opened:
            large = {"x": "y" * 200_000}
            stored = 0
            while True:
                (result,) = await opened.bus.append([ask(f"m{stored}", data=large)])
                if not isinstance(result, Stored):
                    break
                stored += 1
            assert isinstance(result, MailboxFull)
            assert stored == 4 * MIB // 200_900
            await store(opened.bus, ask("m", service="other", data=large))
            await store(opened.bus, ask("e", user="eve", data=large))
            await change(opened, Acknowledge("bob", key("m0")))
            await store(opened.bus, ask("next", data=large))
            assert await refusal(opened, ask("last", data=large)) is MailboxFull

    async def test_all_that_is_pending_is_within_its_bytes_and_of_a_service_within_a_quarter(
        self,
    ) -> None:
        async with self.open(Limits(pending_bytes=400_000)) as opened:
            large = {"x": "y" * 9_000}
            stored = []
            for service in ("a", "b", "c", "d", "e"):
                number = 0
                while True:
                    draft = ask(f"m{number}", service=service, user=f"u{number}", data=large)
                    (result,) = await opened.bus.append([draft])
                    if not isinstance(result, Stored):
                        assert isinstance(result, PendingFull)
                        assert result.retry_after == 60
                        break
                    number += 1
                stored.append(number)
            assert stored[:4] == [10] * 4
            assert stored[4] <= 2
            await change(opened, Acknowledge("u0", key("m0", "a")))
            await store(opened.bus, ask("again", service="a", data=large))
            await store(opened.bus, make("plain", "a"))

    async def test_a_full_outbox_lets_what_it_has_be_delivered_and_end(self) -> None:
        async with self.open(Limits(pending_bytes=40_000)) as opened:
            large = {"x": "y" * 8_500}
            await store(opened.bus, ask("m1", data=large))
            assert await refusal(opened, ask("m2", data=large)) is PendingFull
            await send(opened, "m1")
            await change(opened, Written("bob", M1, 2))
            assert (await found(opened, M1)).deliveries == 1
            assert await outcome(opened, Acknowledge("bob", M1)) == "made"
            await store(opened.bus, ask("m2", data=large))

    # Collapse

    async def test_a_newer_message_names_the_older_one_whose_place_it_takes(self) -> None:
        async with self.open() as opened:
            (older,) = await opened.bus.append([ask("m1", collapse="c")])
            (newer,) = await opened.bus.append([ask("m2", collapse="c")])
            assert isinstance(older, Stored)
            assert isinstance(newer, Stored)
            assert (older.replaces, newer.replaces) == (None, M1)
            await change(opened, Withdraw("bob", M1))
            assert (await found(opened, M1)).state == "withdrawn"
            assert await pending(opened) == ["m2"]
            (newest,) = await opened.bus.append([ask("m3", collapse="c")])
            assert isinstance(newest, Stored)
            assert newest.replaces == key("m2")

    async def test_only_the_same_user_service_and_text_collapse_and_only_what_is_pending(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", collapse="c"))
            others = [
                ask("m2", collapse="d"),
                ask("m3", user="eve", collapse="c"),
                ask("m4", service="other", collapse="c"),
                ask("m5"),
            ]
            for result in await opened.bus.append(others):
                assert isinstance(result, Stored)
                assert result.replaces is None
            await change(opened, Acknowledge("bob", M1))
            (result,) = await opened.bus.append([ask("m6", collapse="c")])
            assert isinstance(result, Stored)
            assert result.replaces is None

    async def test_what_was_replaced_is_not_delivered_again_though_it_isnt_withdrawn_yet(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", collapse="c"))
            await change(opened, Wake("bob", M1))
            await opened.bus.append([ask("m2", collapse="c")])
            draft = again(await found(opened, M1), opened.now())
            (result,) = await opened.bus.append([draft])
            assert isinstance(result, NotDue)
            assert result.superseded

    async def test_what_was_replaced_is_not_delivered_again_though_the_newer_one_has_ended(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", collapse="c"))
            await change(opened, Wake("bob", M1))
            await opened.bus.append([ask("m2", collapse="c")])
            await change(opened, Acknowledge("bob", key("m2")))
            draft = again(await found(opened, M1), opened.now())
            (result,) = await opened.bus.append([draft])
            assert isinstance(result, NotDue)
            assert result.superseded

    async def test_what_was_replaced_is_soon_due_to_be_withdrawn_if_nobody_has_done_it(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", collapse="c"), ask("m2", collapse="c"))
            await store(opened.bus, ask("m3", collapse="c"))
            assert await due(opened) == {}
            opened.advance(LEASE)
            assert await due(opened) == {M1: "withdraw", key("m2"): "withdraw"}
            await change(opened, Withdraw("bob", M1), Withdraw("bob", key("m2")))
            assert await pending(opened) == ["m3"]

    async def test_a_message_that_takes_anothers_place_needs_no_further_one(self) -> None:
        async with self.open(Limits(max_pending=1)) as opened:
            await store(opened.bus, ask("m1", collapse="c"))
            assert await refusal(opened, ask("m2")) is MailboxFull
            (result,) = await opened.bus.append([ask("m3", collapse="c")])
            assert isinstance(result, Stored)
            assert result.replaces == M1
            await change(opened, Withdraw("bob", M1))
            assert await refusal(opened, ask("m4")) is MailboxFull

    async def test_in_a_full_mailbox_each_of_a_batch_takes_the_place_of_the_one_before(
        self,
    ) -> None:
        async with self.open(Limits(max_pending=1)) as opened:
            drafts = [ask(f"m{n}", collapse="c") for n in range(3)]
            results = await opened.bus.append(drafts)
            assert [type(each) for each in results] == [Stored] * 3

    async def test_a_message_frees_no_more_bytes_than_the_one_had_whose_place_it_takes(
        self,
    ) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1", collapse="c"))
            large = {"x": "y" * 200_000}
            await store(opened.bus, *[ask(f"l{n}", data=large) for n in range(20)])
            assert await refusal(opened, ask("m2", data=large, collapse="c")) is MailboxFull
            await store(opened.bus, ask("m3", collapse="c"))

    # Duplicates

    async def test_while_its_record_exists_its_id_is_remembered(self) -> None:
        async with self.open() as opened:
            (first,) = await store(opened.bus, ask("m1", ttl=604_800))
            for seconds in (0, 599, 2, 3_600, 5 * DAY):
                opened.advance(seconds)
                await opened.bus.append([make(None, "a")])
                (result,) = await opened.bus.append([ask("m1", ttl=604_800)])
                assert isinstance(result, Stored)
                assert (result.position, result.duplicate, result.replaces) == (first, True, None)
                assert await refusal(opened, ask("m1", ttl=604_800, data={"x": 1})) is Conflict
            assert (await found(opened, M1)).attempt == 1

    @pytest.mark.parametrize("how", ["acknowledged", "withdrawn", "dead"])
    async def test_the_id_of_one_that_has_ended_is_remembered_as_long_as_its_record(
        self, how: str
    ) -> None:
        async with self.open(Limits(dead_letter_ttl=86_400)) as opened:
            await store(opened.bus, ask("m1", ttl=60))
            opened.advance(60)
            ends: dict[str, Change] = {
                "acknowledged": Acknowledge("bob", M1),
                "withdrawn": Withdraw("bob", M1),
                "dead": GiveUp("bob", M1, 1, "expired"),
            }
            await change(opened, ends[how])
            opened.advance(DAY - 60)
            await opened.bus.append([make(None, "a")])
            (result,) = await opened.bus.append([ask("m1", ttl=60)])
            assert isinstance(result, Stored)
            assert result.duplicate
            assert await refusal(opened, ask("m1", ttl=60, data={"x": 1})) is Conflict
            assert (await found(opened, M1)).state == how
            assert await pending(opened) == []

    async def test_the_id_of_a_dead_letter_is_remembered_however_long_that_is_kept(self) -> None:
        async with self.open(Limits(dead_letter_ttl=60 * 86_400)) as opened:
            await store(opened.bus, ask("m1", ttl=60))
            opened.advance(60)
            await change(opened, GiveUp("bob", M1, 1, "expired"))
            for how in ("dead", "pending", "dead"):
                opened.advance(25 * DAY if how == "dead" else 60)
                await opened.bus.append([make(None, "a")])
                (result,) = await opened.bus.append([ask("m1", ttl=60)])
                assert isinstance(result, Stored)
                assert result.duplicate
                assert await refusal(opened, ask("m1", ttl=60, data={"x": 1})) is Conflict
                record = await found(opened, M1)
                assert record.state == how
                if how == "dead":
                    await opened.bus.append([revived(record)])
                else:
                    await change(opened, GiveUp("bob", M1, 2, "expired"))

    async def test_once_its_record_is_gone_its_id_may_be_used_again(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            await change(opened, Acknowledge("bob", M1))
            opened.advance(DAY + 1)
            assert await due(opened) == {}
            # Some minutes more are no harm.
            opened.advance(1_200)
            await opened.bus.append([make(None, "a")])
            (result,) = await opened.bus.append([ask("m1", data={"x": 1})])
            assert isinstance(result, Stored)
            assert not result.duplicate
            assert await pending(opened) == ["m1"]

    async def test_with_and_without_acknowledgement_a_message_is_another(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            assert await refusal(opened, ask("m1", ack=False)) is Conflict
            assert await refusal(opened, ask("m1", deadline=31)) is Conflict
            (same,) = await opened.bus.append([ask("m1", deadline=30, receipt=False)])
            assert isinstance(same, Stored)
            assert same.duplicate

    async def test_an_id_that_the_server_made_cant_be_taken_while_its_record_exists(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask(None, fresh_id="made"))
            assert await refusal(opened, ask("made", data={"x": 1})) is Conflict
            await change(opened, Acknowledge("bob", key("made")))
            assert await opened.bus.outbox.waiting(["bob"]) == [False]
            assert await pending(opened) == []

    async def test_within_one_batch_each_that_asks_stands_alone(self) -> None:
        async with self.open(Limits(max_pending=2)) as opened:
            results = await opened.bus.append(
                [ask("m1"), ask("m1"), ask("m1", data={"x": 1}), ask("m2"), ask("m3"), make("p")]
            )
            kinds = [Stored, Stored, Conflict, Stored, MailboxFull, Stored]
            assert [type(each) for each in results] == kinds
            assert await pending(opened) == ["m1", "m2"]

    # Reading

    async def test_what_is_pending_is_read_the_most_urgent_first_then_the_oldest(self) -> None:
        async with self.open() as opened:
            order = [
                ("n1", "normal"),
                ("u1", "urgent"),
                ("l1", "low"),
                ("h1", "high"),
                ("n2", None),
                ("u2", "urgent"),
                ("h2", "high"),
            ]
            for name, priority in order:
                service = "other" if name.endswith("2") else "tests"
                await store(opened.bus, ask(name, priority=priority, service=service))
            await store(opened.bus, ask("eve", user="eve", priority="urgent"))
            expected = ["u1", "u2", "h1", "h2", "n1", "n2", "l1"]
            for limit in (1, 2, 3, 7, 100):
                assert await pending(opened, limit=limit) == expected

    async def test_a_page_goes_on_where_the_last_one_ended_whatever_went_meanwhile(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, *[ask(f"m{n}") for n in range(6)])
            page = await opened.bus.outbox.page("bob", None, 2, MIB)
            assert ([each.id for each in page.records], page.total) == (["m0", "m1"], 6)
            await change(opened, Acknowledge("bob", M1), Acknowledge("bob", key("m2")))
            await store(opened.bus, ask("urgent", priority="urgent"))
            page = await opened.bus.outbox.page("bob", page.next, 2, MIB)
            assert ([each.id for each in page.records], page.total) == (["m3", "m4"], 5)
            page = await opened.bus.outbox.page("bob", page.next, 2, MIB)
            assert ([each.id for each in page.records], page.next) == (["m5"], None)

    async def test_a_page_ends_after_so_many_bytes_and_has_one_message_at_least(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, *[ask(f"m{n}", data={"x": "y" * 10_000}) for n in range(7)])
            page = await opened.bus.outbox.page("bob", None, 100, 35_000)
            assert 3 <= len(page.records) <= 4
            assert page.total == 7
            assert page.next is not None
            page = await opened.bus.outbox.page("bob", None, 100, 1)
            assert [each.id for each in page.records] == ["m0"]
            assert await pending(opened, size=1) == [f"m{n}" for n in range(7)]
            assert await pending(opened, size=25_000) == [f"m{n}" for n in range(7)]

    async def test_a_user_with_nothing_pending_has_one_empty_page(self) -> None:
        async with self.open() as opened:
            assert await opened.bus.outbox.page("bob", None, 100, MIB) == ([], 0, None)

    async def test_dead_letters_are_read_by_service_in_the_order_of_their_deaths(self) -> None:
        async with self.open() as opened:
            names = ["m3", "m1", "m2", "m0", "m4"]
            for name in names:
                await die(opened, ask(name, user=f"u-{name}", data={"x": "y" * 10_000}))
            await die(opened, ask("other", service="other"))
            for limit in (1, 2, 5, 100):
                assert await dead_letters(opened, limit=limit) == names
            assert await dead_letters(opened, size=1) == names
            assert await dead_letters(opened, "other") == ["other"]
            assert await dead_letters(opened, "never") == []
            letters = await opened.bus.outbox.dead_letters("tests", None, 2, MIB)
            assert b'"id":"m3"' in letters.records[0].body
            assert letters.records[0].reason == "expired"

    async def test_dead_letters_of_the_same_moment_are_all_read(self) -> None:
        async with self.open() as opened:
            names = [f"m{n}" for n in range(7)]
            await store(opened.bus, *[ask(name, ttl=10) for name in names])
            opened.advance(10)
            await change(opened, *[GiveUp("bob", key(name), 1, "expired") for name in names])
            for limit in (1, 2, 3):
                assert sorted(await dead_letters(opened, limit=limit)) == names

    async def test_who_is_waited_for_is_answered_for_each_user(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"), ask("m2", user="eve"), ask("m3", user="eve"))
            await change(opened, Acknowledge("eve", key("m2")))
            users = ["nobody", "eve", "bob", "eve"]
            assert await opened.bus.outbox.waiting(users) == [False, True, True, True]
            assert await opened.bus.outbox.waiting([]) == []

    async def test_what_is_read_is_a_copy(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"))
            record = await found(opened, M1)
            record.state, record.body = "dead", b""
            again_read = await found(opened, M1)
            assert again_read.state == "pending"
            assert again_read.body

    # Changes together

    async def test_changes_are_made_in_their_order_each_by_itself(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, ask("m1"), ask("m2"))
            results = await change(
                opened,
                Written("bob", M1, 1),
                Acknowledge("bob", key("m9")),
                Acknowledge("bob", M1),
                Written("bob", M1, 1),
                Acknowledge("bob", M1),
                Withdraw("bob", key("m2")),
                Acknowledge("bob", key("m2")),
            )
            assert [each.result for each in results] == [
                "made",
                "unknown",
                "made",
                "unknown",
                "before",
                "made",
                "unknown",
            ]
            assert all((each.record is None) == (each.result == "unknown") for each in results)
            assert results[2].record is not None
            assert results[2].record.deliveries == 1
            assert await change(opened) == []

    async def test_names_with_any_characters_are_kept_as_they_are(self) -> None:
        async with self.open() as opened:
            users = ["ü:{x}", "a b".replace(" ", "_"), "\U0001f600", "b%2Fc", "{msgpush}", "-"]
            for n, user in enumerate(users):
                await store(opened.bus, ask(f"m.{n}:x-_", user=user, collapse="ü {} \n"))
            assert await opened.bus.outbox.waiting(users) == [True] * len(users)
            for n, user in enumerate(users):
                name = key(f"m.{n}:x-_")
                assert (await found(opened, name)).user == user
                assert (await found(opened, name)).terms.collapse == "ü {} \n"
                assert await outcome(opened, Acknowledge(user, name)) == "made"
            assert await opened.bus.outbox.waiting(users) == [False] * len(users)


async def change(opened: Opened, *changes: Change) -> list[Outcome]:
    """Make changes, all of which are answered."""
    results = await opened.bus.outbox.change(changes)
    outcomes = [each for each in results if not isinstance(each, BusUnavailable)]
    assert len(outcomes) == len(changes)
    return outcomes


async def outcome(opened: Opened, one: Change) -> str:
    """Make one change; how that went."""
    (made,) = await change(opened, one)
    return made.result


async def tell(opened: Opened) -> None:
    """Give the publisher of the first message all receipts that are owed."""
    owed = (await found(opened, M1)).owed
    await change(opened, *[Told("bob", M1, receipt) for receipt in owed])


async def found(opened: Opened, name: str) -> Record:
    """A record that must be there."""
    record = await opened.bus.outbox.find(name)
    assert record is not None, name
    return record


async def due(opened: Opened, limit: int = 256) -> dict[str, str]:
    """What is due now, and what is to be done about it; it is taken, and not done."""
    now, records = await opened.bus.outbox.due(limit)
    actions = {record.key: decide(record, now) for record in records}
    return {name: action for name, action in actions.items() if action is not None}


async def refusal(opened: Opened, draft: Draft) -> type[Rejection]:
    """Append a draft that must be refused; why it was."""
    (result,) = await opened.bus.append([draft])
    assert not isinstance(result, Stored)
    return type(result)


async def send(opened: Opened, id: str) -> None:
    """Have a parked message appended again, at once."""
    await change(opened, Wake("bob", key(id)))
    await store(opened.bus, again(await found(opened, key(id)), opened.now()))


async def die(opened: Opened, draft: Draft, reason: str = "expired") -> None:
    """Store a message, and have it given up: as its ttl runs out, or written as often as it may."""
    await store(opened.bus, draft)
    assert draft.mark is not None
    assert draft.terms is not None
    user, name, attempt = draft.mark.user, draft.mark.key, 1
    if reason == "deliveries":
        for attempt in range(1, draft.terms.deliveries + 1):
            if attempt > 1:
                await store(opened.bus, again(await found(opened, name), opened.now()))
            await change(opened, Written(user, name, attempt))
            opened.advance(((await found(opened, name)).next - opened.now()) / 1000)
        give_up = GiveUp(user, name, attempt, "deliveries")
    else:
        opened.advance(draft.ttl)
        give_up = GiveUp(user, name, attempt, "expired")
    assert await outcome(opened, give_up) == "made"


def ask_again_of_nothing(draft: Draft) -> Draft:
    """The same attempt of a message that was never published."""
    assert draft.mark is not None
    mark = Mark(draft.mark.priority, "redelivery", "bob", key("never"), draft.mark.attempt)
    return Draft(
        "never", "", draft.channels, draft.type, "tests", draft.ttl, draft.body, None, mark
    )


async def pending(
    opened: Opened, user: str = "bob", *, limit: int = 100, size: int = 16 * MIB
) -> list[str]:
    """The ids of what is pending of a user, read page by page."""
    ids: list[str] = []
    after: Place | None = None
    while True:
        page = await opened.bus.outbox.page(user, after, limit, size)
        ids += [record.id for record in page.records]
        assert len(page.records) <= limit
        assert page.records or page.next is None
        if page.next is None:
            return ids
        after = page.next


async def dead_letters(
    opened: Opened, service: str = "tests", *, limit: int = 100, size: int = 16 * MIB
) -> list[str]:
    """The ids of the dead letters of a service, read page by page."""
    ids: list[str] = []
    after: str | None = None
    while True:
        page = await opened.bus.outbox.dead_letters(service, after, limit, size)
        ids += [record.id for record in page.records]
        assert len(page.records) <= limit
        assert page.records or page.next is None
        if page.next is None:
            return ids
        after = page.next


async def history(opened: Opened, *channels: str) -> list[list[str]]:
    """The ids in the histories of some channels."""
    pages = await opened.bus.history(channels, None, 1_000)
    return [[_id(linked.entry) for linked in page.entries] for page in pages]


def _id(entry: Entry) -> str:
    return entry.body.partition(b'"id":"')[2].partition(b'"')[0].decode()


@asynccontextmanager
async def following(bus: Bus) -> AsyncIterator[Callable[[int], Awaitable[Sequence[Entry]]]]:
    """Read a bus's log from now on: a call gives the next so many entries."""
    start = await bus.end()
    await store(bus, make(None, "marker", service="markers"))
    async with aclosing(bus.tail(start)) as tail:
        first = await anext(tail)
        assert not isinstance(first, Cut)
        assert len(first) == 1

        async def entries(number: int) -> Sequence[Entry]:
            got: list[Entry] = []
            while len(got) < number:
                batch = await anext(tail)
                assert not isinstance(batch, Cut)
                got.extend(batch)
            assert len(got) == number
            return got

        yield entries
