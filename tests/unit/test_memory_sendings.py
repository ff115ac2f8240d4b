"""What a single process is to push keeps the contract."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.contracts.outbox import Limits, Opened
from tests.contracts.sendings import SendingsContract, due, over
from tests.support.fakes import FakeClock
from tests.support.pushes import push
from tests.unit.test_memory_outbox import open_outbox


class TestMemorySendings(SendingsContract):
    @asynccontextmanager
    async def open(self, limits: Limits = Limits()) -> AsyncIterator[Opened]:  # noqa: B008
        clock = FakeClock()
        bus = open_outbox(clock, limits)
        yield Opened(bus, lambda: int(clock.now() * 1000), clock.advance)

    async def test_nothing_is_kept_of_what_is_over(self) -> None:
        clock = FakeClock()
        bus = open_outbox(clock)
        opened = Opened(bus, lambda: int(clock.now() * 1000), clock.advance)
        for number in range(100):
            await bus.append([push(f"m{number}", ack=None)])
        await bus.sendings.settle([over(sending) for sending, _ in await due(opened)])
        assert not bus.sendings._sendings
        assert not bus.sendings._when
        assert bus.outbox.used == 0
        assert not bus.outbox._by_service
