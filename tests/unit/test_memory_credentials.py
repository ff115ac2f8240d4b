"""The credentials of a single process keep the contract, and so does its limiter."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgpush.adapters.memory.credentials import MemoryCredentials
from msgpush.adapters.memory.limiter import MemoryLimiter
from msgpush.domain.credentials import MOST, Ticket
from msgpush.domain.ports import Limiter
from tests.contracts import credentials, limiter
from tests.support.fakes import FakeClock


class TestMemoryCredentials(credentials.CredentialsContract):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[credentials.Opened]:
        clock = FakeClock()

        async def wait(seconds: float) -> None:
            clock.advance(seconds)

        kept = MemoryCredentials(lifetime=credentials.LIFETIME, clock=clock.now)
        yield credentials.Opened([kept], clock.now, wait)

    async def test_nothing_is_kept_of_tickets_whose_time_is_over(self) -> None:
        clock = FakeClock()
        kept = MemoryCredentials(lifetime=credentials.LIFETIME, clock=clock.now)
        for number in range(100):
            await kept.add_ticket(
                f"d{number}", Ticket("bob", ("a",), clock.now() + 600, None, None), 60
            )
        for before in ("", "c", "c"):
            assert await credentials.claim(kept, "d0", "c", before, clock.now() + 600)
        clock.advance(60)
        assert await kept.ticket("d1") is None
        assert len(kept) == 1
        clock.advance(540)
        assert await kept.ticket("d0") is None
        assert len(kept) == 0

    async def test_tickets_that_had_to_go_leave_nothing_behind(self) -> None:
        clock = FakeClock()
        kept = MemoryCredentials(lifetime=credentials.LIFETIME, clock=clock.now)
        for number in range(2 * MOST):
            await kept.add_ticket(
                f"d{number}", Ticket("bob", ("a",), clock.now() + 600, None, None), 60
            )
            assert await credentials.claim(kept, f"d{number}", "c", "", clock.now() + 600)
        assert len(kept) == MOST
        assert len(kept._by_end) <= 1_000 + 2 * MOST
        clock.advance(600)
        assert await kept.ticket(f"d{2 * MOST - 1}") is None
        assert len(kept) == len(kept._by_end) == 0


class TestMemoryLimiter(limiter.LimiterContract):
    @asynccontextmanager
    async def open(self, rate: float) -> AsyncIterator[limiter.Opened]:
        clock = FakeClock()

        async def wait(seconds: float) -> None:
            clock.advance(seconds)

        yield limiter.Opened([MemoryLimiter(rate, clock=clock.monotonic)], wait)

    async def kept_at_most(self, limiter: Limiter, number: int) -> None:
        assert isinstance(limiter, MemoryLimiter)
        assert len(limiter) <= number
