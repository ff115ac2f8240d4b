"""The tally: what has happened at this instance, in plain integers.

It is told on the hottest paths, so nothing here is formatted, locked or written anywhere: metrics
and statistics read it when they are asked for, and make of it what they need."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from msgspec import Struct

from msgpush.domain.connection import Connection
from msgpush.domain.errors import MsgpushError
from msgpush.domain.message import Draft, Entry
from msgpush.domain.observer import Observer, Source

MAX_SERVICES = 100
OTHER = "other"

# Seconds from a message's acceptance to its writing: the upper bounds of the buckets, which are
# fixed, so that histograms of any instances and times add up.
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """How many values fell into each bucket, and their sum; the last bucket has no bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Row(Struct):
    """What became of the messages of one service and type.

    Attributes:
        published: accepted, once each.
        failed: refused, or not stored.
        delivered: written to clients' streams, once for each stream, live or caught up on.
        acknowledged, dead: by clients; given up. Once each.
        pushed: sent to devices.
    """

    published: int = 0
    failed: int = 0
    delivered: int = 0
    acknowledged: int = 0
    dead: int = 0
    pushed: int = 0


class Tally(Observer):
    """Counts messages by service and type. The first 100 services are told apart; the rest is
    `other`.

    Args:
        clock: seconds since 1970.

    Attributes:
        rows: by service and type; a refused message of which neither is known has empty ones.
        latency: of live deliveries, once for each set of like connections that took a message,
            and once for messages of the same millisecond that are written together.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.rows: dict[tuple[str, str], Row] = {}
        self.latency = Histogram(LATENCY)
        self._services: set[str] = set()

    def row(self, service: str, type: str) -> Row:
        """The row of a service and type, which is counted in."""
        row = self.rows.get((service, type))
        if row is None:
            row = self.rows.setdefault((self.known(service), type), Row())
        return row

    def known(self, service: str) -> str:
        """A service's name; of those that are too many, `other`."""
        if service and service not in self._services:
            if len(self._services) >= MAX_SERVICES:
                return OTHER
            self._services.add(service)
        return service

    def accepted(self, drafts: Sequence[Draft]) -> None:
        # Most of a batch are alike: comparing costs a fifth of looking up.
        row, service, type, number = None, "", "", 0
        for draft in drafts:
            if row is None or draft.service != service or draft.type != type:
                if row is not None:
                    row.published += number
                service, type, number = draft.service, draft.type, 0
                row = self.row(service, type)
            number += 1
        if row is not None:
            row.published += number

    def rejected(self, error: MsgpushError, draft: Draft | None) -> None:
        service, type = ("", "") if draft is None else (draft.service, draft.type)
        self.row(service, type).failed += 1

    def delivered(self, entries: Sequence[Entry], streams: int) -> None:
        now = self._clock()
        last = None
        for entry in entries:
            self.row(entry.service, entry.type).delivered += streams
            # A batch's messages all took the same time: they count once.
            if (ms := entry.position.ms) != last:
                self.latency.observe(max(0.0, now - ms / 1000))
                last = ms

    def caught_up(self, connection: Connection, entries: Sequence[Entry], source: Source) -> None:
        if connection.listed:
            for entry in entries:
                self.row(entry.service, entry.type).delivered += 1

    def acknowledged(self, service: str, type: str, seconds: float) -> None:
        self.row(service, type).acknowledged += 1

    def died(self, service: str, type: str, reason: str) -> None:
        self.row(service, type).dead += 1
