"""The log of streams: who has come and gone. However many do, it stays readable."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable
from typing import Any, Self

import structlog

from msgpush.domain.channel import BROADCAST
from msgpush.domain.connection import Connection
from msgpush.domain.observer import Observer
from msgpush.domain.quoting import short_repr

MOST = 20  # lines a second; of what is more, one line tells how much it was
WINDOW = 1.0
LONGEST = 200  # characters of a subject

# By way of `logging`: a program that embeds the service, and has said nothing of logs, finds none
# on its stdout.
log = structlog.wrap_logger(logging.getLogger("msgpush.streams"))


class StreamLog(Observer):
    """Logs each stream as it opens and as it ends, 20 lines a second; of what is more, one line a
    second tells how much that was. A context manager: at its end nothing is left untold.

    Args:
        clock: seconds since 1970.
        monotonic: seconds of a clock that never jumps.
        later: calls a function after so many seconds; None: the running loop does.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], Any] | None = None,
    ) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._later = later or self._by_loop
        self._since, self._said = -WINDOW, 0
        self._left_out = {"opened": 0, "closed": 0}
        self._waits = False
        # What is told of many belongs to no request.
        self._context = contextvars.copy_context()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sum_up()

    def opened(self, connection: Connection) -> None:
        self._tell("opened", "a stream has opened", connection)

    def closed(self, connection: Connection) -> None:
        began = connection.info.connected_at
        self._tell(
            "closed",
            "a stream has ended",
            connection,
            reason="gone" if connection.end is None else connection.end.reason,
            seconds=round(max(0.0, self._clock() - began), 3) if began else None,
            messages=connection.messages_sent,
        )

    def _tell(self, what: str, event: str, connection: Connection, **more: object) -> None:
        now = self._monotonic()
        if now - self._since >= WINDOW:
            self._since, self._said = now, 0
        if self._said >= MOST:
            self._left_out[what] += 1
            if not self._waits:
                self._waits = True
                self._later(self._since + WINDOW - now, self._sum_up)
            return
        self._said += 1
        log.info(
            event,
            connection=connection.id,
            transport=connection.info.transport,
            subject=_shown(connection.info.subject),
            channels=len(connection.channels - {BROADCAST}),
            **more,
        )

    def _sum_up(self) -> None:
        self._waits = False
        if any(self._left_out.values()):
            log.info("more streams have opened or ended than are logged", **self._left_out)
            self._left_out = dict.fromkeys(self._left_out, 0)

    def _by_loop(self, seconds: float, function: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, function, context=self._context)


def _shown(subject: str | None) -> str | None:
    """A subject as a line may have it: none moves a terminal's cursor, or fills the log."""
    if subject is None or (len(subject) <= LONGEST and subject.isprintable()):
        return subject
    return short_repr(subject)
