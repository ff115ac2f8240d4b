"""The embedded outbox keeps the contract, and its memory within bounds."""

from collections.abc import AsyncIterator, Sized
from contextlib import asynccontextmanager

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.memory.outbox import MemoryOutbox
from msgpush.domain.outbox import OVERHEAD, Acknowledge
from msgpush.domain.ports import Bus, Stored
from tests.contracts.outbox import Limits, Opened, OutboxContract
from tests.contracts.outbox_machine import SMALL, run_outbox_machine
from tests.support.asking import ask, key
from tests.support.fakes import FakeClock, make


def open_outbox(clock: FakeClock, limits: Limits = Limits()) -> MemoryBus:  # noqa: B008 - frozen
    """A bus whose outbox has these limits, by this clock."""
    outbox = MemoryOutbox(
        size=limits.pending_bytes,
        dead_letter_size=limits.dead_letter_bytes,
        max_pending=limits.max_pending,
        dead_letter_ttl=limits.dead_letter_ttl,
        clock=clock.now,
        monotonic=clock.monotonic,
        jitter=lambda: 1.0,
    )
    return MemoryBus(outbox=outbox, clock=clock.now)


class TestMemoryOutbox(OutboxContract):
    @asynccontextmanager
    async def open(self, limits: Limits = Limits()) -> AsyncIterator[Opened]:  # noqa: B008
        clock = FakeClock()
        bus = open_outbox(clock, limits)
        yield Opened(bus, lambda: int(clock.now() * 1000), clock.advance)

    def test_any_history_of_messages_and_rounds_agrees_with_a_simple_model(self) -> None:
        most = SMALL.pending_bytes // 4 // OVERHEAD
        run_outbox_machine(self.open, examples=400, totals=totals, most_ended=most)


def totals(bus: Bus) -> list[int]:
    """All that the embedded outbox keeps or counts."""
    outbox = bus.outbox
    assert isinstance(outbox, MemoryOutbox)
    kept: list[Sized] = [
        outbox._records,
        outbox._pending,
        outbox._mailboxes,
        outbox._newest,
        outbox._dead,
        outbox._all_dead,
        outbox._by_service,
        outbox._when,
    ]
    sizes = (outbox.pending, outbox.used, outbox._pending_size, outbox._dead_size)
    return [*(len(each) for each in kept), *sizes]


async def test_however_many_are_acknowledged_the_outbox_keeps_within_the_bytes_of_its_bus() -> None:
    clock = FakeClock()
    bus = MemoryBus(size=200_000, clock=clock.now)
    for n in range(1_000):
        (result,) = await bus.append([ask(f"m{n}")])
        if isinstance(result, Stored):
            await bus.outbox.change([Acknowledge("bob", key(f"m{n}"))])
        clock.advance(1)
    assert bus.used + bus.outbox.used <= 200_000


async def test_the_histories_make_room_for_what_waits() -> None:
    bus = MemoryBus(size=200_000, clock=FakeClock().now)
    for n in range(200):
        await bus.append([make(f"m{n}", "a", data={"x": "y" * 1_000})])
    results = await bus.append([ask(f"w{n}", data={"x": "y" * 1_000}) for n in range(10)])
    assert all(isinstance(each, Stored) for each in results)
    assert bus.used + bus.outbox.used <= 200_000
    assert bus.outbox.pending == 10
