"""A rate for each subject that all instances share, in Redis."""

import asyncio
from collections import deque
from importlib.resources import files
from math import ceil
from typing import NamedTuple, Self

from msgpush.adapters.redis_link import HASH_TAG, Link, NotNow, RedisTarget, Script
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import Allowance

GROUP = 256
RATE = (files("msgpush.adapters") / "rate.lua").read_text()


class _Asking(NamedTuple):
    subject: str
    wanted: int
    answer: asyncio.Future[Allowance]


class RedisLimiter:
    """A token bucket a subject, in Redis. An async context manager.

    Those who ask while Redis is being asked are the next question together.

    Args:
        rate: tokens a second that come in; at most those of one second stay.
    """

    def __init__(self, target: RedisTarget, rate: float) -> None:
        self.rate = rate
        self.burst = max(1, ceil(rate))
        self._link = Link(target, "msgpush-limiter")
        self._script = Script(RATE)
        self._asking: deque[_Asking] = deque()
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    async def take(self, subject: str, wanted: int) -> Allowance:
        asking = _Asking(subject, wanted, asyncio.get_running_loop().create_future())
        self._asking.append(asking)
        while not asking.answer.done():
            async with self._turn:
                if not asking.answer.done():
                    await self._ask()
        return asking.answer.result()

    async def _ask(self) -> None:
        group = [self._asking.popleft() for _ in range(min(GROUP, len(self._asking)))]
        keys = [f"{HASH_TAG}:rate:{each.subject}".encode(errors="surrogatepass") for each in group]
        args: list[str | int] = [repr(self.rate), self.burst, *(each.wanted for each in group)]
        try:
            (answers,) = await self._link.script(self._script, keys, args)
        except (NotNow, BusUnavailable) as error:
            # Those behind them would find the same, and have waited as long already.
            self._fail([*group, *self._asking], str(error))
            self._asking.clear()
            return
        except BaseException:
            # Who has asked for all of them has gone.
            self._fail(group, "the rate can't be found out")
            raise
        for each, granted, left in zip(group, answers[::2], map(float, answers[1::2]), strict=True):
            if not each.answer.done():
                allowance = Allowance(granted, max(0, int(left + 1e-6)), max(0.0, (1 - left) / self.rate))
                each.answer.set_result(allowance)

    def _fail(self, group: list[_Asking], detail: str) -> None:
        for each in group:
            if not each.answer.done():
                each.answer.set_exception(BusUnavailable(detail))
                each.answer.exception()  # it is no mistake if nobody waits for it any more
