"""`GET /api/v1/stats/messages`: what became of messages at all instances, as series over time."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from math import ceil, floor
from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import GUARDED, Operation, json_answer, parameter
from msgpush.adapters.http.problems import encode
from msgpush.adapters.http.requests import Query
from msgpush.adapters.http.responses import json_response
from msgpush.domain.counts import FIELDS, HOUR, KEPT, MINUTE, Counts, Step, quantile
from msgpush.domain.errors import Invalid, Malformed
from msgpush.domain.message import format_seconds, normal_timestamp
from msgpush.domain.ports import Statistics
from msgpush.domain.quoting import short_repr

By = Literal["service", "type"]

SPAN = 3600  # seconds before `to` from which on it is, where that isn't said
POINTS = 200  # at most, where the step isn't said
MOST_POINTS = 1500
AT_ONCE = 10  # steps that are read at a time: what is made of them holds nothing up
LATEST = 253_402_297_200  # seconds; the last full hour of the year 9999

_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_MOMENT_RULE = (
    "a moment as RFC 3339 has it, such as 2025-07-30T15:10:00Z (a + is written %2B), or seconds"
    " since 1970"
)

# The same in the description, but for the limits that only a calendar has.
_MOMENT_PATTERN = (
    "^([0-9]{1,12}([.][0-9]{1,9})?|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}"
    "([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2}))$"
)

Points = Annotated[list[int], Meta(description="A number for each step.")]
Quantiles = Annotated[
    list[float | None],
    Meta(description="Milliseconds for each step; null: there was no message."),
]


class Series(Struct):
    """The messages of a service or type; without a key, of all.

    `delivered`: written to streams, once for each. `pushed`: sent to devices."""

    key: str | None
    published: Points
    failed: Points
    delivered: Points
    acknowledged: Points
    dead: Points
    pushed: Points


class LatencySeries(Struct):
    """From a message's acceptance to its writing to live streams, over all messages."""

    p50: Quantiles
    p99: Quantiles


class MessageStatistics(Struct):
    """What became of messages from a moment on, before another, step by step (seconds)."""

    start: str = field(name="from")
    to: str
    step: int
    series: list[Series]
    latency_ms: LatencySeries


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/stats/messages",
        tag="Operate",
        id="messageStatistics",
        summary="What became of messages at all instances, over time",
        answers={200: json_answer("Whole steps, which hold what is asked for.", MessageStatistics)},
        problems=(*GUARDED, 503),
        parameters=[
            parameter(
                "from",
                "Where it begins: RFC 3339, or seconds since 1970; an hour before `to`, where it"
                " isn't said. Minutes are kept for a day, hours for a month.",
                pattern=_MOMENT_PATTERN,
            ),
            parameter(
                "to",
                "Where it ends, likewise; now, where it isn't said.",
                pattern=_MOMENT_PATTERN,
            ),
            parameter(
                "step",
                f"Seconds of a step; the finer that gives at most {POINTS} points, where it isn't"
                " said.",
                type="integer",
                enum=[MINUTE, HOUR],
            ),
            parameter(
                "by",
                "What is told apart; without it, totals. At most 100 services are, the rest is"
                " `other`; those of which the service isn't known have an empty key.",
                enum=["service", "type"],
            ),
        ],
    ),
)


class StatisticsApi:
    """Serves the statistics.

    Args:
        clock: seconds since 1970.
    """

    def __init__(
        self,
        statistics: Statistics,
        auth: Authenticator,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._statistics, self._auth, self._clock = statistics, auth, clock

    async def messages(self, request: Request) -> Response:
        query = Query(request.scope)
        now = self._clock()
        to = _moment(query, "to", now)
        start = _moment(query, "from", to - SPAN)
        step = _step(query)
        by = _by(query)
        query.done()
        if start >= to:
            raise Malformed(
                f"the parameter from is {format_seconds(start)}, and to is {format_seconds(to)}:"
                " from must be before to"
            )
        step = _fitting(step, start, to, now)
        grant = await self._auth.authenticate(request.scope)
        grant.check_admin()
        first, after = floor(start / step), ceil(to / step)
        table = _Table(after - first)
        for place in range(first, after, AT_ONCE):
            end = min(place + AT_ONCE, after)
            found = await self._statistics.read(step, place, end - 1)
            table.add({each - first: counts for each, counts in found.items()}, by)
            await asyncio.sleep(0)  # in memory nothing else has waited
        parts = []
        for each in table.series(by):
            parts.append(encode(each))
            await asyncio.sleep(0)  # a day of a service takes 0.3 ms, and there may be a hundred
        series: list[Any] = [*map(Raw, parts)]
        return json_response(
            MessageStatistics(
                format_seconds(first * step),
                format_seconds(after * step),
                step,
                series,
                table.latency,
            )
        )


class _Table:
    """The numbers of each key and field, step by step.

    Args:
        steps: how many there are.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._columns: dict[str | None, list[list[int]]] = {}
        self.latency = LatencySeries([None] * steps, [None] * steps)

    def add(self, found: Mapping[int, Counts], by: By | None) -> None:
        """Take the counts of some steps, which are counted from 0."""
        for place, counts in found.items():
            self.latency.p50[place] = _ms(quantile(counts.latency, 0.5))
            self.latency.p99[place] = _ms(quantile(counts.latency, 0.99))
            if by is None:
                self._put(None, place, counts.total())
            else:
                rows = counts.services if by == "service" else counts.types
                for key, row in rows.items():
                    self._put(key, place, row)

    def series(self, by: By | None) -> list[Series]:
        """The series, that of most messages first; of totals one, even where there is nothing."""
        if by is None and not self._columns:
            self._put(None, 0, [0] * len(FIELDS))
        found = [Series(key, *columns) for key, columns in self._columns.items()]
        return sorted(
            found, key=lambda each: (-sum(each.published) - sum(each.failed), each.key or "")
        )

    def _put(self, key: str | None, place: int, row: list[int]) -> None:
        columns = self._columns.get(key)
        if columns is None:
            columns = self._columns[key] = [[0] * self._steps for _ in FIELDS]
        for column, number in zip(columns, row, strict=True):
            column[place] = number


def _moment(query: Query, name: str, default: float) -> float:
    """The seconds since 1970 that a parameter names."""
    value = query.one(name)
    if value is None:
        return default
    try:
        moment = float(value) if _SECONDS.fullmatch(value) else _seconds(normal_timestamp(value))
    except Invalid:
        moment = -1.0
    if not 0 <= moment <= LATEST:
        raise Malformed(f"the parameter {name} is {short_repr(value)}: it must be {_MOMENT_RULE}")
    return moment


def _step(query: Query) -> Step | None:
    match query.one("step"):
        case None:
            return None
        case "60":
            return MINUTE
        case "3600":
            return HOUR
        case value:
            raise Malformed(
                f"the parameter step is {short_repr(value)}: it must be 60 or 3600, in seconds"
            )


def _by(query: Query) -> By | None:
    match query.one("by"):
        case None:
            return None
        case "service":
            return "service"
        case "type":
            return "type"
        case value:
            raise Malformed(
                f"the parameter by is {short_repr(value)}: it must be service or type; without it"
                " there are totals"
            )


def _fitting(step: Step | None, start: float, to: float, now: float) -> Step:
    """The step that is asked for, or else the one that fits.

    Raises:
        Malformed: there are too many points, or nothing is kept of the first ones any more.
    """
    asked, few = step is not None, to - start <= POINTS * MINUTE
    if step is None:
        step = MINUTE if few and start >= now - KEPT[MINUTE] else HOUR
    if start < now - KEPT[step]:
        oldest = format_seconds(ceil((now - KEPT[step]) / step) * step)
        kept = "hours are kept for a month: take"
        if step == MINUTE:
            kept = "minutes are kept for a day, hours for a month: take step=3600, or"
        raise Malformed(
            f"the parameter from is {format_seconds(start)}: {kept} a moment from {oldest} on"
        )
    points = ceil(to / step) - floor(start / step)
    if points > MOST_POINTS:
        which = f"the parameter step is {step}" if asked else f"a step has {step} seconds"
        raise Malformed(
            f"{which}: from {format_seconds(start)} to {format_seconds(to)} that is"
            f" {points:,} points, and at most {MOST_POINTS:,} are told"
            + (": take step=3600, or less time" if step == MINUTE else ": take less time")
        )
    return step


def _seconds(normal: str) -> float:
    return datetime.fromisoformat(normal).timestamp()


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
