"""A rate for each subject, in a single process's memory."""

import time
from collections.abc import Callable
from math import ceil

from msgpush.domain.rates import Allowance, allowance


class MemoryLimiter:
    """A token bucket a subject: `rate` tokens a second come in, and `burst` of them stay at most.

    Of each subject one moment is kept, the one at which its bucket is full again (the generic cell
    rate algorithm).

    Args:
        burst: None takes what comes in within a second.
        clock: seconds of a clock that never jumps.
    """

    def __init__(
        self, rate: float, burst: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self.burst = burst or max(1, ceil(rate))
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._crowded = 1_000

    def __len__(self) -> int:
        return len(self._full_at)

    async def take(self, subject: str, wanted: int) -> Allowance:
        now = self._clock()
        full_at = max(now, self._full_at.get(subject, now))
        there = self.burst - (full_at - now) * self.rate
        # A hair more than there is, or rounding would refuse the token that has just come in.
        granted = min(wanted, max(0, int(there + 1e-6)))
        if granted:
            self._full_at[subject] = full_at + granted / self.rate
            if len(self._full_at) >= self._crowded:
                self._forget(now)
        return allowance(granted, there - granted, self.rate, self.burst)

    def _forget(self, now: float) -> None:
        self._full_at = {subject: at for subject, at in self._full_at.items() if at > now}
        self._crowded = max(1_000, 2 * len(self._full_at))
