"""Signs of life, and their end: heartbeats, sockets that stay full, and permissions over time."""

import random
from collections.abc import Callable, Collection
from itertools import count
from math import inf

from msgpush.domain.cohorts import Cohorts
from msgpush.domain.connection import Cohort, Connection
from msgpush.domain.log import Log
from msgpush.domain.observer import Observer
from msgpush.domain.ports import Sink
from msgpush.domain.wheel import Wheel

ENDED_AT_ONCE = 500  # connections whose permissions have ended, in one turn
CLOSING = 1.0  # seconds in which a cut reader may still take the closing block


class Liveness:
    """The clocks that run for each connection.

    Args:
        monotonic: seconds of a clock that never jumps.
        heartbeat: seconds without a write after which a connection gets a heartbeat.
        write_timeout: seconds for which a connection's socket may take nothing.
    """

    def __init__(
        self,
        log: Log,
        cohorts: Cohorts,
        monotonic: Callable[[], float],
        heartbeat: float,
        write_timeout: float,
        *,
        observer: Observer,
    ) -> None:
        self._log, self._cohorts, self._monotonic = log, cohorts, monotonic
        self._heartbeat, self._write_timeout = heartbeat, write_timeout
        self._observer = observer
        self._wheel: Wheel[Connection] = Wheel(heartbeat / 300)
        self._phases = count(random.randrange(1024))
        self._blocked: dict[Connection, tuple[float, int]] = {}
        self._closing: dict[Sink, float] = {}
        self._next_end = inf

    def __len__(self) -> int:
        """The amount that is kept for connections."""
        return len(self._wheel) + len(self._blocked) + len(self._closing)

    def begin(self, connection: Connection) -> None:
        """A connection has got its first bytes."""
        connection.written = self._monotonic()
        self._next_end = min(self._next_end, connection.ends)
        self._schedule(connection)

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self._blocked.pop(connection, None)
        self._wheel.remove(connection)

    # Heartbeats

    def beat(self) -> None:
        """Send the heartbeats that are due."""
        now = self._monotonic()
        for connection in self._wheel.due(now):
            if (cohort := connection.cohort) is None:
                continue
            if connection.live:
                connection.written = max(connection.written, cohort.written)
            if now >= connection.written + self._heartbeat:
                self._send(connection, cohort)
                connection.written = now
            self._schedule(connection)

    def _send(self, connection: Connection, cohort: Cohort) -> None:
        if connection.live and cohort.busy:
            return  # what is pending is a sign of life itself
        view = cohort.subscription.view
        # What is missing comes first: the cursor is after it.
        frames = [*map(view.gap, connection.gaps), view.heartbeat(connection.cursor_in(self._log))]
        if connection.sink.offer(view.chunk(frames)):
            for gap in connection.gaps:
                self._observer.gap(connection, gap)
            connection.gaps.clear()
        elif connection.live:
            self._cohorts.fall_behind(connection, connection.position_in(self._log))
        elif not connection.sink.writable:
            self.block(connection)

    def _schedule(self, connection: Connection) -> None:
        # A tenth of the interval is spread evenly over the connections, or all that got the same
        # message at the same moment would get their heartbeats in step.
        spread = (next(self._phases) * 0.6180339887) % 1 * self._heartbeat / 10
        self._wheel.put(connection, connection.written + self._heartbeat + spread)

    # Sockets that are full

    def block(self, connection: Connection) -> None:
        """The socket of a connection is full."""
        if connection not in self._blocked:
            self._blocked[connection] = (self._monotonic(), connection.sink.backlog)

    def unblock(self, connection: Connection) -> None:
        """The socket of a connection has taken something."""
        self._blocked.pop(connection, None)

    def stuck(self) -> list[Connection]:
        """The connections whose sockets have taken nothing for too long."""
        now, stuck = self._monotonic(), []
        for connection, (since, backlog) in list(self._blocked.items()):
            if connection.sink.writable:
                del self._blocked[connection]
            elif connection.sink.backlog < backlog:
                self._blocked[connection] = (now, connection.sink.backlog)
            elif now - since >= self._write_timeout:
                stuck.append(connection)
        return stuck

    # Ends

    def expired(self, connections: Collection[Connection], now: float) -> list[Connection]:
        """The connections whose permissions have ended, or the first of them; they must be closed.

        Args:
            connections: all that there are.
            now: seconds since 1970.
        """
        if now < self._next_end:
            return []
        ended = [each for each in connections if each.ends <= now]
        if len(ended) > ENDED_AT_ONCE:
            self._next_end = now
        else:
            # However close together they end, all connections are looked at once a second, not
            # with each beat.
            soonest = min((each.ends for each in connections if each.ends > now), default=inf)
            self._next_end = max(soonest, now + 1.0)
        return ended[:ENDED_AT_ONCE]

    def closed(self, sink: Sink) -> None:
        """A sink has been given its last block, and some time to take it."""
        self._closing[sink] = self._monotonic() + CLOSING

    def cut_closing(self, now: float = inf) -> None:
        """Cut those that were closed and have had their time to take the closing block."""
        for sink, until in list(self._closing.items()):
            if now >= until:
                del self._closing[sink]
                sink.abort()
