"""What every bus promises. A bus's own test module derives from `BusContract` and says how to open
one.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from msgpush.domain.errors import Conflict
from msgpush.domain.history import Reason, Replay
from msgpush.domain.message import Draft, Entry
from msgpush.domain.ports import Bus, Cut, Stored
from msgpush.domain.position import ZERO, Position
from tests.support.fakes import FakeClock, make

type_ = type


class Read(NamedTuple):
    """What a reader got that continued after a cursor, to the log's end."""

    ids: list[str]
    missing: list[tuple[str, Reason]]


class BusContract:
    """Subclass it, and say how a bus is opened.

    `slack` is how many messages more than `history_length` a history may keep.
    """

    slack = 0

    def open(
        self, clock: FakeClock, history_length: int = 1000
    ) -> AbstractAsyncContextManager[Bus]:
        raise NotImplementedError

    async def test_an_append_gives_rising_positions_in_the_order_of_the_batch(self) -> None:
        async with self.open(FakeClock()) as bus:
            positions = await store(bus, *[make(f"m{n}", "a") for n in range(5)])
            assert positions == sorted(set(positions))
            assert (await read(bus, ["a"], None)).ids == [f"m{n}" for n in range(5)]

    async def test_positions_rise_even_when_the_clock_steps_back(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as bus:
            first = await store(bus, make("m1", "a"))
            clock.advance(-10)
            second = await store(bus, make("m2", "a"))
            assert first < second
            assert (await read(bus, ["a"], first[0])).ids == ["m2"]

    async def test_a_message_is_in_the_history_of_each_of_its_channels_at_one_position(
        self,
    ) -> None:
        async with self.open(FakeClock()) as bus:
            (position,) = await store(bus, make("m1", "a", "b"))
            pages = await bus.history(["a", "b", "service:tests"], None, 10)
            assert [[linked.entry.position for linked in page.entries] for page in pages] == [
                [position]
            ] * 3

    async def test_the_newest_of_a_channel_come_backwards_page_by_page(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as bus:
            await store(bus, *[make(f"m{n}", "a", ttl=60) for n in range(5)], make("other", "b"))
            ids, before = list[list[str]](), None
            while entries := await bus.newest("a", before, 2):
                ids.append([_id(entry) for entry in entries])
                before = entries[-1].position
            assert ids == [["m4", "m3"], ["m2", "m1"], ["m0"]]
            assert await bus.newest("none", None, 2) == []

    async def test_a_reader_of_several_channels_gets_a_message_of_them_all_once(self) -> None:
        async with self.open(FakeClock()) as bus:
            await store(bus, make("m1", "a", "b"), make("m2", "b"), make("m3", "a", "b"))
            assert await read(bus, ["a", "b"], None) == Read(["m1", "m2", "m3"], [])

    async def test_a_cursor_at_any_message_resumes_with_the_next(self) -> None:
        async with self.open(FakeClock()) as bus:
            positions = await store(bus, *[make(f"m{n}", "ab"[n % 2]) for n in range(10)])
            for n, position in enumerate(positions):
                later = [f"m{k}" for k in range(n + 1, 10)]
                assert await read(bus, ["a", "b"], position) == Read(later, [])

    async def test_a_channel_without_messages_has_no_gap(self) -> None:
        async with self.open(FakeClock()) as bus:
            (position,) = await store(bus, make("m1", "a"))
            assert await read(bus, ["never"], position) == Read([], [])

    async def test_what_history_length_drops_is_told_to_those_who_needed_it_and_to_nobody_else(
        self,
    ) -> None:
        total = 6 + self.slack
        async with self.open(FakeClock(), history_length=3) as bus:
            positions = await store(bus, *[make(f"m{n}", "a") for n in range(total)])
            kept = (await read(bus, ["a"], None)).ids
            first = total - len(kept)
            assert 3 <= len(kept) <= 3 + self.slack
            assert kept == [f"m{n}" for n in range(first, total)]
            assert await read(bus, ["a"], positions[first - 2]) == Read(kept, [("a", "trimmed")])
            assert await read(bus, ["a"], positions[first - 1]) == Read(kept, [])

    async def test_what_another_channel_drops_is_no_gap(self) -> None:
        async with self.open(FakeClock(), history_length=3) as bus:
            (position,) = await store(bus, make("m0", "quiet"))
            await store(bus, *[make(f"n{n}", "busy") for n in range(9)])
            assert await read(bus, ["quiet"], position) == Read([], [])

    async def test_an_expired_message_is_told_and_its_successors_are_delivered(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as bus:
            (start,) = await store(bus, make("m0", "a"))
            await store(bus, make("short", "a", ttl=1), make("long", "a", ttl=100))
            clock.advance(2)
            assert await read(bus, ["a"], start, clock) == Read(["long"], [("a", "expired")])
            assert await read(bus, ["a"], None, clock) == Read(["m0", "long"], [])

    async def test_a_history_that_has_expired_altogether_is_told(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as bus:
            (start,) = await store(bus, make("m0", "a", ttl=1))
            (last,) = await store(bus, make("m1", "a", ttl=1))
            clock.advance(60)
            assert await read(bus, ["a"], start, clock) == Read([], [("a", "expired")])
            assert await read(bus, ["a"], last, clock) == Read([], [])

    async def test_a_message_after_a_forgotten_channel_makes_a_gap_for_an_old_cursor_only(
        self,
    ) -> None:
        clock = FakeClock()
        async with self.open(clock) as bus:
            (start,) = await store(bus, make("m0", "a", ttl=1))
            await store(bus, make("m1", "a", ttl=1))
            clock.advance(3 * 86_400)
            (fresh,) = await store(bus, make("m2", "other"))
            await store(bus, make("m3", "a"))
            old = await read(bus, ["a"], start, clock)
            assert old.ids == ["m3"]
            assert old.missing
            assert await read(bus, ["a"], fresh, clock) == Read(["m3"], [])

    async def test_a_message_lives_until_the_last_moment_of_its_ttl(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as bus:
            await store(bus, make("m0", "a", ttl=10))
            clock.advance(9.9)
            assert (await read(bus, ["a"], None, clock)).ids == ["m0"]
            clock.advance(0.2)
            assert (await read(bus, ["a"], None, clock)).ids == []

    async def test_the_same_message_again_is_stored_once_and_answered_alike(self) -> None:
        async with self.open(FakeClock()) as bus:
            (first,) = await bus.append([make("m1", "a")])
            (again,) = await bus.append([make("m1", "a")])
            assert isinstance(first, Stored)
            assert again == Stored(first.position, first.timestamp, True)
            assert (await read(bus, ["a"], None)).ids == ["m1"]

    async def test_the_same_id_with_other_content_is_a_conflict_and_not_stored(self) -> None:
        async with self.open(FakeClock()) as bus:
            await store(bus, make("m1", "a"))
            (other,) = await bus.append([make("m1", "a", data={"x": 1})])
            assert isinstance(other, Conflict)
            assert (await read(bus, ["a"], None)).ids == ["m1"]

    async def test_the_same_id_of_another_service_is_another_message(self) -> None:
        async with self.open(FakeClock()) as bus:
            await store(bus, make("m1", "a", service="one"), make("m1", "a", service="two"))
            assert (await read(bus, ["a"], None)).ids == ["m1", "m1"]

    async def test_within_one_batch_a_repetition_is_a_duplicate_and_a_conflict_stands_alone(
        self,
    ) -> None:
        async with self.open(FakeClock()) as bus:
            results = await bus.append(
                [make("m1", "a"), make("m1", "a"), make("m1", "b"), make("m2", "a")]
            )
            assert [type_(each) for each in results] == [Stored, Stored, Conflict, Stored]
            assert [each.duplicate for each in results if isinstance(each, Stored)] == [
                False,
                True,
                False,
            ]
            assert (await read(bus, ["a"], None)).ids == ["m1", "m2"]

    async def test_an_id_is_remembered_for_ten_minutes(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as bus:
            await store(bus, make("m1", "a"))
            clock.advance(599)
            (again,) = await bus.append([make("m1", "a")])
            clock.advance(2)
            (anew,) = await bus.append([make("m1", "a")])
            assert isinstance(again, Stored)
            assert again.duplicate
            assert isinstance(anew, Stored)
            assert not anew.duplicate

    async def test_the_tail_gives_the_whole_log_in_order_with_unbroken_links(self) -> None:
        async with self.open(FakeClock()) as bus:
            start = await bus.end()
            got: list[Entry] = []
            tail = bus.tail(start)
            reading = asyncio.ensure_future(collect(tail, got, 6))
            await store(bus, make("m0", "a"), make("m1", "b"))
            await store(bus, *[make(f"m{n}", "a") for n in range(2, 6)])
            async with asyncio.timeout(5):
                await reading
            assert [entry.position for entry in got] == sorted(entry.position for entry in got)
            assert [entry.prev for entry in got] == [start, *[entry.position for entry in got[:-1]]]

    async def test_a_tail_from_a_position_begins_with_the_next_entry(self) -> None:
        async with self.open(FakeClock()) as bus:
            positions = await store(bus, *[make(f"m{n}", "a") for n in range(4)])
            got: list[Entry] = []
            async with asyncio.timeout(5):
                await collect(bus.tail(positions[1]), got, 2)
            assert [entry.position for entry in got] == positions[2:]

    async def test_the_end_is_the_newest_position(self) -> None:
        async with self.open(FakeClock()) as bus:
            positions = await store(bus, make("m0", "a"), make("m1", "b"))
            assert await bus.end() == positions[-1]

    async def test_pages_continue_where_the_last_one_ended(self) -> None:
        async with self.open(FakeClock()) as bus:
            await store(bus, *[make(f"m{n}", "a") for n in range(5)])
            (page,) = await bus.history(["a"], None, 2)
            assert (len(page.entries), page.more) == (2, True)
            (rest,) = await bus.history(["a"], page.entries[-1].entry.position, 10)
            assert (len(rest.entries), rest.more) == (3, False)
            assert rest.entries[0].prev == page.entries[-1].entry.position

    def test_any_history_of_appends_reads_and_waits_agrees_with_a_simple_model(self) -> None:
        machine = type("Machine", (BusMachine,), {"open_bus": staticmethod(self.open)})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


async def store(bus: Bus, *drafts: Draft) -> list[Position]:
    """Append drafts that must all be accepted."""
    results = await bus.append(drafts)
    assert all(isinstance(each, Stored) for each in results), results
    return [each.position for each in results if isinstance(each, Stored)]


async def read(
    bus: Bus,
    channels: Sequence[str],
    after: Position | None,
    clock: FakeClock | None = None,
    limit: int = 2,
) -> Read:
    """Read as a client does that continues after a cursor: page by page, to the end."""
    now = int((clock or FakeClock()).now() * 1000)
    replay = Replay(after, now)
    end = await bus.end()
    result = Read([], [])
    while replay.after is None or replay.after < end:
        pages = await bus.history(channels, replay.after, limit)
        found = replay.step(dict(zip(channels, pages, strict=True)), end, now)
        result.ids.extend(_id(entry) for entry in found.entries)
        result.missing.extend(found.missing)
    return result


async def collect(
    tail: AsyncGenerator[Sequence[Entry] | Cut, None], into: list[Entry], number: int
) -> None:
    """Read a tail until it has given so many entries."""
    async with aclosing(tail):
        async for entries in tail:
            assert not isinstance(entries, Cut)
            into.extend(entries)
            if len(into) >= number:
                return


def _id(entry: Entry) -> str:
    return entry.body.partition(b'"id":"')[2].partition(b'"')[0].decode()


class Known(NamedTuple):
    """A message that the model has seen accepted."""

    id: str
    channels: frozenset[str]
    position: Position
    expires: float
    digest: bytes
    accepted_at: float


CHANNELS = ("a", "b", "c")
HISTORY = 4


class BusMachine(RuleBasedStateMachine):
    """Any sequence of appends, waits and reads, against a list of all that was ever accepted."""

    open_bus: Callable[..., AbstractAsyncContextManager[Bus]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.opening = self.open_bus(self.clock, HISTORY)
        self.log: list[Known] = []
        self.counter = 0

    @initialize()
    def begin(self) -> None:
        self.bus = self.runner.run(self.opening.__aenter__())

    @rule(
        channels=st.lists(
            st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True),
            min_size=1,
            max_size=4,
        ),
        ttl=st.sampled_from([1, 5, 3600]),
    )
    def append(self, channels: list[list[str]], ttl: int) -> None:
        drafts = []
        for names in channels:
            self.counter += 1
            drafts.append(make(f"m{self.counter}", *names, ttl=ttl))
        now = self.clock.now()
        positions = self.runner.run(store(self.bus, *drafts))
        for each, position in zip(drafts, positions, strict=True):
            assert each.digest is not None
            self.log.append(
                Known(
                    each.id,
                    frozenset(each.channels),
                    position,
                    position.ms / 1000 + ttl,
                    each.digest,
                    now,
                )
            )

    @precondition(lambda self: self.log)
    @rule(data=st.data(), same=st.booleans())
    def repeat(self, data: st.DataObject, same: bool) -> None:
        known = data.draw(st.sampled_from(self.log[-5:]))
        if self.clock.now() - known.accepted_at >= 600:
            return
        ttl = round(known.expires - known.position.ms / 1000)
        channels = sorted(known.channels - {"service:tests"})
        draft = make(known.id, *channels, ttl=ttl, data={} if same else {"other": True})
        (result,) = self.runner.run(self.bus.append([draft]))
        if draft.digest == known.digest:
            assert isinstance(result, Stored)
            assert (result.position, result.duplicate) == (known.position, True)
        else:
            assert isinstance(result, Conflict)

    @rule(seconds=st.sampled_from([0.001, 0.5, 2.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(
        data=st.data(),
        channels=st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True),
        limit=st.integers(1, 5),
    )
    def resume(self, data: st.DataObject, channels: list[str], limit: int) -> None:
        after = data.draw(st.sampled_from([None, *[known.position for known in self.log[-12:]]]))
        got = self.runner.run(read(self.bus, channels, after, self.clock, limit))
        now = self.clock.now()
        due = [
            each
            for each in self.log
            if each.position > (after or ZERO) and each.channels.intersection(channels)
        ]
        alive = [each for each in due if each.expires > now]
        assert len(set(got.ids)) == len(got.ids)
        assert got.ids == [each.id for each in alive if each.id in set(got.ids)], (
            "in order, and nothing else"
        )
        told = {channel for channel, _ in got.missing}
        for channel in channels:
            mine = [each for each in due if channel in each.channels]
            kept = [each.id for each in mine[-HISTORY:] if each.expires > now]
            assert set(kept) <= set(got.ids), "the newest are retained"
            if any(each.id not in got.ids for each in mine) and after is not None:
                assert channel in told, "what is missing is told"
            # A message can reach the reader through another of its channels, when this one has
            # dropped it already.
            if len(mine) <= HISTORY and all(each.expires > now for each in mine):
                assert channel not in told, "a gap is told where nothing is missing"
        assert after is not None or not told, "from the earliest, nothing can be missing"

    @invariant()
    def the_end_is_known(self) -> None:
        if self.log:
            assert self.runner.run(self.bus.end()) == self.log[-1].position

    def teardown(self) -> None:
        if hasattr(self, "bus"):
            self.runner.run(self.opening.__aexit__(None, None, None))
        self.runner.close()
