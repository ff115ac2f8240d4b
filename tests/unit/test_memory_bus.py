"""The embedded bus keeps the contract, and its memory within bounds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.domain.ports import Bus
from tests.contracts.bus import BusContract, Read, read, store
from tests.support.fakes import FakeClock, make


class TestMemoryBus(BusContract):
    @asynccontextmanager
    async def open(self, clock: FakeClock, history_length: int = 1000) -> AsyncIterator[Bus]:
        yield MemoryBus(history_length=history_length, clock=clock.now)


async def test_beyond_the_byte_budget_the_oldest_messages_go_whatever_their_channel() -> None:
    bus = MemoryBus(size=20_000, clock=FakeClock().now)
    positions = await store(
        bus, *[make(f"m{n}", "ab"[n % 2], data={"x": "y" * 500}) for n in range(40)]
    )
    kept = await read(bus, ["a", "b"], None)
    assert 5 < len(kept.ids) < 40
    assert kept.ids == [f"m{n}" for n in range(40 - len(kept.ids), 40)]
    told = await read(bus, ["a", "b"], positions[0])
    assert told == Read(kept.ids, [("a", "trimmed"), ("b", "trimmed")])


async def test_a_cursor_within_what_the_budget_has_kept_has_no_gap() -> None:
    bus = MemoryBus(size=20_000, clock=FakeClock().now)
    positions = await store(bus, *[make(f"m{n}", "a", data={"x": "y" * 500}) for n in range(40)])
    assert await read(bus, ["a"], positions[-3]) == Read(["m38", "m39"], [])


async def test_a_million_channels_used_once_cost_no_more_than_the_budget() -> None:
    clock = FakeClock()
    bus = MemoryBus(size=1_000_000, clock=clock.now)
    for n in range(20_000):
        clock.advance(0.01)
        await bus.append([make(None, f"task:{n}", ttl=5)])
    assert bus.used <= 1_000_000
    assert bus.channels < 5_000


async def test_an_idle_channel_leaves_nothing_behind_after_its_ttl_and_a_day() -> None:
    clock = FakeClock()
    bus = MemoryBus(clock=clock.now)
    await store(bus, *[make(f"m{n}", f"c{n}", ttl=60) for n in range(100)])
    clock.advance(61)
    await bus.history(["c1"], None, 1)
    assert bus.length == 0
    clock.advance(86_400)
    await bus.history(["c1"], None, 1)
    assert (bus.channels, bus.used) == (0, 0)


async def test_a_tail_that_is_held_back_too_long_sees_that_entries_are_missing() -> None:
    bus = MemoryBus(clock=FakeClock().now)
    tail = bus.tail(await bus.end())
    await store(bus, make("m0", "a"))
    (first,) = await anext(tail)
    for _ in range(7):
        await store(bus, *[make(None, "a") for _ in range(10_000)])
    batch = await anext(tail)
    assert batch[0].prev > first.position
    await tail.aclose()


async def test_channels_that_come_and_go_leave_nothing_behind() -> None:
    clock = FakeClock()
    bus = MemoryBus(clock=clock.now)
    for _ in range(5):
        for n in range(2_000):
            await bus.append([make(None, f"task:{n}-{clock.now()}", ttl=1)])
        clock.advance(2 * 86_400)
    for _ in range(2_000):
        await bus.append([make(None, "often", ttl=1)])
        clock.advance(2)
    assert bus.channels == 2
    assert len(bus._oldest) + len(bus._dues) < 200


async def test_the_reason_of_a_gap_stays_when_new_messages_come() -> None:
    clock = FakeClock()
    bus = MemoryBus(clock=clock.now)
    (start,) = await store(bus, make("m0", "a", ttl=1))
    await store(bus, make("m1", "a", ttl=1))
    clock.advance(60)
    assert await read(bus, ["a"], start, clock) == Read([], [("a", "expired")])
    await store(bus, make("m2", "a"))
    assert await read(bus, ["a"], start, clock) == Read(["m2"], [("a", "expired")])
