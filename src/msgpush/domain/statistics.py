"""The statistics: every ten seconds what a tally has counted since goes to where all instances' add
up, by the minute in which it happened."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Self

from msgpush.domain.counts import HOUR, KEPT, MINUTE, Counts, counted
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import Statistics
from msgpush.domain.tally import Tally

INTERVAL = 10.0  # seconds
TOGETHER = 60  # minutes that are added in one call; there are more only after an outage
LEAVING = 1.0  # seconds in which the last differences may be added

HOURLY = HOUR // MINUTE  # minutes

log = logging.getLogger("msgpush.statistics")


class Recording:
    """Adds what a tally counts to the statistics, while it is open. An async context manager.

    What can't be added now is added later, and counted once even where only the answer was lost:
    what is under way keeps its number and its content until it is answered. It stays small however
    long that takes, since it adds up by minutes, and after a day by hours.

    Left last, after all that counts: so the statistics have everything of an instance that ends. A
    process that is killed takes with it what it has not added yet: of ten seconds, and of the time
    in which nothing could be added.

    Args:
        source: this instance's name, which no other has.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        tally: Tally,
        statistics: Statistics,
        source: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tally, self._statistics, self._source = tally, statistics, source
        self._clock = clock
        self._rows = {key: counted(row) for key, row in tally.rows.items()}
        self._latency = list(tally.latency.counts)
        self._since = clock()
        self._waiting: dict[int, Counts] = {}
        self._sending: dict[int, Counts] = {}
        self._number = 0
        self._failing = False
        self._adding = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of minutes that are still to be added."""
        return len(self._waiting.keys() | self._sending.keys())

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="msgpush statistics")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(LEAVING):
                await self.flush()
        except (BusUnavailable, TimeoutError):
            log.warning("the statistics of %d minutes are lost: they can't be added", self.waiting)

    async def _run(self) -> None:
        while True:
            # All instances at the same moments, so that minutes are whole ones.
            await asyncio.sleep(INTERVAL - self._clock() % INTERVAL)
            try:
                await self.flush()
                self._failing = False
            except BusUnavailable as error:
                if not self._failing:
                    log.warning("the statistics will be added later: %s", error)
                self._failing = True
            except Exception:
                log.exception("the statistics can't be added")

    async def flush(self) -> None:
        """Add what has been counted.

        Raises:
            BusUnavailable: some of it isn't known to be added; that is kept.
        """
        self._take()
        async with self._adding:
            while self._sending or self._waiting:
                if not self._sending:
                    self._number += 1
                    minutes = sorted(self._waiting)[:TOGETHER]
                    self._sending = {minute: self._waiting.pop(minute) for minute in minutes}
                await self._statistics.add(self._source, self._number, self._sending)
                self._sending = {}

    def _take(self) -> None:
        """Take what the tally has counted since the last time."""
        # It belongs to the minute in which the interval has begun.
        minute, self._since = int(self._since) // MINUTE, self._clock()
        counts = self._waiting.get(minute) or Counts()
        for key, row in self._tally.rows.items():
            now, before = counted(row), self._rows.get(key)
            if now != before:
                new = now if before is None else [a - b for a, b in zip(now, before, strict=True)]
                counts.count(*key, new)
                self._rows[key] = now
        latency = list(self._tally.latency.counts)
        if latency != self._latency:
            counts.observe([a - b for a, b in zip(latency, self._latency, strict=True)])
            self._latency = latency
        if counts:
            self._waiting[minute] = counts
        self._fold(int(self._since))

    def _fold(self, now: int) -> None:
        """Keep of minutes that nobody will ask for any more their hours alone."""
        for minute in [each for each in self._waiting if each * MINUTE < now - KEPT[MINUTE]]:
            if minute % HOURLY:
                counts = self._waiting.pop(minute)
                hour = self._waiting.setdefault(minute - minute % HOURLY, Counts())
                hour.add(counts)
            elif minute * MINUTE < now - KEPT[HOUR]:
                del self._waiting[minute]
