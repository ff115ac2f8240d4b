"""The tally: what has happened at this instance, in plain integers.

It is told on the hottest paths, so nothing here is formatted, locked or written anywhere: metrics
and statistics read it when they are asked for, and make of it what they need."""

import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct

from msgpush.domain.connection import Connection
from msgpush.domain.devices import Kind
from msgpush.domain.errors import (
    BusUnavailable,
    Conflict,
    Denied,
    Invalid,
    KeysUnavailable,
    MailboxFull,
    Malformed,
    MsgpushError,
    PendingFull,
    RateExceeded,
    TooLarge,
    Unauthorized,
)
from msgpush.domain.history import Gap
from msgpush.domain.message import Draft, Entry
from msgpush.domain.observer import Observer, Source

K = TypeVar("K", bound=Hashable)

MAX_SERVICES = 100
OTHER = "other"

# Seconds from a message's acceptance to its writing: the upper bounds of the buckets, which are
# fixed, so that histograms of any instances and times add up.
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# The same, of what a sweep or a turn of the loop takes.
SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
# From a message's acceptance to its acknowledgement: people take their time.
ANSWERING = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0)

# Why a message was refused, as it is counted; all else is "other".
REASONS: Mapping[type[MsgpushError], str] = {
    Malformed: "malformed",
    Invalid: "invalid",
    TooLarge: "too_large",
    Conflict: "conflict",
    MailboxFull: "mailbox_full",
    PendingFull: "pending_full",
    Denied: "denied",
    BusUnavailable: "unavailable",
    KeysUnavailable: "unavailable",
    Unauthorized: "unauthorized",
    RateExceeded: "rate",
}
_REFUSALS = (Denied, KeysUnavailable, RateExceeded, TooLarge, Unauthorized)


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
    """Counts messages by service and type, and what happens to streams. The first 100 services are
    told apart; the rest is `other`.

    Args:
        clock: seconds since 1970.

    Attributes:
        rows: by service and type; a refused message of which neither is known has empty ones.
        latency: of live deliveries, once for each set of like connections that took a message,
            and once for messages of the same millisecond that are written together.
        durations: the same, by service and type.
        failures: messages, by service, type and reason.
        refusals: streams, requests and connections, by reason.
        opened_streams: by transport.
        closed_streams: by transport and reason; `gone`: the client has left by itself.
        written: bytes on those that were closed, by transport.
        replays: messages to those that were behind, by where they were read from.
        gaps: told to clients, by reason.
        sweeps: seconds that each took.
        swept_messages: those that they took, once for each set of like connections.
        writes: seconds that the bus took to answer a publish.
        round_trips: seconds from a probe's writing to its reading.
        answers: seconds to the acknowledgement, by service.
        redeliveries: messages, by service.
        deaths: dead letters that came and went, by service and reason.
        pushes: sent to devices, by kind and outcome; `push_times`, seconds until the provider's
            answer, by kind.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.rows: dict[tuple[str, str], Row] = {}
        self.latency = Histogram(LATENCY)
        self.durations: dict[tuple[str, str], Histogram] = {}
        self.failures: dict[tuple[str, str, str], int] = {}
        self.refusals: dict[str, int] = {}
        self.opened_streams: dict[str, int] = {}
        self.closed_streams: dict[tuple[str, str], int] = {}
        self.written: dict[str, int] = {}
        self.replays: dict[Source, int] = {"ring": 0, "bus": 0}
        self.gaps: dict[str, int] = {"trimmed": 0, "expired": 0, "reset": 0}
        self.sweeps, self.swept_messages = Histogram(SHORT), 0
        self.writes, self.round_trips = Histogram(LATENCY), Histogram(LATENCY)
        self.answers: dict[str, Histogram] = {}
        self.redeliveries: dict[str, int] = {}
        self.deaths: dict[tuple[str, str], int] = {}
        self.pushes: dict[tuple[str, str], int] = {}
        self.push_times: dict[str, Histogram] = {}
        self._services: set[str] = set()
        self._lines: dict[tuple[str, str], tuple[Row, Histogram]] = {}

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

    # Messages

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
        # Who may publish nothing doesn't use up the names.
        denied = isinstance(error, Denied) and service not in self._services
        service = OTHER if denied and service else self.known(service)
        self.row(service, type).failed += 1
        _count(self.failures, (service, type, REASONS.get(error.__class__, "other")))

    def stored(self, seconds: float) -> None:
        # Not `observe`: each publish comes by here.
        writes = self.writes
        writes.counts[bisect_left(LATENCY, seconds)] += 1
        writes.sum += seconds

    def delivered(self, entries: Sequence[Entry], streams: int) -> None:
        now, latency, lines = self._clock(), self.latency, self._lines
        last, timed, former = None, set[tuple[str, str]](), ("", "")
        seconds, bucket = 0.0, 0
        row, duration = _NO_LINE
        for entry in entries:
            key = entry.service, entry.type
            if key != former:
                row, duration = lines.get(key) or self._line(*key)
                former = key
            row.delivered += streams
            # A batch's messages all took the same time: they count once.
            if (ms := entry.position.ms) != last:
                last, timed = ms, {key}
                seconds = now - ms / 1000
                seconds = max(seconds, 0.0)
                bucket = bisect_left(LATENCY, seconds)
                latency.counts[bucket] += 1
                latency.sum += seconds
            elif key in timed:
                continue
            else:
                timed.add(key)
            duration.counts[bucket] += 1
            duration.sum += seconds

    def _line(self, service: str, type: str) -> tuple[Row, Histogram]:
        """What deliveries of a service and type are counted in."""
        key = (self.known(service), type)
        line = self._lines.get(key)
        if line is None:
            self.durations[key] = Histogram(LATENCY)
            line = self._lines[key] = (self.row(*key), self.durations[key])
        return line

    def caught_up(self, connection: Connection, entries: Sequence[Entry], source: Source) -> None:
        if connection.listed:
            self.replays[source] += len(entries)
            for entry in entries:
                self.row(entry.service, entry.type).delivered += 1

    def acknowledged(self, service: str, type: str, seconds: float) -> None:
        self.row(service, type).acknowledged += 1
        answer = self.answers.get(service)
        if answer is None:
            answer = self.answers.setdefault(self.known(service), Histogram(ANSWERING))
        answer.observe(seconds)

    def redelivered(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            _count(self.redeliveries, self.known(draft.service))

    def died(self, service: str, type: str, reason: str) -> None:
        self.row(service, type).dead += 1
        _count(self.deaths, (self.known(service), reason))

    def buried(self, service: str) -> None:
        _count(self.deaths, (self.known(service), "removed"))

    def pushed(self, service: str, type: str, kind: Kind, outcome: str, seconds: float) -> None:
        if outcome == "sent":
            self.row(service, type).pushed += 1
        _count(self.pushes, (kind, outcome))
        if kind not in self.push_times:
            self.push_times[kind] = Histogram(LATENCY)
        self.push_times[kind].observe(seconds)

    # Streams

    def refused(self, reason: str) -> None:
        _count(self.refusals, reason)

    def answered(self, error: MsgpushError) -> None:
        """A request was answered with an error; those of the limits and permissions are counted as
        refused.
        """
        if isinstance(error, _REFUSALS):
            self.refused(REASONS[error.__class__])

    def opened(self, connection: Connection) -> None:
        _count(self.opened_streams, connection.info.transport)

    def closed(self, connection: Connection) -> None:
        transport = connection.info.transport
        reason = "gone" if connection.end is None else connection.end.reason
        _count(self.closed_streams, (transport, reason))
        _count(self.written, transport, connection.bytes_sent)

    def gap(self, connection: Connection, gap: Gap) -> None:
        if connection.listed:
            _count(self.gaps, gap.reason)

    # The machinery

    def swept(self, seconds: float, messages: int) -> None:
        self.sweeps.observe(seconds)
        self.swept_messages += messages

    def probed(self, seconds: float) -> None:
        self.round_trips.observe(seconds)


_NO_LINE = (Row(), Histogram(LATENCY))


def _count(counts: dict[K, int], key: K, number: int = 1) -> None:
    counts[key] = counts.get(key, 0) + number
