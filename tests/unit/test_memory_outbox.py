"""The embedded outbox keeps the contract, and its memory within bounds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.memory.outbox import MemoryOutbox
from tests.contracts.outbox import Limits, Opened, OutboxContract
from tests.support.fakes import FakeClock


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
