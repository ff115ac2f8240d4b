"""What every limiter promises. A limiter's own test module derives from `LimiterContract` and says
how to open one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from msgpush.domain.ports import Limiter


class Opened(NamedTuple):
    """The same rate at one instance or more, and a way to let time pass: at least so much of it."""

    instances: list[Limiter]
    wait: Callable[[float], Awaitable[None]]


class LimiterContract:
    """Subclass it, and say how limiters of a rate are opened."""

    def open(self, rate: float) -> AbstractAsyncContextManager[Opened]:
        raise NotImplementedError

    async def test_a_burst_is_granted_and_no_more(self) -> None:
        async with self.open(0.1) as opened:
            limiter = opened.instances[0]
            assert limiter.burst == 1
            first = await limiter.take("bob", 1)
            assert (first.granted, first.remaining) == (1, 0)
            assert 9 < first.retry_after <= 10
            again = await opened.instances[-1].take("bob", 1)
            assert (again.granted, again.remaining) == (0, 0)
            assert 9 < again.retry_after <= 10

    async def test_of_many_as_many_are_granted_as_there_are(self) -> None:
        async with self.open(50) as opened:
            limiter = opened.instances[0]
            assert limiter.burst == 50
            first = await limiter.take("bob", 20)
            assert first.granted == 20
            assert 30 <= first.remaining < 50
            rest = await limiter.take("bob", 10_000)
            assert 30 <= rest.granted < 50
            assert rest.remaining < 5

    async def test_tokens_come_in_at_the_rate_and_the_bucket_never_overflows(self) -> None:
        async with self.open(20) as opened:
            limiter = opened.instances[0]
            assert (await limiter.take("bob", 20)).granted == 20
            await opened.wait(0.25)
            some = (await limiter.take("bob", 20)).granted
            assert 5 <= some < 20
            await opened.wait(1.2)
            assert (await limiter.take("bob", 100)).granted == 20

    async def test_subjects_do_not_touch_one_another(self) -> None:
        async with self.open(0.1) as opened:
            for subject in ("bob", "alice", "", "a b\n*ü", "\ud800", "x" * 10_000):
                assert (await opened.instances[0].take(subject, 1)).granted == 1
                assert (await opened.instances[-1].take(subject, 1)).granted == 0

    async def test_many_who_ask_at_once_get_together_what_there_is(self) -> None:
        async with self.open(100) as opened:
            instances = opened.instances
            asking = [instances[number % len(instances)].take("bob", 1) for number in range(1_000)]
            granted = sum(allowance.granted for allowance in await asyncio.gather(*asking))
            assert 100 <= granted < 600

    async def test_who_stops_waiting_takes_nobody_else_with_them(self) -> None:
        async with self.open(100) as opened:
            limiter = opened.instances[0]
            asking = [asyncio.create_task(limiter.take("bob", 1)) for _ in range(20)]
            await asyncio.sleep(0)
            for task in asking[1::2]:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            assert [task.result().granted for task in asking[::2]] == [1] * 10

    async def test_nothing_is_kept_of_full_buckets(self) -> None:
        async with self.open(1_000) as opened:
            for number in range(1_500):
                await opened.instances[0].take(f"subject{number}", 1)
            await opened.wait(0.1)
            for number in range(1_100):
                await opened.instances[0].take(f"again{number}", 1)
            await opened.wait(0.1)
            await self.kept_at_most(opened.instances[0], 1_500)

    async def kept_at_most(self, limiter: Limiter, number: int) -> None:
        """Check how many buckets are kept."""
        raise NotImplementedError
