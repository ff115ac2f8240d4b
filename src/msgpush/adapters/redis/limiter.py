"""A rate for each subject that all instances share, in Redis."""

from collections.abc import Sequence
from math import ceil
from typing import Self

from msgpush.adapters.redis.batching import Batcher
from msgpush.adapters.redis.link import HASH_TAG, Link, Script, lua
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.rates import Allowance, allowance

RATE = lua("rate")


class RedisLimiter:
    """A token bucket a subject, in Redis. An async context manager.

    Args:
        rate: tokens a second that come in; at most those of one second stay.
    """

    def __init__(self, target: RedisTarget, rate: float) -> None:
        self.rate = rate
        self.burst = max(1, ceil(rate))
        self._link = Link(target, "msgpush-limiter")
        self._script = Script(RATE)
        self._take: Batcher[tuple[str, int], Allowance] = Batcher(self._take_all)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._take.close()
        await self._link.close()

    async def take(self, subject: str, wanted: int) -> Allowance:
        return await self._take((subject, wanted))

    async def _take_all(self, asking: Sequence[tuple[str, int]]) -> list[Allowance]:
        keys = [
            f"{HASH_TAG}:rate:{subject}".encode(errors="surrogatepass") for subject, _ in asking
        ]
        args: list[str | int] = [repr(self.rate), self.burst, *(wanted for _, wanted in asking)]
        answers = await self._link.script(self._script, keys, args)
        return [
            allowance(granted, left, self.rate, self.burst)
            for granted, left in zip(answers[::2], map(float, answers[1::2]), strict=True)
        ]
