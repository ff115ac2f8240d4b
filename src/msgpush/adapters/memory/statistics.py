"""The statistics of a single process, packed; they end with it."""

import time
from collections.abc import Callable, Mapping

from msgpush.domain.counts import HOUR, KEPT, MINUTE, Counts, Step, pack, unpack
from msgpush.domain.tally import MAX_SERVICES, OTHER


class MemoryStatistics:
    """What became of messages in this process.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: dict[Step, dict[int, bytes]] = {MINUTE: {}, HOUR: {}}
        # Each service's number, and the hour in which it was counted last.
        self._services: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, int] = {}

    async def add(self, source: str, number: int, minutes: Mapping[int, Counts]) -> None:
        if number <= self._seen.get(source, 0):
            return
        self._seen[source] = number
        now = int(self._clock())
        self._forget(now)
        for minute, counts in minutes.items():
            at = min(minute * MINUTE, now)
            told_apart = self._told_apart(counts, now)
            for step, kept in self._kept.items():
                if _oldest(step, now) <= at // step:
                    self._add(kept, at // step, told_apart)

    async def read(self, step: Step, first: int, last: int) -> dict[int, Counts]:
        kept, names = self._kept[step], self._names()
        oldest = _oldest(step, int(self._clock()))
        return {
            place: unpack(kept[place], names)
            for place in range(max(first, oldest), last + 1)
            if place in kept
        }

    def _add(self, kept: dict[int, bytes], place: int, counts: Counts) -> None:
        sum = unpack(kept[place], self._names()) if place in kept else Counts()
        sum.add(counts)
        kept[place] = pack(sum, lambda service: self._services[service][0])

    def _names(self) -> dict[int, str]:
        return {number: name for name, (number, _) in self._services.items()}

    def _forget(self, now: int) -> None:
        for step, kept in self._kept.items():
            # They were put there in the order of time, but for a few.
            for place in [place for place in kept if place < _oldest(step, now)]:
                del kept[place]

    def _told_apart(self, counts: Counts, now: int) -> Counts:
        """The same, with `other` in the place of services that are too many."""
        told = Counts()
        told.types, told.latency = counts.types, counts.latency
        for service, row in counts.services.items():
            named = Counts()
            named.services[self._known(service, now // HOUR)] = row
            told.add(named)
        return told

    def _known(self, service: str, hour: int) -> str:
        if not service or service == OTHER:
            return service
        if service not in self._services and len(self._services) >= MAX_SERVICES:
            # Of whom nothing is kept any more gives its number to another.
            gone = hour - KEPT[HOUR] // HOUR - 1
            self._services = {
                name: known for name, known in self._services.items() if known[1] >= gone
            }
            if len(self._services) >= MAX_SERVICES:
                return OTHER
        if service not in self._services:
            taken = {number for number, _ in self._services.values()}
            free = next(number for number in range(MAX_SERVICES) if number not in taken)
            self._services[service] = free, hour
        else:
            self._services[service] = self._services[service][0], hour
        return service


def _oldest(step: Step, now: int) -> int:
    """The oldest step that is kept."""
    return (now - KEPT[step]) // step
